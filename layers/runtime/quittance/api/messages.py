"""Messages of the task queue: the payload of a direct invocation, with large inputs by digest.

A principal that IAM allows to send to the queue can send such a message. Its task is funded when the worker handles it.
"""

import base64
import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from quittance import canonical_json
from quittance.acceptance.rules import rules_json
from quittance.api import events
from quittance.api.models import DirectTaskRequest, TaskRequest
from quittance.api.requests import read_json, validated
from quittance.canonical_json import AsSent
from quittance.errors import InvalidRequestError
from quittance.ledger.credits import format_credits
from quittance.limits import QUEUE_MESSAGE_BYTES_MAX
from quittance.observability import Metric, count

if TYPE_CHECKING:
    from quittance.platform import Platform

# SQS refuses some characters that JSON allows; escaping all non-ASCII characters avoids them.
_BEYOND_ASCII: Final = re.compile(r"[^\x00-\x7f]")
_SHA256: Final = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True)
class Message:
    """The task of a message. If `by_digest` is true, the request's input is empty and the input is in the bucket."""

    request: DirectTaskRequest
    input_sha256: str
    by_digest: bool


def send(platform: "Platform", user: str, request: TaskRequest, *, ticket: str | None = None) -> None:
    """Sends a task to the queue, with the ticket that pays if there is one. Stores a large input in the bucket first.

    Raises PlatformUnavailableError.
    """
    payer = user if ticket is None else None
    body, stdin = "", request.stdin
    if len(stdin.data) <= QUEUE_MESSAGE_BYTES_MAX:
        body = write(payer, request, ticket=ticket, input_base64=base64.b64encode(stdin.data).decode())
    if not body or len(body) > QUEUE_MESSAGE_BYTES_MAX:
        platform.outputs.keep_input(stdin)
        body = write(payer, request, ticket=ticket, input_sha256=stdin.sha256)
    platform.queue.send(body, of=user)
    count(Metric.QUEUED)


def read(body: str) -> Message:
    """Parses a message of the task queue. If it is a whole EventBridge event, the task is the event's detail.

    The platform's own events are refused: functions that may emit them must not be able to spend credits. Only here an
    input may be named by its digest, because IAM controls who may write to the queue. Raises InvalidRequestError,
    PayloadTooLargeError.
    """
    payload = read_json(body)
    if isinstance(payload, dict) and "detail-type" in payload:
        if payload.get("source") == events.SOURCE:
            raise InvalidRequestError(
                ("source", f"must not be {events.SOURCE!r}: send tasks under a source of your own")
            )
        detail = payload.get("detail")
        payload = read_json(detail.text) if isinstance(detail, AsSent) else None
    digest = payload.get("input_sha256") if isinstance(payload, dict) else None
    if digest is None:
        request = validated(DirectTaskRequest, payload)
        return Message(request, request.stdin.sha256, by_digest=False)
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise InvalidRequestError(("input_sha256", f"must match the pattern {_SHA256.pattern}"))
    if {"input", "input_base64"} & payload.keys():
        raise InvalidRequestError(("input_sha256", "replaces the input: send only one of them"))
    rest = {name: value for name, value in payload.items() if name != "input_sha256"}
    return Message(validated(DirectTaskRequest, {**rest, "input": ""}), digest, by_digest=True)


def write(user: str | None, request: TaskRequest, *, ticket: str | None = None, **its_input: str) -> str:
    """The message of a request, in ASCII, with its input as `input_base64` or as `input_sha256`.

    Either a user or a ticket pays.
    """
    rules, least_tenths = request.acceptance, request.min_reputation
    fields = {
        "user_id": user,
        "ticket": ticket,
        "task_id": request.task_id,
        "agent_id": request.agent_id,
        "budget": format_credits(request.budget_micro),
        "timeout": request.timeout,
        "acceptance": None if rules is None else canonical_json.read(rules_json(rules).encode()),
        "module_sha256": request.module_sha256,
        "tariff_sha256": request.tariff_sha256,
        "rules_sha256": request.rules_sha256,
        "max_judging": None if request.max_judging_micro is None else format_credits(request.max_judging_micro),
        "webhook": request.webhook,
        "keep_input": request.keep_input or None,
        "share": None if request.share is None else request.share.model_dump(),
        "min_reputation": None if least_tenths is None else Decimal(least_tenths) / 10,
        **its_input,
    }
    text = canonical_json.canonical({name: value for name, value in fields.items() if value is not None})
    return _BEYOND_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
