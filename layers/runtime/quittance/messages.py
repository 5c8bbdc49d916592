"""What the queue of tasks carries: the payload of a direct invocation, large inputs by digest.

So whoever IAM lets send to the queue may send one too: such a task is funded when it is worked on.
"""

import base64
import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from quittance import exact_json
from quittance.acceptance import rules_json
from quittance.limits import QUEUE_MESSAGE_BYTES_MAX
from quittance.models import DirectTaskRequest, TaskRequest
from quittance.money import format_credits
from quittance.observability import Metric, count

if TYPE_CHECKING:
    from quittance.bootstrap import Platform

# SQS refuses some characters that JSON allows; escaped, none of them is left.
_BEYOND_ASCII: Final = re.compile(r"[^\x00-\x7f]")


@dataclass(frozen=True, slots=True)
class Message:
    """A task as a message names it. If `by_digest`, the request's own input is empty, and this one is in the bucket."""

    request: DirectTaskRequest
    input_sha256: str
    by_digest: bool


def send(platform: "Platform", user: str, request: TaskRequest, stdin: bytes) -> None:
    """Puts a task into the queue, its input into the bucket first if it is large. Raises PlatformUnavailableError."""
    body = write(user, request, input_base64=base64.b64encode(stdin).decode())
    if len(body) > QUEUE_MESSAGE_BYTES_MAX:
        body = write(user, request, input_sha256=platform.outputs.keep_input(stdin))
    platform.queue.send(body, of=user)
    count(Metric.QUEUED)


def write(user: str, request: TaskRequest, **its_input: str) -> str:
    """The message of a request, in ASCII; its input as `input_base64` or as `input_sha256`."""
    rules, least_tenths = request.acceptance, request.min_reputation
    fields = {
        "user_id": user,
        "task_id": request.task_id,
        "agent_id": request.agent_id,
        "budget": format_credits(request.budget_micro),
        "timeout": request.timeout,
        "acceptance": None if rules is None else exact_json.read(rules_json(rules).encode()),
        "webhook": request.webhook,
        "min_reputation": None if least_tenths is None else Decimal(least_tenths) / 10,
        **its_input,
    }
    text = exact_json.canonical({name: value for name, value in fields.items() if value is not None})
    return _BEYOND_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
