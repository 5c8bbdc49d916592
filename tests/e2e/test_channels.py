"""Payment channels over the deployed API: one deposit, tasks that tickets pay without a token, closing."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from quittance.api.models import TaskRequest
from quittance.proof import receipt
from tests import tickets
from tests.e2e.people import Ledger, User, sweep_until_credited
from tests.support import wasm
from tests.waiting import until


class Payer:
    """A user with an open channel of ten tickets of 0.02 credits, and a client without a token."""

    def __init__(self, user: User, public: httpx.Client, now_ms: Callable[[], int]) -> None:
        self.user, self.public = user, public
        self._clock: Any = SimpleNamespace(now_ms=now_ms)
        self.asked = tickets.asked(self._clock, ticket_value="0.02", tickets=10)
        opened = user.http.post("/channels", json=self.asked)
        assert opened.status_code == 201, opened.text
        self.channel = opened.json()
        self.path = f"/channels/{self.channel['channel_id']}"

    def ticket(self, body: dict[str, Any], **changed: Any) -> str:
        """A ticket for this task."""
        task = TaskRequest.model_validate(body)
        return tickets.ticket(self._clock, task, **({"iss": self.channel["issuer"]} | changed))

    def body(self, n: int, agent_id: str, **more: Any) -> dict[str, Any]:
        """The body of a task."""
        task_id = f"{self.channel['channel_id']}.{n}"
        return {"task_id": task_id, "agent_id": agent_id, "input": "hello", "budget": "0.02"} | more

    def spend(self, body: dict[str, Any], ticket: str | None = None, **headers: str) -> httpx.Response:
        """Sends a task with its ticket, without a token."""
        headers = {"Payment-Ticket": ticket or self.ticket(body)} | headers
        return self.public.post(f"{self.path}/tasks", json=body, headers=headers)

    def order(self) -> dict[str, str]:
        """An order that the key signed to close the channel."""
        return {"order": tickets.order(self._clock, self.channel["channel_id"], iss=self.channel["issuer"])}

    def now(self) -> dict[str, Any]:
        """The channel as it stands."""
        found: dict[str, Any] = self.user.http.get(self.path).json()
        return found


@pytest.fixture
def payer(api: Callable[..., httpx.Client], deposit: Callable[..., None]) -> Payer:

    return Payer(User.new(api, deposit), api(None), lambda: time.time_ns() // 1_000_000)


def test_tickets_pay_tasks_without_a_token(
    payer: Payer, publish: Callable[..., str], ledger: Ledger, sweep: Callable[[], None], jwks: dict[str, Any]
) -> None:
    agent_id = publish(wasm("echo"))
    body = payer.body(1, agent_id)
    done = payer.spend(body)
    assert done.status_code == 200, done.text
    assert (done.json()["output"], done.json()["payment_method"]) == ("hello", "ticket")
    assert payer.spend(body).json() == done.json()
    claims = receipt.verify(done.json()["receipt"], jwks)
    assert (claims["user"], claims["ticket"]["n"]) == (payer.user.name, 1)
    two = payer.spend(payer.body(2, agent_id, budget="0.04"))
    assert two.status_code == 200, two.text
    page = payer.user.http.get(f"{payer.path}/tickets").json()
    assert ([line["number"] for line in page["tickets"]], page["free"]) == ([1, 2, 3], [[4, 10]])
    result = payer.user.http.get(f"/tasks/{body['task_id']}/result")
    assert result.json() == done.json()
    sweep_until_credited(sweep, ledger)
    assert (payer.now()["spent"], payer.now()["used"]) == ("0.02", 3)
    until(lambda: payer.user.http.get("/channels").json()["channels"] == [payer.now()], "the channel is not listed")
    ledger.total()


def test_queued_ticket_is_run_by_the_worker(payer: Payer, publish: Callable[..., str]) -> None:
    body = payer.body(1, publish(wasm("echo")))
    queued = payer.spend(body, Prefer="respond-async")
    assert (queued.status_code, queued.headers["Preference-Applied"]) == (202, "respond-async")
    path = f"/tasks/{body['task_id']}/result"
    until(lambda: payer.user.http.get(path).status_code == 200, "the worker does not run it")
    assert payer.user.http.get(path).json()["payment_method"] == "ticket"


def test_gateway_passes_tickets_on_and_refusals_back(payer: Payer, publish: Callable[..., str]) -> None:
    agent_id = publish(wasm("echo"))
    body = payer.body(1, agent_id)
    missing = payer.public.post(f"{payer.path}/tasks", json=body)
    assert (missing.status_code, missing.json()["errors"][0]["field"]) == (400, "payment-ticket")
    signed = payer.ticket(body)
    twice = payer.public.post(
        f"{payer.path}/tasks", json=body, headers=[("Payment-Ticket", signed), ("Payment-Ticket", signed)]
    )
    assert twice.status_code in {400, 401}, "one that a proxy joined with a comma is no ticket either"
    forged = payer.spend(body, "a.b.c")
    assert (forged.status_code, forged.json()["code"]) == (401, "ticket_invalid")
    assert "Payment-Ticket" in {forged.headers.get("x-amzn-remapped-www-authenticate")}
    assert payer.spend(body).status_code == 200
    other = payer.body(1, agent_id, input="other")
    assert payer.spend(other).json()["code"] == "ticket_used"
    assert payer.spend(payer.body(11, agent_id)).json()["code"] == "ticket_invalid"
    with_token = payer.user.http.post(f"{payer.path}/tasks", json=body, headers={"Payment-Ticket": signed})
    assert with_token.status_code == 200, "a token beside the ticket changes nothing"
    assert payer.public.get(payer.path).status_code == 401


def test_channel_is_topped_up_and_closed_by_its_key(
    payer: Payer, publish: Callable[..., str], ledger: Ledger, api: Callable[..., httpx.Client]
) -> None:
    agent_id = publish(wasm("echo"))
    more = {"topup_id": "more", "tickets": 5}
    first = payer.user.http.post(f"{payer.path}/topups", json=more)
    assert first.status_code == 201, first.text
    assert payer.user.http.post(f"{payer.path}/topups", json=more).json() == first.json()
    assert (payer.now()["deposit"], payer.now()["numbers"]) == ("0.3", 15)
    assert payer.spend(payer.body(15, agent_id)).status_code == 200
    assert api("stranger").post(f"{payer.path}/close").status_code == 404
    wrong = payer.public.post(f"{payer.path}/signed-close", json={"order": payer.ticket(payer.body(1, agent_id))})
    assert (wrong.status_code, wrong.json()["code"]) == (401, "ticket_invalid")
    closing = payer.public.post(f"{payer.path}/signed-close", json=payer.order())
    assert (closing.status_code, closing.json()["state"]) == (200, "closing")
    assert payer.user.http.post(f"{payer.path}/close").json()["closes_at"] == closing.json()["closes_at"]
    refused = payer.user.http.post(f"{payer.path}/topups", json={"topup_id": "late", "tickets": 1})
    assert (refused.status_code, refused.json()["code"]) == (409, "channel_closed")
    ledger.total()
