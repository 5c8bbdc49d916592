"""Outcomes, kept inputs and proofs of tasks: `GET /tasks/{task_id}/result`, `…/input`, `…/proof`."""

from quittance.api.http import Api
from quittance.observability import observed
from quittance.usecases import result

app = Api("tasks", "ledger", "outputs", "tiles", "keys")
app.serve("GET /tasks/<task_id>/result", result.read, "Get the outcome of a task", name="get_task_result")
app.serve("GET /tasks/<task_id>/input", result.read_input, "Get the input that a task kept", name="get_task_input")
app.serve(
    "GET /tasks/<task_id>/proof", result.prove, "Prove that a task's receipt is in the log", name="get_task_proof"
)

handler = observed(app.resolve)
