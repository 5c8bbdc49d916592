"""An agent as registered: its owner and terms, its versions and its newest upload."""

import base64
import hashlib
from dataclasses import dataclass
from enum import StrEnum

from quittance.acceptance.rules import NO_RULES
from quittance.run import Limits


class VersionState(StrEnum):
    """Where one version of an agent stands. `INACTIVE` was published and can be activated again."""

    AWAITING_UPLOAD = "awaiting_upload"
    PUBLISHING = "publishing"
    ACTIVE = "active"
    INACTIVE = "inactive"
    REJECTED = "rejected"
    FAILED = "failed"


class AgentState(StrEnum):
    """Where an agent, or its newest upload, stands."""

    AWAITING_UPLOAD = "awaiting_upload"
    PUBLISHING = "publishing"
    ACTIVE = "active"
    REJECTED = "rejected"
    FAILED = "failed"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of an agent: its tariff, the limits of a run, and the rules for its output.

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
    def limits(self) -> Limits:
        """The limits of a run, as set by the owner."""
        return Limits(self.fuel, self.memory_bytes, self.timeout_s * 1_000)

    @property
    def rules_sha256(self) -> str:
        """The digest of the rules, by which a task pins them; the digest of `{}` if there are none."""
        return hashlib.sha256(self.rules.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Version:
    """A published module and the artefact compiled from it, each named by its digest, and the contract bound to it.

    `number` is that of its upload, 0 until the registry publishes it. `published_ms` is None in a version that was
    published before this time was recorded.
    """

    module_sha256: str
    artefact_key: str
    artefact_sha256: str
    engine: str
    config_sha256: str
    number: int = 0
    contract_sha256: str | None = None
    published_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why the newest upload was refused or failed, for its author."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Upload:
    """The newest upload: its number, its state, and the terms and contract that its version will have.

    `posted` is the version of the object that was claimed as this upload.
    """

    number: int
    state: AgentState
    terms: Terms
    rejection: Rejection | None = None
    posted: str | None = None
    contract_sha256: str | None = None

    @property
    def decided(self) -> bool:
        """Whether this upload has its final state."""
        return self.state in {AgentState.ACTIVE, AgentState.REJECTED}


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent as registered. New tasks use `terms` and `version`.

    `revision` counts the publications, activations and changes of terms or name: a write that depends on what was read
    is conditional on it. `registered_contract_sha256` counts until a version is active, as `terms` then are those of
    the registration. `registration_sha256` identifies what was registered if the owner chose a registration_id.
    """

    agent_id: str
    owner: str
    name: str
    description: str
    created_ms: int
    terms: Terms
    upload: Upload
    version: Version | None = None
    retired_ms: int | None = None
    revision: int = 0
    registered_contract_sha256: str | None = None
    registration_sha256: str | None = None

    @property
    def contract_sha256(self) -> str | None:
        """Names the contract that belongs to `terms`; None without one."""
        return self.version.contract_sha256 if self.version else self.registered_contract_sha256

    @property
    def state(self) -> AgentState:
        """The agent's state. An agent with an active version stays active while a new upload is open."""
        if self.retired_ms is not None:
            return AgentState.RETIRED
        return AgentState.ACTIVE if self.version else self.upload.state


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version of an agent: its state, the terms that it has or last had, and what was published.

    `version` is None unless it was published, `rejection` unless it was rejected or the platform failed to publish it.
    """

    number: int
    state: VersionState
    terms: Terms
    contract_sha256: str | None = None
    version: Version | None = None
    rejection: Rejection | None = None


def registered_agent_id(owner: str, registration_id: str) -> str:
    """The id of the agent that an owner registers under this id. Length prefixes keep different pairs apart."""
    named = f"{len(owner)}:{owner}{len(registration_id)}:{registration_id}".encode()
    return "agt_" + base64.b32encode(hashlib.sha256(named).digest()).decode().lower()[:26]
