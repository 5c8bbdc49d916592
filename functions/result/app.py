"""Outcomes of tasks, and proofs of their receipts: `GET /tasks/{task_id}/result`, `GET /tasks/{task_id}/proof`."""

from quittance.api.http import Api
from quittance.observability import observed
from quittance.usecases import result

app = Api("tasks", "ledger", "outputs", "tiles", "keys")
app.serve("GET /tasks/<task_id>/result", result.read, "Get the outcome of a task", name="get_task_result")
app.serve(
    "GET /tasks/<task_id>/proof", result.prove, "Prove that a task's receipt is in the log", name="get_task_proof"
)

handler = observed(app.resolve)
