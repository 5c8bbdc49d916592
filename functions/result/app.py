"""Outcomes and proofs of tasks, and lists: a payer's tasks, and for an owner the runs of an agent."""

from quittance.api.http import Api
from quittance.observability import observed
from quittance.usecases import result, runs

app = Api("tasks", "ledger", "listings", "outputs", "registry", "tiles", "keys")
app.serve("GET /tasks/<task_id>/result", result.read, "Read the outcome of a task", name="result")
app.serve("GET /tasks/<task_id>/proof", result.prove, "Prove that a task's receipt is in the log", name="proof")
app.serve("GET /tasks", runs.tasks, "List one's tasks", name="list_tasks")
app.serve(
    "GET /agents/<agent_id>/runs", runs.page, "List the runs of one's agent", name="list_agent_runs", tag="agents"
)
app.serve(
    "GET /agents/<agent_id>/runs/<run_id>", runs.read, "Read a run of one's agent", name="get_agent_run", tag="agents"
)

handler = observed(app.resolve)
