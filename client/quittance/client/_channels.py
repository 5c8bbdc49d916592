"""Payment channels: the calls of a payer, and the key with which a program spends a channel without any token."""

import base64
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from http import HTTPStatus
from typing import Annotated, Any, Final, Self, Unpack

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm
from pydantic import BaseModel, Field, ValidationError

from quittance import canonical_json, errors
from quittance.api.models import (
    ChannelAnswer,
    ChannelPage,
    TaskRequest,
    TaskResult,
    TicketLine,
    TicketPage,
    TopUpAnswer,
)
from quittance.api.requests import read_json, validated
from quittance.client._binding import Listing, Operation, Pages
from quittance.client._calls import PREFIX, about, json_text, parsed, segment
from quittance.client._errors import (
    ApiError,
    ConfigurationError,
    InvalidRequestError,
    PlatformError,
    QuittanceError,
    StillRunningError,
    TaskInProgressError,
    TicketInvalidError,
    TicketUsedError,
    TimeoutTooLongError,
    TooManyRequestsError,
    UnexpectedAnswerError,
)
from quittance.client._methods import (
    ASYNC,
    POLL_GROWTH,
    POLL_S_MAX,
    POLL_S_MIN,
    WAIT_S_MAX,
    Credits,
    Moment,
    TaskMethods,
    TaskTerms,
    amount_text,
    asked,
    moment_text,
    new_id,
    task_answer,
)
from quittance.client._retry import retry_after_s
from quittance.client._tokens import FileStore
from quittance.client._verify import Expected
from quittance.client._wire import Flow, Pause, checked_url
from quittance.ledger.channels import channel_id as channel_id_of
from quittance.ledger.channels import parse_task_id, ticket_task_id, tickets_needed
from quittance.ledger.credits import CreditsIn, format_credits, parse_credits
from quittance.limits import PAGE_ITEMS_MAX, TICKET_NUMBER_MAX
from quittance.proof.ticket import CLOSE_TYPE, TICKET_TYPE

TICKET_S_DEFAULT: Final = 900.0
"""How long a ticket can be used: until its task is stored. Longer than any retry of a lost answer."""
_NUMBER_TRIES: Final = 14
"""Numbers that are tried while other programs use the same key: they pass about 500 used ones."""
_GAP_MAX: Final = 63
_GRANT_TRIES: Final = 6
"""How often a number is tried that can be used only after lower ones, which other threads are about to use."""
_FREE_MAX: Final = 1_000
_PUBLIC: Final = ("kty", "crv", "x")
_Number = Annotated[int, Field(strict=True, ge=1, le=2 * TICKET_NUMBER_MAX)]


@dataclass(frozen=True, slots=True)
class Ticket:
    """A signed ticket with the request that it pays: it can be sent by anything, any number of times, and pays once.

    `payload` is what a direct invocation and the queue take. Over HTTP, `request` is the body and `signed` the header
    `Payment-Ticket` of `POST /channels/{channel_id}/tasks`.
    """

    payload: Mapping[str, Any] = field(repr=False)
    channel_id: str = field(init=False)
    number: int = field(init=False)

    def __post_init__(self) -> None:
        named = parse_task_id(str(self.payload.get("task_id", "")))
        if named is None or not isinstance(self.payload.get("ticket"), str):
            msg = "A ticket is a request with a task_id such as chn_….1, and with the signed ticket as its `ticket`."
            raise ConfigurationError(msg)
        object.__setattr__(self, "channel_id", named[0])
        object.__setattr__(self, "number", named[1])

    @property
    def task_id(self) -> str:
        """The id of the task."""
        return ticket_task_id(self.channel_id, self.number)

    @property
    def request(self) -> dict[str, Any]:
        """The body of the request over HTTP."""
        return {name: value for name, value in self.payload.items() if name != "ticket"}

    @property
    def signed(self) -> str:
        """The compact JWS."""
        return str(self.payload["ticket"])

    def to_json(self) -> str:
        """The payload as JSON."""
        return json_text(self.payload)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The ticket of `to_json`. Raises ConfigurationError."""
        try:
            found = canonical_json.read(text.encode())
        except ValueError:
            found = None
        if not isinstance(found, dict):
            msg = "The ticket is not a JSON object."
            raise ConfigurationError(msg)
        return cls(found)


@dataclass(frozen=True, slots=True)
class Lane:
    """The numbers of one of `of` programs that share a channel: blocks of `width` numbers, taken in turn."""

    index: int = 0
    of: int = 1
    width: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.index < self.of and self.width >= 1):
            msg = "A lane's index must be from 0 to `of` - 1, and its width at least 1."
            raise ConfigurationError(msg)

    def start(self, number: int, count: int) -> int:
        """The first place from a number on where this lane has so many consecutive numbers. Raises ConfigurationError.

        Without other programs, every place is its own.
        """
        if self.of == 1:
            return number
        if count > self.width:
            msg = f"The task takes {count} tickets, but this key's lane has {self.width} at a time: use a wider one."
            raise ConfigurationError(msg)
        block, place = divmod(number - 1, self.width)
        if block % self.of == self.index and place + count <= self.width:
            return number
        block += (self.index - block) % self.of or self.of
        return block * self.width + 1


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Which numbers a program uses next: those from `next` on that are its lane's, and single `free` ones before."""

    next: int = 1
    free: tuple[int, ...] = ()
    lane: Lane = Lane()

    def take(self, count: int) -> tuple[int, Self]:
        """The first of so many consecutive numbers, and the numbers without them. Raises ConfigurationError."""
        unused = set(self.free)
        for number in self.free:
            taken = range(number, number + count)
            if unused.issuperset(taken):
                return number, replace(self, free=tuple(sorted(unused.difference(taken))))
        number = self.lane.start(self.next, count)
        if number + count - 1 > TICKET_NUMBER_MAX:
            msg = f"The numbers of the channel are used up: it has at most {TICKET_NUMBER_MAX}. Open another one."
            raise ConfigurationError(msg)
        passed = {found for found in range(self.next, number) if self.lane.start(found, 1) == found}
        return number, replace(self, next=number + count, free=tuple(sorted({*self.free, *passed}))[:_FREE_MAX])

    def give_back(self, number: int, count: int) -> Self:
        """The numbers with so many again that were not used."""
        if number + count == self.next:
            return replace(self, next=number)
        unused = sorted({*self.free, *range(number, number + count)})
        return replace(self, free=tuple(unused[:_FREE_MAX]))

    def skip(self, number: int, count: int, gap: int) -> Self:
        """The numbers after one that another program has used: the more of them in a row, the wider the gap."""
        return replace(self, next=self.next + gap) if number + count == self.next else self


class _SavedLane(BaseModel):
    index: int = 0
    of: int = 1
    width: int = 1


class _Saved(BaseModel):
    """The file of a key: everything that a spender needs, and no bearer token."""

    key: dict[str, str]
    api: str | None = None
    issuer: str | None = None
    channel: str | None = None
    payer: str | None = None
    ticket_value: CreditsIn | None = None
    max_per_task: CreditsIn | None = None
    agents: list[str] | None = None
    expires_at: str | None = None
    next: _Number = 1
    free: list[_Number] = []
    lane: _SavedLane = _SavedLane()


class _KeyFile(FileStore):
    _what = "channel's key"
    _error = ConfigurationError


class ChannelKey:
    """The key of a payment channel: whoever has it can spend the channel, and close it, without a bearer token.

    It belongs to one channel once `Client.open_channel` or `bind` has named it. With a file (`save`, `load`), the
    numbers of tickets that are used go into the file, so several programs on one machine may share it. Threads may
    share a key. Neither `repr` nor the text of an error contains the private half.

    Example:
        >>> key = ChannelKey.new()
        >>> sorted(key.jwk)
        ['crv', 'kty', 'x']
    """

    def __init__(self, private: Ed25519PrivateKey, saved: _Saved | None = None, file: FileStore | None = None) -> None:
        self._private = private
        self._terms = saved or _Saved(key=OKPAlgorithm.to_jwk(private, as_dict=True))
        self._numbers = _numbers(self._terms)
        self._lock = threading.Lock()
        self._file = file

    def __repr__(self) -> str:
        return f"ChannelKey({self._terms.channel or 'no channel yet'})"

    @classmethod
    def new(cls) -> Self:
        """A new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The key in a file that `save` wrote. Raises ConfigurationError."""
        file = _KeyFile(path)
        text = file.load()
        if text is None:
            msg = f"There is no channel's key in {os.fspath(path)}."
            raise ConfigurationError(msg)
        saved = _read(text)
        return cls(_private(saved), saved, file)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The key in a text, for example of a store of secrets. Used numbers are remembered by this object alone.

        Raises ConfigurationError.
        """
        saved = _read(text)
        return cls(_private(saved), saved)

    def to_json(self) -> str:
        """Everything that a spender needs, as JSON: a secret."""
        with self._lock:
            return self._written()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the key to a file that only this user may read (mode 0600), and record used numbers there.

        An existing file with another key is not replaced. Raises ConfigurationError.
        """
        file = _KeyFile(path)
        with self._lock, _locked(file):
            there = file.load()
            if there is not None and _read(there).key != self._terms.key:
                msg = f"{os.fspath(path)} has another channel's key. Name another file."
                raise ConfigurationError(msg)
            file.save(self._written())
            self._file = file

    @property
    def jwk(self) -> dict[str, str]:
        """The public half as a JWK (RFC 8037)."""
        return {name: self._terms.key[name] for name in _PUBLIC}

    @property
    def api(self) -> str:
        """The URL of the channel's stack. Raises ConfigurationError before the channel is known."""
        return str(self._of_channel("api"))

    @property
    def channel_id(self) -> str:
        """The id of the channel. Raises ConfigurationError before it is known."""
        return str(self._of_channel("channel"))

    @property
    def ticket_micro(self) -> int:
        """What one ticket is worth, in micro-credits. Raises ConfigurationError before the channel is known."""
        found: int = self._of_channel("ticket_value")
        return found

    @property
    def agents(self) -> list[str] | None:
        """The agents that the channel pays; None if all, or if the channel is not known yet."""
        return self._terms.agents

    @property
    def most_micro(self) -> int:
        """What one task may cost with one ticket, in micro-credits."""
        most = self._terms.max_per_task
        return self.ticket_micro if most is None else min(self.ticket_micro, most)

    def bind(self, channel: ChannelAnswer, *, api: str) -> None:
        """Make this the key of a channel, on the stack at `api`. Raises ConfigurationError if it is not its key."""
        named = channel_id_of(
            issuer=channel.issuer,
            payer=channel.payer,
            salt=channel.salt,
            key=self._terms.key["x"],
            ticket_micro=channel.ticket_micro,
        )
        if named != channel.channel_id or self._terms.channel not in {None, named}:
            msg = f"This is not the key of the channel {channel.channel_id}."
            raise ConfigurationError(msg)
        document = channel.model_dump(mode="json", by_alias=True)
        with self._changing():
            self._terms = _Saved(
                key=self._terms.key,
                api=checked_url(api, "The address of the API").rstrip("/").removesuffix(PREFIX),
                issuer=channel.issuer,
                channel=named,
                payer=channel.payer,
                ticket_value=document["ticket_value"],
                max_per_task=document["max_per_task"],
                agents=channel.agents,
                expires_at=document["expires_at"],
            )

    def lane(self, index: int, *, of: int, width: int = 1) -> "ChannelKey":
        """A copy of this key for one of `of` programs that share the channel without sharing a file.

        Each uses numbers of its own: blocks of `width`, the most tickets that one of its tasks takes. From the start
        of a channel, 8 numbers can be used at once, `of` times `width`. Save the copy to a file of its own.
        """
        place = Lane(index, of, width)
        with self._lock:
            kept = {"next": self._numbers.next, "free": [], "lane": _SavedLane(**asdict(place))}
            return ChannelKey(self._private, self._terms.model_copy(update=kept))

    def take(self, count: int = 1) -> int:
        """The first of so many consecutive numbers that nobody else takes with this key object or its file."""
        with self._changing():
            number, self._numbers = self._numbers.take(count)
        return number

    def give_back(self, number: int, count: int = 1) -> None:
        """Numbers that were taken and not used. One that was used after all is found out when it is tried again."""
        with self._changing():
            self._numbers = self._numbers.give_back(number, count)

    def sign(
        self,
        agent_id: str,
        input: object,  # noqa: A002 - the API's name
        *,
        budget: Credits,
        number: int | None = None,
        expires_in: float = TICKET_S_DEFAULT,
        now: float | None = None,
        **terms: Unpack[TaskTerms],
    ) -> Ticket:
        """A ticket for one task. The arguments are those of `Client.execute`; the task's id is the ticket's.

        `number` is the first number that it takes; without it, the next one is taken. `expires_in` is for how many
        seconds it can be used first. Raises InvalidRequestError, ConfigurationError.

        Example:
            >>> ticket = key.sign("agt_k5x2mfq7w3nzt4ab", "hello", budget="0.05")
            >>> ticket.request["budget"], ticket.signed.count(".")
            ('0.05', 2)
        """
        placed = 1 if number is None else number
        body = asked(agent_id, input, budget, ticket_task_id(self.channel_id, placed), terms).body
        request = _checked(body)  # before a number is taken
        if number is None:
            placed = self.take(self.count(request.budget_micro))
        claims = {
            "iss": self._of_channel("issuer"),
            "channel": self.channel_id,
            "n": placed,
            "exp": int((time.time() if now is None else now) + expires_in),
            "agent_id": request.agent_id,
            "input_sha256": request.stdin.sha256,
            "budget": format_credits(request.budget_micro),
            "timeout": request.timeout,
            "acceptance_sha256": request.own_rules_sha256,
            "options_sha256": request.options_sha256,
        }
        signed = self._signed({name: value for name, value in claims.items() if value is not None}, TICKET_TYPE)
        return Ticket({**body, "task_id": ticket_task_id(self.channel_id, placed), "ticket": signed})

    def count(self, budget_micro: int) -> int:
        """How many tickets a task with such a budget takes."""
        return tickets_needed(budget_micro, self.ticket_micro)

    def order_to_close(self, *, expires_in: float = TICKET_S_DEFAULT, now: float | None = None) -> str:
        """A signed order to close the channel, for `POST /channels/{channel_id}/signed-close`."""
        expires = int((time.time() if now is None else now) + expires_in)
        claims = {"iss": self._of_channel("issuer"), "channel": self.channel_id, "exp": expires}
        return self._signed(claims, CLOSE_TYPE)

    def skip(self, number: int, count: int, tries: int) -> None:
        """Go on after a number that another program has used; `tries` is how many of them in a row."""
        with self._changing():
            self._numbers = self._numbers.skip(number, count, min(2 ** max(tries - 2, 0) - 1, _GAP_MAX))

    def use_numbers(self, *, free: Sequence[tuple[int, int]], used: int) -> None:
        """Use the numbers of these ranges (from, to) up to the highest number that is `used`, and then those beyond."""
        with self._changing():
            lane = self._numbers.lane
            unused = (number for first, last in free for number in range(first, min(last, used) + 1))
            mine = tuple(number for number in unused if lane.start(number, 1) == number)
            self._numbers = replace(self._numbers, next=used + 1, free=mine[:_FREE_MAX])

    def _signed(self, claims: Mapping[str, Any], typ: str) -> str:
        return jwt.encode(dict(claims), self._private, algorithm="EdDSA", headers={"typ": typ})

    def _of_channel(self, name: str) -> Any:  # noqa: ANN401 - of the type of the member
        found = getattr(self._terms, name)
        if found is None:
            msg = "The key has no channel yet: open one with it, or bind it to one."
            raise ConfigurationError(msg)
        return found

    def _written(self) -> str:
        values = {
            **self._terms.model_dump(exclude_none=True, exclude={"lane", "next", "free"}),
            "next": self._numbers.next,
            "free": list(self._numbers.free),
            "lane": asdict(self._numbers.lane),
        }
        return json_text(values)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change of terms or numbers; with a file, after those of other programs. Raises ConfigurationError."""
        with self._lock:
            if self._file is None:
                yield
                return
            with _locked(self._file):
                text = self._file.load()
                if text is not None:
                    saved = _read(text)
                    if saved.key != self._terms.key:
                        msg = f"{self._file!r} has another channel's key by now."
                        raise ConfigurationError(msg)
                    self._numbers = _numbers(saved)
                yield
                self._file.save(self._written())


class ChannelMethods(TaskMethods):
    """Payment channels: what their payers do, and tasks that tickets pay."""

    @Operation
    def open_channel(
        self,
        key: ChannelKey | Mapping[str, str],
        *,
        ticket_value: Credits,
        tickets: int,
        expires_at: Moment,
        agents: list[str] | None = None,
        max_per_task: Credits | None = None,
        salt: str | None = None,
    ) -> Flow[ChannelAnswer]:
        """Open a payment channel: its deposit of `tickets` times `ticket_value` leaves the account.

        `key` may spend it: at most `max_per_task` for one task, only on these `agents` if they are named, and until
        `expires_at`. A ChannelKey belongs to the channel afterwards; of a program that keeps its key to itself, the
        public half as a JWK is enough. One key opens one channel, however often this is called with the same terms;
        another `salt` opens another one.

        Raises ChannelConflictError, InsufficientFundsError, InvalidRequestError.

        Example:
            >>> from datetime import UTC, datetime, timedelta
            >>> month = datetime.now(UTC) + timedelta(days=30)
            >>> key = ChannelKey.new()
            >>> channel = client.open_channel(key, ticket_value="0.05", tickets=20, expires_at=month, agents=[agent])
            >>> format_credits(channel.deposit_micro), channel.numbers
            ('1', 20)
            >>> key.save("channel.json")
        """
        jwk = key.jwk if isinstance(key, ChannelKey) else dict(key)
        body = {
            "salt": salt or str(jwk.get("x", "")),
            "key": jwk,
            "ticket_value": amount_text("ticket_value", ticket_value),
            "tickets": tickets,
            "agents": agents,
            "max_per_task": None if max_per_task is None else amount_text("max_per_task", max_per_task),
            "expires_at": moment_text("expires_at", expires_at),
        }
        body = {name: value for name, value in body.items() if value is not None}
        answer = parsed((yield from self._core.call("POST", "/channels", body=body)), ChannelAnswer)
        if isinstance(key, ChannelKey):
            key.bind(answer, api=self._core.root)
        return answer

    @Operation
    def channel(self, channel_id: str) -> Flow[ChannelAnswer]:
        """One of the caller's channels: what is deposited, spent and held, and how many numbers it has.

        Example:
            >>> client.channel(channel_id).state.value
            'open'
        """
        return (yield from self._core.read(ChannelAnswer, _path(channel_id)))

    @Operation
    def channels_page(self, *, limit: int | None = None, after: str | None = None) -> Flow[ChannelPage]:
        """A page of the caller's channels, newest first. A channel is listed some seconds after it is opened.

        Example:
            >>> client.channels_page(limit=1).channels[0].channel_id == channel_id
            True
        """
        return (yield from self._core.read(ChannelPage, "/channels", limit=limit, after=after))

    @Listing
    def channels(self, *, page_size: int | None = None) -> Pages[ChannelAnswer]:
        """All channels of the caller, newest first.

        Example:
            >>> [format_credits(channel.deposit_micro) for channel in client.channels()]
            ['1']
        """

        def page(after: str | None) -> Flow[tuple[list[ChannelAnswer], str | None]]:
            found = yield from self._core.read(ChannelPage, "/channels", limit=page_size, after=after)
            return found.channels, found.next

        return page

    @Operation
    def top_up(self, channel_id: str, tickets: int, *, topup_id: str | None = None) -> Flow[TopUpAnswer]:
        """Pay in so many more tickets. The same id never counts twice.

        Example:
            >>> format_credits(client.top_up(channel_id, 10, topup_id="june").amount_micro)
            '0.5'
        """
        named = topup_id or new_id()
        body = {"topup_id": named, "tickets": tickets}
        with about(named):
            return parsed((yield from self._core.call("POST", f"{_path(channel_id)}/topups", body=body)), TopUpAnswer)

    @Operation
    def close_channel(self, channel_id: str) -> Flow[ChannelAnswer]:
        """Close a channel: it takes no more tickets, and in a few minutes its rest is back in the account.

        Example:
            >>> client.close_channel(channel_id).state.value
            'closing'
        """
        return parsed((yield from self._core.call("POST", f"{_path(channel_id)}/close")), ChannelAnswer)

    @Operation
    def close_channel_by_key(self, key: ChannelKey) -> Flow[ChannelAnswer]:
        """Close a channel by its key, without a token. The rest goes to the account that paid it in.

        Example:
            >>> client.close_channel_by_key(key).state.value
            'closing'
        """
        body = {"order": key.order_to_close(now=self._core.sender.timing.now())}
        path = f"{_path(key.channel_id)}/signed-close"
        return parsed((yield from self._core.call("POST", path, body=body, signed=False)), ChannelAnswer)

    @Operation
    def tickets_page(self, channel_id: str, *, limit: int | None = None, after: int | None = None) -> Flow[TicketPage]:
        """The next numbers of a channel: which are used, by which tasks, and which are free.

        Example:
            >>> client.tickets_page(channel_id).free
            [(1, 20)]
        """
        return (yield from self._core.read(TicketPage, f"{_path(channel_id)}/tickets", limit=limit, after=after))

    @Listing
    def tickets(self, channel_id: str, *, page_size: int | None = None) -> Pages[TicketLine]:
        """All used tickets of a channel, in their order.

        Example:
            >>> list(client.tickets(channel_id))
            []
        """

        def page(after: str | None) -> Flow[tuple[list[TicketLine], str | None]]:
            found = yield from self._core.read(TicketPage, f"{_path(channel_id)}/tickets", limit=page_size, after=after)
            return found.tickets, None if found.next is None else str(found.next)

        return page

    @Operation
    def find_numbers(self, key: ChannelKey) -> Flow[int]:
        """Give a key the numbers that are free now, by the payer's token; returns how many there are.

        It is needed only if a key's record is lost, or old: `spend` passes numbers that others have used.

        Example:
            >>> client.find_numbers(key)
            20
        """
        free: list[tuple[int, int]] = []
        after: int | None = 0
        used = 0
        path = f"{_path(key.channel_id)}/tickets"
        while after is not None:
            page = yield from self._core.read(TicketPage, path, limit=PAGE_ITEMS_MAX, after=after)
            free += page.free
            used = max([used, *(line.number + max(line.tickets, 1) - 1 for line in page.tickets)])
            if page.next is not None and page.next <= after:
                msg = "The API answers with the same page again. Nothing more can be read."
                raise UnexpectedAnswerError(msg)
            after = page.next
        key.use_numbers(free=free, used=used)
        return sum(last - first + 1 for first, last in free)

    @Operation
    def spend(
        self,
        key: ChannelKey,
        agent_id: str,
        input: object,  # noqa: A002 - the API's name
        *,
        budget: Credits,
        within: float = WAIT_S_MAX,
        **terms: Unpack[TaskTerms],
    ) -> Flow[TaskResult]:
        """Run an agent and pay it by a ticket of a channel: no token is needed. It is `execute` otherwise.

        The key signs a ticket with its next number. If another program has used that number, the next ones are tried.
        After an unknown outcome the error has the `ticket`: `redeem` it again, and nothing is paid twice.

        Raises as `redeem` does.

        Example:
            >>> key = ChannelKey.load("channel.json")
            >>> with Client(key.api) as spender:
            ...     done = spender.spend(key, agent, "hello", budget="0.05")
            >>> done.output, done.payment_method
            ('hello', 'ticket')
        """
        tries = 0
        while True:
            ticket = key.sign(agent_id, input, budget=budget, now=self._core.sender.timing.now(), **terms)
            count = key.count(parse_credits(ticket.request["budget"]))
            try:
                return (yield from self._redeemed(ticket, within))
            except TicketUsedError:
                tries += 1
                key.skip(ticket.number, count, tries)
                if tries >= _NUMBER_TRIES:
                    raise
            except ApiError as error:
                if not isinstance(error, PlatformError | TooManyRequestsError):
                    key.give_back(ticket.number, count)
                raise

    @Operation
    def redeem(self, ticket: Ticket, *, within: float = WAIT_S_MAX) -> Flow[TaskResult]:
        """Send a signed ticket until its task is settled. The same ticket never runs a second paid task.

        Raises TicketUsedError if its number was used for another task, TicketInvalidError, TicketTooSmallError,
        AgentNotAllowedError, ChannelClosedError, ChannelExpiredError, StillRunningError after `within` seconds, and
        what `execute` raises.

        Example:
            >>> ticket = key.sign(agent, "hello", budget="0.05")
            >>> client.redeem(ticket).output == client.redeem(ticket).output
            True
        """
        return (yield from self._redeemed(ticket, within))

    def _redeemed(self, ticket: Ticket, within: float) -> Flow[TaskResult]:
        request = _checked(ticket.request)
        expected = Expected(
            agent_id=request.agent_id,
            input=request.stdin.data,
            budget_micro=request.budget_micro,
            module_sha256=request.module_sha256,
            tariff_sha256=request.tariff_sha256,
            rules_sha256=request.rules_sha256,
            ticket=ticket.signed,
        )
        try:
            with about(ticket.task_id):
                result = yield from self._sent(ticket, self._core.sender.deadline(within))
                return (yield from self._checked(result, ticket.task_id, expected))
        except QuittanceError as error:
            error.ticket = ticket
            raise

    def _sent(self, ticket: Ticket, deadline: float) -> Flow[TaskResult]:
        """Sends a ticket until its task is settled. Repeating the request is how its outcome is read without a token.

        A task that would take too long to wait for is queued. A number that can be used only after lower ones is tried
        again for a while, because other threads are about to use those.
        """
        timing, pause_s, queued, early = self._core.sender.timing, POLL_S_MIN, False, 0
        path = f"{_path(ticket.channel_id)}/tasks"
        while True:
            headers = {"Payment-Ticket": ticket.signed, **(ASYNC if queued else {})}
            try:
                answer = yield from self._core.call("POST", path, body=ticket.request, headers=headers, signed=False)
            except TimeoutTooLongError:
                if queued:
                    raise
                queued = True
                continue
            except TaskInProgressError as running:  # an attempt of ours whose answer was lost, or another sender
                after_s = running.retry_after_s or 0.0
            except TicketInvalidError as refused:
                early += 1
                if not refused.is_early(ticket.number) or early >= _GRANT_TRIES:
                    raise
                after_s = 0.0
            else:
                found = task_answer(answer)
                if isinstance(found, TaskResult):
                    return found
                after_s, queued = retry_after_s(answer.headers, now=timing.now()) or 0.0, False
            left_s = deadline - timing.monotonic()
            if left_s <= 0:
                raise StillRunningError(ticket.task_id)
            yield Pause(min(max(pause_s, min(after_s, POLL_S_MAX)), left_s))
            pause_s = min(pause_s * POLL_GROWTH, POLL_S_MAX)


def _path(channel_id: str) -> str:
    return f"/channels/{segment(channel_id, 'channel_id')}"


@contextmanager
def _locked(file: FileStore) -> Iterator[None]:
    file.lock.acquire()
    try:
        yield
    finally:
        file.lock.release()


def _read(text: str) -> _Saved:
    try:
        return _Saved.model_validate(canonical_json.read(text.encode()))
    except ValidationError as exc:
        faults = exc.errors(include_input=False, include_url=False, include_context=False)
        where = ", ".join(sorted({".".join(map(str, fault["loc"])) or "file" for fault in faults})[:5])
    except ValueError:
        where = "it is no JSON"
    msg = f"This is no file of a channel's key ({where}). `quittance channel open` makes one."
    raise ConfigurationError(msg)


def _private(saved: _Saved) -> Ed25519PrivateKey:
    """The key of a file. Raises ConfigurationError."""
    try:
        found = Ed25519PrivateKey.from_private_bytes(base64.urlsafe_b64decode(saved.key["d"] + "="))
    except (KeyError, ValueError):
        found = None
    if found is None or OKPAlgorithm.to_jwk(found, as_dict=True) != saved.key:
        msg = "The channel's key is not a private Ed25519 key as a JWK (RFC 8037) with kty, crv, x and d alone."
        raise ConfigurationError(msg)
    return found


def _numbers(saved: _Saved) -> _Numbers:
    lane = Lane(saved.lane.index, saved.lane.of, saved.lane.width)
    return _Numbers(saved.next, tuple(sorted(set(saved.free)))[:_FREE_MAX], lane)


def _checked(body: Mapping[str, Any]) -> TaskRequest:
    """A request as the platform reads it, whose digests it compares with the ticket's. Raises InvalidRequestError."""
    try:
        return validated(TaskRequest, read_json(json_text(body)))
    except errors.InvalidRequestError as exc:
        faults: Any = exc.members["errors"]
        found = {"code": "invalid_request", "detail": exc.detail, "errors": faults}
    except (errors.QuittanceError, ValueError) as exc:
        found = {"code": "invalid_request", "detail": str(exc), "errors": [{"field": "body", "message": str(exc)}]}
    raise InvalidRequestError(HTTPStatus.BAD_REQUEST, found)
