"""What operators can stop: retires agents, freezes accounts, pauses funding; and the journal of it: `/operations`."""

from quittance.api.http import Api
from quittance.observability import entry
from quittance.usecases import operations

app = Api("operations")
app.serve("GET /operations", operations.journal, "List operations")
app.serve("POST /operations/agents/<agent_id>/retire", operations.retire, "Retire any agent")
app.serve("POST /operations/accounts/<account_id>/freeze", operations.freeze, "Freeze an account")
app.serve("POST /operations/accounts/<account_id>/unfreeze", operations.unfreeze, "Unfreeze an account")
app.serve("POST /operations/funding/pause", operations.pause, "Pause new tasks")
app.serve("POST /operations/funding/resume", operations.resume, "Resume new tasks")

handler = entry(app.resolve)
