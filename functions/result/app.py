"""Outcomes, kept inputs and proofs of tasks; lists of a payer's tasks, and of the runs of an owner's agent."""

from quittance.api.http import Api
from quittance.observability import observed
from quittance.usecases import result, runs

app = Api("tasks", "ledger", "listings", "outputs", "registry", "tiles", "keys")
app.serve("GET /tasks/<task_id>/result", result.read, "Get the outcome of a task", name="get_task_result")
app.serve("GET /tasks/<task_id>/input", result.read_input, "Get the input that a task kept", name="get_task_input")
app.serve(
    "GET /tasks/<task_id>/proof", result.prove, "Prove that a task's receipt is in the log", name="get_task_proof"
)
app.serve("GET /tasks", runs.tasks, "List your tasks", name="list_tasks")
app.serve("GET /agents/<agent_id>/runs", runs.page, "List your agent's runs", name="list_agent_runs", tag="agents")
app.serve("GET /agents/<agent_id>/runs/<run_id>", runs.read, "Get a run", name="get_agent_run", tag="agents")

handler = observed(app.resolve)
