"""For operators: retires agents, freezes accounts, pauses funding, and lists these operations: `/operations`."""

from quittance.api.http import Api
from quittance.observability import observed
from quittance.usecases import operations

app = Api("operations")
app.serve("GET /operations", operations.journal, "List operations", name="list_operations")
app.serve("POST /operations/agents/<agent_id>/retire", operations.retire, "Retire any agent", name="retire_any_agent")
app.serve(
    "POST /operations/accounts/<account_id>/freeze", operations.freeze, "Freeze an account", name="freeze_account"
)
app.serve(
    "POST /operations/accounts/<account_id>/unfreeze",
    operations.unfreeze,
    "Unfreeze an account",
    name="unfreeze_account",
)
app.serve("POST /operations/funding/pause", operations.pause, "Pause new tasks", name="pause_funding")
app.serve("POST /operations/funding/resume", operations.resume, "Resume new tasks", name="resume_funding")

handler = observed(app.resolve)
