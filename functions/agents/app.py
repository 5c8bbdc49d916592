"""Registers, lists, describes and retires agents: `/agents`."""

from http import HTTPStatus

from quittance.api.http import Api
from quittance.observability import observed
from quittance.usecases import agents

app = Api("agents", "ledger", "listings", "registry", "uploads")
app.serve("POST /agents", agents.register, "Register an agent", status=HTTPStatus.CREATED)
app.serve("GET /agents", agents.page, "List or search agents")
app.serve("GET /agents/<agent_id>", agents.describe, "Describe an agent")
app.serve("GET /agents/<agent_id>/estimate", agents.estimate, "Estimate the price of a task")
app.serve("POST /agents/<agent_id>/versions", agents.open_version, "Upload a new version", status=HTTPStatus.CREATED)
app.serve("DELETE /agents/<agent_id>", agents.retire, "Retire an agent")

handler = observed(app.resolve)
