"""What anyone may read: the root keys, the log of receipts, the OpenAPI description and its page."""

from quittance.api.http import Api
from quittance.observability import entry
from quittance.usecases import public

app = Api("public", "tiles", "keys", anyone=True)
app.serve("GET /.well-known/jwks.json", public.jwks, "Read the root keys of receipts, checkpoints and webhooks")
app.serve("GET /log/checkpoint", public.checkpoint, "Read the log's newest checkpoint")
app.serve("GET /log/tile/<level>/<index>/<width>", public.tile, "Read a tile of the log", headers=public.FOR_EVER)
app.serve("GET /openapi.json", public.openapi, "Read the API description")
app.serve("GET /docs", public.docs, "Read the API's page")

handler = entry(app.resolve)
