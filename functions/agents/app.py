"""Registers, lists, describes, changes and retires agents and their versions: `/agents`."""

from http import HTTPStatus

from quittance.api.http import Api
from quittance.observability import observed
from quittance.usecases import agents

app = Api("agents", "ledger", "registry", "uploads")
app.serve("POST /agents", agents.register, "Register an agent", status=HTTPStatus.CREATED)
app.serve("GET /agents", agents.page, "List agents")
app.serve("GET /agents/<agent_id>", agents.describe, "Describe an agent")
app.serve("GET /agents/<agent_id>/estimate", agents.estimate, "Estimate the price of a task")
app.serve("GET /agents/<agent_id>/card", agents.card, "Read what an agent takes and gives", name="get_agent_card")
app.serve("POST /agents/<agent_id>/versions", agents.open_version, "Upload a new version", status=HTTPStatus.CREATED)
app.serve("GET /agents/<agent_id>/versions", agents.versions, "List an agent's versions", name="list_agent_versions")
app.serve(
    "POST /agents/<agent_id>/versions/<number>/activate",
    agents.activate,
    "Activate an earlier or later version",
    name="activate_agent_version",
)
app.serve("PATCH /agents/<agent_id>", agents.change, "Change an agent's name or terms", name="update_agent")
app.serve("DELETE /agents/<agent_id>", agents.retire, "Retire an agent")

handler = observed(app.resolve)
