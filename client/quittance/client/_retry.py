"""Sending requests: when one is repeated, and how long the client waits before it is."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import httpx

from quittance.client._errors import ApiError, ConnectionFailedError, UnexpectedAnswerError, api_error
from quittance.client._wire import Answer, Flow, Pause, Request, Timing, exchange, host_of

TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which the same call may succeed."""
_SECONDS: Final = re.compile(r"[0-9]{1,9}")
_DOUBLINGS_MAX: Final = 32


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a call is tried, and the pauses between: each up to twice as long as the one before.

    `tries` counts the first one; 1 turns retries off. `answer_s_max` is how long one attempt waits for an answer: the
    gateway answers within 29 s.
    """

    tries: int = 6
    wait_s_min: float = 0.5
    wait_s_max: float = 20.0
    answer_s_max: float = 35.0

    def wait_s(self, attempt: int, *, chance: float, retry_after_s: float | None = None) -> float:
        """Seconds to wait after an attempt, the first being 1: at least `Retry-After`, at most that or `wait_s_max`.

        `chance` is from 0 to 1 and spreads clients that failed at the same moment.
        """
        limit = min(self.wait_s_max, self.wait_s_min * 2.0 ** min(attempt - 1, _DOUBLINGS_MAX))
        return max(limit * (1 + chance) / 2, retry_after_s or 0.0)


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends requests, and repeats them after failures that may pass, until a deadline."""

    retries: Retries
    timing: Timing
    timeout_s: float

    def deadline(self, seconds: float | None = None) -> float:
        """The end of a call that begins now."""
        return self.timing.monotonic() + (self.timeout_s if seconds is None else seconds)

    def send(self, request: Request, *, read_error: Callable[[bytes], bytes] = bytes) -> Flow[Answer]:
        """The answer to a request, if its status is below 400. Raises ApiError, ConnectionFailedError.

        A request that may have been carried out is sent again: each one is safe to repeat. `read_error` makes a problem
        document of the body of a refusal.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return (yield from self._once(request, read_error))
            except (ApiError, ConnectionFailedError) as error:
                after_s = error.retry_after_s if isinstance(error, ApiError) else None
                wait_s = self.retries.wait_s(attempt, chance=self.timing.chance(), retry_after_s=after_s)
                if not _may_pass(error) or attempt >= self.retries.tries:
                    raise
                if self.timing.monotonic() + wait_s >= request.deadline:
                    raise
            yield Pause(wait_s)

    def _once(self, request: Request, read_error: Callable[[bytes], bytes]) -> Flow[Answer]:
        answer = yield from exchange(replace(request, answer_s_max=self.retries.answer_s_max))
        if answer.status >= HTTPStatus.BAD_REQUEST:
            after_s = retry_after_s(answer.headers, now=self.timing.now())
            raise api_error(answer.status, read_error(answer.body), retry_after_s=after_s)
        if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
            msg = f"{host_of(request.url)} answered with the status {answer.status}. Redirects are not followed."
            raise UnexpectedAnswerError(msg)
        return answer


def _may_pass(error: ApiError | ConnectionFailedError) -> bool:
    """Whether the same request may succeed later."""
    return error.status in TRANSIENT if isinstance(error, ApiError) else not error.lasting


def retry_after_s(headers: httpx.Headers, *, now: float) -> float | None:
    """The seconds of `Retry-After` (RFC 9110 §10.2.3); None if none can be read. A date becomes seconds."""
    value = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    until = _date(value)
    if until is None:
        return None
    sent = _date(headers.get("date", ""))
    return max((until - (sent or datetime.fromtimestamp(now, UTC))).total_seconds(), 0.0)


def _date(value: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
