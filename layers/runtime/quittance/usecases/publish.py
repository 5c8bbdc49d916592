"""Publication of modules, from a registration to an active agent. Modules are compiled here, never during a task."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aws_lambda_powertools.utilities.data_classes import S3Event

from quittance import tracing
from quittance.agent import Agent, AgentState, Rejection, Version
from quittance.errors import NotFoundError
from quittance.ledger import pricing
from quittance.limits import MIB
from quittance.observability import logger
from quittance.platform import Platform
from quittance.store.blobs import BlobMissingError, Posted
from quittance.store.registry import Compilation

if TYPE_CHECKING:
    from quittance.sandbox import Artefact

CLOCKS_DIFFER_MS_MAX: Final = 5_000
"""The greatest difference assumed between the clocks of two environments."""
_FAILED_AGAIN_MS: Final = 30_000  # before Lambda's own next attempt, a minute later
_REFUSED_AGAIN_MS: Final = 24 * 60 * 60_000
_UNBONDED: Final = Rejection(
    "bond_required",
    "Your bond is below the minimum. Deposit the rest with POST /accounts/me/bond, then open another version.",
)


@dataclass(frozen=True, slots=True)
class _Refused:
    """A module that the validator or the compiler rejected, and the processor time that this took."""

    rejection: Rejection
    cpu_ms: int


def publish_all(platform: Platform, event: Mapping[str, Any]) -> list[str]:
    """Publishes each object that an event of S3 names; other events name none. Raises as `publish` does."""
    return [publish(platform, *posted) for posted in _posted(event)]


def give_up_all(platform: Platform, body: str) -> None:
    """Gives up each object of an event that failed three times; `body` is the event's dead letter."""
    for posted in _posted(json.loads(body)["requestPayload"]):
        give_up(platform, *posted)


def _posted(event: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Key and version of each object that an event of S3 names."""
    objects = [record.s3.get_object for record in S3Event(dict(event)).records] if "Records" in event else []
    return [(found.key, found.version_id or "") for found in objects]


def publish(platform: Platform, key: str, version: str = "") -> AgentState:
    """Makes a posted module the active version of its agent, or records why it was rejected. Safe to repeat.

        claim → read → compile → keep → decide

    `key` and `version` name the object in the uploads bucket. The first object claimed for an upload is the upload; any
    other object, or one for which no upload is open, is refused before it is read. The result is stored only if the
    upload is still the agent's newest. Returns the upload's state, or "retired" if no agent waits for it any more.

    Raises PlatformUnavailableError and CompileFailedError, which are the platform's failures: Lambda retries the event,
    and after the last attempt `give_up` records it. After a crash the upload stays claimed, and the same object can be
    claimed again.
    """
    posted = Posted.of(key, version)
    agent = _awaited(platform, posted)
    if posted is None or agent is None:
        return AgentState.RETIRED
    if not agent.upload.decided:
        agent = platform.registry.claim_upload(agent, _name(posted))
    if not _is_claimed(agent, posted):
        logger.info("post not awaited", agent_id=agent.agent_id, upload=posted.number, state=agent.upload.state)
        return _state_of(agent, posted)
    if not platform.registry.is_bonded(agent.owner):
        return _state_of(platform.registry.reject(agent, _UNBONDED), posted)
    try:
        with tracing.step("read"):
            module = platform.uploads.read(posted)
    except BlobMissingError:
        return give_up(platform, key, version)
    artefact = _compile(module)
    if cost_micro := _cost_micro(platform, module, artefact.cpu_ms):
        platform.registry.owe(agent, cost_micro, now_ms=platform.now_ms())
    if isinstance(artefact, _Refused):
        agent = platform.registry.reject(agent, artefact.rejection)
    else:
        stored = platform.registry.get(agent.agent_id)
        if not _is_claimed(stored, posted):  # superseded, or published by another delivery of the same event
            return _state_of(stored, posted)
        agent = platform.registry.activate(stored, _keep(platform, module, artefact), now_ms=platform.now_ms())
    logger.info("published", agent_id=agent.agent_id, upload=posted.number, state=agent.upload.state)
    return _state_of(agent, posted)


def give_up(platform: Platform, key: str, version: str = "") -> AgentState:
    """Records that the platform failed to publish an upload, unless the upload is decided already. Safe to repeat.

    The author sees the failure as the platform's and can open another version. An operator can send the same object's
    event again. Returns the upload's state. Raises PlatformUnavailableError.
    """
    posted = Posted.of(key, version)
    agent = _awaited(platform, posted)
    if posted is None or agent is None:
        return AgentState.RETIRED
    if not agent.upload.decided:
        agent = platform.registry.fail_upload(agent, _name(posted), _failure(agent.agent_id))
    if agent.upload.state is AgentState.FAILED:
        logger.error("publishing given up", agent_id=agent.agent_id, upload=posted.number)
    return _state_of(agent, posted)


def recompile(platform: Platform, agent_id: str) -> None:
    """Recompiles an agent's active module if its artefact is for another engine, configuration or processor.

    Concurrent requests, also those of different agents, compile each artefact once: a lease in the registry decides who
    does it. After a failure no other attempt starts for a while; after a crash the lease ends when its invocation would
    have ended. Safe to repeat. Raises NotFoundError, PlatformUnavailableError, CompileFailedError, BlobMissingError,
    BlobTamperedError.
    """
    from quittance.sandbox import artefact_key

    agent = platform.registry.get(agent_id)
    if agent.version is None or agent.retired_ms is not None:
        return
    key = artefact_key(agent.version.module_sha256)
    if agent.version.artefact_key == key:
        return
    now_ms = platform.now_ms()
    until_ms = now_ms + platform.left_ms() + CLOCKS_DIFFER_MS_MAX
    claim = platform.registry.claim_compilation(key, holder=uuid.uuid4().hex, now_ms=now_ms, until_ms=until_ms)
    sha256 = claim.artefact_sha256
    if sha256 is None:
        if not claim.ours:
            logger.info("being compiled already", agent_id=agent_id)
            return
        sha256 = _compile_anew(platform, agent.version.module_sha256, claim)
    if sha256 is not None:
        platform.registry.replace_artefact(agent, _version(agent.version.module_sha256, key, sha256))
        logger.info("recompiled", agent_id=agent_id)


def _compile_anew(platform: Platform, module_sha256: str, claim: Compilation) -> str | None:
    """Compiles a published module for the current engine. Returns the artefact's digest, or None if it is rejected."""
    try:
        module = platform.binaries.load_module(module_sha256)
        artefact = _compile(module)
        if isinstance(artefact, _Refused):
            code = artefact.rejection.code
            logger.error("a published module no longer compiles", module_sha256=module_sha256, code=code)
            platform.registry.postpone_compilation(claim, until_ms=platform.now_ms() + _REFUSED_AGAIN_MS)
            return None
        _keep(platform, module, artefact)
    except Exception:
        # Release the lease after any failure: Lambda retries the same event after a minute.
        platform.registry.postpone_compilation(claim, until_ms=platform.now_ms() + _FAILED_AGAIN_MS)
        raise
    platform.registry.finish_compilation(claim, artefact.sha256)
    return artefact.sha256


def _awaited(platform: Platform, posted: Posted | None) -> Agent | None:
    """The agent whose newest upload this is; None if a newer upload or a retirement has superseded it."""
    if posted is None:
        return None
    try:
        agent = platform.registry.get(posted.agent_id)
    except NotFoundError:
        return None
    return None if _is_superseded(agent, posted) else agent


def _is_superseded(agent: Agent, posted: Posted) -> bool:
    return agent.retired_ms is not None or agent.upload.number != posted.number


def _is_claimed(agent: Agent, posted: Posted) -> bool:
    """Whether this object is claimed as the upload, and its publication is in progress."""
    upload = agent.upload
    claimed = upload.state is AgentState.PUBLISHING and upload.posted == _name(posted)
    return claimed and not _is_superseded(agent, posted)


def _state_of(agent: Agent, posted: Posted) -> AgentState:
    return AgentState.RETIRED if _is_superseded(agent, posted) else agent.upload.state


def _name(posted: Posted) -> str:
    """How the registry names an object: by its version, or "unversioned" in a bucket without versioning."""
    return posted.version or "unversioned"


def _failure(agent_id: str) -> Rejection:
    sentence = (
        "The platform failed to publish this module; the fault is not yours. Open another upload with "
        f"POST /agents/{agent_id}/versions and post the module again."
    )
    return Rejection("platform_failed", sentence)


@tracing.step("compile")
def _compile(module: bytes) -> "Artefact | _Refused":
    from quittance import sandbox

    try:
        return sandbox.compile_module(module)
    except sandbox.ModuleRejectedError as rejected:
        return _Refused(Rejection(rejected.code, rejected.message), rejected.cpu_ms)


def _cost_micro(platform: Platform, module: bytes, cpu_ms: int) -> int:
    """The cost of a publication to the owner's bond: for module size and processor time, each rounded up."""
    settings = platform.settings
    size_micro = pricing.divide_up(len(module) * settings.publish_per_mib_micro, MIB)
    return size_micro + pricing.divide_up(cpu_ms * settings.publish_per_cpu_second_micro, 1_000)


@tracing.step("keep")
def _keep(platform: Platform, module: bytes, artefact: "Artefact") -> Version:
    module_sha256 = hashlib.sha256(module).hexdigest()
    platform.binaries.keep_module(module_sha256, module)
    platform.binaries.keep_artefact(artefact.key, artefact.data)
    return _version(module_sha256, artefact.key, artefact.sha256)


def _version(module_sha256: str, key: str, sha256: str) -> Version:
    from quittance.sandbox import ENGINE_DIGEST, ENGINE_VERSION

    return Version(module_sha256, key, sha256, ENGINE_VERSION, ENGINE_DIGEST)
