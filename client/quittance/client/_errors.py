"""All errors that the client raises, and which problem document becomes which error.

QuittanceError
├── ApiError                          the API refused the call or failed; `code` says why (docs/errors.md)
│   ├── InvalidRequestError               400  fields are invalid; `errors` names each
│   ├── UnauthenticatedError              401  no valid token
│   │   └── TokenExpiredError                 401  the token has expired
│   ├── TicketInvalidError                401  the ticket does not prove that the channel's key asked for this task now
│   ├── InsufficientFundsError            402  with what is available and what is required
│   ├── BondRequiredError                 402  publishing needs a larger bond
│   ├── MissingScopeError                 403  the token lacks a scope
│   ├── AccountFrozenError                403  an operator has frozen the account
│   ├── AgentNotAllowedError              403  the channel pays other agents only
│   ├── NotFoundError                     404  unknown, or another account's
│   │   └── NotLoggedError                    404  the receipt is not in the log yet
│   ├── ConflictError                     409
│   │   ├── TaskConflictError                 the task id was used for another request
│   │   ├── TaskInProgressError               the same task is running
│   │   ├── MovementConflictError             the id of a movement was used with another amount
│   │   ├── RegistrationConflictError         the registration id was used for another agent
│   │   ├── AgentNotReadyError                the agent takes no tasks
│   │   ├── TermsChangedError                 the agent's terms are not those that the task pins
│   │   ├── VersionNotPublishedError          the version was never published
│   │   ├── BondInUseError                    the bond cannot be released yet
│   │   ├── TicketUsedError                   the ticket's number was used for another task
│   │   ├── ChannelClosedError                the channel is closing or closed
│   │   ├── ChannelExpiredError               the channel expires before the task could end
│   │   └── ChannelConflictError              the same channel was opened before with other terms
│   ├── PayloadTooLargeError              413
│   ├── RefusedTermsError                 422
│   │   ├── BudgetTooLowError                 the budget is below the agent's least price
│   │   ├── JudgingTooDearError               the task's judge may cost more than the task allows
│   │   ├── ReputationTooLowError             the agent's score is below the required one
│   │   ├── TimeoutTooLongError               the timeout is longer than the API waits
│   │   ├── InputNotAcceptedError             the input does not meet the agent's contract
│   │   └── TicketTooSmallError               the budget is more than the channel pays for one task
│   ├── TooManyRequestsError              429  throttled, or too many running tasks
│   └── PlatformError                     5xx  the platform failed; the call was repeated in vain
│       └── FundingPausedError                503  an operator has paused new tasks
├── ConnectionFailedError             no complete answer: no network, no such host, a timeout, a truncated body
├── UnexpectedAnswerError             an answer that this API does not give: another server, a proxy, a newer API
├── TokenError                        there is no token to send
│   ├── LoginRequiredError                somebody must sign in
│   └── LoginFailedError                  the sign-in was denied, or its code expired
├── StillRunningError                 the task was not settled in the time allowed
├── UploadFailedError                 the storage refused the module
├── PublishFailedError                the platform rejected the module, or failed to publish it
├── NotProvenError                    a receipt does not prove the answer that it came with
├── CardNotProvenError                an agent card is not signed by the platform, or is another agent's
└── ConfigurationError                an argument of the client is wrong, such as an address without https

No text contains a token, a secret or a signature. Texts of servers are bounded and have no control characters.
"""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, Final

from quittance.ledger.credits import parse_credits
from quittance.limits import DETAIL_CHARS_MAX, FAULTS_NAMED_MAX

if TYPE_CHECKING:
    from quittance.api.models import TaskResult
    from quittance.client._channels import Ticket
    from quittance.proof.verify import Report

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_EXPIRED: Final = "The token has expired."
_CODE_CHARS_MAX: Final = 100


class QuittanceError(Exception):
    """An error of the client.

    `call_id` is the id of the task or movement that the call was about, also if the client chose it. A repeated call
    with this id never runs or counts twice. `ticket` is what paid the task, if a channel's ticket did.
    """

    call_id: str | None = None
    ticket: "Ticket | None" = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)

    def about(self, call_id: str) -> None:
        """Record which task or movement the call was about."""
        if self.call_id is None:
            self.call_id = call_id
            self.add_note(f"The id of the call is {call_id!r}: repeated with it, nothing is done twice.")


def _restored(kind: type[QuittanceError], args: tuple[Any, ...], members: dict[str, Any]) -> QuittanceError:
    """An error from its copy in another process, whatever its constructor takes."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(members)
    return error


class ConfigurationError(QuittanceError):
    """An argument of the client is wrong."""


class ConnectionFailedError(QuittanceError):
    """There is no complete answer. With `sent`, the request may have been carried out."""

    def __init__(self, sentence: str, *, sent: bool, lasting: bool = False) -> None:
        super().__init__(sentence)
        self.sent = sent
        self.lasting = lasting


class UnexpectedAnswerError(QuittanceError):
    """The answer is none that this API gives."""


class TokenError(QuittanceError):
    """There is no token to send."""


class LoginRequiredError(TokenError):
    """Somebody must sign in first."""


class LoginFailedError(TokenError):
    """The sign-in was denied, or nobody signed in before its code expired."""


class StillRunningError(QuittanceError):
    """The task was not settled in the time that the caller allowed. It goes on: wait again, or read it later."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"The task {task_id!r} is not settled yet. It goes on: wait for it again with this id.")
        self.task_id = task_id


class UploadFailedError(QuittanceError):
    """The storage refused the module; `code` is its word for it, such as `EntityTooLarge`."""

    def __init__(self, sentence: str, *, code: str = "") -> None:
        super().__init__(sentence)
        self.code = code


class PublishFailedError(QuittanceError):
    """The platform rejected a version, or failed to publish it: `state`, `code` and `reason` say which and why.

    `number` is the version's. An older version that takes tasks goes on to do so.
    """

    def __init__(self, agent_id: str, number: int, *, state: str, code: str, reason: str) -> None:
        self.agent_id = agent_id
        self.number = number
        self.state = state
        self.code = plain(code, _CODE_CHARS_MAX)
        self.reason = plain(reason)
        super().__init__(f"Version {number} of {agent_id} is {state}: {self.code}: {self.reason}")


class NotProvenError(QuittanceError):
    """A receipt does not prove the answer that it came with. `result` is the answer, `report` the checks."""

    def __init__(self, sentence: str, *, result: "TaskResult", report: "Report") -> None:
        super().__init__(f"The receipt of task {result.task_id!r} does not prove its answer: {sentence}.")
        self.result = result
        self.report = report


class CardNotProvenError(QuittanceError):
    """An agent card is not signed under the platform's root keys, or is about another agent."""


class ApiError(QuittanceError):
    """The API refused the call, or failed.

    `status`, `type`, `title`, `detail`, `code` and `errors` are those of the problem document (RFC 9457); `members` has
    all of it. `errors` lists invalid fields as `{"field", "message"}`.
    """

    def __init__(self, status: int, document: Mapping[str, Any], *, retry_after_s: float | None = None) -> None:
        self.status = status
        self.type = _text(document, "type") or "about:blank"
        self.title = _text(document, "title") or _phrase(status)
        self.detail = _text(document, "detail")
        self.code = _text(document, "code")
        self.errors = _fields(document.get("errors"))
        self.members = document
        self.retry_after_s = retry_after_s
        super().__init__(self.detail or f"The API answered {status} {self.title}.")


class InvalidRequestError(ApiError):
    """The request is not valid: `errors` names each field."""

    @classmethod
    def of(cls, field: str, message: str) -> "InvalidRequestError":
        """The error for an argument that the client does not send at all."""
        found = {"code": "invalid_request", "detail": f"{field}: {message}"}
        return cls(HTTPStatus.BAD_REQUEST, {**found, "errors": [{"field": field, "message": message}]})


class UnauthenticatedError(ApiError):
    """There was no token, or the API refused it; `detail` says why."""


class TokenExpiredError(UnauthenticatedError):
    """The token has expired."""


class TicketInvalidError(ApiError):
    """The ticket does not prove that the channel's key asked for this task now; `detail` says why."""

    @property
    def numbers(self) -> int | None:
        """Up to which number the deposit covers the channel's tickets, if the ticket's number is the trouble."""
        return _count(self.members, "numbers")

    @property
    def granted(self) -> int | None:
        """Up to which number tickets can be used now, if the ticket's number is the trouble."""
        return _count(self.members, "granted")

    def is_early(self, number: int) -> bool:
        """Whether the deposit covers a number, but it can be used only after lower ones."""
        return self.granted is not None and self.numbers is not None and self.granted < number <= self.numbers


class InsufficientFundsError(ApiError):
    """The account has fewer credits than the call needs."""

    @property
    def available_micro(self) -> int | None:
        """What is available, in micro-credits."""
        return _amount(self.members, "available")

    @property
    def required_micro(self) -> int | None:
        """What is required, in micro-credits."""
        return _amount(self.members, "required")


class BondRequiredError(ApiError):
    """The owner's bond is below the minimum."""

    @property
    def bond_micro(self) -> int | None:
        """What is in the bond, in micro-credits."""
        return _amount(self.members, "bond")

    @property
    def required_micro(self) -> int | None:
        """What must be in it, in micro-credits."""
        return _amount(self.members, "required")


class MissingScopeError(ApiError):
    """The token lacks a scope."""

    @property
    def required_scope(self) -> str:
        """The scope that the token needs."""
        return _text(self.members, "required_scope")


class AccountFrozenError(ApiError):
    """An operator has frozen the account."""


class AgentNotAllowedError(ApiError):
    """The channel pays other agents only."""


class NotFoundError(ApiError):
    """It does not exist, or belongs to another account."""


class NotLoggedError(NotFoundError):
    """The receipt is not in the published log yet; `retry_after_s` says when to try again."""


class ConflictError(ApiError):
    """The call contradicts what is stored."""


class TaskConflictError(ConflictError):
    """The task id was used for another request."""


class TaskInProgressError(ConflictError):
    """The same task is running now."""


class MovementConflictError(ConflictError):
    """The id of a movement was used with another amount."""


class RegistrationConflictError(ConflictError):
    """The registration id was used for another agent."""


class AgentNotReadyError(ConflictError):
    """The agent takes no tasks; `state` says why."""

    @property
    def state(self) -> str:
        """The agent's state, or what its owner lacks."""
        return _text(self.members, "state")


class TermsChangedError(ConflictError):
    """The agent's terms are not those that the task pins."""


class VersionNotPublishedError(ConflictError):
    """The version was never published."""


class BondInUseError(ConflictError):
    """The bond cannot be released yet."""


class TicketUsedError(ConflictError):
    """The ticket's number was used for another task, or taken out of use when the channel closed."""


class ChannelClosedError(ConflictError):
    """The channel is closing or closed; `state` says which."""

    @property
    def state(self) -> str:
        """The channel's state."""
        return _text(self.members, "state")


class ChannelExpiredError(ConflictError):
    """The channel expires before the task could end."""


class ChannelConflictError(ConflictError):
    """The channel with this salt, key and ticket value was opened before with other terms."""


class PayloadTooLargeError(ApiError):
    """A part of the request is larger than its limit."""


class RefusedTermsError(ApiError):
    """The task's terms and the agent's do not fit together."""


class BudgetTooLowError(RefusedTermsError):
    """The budget is below the agent's least price."""

    @property
    def least_price_micro(self) -> int | None:
        """The least budget, in micro-credits."""
        return _amount(self.members, "least_price")


class JudgingTooDearError(RefusedTermsError):
    """The task's judge may cost more than the task allows."""


class ReputationTooLowError(RefusedTermsError):
    """The agent's score is below the required one."""


class TimeoutTooLongError(RefusedTermsError):
    """The timeout is longer than the API waits."""


class InputNotAcceptedError(RefusedTermsError):
    """The input does not meet the agent's contract: `errors` has the path of each fault."""


class TicketTooSmallError(RefusedTermsError):
    """The budget is more than the channel pays for one task."""

    @property
    def most_micro(self) -> int | None:
        """The most that one task may cost, in micro-credits."""
        return _amount(self.members, "most")


class TooManyRequestsError(ApiError):
    """The API is throttled, or the account has too many running tasks; `code` says which."""


class PlatformError(ApiError):
    """The platform failed, and repeating the call did not help."""


class FundingPausedError(PlatformError):
    """An operator has paused new tasks."""


class _Table:
    """Which error a problem becomes: by its code, otherwise by its status."""

    BY_CODE: ClassVar[Mapping[str, type[ApiError]]] = {
        "invalid_request": InvalidRequestError,
        "unauthenticated": UnauthenticatedError,
        "insufficient_funds": InsufficientFundsError,
        "bond_required": BondRequiredError,
        "missing_scope": MissingScopeError,
        "account_frozen": AccountFrozenError,
        "not_found": NotFoundError,
        "not_logged": NotLoggedError,
        "task_conflict": TaskConflictError,
        "task_in_progress": TaskInProgressError,
        "movement_conflict": MovementConflictError,
        "registration_conflict": RegistrationConflictError,
        "agent_not_ready": AgentNotReadyError,
        "terms_changed": TermsChangedError,
        "version_not_published": VersionNotPublishedError,
        "bond_in_use": BondInUseError,
        "payload_too_large": PayloadTooLargeError,
        "budget_too_low": BudgetTooLowError,
        "judging_too_dear": JudgingTooDearError,
        "reputation_too_low": ReputationTooLowError,
        "timeout_too_long": TimeoutTooLongError,
        "input_not_accepted": InputNotAcceptedError,
        "ticket_invalid": TicketInvalidError,
        "agent_not_allowed": AgentNotAllowedError,
        "ticket_used": TicketUsedError,
        "channel_closed": ChannelClosedError,
        "channel_expired": ChannelExpiredError,
        "channel_conflict": ChannelConflictError,
        "ticket_too_small": TicketTooSmallError,
        "throttled": TooManyRequestsError,
        "too_many_running": TooManyRequestsError,
        "funding_paused": FundingPausedError,
        "platform_unavailable": PlatformError,
        "internal_error": PlatformError,
        "answer_too_large": PlatformError,
    }
    BY_STATUS: ClassVar[Mapping[int, type[ApiError]]] = {
        400: InvalidRequestError,
        401: UnauthenticatedError,
        404: NotFoundError,
        409: ConflictError,
        413: PayloadTooLargeError,
        422: RefusedTermsError,
        429: TooManyRequestsError,
    }


def api_error(status: int, body: bytes, *, retry_after_s: float | None) -> ApiError:
    """The error for a response with a status of 400 or more. Its body may be anything."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    found: dict[str, Any] = document if isinstance(document, dict) else {}
    kind = _Table.BY_CODE.get(_text(found, "code")) or _Table.BY_STATUS.get(status)
    kind = kind or (PlatformError if status >= HTTPStatus.INTERNAL_SERVER_ERROR else ApiError)
    if kind is UnauthenticatedError and _EXPIRED in _text(found, "detail"):
        kind = TokenExpiredError
    return kind(status, found, retry_after_s=retry_after_s)


def plain(text: object, chars_max: int = DETAIL_CHARS_MAX) -> str:
    """A server's text in one bounded line that cannot control a terminal."""
    line = _CONTROL.sub(" ", str(text)).strip()
    return line if len(line) <= chars_max else f"{line[:chars_max]}…"


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    return plain(value) if isinstance(value, str) else ""


def _amount(document: Mapping[str, Any], name: str) -> int | None:
    try:
        return parse_credits(document.get(name))
    except ValueError:
        return None


def _count(document: Mapping[str, Any], name: str) -> int | None:
    value = document.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _fields(found: object) -> list[dict[str, str]]:
    faults = found if isinstance(found, list) else []
    return [
        {"field": _text(fault, "field"), "message": _text(fault, "message")}
        for fault in faults[: FAULTS_NAMED_MAX + 1]
        if isinstance(fault, dict)
    ]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown status"
