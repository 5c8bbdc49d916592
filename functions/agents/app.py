"""Registers, lists, describes, changes and retires agents and their versions: `/agents`."""

from quittance.api.http import Api
from quittance.observability import observed
from quittance.usecases import agents

app = Api("agents", "ledger", "listings", "registry", "uploads")
app.serve("POST /agents", agents.register, "Register an agent", name="register_agent", status=201)
app.serve("GET /agents", agents.page, "List or search agents", name="list_agents")
app.serve("GET /agents/<agent_id>", agents.describe, "Get an agent", name="get_agent")
app.serve("GET /agents/<agent_id>/estimate", agents.estimate, "Estimate the price of a task", name="estimate_price")
app.serve("GET /agents/<agent_id>/card", agents.card, "Get an agent's card", name="get_agent_card")
app.serve(
    "POST /agents/<agent_id>/versions", agents.open_version, "Upload a version", name="upload_version", status=201
)
app.serve("GET /agents/<agent_id>/versions", agents.versions, "List an agent's versions", name="list_agent_versions")
app.serve(
    "POST /agents/<agent_id>/versions/<number>/activate",
    agents.activate,
    "Activate an earlier or later version",
    name="activate_agent_version",
)
app.serve("PATCH /agents/<agent_id>", agents.change, "Change an agent's name or terms", name="update_agent")
app.serve("DELETE /agents/<agent_id>", agents.retire, "Retire your agent", name="retire_agent")

handler = observed(app.resolve)
