"""A payment channel on the deployed stack, and a program that has its key: it signs tickets and sends them."""

import hashlib
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import time
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quittance.proof.ticket import CLOSE_TYPE, TICKET_TYPE
from tests.e2e.people import Item, Ledger, User, task
from tests.tickets import jwk, signed
from tests.waiting import until

CLOSE_OVER_MS = 200_000  # longer than a closing channel's window


@dataclass(frozen=True)
class Spender:
    """The program, which has no token, and its channel as the API answered when it was opened."""

    payer: User
    http: httpx.Client
    key: Ed25519PrivateKey
    channel: dict[str, Any]

    @classmethod
    def opened(  # the terms of a channel
        cls,
        api: Callable[..., httpx.Client],
        payer: User,
        *,
        ticket_value: str = "0.05",
        tickets: int = 20,
        **terms: object,
    ) -> "Spender":
        """A new channel of the payer."""
        key = Ed25519PrivateKey.generate()
        expires = datetime.now(UTC) + timedelta(days=1)
        body = {
            "salt": uuid.uuid4().hex,
            "key": jwk(key),
            "ticket_value": ticket_value,
            "tickets": tickets,
            "expires_at": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        } | terms
        answer = payer.http.post("/channels", json=body)
        assert answer.status_code == 201, answer.text
        assert payer.http.post("/channels", json=body).json() == answer.json(), "the repeat opened another channel"
        return cls(payer, api(None), key, answer.json())

    @property
    def id(self) -> str:
        """The channel's id."""
        name: str = self.channel["channel_id"]
        return name

    def body(self, number: int, agent: str, **changes: Any) -> dict[str, Any]:
        """A request for the task of a number."""
        return task(agent, task_id=f"{self.id}.{number}", **changes)

    def ticket(self, body: dict[str, Any], *, key: Ed25519PrivateKey | None = None, **claims: object) -> str:
        """The ticket for a request; `claims` replace some of its claims, and another `key` may sign it."""
        optional = {name: body[name] for name in ("max_judging", "keep_input") if name in body}
        named: dict[str, object] = {
            "iss": self.channel["issuer"],
            "channel": self.id,
            "n": int(body["task_id"].rpartition(".")[2]),
            "exp": int(time()) + 3_600,
            "agent_id": body["agent_id"],
            "input_sha256": hashlib.sha256(body["input"].encode()).hexdigest(),
            "budget": body["budget"],
            "timeout": body.get("timeout"),
            "options_sha256": _digest(optional) if optional else None,
        }
        return self._signed(named | claims, key)

    def order(self, *, key: Ed25519PrivateKey | None = None, **claims: object) -> str:
        """The order to close the channel; `claims` and `key` as for a ticket."""
        named = {"iss": self.channel["issuer"], "channel": self.id, "exp": int(time()) + 600}
        return self._signed(named | claims, key, typ=CLOSE_TYPE)

    def send(
        self, body: dict[str, Any], token: str | None = None, *, patience_s: float | None = None, prefer: str = ""
    ) -> httpx.Response:
        """Send a request with its ticket, or with another."""
        headers = {"Payment-Ticket": self.ticket(body) if token is None else token}
        headers |= {"Prefer": prefer} if prefer else {}
        waits = {} if patience_s is None else {"timeout": patience_s}
        return self.http.post(f"/channels/{self.id}/tasks", json=body, headers=headers, **waits)  # type: ignore[arg-type]

    def run(self, number: int, agent: str, **changes: Any) -> dict[str, Any]:
        """Send a task that must be answered with 200; return the answer."""
        answer = self.send(self.body(number, agent, **changes))
        assert answer.status_code == 200, answer.text
        done: dict[str, Any] = answer.json()
        return done

    def found(self) -> dict[str, Any]:
        """The channel as the API shows it to its payer."""
        answer: dict[str, Any] = self.payer.http.get(f"/channels/{self.id}").json()
        return answer

    def close(self) -> dict[str, Any]:
        """Close the channel for its payer."""
        answer = self.payer.http.post(f"/channels/{self.id}/close")
        assert answer.status_code == 200, answer.text
        closing: dict[str, Any] = answer.json()
        return closing

    def finish(self, ledger: Ledger, sweep: Callable[[], None]) -> Item:
        """Close the channel, move its window into the past, and sweep until its rest is returned; return its item."""
        if self.close()["state"] == "closing":
            ledger.age_channel(self.id, CLOSE_OVER_MS)

        def returned() -> Item | None:
            sweep()
            item = ledger.channel(self.id)
            return item if item["state"] == "closed" else None

        return until(returned, "the channel is not closed", pause_s=0.2)

    def _signed(self, claims: dict[str, object], key: Ed25519PrivateKey | None, *, typ: str = TICKET_TYPE) -> str:
        stated = {name: value for name, value in claims.items() if value is not None}
        return signed(stated, key or self.key, typ=typ)


def _digest(options: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(options, separators=(",", ":"), sort_keys=True).encode()).hexdigest()
