"""All errors that a caller can get, and the table that maps them to problem+json (RFC 9457).

QuittanceError
├── AnswerTooLargeError           500  a fault of the platform: every answer should be bounded
├── RequestError                  the caller can correct it
│   ├── InvalidRequestError           400  fields are invalid; each is named
│   ├── UnauthenticatedError          401  no verified identity
│   ├── InsufficientFundsError        402  with the available and the required amount
│   ├── BondRequiredError             402  the owner's bond is below the minimum
│   ├── MissingScopeError             403  the token lacks a scope
│   ├── AgentNotAllowedError          403  the channel does not pay this agent
│   ├── TicketInvalidError            401  the ticket does not prove that the channel's key asked for this task
│   ├── AccountFrozenError            403  an operator has frozen the account
│   ├── NotFoundError                 404  unknown, or another account's
│   ├── TaskConflictError             409  the task_id was used for another request
│   ├── TaskInProgressError           409  the same task is running now
│   ├── ChannelClosedError            409  the channel is closing or closed
│   ├── ChannelExpiredError           409  too little time is left before the channel expires
│   ├── ChannelConflictError          409  the channel's salt was used before with other terms
│   ├── TicketUsedError               409  the ticket's number was used for another task
│   ├── AgentNotReadyError            409  no active version
│   │   └── BondTooLowError               409  its owner's bond cannot pay its judge
│   ├── VersionNotPublishedError      409  the version cannot be activated
│   ├── TermsChangedError             409  module, tariff or rules differ from those that the task names
│   ├── BondInUseError                409  the bond cannot be released yet
│   ├── MovementConflictError         409  the movement's id was used for another amount or by another depositor
│   ├── RegistrationConflictError     409  the registration_id was used for another agent
│   ├── PayoutConflictError           409  the payout was decided differently
│   ├── PayloadTooLargeError          413
│   ├── UnsupportedMediaTypeError     415
│   ├── NotLoggedError                404  the receipt is not in the log yet
│   ├── TicketTooSmallError           422  the task may cost more than the channel's tickets pay
│   ├── BudgetTooLowError             422  below the agent's least price
│   ├── InputNotAcceptedError         422  the input does not meet the schema of the agent's contract
│   ├── JudgingTooDearError           422  the task's judge may cost more than the task allows
│   ├── ReputationTooLowError         422  the agent's score is below the required one
│   ├── TimeoutTooLongError           422  over the limit of synchronous tasks or of the agent
│   └── TooManyRunningError           429  the account has as many running tasks as it may have
├── FundingPausedError                503  an operator has paused funding
└── PlatformUnavailableError          503  nothing is lost: repeat the same request

`detail` is written for the caller. It never contains internal text, a stack trace or another user's data.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from quittance.ledger.credits import format_credits
from quittance.limits import DETAIL_CHARS_MAX, FAULT_CHARS_MAX, FAULTS_NAMED_MAX, FIELD_NAME_CHARS_MAX, PAUSED_RETRY_S

_LOGGED_AFTER_S: Final = 60


class QuittanceError(Exception):
    """An error that Quittance answers with a problem document.

    `members` are the problem's extension members; `retry_after_s` becomes the `Retry-After` header. `detail` is
    truncated, because a problem that quotes its request must still fit in a response.
    """

    def __init__(self, detail: str, *, retry_after_s: int | None = None, **members: object) -> None:
        detail = shortened(detail, DETAIL_CHARS_MAX)
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.members = members


class RequestError(QuittanceError):
    """The request is refused as it is; no money moved."""


class InvalidRequestError(RequestError):
    """One or more fields are invalid. `errors` lists each as `{"field", "message"}`, at most FAULTS_NAMED_MAX of them
    and then one entry that says that there are more.
    """

    def __init__(self, *errors: tuple[str, str]) -> None:
        named = [
            (shortened(field, FIELD_NAME_CHARS_MAX), shortened(message, FAULT_CHARS_MAX))
            for field, message in errors[:FAULTS_NAMED_MAX]
        ]
        if len(errors) > FAULTS_NAMED_MAX:
            named.append(("body", "has more faults than are listed here: correct these first"))
        listed = [{"field": field, "message": message} for field, message in named]
        super().__init__("; ".join(f"{field}: {message}" for field, message in named), errors=listed)


class UnauthenticatedError(RequestError):
    """The request has no verified identity. `refused` says which check the token failed; None without a token."""

    def __init__(self, refused: str | None = None) -> None:
        advice = "Send a valid bearer token in the Authorization header."
        super().__init__(f"{refused} {advice}" if refused else advice)
        self.refused = refused


class InsufficientFundsError(RequestError):
    """The account's available balance is below what the request needs."""

    def __init__(self, *, available_micro: int, required_micro: int) -> None:
        available, required = format_credits(available_micro), format_credits(required_micro)
        super().__init__(
            f"{required} credits are required, {available} are available. Deposit more, or use a smaller amount.",
            available=available,
            required=required,
        )


class MissingScopeError(RequestError):
    """The token is valid but lacks the scope that the operation needs."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"The token needs the scope {scope!r}.", required_scope=scope)
        self.scope = scope


class AccountFrozenError(RequestError):
    """An operator has frozen the account."""

    def __init__(self) -> None:
        super().__init__("Your account is frozen: it cannot fund, withdraw or publish. Ask the operator why.")


class NotFoundError(RequestError):
    """The object does not exist or belongs to another account; the answer does not reveal which."""


class TaskConflictError(RequestError):
    """The task_id was used before for another request."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"The task_id {task_id!r} was used before for another request. Choose a new one.")


class TaskInProgressError(RequestError):
    """The same task is running now."""

    def __init__(self, task_id: str, *, retry_after_s: int) -> None:
        super().__init__(
            f"The task {task_id!r} is running. Repeat the request later, or read its result.",
            retry_after_s=retry_after_s,
        )


class TicketInvalidError(RequestError):
    """The ticket does not prove that the channel's key asked for this task now. `reason` says why, without its end.

    Of a number that cannot be used, `numbers` states up to which one the deposit covers, `granted` which may be used.
    """

    def __init__(self, reason: str, *, numbers: int | None = None, granted: int | None = None) -> None:
        sentence = f"The ticket is not valid: {reason}. Sign a new one for exactly this request."
        found = {"numbers": numbers, "granted": granted}
        super().__init__(sentence, **{name: value for name, value in found.items() if value is not None})


class TicketUsedError(RequestError):
    """A number that the ticket takes was used for another task, or closing took it out of use."""

    def __init__(self, channel_id: str, number: int) -> None:
        super().__init__(
            f"Ticket {number} of the channel {channel_id} was used for another task. Sign one with a free number.",
            number=number,
        )


class TicketTooSmallError(RequestError):
    """The budget is more than the channel pays for one task."""

    def __init__(self, *, budget_micro: int, most_micro: int) -> None:
        most = format_credits(most_micro)
        super().__init__(
            f"The budget {format_credits(budget_micro)} is more than this channel pays for one task, {most}.",
            errors=[{"field": "budget", "message": f"must be at most {most}"}],
            most=most,
        )


class AgentNotAllowedError(RequestError):
    """The channel pays other agents only."""

    def __init__(self, channel_id: str, agent_id: str) -> None:
        super().__init__(
            f"The channel {channel_id} does not pay the agent {agent_id!r}. Its payer chose which ones it does."
        )


class ChannelClosedError(RequestError):
    """The channel is closing or closed: it takes no tickets and no credits."""

    def __init__(self, channel_id: str, *, state: str) -> None:
        super().__init__(f"The channel {channel_id} is {state}. Open another one.", state=state)


class ChannelExpiredError(RequestError):
    """The channel expires before the task could end."""

    def __init__(self, channel_id: str) -> None:
        super().__init__(
            f"The channel {channel_id} expires before this task could end. Open another one, or use a shorter timeout."
        )


class ChannelConflictError(RequestError):
    """A channel with the same id, so the same salt, key and ticket value, has other terms."""

    def __init__(self, channel_id: str) -> None:
        super().__init__(
            f"You opened the channel {channel_id} before with other terms. Choose another salt for another channel."
        )


class AgentNotReadyError(RequestError):
    """The agent exists but takes no tasks: it has no active version, no bond or judge, or its owner is frozen."""

    def __init__(self, agent_id: str, state: str, *, retry_after_s: int | None = None) -> None:
        detail = f"The agent {agent_id!r} is {state.replace('_', ' ')} and takes no tasks."
        super().__init__(detail, retry_after_s=retry_after_s, state=state)


class VersionNotPublishedError(RequestError):
    """The version cannot be activated: its upload was not published, or a newer one replaced it before it was."""

    def __init__(self, agent_id: str, number: int, *, state: str | None) -> None:
        stands = f"is {state.replace('_', ' ')}" if state else "was replaced by a newer upload"
        super().__init__(
            f"Version {number} of the agent {agent_id!r} {stands}; only a published version can be activated. List them"
            f" with GET /agents/{agent_id}/versions.",
            state=state,
        )


class BondTooLowError(AgentNotReadyError):
    """The agent's own judge needs more than its owner's bond has."""

    def __init__(self, agent_id: str) -> None:
        detail = f"The agent {agent_id!r} takes no tasks: its owner's bond cannot pay the agent's judge."
        RequestError.__init__(self, detail, state="bond_too_low")


class BondRequiredError(RequestError):
    """The owner's bond is below the minimum."""

    def __init__(self, *, bond_micro: int, minimum_micro: int) -> None:
        bond, minimum = format_credits(bond_micro), format_credits(minimum_micro)
        super().__init__(
            f"Your bond is {bond}, and publishing needs {minimum}. Deposit the rest with POST /accounts/me/bond.",
            bond=bond,
            required=minimum,
        )


class BondInUseError(RequestError):
    """The bond still covers agents that take tasks, or tasks that are not settled and credited yet."""

    def __init__(self, reason: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(f"The bond cannot be released: {reason}.", retry_after_s=retry_after_s)


class MovementConflictError(RequestError):
    """The id of the movement was used before with another amount, or for a deposit by another depositor."""

    def __init__(self, movement_id: str, *, recorded_micro: int, by_another: bool = False) -> None:
        other = "by another depositor" if by_another else "with another amount"
        super().__init__(
            f"The id {movement_id!r} was used before {other}. Choose a new one.",
            recorded=format_credits(recorded_micro),
        )


class RegistrationConflictError(RequestError):
    """The registration_id was used before for another registration."""

    def __init__(self, registration_id: str) -> None:
        super().__init__(
            f"The registration_id {registration_id!r} was used before for an agent with other terms. Choose a new one."
        )


class PayoutConflictError(RequestError):
    """The payout was decided differently before. A decision is final."""

    def __init__(self, payout_id: str, *, state: str) -> None:
        super().__init__(
            f"The payout {payout_id!r} is {state} already, and a decision is final. Correct it with a new movement.",
            state=state,
        )


class PayloadTooLargeError(RequestError):
    """A part of the request is larger than its limit."""

    def __init__(self, field: str, *, bytes_max: int) -> None:
        super().__init__(
            f"{field} has more than {bytes_max} bytes.",
            errors=[{"field": field, "message": f"must have at most {bytes_max} bytes"}],
            bytes_max=bytes_max,
        )


class UnsupportedMediaTypeError(RequestError):
    """The body is not JSON."""

    def __init__(self) -> None:
        super().__init__("Send the body as application/json.")


class BudgetTooLowError(RequestError):
    """The budget is below the least cost of one run: the agent's price, the compute and the task's own judge."""

    def __init__(self, *, budget_micro: int, least_micro: int) -> None:
        least = format_credits(least_micro)
        super().__init__(
            f"The budget {format_credits(budget_micro)} is below {least}, the least that a task of this agent costs.",
            errors=[{"field": "budget", "message": f"must be at least {least}"}],
            least_price=least,
        )


class InputNotAcceptedError(RequestError):
    """The input does not meet the schema of the agent's contract. `field` is the place in it, such as `input/items/3`.

    `contract_sha256` names the contract.
    """

    def __init__(self, field: str, sentence: str, *, contract_sha256: str) -> None:
        super().__init__(
            f"The agent does not accept this input: {field} {sentence}.",
            errors=[{"field": field, "message": sentence}],
            contract_sha256=contract_sha256,
        )


class TermsChangedError(RequestError):
    """The agent's module, tariff or rules differ from those that the task names by digest."""

    def __init__(self, field: str, *, now: str) -> None:
        super().__init__(
            f"The agent's {field} is now {now}, not the one that the task names. Read the agent's terms again.",
            errors=[{"field": field, "message": f"must be {now}, or absent"}],
        )


class JudgingTooDearError(RequestError):
    """The task's judge may cost more than the task allows."""

    def __init__(self, *, judging_micro: int, most_micro: int) -> None:
        judging, most = format_credits(judging_micro), format_credits(most_micro)
        super().__init__(
            f"Judging may cost {judging}, more than max_judging {most}.",
            errors=[{"field": "max_judging", "message": f"must be at least {judging}, or absent"}],
            judging=judging,
        )


class ReputationTooLowError(RequestError):
    """The agent's score is below the least that the task requires."""

    def __init__(self, *, score_tenths: int, least_tenths: int) -> None:
        score, least = score_tenths / 10, least_tenths / 10
        super().__init__(
            f"The agent's reputation is {score}, below the required {least}.",
            errors=[{"field": "min_reputation", "message": f"must be at most {score}, the agent's reputation now"}],
            reputation=score,
        )


class NotLoggedError(RequestError):
    """The receipt is not in the published log yet: the sweep appends it some minutes after the settlement."""

    def __init__(self) -> None:
        super().__init__(
            "The task's receipt is not in the published log yet. Try again in a minute.", retry_after_s=_LOGGED_AFTER_S
        )


class TimeoutTooLongError(RequestError):
    """The timeout is longer than the entry point or the agent allows."""

    def __init__(self, *, timeout_s_max: int, reason: str) -> None:
        super().__init__(
            f"The timeout must be at most {timeout_s_max} seconds: {reason}.",
            errors=[{"field": "timeout", "message": f"must be at most {timeout_s_max}"}],
        )


class TooManyRunningError(RequestError):
    """The account has as many running tasks as it may have at once."""

    def __init__(self, *, running_max: int, retry_after_s: int) -> None:
        super().__init__(
            f"Your account has {running_max} running tasks, the most that it may have at once. Repeat the request"
            " later, or send it with `Prefer: respond-async`.",
            retry_after_s=retry_after_s,
            running_max=running_max,
        )


class FundingPausedError(QuittanceError):
    """An operator has paused funding: no new task is accepted, and no money moved."""

    def __init__(self) -> None:
        super().__init__(
            "The operator has paused new tasks. Repeat the request later: no money moved.", retry_after_s=PAUSED_RETRY_S
        )


class AnswerTooLargeError(QuittanceError):
    """The answer is larger than Lambda can return. Every part of an answer is bounded, so this is a platform fault."""

    def __init__(self) -> None:
        super().__init__(
            "The request succeeded, but the answer is too large to be sent. Report this to the platform's operator."
        )


class PlatformUnavailableError(QuittanceError):
    """A part of the platform did not answer. The caller can repeat the request with the same ids."""

    def __init__(self, *, retry_after_s: int = 2) -> None:
        super().__init__(
            "A part of the platform did not answer. Repeat the same request: nothing is done twice.",
            retry_after_s=retry_after_s,
        )


_PROBLEMS: Final[Mapping[type[QuittanceError], tuple[HTTPStatus, str, str]]] = {
    InvalidRequestError: (HTTPStatus.BAD_REQUEST, "invalid_request", "The request is not valid"),
    UnauthenticatedError: (HTTPStatus.UNAUTHORIZED, "unauthenticated", "Authentication is needed"),
    InsufficientFundsError: (HTTPStatus.PAYMENT_REQUIRED, "insufficient_funds", "Insufficient funds"),
    MissingScopeError: (HTTPStatus.FORBIDDEN, "missing_scope", "A scope is missing"),
    AccountFrozenError: (HTTPStatus.FORBIDDEN, "account_frozen", "The account is frozen"),
    NotFoundError: (HTTPStatus.NOT_FOUND, "not_found", "Not found"),
    TaskConflictError: (HTTPStatus.CONFLICT, "task_conflict", "The task id is taken"),
    TaskInProgressError: (HTTPStatus.CONFLICT, "task_in_progress", "The task is running"),
    TicketInvalidError: (HTTPStatus.UNAUTHORIZED, "ticket_invalid", "The ticket is not valid"),
    AgentNotAllowedError: (HTTPStatus.FORBIDDEN, "agent_not_allowed", "The channel does not pay this agent"),
    TicketUsedError: (HTTPStatus.CONFLICT, "ticket_used", "The ticket is used"),
    ChannelClosedError: (HTTPStatus.CONFLICT, "channel_closed", "The channel is closed"),
    ChannelExpiredError: (HTTPStatus.CONFLICT, "channel_expired", "The channel expires too soon"),
    ChannelConflictError: (HTTPStatus.CONFLICT, "channel_conflict", "The channel has other terms"),
    TicketTooSmallError: (HTTPStatus.UNPROCESSABLE_ENTITY, "ticket_too_small", "The tickets pay less"),
    AgentNotReadyError: (HTTPStatus.CONFLICT, "agent_not_ready", "The agent takes no tasks"),
    BondTooLowError: (HTTPStatus.CONFLICT, "agent_not_ready", "The agent takes no tasks"),
    VersionNotPublishedError: (HTTPStatus.CONFLICT, "version_not_published", "The version is not published"),
    BondRequiredError: (HTTPStatus.PAYMENT_REQUIRED, "bond_required", "A bond is needed"),
    BondInUseError: (HTTPStatus.CONFLICT, "bond_in_use", "The bond is in use"),
    MovementConflictError: (HTTPStatus.CONFLICT, "movement_conflict", "The movement id is taken"),
    RegistrationConflictError: (HTTPStatus.CONFLICT, "registration_conflict", "The registration id is taken"),
    PayoutConflictError: (HTTPStatus.CONFLICT, "payout_conflict", "The payout is decided"),
    PayloadTooLargeError: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "payload_too_large", "Too large"),
    UnsupportedMediaTypeError: (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "Not JSON"),
    BudgetTooLowError: (HTTPStatus.UNPROCESSABLE_ENTITY, "budget_too_low", "The budget is too low"),
    InputNotAcceptedError: (HTTPStatus.UNPROCESSABLE_ENTITY, "input_not_accepted", "The input is not accepted"),
    NotLoggedError: (HTTPStatus.NOT_FOUND, "not_logged", "Not in the log yet"),
    TermsChangedError: (HTTPStatus.CONFLICT, "terms_changed", "The agent's terms have changed"),
    JudgingTooDearError: (HTTPStatus.UNPROCESSABLE_ENTITY, "judging_too_dear", "Judging costs too much"),
    ReputationTooLowError: (HTTPStatus.UNPROCESSABLE_ENTITY, "reputation_too_low", "The reputation is too low"),
    TimeoutTooLongError: (HTTPStatus.UNPROCESSABLE_ENTITY, "timeout_too_long", "The timeout is too long"),
    TooManyRunningError: (HTTPStatus.TOO_MANY_REQUESTS, "too_many_running", "Too many tasks are running"),
    FundingPausedError: (HTTPStatus.SERVICE_UNAVAILABLE, "funding_paused", "New tasks are paused"),
    AnswerTooLargeError: (HTTPStatus.INTERNAL_SERVER_ERROR, "answer_too_large", "The answer is too large"),
    PlatformUnavailableError: (HTTPStatus.SERVICE_UNAVAILABLE, "platform_unavailable", "Try again"),
}

PROBLEM_TYPE_PREFIX: Final = "urn:quittance:problem:"


def classified(error: type[QuittanceError]) -> tuple[HTTPStatus, str, str]:
    """Status, code and title of a class of errors."""
    return _PROBLEMS[error]


def shortened(text: str, chars_max: int) -> str:
    """A text, or its first `chars_max` characters and an ellipsis if it is longer."""
    return text if len(text) <= chars_max else f"{text[:chars_max]}…"


def problem(error: QuittanceError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, problem document (RFC 9457 §3) and extra headers for an error."""
    status, code, title = classified(type(error))
    body = {
        "type": PROBLEM_TYPE_PREFIX + code,
        "title": title,
        "status": int(status),
        "code": code,
        "detail": error.detail,
        **error.members,
    }
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, UnauthenticatedError | MissingScopeError | TicketInvalidError):
        headers["WWW-Authenticate"] = challenge(error)
    return int(status), body, headers


def challenge(error: UnauthenticatedError | MissingScopeError | TicketInvalidError) -> str:
    """The value of `WWW-Authenticate` for an error (RFC 6750 §3); the scheme alone if no token was sent.

    RFC 9110 wants one with every 401. A ticket is no bearer token: its scheme is named as its header.
    """
    if isinstance(error, TicketInvalidError):
        return "Payment-Ticket"
    if isinstance(error, MissingScopeError):
        return f'Bearer error="insufficient_scope", scope="{error.scope}"'
    return "Bearer" if error.refused is None else f'Bearer error="invalid_token", error_description="{error.refused}"'
