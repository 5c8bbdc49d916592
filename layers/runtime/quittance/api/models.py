"""All requests and answers of the API, as pydantic models: the boundary between clients' JSON and internal types."""

import base64
import json
import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from quittance import canonical_json, limits
from quittance.acceptance.contract import PublishedContract
from quittance.acceptance.rules import Rules, rules_json, rules_sha256
from quittance.agent import AgentState, VersionState
from quittance.api.sizes import json_bytes, nested_bytes
from quittance.api.targets import WebhookUrl
from quittance.canonical_json import AsSent, JsonError, Numbers, Sent
from quittance.errors import InvalidRequestError, PayloadTooLargeError
from quittance.ledger.channels import ChannelState
from quittance.ledger.credits import (
    MICRO_PER_CREDIT,
    ChangeIn,
    CreditsChange,
    CreditsIn,
    CreditsOut,
    between,
    format_credits,
    parse_credits,
)
from quittance.ledger.escrow import State, TaskState, request_sha256
from quittance.ledger.journal import LineKind, PayoutState
from quittance.ledger.pricing import Tariff
from quittance.operation import Action
from quittance.proof.ticket import key_of, options_sha256
from quittance.run import Fault, Input, Outcome, Side

_ABSENT: Final = object()
_MICRO_PER_TENTH: Final = MICRO_PER_CREDIT // 10
_TENTHS_MAX: Final = 1_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENT_CHARS_MAX: Final = 40
_THOUSAND: Final = 1_000
_MICRO_PER_BPS: Final = MICRO_PER_CREDIT // limits.BPS
_TASK_ID: Final = "[A-Za-z0-9._~-]+"  # what URLs need not encode (RFC 3986 §2.3)
_EXAMPLE_AGENT: Final = "agt_k5x2mfq7w3nzt4ab"


def _no_dot_segment(name: str) -> str:
    if name in limits.DOT_SEGMENTS:
        msg = "must not be . or .., which clients remove from URLs; choose another id"
        raise ValueError(msg)
    return name


def _check_not_zero(micro: int) -> int:
    if not micro:
        msg = "must not be 0"
        raise ValueError(msg)
    return micro


_not_zero: Final = AfterValidator(_check_not_zero)


def _no_own_account(name: str) -> str:
    if name == limits.OWN_ACCOUNT:
        msg = f"must not be {limits.OWN_ACCOUNT}, which is not an account's id; give the account's own id"
        raise ValueError(msg)
    return name


TaskId = Annotated[
    str,
    StringConstraints(pattern=f"^{_TASK_ID}$", min_length=1, max_length=limits.TASK_ID_CHARS_MAX),
    AfterValidator(_no_dot_segment),
]
StatedTaskId = Annotated[
    str,
    StringConstraints(
        pattern=f"^{_TASK_ID}(:judge-(agent|task))?$", min_length=1, max_length=limits.STATED_TASK_CHARS_MAX
    ),
    AfterValidator(_no_dot_segment),
]
"""A task's id in answers and receipts: one chosen by a client, or the id of its judge's task (`judge_task_id`)."""
AgentId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", min_length=1, max_length=64)]
AccountInPath = Annotated[
    str,
    StringConstraints(pattern=limits.ACCOUNT_ID_PATTERN, min_length=1, max_length=limits.ACCOUNT_ID_CHARS_MAX),
    AfterValidator(_no_dot_segment),
]
"""An account's id, or `me` for the caller's own account."""
AccountId = Annotated[AccountInPath, AfterValidator(_no_own_account)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in hexadecimal."""
RunId = Annotated[str, StringConstraints(pattern=r"^[a-z2-7]{26}$", min_length=26, max_length=26)]
"""The id of a run: that of its escrow."""
AgentTag = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$", min_length=1, max_length=32)]
SearchText = Annotated[str, StringConstraints(max_length=limits.QUERY_CHARS_MAX)]
Amount = Annotated[CreditsIn, between(1, limits.AMOUNT_MICRO_MAX)]


def _read_time(value: object) -> object:
    """A time of a response: RFC 3339 as a client receives it, or milliseconds as the platform states it."""
    if not isinstance(value, str):
        return value
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        msg = "must be a time with its offset from UTC (RFC 3339)"
        raise ValueError(msg)
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)


Timestamp = Annotated[
    int,
    BeforeValidator(_read_time),
    PlainSerializer(
        lambda ms: datetime.fromtimestamp(ms / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        return_type=str,
    ),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""Internally milliseconds since the epoch, RFC 3339 in JSON."""


def _moment_ms(text: object) -> int:
    sentence = "must be a date and time with its zone (RFC 3339), such as 2026-11-30T12:00:00Z; write + as %2B in a URL"
    if not isinstance(text, str) or len(text) > _MOMENT_CHARS_MAX:
        raise ValueError(sentence)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ValueError(sentence) from exc
    if moment.tzinfo is None:
        raise ValueError(sentence)
    ms = (moment - _EPOCH) // timedelta(milliseconds=1)
    if not 0 <= ms <= limits.LISTING_MS_MAX:
        msg = "must be from 1970 to 2286"
        raise ValueError(msg)
    return ms


Moment = Annotated[int, BeforeValidator(_moment_ms), WithJsonSchema({"type": "string", "format": "date-time"})]
"""In a query RFC 3339, internally milliseconds since the epoch, rounded down."""


def _thousandths(text: object) -> int:
    permille, rest = divmod(parse_credits(text), MICRO_PER_CREDIT // 1_000)
    if rest or permille > _THOUSAND:
        msg = "must be from 0 to 1, with at most three decimals, such as 0.95"
        raise ValueError(msg)
    return permille


def _tenths_of_text(text: object) -> int:
    tenths, rest = divmod(parse_credits(text), _MICRO_PER_TENTH)
    if rest or tenths > _TENTHS_MAX:
        msg = "must be from 0 to 100, with at most one decimal, such as 72.5"
        raise ValueError(msg)
    return tenths


MaxPrice = Annotated[CreditsIn, between(0, limits.AMOUNT_MICRO_MAX)]
MinScore = Annotated[
    int, BeforeValidator(_tenths_of_text), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 100})
]
"""In a query a number with at most one decimal, internally tenths of a reputation point."""
MinSuccessRate = Annotated[
    int, BeforeValidator(_thousandths), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})
]
"""In a query a number from 0 to 1, internally thousandths."""


def _read_points(value: object, info: ValidationInfo) -> object:
    """Points of a response: in JSON a number of points, in Python tenths."""
    if info.mode != "json" or not isinstance(value, int | float):
        return value
    tenths = value * 10
    if not math.isfinite(tenths):
        msg = "must be a finite number"
        raise ValueError(msg)
    return round(tenths)


Points = Annotated[
    int,
    BeforeValidator(_read_points),
    PlainSerializer(lambda tenths: tenths / 10, return_type=float),
    WithJsonSchema({"type": "number"}),  # not `multipleOf: 0.1`: validators that compute with doubles refuse 61.2
]
"""Internally tenths of a reputation point, a number with one decimal in JSON."""


def _tenths(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        msg = "must be a number from 0 to 100"
        raise ValueError(msg)  # noqa: TRY004 - pydantic turns ValueError, not TypeError, into a named field
    try:
        micro = parse_credits(value)  # digit by digit: arithmetic would round 1e-999999999 to a valid score
    except ValueError:
        micro = -1
    tenths, rest = divmod(micro, _MICRO_PER_TENTH)
    if rest or not 0 <= tenths <= _TENTHS_MAX:
        msg = "must be from 0 to 100, with at most one decimal"
        raise ValueError(msg)
    return tenths


Score = Annotated[
    int,
    BeforeValidator(_tenths),
    PlainSerializer(lambda tenths: tenths / 10, return_type=float),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 100}),
]
"""Internally tenths of a reputation point, in requests a JSON number with one decimal."""


def _as_doubles(rules: Rules) -> Rules:
    text = rules_json(rules)
    if canonical_json.canonical(json.loads(text)) != text:
        msg = "must have only numbers that a double represents exactly as written, because anyone may read them"
        raise ValueError(msg)
    return rules


def _bps(value: object) -> int:
    bps, rest = divmod(parse_credits(value), _MICRO_PER_BPS)
    if rest or bps > limits.BPS:
        msg = 'must be from 0 to 1, with at most four decimals, such as "0.25"'
        raise ValueError(msg)
    return bps


Share = Annotated[
    int,
    BeforeValidator(_bps),
    PlainSerializer(lambda bps: format_credits(bps * _MICRO_PER_BPS)),
    WithJsonSchema({"type": "string", "pattern": r"^(0(\.[0-9]{1,4})?|1(\.0{1,4})?)$", "examples": ["0.25"]}),
]
"""A part of a price: internally basis points, in JSON a decimal string from 0 to 1."""


# The serializer has no return type, because the schema of an answer would be that of the type.
PublishedRules = Annotated[
    Rules, AfterValidator(_as_doubles), PlainSerializer(lambda rules: json.loads(rules_json(rules)))
]
"""Rules that anyone may read: returned as they were sent, also for parsers that read numbers as doubles."""


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True)


# Tasks.


class TaskShare(Sent):
    """What the owner of a task's agent may see of the task, beside its receipt."""

    payer: Annotated[bool, Field(strict=True)] = Field(default=False, description="Whose task it is.")
    log: Annotated[bool, Field(strict=True)] = Field(default=False, description="What the agent wrote to stderr.")

    @property
    def named(self) -> str | None:
        """The names of what is shared, in a fixed order; None if nothing is."""
        return ",".join(name for name in ("payer", "log") if getattr(self, name)) or None


_INPUT: Final = (
    "A string: stdin gets its UTF-8 bytes. Or any other JSON value: stdin gets its own tokens in UTF-8, members in the"
    " order sent, numbers with the characters sent (`1e3` stays `1e3`, `0.10` stays `0.10`), strings with the fewest"
    " escapes, and no white space between tokens."
)


class TaskRequest(Sent):
    """One task: which agent, on what input, for at most how much."""

    task_id: TaskId = Field(
        description="An id that you choose; a request with the same id and body never runs or costs twice."
    )
    agent_id: AgentId = Field(examples=[_EXAMPLE_AGENT])
    input_base64: str | None = Field(default=None, description="Instead of `input`: the bytes for stdin.")
    input: Any = Field(
        default_factory=lambda: _ABSENT,
        validate_default=True,
        description=_INPUT,
    )
    budget_micro: Annotated[CreditsIn, between(1, limits.BUDGET_MICRO_MAX)] = Field(alias="budget")
    timeout: (
        Annotated[int, Field(strict=True, ge=limits.TIMEOUT_S_MIN, le=limits.TIMEOUT_S_ASYNC_MAX), canonical_json.WHOLE]
        | None
    ) = Field(default=None, description="Whole seconds; the agent's own limit if absent.")
    acceptance: Rules | None = Field(
        default=None, description="Rules that the output must meet, beside the agent's own; else it is not paid for."
    )
    min_reputation: Score | None = Field(
        default=None, description="Refuse the task if the agent's score is lower. From 0 to 100, one decimal."
    )
    module_sha256: Digest | None = Field(
        default=None, description="Refuse the task if the agent's module is another one now."
    )
    tariff_sha256: Digest | None = Field(default=None, description="Refuse the task if the agent's tariff is another.")
    rules_sha256: Digest | None = Field(
        default=None, description="Refuse the task if the agent's rules for its outputs are others."
    )
    max_judging_micro: Annotated[CreditsIn, between(0, limits.BUDGET_MICRO_MAX)] | None = Field(
        default=None,
        alias="max_judging",
        description="Refuse the task if its own judge may cost more. The agent's own judge costs you nothing.",
    )
    webhook: WebhookUrl | None = Field(
        default=None,
        description="Where to POST the event TaskSettled once the task is settled, signed. Public https only.",
    )

    keep_input: Annotated[bool, Field(strict=True)] = Field(
        default=False,
        description="Keep the bytes that the agent reads, for `GET /tasks/{task_id}/input`. Only you can read them.",
    )
    share: TaskShare | None = Field(
        default=None, description="What the agent's owner may see of this task; nothing of it if absent."
    )

    @field_validator("input")
    @classmethod
    def _check_one_input(cls, value: object, others: ValidationInfo) -> object:
        if (value is _ABSENT) == (others.data.get("input_base64") is None):
            msg = "send exactly one of input and input_base64"
            raise ValueError(msg)
        return value

    _stdin: Input = PrivateAttr()

    @model_validator(mode="after")
    def _decode_input(self) -> Self:
        """Decodes and hashes the input once. Raises InvalidRequestError, PayloadTooLargeError."""
        field = "input" if self.input_base64 is None else "input_base64"
        try:
            data = _compact(self.input) if self.input_base64 is None else _decode_base64(self.input_base64)
        except ValueError as exc:
            raise InvalidRequestError((field, str(exc))) from exc
        _check_size(field, len(data))
        self._stdin = Input.of(data)
        return self

    @property
    def stdin(self) -> Input:
        """The input that the agent reads on stdin."""
        return self._stdin

    def with_stdin(self, stdin: Input) -> Self:
        """The same task with another input. Raises PayloadTooLargeError."""
        _check_size("input_base64", len(stdin.data))
        task = self.model_copy()
        task._stdin = stdin  # noqa: SLF001 - of this class
        return task

    @cached_property
    def own_rules_sha256(self) -> str | None:
        """The digest of the task's own rules; None if it has none."""
        return rules_sha256(rules_json(self.acceptance)) if self.acceptance else None

    def sha256(self, input_sha256: str) -> str:
        """The digest that distinguishes a repeated request from another request with the same task_id."""
        return request_sha256(
            agent_id=self.agent_id,
            input_sha256=input_sha256,
            budget_micro=self.budget_micro,
            timeout_s=self.timeout,
            options=self._options,
        )

    @property
    def _options(self) -> dict[str, object]:
        return {
            "min_reputation": self.min_reputation,
            "acceptance": self.own_rules_sha256,
            "webhook": self.webhook,
            "module_sha256": self.module_sha256,
            "tariff_sha256": self.tariff_sha256,
            "rules_sha256": self.rules_sha256,
            "max_judging": self.max_judging_micro,
            "keep_input": self.keep_input or None,
            "share": self.share and self.share.named,
        }

    @property
    def options_sha256(self) -> str | None:
        """The digest of the optional members that a ticket names by it: all but timeout and acceptance."""
        return options_sha256({**self._options, "acceptance": None})

    def as_funded(self, request_sha256: str, *, input_sha256: str) -> Self | None:
        """This request as an escrow with such a digest was funded for it; None if the escrow is of another request.

        Earlier commits passed the numbers of an input through doubles: a task that they funded reads, and a repeat of
        its request has, the bytes that they wrote.
        """
        if self.sha256(input_sha256) == request_sha256:
            return self
        earlier = _through_doubles(self.input)
        if earlier is None or self.sha256(Input.of(earlier).sha256) != request_sha256:
            return None
        return self.with_stdin(Input.of(earlier))


class DirectTaskRequest(TaskRequest):
    """A task from a caller that IAM has authorised: Step Functions, the SDK, a queue."""

    user_id: AccountId | None = Field(default=None, description="Whose account pays. Exactly one of this and `ticket`.")
    ticket: Annotated[str, StringConstraints(max_length=limits.TICKET_CHARS_MAX)] | None = Field(
        default=None, description="The signed ticket of the channel that pays, a compact JWS."
    )
    inline_bytes_max: Annotated[int, Field(strict=True, ge=0), canonical_json.WHOLE] | None = Field(
        default=None,
        description="Leave an output, or a log, out of the answer if it takes more bytes there, as base64 too."
        " Step Functions loses an execution whose state grows over 256 KiB.",
    )

    @model_validator(mode="after")
    def _check_one_payer(self) -> Self:
        if (self.user_id is None) == (self.ticket is None):
            msg = "send exactly one of user_id, whose account pays, and ticket, whose channel pays"
            raise InvalidRequestError(("user_id", msg))
        return self


class ResourceUsage(_Answer):
    """What the sandbox measured."""

    memory_used_mb: float = Field(description="Peak linear memory, in MiB.")
    cpu_time_ms: int
    execution_time_ms: int
    storage_used_kb: float = Field(description="Output and log, in KiB.")
    fuel_used: int
    fuel_exact: bool = Field(description="False where a hardware trap made the engine under-report.")
    input_bytes: int
    output_bytes: int


class TaskError(_Answer):
    """Why the agent was not paid."""

    code: Outcome
    message: str


class JudgeAnswer(_Answer):
    """A judge of the output: paid by a task of its own, whose result has its receipt."""

    side: Side = Field(description="Whose rules ask for it. The agent's is paid by its owner, the task's by its payer.")
    agent_id: str
    task_id: str
    budget_micro: CreditsOut = Field(
        alias="budget",
        description="Held for it: out of the budget that was offered if it is the task's, else out of the bond of the"
        " agent's owner.",
    )
    cost_micro: CreditsOut = Field(alias="cost", description="What it cost whoever pays it; 0 if it was not asked.")
    score: str | None = Field(description="From 0 to 1; null unless the output was accepted.")


class TaskResult(_Answer):
    """A settled task. Everything in it comes from the ledger; a repeated request gets the same answer."""

    task_id: str
    agent_id: str
    success: bool
    input_sha256: str = Field(
        description="SHA-256 of the bytes that the agent read on stdin. Of a judge that reveals nothing: of no bytes."
    )
    output: str | None = Field(description="What the agent wrote, if it is UTF-8; only of a task that was paid for.")
    output_base64: str | None = Field(
        default=None,
        description="What the agent wrote, if it is not UTF-8, or is a text that JSON spells with too many bytes for"
        " one answer, such as a megabyte of control characters.",
    )
    log: str | None = Field(default=None, description="What the agent wrote to stderr, at most 64 KiB.")
    error: TaskError | None
    execution_time_ms: int
    resource_usage: ResourceUsage
    escrow_id: str
    escrow_status: State
    amount_paid_micro: CreditsOut = Field(alias="amount_paid", description="To the agent's owner.")
    amount_refunded_micro: CreditsOut = Field(alias="amount_refunded", description="Back to the user.")
    fee_micro: CreditsOut = Field(
        alias="fee",
        description="To the platform: commission and compute. paid + refunded + fee + what was held for the task's own"
        " judge = budget.",
    )
    compute_micro: CreditsOut = Field(alias="compute", description="The part of the fee that is for computing.")
    judging_micro: CreditsOut = Field(alias="judging", description="What the task's own judge cost, beside the rest.")
    fault: Fault = Field(description="Whose limit was hit or who failed: that side bears the compute.")
    judges: list[JudgeAnswer] = Field(default=[], description="Agents that score the output before it is paid for.")
    payment_method: Literal["escrow", "ticket"] = Field(
        default="escrow", description="`ticket`: a channel paid, and what is refunded stays in it."
    )
    reputation_delta: Points
    timestamp: Timestamp
    receipt: str = Field(description="Signed statement of all this (compact JWS).")

    def within(self, bytes_max: int) -> Self:
        """This result without an output, or a log, of more bytes in JSON. The receipt still names their digests.

        An output that is too long as text but not as base64 is returned as base64.
        """
        texts = {name: getattr(self, name) for name in ("output", "output_base64", "log")}
        if json_bytes(self.output) > bytes_max and self.output is not None:
            texts["output_base64"] = base64.b64encode(self.output.encode()).decode()
        return self.model_copy(
            update={name: text if json_bytes(text) <= bytes_max else None for name, text in texts.items()}
        )


class TaskPending(_Answer):
    """A task that is not settled yet: read its result later."""

    task_id: str
    agent_id: str
    escrow_id: str
    escrow_status: State
    expires_at: Timestamp = Field(description="Settled or refunded by then.")


class TaskInput(_Answer):
    """What the agent read on stdin, to the byte."""

    task_id: str
    input_sha256: str = Field(description="SHA-256 of these bytes, as the receipt states it.")
    input: str | None = Field(description="The input, if it is UTF-8 and not too long as JSON.")
    input_base64: str | None = Field(default=None, description="The input, if `input` is null.")


# Payment channels.


def _read_jwk(value: object) -> str:
    if not isinstance(value, dict):
        msg = "must be a JWK, an object"
        raise ValueError(msg)  # noqa: TRY004 - pydantic turns ValueError, not TypeError, into a named field
    return key_of(value)


def _unique(agents: list[str]) -> list[str]:
    if len(set(agents)) < len(agents):
        msg = "must name each agent once"
        raise ValueError(msg)
    return agents


_JWK_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "kty": {"const": "OKP"},
        "crv": {"const": "Ed25519"},
        "x": {"type": "string", "pattern": "^[A-Za-z0-9_-]{43}$"},
    },
    "required": ["kty", "crv", "x"],
}
ChannelId = Annotated[str, StringConstraints(pattern=r"^chn_[a-z2-7]{26}$", min_length=30, max_length=30)]
PublicKey = Annotated[str, BeforeValidator(_read_jwk), WithJsonSchema(_JWK_SCHEMA)]
"""An Ed25519 public key: in JSON a JWK (RFC 8037), internally its `x`."""
_Tickets = Annotated[int, Field(strict=True, ge=1, le=limits.CHANNEL_TICKETS_MAX), canonical_json.WHOLE]


class ChannelRequest(Sent):
    """A new payment channel: a deposit of `tickets` times `ticket_value`, and the key that may spend it."""

    salt: Annotated[
        str, StringConstraints(pattern=f"^{_TASK_ID}$", min_length=1, max_length=limits.CHANNEL_SALT_CHARS_MAX)
    ] = Field(description="Yours to choose. The same request opens one channel; another salt, another channel.")
    key: PublicKey = Field(description="The public key whose owner may sign tickets, and close the channel.")
    ticket_micro: Annotated[CreditsIn, between(1, limits.BUDGET_MICRO_MAX)] = Field(
        alias="ticket_value", description="The most that one ticket pays. A task takes as many as its budget needs."
    )
    tickets: _Tickets = Field(description="How many tickets the deposit covers.")
    agents: (
        Annotated[list[AgentId], Field(min_length=1, max_length=limits.CHANNEL_AGENTS_MAX), AfterValidator(_unique)]
        | None
    ) = Field(default=None, description="The only agents that tickets may pay; all if absent.")
    max_per_task_micro: Annotated[CreditsIn, between(1, limits.BUDGET_MICRO_MAX)] | None = Field(
        default=None, alias="max_per_task", description="The most that one task may cost."
    )
    expires_at: Moment = Field(description="When the channel closes by itself; at most 366 days from now.")

    @property
    def deposit_micro(self) -> int:
        """What opening takes from the payer's account."""
        return self.tickets * self.ticket_micro

    @model_validator(mode="after")
    def _check_deposit(self) -> Self:
        if self.deposit_micro > limits.AMOUNT_MICRO_MAX:
            most = format_credits(limits.AMOUNT_MICRO_MAX)
            raise InvalidRequestError(("tickets", f"times ticket_value must be at most {most} credits"))
        return self


class TopUpRequest(Sent):
    """More tickets for an open channel."""

    topup_id: TaskId = Field(description="An id that you choose: a repeated request adds nothing.")
    tickets: _Tickets = Field(description="How many tickets to pay in, each of the channel's ticket value.")


class SignedClose(Sent):
    """An order to close a channel, signed by the channel's key."""

    order: Annotated[str, StringConstraints(max_length=limits.TICKET_CHARS_MAX)] = Field(
        description="A compact JWS of the type `quittance-channel-close+jwt` with the claims iss, channel and exp."
    )


class ChannelKey(_Answer):
    """The public key of a channel, as a JWK."""

    kty: Literal["OKP"] = "OKP"
    crv: Literal["Ed25519"] = "Ed25519"
    x: str


class ChannelAnswer(_Answer):
    """A payment channel. What tasks cost is counted when the sweep credits them, about a minute after they settled."""

    channel_id: str
    issuer: str = Field(description="The `iss` of its tickets.")
    payer: str
    state: ChannelState
    salt: str
    key: ChannelKey
    ticket_micro: CreditsOut = Field(alias="ticket_value")
    agents: list[str] | None = Field(description="The agents that tickets may pay; null if all.")
    max_per_task_micro: CreditsOut | None = Field(alias="max_per_task")
    deposit_micro: CreditsOut = Field(alias="deposit", description="All that was paid in.")
    spent_micro: CreditsOut = Field(alias="spent", description="What the counted tasks cost.")
    held_micro: CreditsOut = Field(alias="held", description="What the tickets that are not counted yet may cost.")
    returned_micro: CreditsOut = Field(alias="returned", description="What closing returned to the payer.")
    numbers: int = Field(
        description="The highest ticket number that the deposit covers. Cheap and failed tasks raise it."
    )
    used: int = Field(description="How many numbers the counted tasks took.")
    opened_at: Timestamp
    expires_at: Timestamp
    closes_at: Timestamp | None = Field(description="From when its tickets are counted, after a request to close it.")
    closed_at: Timestamp | None


class ChannelPage(_Answer):
    """Some of the caller's channels, newest first."""

    channels: list[ChannelAnswer]
    next: str | None = Field(description="The `after` of the next page, null on the last one.")


class TopUpAnswer(_Answer):
    """A recorded top-up."""

    channel_id: str
    topup_id: str
    amount_micro: CreditsOut = Field(alias="amount")
    recorded_at: Timestamp


class TicketLine(_Answer):
    """A ticket that was used, and the task that it paid; only the number if closing took it out of use."""

    number: int
    tickets: int = Field(description="How many consecutive numbers the task takes; 0 for one that closing took.")
    task_id: str | None = None
    agent_id: str | None = None
    escrow_status: State | None = None
    cost_micro: CreditsOut | None = Field(
        default=None, alias="cost", description="What it took from the channel so far."
    )


class TicketPage(_Answer):
    """The used tickets among the next numbers, in their order, and which of these numbers are free."""

    channel_id: str
    tickets: list[TicketLine]
    free: list[tuple[int, int]] = Field(description="Ranges of free numbers on this page: from, to.")
    next: int | None = Field(description="The `after` of the next page, null on the last one.")


# Runs: many tasks under one budget, for the workflow of template.yaml.


class TaskQueued(TaskPending):
    """A task that is funded and in the queue, because the client preferred not to wait."""


class RunStep(Sent):
    """One agent of a chain: each input goes through all of them, one's output being the next one's input."""

    agent_id: AgentId = Field(examples=[_EXAMPLE_AGENT])
    share: Annotated[int, Field(strict=True, ge=1, le=limits.RUN_SHARE_MAX), canonical_json.WHOLE] = Field(
        default=1, description="How much of an input's budget is this step's, compared with the other steps."
    )
    timeout: (
        Annotated[int, Field(strict=True, ge=limits.TIMEOUT_S_MIN, le=limits.TIMEOUT_S_ASYNC_MAX), canonical_json.WHOLE]
        | None
    ) = None
    acceptance: PublishedRules | None = None
    min_reputation: Score | None = None


class RunRequest(Sent):
    """Agents to run on many inputs, for at most so much in all. The workflow's input."""

    run_id: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z0-9._~-]+$", min_length=1, max_length=limits.RUN_ID_CHARS_MAX)
    ] = Field(description="Yours to choose, the execution's name if absent; the same id and body never cost twice.")
    user_id: AccountId
    budget_micro: Annotated[CreditsIn, between(1, limits.BUDGET_MICRO_MAX)] = Field(
        alias="budget", description="The most that all tasks of the run together may cost."
    )
    steps: Annotated[list[RunStep], Field(min_length=1, max_length=limits.RUN_TASKS_MAX)]
    inputs: Annotated[list[Any], Field(min_length=1, max_length=limits.RUN_TASKS_MAX)] = Field(
        description="For the first step: strings, or any other JSON values, as the `input` of a task. Step Functions"
        " reads their decimals as doubles: send a string where each character counts."
    )
    keep_input: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="Keep what each task of the run reads, as `keep_input` of a task."
    )
    share: TaskShare | None = Field(
        default=None, description="What the agents' owners may see of each task of the run, as `share` of a task."
    )

    @field_validator("inputs")
    @classmethod
    def _as_text(cls, values: list[Any]) -> list[str]:
        texts = []
        for number, value in enumerate(values):
            try:
                texts.append(_compact(value).decode())
            except ValueError as exc:
                raise InvalidRequestError((f"inputs.{number}", str(exc))) from exc
        return texts

    @model_validator(mode="after")
    def _check_tasks(self) -> Self:
        if len(self.inputs) * len(self.steps) > limits.RUN_TASKS_MAX:
            msg = f"{len(self.inputs)} inputs by {len(self.steps)} steps: at most {limits.RUN_TASKS_MAX} tasks in a run"
            raise InvalidRequestError(("inputs", msg))
        return self


class RunLine(_Answer):
    """What becomes of one input: the tasks that it goes through, all but their own inputs."""

    input: str
    tasks: list[dict[str, Any]]


class RunPlan(_Answer):
    """The tasks of a run, as the workflow sends them to the execute function."""

    run_id: str
    lines: list[RunLine]


# Agents.


class AgentLimits(Sent):
    """What one run of the agent may use."""

    memory_mib: Annotated[
        int, Field(strict=True, ge=1, le=limits.MEMORY_BYTES_MAX // limits.MIB), canonical_json.WHOLE
    ] = limits.MEMORY_BYTES_DEFAULT // limits.MIB
    timeout: Annotated[
        int, Field(strict=True, ge=limits.TIMEOUT_S_MIN, le=limits.TIMEOUT_S_ASYNC_MAX), canonical_json.WHOLE
    ] = limits.TIMEOUT_S_DEFAULT
    fuel: Annotated[int, Field(strict=True, ge=1, le=limits.FUEL_MAX), canonical_json.WHOLE] = limits.FUEL_MAX


class TaskJudges(Sent):
    """On which terms an agent takes tasks that bring a judge of their own."""

    rejected_share_bps: Share = Field(
        alias="rejected_share",
        description="The part of the price, from 0 to 1, that is due when the task's judge does not accept the output.",
    )


class AgentRequest(Sent):
    """A new agent and its terms."""

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=limits.AGENT_NAME_CHARS_MAX)]
    description: Annotated[str, StringConstraints(max_length=limits.AGENT_DESCRIPTION_CHARS_MAX)] = ""
    tariff: Tariff
    limits: AgentLimits = AgentLimits()
    acceptance: PublishedRules | None = Field(
        default=None, description="Rules that each output must meet for the agent to be paid."
    )
    task_judges: TaskJudges | None = Field(
        default=None, description="Consent to tasks that bring a judge; without it they are refused."
    )
    contract: PublishedContract | None = Field(
        default=None, description="What the agent takes and gives, with examples that its publication runs."
    )
    registration_id: TaskId | None = Field(
        default=None,
        description="An id that you choose: repeating the request with it returns the same agent. Without it, each"
        " request registers another agent.",
    )


class VersionRequest(Sent):
    """A new version of an agent; terms that are absent stay as they are."""

    tariff: Tariff | None = None
    limits: AgentLimits | None = None
    acceptance: PublishedRules | None = Field(default=None, description="`{}` takes all rules away.")
    task_judges: TaskJudges | Literal["refused"] | None = Field(
        default=None, description='`"refused"` takes the consent back.'
    )
    contract: PublishedContract | None = Field(default=None, description="The whole new contract; `{}` takes it away.")


class LimitsChange(Sent):
    """Limits of a run to change; those that are absent stay as they are."""

    memory_mib: (
        Annotated[int, Field(strict=True, ge=1, le=limits.MEMORY_BYTES_MAX // limits.MIB), canonical_json.WHOLE] | None
    ) = Field(default=None, description="MiB of linear memory.")
    timeout: (
        Annotated[int, Field(strict=True, ge=limits.TIMEOUT_S_MIN, le=limits.TIMEOUT_S_ASYNC_MAX), canonical_json.WHOLE]
        | None
    ) = Field(default=None, description="Whole seconds.")
    fuel: Annotated[int, Field(strict=True, ge=1, le=limits.FUEL_MAX), canonical_json.WHOLE] | None = Field(
        default=None, description="Units of fuel."
    )


class AgentChange(Sent):
    """A change of an agent without an upload; what is absent, or null, stays as it is.

    Terms are those of the active version. An open upload keeps its own terms, and so do tasks that are funded already.
    """

    name: (
        Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=limits.AGENT_NAME_CHARS_MAX)]
        | None
    ) = Field(default=None, description="The agent's new name.", examples=["word count"])
    description: Annotated[str, StringConstraints(max_length=limits.AGENT_DESCRIPTION_CHARS_MAX)] | None = Field(
        default=None, description="The agent's new description."
    )
    tariff: Tariff | None = Field(default=None, description="The whole new tariff.")
    limits: LimitsChange | None = Field(default=None, description="The limits to change.")
    acceptance: PublishedRules | None = Field(
        default=None, description="The new rules for outputs, instead of all present ones; `{}` removes them."
    )
    task_judges: TaskJudges | Literal["refused"] | None = Field(
        default=None, description='Consent to tasks that bring a judge; `"refused"` takes it back.'
    )

    @property
    def has_terms(self) -> bool:
        """Whether it changes terms, not only name or description."""
        terms = (self.tariff, self.limits, self.acceptance, self.task_judges)
        return any(value is not None for value in terms)

    @model_validator(mode="after")
    def _check_not_empty(self) -> Self:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            names = ", ".join(type(self).model_fields)
            raise InvalidRequestError(("body", f"must have at least one of {names}"))
        return self


class UploadForm(_Answer):
    """Where to post the module, once, as `multipart/form-data`: the fields first, then the part `file`."""

    method: Literal["POST"] = "POST"
    url: str
    fields: dict[str, str] = Field(repr=False)
    expires_at: Timestamp


class AgentUpload(_Answer):
    """An agent that waits for a module."""

    agent_id: str
    state: AgentState
    version: int = Field(description="The number of the version that the upload becomes.", examples=[3])
    upload: UploadForm


class AgentRegistration(_Answer):
    """A registered agent. It waits for its module, unless the request repeats an earlier one."""

    agent_id: str
    state: AgentState
    version: int = Field(description="The number of the newest upload, and of the version it becomes.", examples=[1])
    upload: UploadForm | None = Field(
        description="The form for the newest upload; null if the agent does not wait for a module now."
    )


class AgentRejection(_Answer):
    """Why the newest upload was refused, or that the platform failed to publish it (`platform_failed`)."""

    code: str
    message: str


class CreditsSpread(_Answer):
    """How amounts are spread: p50 and p95 are exact or up to 1/16 too high."""

    least_micro: CreditsOut = Field(alias="least")
    p50_micro: CreditsOut = Field(alias="p50")
    p95_micro: CreditsOut = Field(alias="p95")
    greatest_micro: CreditsOut = Field(alias="greatest")


class TimeSpread(_Answer):
    """How times are spread, in milliseconds: p50 and p95 are exact or up to 1/16 too high."""

    least: int
    p50: int
    p95: int
    greatest: int


class AgentEstimate(_Answer):
    """What the paid runs of the newest one or two months cost their users, fee included, and how long they took."""

    runs: int
    price: CreditsSpread
    execution_time_ms: TimeSpread


class AgentReputation(_Answer):
    """An agent's standing, a function of its receipts alone."""

    score: Points = Field(description="By the platform's algorithm.")
    algorithm: str = Field(description="Which of `scores` the platform uses.")
    scores: dict[str, Points]
    outcomes: int
    successes: int
    failures: int = Field(description="By the agent's own fault.")
    success_rate: float | None = Field(description="Successes among successes and failures; null before the first.")
    distinct_payers: int = Field(description="Other users who have paid; an estimate from 128 on.")
    recent: AgentEstimate | None = Field(
        description="What its paid runs cost and took of late; null if there are none."
    )


class ComputeAnswer(_Answer):
    """What the platform takes for computing."""

    run_micro: CreditsOut = Field(alias="run", description="For each run.")
    per_billion_fuel_micro: CreditsOut = Field(alias="per_billion_fuel")


class PriceEstimate(_Answer):
    """What a task of an agent may cost: by its tariff at least, and by its history."""

    agent_id: str
    tariff: Tariff
    tariff_sha256: str = Field(description="Digest of the tariff, as receipts state it.")
    least_price_micro: CreditsOut = Field(
        alias="least_price",
        description="No task is taken with a smaller budget: the agent's price and the compute of the shortest run.",
    )
    compute: ComputeAnswer = Field(description="What the platform takes for computing, beside the agent's price.")
    module_sha256: str | None = Field(description="Pin it in a task, so that no other version runs.")
    rules_sha256: str = Field(description="Digest of the rules for its outputs; pin it in a task likewise.")
    judging_micro: CreditsOut = Field(
        alias="judging", description="Held for the agent's own judge out of its owner's bond: it costs a task nothing."
    )
    task_judges: TaskJudges | None = Field(description="Null if it takes no task that brings a judge.")
    recent: AgentEstimate | None = Field(description="Null if it has had no paid run of late.")


class AgentStanding(_Answer):
    """What a search is ordered by. The index may lag behind the receipts by some seconds."""

    score: Points = Field(description="The reputation score that the platform uses, from 0 to 100.")
    success_rate: float | None = Field(description="Successes among successes and failures; null before the first.")


class AgentAnswer(_Answer):
    """An agent as anyone may see it."""

    agent_id: str
    owner: str
    name: str
    description: str
    state: AgentState
    version: int | None = Field(default=None, description="The number of the active version; null if there is none.")
    module_sha256: str | None = Field(description="Names the version that tasks run now.")
    contract_sha256: str | None = Field(default=None, description="Of the active version's contract; null without one.")
    rejection: AgentRejection | None = None
    tariff: Tariff
    tariff_sha256: str = Field(description="Digest of the tariff; pin it in a task, so that no other tariff counts.")
    rules_sha256: str = Field(description="Digest of the rules for its outputs; that of `{}` if there are none.")
    limits: AgentLimits
    task_judges: TaskJudges | None = Field(description="Null if it takes no task that brings a judge.")
    acceptance: PublishedRules | None = Field(
        default=None, description="The rules for its outputs, `{}` if there are none; only when one agent is read."
    )
    reputation: AgentReputation | None = Field(default=None, description="Only when one agent is read.")
    standing: AgentStanding | None = Field(default=None, description="Only in a search.")
    created_at: Timestamp


class AgentPage(_Answer):
    """Some agents, newest first or as a search orders them; a page may be shorter than `limit`, or empty, though more
    follow.
    """

    agents: list[AgentAnswer]
    next: str | None = Field(description="Pass it as `after` to read on; null at the end.")


class AgentCard(_Answer):
    """What an agent takes, gives and costs: all that a client needs to call it and to pin what it calls."""

    agent_id: str = Field(description="Its id.", examples=[_EXAMPLE_AGENT])
    owner: str = Field(description="The account that is paid.")
    name: str = Field(description="Its name.")
    description: str = Field(description="What it does, in its owner's words.")
    version: int = Field(description="The number of the version that tasks run now.")
    module_sha256: str = Field(description="Names that version's module; pin it in a task.")
    contract_sha256: str | None = Field(
        description="SHA-256 of the contract's canonical JSON; null if it has no contract."
    )
    contract: PublishedContract | None = Field(description="Null if it has none: then it may take any input.")
    tariff: Tariff = Field(description="What a task costs, beside the platform's fee.")
    tariff_sha256: str = Field(description="Pin it in a task, so that no other tariff counts.")
    limits: AgentLimits = Field(description="What one run may use.")
    rules_sha256: str = Field(description="Of the rules for its outputs; that of `{}` if there are none.")
    acceptance: PublishedRules = Field(description="The rules that each output must meet for the agent to be paid.")
    task_judges: TaskJudges | None = Field(description="Null if it takes no task that brings a judge.")


class VersionAnswer(_Answer):
    """One version of an agent, with the terms that it has or last had."""

    number: int = Field(description="That of its upload, from 1.", examples=[3])
    state: VersionState = Field(
        description="`active`: tasks run it. `inactive`: it was published and can be activated again. In other states"
        " it was not published."
    )
    module_sha256: str | None = Field(default=None, description="Names its module; null if it was not published.")
    contract_sha256: str | None = Field(default=None, description="Of its contract; null without one.")
    tariff: Tariff = Field(description="What a task costs.")
    tariff_sha256: str = Field(description="By this the receipts name the tariff.")
    rules_sha256: str = Field(description="Of the rules for its outputs; that of `{}` if there are none.")
    limits: AgentLimits = Field(description="What one run may use.")
    task_judges: TaskJudges | None = Field(description="Null if it takes no task that brings a judge.")
    rejection: AgentRejection | None = Field(
        default=None, description="Why it was rejected, or that the platform failed to publish it."
    )
    published_at: Timestamp | None = Field(
        default=None, description="Null if it was not published, or before this time was recorded."
    )


class VersionPage(_Answer):
    """Some versions of an agent, newest first; a page may be shorter than `limit`, or empty, though more follow."""

    versions: list[VersionAnswer] = Field(
        description="Without uploads that a newer one replaced before they were decided."
    )
    next: str | None = Field(description="Pass it as `after` to read on; null at the end.")


class LogTile(_Answer):
    """A tile of the log's Merkle tree: roots of subtrees of height 8 · level, in order."""

    hashes: list[str] = Field(description="SHA-256, in hexadecimal.")


class Jwk(_Answer):
    """A public key (RFC 7517)."""

    kty: Literal["EC"] = Field(description="Type of the key: elliptic curve.")
    crv: Literal["P-256"] = Field(description="Curve of the key.")
    x: str = Field(description="First coordinate of the point, in base64url.")
    y: str = Field(description="Second coordinate of the point, in base64url.")
    kid: str = Field(description="Name of the key, which signatures state.")
    alg: Literal["ES256"] = Field(description="Algorithm of the key's signatures.")
    use: Literal["sig"] = Field(description="Use of the key: signatures.")
    purpose: str | None = Field(
        default=None, description="What the key signs, such as `checkpoint`; absent for the key of receipts."
    )


class JwkSet(_Answer):
    """Public keys (RFC 7517)."""

    keys: list[Jwk] = Field(description="All root keys; each signs for one purpose.")


# Accounts.


class DepositRequest(Sent):
    """Credits for an account."""

    deposit_id: TaskId = Field(description="An id that you choose; the same id never counts twice.")
    amount_micro: Amount = Field(alias="amount")


class WithdrawalRequest(Sent):
    """Credits to withdraw from your account."""

    withdrawal_id: TaskId = Field(description="An id that you choose; the same id never counts twice.")
    amount_micro: Amount = Field(alias="amount")


class BondRequest(Sent):
    """Credits to move from your account into your bond, or back."""

    bond_id: TaskId = Field(description="An id that you choose; the same id never counts twice.")
    amount_micro: Annotated[ChangeIn, between(-limits.AMOUNT_MICRO_MAX, limits.AMOUNT_MICRO_MAX), _not_zero] = Field(
        alias="amount", description="Into the bond; with a minus, out of it: a release."
    )


class BondAnswer(_Answer):
    """An owner's credits for its agents' failures. `available` and `charged` are exact; `held` may lag by a second."""

    account_id: str
    available_micro: CreditsOut = Field(alias="available", description="What is in the bond now.")
    held_micro: CreditsOut = Field(
        alias="held", description="The part of the bond that is held in funded escrows, for your agents' own judges."
    )
    charged_micro: CreditsOut = Field(alias="charged", description="What failures have cost the bond since it exists.")
    releasable_micro: CreditsOut = Field(
        alias="releasable",
        description="What can be released now: nothing before all agents are retired and for "
        f"{limits.BOND_NOTICE_MS // 60_000} minutes after the last was retired, or while one of their tasks is not"
        " settled and credited.",
    )
    minimum_micro: CreditsOut = Field(
        alias="minimum", description="With less in the bond, your agents take no tasks, and none can be published."
    )


class BondMoveAnswer(_Answer):
    """A movement of the bond as it was recorded the first time."""

    account_id: str
    bond_id: str
    amount_micro: CreditsChange = Field(alias="amount")
    recorded_at: Timestamp


class AccountAnswer(_Answer):
    """What an account has. `available` is exact; `held` and `earned` come from an index and may lag by a second."""

    account_id: str
    available_micro: CreditsOut = Field(alias="available")
    held_micro: CreditsOut = Field(alias="held", description="In funded escrows.")
    earned_micro: CreditsOut = Field(
        alias="earned",
        description="From settled tasks; the next sweep makes it available, or gives it back to the bond that paid the"
        " agents' own judges.",
    )


class StatementLine(_Answer):
    """One movement of an account's credits."""

    at: Timestamp
    kind: LineKind
    id: str = Field(
        description="Of the deposit, withdrawal, bond movement or task; of the first escrow for what the sweep moves."
    )
    amount_micro: CreditsChange = Field(
        alias="amount",
        description="How far it changed what is available. A funded task's budget is out until it is settled.",
    )
    agent_id: str | None = None
    tasks: int | None = Field(default=None, description="How many settled tasks were credited together.")
    escrow_status: State | None = Field(default=None, description="Of a task.")
    due_micro: CreditsOut | None = Field(
        default=None, alias="due", description="Of a charge: what the failures cost. A bond pays no more than it has."
    )
    payout: PayoutState | None = Field(
        default=None, description="Of a withdrawal: one that failed was returned, by a line `returned` with its id."
    )


class StatementPage(_Answer):
    """Some movements, newest first. All amounts of all pages make what is available."""

    account_id: str
    lines: list[StatementLine]
    next: str | None = Field(description="Pass it as `after` to read on; null at the end.")


class DepositAnswer(_Answer):
    """A deposit as it was recorded the first time."""

    account_id: str
    deposit_id: str
    amount_micro: CreditsOut = Field(alias="amount")
    recorded_at: Timestamp


class WithdrawalAnswer(_Answer):
    """A withdrawal as it was recorded the first time, and how its payout stands now."""

    account_id: str
    withdrawal_id: str
    amount_micro: CreditsOut = Field(alias="amount")
    state: PayoutState = Field(description="`requested` until it is paid out; `failed` if it was returned instead.")
    recorded_at: Timestamp


# Runs of an agent, and tasks of an account.


class RunAnswer(_Answer):
    """A settled run of an agent, for the agent's owner. The payer decides what else the owner sees (`share`)."""

    run_id: str = Field(description="The id of the task's escrow.")
    settled_at: Timestamp = Field(description="When the task was settled.")
    module_sha256: str = Field(description="The version that ran.")
    success: bool = Field(description="Whether the agent was paid.")
    outcome: Outcome = Field(description="How the run ended.")
    fault: Fault = Field(description="At whose fault it failed; `none` if it did not.")
    fuel_used: int = Field(description="Units of fuel that the run used.")
    execution_time_ms: int = Field(description="Time in the sandbox.")
    memory_used_mb: float = Field(description="Peak linear memory, in MiB.")
    amount_paid_micro: CreditsOut = Field(alias="amount_paid", description="To the agent's owner.")
    fee_micro: CreditsOut = Field(alias="fee", description="To the platform.")
    message: str | None = Field(default=None, description="Why it failed; null if it did not.")
    payer: str | None = Field(default=None, description="Whose task it was, if the payer shares that; else null.")
    log_shared: bool = Field(description="Whether the payer shares the log (stderr); read the run to get it.")


class RunWithLog(RunAnswer):
    """A settled run of an agent, with its log if the payer shares it."""

    log: str | None = Field(
        default=None, description="The run's stderr; null if it is not shared, or is older than its retention."
    )


class RunPage(_Answer):
    """Some runs, newest first; a page may be shorter than `limit`, though more follow."""

    runs: list[RunAnswer] = Field(description="The runs.")
    next: str | None = Field(description="Pass it as `after` to read on; null at the end.")


class TaskLine(_Answer):
    """A task in the list of its payer's tasks. Read its output with GET /tasks/{task_id}/result."""

    task_id: str = Field(description="As the payer chose it.")
    agent_id: str = Field(description="The agent that was asked.")
    state: TaskState = Field(description="`pending` until it is settled; `succeeded` if the agent was paid.")
    outcome: Outcome | None = Field(default=None, description="How it ended; null while it is pending.")
    amount_paid_micro: CreditsOut | None = Field(
        default=None, alias="amount_paid", description="To the agent's owner; null while it is pending."
    )
    amount_refunded_micro: CreditsOut | None = Field(
        default=None, alias="amount_refunded", description="Back to the payer; null while it is pending."
    )
    fee_micro: CreditsOut | None = Field(
        default=None, alias="fee", description="To the platform; null while it is pending."
    )
    funded_at: Timestamp = Field(description="When its budget was held.")
    settled_at: Timestamp | None = Field(default=None, description="When it was settled; null while it is pending.")


class TaskPage(_Answer):
    """Some tasks, newest first; a page may be shorter than `limit`, or empty, though more follow."""

    tasks: list[TaskLine] = Field(description="The tasks.")
    next: str | None = Field(description="Pass it as `after` to read on; null at the end.")


class BackfillRequest(Sent):
    """Where the backfill of the listings begins: the whole of it with `{}`, else as an earlier answer says."""

    of: Literal["ledger", "registry"] = Field(default="ledger", description="The table that is read.")
    after: str | None = Field(default=None, description="The key behind which it is read.")


# Payouts.

PayoutId = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", min_length=1, max_length=limits.PAYOUT_ID_CHARS_MAX)
]


class PayoutDecision(Sent):
    """How a payout ended. Final: the same again changes nothing, the other is refused."""

    state: Literal["paid", "failed"] = Field(description="`failed` returns the credits to the account at once.")


class PayoutAnswer(_Answer):
    """A withdrawal that is to be paid out, or was decided."""

    payout_id: str
    account_id: str
    withdrawal_id: str
    amount_micro: CreditsOut = Field(alias="amount")
    state: PayoutState
    account_frozen: bool = Field(description="Whether the account is frozen now: find out why before you pay.")
    requested_at: Timestamp
    decided_at: Timestamp | None = None
    decided_by: str | None = Field(default=None, description="The account of the operator who decided.")


class PayoutPage(_Answer):
    """Payouts that wait, the longest waiting first."""

    payouts: list[PayoutAnswer]
    next: str | None = Field(description="Pass it as `after` to read on; null at the end.")


# Operations.


class OperationRequest(Sent):
    """Why an operator does something."""

    reason: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=limits.REASON_CHARS_MAX)
    ] = Field(description="For whoever reads the journal.")


class OperationAnswer(_Answer):
    """What an operator did: a line of the journal."""

    operation_id: str
    action: Action
    target: str = Field(description="An agent's id, an account's id, or `funding`.")
    by: str = Field(description="The operator's account.")
    at: Timestamp
    reason: str


class OperationPage(_Answer):
    """Some lines of the journal, newest first."""

    operations: list[OperationAnswer]
    next: str | None = Field(description="Pass it as `after` to read on; null at the end.")


def as_text(data: bytes | None) -> tuple[str | None, str | None]:
    """The output as `output` or as `output_base64`; the other one is None.

    Text is returned as text unless it is too long in JSON for a response: then base64 is shorter. This depends only on
    the bytes, so every answer about a task returns its output in the same way.
    """
    if data is None:
        return None, None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = None
    if text is None or nested_bytes(text) > limits.OUTPUT_TEXT_WIRE_BYTES_MAX:
        return None, base64.b64encode(data).decode()
    return text, None


def _check_size(field: str, size: int) -> None:
    if size > limits.INPUT_BYTES_MAX:
        raise PayloadTooLargeError(field, bytes_max=limits.INPUT_BYTES_MAX)


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as exc:
        msg = "must be valid base64 (RFC 4648 §4, with padding)"
        raise ValueError(msg) from exc


def _compact(value: object) -> bytes:
    """What stdin gets of an input: the bytes of a string, or JSON.

    A value from Python code, which has no spelling of its own, is spelt by Python's JSON: decimals as doubles.
    """
    try:
        text = (
            value.text
            if isinstance(value, AsSent)
            else value
            if isinstance(value, str)
            else json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=float)
        )
    except ValueError as exc:
        msg = "must not hold numbers beyond the range of a double"
        raise ValueError(msg) from exc
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        msg = "must not hold half of a surrogate pair, which UTF-8 cannot carry"
        raise ValueError(msg) from exc


def _through_doubles(value: object) -> bytes | None:
    """What earlier commits gave stdin of an input; None if they refused it, or if it has no spelling of its own."""
    if not isinstance(value, AsSent):
        return None
    try:
        return _compact(canonical_json.read(value.text, numbers=Numbers.EXACT, lone_surrogates=True))
    except (JsonError, ValueError):
        return None
