"""The registry: agents, their owners and terms, and the binaries that run them.

    pk                 attributes
    AGENT#<agent id>   owner, name, the active version and its terms, and the newest upload with its own terms
    VERSION#<agent>#<number>  a decided upload, with the terms that its version had when it was last active
    CONTRACT#<sha256>  the contract of versions, in canonical JSON; written before them, and never changed
    ARTEFACT#<key>     holder, lease_ms: who recompiles an artefact and until when; its digest once it is stored
    DUE#<agent>#<upload>  what the publication of an upload costs the owner's bond, until the sweep has charged it
    OWNER#<owner id>   bond_short, frozen: whether the owner's agents may take tasks; without an item they may
    FUNDING            paused: whether an operator has stopped the funding of tasks; without an item it is not stopped
    OPERATION#<id>     what an operator did (see operations.py)

An agent has at most one active version and one open upload. Only the newest upload can become active, once and together
with its terms, so a late or repeated S3 event changes nothing. The upload is the first posted object whose event is
handled: `claim_upload` records its version, and no other version is read.

    awaiting_upload → publishing → active | rejected     final
                                 → failed                the platform's fault; the same object may be claimed again

A version is module, contract and terms, and has the number of its upload. Those of the active version are in the
agent's item alone, so one read of it never mixes two versions. The transaction that activates another version also
writes the outgoing one to its VERSION item, as it was at that moment: `reactivate` brings all of it back. Each such
write, and each change of terms, increments `revision` and is conditional on the `revision` that was read.

Old code stored neither numbers nor VERSION items: see `_active_version`.

The index `listing` serves `GET /agents`. It contains agents from their first activation until they are retired and no
others, so no item is read in vain. The index `owner` finds all agents of an owner. Old code put every registration into
the listing; `page` removes such items when it reads them.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from quittance.acceptance.rules import NO_RULES
from quittance.errors import NotFoundError, PlatformUnavailableError
from quittance.limits import OWNED_AGENTS_READ_MAX, UNLISTED_AT_ONCE_MAX
from quittance.store.cache import Cache
from quittance.store.dynamo import (
    BusyError,
    Patience,
    RefusedError,
    Value,
    attempt,
    from_item,
    listing,
    paged,
    put_new,
    read_item,
    read_items,
    retried,
    scan_piece,
    update,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
from quittance.agent import Agent, AgentState, Rejection, Terms, Upload, Version, VersionRecord, VersionState

LISTING_INDEX: Final = "listing"
OWNER_INDEX: Final = "owner"
FUNDING_PK: Final = "FUNDING"
_LISTING: Final = "agents"
_DUE: Final = "due"
_CACHE_SECONDS: Final = 10.0
_CONTRACT_SECONDS: Final = 3_600.0  # a contract never changes
_CONTRACTS_CACHED_MAX: Final = 128  # of up to 64 KiB
_REFUSED: Final = "refused"
_PUBLISHED: Final = "published"  # of a VERSION item; whether it is the active one, the agent's item says
_NUMBER_DIGITS: Final = 10
_PUBLISH_TRIES: Final = 20  # one fails only if the owner activates a version or changes terms at the same time


@dataclass(frozen=True, slots=True)
class Due:
    """What the publication of one upload costs its owner's bond."""

    owner: str
    agent_id: str
    upload: int
    amount_micro: int


Place = tuple[int, str]
"""The position at which a page ends: creation time and id of its last agent."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some agents, and the position behind which the next page begins; None on the last page."""

    agents: list[Agent]
    after: Place | None


@dataclass(frozen=True, slots=True)
class OwnerState:
    """Whether an owner's agents may take tasks: only if the bond is large enough and the owner is not frozen."""

    bonded: bool = True
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class OwnedAgents:
    """An owner's agents: whether any is not retired, and when the last one was retired."""

    unretired: bool
    retired_ms: int | None


@dataclass(frozen=True, slots=True)
class Compilation:
    """The recompilation of an artefact: `ours` if the caller must do it; the digest if it is already stored."""

    key: str
    holder: str
    ours: bool
    artefact_sha256: str | None = None


def retirement(now_ms: int) -> dict[str, Any]:
    """The update that retires an agent, unless it is retired already."""
    return {
        "set_": {"retired_ms": now_ms},
        "remove": ("listing",),
        "condition": "attribute_exists(#owner) AND attribute_not_exists(#retired_ms)",
    }


class Registry:
    """Reads and conditional writes of agents. Methods raise PlatformUnavailableError if DynamoDB does not answer."""

    def __init__(self, client: "DynamoDBClient", *, table: str, left_ms: Callable[[], int]) -> None:
        self._client = client
        self._table = table
        self._left_ms = left_ms
        self._cache = Cache[Agent](seconds=_CACHE_SECONDS)
        self._owners = Cache[OwnerState](seconds=_CACHE_SECONDS)
        self._funding = Cache[bool](seconds=_CACHE_SECONDS)
        self._contracts = Cache[str](seconds=_CONTRACT_SECONDS, entries_max=_CONTRACTS_CACHED_MAX)

    def get(self, agent_id: str) -> Agent:
        """The stored agent (consistent read). Raises NotFoundError."""
        agent = self.find(agent_id)
        if agent is None:
            msg = f"There is no agent {agent_id!r}."
            raise NotFoundError(msg)
        return agent

    def find(self, agent_id: str) -> Agent | None:
        """The stored agent (consistent read), or None."""
        item = self._item(f"AGENT#{agent_id}")
        return None if item is None else _agent(item)

    def get_cached(self, agent_id: str) -> Agent:
        """The agent as this environment read it at most ten seconds ago. Raises NotFoundError."""
        return self._cache.get(agent_id, self.get)

    def owner(self, owner_id: str) -> OwnerState:
        """Whether an owner's agents may take tasks (consistent read)."""
        values = from_item(self._item(f"OWNER#{owner_id}") or {})
        return OwnerState(bonded=not values.get("bond_short"), frozen=bool(values.get("frozen")))

    def owner_cached(self, owner_id: str) -> OwnerState:
        """Whether an owner's agents may take tasks, as this environment read it at most ten seconds ago."""
        return self._owners.get(owner_id, self.owner)

    def set_bond_short(self, owner_id: str, short: bool) -> None:  # noqa: FBT001 - the flag is what is set
        """Records whether an owner's bond is below the minimum. Repeating changes nothing."""
        write = update(self._table, f"OWNER#{owner_id}", set_={"bond_short": int(short)})
        self._owners.drop(owner_id)
        retried(lambda: self._client.update_item(**write), self._patience())

    def is_frozen(self, account: str) -> bool:
        """Whether an account is frozen. A freeze is noticed within ten seconds, its end at once."""
        return self.owner_cached(account).frozen and self.owner(account).frozen

    def is_bonded(self, owner_id: str) -> bool:
        """Whether an owner's bond is large enough. A shortfall is noticed within ten seconds, a top-up at once."""
        return self.owner_cached(owner_id).bonded or self.owner(owner_id).bonded

    def funding_is_paused(self) -> bool:
        """Whether an operator has paused funding. A pause is noticed within ten seconds, its end at once."""
        return self._funding.get(FUNDING_PK, self._paused) and self._paused(FUNDING_PK)

    def agents_of(self, owner_id: str) -> OwnedAgents:
        """Whether an owner has agents that are not retired, and when the last one was retired.

        The index may lag by a second. At most OWNED_AGENTS_READ_MAX agents are read; an owner with more counts as
        having one that is not retired.
        """
        query = listing(self._table, OWNER_INDEX, "owner", owner_id)
        read = 0
        unretired, retired_ms = False, None
        for item in islice(paged(self._client.query, query, self._left_ms), OWNED_AGENTS_READ_MAX + 1):
            read += 1
            values = from_item(item)
            if "retired_ms" in values:
                retired_ms = max(retired_ms or 0, values["retired_ms"])
            else:
                unretired = True
        return OwnedAgents(unretired or read > OWNED_AGENTS_READ_MAX, retired_ms)

    def described(self, agent_id: str) -> tuple[Agent, tuple[str, ...]]:
        """The stored agent and the tags of its contract (consistent read). Raises NotFoundError."""
        agent = self.get(agent_id)
        contract = json.loads(self.contract(agent.contract_sha256)) if agent.contract_sha256 else {}
        return agent, tuple(contract.get("tags", ()))

    def find_all(self, agent_ids: Sequence[str]) -> dict[str, Agent]:
        """Of up to 100 different agents, those that exist, by id (not consistent)."""
        pks = [f"AGENT#{agent_id}" for agent_id in agent_ids]
        found = read_items(self._client.batch_get_item, self._table, pks, self._patience(), consistent=False)
        return {pk.removeprefix("AGENT#"): _agent(item) for pk, item in found.items()}

    def piece(self, *, after: str | None, limit: int) -> tuple[list[Mapping[str, Any]], str | None]:
        """Up to `limit` items of the table, and the key behind which the next piece begins; None at the end."""
        return scan_piece(self._client.scan, self._table, after=after, limit=limit, patience=self._patience())

    def page(self, *, owner: str | None, limit: int, after: Place | None) -> Page:
        """Up to `limit` agents, newest first, behind the position `after`: active ones, or all of one owner's.

        The reads are bounded: one index page without a filter and, for an owner, the items it lists. A page may
        therefore have fewer than `limit` agents, or none, although more follow.
        """
        hash_name, hash_value, index = ("listing", _LISTING, LISTING_INDEX)
        if owner is not None:
            hash_name, hash_value, index = ("owner", owner, OWNER_INDEX)
        start: Mapping[str, Value] | None = None
        if after is not None:
            created_ms, agent_id = after
            start = {"pk": f"AGENT#{agent_id}", "created_ms": created_ms}
        query = listing(self._table, index, hash_name, hash_value, after=start, newest_first=True, limit=limit + 1)
        answer = retried(partial(self._client.query, **query), self._patience())
        items: Sequence[Mapping[str, Any]] = answer["Items"][:limit]
        more = len(answer["Items"]) > limit or "LastEvaluatedKey" in answer
        places = [(int(item["created_ms"]["N"]), item["pk"]["S"].removeprefix("AGENT#")) for item in items]
        if owner is not None:
            pks = [item["pk"]["S"] for item in items]
            found = read_items(self._client.batch_get_item, self._table, pks, self._patience(), consistent=False)
            items = [found[pk] for pk in pks if pk in found]
        agents = [_agent(item) for item in items]
        if owner is None:
            stale = [agent for agent in agents if agent.state is not AgentState.ACTIVE]
            self._unlist(stale[:UNLISTED_AT_ONCE_MAX])
            agents = [agent for agent in agents if agent.state is AgentState.ACTIVE]
        return Page(agents, places[-1] if more and places else None)

    # Contracts. Each is named by its digest, so whoever writes it again writes the same.

    def keep_contract(self, sha256: str, text: str) -> None:
        """Stores a contract, unless it is stored already. Repeating changes nothing."""
        values: dict[str, Value | None] = {"pk": f"CONTRACT#{sha256}", "contract": text}
        with suppress(RefusedError):
            retried(lambda: self._client.put_item(**put_new(self._table, values)), self._patience())

    def contract(self, sha256: str) -> str:
        """The canonical JSON of a contract that a version names. Raises PlatformUnavailableError if it is missing."""
        return self._contracts.get(sha256, self._contract)

    def _contract(self, sha256: str) -> str:
        item = self._item(f"CONTRACT#{sha256}")
        if item is None:
            raise PlatformUnavailableError
        return str(from_item(item)["contract"])

    # Costs of publications. The publisher has no access to money: it records here what the sweep must charge.

    def owe(self, agent: Agent, amount_micro: int, *, now_ms: int) -> None:
        """Records the cost of publishing an agent's newest upload, for the owner's bond. The last record counts."""
        write = update(
            self._table,
            f"DUE#{agent.agent_id}#{agent.upload.number}",
            set_={"debtor": agent.owner, "amount": amount_micro, "listing": _DUE, "created_ms": now_ms},
        )
        retried(lambda: self._client.update_item(**write), self._patience())

    def dues(self) -> Iterator[Due]:
        """The recorded costs that are not charged yet, oldest first, from the index."""
        query = listing(self._table, LISTING_INDEX, "listing", _DUE)
        for values in map(from_item, paged(self._client.query, query, self._left_ms)):
            _, agent_id, number = values["pk"].split("#")
            yield Due(values["debtor"], agent_id, int(number), values["amount"])

    def take_off_due(self, due: Due) -> None:
        """Removes a charged cost from the index; the item stays. Repeating changes nothing."""
        write = update(self._table, f"DUE#{due.agent_id}#{due.upload}", remove=("listing",))
        retried(lambda: self._client.update_item(**write), self._patience())

    def check(self) -> None:
        """Reads at most one item of the listing. Raises PlatformUnavailableError if that fails."""
        query = listing(self._table, LISTING_INDEX, "listing", _LISTING, limit=1)
        retried(partial(self._client.query, **query), self._patience())

    def create(self, agent: Agent) -> Agent:
        """Stores a new agent, which awaits its first upload; returns the stored one if its id is taken."""
        values: dict[str, Value | None] = {
            "pk": f"AGENT#{agent.agent_id}",
            "owner": agent.owner,
            "name": agent.name,
            "description": agent.description,
            "created_ms": agent.created_ms,
            "contract_sha256": agent.registered_contract_sha256,
            "registration_sha256": agent.registration_sha256,
            **_terms_values("", agent.terms),
            **_upload_values(agent.upload),
        }
        try:
            retried(lambda: self._client.put_item(**put_new(self._table, values)), self._patience())
        except RefusedError as refused:  # a repeat of this registration, or our own write whose response was lost
            return _agent(refused.items[0] or {})
        return agent

    def open_upload(self, agent: Agent, terms: Terms, contract_sha256: str | None = None) -> Agent:
        """Opens the next upload, which replaces the newest one; returns the stored agent.

        Changes nothing if the agent has changed since it was read, because absent terms are those that were read.
        """
        number = agent.upload.number + 1
        upload = Upload(number, AgentState.AWAITING_UPLOAD, terms, contract_sha256=contract_sha256)
        written = replace(agent, upload=upload)
        unrevised, revision = _unrevised(agent)
        return self._write(
            written,
            set_=_upload_values(upload) | _numbering(written),
            remove=(
                "rejection_code",
                "rejection_message",
                "upload_posted",
                *(() if upload.contract_sha256 else ("upload_contract_sha256",)),
            ),
            condition=f"attribute_not_exists(#retired_ms) AND {unrevised}",
            values=revision,
        )

    def claim_upload(self, agent: Agent, posted: str) -> Agent:
        """Claims a posted object as the newest upload, for publication; returns the stored agent.

        Only the first object can be claimed. After a crash or a failure it can be claimed again.
        """
        upload = replace(agent.upload, state=AgentState.PUBLISHING, rejection=None, posted=posted)
        return self._write(
            replace(agent, upload=upload),
            set_={"upload_state": upload.state, "upload_posted": posted},
            remove=("rejection_code", "rejection_message"),
            condition=f"{_NEWEST} AND ({_AWAITED} OR {_CLAIMED})",
            values=_upload_condition(agent, posted) | {":awaiting": AgentState.AWAITING_UPLOAD},
        )

    def fail_upload(self, agent: Agent, posted: str, rejection: Rejection) -> Agent:
        """Records that the platform could not publish the newest upload; returns the stored agent."""
        upload = replace(agent.upload, state=AgentState.FAILED, rejection=rejection, posted=posted)
        written = replace(agent, upload=upload)
        return self._write(
            written,
            set_={"upload_state": upload.state, "upload_posted": posted, **_rejection_values(rejection)},
            condition=f"{_NEWEST} AND ({_AWAITED} OR {_CLAIMED})",
            values=_upload_condition(agent, posted) | {":awaiting": AgentState.AWAITING_UPLOAD},
            kept=[newest_record(written)],
        )

    def activate(self, agent: Agent, version: Version, *, now_ms: int) -> Agent:
        """Activates the claimed upload with its version, terms and contract; returns the stored agent.

        The version that was active stays as it was at that moment, to be activated again. Raises
        PlatformUnavailableError.
        """
        posted = agent.upload.posted or ""
        for _ in range(_PUBLISH_TRIES):
            upload = replace(agent.upload, state=AgentState.ACTIVE, rejection=None)
            published = replace(
                version, number=upload.number, contract_sha256=upload.contract_sha256, published_ms=now_ms
            )
            written = replace(agent, upload=upload, version=published, terms=upload.terms, revision=agent.revision + 1)
            unrevised, revision = _unrevised(agent)
            stored = self._write(
                written,
                set_={"upload_state": upload.state, "listing": _LISTING, **_active_values(written)},
                remove=_absent(published),
                condition=f"{_NEWEST} AND {_CLAIMED} AND {unrevised}",
                values=_upload_condition(agent, posted) | revision,
                kept=[active_record(agent), active_record(written)],
            )
            if stored is written or not _is_open(stored, upload.number, posted):
                return stored
            agent = stored  # the owner activated another version, or changed terms, since the agent was read
        raise PlatformUnavailableError

    def reject(self, agent: Agent, rejection: Rejection) -> Agent:
        """Records why the newest upload was rejected; an active version stays active."""
        upload = replace(agent.upload, state=AgentState.REJECTED, rejection=rejection)
        written = replace(agent, upload=upload)
        return self._write(
            written,
            set_={"upload_state": upload.state, **_rejection_values(rejection)},
            condition=f"{_NEWEST} AND {_CLAIMED}",
            values=_upload_condition(agent, upload.posted or ""),
            kept=[newest_record(written)],
        )

    def reactivate(self, agent: Agent, record: VersionRecord) -> Agent:
        """Activates an earlier or later published version with the terms it last had; returns the stored agent.

        `record` must have been read after `agent`. Changes nothing if the agent has changed since it was read.
        """
        if record.version is None:
            msg = f"version {record.number} of {agent.agent_id} was not published"
            raise ValueError(msg)
        written = replace(agent, version=record.version, terms=record.terms, revision=agent.revision + 1)
        return self._revise(agent, written, kept=[active_record(agent)])

    def change(self, agent: Agent, changed: Agent) -> Agent:
        """Changes an agent's name, description and the terms of its active version; returns the stored agent.

        Changes nothing if the agent has changed since it was read.
        """
        return self._revise(agent, replace(changed, revision=agent.revision + 1))

    def version(self, agent: Agent, number: int) -> VersionRecord | None:
        """A version of an agent (consistent read); None if it has none of this number, or no record of it was kept."""
        return self.versions(agent, [number]).get(number)

    def versions(self, agent: Agent, numbers: Iterable[int]) -> dict[int, VersionRecord]:
        """Of up to 100 versions of an agent, those that there is a record of, by number (consistent read)."""
        wanted = set(numbers)
        pks = [_version_pk(agent.agent_id, number) for number in wanted]
        items = read_items(self._client.batch_get_item, self._table, pks, self._patience(), consistent=True)
        found = {record.number: record for record in map(_version_record, items.values())}
        for record in (newest_record(agent), active_record(agent)):
            if record and record.number in wanted:
                found[record.number] = record
        return found

    def replace_artefact(self, agent: Agent, version: Version) -> Agent:
        """Replaces the artefact of the active module; changes nothing if another module has become active."""
        values = _artefact_values(version)
        return self._write(
            replace(agent, version=replace(agent.version or version, **values)),  # type: ignore[arg-type]  # by name
            set_=values,
            condition="#module_sha256 = :same AND attribute_not_exists(#retired_ms)",
            values={":same": version.module_sha256},
        )

    def claim_compilation(self, key: str, *, holder: str, now_ms: int, until_ms: int) -> Compilation:
        """Claims the recompilation of an artefact: one holder at a time, until the artefact is stored."""
        write = update(
            self._table,
            f"ARTEFACT#{key}",
            set_={"holder": holder, "lease_ms": until_ms},
            condition="attribute_not_exists(#artefact_sha256)"
            " AND (attribute_not_exists(#lease_ms) OR #lease_ms <= :now)",
            values={":now": now_ms},
        )
        try:
            retried(lambda: self._client.update_item(**write), self._patience())
        except RefusedError as refused:
            values = from_item(refused.items[0] or {})
            sha256 = values.get("artefact_sha256")
            # A repeat of our own write after a lost response is rejected too.
            return Compilation(key, holder, ours=values.get("holder") == holder, artefact_sha256=sha256)
        return Compilation(key, holder, ours=True)

    def finish_compilation(self, compilation: Compilation, artefact_sha256: str) -> None:
        """Records that an artefact is stored, so that it is not compiled again."""
        write = update(self._table, f"ARTEFACT#{compilation.key}", set_={"artefact_sha256": artefact_sha256})
        retried(lambda: self._client.update_item(**write), self._patience())

    def postpone_compilation(self, compilation: Compilation, *, until_ms: int) -> None:
        """Prevents recompilation until `until_ms`, unless another holder has taken over."""
        write = update(
            self._table,
            f"ARTEFACT#{compilation.key}",
            set_={"lease_ms": until_ms},
            condition="#holder = :holder",
            values={":holder": compilation.holder},
        )
        with suppress(RefusedError):
            retried(lambda: self._client.update_item(**write), self._patience())

    def retire(self, agent: Agent, *, now_ms: int) -> Agent:
        """Retires an agent permanently. Repeating changes nothing."""
        return self._write(replace(agent, retired_ms=now_ms), **retirement(now_ms), values={})

    def _revise(self, agent: Agent, written: Agent, kept: Sequence[VersionRecord | None] = ()) -> Agent:
        """Writes name, description, active version and terms, unless the agent has changed since it was read."""
        unrevised, revision = _unrevised(agent)
        return self._write(
            written,
            set_={"name": written.name, "description": written.description, **_active_values(written)},
            remove=_absent(written.version),
            condition=f"attribute_not_exists(#retired_ms) AND {unrevised}",
            values=revision,
            kept=kept,
        )

    def _write(
        self,
        written: Agent,
        *,
        set_: Mapping[str, Value | None],
        condition: str,
        values: Mapping[str, Value],
        remove: tuple[str, ...] = (),
        kept: Sequence[VersionRecord | None] | None = None,
    ) -> Agent:
        """Sends one conditional update; returns the agent as written, or the stored one if the condition failed.

        With `kept`, it is a transaction that also writes these records. DynamoDB recognises a repeated transaction by
        its token: it takes effect once, even if a response is lost and others write before the repeat.
        """
        write = update(
            self._table, f"AGENT#{written.agent_id}", set_=set_, remove=remove, condition=condition, values=values
        )
        self._cache.drop(written.agent_id)
        try:
            if kept is None:
                retried(lambda: self._client.update_item(**write), self._patience())
            else:
                keeping = [self._keep(written.agent_id, record) for record in kept if record]
                actions: list[Any] = [{"Update": write}, *keeping]
                send = partial(
                    self._client.transact_write_items, TransactItems=actions, ClientRequestToken=str(uuid.uuid4())
                )
                retried(send, self._patience())
        except RefusedError as refused:
            if refused.items[0] is None:
                msg = f"There is no agent {written.agent_id!r}."
                raise NotFoundError(msg) from refused
            return _agent(refused.items[0])
        return written

    def _keep(self, agent_id: str, record: VersionRecord) -> dict[str, Any]:
        """The action that writes the VERSION item of a record, and replaces all that was stored of this version."""
        values = _record_values(record)
        absent = [name for name, value in values.items() if value is None]
        return {"Update": update(self._table, _version_pk(agent_id, record.number), set_=values, remove=absent)}

    def _unlist(self, agents: Iterable[Agent]) -> None:
        """Removes agents that are not active from the listing, into which old code put every registration."""
        for agent in agents:
            write = update(
                self._table,
                f"AGENT#{agent.agent_id}",
                remove=("listing",),
                condition="attribute_exists(#listing)"
                " AND (attribute_not_exists(#module_sha256) OR attribute_exists(#retired_ms))",
            )
            try:
                attempt(partial(self._client.update_item, **write))
            except RefusedError:  # it has become active, or another reader removed it
                continue
            except (BusyError, PlatformUnavailableError):  # the next reader of this page tries again
                return

    def _item(self, pk: str) -> Mapping[str, Any] | None:
        return read_item(self._client.get_item, self._table, pk, self._patience())

    def _paused(self, pk: str) -> bool:
        return bool(from_item(self._item(pk) or {}).get("paused"))

    def _patience(self) -> Patience:
        return Patience(self._left_ms())


def active_record(agent: Agent) -> VersionRecord | None:
    """The active version of an agent, with its terms; None if it has none."""
    version = agent.version
    if version is None:
        return None
    return VersionRecord(version.number, VersionState.ACTIVE, agent.terms, version.contract_sha256, version)


def newest_record(agent: Agent) -> VersionRecord | None:
    """The newest upload of an agent as a version that is not published; None if it was published."""
    upload = agent.upload
    if upload.state is AgentState.ACTIVE:
        return None
    state = VersionState(upload.state)
    return VersionRecord(upload.number, state, upload.terms, upload.contract_sha256, rejection=upload.rejection)


# Conditions: the upload is still the newest; no object was claimed for it yet; this object was claimed for it.
_NEWEST: Final = "#upload_number = :number AND attribute_not_exists(#retired_ms)"
_AWAITED: Final = "#upload_state = :awaiting"
_CLAIMED: Final = (
    "(#upload_state IN (:publishing, :failed) AND (attribute_not_exists(#upload_posted) OR #upload_posted = :posted))"
)


def _upload_condition(agent: Agent, posted: str) -> dict[str, Value]:
    return {
        ":number": agent.upload.number,
        ":publishing": AgentState.PUBLISHING,
        ":failed": AgentState.FAILED,
        ":posted": posted,
    }


def _unrevised(agent: Agent) -> tuple[str, dict[str, Value]]:
    """The condition that name, active version and terms are still those that were read, and its values.

    Old code publishes without a revision: then the state of the newest upload has changed.
    """
    unrevised = "#upload_number = :seen AND #upload_state = :stood"
    values: dict[str, Value] = {":seen": agent.upload.number, ":stood": agent.upload.state}
    if not agent.revision:
        return f"{unrevised} AND attribute_not_exists(#revision)", values
    return f"{unrevised} AND #revision = :revision", values | {":revision": agent.revision}


def _is_open(agent: Agent, number: int, posted: str) -> bool:
    """Whether the upload with this number, claimed by this object, still waits to be decided."""
    upload = agent.upload
    claimed = upload.number == number and not upload.decided and (upload.posted or posted) == posted
    return claimed and upload.state is not AgentState.AWAITING_UPLOAD and agent.retired_ms is None


def _rejection_values(rejection: Rejection) -> dict[str, Value | None]:
    return {"rejection_code": rejection.code, "rejection_message": rejection.message}


def _terms_values(prefix: str, terms: Terms) -> dict[str, Value | None]:
    return {
        f"{prefix}tariff": terms.tariff,
        f"{prefix}memory_bytes": terms.memory_bytes,
        f"{prefix}timeout_s": terms.timeout_s,
        f"{prefix}fuel": terms.fuel,
        f"{prefix}rules": terms.rules,
        f"{prefix}task_judges": _REFUSED if terms.task_judge_bps is None else str(terms.task_judge_bps),
    }


def _artefact_values(version: Version) -> dict[str, str]:
    return {
        "module_sha256": version.module_sha256,
        "artefact_key": version.artefact_key,
        "artefact_sha256": version.artefact_sha256,
        "engine": version.engine,
        "config_sha256": version.config_sha256,
    }


def _version_values(version: Version) -> dict[str, Value | None]:
    return {
        **_artefact_values(version),
        "contract_sha256": version.contract_sha256,
        "published_ms": version.published_ms,
    }


_VERSION_NAMES: Final = tuple(_version_values(Version("", "", "", "", "")))


def _absent(version: Version | None) -> tuple[str, ...]:
    """The attributes of the active version that must be removed, because this one has none."""
    return tuple(name for name, value in _version_values(version).items() if value is None) if version else ()


def _active_values(agent: Agent) -> dict[str, Value | None]:
    """What a write that increments the revision stores of the active version."""
    published = _version_values(agent.version) if agent.version else {}
    return {**published, **_terms_values("", agent.terms), **_numbering(agent), "revision": agent.revision}


def _numbering(agent: Agent) -> dict[str, Value | None]:
    """The number of the active version, and that of the newest upload which was decided when it was written."""
    if agent.version is None:
        return {}
    upload = agent.upload
    return {
        "version_number": agent.version.number,
        "numbered_upload": upload.number if upload.decided else upload.number - 1,
    }


def _active_version(values: Mapping[str, Any]) -> Version:
    """The active version in an agent's item, whose number is not known if old code activated it.

    Old code stored no numbers. If the newest upload was published after a number was last stored, it is the active
    version. Otherwise an earlier upload is: which one is not known, and it gets the number before the newest.
    """
    number = values["upload_number"]
    if values["upload_state"] == AgentState.ACTIVE and number > values.get("numbered_upload", 0):
        return replace(_version(values, number), contract_sha256=None, published_ms=None)  # those of an earlier one
    return _version(values, values.get("version_number", number - 1))


def _upload_values(upload: Upload) -> dict[str, Value | None]:
    return {
        "upload_number": upload.number,
        "upload_state": upload.state,
        "upload_contract_sha256": upload.contract_sha256,
        **_terms_values("upload_", upload.terms),
    }


def _version_pk(agent_id: str, number: int) -> str:
    return f"VERSION#{agent_id}#{number:0{_NUMBER_DIGITS}}"


def _record_values(record: VersionRecord) -> dict[str, Value | None]:
    """All attributes of a VERSION item but its key, None for absent ones. None is the key of an index."""
    version, rejection = record.version, record.rejection
    published = dict.fromkeys(_VERSION_NAMES) if version is None else _version_values(version)
    return {
        "version_state": record.state if version is None else _PUBLISHED,
        **published,
        "contract_sha256": record.contract_sha256,
        "rejection_code": rejection.code if rejection else None,
        "rejection_message": rejection.message if rejection else None,
        **_terms_values("", record.terms),
    }


def _version_record(item: Mapping[str, Any]) -> VersionRecord:
    """The record in a VERSION item. A published version counts as inactive: the agent says which one is active."""
    values = from_item(item)
    number, stated = int(values["pk"].rpartition("#")[2]), str(values["version_state"])
    return VersionRecord(
        number,
        VersionState.INACTIVE if stated == _PUBLISHED else VersionState(stated),
        _terms(values, ""),
        values.get("contract_sha256"),
        version=_version(values, number) if stated == _PUBLISHED else None,
        rejection=_rejection(values),
    )


def _rejection(values: Mapping[str, Any]) -> Rejection | None:
    return Rejection(values["rejection_code"], values["rejection_message"]) if "rejection_code" in values else None


def _terms(values: Mapping[str, Any], prefix: str) -> Terms:
    return Terms(
        tariff=values[f"{prefix}tariff"],
        memory_bytes=values[f"{prefix}memory_bytes"],
        timeout_s=values[f"{prefix}timeout_s"],
        fuel=values[f"{prefix}fuel"],
        rules=values.get(f"{prefix}rules", NO_RULES),
        task_judge_bps=None if (share := values.get(f"{prefix}task_judges", _REFUSED)) == _REFUSED else int(share),
    )


def upload_moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> Agent | None:
    """The agent whose newest upload changed its state in a change of the table; None for any other change.

    The images are those of a stream record.
    """
    upload = ("upload_number", "upload_state")
    moved = "upload_state" in after and any(before.get(name) != after[name] for name in upload)
    return _agent(after) if moved else None


def revised(before: Mapping[str, Any], after: Mapping[str, Any]) -> Agent | None:
    """The agent whose owner activated another version, or changed name or terms, in a change of the table; else None.

    The images are those of a stream record. A publication is no such change: see `upload_moved`.
    """
    revision = after.get("revision")
    changed = revision is not None and revision != before.get("revision")
    return _agent(after) if changed and upload_moved(before, after) is None else None


def changed_agent(after: Mapping[str, Any]) -> str | None:
    """The id of the agent that a change of the table concerns; None for any other change.

    The image is that of a stream record.
    """
    pk: str = after.get("pk", {}).get("S", "")
    return pk.removeprefix("AGENT#") if pk.startswith("AGENT#") else None


def _agent(item: Mapping[str, Any]) -> Agent:
    values = from_item(item)
    return Agent(
        agent_id=values["pk"].removeprefix("AGENT#"),
        owner=values["owner"],
        name=values["name"],
        description=values["description"],
        created_ms=values["created_ms"],
        terms=_terms(values, ""),
        upload=Upload(
            number=values["upload_number"],
            state=AgentState(values["upload_state"]),
            terms=_terms(values, "upload_"),
            rejection=_rejection(values),
            posted=values.get("upload_posted"),
            contract_sha256=values.get("upload_contract_sha256"),
        ),
        version=_active_version(values) if "module_sha256" in values else None,
        retired_ms=values.get("retired_ms"),
        revision=values.get("revision", 0),
        registered_contract_sha256=None if "module_sha256" in values else values.get("contract_sha256"),
        registration_sha256=values.get("registration_sha256"),
    )


def _version(values: Mapping[str, Any], number: int) -> Version:
    return Version(
        module_sha256=values["module_sha256"],
        artefact_key=values["artefact_key"],
        artefact_sha256=values["artefact_sha256"],
        engine=values["engine"],
        config_sha256=values["config_sha256"],
        number=number,
        contract_sha256=values.get("contract_sha256"),
        published_ms=values.get("published_ms"),
    )
