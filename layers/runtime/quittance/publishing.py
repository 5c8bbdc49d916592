"""Publishing: from a registration to an active agent. Modules are validated and compiled here, never in a task."""

import base64
import hashlib
import re
import secrets
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from quittance import judging, pricing, reputation, tracing
from quittance.acceptance import Rules, parse_rules, rules_json
from quittance.bond import bond_account
from quittance.bootstrap import Platform
from quittance.errors import (
    AccountFrozenError,
    AgentNotReadyError,
    BondRequiredError,
    InvalidRequestError,
    NotFoundError,
    PlatformUnavailableError,
)
from quittance.limits import MIB, PAGE_ITEMS_MAX, UPLOAD_SECONDS_MAX
from quittance.models import (
    AgentAnswer,
    AgentEstimate,
    AgentLimits,
    AgentPage,
    AgentRejection,
    AgentReputation,
    AgentRequest,
    AgentUpload,
    ComputeAnswer,
    CreditsSpread,
    PriceEstimate,
    TaskJudges,
    TimeSpread,
    UploadForm,
    VersionRequest,
)
from quittance.observability import logger
from quittance.pricing import Tariff
from quittance.reading import read_cursor
from quittance.reputation import Standing
from quittance.store.blobs import BlobMissingError, Posted
from quittance.store.registry import Agent, AgentState, Compilation, Rejection, Terms, Upload, Version

if TYPE_CHECKING:
    from quittance.sandbox import Artefact

CLOCKS_DIFFER_MS_MAX: Final = 5_000
"""By how much the clocks of two environments differ, at most."""
_FAILED_AGAIN_MS: Final = 30_000  # before Lambda's own next try, a minute later
_REFUSED_AGAIN_MS: Final = 24 * 60 * 60_000
_OPEN_TRIES: Final = 5  # each is lost only to another version of the same agent, opened at the same time
_AGENT_ID_BYTES: Final = 10
_UNBONDED: Final = Rejection(
    "bond_required",
    "Your bond is below the minimum. Deposit the rest with POST /accounts/me/bond, then open another version.",
)
_CURSOR: Final = re.compile(r"(?P<created_ms>[0-9]{1,15})~(?P<agent_id>[A-Za-z0-9_-]{1,64})")


def register(platform: Platform, owner: str, request: AgentRequest) -> AgentUpload:
    """Registers an agent, and answers with a form for its module.

    Raises AccountFrozenError, BondRequiredError, InvalidRequestError for a judge that cannot judge,
    PlatformUnavailableError.
    """
    _check_not_frozen(platform, owner)
    _check_bond(platform, owner)
    rules = request.acceptance or Rules()
    _check_judge(platform, rules)
    terms = _terms(request.tariff, request.limits, rules, request.task_judges)
    agent = Agent(
        agent_id="agt_" + base64.b32encode(secrets.token_bytes(_AGENT_ID_BYTES)).decode().lower(),
        owner=owner,
        name=request.name,
        description=request.description,
        created_ms=platform.now_ms(),
        terms=terms,
        upload=Upload(1, AgentState.AWAITING_UPLOAD, terms),
    )
    platform.registry.create(agent)
    return _upload_form(platform, agent)


def open_version(platform: Platform, owner: str, agent_id: str, request: VersionRequest) -> AgentUpload:
    """Opens the upload of a new version; the active one serves until the new one is active.

    Raises NotFoundError, AgentNotReadyError for a retired agent, InvalidRequestError for a judge that cannot judge,
    AccountFrozenError, BondRequiredError, PlatformUnavailableError.
    """
    _check_not_frozen(platform, owner)
    agent = _own(platform, owner, agent_id)
    _check_bond(platform, owner)
    tariff = request.tariff or pricing.parse_tariff(agent.terms.tariff)
    rules = parse_rules(agent.terms.rules) if request.acceptance is None else request.acceptance
    _check_judge(platform, rules)
    judges = _task_judges(agent.terms) if request.task_judges is None else request.task_judges
    terms = _terms(tariff, request.limits or _limits(agent.terms), rules, None if judges == "refused" else judges)
    for _ in range(_OPEN_TRIES):
        opened = platform.registry.open_upload(agent, terms)
        if opened.retired_ms is not None:
            raise AgentNotReadyError(agent_id, opened.state)
        if opened.upload == Upload(agent.upload.number + 1, AgentState.AWAITING_UPLOAD, terms):
            return _upload_form(platform, opened)
        agent = opened  # another upload was opened at the same time: ours is the next one
    raise PlatformUnavailableError


def _check_bond(platform: Platform, owner: str) -> None:
    """Raises BondRequiredError unless the owner's bond is large enough to publish."""
    minimum_micro = platform.settings.bond_minimum_micro
    if minimum_micro and (bond_micro := platform.ledger.available_micro(bond_account(owner))) < minimum_micro:
        raise BondRequiredError(bond_micro=bond_micro, minimum_micro=minimum_micro)


def _check_not_frozen(platform: Platform, owner: str) -> None:
    if platform.registry.is_frozen(owner):
        raise AccountFrozenError


def retire(platform: Platform, owner: str, agent_id: str) -> None:
    """Takes an agent out of service for good. Raises NotFoundError, PlatformUnavailableError."""
    platform.registry.retire(_own(platform, owner, agent_id), now_ms=platform.now_ms())


def describe(platform: Platform, agent_id: str) -> AgentAnswer:
    """An agent with its reputation. Raises NotFoundError, PlatformUnavailableError."""
    agent = platform.registry.get(agent_id)
    standing = platform.ledger.standing(agent_id)
    scores = {name: reputation.score_tenths(standing, name) for name in reputation.ALGORITHMS}
    shown = AgentReputation(
        score=scores[platform.settings.reputation],
        algorithm=platform.settings.reputation,
        scores=scores,
        outcomes=standing.outcomes,
        successes=standing.successes,
        failures=standing.failures,
        success_rate=None if standing.success_permille is None else standing.success_permille / 1_000,
        distinct_payers=standing.distinct_payers,
        recent=_recent(standing),
    )
    return _answer(agent).model_copy(update={"acceptance": parse_rules(agent.terms.rules), "reputation": shown})


def estimate(platform: Platform, agent_id: str) -> PriceEstimate:
    """What a task of an agent may cost, by terms and history. Raises NotFoundError, PlatformUnavailableError."""
    agent = platform.registry.get(agent_id)
    tariff, judge = pricing.parse_tariff(agent.terms.tariff), parse_rules(agent.terms.rules).judge
    compute = platform.settings.compute
    return PriceEstimate(
        agent_id=agent_id,
        tariff=tariff,
        tariff_sha256=pricing.tariff_sha256(agent.terms.tariff),
        least_price_micro=max(pricing.least_budget_micro(tariff, compute), 1),
        compute=ComputeAnswer(run_micro=compute.run_micro, per_billion_fuel_micro=compute.per_billion_fuel_micro),
        module_sha256=agent.version.module_sha256 if agent.version else None,
        rules_sha256=agent.terms.rules_sha256,
        judging_micro=judge.budget_micro if judge else 0,
        task_judges=_task_judges(agent.terms),
        recent=_recent(platform.ledger.standing(agent_id)),
    )


def page(platform: Platform, *, owner: str | None, limit: int, after: str | None) -> AgentPage:
    """A page of agents, newest first: those that take tasks, or all of one owner's.

    Raises InvalidRequestError for a cursor that is not ours, PlatformUnavailableError.
    """
    found = platform.registry.page(
        owner=owner, limit=min(limit, PAGE_ITEMS_MAX), after=_read_cursor(after) if after else None
    )
    cursor = "{}~{}".format(*found.after) if found.after else None
    return AgentPage(agents=[_answer(agent) for agent in found.agents], next=cursor)


@dataclass(frozen=True, slots=True)
class _Refused:
    """A module that the compiler does not take, and the processor time that it took to find out."""

    rejection: Rejection
    cpu_ms: int


def publish(platform: Platform, key: str, version: str = "") -> AgentState:
    """Makes a posted module the active version of its agent, or records why not. Safe to repeat.

        claim → read → compile → keep → decide

    `key` and `version` name the object in the uploads bucket. The first object of an upload that is claimed is the
    upload; any other one, and any that is not awaited, is refused before it is read. Nothing is stored unless the
    upload is still the newest then. Returns where the upload stands; "retired" if it is nobody's any more.

    Raises PlatformUnavailableError and CompileFailedError, the platform's failures: Lambda tries again, and gives up
    in the end (`give_up`). A crash leaves the upload claimed, and the same object may be claimed again.
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
        standing = platform.registry.get(agent.agent_id)
        if not _is_claimed(standing, posted):  # overtaken, or published by another delivery of the same event
            return _state_of(standing, posted)
        agent = platform.registry.activate(agent, _keep(platform, module, artefact))
    logger.info("published", agent_id=agent.agent_id, upload=posted.number, state=agent.upload.state)
    return _state_of(agent, posted)


def give_up(platform: Platform, key: str, version: str = "") -> AgentState:
    """Records that the platform could not publish an upload, unless it is decided. Safe to repeat.

    The author reads it as the platform's failure and opens another version. An operator may send the event of the same
    object again. Returns where the upload stands. Raises PlatformUnavailableError.
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
    """Compiles an agent's active module anew, if its artefact is of another engine, configuration or processor.

    Each artefact is compiled once, however many ask, for however many agents: a lease in the registry decides who does
    it. After a failure nobody else tries for a while; after a crash the lease ends with the time of its invocation.
    Safe to repeat. Raises NotFoundError, PlatformUnavailableError, CompileFailedError, BlobMissingError,
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
    """Compiles a published module for the engine of today; returns the artefact's digest, None if it is refused."""
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
        # Whatever failed, nobody holds the lease any more: Lambda tries the same event again after a minute.
        platform.registry.postpone_compilation(claim, until_ms=platform.now_ms() + _FAILED_AGAIN_MS)
        raise
    platform.registry.finish_compilation(claim, artefact.sha256)
    return artefact.sha256


def _awaited(platform: Platform, posted: Posted | None) -> Agent | None:
    """The agent whose newest upload this is; None if a newer upload, or retirement, has overtaken it."""
    if posted is None:
        return None
    try:
        agent = platform.registry.get(posted.agent_id)
    except NotFoundError:
        return None
    return None if _is_overtaken(agent, posted) else agent


def _is_overtaken(agent: Agent, posted: Posted) -> bool:
    return agent.retired_ms is not None or agent.upload.number != posted.number


def _is_claimed(agent: Agent, posted: Posted) -> bool:
    """Whether the upload is this object, and being published."""
    upload = agent.upload
    claimed = upload.state is AgentState.PUBLISHING and upload.posted == _name(posted)
    return claimed and not _is_overtaken(agent, posted)


def _state_of(agent: Agent, posted: Posted) -> AgentState:
    return AgentState.RETIRED if _is_overtaken(agent, posted) else agent.upload.state


def _name(posted: Posted) -> str:
    """What the registry notes of an object: its version, which is not there in a bucket without versions."""
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
    """What publishing costs the owner's bond: the module's size, and the processor time, each rounded up."""
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


def _own(platform: Platform, owner: str, agent_id: str) -> Agent:
    agent = platform.registry.get(agent_id)
    if agent.owner != owner:
        msg = f"You have no agent {agent_id!r}."
        raise NotFoundError(msg)
    return agent


def _check_judge(platform: Platform, rules: Rules) -> None:
    if rules.judge is None:
        return
    try:
        judge = platform.registry.get(rules.judge.agent_id)
    except NotFoundError as exc:
        raise InvalidRequestError(judging.NOT_AN_AGENT) from exc
    if judge.version is None or judge.retired_ms is not None:
        raise InvalidRequestError(judging.NOT_AN_AGENT)
    judging.check_fit(judge, rules.judge, platform.settings.compute)


def _upload_form(platform: Platform, agent: Agent) -> AgentUpload:
    url, fields = platform.uploads.presigned_post(agent.agent_id, agent.upload.number)
    expires_ms = platform.now_ms() + UPLOAD_SECONDS_MAX * 1_000
    form = UploadForm(url=url, fields=fields, expires_at=expires_ms)
    return AgentUpload(agent_id=agent.agent_id, state=agent.upload.state, upload=form)


def _terms(tariff: Tariff, limits: AgentLimits, rules: Rules, judges: TaskJudges | None) -> Terms:
    return Terms(
        tariff=pricing.tariff_json(tariff),
        memory_bytes=limits.memory_mib * MIB,
        timeout_s=limits.timeout,
        fuel=limits.fuel,
        rules=rules_json(rules),
        task_judge_bps=judges.rejected_share_bps if judges else None,
    )


def _task_judges(terms: Terms) -> TaskJudges | None:
    if terms.task_judge_bps is None:
        return None
    return TaskJudges.model_construct(rejected_share_bps=terms.task_judge_bps)


def _limits(terms: Terms) -> AgentLimits:
    return AgentLimits(memory_mib=terms.memory_bytes // MIB, timeout=terms.timeout_s, fuel=terms.fuel)


def _answer(agent: Agent) -> AgentAnswer:
    rejection = agent.upload.rejection
    return AgentAnswer(
        agent_id=agent.agent_id,
        owner=agent.owner,
        name=agent.name,
        description=agent.description,
        state=agent.state,
        module_sha256=agent.version.module_sha256 if agent.version else None,
        rejection=AgentRejection(code=rejection.code, message=rejection.message) if rejection else None,
        tariff=pricing.parse_tariff(agent.terms.tariff),
        tariff_sha256=pricing.tariff_sha256(agent.terms.tariff),
        rules_sha256=agent.terms.rules_sha256,
        limits=_limits(agent.terms),
        task_judges=_task_judges(agent.terms),
        created_at=agent.created_ms,
    )


def _recent(standing: Standing) -> AgentEstimate | None:
    known = reputation.estimate(standing)
    if known is None:
        return None
    price, wall = known.price_micro, known.wall_ms
    return AgentEstimate(
        runs=known.runs,
        price=CreditsSpread(
            least_micro=price.least, p50_micro=price.p50, p95_micro=price.p95, greatest_micro=price.greatest
        ),
        execution_time_ms=TimeSpread(least=wall.least, p50=wall.p50, p95=wall.p95, greatest=wall.greatest),
    )


def _read_cursor(cursor: str) -> tuple[int, str]:
    match = read_cursor(_CURSOR, cursor)
    return int(match["created_ms"]), match["agent_id"]
