"""What anyone may read: root keys, the log of receipts, agents' signed cards, the OpenAPI description and its page."""

from quittance.api.http import Api
from quittance.observability import observed
from quittance.usecases import public

app = Api("public", "tiles", "keys", "registry", anyone=True)
app.serve("GET /.well-known/jwks.json", public.jwks, "Get the root keys", name="get_jwks")
app.serve(
    "GET /log/checkpoint", public.checkpoint, "Get a checkpoint of the log of receipts", name="get_log_checkpoint"
)
app.serve(
    "GET /log/tile/<level>/<index>/<width>",
    public.tile,
    "Get a tile of the log",
    name="get_log_tile",
    headers=public.FOR_EVER,
)
app.serve(
    "GET /agents/<agent_id>/.well-known/agent-card.json",
    public.a2a_card,
    "Get an agent's signed A2A card",
    name="get_a2a_agent_card",
)
app.serve("GET /openapi.json", public.openapi, "Get this description", name="get_openapi")
app.serve("GET /docs", public.docs, "Get this description as a page", name="get_docs")

handler = observed(app.resolve)
