"""What anyone may read: root keys, the log of receipts, agents' signed cards, the OpenAPI description and its page."""

from quittance.api.http import Api
from quittance.observability import observed
from quittance.usecases import public

app = Api("public", "tiles", "keys", "registry", anyone=True)
app.serve("GET /.well-known/jwks.json", public.jwks, "Read the root keys of receipts, webhooks and cards")
app.serve("GET /log/checkpoint", public.checkpoint, "Read the log's newest checkpoint")
app.serve("GET /log/tile/<level>/<index>/<width>", public.tile, "Read a tile of the log", headers=public.FOR_EVER)
app.serve(
    "GET /agents/<agent_id>/.well-known/agent-card.json",
    public.a2a_card,
    "Read an agent's signed A2A card",
    name="get_a2a_agent_card",
)
app.serve("GET /openapi.json", public.openapi, "Read the API description")
app.serve("GET /docs", public.docs, "Read the API's page")

handler = observed(app.resolve)
