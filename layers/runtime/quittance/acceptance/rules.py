"""Rules that an output must meet for its agent to be paid: those that the agent publishes and those of a task. Pure.

A verdict depends only on the rules and on the bytes of the output. Its cost is limited in steps, not in time, so it is
the same on every machine: anyone who has a receipt, the rules and the output can repeat it.

A judge is another agent that scores the output. The caller runs it as a separate task. This module defines what a judge
reads, which rules its output must meet, and what follows from its score.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from quittance import canonical_json
from quittance.acceptance.json_schema import Schema, Steps, TooCostlyError, shorten
from quittance.ledger.credits import CreditsIn, between, format_credits, parse_credits
from quittance.limits import (
    ACCEPTANCE_STEPS_MAX,
    BUDGET_MICRO_MAX,
    MESSAGE_CHARS_MAX,
    OUTPUT_BYTES_MAX,
    SCHEMA_BYTES_MAX,
    SCORE_BYTES_MAX,
)
from quittance.run import Outcome, RejectedBy, Side

SCORE_MICRO_MAX: Final = 1_000_000
NO_RULES: Final = "{}"
_POINTER_CHARS_MAX: Final = 200
_NOT_MET: Final = "The output does not meet the agent's rules: "
_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"
_SIGNATURES: Final = {  # only the first bytes of these types are checked
    "application/pdf": b"%PDF-",
    "image/jpeg": b"\xff\xd8\xff",
    "image/png": b"\x89PNG\r\n\x1a\n",
}
_NO_TEXT: Final = re.compile(r"[\x00-\x07\x0b\x0e-\x1f]")

MediaType = Literal["application/json", "text/plain; charset=utf-8", "application/pdf", "image/jpeg", "image/png"]
Size = Annotated[int, Field(strict=True, ge=0, le=OUTPUT_BYTES_MAX), canonical_json.WHOLE]
Score = Annotated[
    int,
    BeforeValidator(parse_credits),
    between(0, SCORE_MICRO_MAX),
    PlainSerializer(format_credits),
    WithJsonSchema({"type": "string", "pattern": r"^(0(\.[0-9]{1,6})?|1(\.0{1,6})?)$", "examples": ["0.9"]}),
]
"""A score from 0 to 1: an `int` of millionths in the code, a decimal string with up to six places in JSON."""


class Judge(canonical_json.Sent):
    """Another agent, which reads the input and the output and prints a score."""

    agent_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", min_length=1, max_length=64)]
    threshold_micro: Score = Field(alias="threshold", description="The least score that is accepted.")
    budget_micro: Annotated[CreditsIn, between(1, BUDGET_MICRO_MAX)] = Field(
        alias="budget", description="The most that the judge may cost; part of what the task holds."
    )


class Rules(canonical_json.Sent):
    """Rules for an output; all that are given must hold. An instance is well-formed: its schema has been compiled."""

    media_type: MediaType | None = Field(
        default=None, description="JSON and text are checked throughout, the others by their signature."
    )
    min_bytes: Size | None = None
    max_bytes: Size | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="The digest of the only output that is accepted."
    )
    json_schema: Annotated[
        Any, WithJsonSchema({"anyOf": [{"type": name} for name in ("object", "boolean", "null")]})
    ] = Field(default=None, description="JSON Schema 2020-12, without references to other documents. Implies JSON.")
    judge: Judge | None = Field(default=None, description="Another agent that scores the output, if all else holds.")

    @field_validator("max_bytes")
    @classmethod
    def _check_sizes(cls, value: int | None, others: ValidationInfo) -> int | None:
        if value is not None and value < (others.data.get("min_bytes") or 0):
            msg = "must be at least min_bytes"
            raise ValueError(msg)
        return value

    @field_validator("json_schema", mode="before")
    @classmethod
    def _check_schema(cls, value: object, others: ValidationInfo) -> Any:  # noqa: ANN401 - any JSON value
        if value is None:
            return None
        if others.data.get("media_type") in _SIGNATURES:
            msg = f"is for JSON, which {others.data['media_type']} is not"
            raise ValueError(msg)
        too_long = canonical_json.is_surely_longer(value, SCHEMA_BYTES_MAX)
        value = None if too_long else canonical_json.exact(value)
        if too_long or len(canonical_json.canonical(value).encode()) > SCHEMA_BYTES_MAX:
            msg = f"must have at most {SCHEMA_BYTES_MAX} bytes"
            raise ValueError(msg)
        Schema(value)
        return value


SCORE_RULES: Final = Rules(max_bytes=SCORE_BYTES_MAX, json_schema={"type": "number", "minimum": 0, "maximum": 1})
"""What a judge must print to be paid: one JSON number from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the output of a run that succeeded is accepted.

    `rejected_by` names what did not accept the output, and `message` says why; both are empty for an accepted output.
    `outcome` is what a receipt of version 1 states. A receipt of version 2 states REJECTED for every output that is not
    accepted.
    """

    outcome: Outcome = Outcome.SUCCEEDED
    rejected_by: RejectedBy | None = None
    message: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the agent is to be paid."""
        return self.rejected_by is None


def rules_json(rules: Rules) -> str:
    """The canonical JSON of rules: equal rules have equal texts, however they were written."""
    plain = rules.model_dump(by_alias=True, exclude={"json_schema"}, exclude_none=True)
    return canonical_json.canonical(plain if rules.json_schema is None else {**plain, "json_schema": rules.json_schema})


@lru_cache(maxsize=32)
def parse_rules(text: str) -> Rules:
    """Reads rules from their canonical JSON. Cached, because compiling a schema to check it takes milliseconds."""
    return Rules.model_validate(canonical_json.read(text.encode()))


def rules_sha256(text: str) -> str | None:
    """The digest of rules from their canonical JSON, by which a receipt names them; None if there are no rules."""
    return None if text == NO_RULES else hashlib.sha256(text.encode()).hexdigest()


def without_output(message: str) -> str:
    """A message of a verdict for the agent's owner: it names the rule, without the place in the output.

    A place contains names from the output. An agent could write there what it read, and its owner is not to learn that.
    """
    if not message.startswith(_NOT_MET):
        return message
    rule = message.rpartition(" (")[2].removesuffix(").")
    return f"{_NOT_MET}see {rule if rule in Rules.model_fields else 'json_schema'}."


def verdict(output: bytes, *, agent: Rules | None, task: Rules | None) -> Verdict:
    """Whether an output meets the agent's rules and then the task's. Judges are not part of this verdict.

    Each side is at fault if its own rules take too many steps. Each side has its own budget of steps, so neither can
    use up the other's. The message names only the failed rule of a task's rules: the payer has not paid for the output
    and must not be able to infer it from the message.
    """
    read = cache(lambda: canonical_json.read(output))
    for side, rules in ((RejectedBy.AGENT_RULES, agent), (RejectedBy.TASK_RULES, task)):
        if rules is None:
            continue
        by_agent = side is RejectedBy.AGENT_RULES
        try:
            found = _mismatch(rules, output, read)
        except TooCostlyError as exc:
            message = f"The {side.side}'s rules for the output {exc}."
            return Verdict(Outcome.REJECTED if by_agent else Outcome.RULES_FAILED, side, message)
        if found:
            rule, reason = found
            message = _NOT_MET if by_agent else f"The output does not meet the {side.side}'s rules: "
            message += f"{reason} ({rule})." if by_agent else f"see {rule}."
            return Verdict(Outcome.REJECTED, side, message[:MESSAGE_CHARS_MAX])
    return Verdict()


def judged(judge: Judge, score_micro: int | None, *, side: Side) -> Verdict:
    """The verdict by a judge's score in millionths; None if it gave no score. The message is the same for both."""
    if score_micro is not None and score_micro >= judge.threshold_micro:
        return Verdict()
    by = RejectedBy.AGENT_JUDGE if side is Side.AGENT else RejectedBy.TASK_JUDGE
    outcome = Outcome.JUDGE_FAILED if score_micro is None else Outcome.REJECTED
    return Verdict(outcome, by, f"The judge {judge.agent_id} of the {side}'s rules did not accept the output.")


def read_score(output: bytes) -> int:
    """The score in an output that meets SCORE_RULES, in millionths, rounded down."""
    return int(Fraction(canonical_json.read(output)) * SCORE_MICRO_MAX)


def judge_input(task_input: bytes, output: bytes) -> bytes:
    """What a judge reads: compact JSON with `input` and `output`, each as text, or as `…_base64` if it is not text.

    Text is UTF-8 without control characters other than white space. So each byte of it takes at most two bytes here,
    and the result never exceeds `JUDGE_INPUT_BYTES_MAX`.
    """
    members = dict([_as_member("input", task_input), _as_member("output", output)])
    return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()


def _as_member(name: str, data: bytes) -> tuple[str, str]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if _NO_TEXT.search(text):
        return f"{name}_base64", base64.b64encode(data).decode()
    return name, text


def _mismatch(rules: Rules, output: bytes, read: Callable[[], Any]) -> tuple[str, str] | None:
    """The rule that an output fails, and why; None if it meets all. Cheap rules come first. Raises TooCostlyError."""
    return _size_mismatch(rules, len(output)) or _bytes_mismatch(rules, output) or _json_mismatch(rules, read)


def _size_mismatch(rules: Rules, size: int) -> tuple[str, str] | None:
    if rules.min_bytes is not None and size < rules.min_bytes:
        return "min_bytes", f"it has {size} bytes, and must have at least {rules.min_bytes}"
    if rules.max_bytes is not None and size > rules.max_bytes:
        return "max_bytes", f"it has {size} bytes, and must have at most {rules.max_bytes}"
    return None


def _bytes_mismatch(rules: Rules, output: bytes) -> tuple[str, str] | None:
    if rules.sha256 is not None and hashlib.sha256(output).hexdigest() != rules.sha256:
        return "sha256", "it is not the one with the expected digest"
    if rules.media_type in _SIGNATURES and not output.startswith(_SIGNATURES[rules.media_type]):
        return "media_type", f"it does not begin like {rules.media_type}"
    if rules.media_type == _TEXT and not _is_utf8(output):
        return "media_type", "it must be text in UTF-8"
    return None


def _json_mismatch(rules: Rules, read: Callable[[], Any]) -> tuple[str, str] | None:
    if rules.media_type != _JSON and rules.json_schema is None:
        return None
    try:
        value = read()
    except canonical_json.JsonError as exc:
        return "media_type" if rules.media_type == _JSON else "json_schema", f"it {exc}"
    if rules.json_schema is None:
        return None
    mismatch = Schema(rules.json_schema).mismatch(value, Steps(ACCEPTANCE_STEPS_MAX))
    if mismatch is None:
        return None
    place = shorten(mismatch.pointer, _POINTER_CHARS_MAX)
    return "json_schema", f"{f'at {place} it' if place else 'it'} {mismatch.sentence}"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
