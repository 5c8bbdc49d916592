"""Opens, tops up, lists and closes payment channels: `/channels`."""

from quittance.api.http import Api
from quittance.observability import observed
from quittance.usecases import channels

app = Api("channels", "ledger", "channels", "listings", "registry")
app.serve("POST /channels", channels.open_channel, "Open a channel", name="open_channel", status=201)
app.serve("GET /channels", channels.page, "List your channels", name="list_channels")
app.serve("GET /channels/<channel_id>", channels.read, "Get a channel", name="get_channel")
app.serve("POST /channels/<channel_id>/topups", channels.top_up, "Top up", name="top_up_channel", status=201)
app.serve("POST /channels/<channel_id>/close", channels.close, "Close a channel", name="close_channel")
app.serve(
    "POST /channels/<channel_id>/signed-close",
    channels.close_by_key,
    "Close a channel by its key",
    name="close_channel_by_key",
    anyone=True,
)
app.serve("GET /channels/<channel_id>/tickets", channels.used_tickets, "List a channel's tickets", name="list_tickets")

handler = observed(app.resolve)
