import json
import re
from collections.abc import Iterator

import pytest

from quittance import errors
from quittance.errors import (
    PROBLEM_TYPE_PREFIX,
    AccountFrozenError,
    AgentNotAllowedError,
    AgentNotReadyError,
    AnswerTooLargeError,
    BondInUseError,
    BondRequiredError,
    BondTooLowError,
    BudgetTooLowError,
    ChannelClosedError,
    ChannelConflictError,
    ChannelExpiredError,
    FundingPausedError,
    InputNotAcceptedError,
    InsufficientFundsError,
    InvalidRequestError,
    JudgingTooDearError,
    MissingScopeError,
    MovementConflictError,
    NotFoundError,
    NotLoggedError,
    PayloadTooLargeError,
    PayoutConflictError,
    PlatformUnavailableError,
    QuittanceError,
    RegistrationConflictError,
    ReputationTooLowError,
    RequestError,
    TaskConflictError,
    TaskInProgressError,
    TermsChangedError,
    TicketInvalidError,
    TicketTooSmallError,
    TicketUsedError,
    TimeoutTooLongError,
    TooManyRunningError,
    UnauthenticatedError,
    UnsupportedMediaTypeError,
    VersionNotPublishedError,
    problem,
)

# One of each, with the status and the members that clients act on.
REFUSALS: list[tuple[QuittanceError, int, dict[str, object]]] = [
    (
        InvalidRequestError(("budget", "is required"), ("x", "is not a known field")),
        400,
        {
            "errors": [
                {"field": "budget", "message": "is required"},
                {"field": "x", "message": "is not a known field"},
            ],
            "detail": "budget: is required; x: is not a known field",
        },
    ),
    (UnauthenticatedError(), 401, {}),
    (
        InsufficientFundsError(available_micro=100_000, required_micro=1_000_000),
        402,
        {"available": "0.1", "required": "1"},
    ),
    (BondRequiredError(bond_micro=1, minimum_micro=2), 402, {"bond": "0.000001", "required": "0.000002"}),
    (MissingScopeError("ledger:deposit"), 403, {"required_scope": "ledger:deposit"}),
    (AccountFrozenError(), 403, {"code": "account_frozen"}),
    (NotFoundError("There is no such task."), 404, {"detail": "There is no such task."}),
    (TaskConflictError("t-1"), 409, {"code": "task_conflict"}),
    (TaskInProgressError("t-1", retry_after_s=3), 409, {"code": "task_in_progress"}),
    (AgentNotReadyError("agt_1", "awaiting_upload"), 409, {"code": "agent_not_ready", "state": "awaiting_upload"}),
    (
        VersionNotPublishedError("agt_1", 2, state="awaiting_upload"),
        409,
        {"code": "version_not_published", "state": "awaiting_upload"},
    ),
    (BondTooLowError("agt_1"), 409, {"code": "agent_not_ready"}),
    (BondInUseError("why", retry_after_s=9), 409, {"code": "bond_in_use"}),
    (
        TermsChangedError("tariff_sha256", now="ab" * 32),
        409,
        {"errors": [{"field": "tariff_sha256", "message": f"must be {'ab' * 32}, or absent"}]},
    ),
    (JudgingTooDearError(judging_micro=2, most_micro=1), 422, {"judging": "0.000002"}),
    (MovementConflictError("d-1", recorded_micro=1), 409, {"code": "movement_conflict", "recorded": "0.000001"}),
    (RegistrationConflictError("r-1"), 409, {"code": "registration_conflict"}),
    (PayoutConflictError("p", state="paid"), 409, {"code": "payout_conflict", "state": "paid"}),
    (PayloadTooLargeError("input", bytes_max=5), 413, {"bytes_max": 5}),
    (UnsupportedMediaTypeError(), 415, {}),
    (BudgetTooLowError(budget_micro=1, least_micro=2), 422, {"least_price": "0.000002"}),
    (
        InputNotAcceptedError("input/a", "must be of type string", contract_sha256="0" * 64),
        422,
        {"errors": [{"field": "input/a", "message": "must be of type string"}], "contract_sha256": "0" * 64},
    ),
    (NotLoggedError(), 404, {"code": "not_logged"}),
    (ReputationTooLowError(score_tenths=451, least_tenths=500), 422, {"reputation": 45.1}),
    (TimeoutTooLongError(timeout_s_max=25, reason="tasks over HTTP are synchronous"), 422, {}),
    (TooManyRunningError(running_max=2, retry_after_s=3), 429, {"code": "too_many_running", "running_max": 2}),
    (FundingPausedError(), 503, {"code": "funding_paused"}),
    (AnswerTooLargeError(), 500, {"code": "answer_too_large"}),
    (PlatformUnavailableError(), 503, {}),
    (TicketInvalidError("it has expired"), 401, {"code": "ticket_invalid"}),
    (AgentNotAllowedError("chn_a", "agt_1"), 403, {"code": "agent_not_allowed"}),
    (TicketUsedError("chn_a", 7), 409, {"code": "ticket_used", "number": 7}),
    (ChannelClosedError("chn_a", state="closing"), 409, {"code": "channel_closed", "state": "closing"}),
    (ChannelExpiredError("chn_a"), 409, {"code": "channel_expired"}),
    (ChannelConflictError("chn_a"), 409, {"code": "channel_conflict"}),
    (TicketTooSmallError(budget_micro=2, most_micro=1), 422, {"code": "ticket_too_small", "most": "0.000001"}),
]


def _descendants(parent: type[QuittanceError]) -> Iterator[type[QuittanceError]]:
    for child in parent.__subclasses__():
        yield child
        yield from _descendants(child)


def test_every_refusal_that_can_be_raised_is_tested_here() -> None:
    raised = {kind for kind in _descendants(QuittanceError) if kind is not RequestError}
    assert raised == {type(error) for error, _, _ in REFUSALS}


@pytest.mark.parametrize(("error", "status", "members"), REFUSALS, ids=lambda value: type(value).__name__)
def test_a_refusal_is_a_problem_document(error: QuittanceError, status: int, members: dict[str, object]) -> None:
    """RFC 9457 §3.1, and an answer that JSON can hold."""
    found, body, headers = problem(error)
    assert body == json.loads(json.dumps(body))
    assert found == body["status"] == status
    assert body["type"] == PROBLEM_TYPE_PREFIX + body["code"]
    assert re.fullmatch(r"[a-z_]+", body["code"])
    assert all(isinstance(body[name], str) and body[name] for name in ("type", "title", "detail"))
    assert members.items() <= body.items()
    assert set(headers) <= {"Retry-After", "WWW-Authenticate"}


def test_problem_types_are_distinct() -> None:
    # A bond that cannot pay the agent's judge is one more reason why an agent takes no tasks.
    kinds = {type(error): error for error, _, _ in REFUSALS if not isinstance(error, BondTooLowError)}
    types = [problem(error)[1]["type"] for error in kinds.values()]
    assert len(set(types)) == len(types)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TaskInProgressError("t", retry_after_s=3), {"Retry-After": "3"}),
        (PlatformUnavailableError(), {"Retry-After": "2"}),
        (FundingPausedError(), {"Retry-After": "60"}),
        (TooManyRunningError(running_max=2, retry_after_s=3), {"Retry-After": "3"}),
        (PlatformUnavailableError(retry_after_s=0), {"Retry-After": "0"}),
        (UnauthenticatedError(), {"WWW-Authenticate": "Bearer"}),
        (
            UnauthenticatedError("The token has expired."),
            {"WWW-Authenticate": 'Bearer error="invalid_token", error_description="The token has expired."'},
        ),
        (
            MissingScopeError("ledger:deposit"),
            {"WWW-Authenticate": 'Bearer error="insufficient_scope", scope="ledger:deposit"'},
        ),
        (TicketInvalidError("it has expired"), {"WWW-Authenticate": "Payment-Ticket"}),
        (TaskConflictError("t"), {}),
    ],
)
def test_headers_tell_when_to_come_back_and_how_to_log_in(error: QuittanceError, expected: dict[str, str]) -> None:
    assert problem(error)[2] == expected


def test_a_field_that_is_over_a_limit_is_named() -> None:
    for error, field in (
        (PayloadTooLargeError("input_base64", bytes_max=1), "input_base64"),
        (BudgetTooLowError(budget_micro=1, least_micro=2), "budget"),
        (TicketTooSmallError(budget_micro=2, most_micro=1), "budget"),
        (ReputationTooLowError(score_tenths=451, least_tenths=500), "min_reputation"),
        (TimeoutTooLongError(timeout_s_max=1, reason="so"), "timeout"),
        (InputNotAcceptedError("input/a/0", "is wrong", contract_sha256=""), "input/a/0"),
    ):
        assert [wrong["field"] for wrong in problem(error)[1]["errors"]] == [field]


def test_the_drawn_tree_is_the_real_one() -> None:
    """Who reads the top of errors.py reads the truth: every class, its parent and its status."""
    drawn: dict[str, tuple[str, str | None]] = {}
    above = {-1: "Exception"}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"(?P<lead>[│ ├└─]*)(?P<name>\w+Error)(?:\s+(?P<status>[0-9]{3}))?\b", line)
        if found:
            depth = len(found["lead"]) // 4
            above[depth] = found["name"]
            drawn[found["name"]] = (above[depth - 1], found["status"])
    statuses = {type(error): str(status) for error, status, _ in REFUSALS}
    real = {
        kind.__name__: (kind.__mro__[1].__name__, statuses.get(kind))
        for kind in (QuittanceError, *_descendants(QuittanceError))
    }
    assert drawn == real


def test_the_caller_can_mend_everything_but_an_outage() -> None:
    for error, status, _ in REFUSALS:
        assert isinstance(error, RequestError) == (status < 500)
