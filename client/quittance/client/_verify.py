"""Receipts are verified where they arrive: the signature's chain, the arithmetic, and that they prove the answer."""

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quittance.acceptance.rules import NO_RULES
from quittance.api.models import TaskResult
from quittance.client._calls import Core
from quittance.client._errors import (
    CardNotProvenError,
    ConfigurationError,
    NotProvenError,
    UnexpectedAnswerError,
    plain,
)
from quittance.client._wire import Flow
from quittance.limits import JWKS_AGE_S_MAX, MIB
from quittance.proof import card, ticket
from quittance.proof.card import VerifiedCard
from quittance.proof.receipt import ReceiptClaims, is_judge
from quittance.proof.statement import ProofError
from quittance.proof.verify import Evidence, Report, examine
from quittance.run import Outcome

_KEYS_BYTES_MAX: Final = MIB
_NO_RULES_SHA256: Final = hashlib.sha256(NO_RULES.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Expected:
    """What the caller knows of a task beside its answer. Parts that are None are not compared.

    `ticket` is the signed ticket that was sent. A receipt for one that was signed again, with another expiry, proves
    the same task.
    """

    agent_id: str | None = None
    input: bytes | None = None
    budget_micro: int | None = None
    module_sha256: str | None = None
    tariff_sha256: str | None = None
    rules_sha256: str | None = None
    ticket: str | None = None


class Verifier:
    """Checks each receipt as it arrives.

    With `keys`, the platform's root keys are pinned: a key set (RFC 7517) as a mapping or the path of a file, which you
    got when you began to trust the platform. Without it, the keys are read from the API itself, and again after five
    minutes: then a receipt proves what the API says now, but not that it has always said so.

    Example:
        >>> client = Client(api, token=token, verify=Verifier(keys="jwks.json"))
        >>> client.execute(agent, "to be or not to be", budget="0.05").amount_paid_micro
        9750
    """

    def __init__(self, keys: Mapping[str, Any] | str | os.PathLike[str] | None = None) -> None:
        self._pinned = None if keys is None else _read_keys(keys)
        self._lock = threading.Lock()
        self._fetched: dict[str, tuple[float, bytes]] = {}

    def __repr__(self) -> str:
        return f"Verifier({'pinned keys' if self._pinned else 'keys of the API'})"

    def keys(self, core: Core) -> Flow[bytes]:
        """The key set to verify with."""
        if self._pinned is not None:
            return self._pinned
        now = core.sender.timing.monotonic()
        with self._lock:
            fetched = self._fetched.get(core.root)
        if fetched is None or now - fetched[0] > JWKS_AGE_S_MAX:
            answer = yield from core.call("GET", "/.well-known/jwks.json", signed=False)
            fetched = (now, answer.body)
            with self._lock:
                self._fetched[core.root] = fetched
        return fetched[1]

    def check(self, core: Core, result: TaskResult, expected: Expected) -> Flow[Report]:
        """The checks of a result's receipt. Raises NotProvenError."""
        keys = yield from self.keys(core)
        return proven(result, keys, expected)

    def check_card(self, core: Core, text: bytes, agent_id: str) -> Flow[VerifiedCard]:
        """An agent's signed card. Raises CardNotProvenError."""
        keys = yield from self.keys(core)
        try:
            found = card.verify(text, _key_set(keys), now_ms=int(core.sender.timing.now() * 1_000))
        except ProofError as exc:
            msg = f"The card of the agent {agent_id!r} is not proven: {plain(exc)}."
            raise CardNotProvenError(msg) from None
        if found.agent_id != agent_id:
            msg = f"The card is of the agent {plain(found.agent_id, 200)!r} instead of {agent_id!r}."
            raise CardNotProvenError(msg)
        return found


def _key_set(keys: bytes) -> Mapping[str, Any]:
    """A key set as a mapping. One that is no JSON object has no keys."""
    try:
        found = json.loads(keys)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def proven(result: TaskResult, keys: bytes, expected: Expected) -> Report:
    """The checks of a receipt that proves a result. Raises NotProvenError."""
    evidence = Evidence(receipt=result.receipt, keys=keys, input=expected.input, output=output_bytes(result))
    report = examine(evidence)
    failed = next((check.sentence for check in report.checks if check.flaw), None)
    if failed is None and report.claims is not None:
        failed = next(_differences(result, report.claims, expected), None)
    if failed is not None or report.claims is None:
        raise NotProvenError(failed or "it could not be read", result=result, report=report)
    return report


def output_bytes(result: TaskResult) -> bytes | None:
    """What the agent wrote, as bytes; None if the answer has no output."""
    return decoded(result.output, result.output_base64, "output")


def decoded(text: str | None, encoded: str | None, name: str) -> bytes | None:
    """The bytes that an answer states as text or in base64. Raises UnexpectedAnswerError."""
    try:
        if encoded is not None:
            return base64.b64decode(encoded, validate=True)
        return None if text is None else text.encode()
    except ValueError:
        msg = f"The answer has an {name} that is no base64, or no text."
    raise UnexpectedAnswerError(msg)


def _differences(result: TaskResult, claims: ReceiptClaims, expected: Expected) -> Iterator[str]:
    """Where the receipt states something else than the answer, or than the caller expects."""
    pairs: list[tuple[str, object, object]] = [
        ("task_id", result.task_id, claims.task),
        ("agent_id", result.agent_id, claims.agent),
        ("input_sha256", result.input_sha256, claims.input_sha256),
        ("escrow_id", result.escrow_id, claims.eid),
        ("escrow_status", result.escrow_status, claims.state),
        ("success", result.success, claims.outcome is Outcome.SUCCEEDED),
        ("error.code", result.error.code if result.error else Outcome.SUCCEEDED, claims.outcome),
        ("amount_paid", result.amount_paid_micro, int(claims.paid)),
        ("amount_refunded", result.amount_refunded_micro, int(claims.refunded)),
        ("fee", result.fee_micro, int(claims.fee)),
        ("reputation_delta", result.reputation_delta, claims.reputation_tenths),
        ("timestamp", result.timestamp, claims.settled_at),
        ("fuel_used", result.resource_usage.fuel_used, claims.meter.fuel),
    ]
    if claims.v > 1:
        pairs += [
            ("fault", result.fault, claims.fault),
            ("compute", result.compute_micro, int(claims.compute)),
            ("judging", result.judging_micro, int(claims.task_judging)),
        ]
    pairs += [
        (name, value, stated)
        for name, value, stated in (
            ("agent_id", expected.agent_id, claims.agent),
            ("module_sha256", expected.module_sha256, claims.module_sha256),
            ("tariff_sha256", expected.tariff_sha256, claims.tariff_sha256),
            ("rules_sha256", expected.rules_sha256, _agent_rules_sha256(claims)),
        )
        if value is not None
    ]
    for name, stated, proved in pairs:
        if stated != proved:
            yield f"{name} is {stated} in the answer or the request, and {proved} in the receipt"
    if not is_judge(claims):
        paid_by = "escrow" if claims.ticket is None else "ticket"
        if result.payment_method != paid_by:
            yield f"payment_method is {result.payment_method} in the answer, and {paid_by} in the receipt"
    if expected.ticket is not None:
        yield from _ticket_differences(claims, expected.ticket)
    if expected.budget_micro is not None and int(claims.budget) > expected.budget_micro:
        yield f"it is for a budget of {claims.budget}, which is more than {expected.budget_micro} micro-credits"
    if result.log is not None and "\ufffd" not in result.log:
        found = hashlib.sha256(result.log.encode()).hexdigest()
        if found != claims.stderr_sha256:
            yield "the log is not the one that the receipt names"


def _ticket_differences(claims: ReceiptClaims, sent: str) -> Iterator[str]:
    """Where the receipt's ticket asks for something else than the one that was sent, apart from the time it expires."""
    if claims.ticket is None:
        yield "no ticket paid for the task, although one was sent"
        return
    try:
        asked, proved = (ticket.read(token)[0].model_dump(exclude={"exp"}) for token in (sent, claims.ticket.signed))
    except ProofError as exc:
        yield plain(exc)
        return
    for name, value in asked.items():
        if value != proved[name]:
            yield f"the ticket's {name} is {value} as it was sent, and {proved[name]} in the receipt"


def _agent_rules_sha256(claims: ReceiptClaims) -> str:
    """The digest of the agent's rules, by which a task pins them; that of `{}` if it has none."""
    return (claims.acceptance and claims.acceptance.agent_sha256) or _NO_RULES_SHA256


def _read_keys(keys: Mapping[str, Any] | str | os.PathLike[str]) -> bytes:
    if isinstance(keys, Mapping):
        return json.dumps(keys).encode()
    try:
        with Path(keys).open("rb") as file:
            data = file.read(_KEYS_BYTES_MAX + 1)
    except OSError as exc:
        msg = f"The key set {keys} cannot be read: {exc.strerror}."
        raise ConfigurationError(msg) from exc
    if len(data) > _KEYS_BYTES_MAX:
        msg = f"The key set {keys} has more than {_KEYS_BYTES_MAX} bytes."
        raise ConfigurationError(msg)
    return data
