"""Every call of a user or an owner, each defined once."""

import base64
import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypedDict, Unpack
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, Field

from quittance import canonical_json
from quittance.acceptance.contract import Contract, contract_json
from quittance.acceptance.rules import Rules, rules_json
from quittance.agent import AgentState, VersionState
from quittance.api.models import (
    AccountAnswer,
    AgentAnswer,
    AgentCard,
    AgentLimits,
    AgentPage,
    AgentUpload,
    BondAnswer,
    BondMoveAnswer,
    DepositAnswer,
    LimitsChange,
    PriceEstimate,
    RunAnswer,
    RunPage,
    RunWithLog,
    StatementLine,
    StatementPage,
    TaskInput,
    TaskJudges,
    TaskLine,
    TaskPage,
    TaskPending,
    TaskResult,
    TaskShare,
    UploadForm,
    VersionAnswer,
    VersionPage,
    WithdrawalAnswer,
)
from quittance.client._binding import Bound, Listing, Operation, Pages
from quittance.client._calls import about, json_text, parsed, segment
from quittance.client._errors import (
    ApiError,
    InvalidRequestError,
    PublishFailedError,
    StillRunningError,
    TaskInProgressError,
    TimeoutTooLongError,
    TokenError,
    UnexpectedAnswerError,
    UploadFailedError,
    plain,
)
from quittance.client._retry import retry_after_s
from quittance.client._verify import Expected, Verifier, decoded
from quittance.client._wire import Answer, Flow, Pause, Request, Upload, checked_url, host_of, is_loopback
from quittance.ledger.credits import format_credits, parse_change, parse_credits
from quittance.ledger.escrow import JUDGE_MARK
from quittance.ledger.pricing import FlatTariff, MeteredTariff
from quittance.limits import (
    COMPILE_WALL_SECONDS_MAX,
    MODULE_BYTES_MAX,
    PAGE_ITEMS_MAX,
    QUEUE_WAIT_MS_MAX,
    TIMEOUT_S_ASYNC_MAX,
    TIMEOUT_S_SYNC_MAX,
    UPLOAD_SECONDS_MAX,
)
from quittance.proof.card import VerifiedCard
from quittance.proof.log import Proof
from quittance.proof.verify import Report

Credits = str | int | Decimal
"""An amount of credits, such as "0.05". Floats are refused: they are not exact."""
Progress = Callable[[int, int], None]
"""Hears how many bytes of how many were sent. After a failed attempt it starts again from 0."""
Module = bytes | str | os.PathLike[str]
"""A module's bytes, or the path of its file."""
Moment = datetime | str
"""A time with its zone, or its text (RFC 3339), such as "2026-11-30T12:00:00Z"."""


class Pins(TypedDict, total=False):
    """Digests of what a task expects of its agent. It is refused if the agent's are others by now."""

    module_sha256: str | None
    tariff_sha256: str | None
    rules_sha256: str | None


class TaskTerms(Pins, total=False):
    """What a task may ask for beside its agent, input and budget; see docs/using.md.

    `timeout` is the agent's, in whole seconds: over 25, the task is queued. With `keep_input`, the payer can read the
    input again with `task_input`. `share` says what the agent's owner may see: `{"payer": True, "log": True}`.
    """

    timeout: int | None
    acceptance: Rules | Mapping[str, Any] | None
    min_reputation: float | Decimal | None
    max_judging: Credits | None
    webhook: str | None
    keep_input: bool | None
    share: TaskShare | Mapping[str, bool] | None


class AgentTerms(TypedDict, total=False):
    """An agent's terms. Those that are absent stay as they are."""

    tariff: FlatTariff | MeteredTariff | Mapping[str, Any] | None
    limits: AgentLimits | LimitsChange | Mapping[str, Any] | None
    acceptance: Rules | Mapping[str, Any] | None
    task_judges: TaskJudges | Mapping[str, Any] | Literal["refused"] | None


class VersionTerms(AgentTerms, total=False):
    """The terms and the contract of a version. A new agent needs a tariff; a new version keeps what is absent.

    The contract says what the agent takes and gives; its examples are run when the version is published.
    """

    contract: Contract | Mapping[str, Any] | None


class AgentFilters(TypedDict, total=False):
    """Which agents, and in which order: `q` are words of name, description or tags; see docs/agents.md.

    Only `owner` alone lists agents that take no tasks too.
    """

    owner: str | None
    q: str | None
    tag: str | None
    max_price: Credits | None
    min_score: float | Decimal | None
    min_success_rate: float | Decimal | None
    sort: Literal["newest", "price", "score", "success_rate"] | None


class RunFilters(TypedDict, total=False):
    """Which runs: those settled at `since` or later and before `until`, all or only those that were paid or not."""

    outcome: Literal["succeeded", "failed"] | None
    since: Moment | None
    until: Moment | None


class TaskFilters(TypedDict, total=False):
    """Which tasks: those funded at `since` or later and before `until`, of one agent, in one state."""

    agent_id: str | None
    state: Literal["pending", "succeeded", "failed"] | None
    since: Moment | None
    until: Moment | None


class PublishedVersion(VersionAnswer):
    """A version that was published: `number` names it, and `state` is `inactive` if another one is active by now."""

    agent_id: str = Field(description="The agent's id.")


@dataclass(frozen=True, slots=True)
class CsvPage:
    """A part of a statement as CSV, with a line of names; `next` is `after` of the following part."""

    text: str
    next: str | None


WAIT_S_MAX: Final = TIMEOUT_S_ASYNC_MAX + QUEUE_WAIT_MS_MAX / 1_000 + 300.0
"""Every task is settled or refunded before: the longest run, the time in the queue, and what the sweep needs."""
PUBLISH_S_MAX: Final = 4 * COMPILE_WALL_SECONDS_MAX
POLL_S_MIN: Final = 0.5
POLL_S_MAX: Final = 10.0
POLL_GROWTH: Final = 1.5
_S3_ERROR_BYTES_MAX: Final = 4_096
_S3_CODE: Final = re.compile(rb"<Code>([A-Za-z]{1,100})</Code>")
ASYNC: Final = {"Prefer": "respond-async"}
_CSV: Final = "text/csv"
_CSV_END: Final = "\r\n"
_LINK: Final = re.compile(r'<([^<>]{0,8000})>\s*;\s*rel="?next"?')
_NUMBERS: Final = ("min_score", "min_success_rate")
_MOMENTS: Final = ("since", "until")
_UNDECIDED: Final = frozenset({VersionState.AWAITING_UPLOAD, VersionState.PUBLISHING})
_PUBLISHED: Final = frozenset({VersionState.ACTIVE, VersionState.INACTIVE})


def new_id() -> str:
    """An id for a task or a movement that nobody else has."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Asked:
    """A task as it is sent, and what is expected of its receipt."""

    task_id: str
    body: Mapping[str, Any] = field(repr=False)
    expected: Expected = field(repr=False)


def asked(agent_id: str, value: object, budget: Credits, task_id: str | None, terms: TaskTerms) -> Asked:
    """A task as it is sent. Raises InvalidRequestError."""
    stdin = input_bytes(value)
    wanted = _members(terms)
    if "max_judging" in wanted:
        wanted["max_judging"] = amount_text("max_judging", wanted["max_judging"])
    body: dict[str, Any] = {
        "task_id": task_id or new_id(),
        "agent_id": agent_id,
        "budget": amount_text("budget", budget),
        **_stdin_field(stdin),
        **wanted,
    }
    expected = Expected(
        agent_id=agent_id,
        input=stdin,
        budget_micro=parse_credits(body["budget"]),
        module_sha256=wanted.get("module_sha256"),
        tariff_sha256=wanted.get("tariff_sha256"),
        rules_sha256=wanted.get("rules_sha256"),
    )
    return Asked(body["task_id"], body, expected)


def input_bytes(value: object) -> bytes:
    """What an agent reads for an input: bytes as they are, text in UTF-8, any other value as compact JSON.

    Raises InvalidRequestError.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    try:
        return (value if isinstance(value, str) else json_text(value)).encode()
    except UnicodeEncodeError:
        raise InvalidRequestError.of(field="input", message="must not hold half of a surrogate pair") from None
    except ValueError as exc:
        raise InvalidRequestError.of(field="input", message=str(exc)) from None


def _stdin_field(stdin: bytes) -> dict[str, str]:
    """The input as text, or as base64 if it is not UTF-8 or shorter so."""
    try:
        text = stdin.decode()
    except UnicodeDecodeError:
        return {"input_base64": base64.b64encode(stdin).decode()}
    if _spelt_bytes(text) > len(stdin) * 4 // 3 + 4:
        return {"input_base64": base64.b64encode(stdin).decode()}
    return {"input": text}


def _spelt_bytes(text: str) -> int:
    """About how many bytes the JSON of a text takes: an escape takes six, a quotation mark two."""
    return len(text.encode("ascii", errors="backslashreplace")) + 5 * sum(map(text.count, map(chr, range(32))))


def _members(terms: TaskTerms | VersionTerms | AgentTerms) -> dict[str, Any]:
    """The terms that are given, as members of a request: models as JSON, numbers with their digits."""
    return {name: _member(value) for name, value in terms.items() if value is not None}


def _registration(name: str, description: str, terms: AgentTerms) -> dict[str, Any]:
    """The request that registers an agent, with a new id: every repeat of it returns the same agent."""
    return {"registration_id": f"reg-{uuid.uuid4().hex}", "name": name, "description": description, **_members(terms)}


def _member(value: object) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, Rules):
        return canonical_json.read(rules_json(value))
    if isinstance(value, Contract):
        return canonical_json.read(contract_json(value))
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return value


def amount_text(name: str, amount: object, *, change: bool = False) -> str:
    """An amount as it is sent. Raises InvalidRequestError."""
    try:
        return format_credits(parse_change(amount) if change else parse_credits(amount))
    except ValueError as exc:
        raise InvalidRequestError.of(field=name, message=str(exc)) from None


def _query(filters: AgentFilters | RunFilters | TaskFilters) -> dict[str, object]:
    """Filters as parameters of a query. Raises InvalidRequestError."""
    found: dict[str, object] = {name: value for name, value in filters.items() if value is not None}
    if "max_price" in found:
        found["max_price"] = amount_text("max_price", found["max_price"])
    for name in _NUMBERS:
        if isinstance(value := found.get(name), float | Decimal):
            found[name] = f"{Decimal(str(value)):f}"
    for name in _MOMENTS:
        if isinstance(value := found.get(name), datetime):
            found[name] = moment_text(name, value)
    return found


def moment_text(name: str, moment: Moment) -> str:
    """A time as it is sent. Raises InvalidRequestError."""
    if isinstance(moment, str):
        return moment
    if moment.tzinfo is None:
        raise InvalidRequestError.of(field=name, message="must have a time zone, such as datetime.UTC")
    return moment.isoformat()


class TaskMethods(Bound):
    """Tasks and their receipts."""

    _verifier: Verifier | None

    @Operation
    def execute(
        self,
        agent_id: str,
        input: object,  # noqa: A002 - the API's name
        *,
        budget: Credits,
        task_id: str | None = None,
        within: float = WAIT_S_MAX,
        **terms: Unpack[TaskTerms],
    ) -> Flow[TaskResult]:
        """Run an agent, pay it if it succeeds, and return the settled task, however long that takes.

        `input` is bytes, text, or any JSON value. A task that fails is an answer too: look at `success`. The same
        `task_id` and arguments never run or cost twice; the client chooses an id if there is none. `within` is how
        many seconds you wait for the outcome: then StillRunningError names the task. See TaskTerms for the rest.

        Raises an ApiError if the task is refused, ConnectionFailedError, TokenError, NotProvenError.

        Example:
            >>> done = client.execute(agent, {"text": "to be or not to be"}, budget="0.05")
            >>> done.success, done.output
            (True, '{"text":"to be or not to be"}')
            >>> format_credits(done.amount_paid_micro), format_credits(done.fee_micro)
            ('0.00975', '0.00025')
        """
        task = asked(agent_id, input, budget, task_id, terms)
        with about(task.task_id):
            deadline = self._core.sender.deadline(within)
            first = yield from self._executed(task, queued=(terms.get("timeout") or 0) > TIMEOUT_S_SYNC_MAX)
            result = first if isinstance(first, TaskResult) else (yield from self._settled(task.task_id, deadline))
            return (yield from self._checked(result, task.task_id, task.expected))

    @Operation
    def submit(
        self,
        agent_id: str,
        input: object,  # noqa: A002 - the API's name
        *,
        budget: Credits,
        task_id: str | None = None,
        **terms: Unpack[TaskTerms],
    ) -> Flow[TaskPending | TaskResult]:
        """Fund a task and queue it: the answer comes at once. If the task is settled already, it is the result.

        The arguments and errors are those of `execute`.

        Example:
            >>> pending = client.submit(agent, "hello", budget="0.05", task_id="greeting-1")
            >>> client.wait(pending.task_id).output
            'hello'
        """
        task = asked(agent_id, input, budget, task_id, terms)
        with about(task.task_id):
            found = yield from self._executed(task, queued=True)
            if isinstance(found, TaskPending):
                return found
            return (yield from self._checked(found, task.task_id, task.expected))

    @Operation
    def result(self, task_id: str, *, user: str | None = None) -> Flow[TaskResult | TaskPending]:
        """The outcome of a task as it is now: settled, or pending. An agent's owner names the `user` whose task it is.

        Example:
            >>> client.result("greeting-1").success
            True
        """
        with about(task_id):
            found, _ = yield from self._outcome(task_id, user)
            if isinstance(found, TaskPending):
                return found
            return (yield from self._checked(found, task_id, Expected()))

    @Operation
    def wait(self, task_id: str, *, within: float = WAIT_S_MAX) -> Flow[TaskResult]:
        """Wait until a task is settled. Raises StillRunningError after `within` seconds.

        Example:
            >>> client.wait("greeting-1", within=60).escrow_status.value
            'released'
        """
        with about(task_id):
            result = yield from self._settled(task_id, self._core.sender.deadline(within))
            return (yield from self._checked(result, task_id, Expected()))

    @Operation
    def proof(self, task_id: str, *, user: str | None = None, since: int | None = None) -> Flow[Proof]:
        """The proof that a task's receipt is in the log, and with `since` that the log of that size is its beginning.

        Raises NotLoggedError until the sweep has appended the receipt, usually within two minutes.

        Example:
            >>> proof = client.proof("greeting-1")
            >>> proof.leaf_index < proof.tree_size
            True
        """
        path = f"/tasks/{segment(task_id, 'task_id')}/proof"
        with about(task_id):
            return (yield from self._core.read(Proof, path, user=user, since=since))

    @Operation
    def verify(
        self,
        result: TaskResult,
        *,
        input: object = None,  # noqa: A002 - the API's name
    ) -> Flow[Report]:
        """Check a result's receipt now, with the client's verifier or else with the API's keys. Raises NotProvenError.

        With `input`, also that the agent read it.

        Example:
            >>> client.verify(client.wait("greeting-1"), input="hello").exit_status
            0
        """
        stdin = None if input is None else input_bytes(input)
        return (yield from (self._verifier or Verifier()).check(self._core, result, Expected(input=stdin)))

    @Operation
    def task_input(self, task_id: str, *, sha256: str | None = None) -> Flow[bytes]:
        """What the agent of a task read, to the byte, if the task had `keep_input`. Only its payer can read it.

        The bytes are compared with the digest that the API states, and with `sha256` if you know what it must be, for
        example from the task's result. Raises NotFoundError if they were not kept, UnexpectedAnswerError.

        Example:
            >>> done = client.execute(agent, {"n": 1}, budget="0.05", keep_input=True)
            >>> client.task_input(done.task_id, sha256=done.input_sha256)
            b'{"n":1}'
        """
        path = f"/tasks/{segment(task_id, 'task_id')}/input"
        with about(task_id):
            answer = yield from self._core.read(TaskInput, path)
            data = decoded(answer.input, answer.input_base64, "input")
            found = hashlib.sha256(data or b"").hexdigest()
            if data is None or {found} != {found, answer.input_sha256, sha256 or found}:
                msg = "The API answers with another input than the one that the agent read."
                raise UnexpectedAnswerError(msg)
            return data

    @Operation
    def tasks_page(
        self, *, limit: int | None = None, after: str | None = None, **filters: Unpack[TaskFilters]
    ) -> Flow[TaskPage]:
        """A page of the caller's tasks, newest first. A task is listed some seconds after it is funded or settled.

        Example:
            >>> client.tasks_page(state="succeeded", limit=1).tasks[0].task_id
            'greeting-1'
        """
        return (yield from self._core.read(TaskPage, "/tasks", **_query(filters), limit=limit, after=after))

    @Listing
    def tasks(self, *, page_size: int | None = None, **filters: Unpack[TaskFilters]) -> Pages[TaskLine]:
        """All tasks of the caller, newest first; see TaskFilters.

        Example:
            >>> [task.task_id for task in client.tasks(agent_id=agent, since="2026-01-01T00:00:00Z")]
            ['greeting-1']
        """
        query = _query(filters)

        def page(after: str | None) -> Flow[tuple[list[TaskLine], str | None]]:
            found = yield from self._core.read(TaskPage, "/tasks", **query, limit=page_size, after=after)
            return found.tasks, found.next

        return page

    def _executed(self, task: Asked, *, queued: bool) -> Flow[TaskResult | TaskPending]:
        """What the API answers to a task; one that would take too long to wait for is queued instead."""
        headers = ASYNC if queued else {}
        try:
            answer = yield from self._core.call("POST", "/tasks/execute", body=task.body, headers=headers)
        except TimeoutTooLongError:
            if queued:
                raise
            return (yield from self._executed(task, queued=True))
        except TaskInProgressError:  # an attempt of ours, whose answer was lost, or somebody with our id and request
            found, _ = yield from self._outcome(task.task_id, None)
            return found
        return task_answer(answer)

    def _outcome(self, task_id: str, user: str | None) -> Flow[tuple[TaskResult | TaskPending, float]]:
        """A task's outcome, and in how many seconds to ask again if it is pending."""
        path = f"/tasks/{segment(task_id, 'task_id')}/result"
        answer = yield from self._core.call("GET", path, query={"user": user})
        return task_answer(answer), retry_after_s(answer.headers, now=self._core.sender.timing.now()) or 0.0

    def _settled(self, task_id: str, deadline: float) -> Flow[TaskResult]:
        timing, pause_s = self._core.sender.timing, POLL_S_MIN
        while True:
            found, after_s = yield from self._outcome(task_id, None)
            if isinstance(found, TaskResult):
                return found
            left_s = deadline - timing.monotonic()
            if left_s <= 0:
                raise StillRunningError(task_id)
            yield Pause(min(max(pause_s, min(after_s, POLL_S_MAX)), left_s))
            pause_s = min(pause_s * POLL_GROWTH, POLL_S_MAX)

    def _checked(self, result: TaskResult, task_id: str, expected: Expected) -> Flow[TaskResult]:
        """The result, if it is of this task, and its receipt proves it if the client verifies receipts."""
        if (
            result.task_id != task_id and JUDGE_MARK not in task_id
        ):  # a judge's task is named by the task that it judges
            msg = f"The API answers with the result of the task {plain(result.task_id, 200)!r} instead of {task_id!r}."
            raise UnexpectedAnswerError(msg)
        if self._verifier is not None:
            yield from self._verifier.check(self._core, result, expected)
        return result


def task_answer(answer: Answer) -> TaskResult | TaskPending:
    """What the API answers to a task."""
    return parsed(answer, TaskPending) if answer.status == HTTPStatus.ACCEPTED else parsed(answer, TaskResult)


class AccountMethods(Bound):
    """The caller's account, and its bond."""

    @Operation
    def balance(self) -> Flow[AccountAnswer]:
        """What the account has: available, held and earned credits.

        Example:
            >>> format_credits(client.balance().available_micro)
            '5'
        """
        return (yield from self._core.read(AccountAnswer, "/accounts/me"))

    @Operation
    def statement_page(self, *, limit: int | None = None, after: str | None = None) -> Flow[StatementPage]:
        """A page of the account's movements, newest first; `next` of a page is `after` of the following one.

        Example:
            >>> client.statement_page(limit=2).lines[0].kind.value
            'task'
        """
        return (yield from self._core.read(StatementPage, "/accounts/me/statement", limit=limit, after=after))

    @Listing
    def statement(self, *, page_size: int | None = None) -> Pages[StatementLine]:
        """All movements of the account, newest first; further pages are read when they are needed.

        Example:
            >>> sum(line.amount_micro for line in client.statement()) == client.balance().available_micro
            True
        """
        return lambda after: self._lines("/accounts/me/statement", page_size, after)

    @Operation
    def statement_csv_page(self, *, limit: int | None = None, after: str | None = None) -> Flow[CsvPage]:
        """A page of the statement as CSV (RFC 4180), newest movement first, with a line of names.

        Example:
            >>> client.statement_csv_page(limit=1).text.splitlines()[0]
            'at,kind,id,amount,agent_id,tasks,escrow_status,due,payout'
        """
        return (yield from self._csv(limit, after))

    @Listing
    def statement_csv(self, *, page_size: int | None = None) -> Pages[str]:
        """The whole statement as lines of CSV without their ends, newest movement first, after one line of names.

        Example:
            >>> import csv
            >>> [line["kind"] for line in csv.DictReader(client.statement_csv())]
            ['task', 'deposit']
        """
        names: list[str] = []

        def page(after: str | None) -> Flow[tuple[list[str], str | None]]:
            found = yield from self._csv(page_size, after)
            head, *lines = found.text.removesuffix(_CSV_END).split(_CSV_END)
            if not names:
                names.append(head)
                return [head, *lines], found.next
            if names != [head]:
                msg = "The columns of the statement changed between two pages. Read it again."
                raise UnexpectedAnswerError(msg)
            return lines, found.next

        return page

    @Operation
    def deposit(self, amount: Credits, *, account: str = "me", deposit_id: str | None = None) -> Flow[DepositAnswer]:
        """Add credits to an account; needs the scope `ledger:deposit`. The same id never counts twice.

        Example:
            >>> bank.deposit("5", account="alice", deposit_id="invoice-7").account_id
            'alice'
        """
        body = {"deposit_id": deposit_id or new_id(), "amount": amount_text("amount", amount)}
        path = f"/accounts/{segment(account, 'account')}/deposits"
        with about(body["deposit_id"]):
            return parsed((yield from self._core.call("POST", path, body=body)), DepositAnswer)

    @Operation
    def withdraw(self, amount: Credits, *, withdrawal_id: str | None = None) -> Flow[WithdrawalAnswer]:
        """Take credits out of the account; the operator pays them out. The same id never counts twice.

        Example:
            >>> client.withdraw("0.5", withdrawal_id="june").state.value
            'requested'
        """
        body = {"withdrawal_id": withdrawal_id or new_id(), "amount": amount_text("amount", amount)}
        with about(body["withdrawal_id"]):
            return parsed((yield from self._core.call("POST", "/accounts/me/withdrawals", body=body)), WithdrawalAnswer)

    @Operation
    def bond(self) -> Flow[BondAnswer]:
        """What stands for the failures of one's agents.

        Example:
            >>> format_credits(client.bond().minimum_micro)
            '1'
        """
        return (yield from self._core.read(BondAnswer, "/accounts/me/bond"))

    @Operation
    def move_bond(self, amount: Credits, *, bond_id: str | None = None) -> Flow[BondMoveAnswer]:
        """Move credits from the account into the bond; a negative amount releases them. The same id never counts twice.

        Example:
            >>> client.move_bond("2", bond_id="first").bond_id
            'first'
        """
        body = {"bond_id": bond_id or new_id(), "amount": amount_text("amount", amount, change=True)}
        with about(body["bond_id"]):
            return parsed((yield from self._core.call("POST", "/accounts/me/bond", body=body)), BondMoveAnswer)

    @Operation
    def bond_statement_page(self, *, limit: int | None = None, after: str | None = None) -> Flow[StatementPage]:
        """A page of the bond's movements, newest first.

        Example:
            >>> client.bond_statement_page(limit=1).lines[0].kind.value
            'bond'
        """
        return (yield from self._core.read(StatementPage, "/accounts/me/bond/statement", limit=limit, after=after))

    @Listing
    def bond_statement(self, *, page_size: int | None = None) -> Pages[StatementLine]:
        """All movements of the bond, newest first.

        Example:
            >>> [format_credits(line.amount_micro) for line in client.bond_statement()]
            ['2']
        """
        return lambda after: self._lines("/accounts/me/bond/statement", page_size, after)

    @Operation
    def access_token(self) -> Flow[str]:
        """A token that is valid now. With a device flow, this signs in. Raises TokenError.

        Example:
            >>> client.access_token() == token
            True
        """
        found = yield from self._core.tokens.token(self._core.sender, self._core.sender.deadline())
        if found is None:
            msg = "The client has no source of tokens."
            raise TokenError(msg)
        return found

    def _csv(self, limit: int | None, after: str | None) -> Flow[CsvPage]:
        headers = {"Accept": f"{_CSV}, application/problem+json"}
        query = {"limit": limit, "after": after}
        answer = yield from self._core.call("GET", "/accounts/me/statement.csv", query=query, headers=headers)
        try:
            text = answer.body.decode()
        except UnicodeDecodeError:
            text = ""
        if answer.headers.get("content-type", "").partition(";")[0].strip().lower() != _CSV or not text:
            msg = "The answer is no CSV of this API. Check the address, or update quittance-client."
            raise UnexpectedAnswerError(msg)
        return CsvPage(text, _next_of(answer))

    def _lines(self, path: str, limit: int | None, after: str | None) -> Flow[tuple[list[StatementLine], str | None]]:
        page = yield from self._core.read(StatementPage, path, limit=limit, after=after)
        return page.lines, page.next


def _next_of(answer: Answer) -> str | None:
    """The cursor in the link to the next page. Only the cursor is taken: the link may lead anywhere."""
    link = _LINK.search(answer.headers.get("link", ""))
    if link is None:
        return None
    try:
        found = parse_qs(urlsplit(link[1]).query).get("after")
    except ValueError:
        found = None
    if not found:
        msg = "The API links to a next page without saying where it begins."
        raise UnexpectedAnswerError(msg)
    return found[0]


class AgentMethods(Bound):
    """Agents: what anyone may read, and what their owners do."""

    _verifier: Verifier | None

    @Operation
    def page(
        self, *, limit: int | None = None, after: str | None = None, **filters: Unpack[AgentFilters]
    ) -> Flow[AgentPage]:
        """A page of agents: those that take tasks, or all of an owner's, or those that a search finds.

        Example:
            >>> client.agents.page(owner=me, limit=1).agents[0].name
            'echo'
        """
        return (yield from self._core.read(AgentPage, "/agents", **_query(filters), limit=limit, after=after))

    @Listing
    def list(self, *, page_size: int | None = None, **filters: Unpack[AgentFilters]) -> Pages[AgentAnswer]:
        """All agents that take tasks, or all of an owner's, newest first; or those that a search finds, in its order.

        Example:
            >>> [found.name for found in client.agents.list(owner=me)]
            ['echo']
            >>> [found.name for found in client.agents.list(q="no such words", max_price="0.02", sort="score")]
            []
        """
        query = _query(filters)

        def page(after: str | None) -> Flow[tuple[list[AgentAnswer], str | None]]:
            found = yield from self._core.read(AgentPage, "/agents", **query, limit=page_size, after=after)
            return found.agents, found.next

        return page

    @Operation
    def get(self, agent_id: str) -> Flow[AgentAnswer]:
        """An agent: its terms, its state, its reputation.

        Example:
            >>> client.agents.get(agent).state.value
            'active'
        """
        return (yield from self._core.read(AgentAnswer, f"/agents/{segment(agent_id, 'agent_id')}"))

    @Operation
    def estimate(self, agent_id: str) -> Flow[PriceEstimate]:
        """What a task of the agent may cost, and the digests of its terms, to pin them in a task.

        Example:
            >>> estimate = client.agents.estimate(agent)
            >>> done = client.execute(agent, "hello", budget="0.05", tariff_sha256=estimate.tariff_sha256)
            >>> done.success
            True
        """
        return (yield from self._core.read(PriceEstimate, f"/agents/{segment(agent_id, 'agent_id')}/estimate"))

    @Operation
    def pins(self, agent_id: str) -> Flow[Pins]:
        """The digests of an agent's module, tariff and rules now, for a task that must get these and no others.

        Example:
            >>> client.execute(agent, "hello", budget="0.05", **client.agents.pins(agent)).success
            True
        """
        found = yield from self._core.read(PriceEstimate, f"/agents/{segment(agent_id, 'agent_id')}/estimate")
        return Pins(
            module_sha256=found.module_sha256, tariff_sha256=found.tariff_sha256, rules_sha256=found.rules_sha256
        )

    @Operation
    def card(self, agent_id: str) -> Flow[AgentCard]:
        """What an agent takes, gives and costs: its contract, with examples, and its terms.

        The contract is the one that its digest names. Raises NotFoundError without an active version.

        Example:
            >>> client.agents.card(agent).version
            1
        """
        answer = yield from self._core.call("GET", f"/agents/{segment(agent_id, 'agent_id')}/card")
        found = parsed(answer, AgentCard)
        if _contract_sha256(answer.body) != found.contract_sha256:
            msg = f"The contract on the card of the agent {agent_id!r} is not the one that its digest names."
            raise UnexpectedAnswerError(msg)
        return found

    @Operation
    def a2a_card(self, agent_id: str) -> Flow[VerifiedCard]:
        """An agent's card for the Agent2Agent protocol, verified with the root keys. Raises CardNotProvenError.

        The keys are those of the client's verifier, or else those that the API publishes.

        Example:
            >>> client.agents.a2a_card(agent).card["name"]
            'echo'
        """
        path = f"/agents/{segment(agent_id, 'agent_id')}/.well-known/agent-card.json"
        answer = yield from self._core.call("GET", path, signed=False)
        return (yield from (self._verifier or Verifier()).check_card(self._core, answer.body, agent_id))

    @Operation
    def versions_page(self, agent_id: str, *, limit: int | None = None, after: str | None = None) -> Flow[VersionPage]:
        """A page of an agent's versions, newest first.

        Example:
            >>> client.agents.versions_page(agent, limit=1).versions[0].number
            1
        """
        path = f"/agents/{segment(agent_id, 'agent_id')}/versions"
        return (yield from self._core.read(VersionPage, path, limit=limit, after=after))

    @Listing
    def versions(self, agent_id: str, *, page_size: int | None = None) -> Pages[VersionAnswer]:
        """All versions of an agent, newest first, with their states and terms.

        Example:
            >>> [(version.number, version.state.value) for version in client.agents.versions(agent)]
            [(1, 'active')]
        """
        path = f"/agents/{segment(agent_id, 'agent_id')}/versions"

        def page(after: str | None) -> Flow[tuple[list[VersionAnswer], str | None]]:
            found = yield from self._core.read(VersionPage, path, limit=page_size, after=after)
            return found.versions, found.next

        return page

    @Operation
    def activate(self, agent_id: str, number: int) -> Flow[AgentAnswer]:
        """Activate an earlier or later published version, with the terms that it last had. Repeating changes nothing.

        Tasks that are funded keep the version that they were funded for. Raises VersionNotPublishedError.

        Example:
            >>> client.agents.activate(agent, 1).version
            1
        """
        path = f"/agents/{segment(agent_id, 'agent_id')}/versions/{_whole('number', number)}/activate"
        return parsed((yield from self._core.call("POST", path)), AgentAnswer)

    @Operation
    def update(
        self,
        agent_id: str,
        *,
        name: str | None = None,
        description: str | None = None,
        **terms: Unpack[AgentTerms],
    ) -> Flow[AgentAnswer]:
        """Change an agent's name or description, or the terms of its active version, without an upload.

        What is absent stays as it is, also each single limit. Tasks that are funded keep their terms. Raises
        InvalidRequestError without any change.

        Example:
            >>> changed = client.agents.update(agent, description="Gives back.", limits={"timeout": 5})
            >>> changed.description, changed.limits.timeout
            ('Gives back.', 5)
        """
        named = {"name": name, "description": description}
        body = {**{member: value for member, value in named.items() if value is not None}, **_members(terms)}
        answer = yield from self._core.call("PATCH", f"/agents/{segment(agent_id, 'agent_id')}", body=body)
        return parsed(answer, AgentAnswer)

    @Operation
    def runs_page(
        self, agent_id: str, *, limit: int | None = None, after: str | None = None, **filters: Unpack[RunFilters]
    ) -> Flow[RunPage]:
        """A page of the settled runs of one's agent, newest first. A run is listed some seconds after it.

        Example:
            >>> client.agents.runs_page(agent, outcome="failed").runs
            []
        """
        path = f"/agents/{segment(agent_id, 'agent_id')}/runs"
        return (yield from self._core.read(RunPage, path, **_query(filters), limit=limit, after=after))

    @Listing
    def runs(self, agent_id: str, *, page_size: int | None = None, **filters: Unpack[RunFilters]) -> Pages[RunAnswer]:
        """All settled runs of one's agent, newest first; see RunFilters.

        Example:
            >>> [(run.outcome.value, run.success) for run in client.agents.runs(agent)]
            [('succeeded', True)]
        """
        path, query = f"/agents/{segment(agent_id, 'agent_id')}/runs", _query(filters)

        def page(after: str | None) -> Flow[tuple[list[RunAnswer], str | None]]:
            found = yield from self._core.read(RunPage, path, **query, limit=page_size, after=after)
            return found.runs, found.next

        return page

    @Operation
    def run(self, agent_id: str, run_id: str) -> Flow[RunWithLog]:
        """One settled run of one's agent, with its log if the payer shares that.

        Example:
            >>> newest = next(client.agents.runs(agent))
            >>> client.agents.run(agent, newest.run_id).fuel_used == newest.fuel_used
            True
        """
        path = f"/agents/{segment(agent_id, 'agent_id')}/runs/{segment(run_id, 'run_id')}"
        return (yield from self._core.read(RunWithLog, path))

    @Operation
    def register(
        self,
        name: str,
        *,
        description: str = "",
        **terms: Unpack[VersionTerms],
    ) -> Flow[AgentUpload]:
        """Register an agent; the answer has the form for its module. `publish` does all of it.

        An id of its own makes each call safe to repeat: a lost answer leaves no second agent.

        Example:
            >>> opened = client.agents.register("echo", tariff={"type": "flat", "price": "0.01"})
            >>> opened.state.value
            'awaiting_upload'
        """
        body = _registration(name, description, terms)
        return parsed((yield from self._core.call("POST", "/agents", body=body)), AgentUpload)

    @Operation
    def open_version(
        self,
        agent_id: str,
        **terms: Unpack[VersionTerms],
    ) -> Flow[AgentUpload]:
        """Open the upload of a new version; terms that are absent stay as they are.

        Example:
            >>> client.agents.open_version(agent, limits={"timeout": 5}).agent_id == agent
            True
        """
        body = _members(terms)
        path = f"/agents/{segment(agent_id, 'agent_id')}/versions"
        return parsed((yield from self._core.call("POST", path, body=body)), AgentUpload)

    @Operation
    def upload(self, form: UploadForm, module: Module, *, progress: Progress | None = None) -> Flow[None]:
        """Send a module with the form of `register` or `open_version`. A file is read piece by piece.

        Raises UploadFailedError if the storage refuses it, ConnectionFailedError.

        Example:
            >>> opened = client.agents.open_version(agent)
            >>> client.agents.upload(opened.upload, "echo.wasm", progress=lambda sent, size: None)
        """
        yield from self._upload(form, _source(module), progress)

    @Operation
    def publish(
        self,
        module: Module,
        *,
        agent_id: str | None = None,
        name: str | None = None,
        description: str = "",
        progress: Progress | None = None,
        within: float = PUBLISH_S_MAX,
        **terms: Unpack[VersionTerms],
    ) -> Flow[PublishedVersion]:
        """Publish a module, as a new agent or with `agent_id` as its next version, and wait until it takes tasks.

        A new agent needs `name` and `tariff`. The answer has the version's `number`. Raises PublishFailedError if the
        platform rejects the version, for example because an example of its contract failed: an older version stays
        active.

        Example:
            >>> made = client.agents.publish("echo.wasm", name="echo", tariff={"type": "flat", "price": "0.01"})
            >>> made.number, made.state.value
            (1, 'active')
        """
        source = _source(module)
        if agent_id is None:
            if name is None:
                raise InvalidRequestError.of(field="name", message="is required for a new agent")
            body = _registration(name, description, terms)
            answer = yield from self._core.call("POST", "/agents", body=body)
        else:
            body = _members(terms)
            path = f"/agents/{segment(agent_id, 'agent_id')}/versions"
            answer = yield from self._core.call("POST", path, body=body)
        opened = parsed(answer, AgentUpload)
        with about(opened.agent_id):
            module_sha256 = yield from self._upload(opened.upload, source, progress)
            published = yield from self._published(opened.agent_id, opened.version, within)
            if published.module_sha256 != module_sha256:
                reason = "it has another module than the one that was sent last; the first upload counts"
                raise PublishFailedError(
                    opened.agent_id, opened.version, state=published.state, code="other_module", reason=reason
                )
            return published

    @Operation
    def wait_published(self, agent_id: str, number: int, *, within: float = PUBLISH_S_MAX) -> Flow[PublishedVersion]:
        """Wait until a version whose module was uploaded is published. Raises PublishFailedError, StillRunningError.

        Example:
            >>> client.agents.wait_published(agent, 1).state.value
            'active'
        """
        return (yield from self._published(agent_id, number, within))

    @Operation
    def retire(self, agent_id: str) -> Flow[AgentAnswer]:
        """Take an agent out of service for good.

        Example:
            >>> client.agents.retire(agent).state.value
            'retired'
        """
        path = f"/agents/{segment(agent_id, 'agent_id')}"
        return parsed((yield from self._core.call("DELETE", path)), AgentAnswer)

    def _upload(self, form: UploadForm, source: "_Source", progress: Progress | None) -> Flow[str]:
        """Sends a module; returns the digest of what was sent."""
        url, host = checked_url(form.url, "The address of the upload"), host_of(form.url)
        local = is_loopback(urlsplit(self._core.root).hostname or "")
        if is_loopback(urlsplit(url).hostname or "") and not local:
            msg = f"The API wants the module to be sent to {host}, which is this machine."
            raise UploadFailedError(msg)
        counted = _Counter(source.size, progress)
        upload = Upload(form.fields, lambda: counted.opened(source), counted.add)
        deadline = self._core.sender.deadline(UPLOAD_SECONDS_MAX)
        try:
            request = Request("POST", url, upload=upload, deadline=deadline)
            yield from self._core.sender.send(request, read_error=_storage_problem)
        except ApiError as exc:
            raise _upload_refused(host, exc) from None
        return counted.sha256

    def _published(self, agent_id: str, number: int, within: float) -> Flow[PublishedVersion]:
        timing, deadline = self._core.sender.timing, self._core.sender.deadline(within)
        pause_s = POLL_S_MIN
        while True:
            found = yield from self._version(agent_id, number, deadline)
            if found is not None and found.state in _PUBLISHED:
                return PublishedVersion(**dict(found), agent_id=agent_id)
            yield from self._check_undecided(agent_id, number, found)
            left_s = deadline - timing.monotonic()
            if left_s <= 0:
                raise StillRunningError(agent_id)
            yield Pause(min(pause_s, left_s))
            pause_s = min(pause_s * POLL_GROWTH, POLL_S_MAX)

    def _version(self, agent_id: str, number: int, deadline: float) -> Flow[VersionAnswer | None]:
        """A version of an agent, usually the newest; None if there is no record of it."""
        path, after, limit = f"/agents/{segment(agent_id, 'agent_id')}/versions", None, 1
        while True:
            page = yield from self._core.read(VersionPage, path, limit=limit, after=after)
            for version in page.versions:
                if version.number == number:
                    return version
            passed = any(version.number < number for version in page.versions)
            if passed or page.next is None or self._core.sender.timing.monotonic() >= deadline:
                return None
            after, limit = page.next, PAGE_ITEMS_MAX

    def _check_undecided(self, agent_id: str, number: int, version: VersionAnswer | None) -> Flow[None]:
        """Raises PublishFailedError for a version that will not be published any more."""
        if version is None:
            reason = "a newer upload of the same agent replaced it before it was decided"
            raise PublishFailedError(agent_id, number, state="superseded", code="superseded", reason=reason)
        if version.state not in _UNDECIDED:
            code = version.rejection.code if version.rejection else version.state
            reason = version.rejection.message if version.rejection else "the platform gives no reason"
            raise PublishFailedError(agent_id, number, state=version.state, code=code, reason=reason)
        agent = yield from self._core.read(AgentAnswer, f"/agents/{segment(agent_id, 'agent_id')}")
        if agent.state is AgentState.RETIRED:
            reason = "the agent was retired meanwhile"
            raise PublishFailedError(agent_id, number, state=agent.state, code="retired", reason=reason)


def _whole(name: str, number: int) -> int:
    """A number of a path. Raises InvalidRequestError for anything else, such as a text with a slash."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise InvalidRequestError.of(field=name, message="must be a whole number")
    return number


def _contract_sha256(card: bytes) -> str | None:
    """The digest of the contract on a card, with members that this version does not know; None without one."""
    try:
        found = canonical_json.read(card)
        contract = found.get("contract") if isinstance(found, dict) else None
        return None if contract is None else hashlib.sha256(canonical_json.canonical(contract).encode()).hexdigest()
    except ValueError:
        return ""


@dataclass(frozen=True, slots=True)
class _Source:
    """A module to upload: its size, and how it is opened."""

    size: int
    opened: Callable[[], BinaryIO]


def _source(module: Module) -> _Source:
    """Raises InvalidRequestError for a file that cannot be read, or is larger than any module."""
    if isinstance(module, bytes):
        _check_module_size(len(module))
        return _Source(len(module), lambda: io.BytesIO(module))
    path = Path(module)
    try:
        if not path.is_file() and path.exists():
            raise InvalidRequestError.of(field="module", message=f"{path} is not a file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as exc:
        raise InvalidRequestError.of(field="module", message=f"{path} cannot be read: {exc.strerror}") from None
    _check_module_size(size)
    return _Source(size, lambda: path.open("rb"))


def _check_module_size(size: int) -> None:
    if size > MODULE_BYTES_MAX:
        raise InvalidRequestError.of(
            field="module", message=f"has {size} bytes; a module has at most {MODULE_BYTES_MAX}"
        )


class _Counter:
    """Hashes what is sent of a file in this attempt, and tells a progress function how much that is."""

    def __init__(self, size: int, progress: Progress | None) -> None:
        self._size = size
        self._progress = progress
        self._sent = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The digest of what was sent. The file may have changed since it was opened first."""
        return self._digest.hexdigest()

    def opened(self, source: _Source) -> BinaryIO:
        """The file, from its start."""
        self._sent = 0
        self._digest = hashlib.sha256()
        return source.opened()

    def add(self, piece: bytes) -> None:
        """Count a piece."""
        self._sent += len(piece)
        self._digest.update(piece)
        if self._progress is not None and piece:
            self._progress(min(self._sent, self._size), self._size)


def _storage_problem(body: bytes) -> bytes:
    """The code of S3's XML error as a problem document. A pattern is enough: no entity of an error needs to be read."""
    found = _S3_CODE.search(body[:_S3_ERROR_BYTES_MAX])
    return json.dumps({"code": found[1].decode()}).encode() if found else b""


def _upload_refused(host: str, error: ApiError) -> UploadFailedError:
    code = plain(error.code or "", 100)
    return UploadFailedError(
        f"The storage at {host} refused the module: {code or f'status {error.status}'}.", code=code
    )
