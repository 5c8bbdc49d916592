"""The registry: who published which agent, on which terms, and the binaries that run it.

    pk                 attributes
    AGENT#<agent id>   owner, name, terms, the active version's digests, and the newest upload with its own terms
    OWNER#<owner id>   bond_short, frozen: whether the agents of this owner may take tasks; no item means that they may

An agent has at most one active version and one open upload. Only the newest upload can become active, once, and its
terms with it, so a late or repeated S3 event changes nothing. The index `listing` serves `GET /agents`, and the index
`owner` finds all agents of one owner.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from quittance.acceptance import NO_RULES
from quittance.errors import NotFoundError
from quittance.limits import OWNED_AGENTS_READ_MAX
from quittance.store.dynamo import (
    Patience,
    RefusedError,
    Value,
    answered,
    from_item,
    paged,
    put_new,
    to_item,
    update,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

LISTING_INDEX: Final = "listing"
OWNER_INDEX: Final = "owner"
_LISTING: Final = "agents"
_CACHE_SECONDS: Final = 10.0
_CACHED_AGENTS_MAX: Final = 1_000
_REFUSED: Final = "refused"
_CACHED_MAX: Final = 1_000
_Entry = TypeVar("_Entry")


class AgentState(StrEnum):
    """Where an agent, or its newest upload, stands."""

    AWAITING_UPLOAD = "awaiting_upload"
    PUBLISHING = "publishing"
    ACTIVE = "active"
    REJECTED = "rejected"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Terms:
    """What an agent asks and is allowed: its tariff, the limits of a run, and the rules for its output.

    Tariff and rules are canonical JSON. `task_judge_bps` is the share of the price that is due when a task's own judge
    rejects the output, in basis points; None if the agent takes no task that brings a judge.
    """

    tariff: str
    memory_bytes: int
    timeout_s: int
    fuel: int
    rules: str = NO_RULES
    task_judge_bps: int | None = None

    @property
    def rules_sha256(self) -> str:
        """The digest of the rules, that of `{}` if there are none: by it a task pins them."""
        return hashlib.sha256(self.rules.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Version:
    """A published module and the artefact compiled from it, each named by its digest."""

    module_sha256: str
    artefact_key: str
    artefact_sha256: str
    engine: str
    config_sha256: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why the newest upload was refused, for its author."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Upload:
    """The newest upload: its number, where it stands, and the terms that its version will have."""

    number: int
    state: AgentState
    terms: Terms
    rejection: Rejection | None = None


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent as registered. `terms` and `version` are those that tasks get now."""

    agent_id: str
    owner: str
    name: str
    description: str
    created_ms: int
    terms: Terms
    upload: Upload
    version: Version | None = None
    retired_ms: int | None = None

    @property
    def state(self) -> AgentState:
        """Where the agent stands; a new upload beside an active version does not disturb it."""
        if self.retired_ms is not None:
            return AgentState.RETIRED
        return AgentState.ACTIVE if self.version else self.upload.state


@dataclass(frozen=True, slots=True)
class OwnerState:
    """Whether an owner's agents may take tasks: only with a bond that covers their failures, and unless frozen."""

    bonded: bool = True
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class OwnedAgents:
    """What an owner has: whether any agent has an active version, and when the last one was retired."""

    active: bool
    retired_ms: int | None


class _Cache(Generic[_Entry]):
    """The entries that were used last, each for ten seconds."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, tuple[float, _Entry]] = OrderedDict()

    def get(self, key: str, read: Callable[[str], _Entry]) -> _Entry:
        """The entry of a key, read anew if it is older than ten seconds."""
        now = time.monotonic()
        cached = self._entries.get(key)
        if cached and cached[0] > now:
            return cached[1]
        entry = read(key)
        self._entries[key] = (now + _CACHE_SECONDS, entry)
        self._entries.move_to_end(key)
        if len(self._entries) > _CACHED_MAX:
            self._entries.popitem(last=False)
        return entry

    def drop(self, key: str) -> None:
        """The next `get` of this key reads it anew."""
        self._entries.pop(key, None)


class Registry:
    """Reads and conditional writes of agents. Methods raise PlatformUnavailableError when DynamoDB does not answer."""

    def __init__(self, client: "DynamoDBClient", *, table: str, left_ms: Callable[[], int]) -> None:
        self._client = client
        self._table = table
        self._left_ms = left_ms
        self._agents: _Cache[Agent] = _Cache()
        self._owners: _Cache[OwnerState] = _Cache()

    def get(self, agent_id: str) -> Agent:
        """The agent as it stands now (consistent read). Raises NotFoundError."""
        item = self._item(f"AGENT#{agent_id}")
        if item is None:
            msg = f"There is no agent {agent_id!r}."
            raise NotFoundError(msg)
        return _agent(item)

    def get_cached(self, agent_id: str) -> Agent:
        """The agent as this environment saw it at most ten seconds ago. Raises NotFoundError."""
        return self._agents.get(agent_id, self.get)

    def owner(self, owner_id: str) -> OwnerState:
        """Whether an owner's agents may take tasks, as it stands now (consistent read)."""
        values = from_item(self._item(f"OWNER#{owner_id}") or {})
        return OwnerState(bonded=not values.get("bond_short"), frozen=bool(values.get("frozen")))

    def owner_cached(self, owner_id: str) -> OwnerState:
        """Whether an owner's agents may take tasks, as this environment saw it at most ten seconds ago."""
        return self._owners.get(owner_id, self.owner)

    def set_bond_short(self, owner_id: str, short: bool) -> None:  # noqa: FBT001 - the flag is what is set
        """Records whether an owner's bond is used up. Repeating changes nothing."""
        self._set_flag(owner_id, "bond_short", short)

    def set_frozen(self, owner_id: str, frozen: bool) -> None:  # noqa: FBT001 - the flag is what is set
        """Records whether an operator has frozen an owner. Repeating changes nothing."""
        self._set_flag(owner_id, "frozen", frozen)

    def active_agents_of(self, owner_id: str) -> OwnedAgents:
        """Whether an owner has agents with an active version, and when the last one was retired.

        The index may lag by a second. Of an owner with more than OWNED_AGENTS_READ_MAX agents the others are not read:
        one of them is taken to be active.
        """
        query = {
            "TableName": self._table,
            "IndexName": OWNER_INDEX,
            "KeyConditionExpression": "#owner = :owner",
            "ExpressionAttributeNames": {"#owner": "owner"},
            "ExpressionAttributeValues": to_item({":owner": owner_id}),
        }
        read = 0
        active, retired_ms = False, None
        for item in islice(paged(self._client.query, query, self._left_ms), OWNED_AGENTS_READ_MAX + 1):
            read += 1
            values = from_item(item)
            if "retired_ms" in values:
                retired_ms = max(retired_ms or 0, values["retired_ms"])
            elif "module_sha256" in values:
                active = True
        return OwnedAgents(active or read > OWNED_AGENTS_READ_MAX, retired_ms)

    def page(self, *, owner: str | None, limit: int, after: tuple[int, str] | None) -> tuple[list[Agent], bool]:
        """Up to `limit` agents, newest first, beginning behind `after` (created_ms, agent id); and whether more follow.

        Without `owner` only agents that take tasks are listed.
        """
        query: dict[str, Any] = {
            "TableName": self._table,
            "IndexName": LISTING_INDEX,
            "KeyConditionExpression": "listing = :listing",
            "ScanIndexForward": False,
            "FilterExpression": "attribute_exists(module_sha256) AND attribute_not_exists(retired_ms)",
            "ExpressionAttributeValues": to_item({":listing": _LISTING}),
        }
        if owner is not None:
            query["FilterExpression"] = "#owner = :owner"
            query["ExpressionAttributeNames"] = {"#owner": "owner"}
            query["ExpressionAttributeValues"] |= to_item({":owner": owner})
        if after is not None:
            created_ms, agent_id = after
            query["ExclusiveStartKey"] = to_item(
                {"pk": f"AGENT#{agent_id}", "listing": _LISTING, "created_ms": created_ms}
            )
        found = [_agent(item) for item in islice(paged(self._client.query, query, self._left_ms), limit + 1)]
        return found[:limit], len(found) > limit

    def create(self, agent: Agent) -> None:
        """Records a new agent with its first upload awaited."""
        values: dict[str, Value | None] = {
            "pk": f"AGENT#{agent.agent_id}",
            "owner": agent.owner,
            "name": agent.name,
            "description": agent.description,
            "listing": _LISTING,
            "created_ms": agent.created_ms,
            **_terms_values("", agent.terms),
            **_upload_values(agent.upload),
        }
        with suppress(RefusedError):  # the id is random: what is there already is our own write, its answer lost
            answered(lambda: self._client.put_item(**put_new(self._table, values)), self._patience())

    def open_upload(self, agent: Agent, terms: Terms) -> Agent:
        """Opens the next upload, which takes the place of the one that was newest; returns the agent that stands."""
        upload = Upload(agent.upload.number + 1, AgentState.AWAITING_UPLOAD, terms)
        return self._write(
            replace(agent, upload=upload),
            set_=_upload_values(upload),
            remove=("rejection_code", "rejection_message"),
            condition="#upload_number = :seen AND attribute_not_exists(#retired_ms)",
            values={":seen": agent.upload.number},
        )

    def start_publishing(self, agent: Agent) -> Agent:
        """Shows that the newest upload is being worked on."""
        return self._write_upload(agent, AgentState.PUBLISHING)

    def activate(self, agent: Agent, version: Version) -> Agent:
        """Makes the newest upload, its version and its terms the active ones; returns the agent that stands."""
        upload = replace(agent.upload, state=AgentState.ACTIVE, rejection=None)
        return self._write_upload(
            replace(agent, upload=upload, version=version, terms=upload.terms),
            AgentState.ACTIVE,
            {**_version_values(version), **_terms_values("", upload.terms)},
            remove=("rejection_code", "rejection_message"),
        )

    def reject(self, agent: Agent, rejection: Rejection) -> Agent:
        """Records why the newest upload was refused; an active version stays active."""
        return self._write_upload(
            replace(agent, upload=replace(agent.upload, rejection=rejection)),
            AgentState.REJECTED,
            {"rejection_code": rejection.code, "rejection_message": rejection.message},
        )

    def replace_artefact(self, agent: Agent, version: Version) -> Agent:
        """Gives the active module another artefact; changes nothing if another module became active meanwhile."""
        return self._write(
            replace(agent, version=version),
            set_=_version_values(version),
            condition="#module_sha256 = :same AND attribute_not_exists(#retired_ms)",
            values={":same": version.module_sha256},
        )

    def retire(self, agent: Agent, *, now_ms: int) -> Agent:
        """Takes the agent out of service for good; repeating changes nothing."""
        return self._write(
            replace(agent, retired_ms=now_ms),
            set_={"retired_ms": now_ms},
            condition="attribute_exists(#owner) AND attribute_not_exists(#retired_ms)",
            values={},
        )

    def _write_upload(
        self,
        agent: Agent,
        state: AgentState,
        set_: Mapping[str, Value | None] | None = None,
        remove: tuple[str, ...] = (),
    ) -> Agent:
        return self._write(
            replace(agent, upload=replace(agent.upload, state=state)),
            set_={"upload_state": state, **(set_ or {})},
            remove=remove,
            condition="#upload_number = :number AND #upload_state <> :active AND attribute_not_exists(#retired_ms)",
            values={":number": agent.upload.number, ":active": AgentState.ACTIVE},
        )

    def _write(
        self,
        written: Agent,
        *,
        set_: Mapping[str, Value | None],
        condition: str,
        values: Mapping[str, Value],
        remove: tuple[str, ...] = (),
    ) -> Agent:
        """Sends one conditional update; returns the agent as written, or the one that refused the write."""
        write = update(
            self._table, f"AGENT#{written.agent_id}", set_=set_, remove=remove, condition=condition, values=values
        )
        self._agents.drop(written.agent_id)
        try:
            answered(lambda: self._client.update_item(**write), self._patience())
        except RefusedError as refused:
            if refused.items[0] is None:
                msg = f"There is no agent {written.agent_id!r}."
                raise NotFoundError(msg) from refused
            return _agent(refused.items[0])
        return written

    def _item(self, pk: str) -> Mapping[str, Any] | None:
        key = to_item({"pk": pk})
        answer = answered(
            lambda: self._client.get_item(TableName=self._table, Key=key, ConsistentRead=True), self._patience()
        )
        return answer.get("Item")

    def _set_flag(self, owner_id: str, flag: str, value: bool) -> None:  # noqa: FBT001 - the flag is what is set
        write = update(self._table, f"OWNER#{owner_id}", set_={flag: int(value)})
        self._owners.drop(owner_id)
        answered(lambda: self._client.update_item(**write), self._patience())

    def _patience(self) -> Patience:
        return Patience(self._left_ms())


def _terms_values(prefix: str, terms: Terms) -> dict[str, Value | None]:
    return {
        f"{prefix}tariff": terms.tariff,
        f"{prefix}memory_bytes": terms.memory_bytes,
        f"{prefix}timeout_s": terms.timeout_s,
        f"{prefix}fuel": terms.fuel,
        f"{prefix}rules": terms.rules,
        f"{prefix}task_judges": _REFUSED if terms.task_judge_bps is None else str(terms.task_judge_bps),
    }


def _version_values(version: Version) -> dict[str, Value | None]:
    return {
        "module_sha256": version.module_sha256,
        "artefact_key": version.artefact_key,
        "artefact_sha256": version.artefact_sha256,
        "engine": version.engine,
        "config_sha256": version.config_sha256,
    }


def _upload_values(upload: Upload) -> dict[str, Value | None]:
    return {
        "upload_number": upload.number,
        "upload_state": upload.state,
        **_terms_values("upload_", upload.terms),
    }


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
    """The agent whose newest upload a change of the table has moved to another state; None for any other change.

    The images are those of a stream record.
    """
    upload = ("upload_number", "upload_state")
    moved = "upload_state" in after and any(before.get(name) != after[name] for name in upload)
    return _agent(after) if moved else None


def _agent(item: Mapping[str, Any]) -> Agent:
    values = from_item(item)
    rejected = "rejection_code" in values
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
            rejection=Rejection(values["rejection_code"], values["rejection_message"]) if rejected else None,
        ),
        version=_version(values) if "module_sha256" in values else None,
        retired_ms=values.get("retired_ms"),
    )


def _version(values: Mapping[str, Any]) -> Version:
    return Version(
        module_sha256=values["module_sha256"],
        artefact_key=values["artefact_key"],
        artefact_sha256=values["artefact_sha256"],
        engine=values["engine"],
        config_sha256=values["config_sha256"],
    )
