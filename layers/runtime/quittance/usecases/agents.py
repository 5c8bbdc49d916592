"""Agents: registration, versions, terms and retirement by their owners, and what anyone may read about them."""

import base64
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated, Final

from pydantic import Field

from quittance.acceptance.contract import Contract, without_output_schema
from quittance.acceptance.rules import Rules, parse_rules, rules_json
from quittance.agent import Agent, AgentState, Rejection, Terms, Upload, VersionRecord, registered_agent_id
from quittance.api.identity import Caller
from quittance.api.models import (
    AccountId,
    AgentAnswer,
    AgentCard,
    AgentChange,
    AgentEstimate,
    AgentId,
    AgentLimits,
    AgentPage,
    AgentRegistration,
    AgentRejection,
    AgentReputation,
    AgentRequest,
    AgentStanding,
    AgentUpload,
    ComputeAnswer,
    CreditsSpread,
    LimitsChange,
    PriceEstimate,
    TaskJudges,
    TimeSpread,
    UploadForm,
    VersionAnswer,
    VersionPage,
    VersionRequest,
)
from quittance.api.requests import Cursor, PageAfter, PageLimit
from quittance.canonical_json import canonical
from quittance.errors import (
    AccountFrozenError,
    AgentNotReadyError,
    BondRequiredError,
    InvalidRequestError,
    NotFoundError,
    PlatformUnavailableError,
    RegistrationConflictError,
    VersionNotPublishedError,
)
from quittance.ledger import pricing, reputation
from quittance.ledger.balances import bond_account
from quittance.ledger.pricing import Tariff
from quittance.ledger.reputation import Standing
from quittance.limits import MIB, UPLOAD_SECONDS_MAX, VERSION_NUMBER_MAX
from quittance.platform import Platform
from quittance.store.listings import ListedAgent, Wanted
from quittance.usecases import contracts, search
from quittance.usecases import judges as judging

_REVISE_TRIES: Final = 20  # one fails only if another write to the same agent succeeds at the same time
_AGENT_ID_BYTES: Final = 10
_CURSOR: Final = Cursor("[A-Za-z0-9_-]{1,64}")
_VERSION_CURSOR: Final = Cursor()

VersionNumber = Annotated[int, Field(ge=1, le=VERSION_NUMBER_MAX, description="The version's number.")]


def register(platform: Platform, caller: Caller, request: AgentRequest) -> AgentRegistration:
    """Registers an agent of the caller, and returns the form for the upload of its module.

    With a `registration_id` it is safe to repeat: the agent's id is derived from it, and the repeat returns that agent
    in its present state, with a form only if its newest upload still waits for a module. Raises AccountFrozenError,
    BondRequiredError, InvalidRequestError for an unsuitable judge, RegistrationConflictError if the id was used for
    another registration, PlatformUnavailableError.
    """
    owner = caller.account
    _check_not_frozen(platform, owner)
    _check_bond(platform, owner)
    rules = contracts.rules_with(request.acceptance or Rules(), request.contract or Contract())
    terms = _terms(request.tariff, request.limits, rules, request.task_judges)
    agent_id, sha256 = _registration(owner, request, terms)
    if sha256 is not None and (stored := platform.registry.find(agent_id)) is not None:
        return _registered(platform, stored, request, sha256)
    _check_judge(platform, rules)
    contract_sha256 = contracts.keep(platform, request.contract)
    agent = Agent(
        agent_id=agent_id,
        owner=owner,
        name=request.name,
        description=request.description,
        created_ms=platform.now_ms(),
        terms=terms,
        upload=Upload(1, AgentState.AWAITING_UPLOAD, terms, contract_sha256=contract_sha256),
        registered_contract_sha256=contract_sha256,
        registration_sha256=sha256,
    )
    return _registered(platform, platform.registry.create(agent), request, sha256)


def _registration(owner: str, request: AgentRequest, terms: Terms) -> tuple[str, str | None]:
    """The id of the agent to register, and what distinguishes a repeat from a conflict: None if no request repeats it.

    The digest is of what the agent will have, so an absent term and its default are the same.
    """
    if request.registration_id is None:
        return "agt_" + base64.b32encode(secrets.token_bytes(_AGENT_ID_BYTES)).decode().lower(), None
    registered = {
        "name": request.name,
        "description": request.description,
        "contract_sha256": contracts.digest(request.contract),
        **asdict(terms),
    }
    sha256 = hashlib.sha256(canonical(registered).encode()).hexdigest()
    return registered_agent_id(owner, request.registration_id), sha256


def _registered(platform: Platform, agent: Agent, request: AgentRequest, sha256: str | None) -> AgentRegistration:
    """The answer to a registration: the agent as it is stored. Raises RegistrationConflictError if it is another."""
    if agent.registration_sha256 != sha256:
        raise RegistrationConflictError(request.registration_id or "")
    if agent.retired_ms is not None or agent.upload.state is not AgentState.AWAITING_UPLOAD:
        number = agent.upload.number
        return AgentRegistration(agent_id=agent.agent_id, state=agent.state, version=number, upload=None)
    return AgentRegistration(**dict(_upload_form(platform, agent)))


def open_version(platform: Platform, caller: Caller, agent_id: AgentId, request: VersionRequest) -> AgentUpload:
    """Opens the upload of a new version, with new terms if there are any; until it is active, the old one takes tasks.

    Raises NotFoundError, AgentNotReadyError for a retired agent, InvalidRequestError for an unsuitable judge,
    AccountFrozenError, BondRequiredError, PlatformUnavailableError.
    """
    owner = caller.account
    _check_not_frozen(platform, owner)
    agent = _own(platform, owner, agent_id)
    _check_bond(platform, owner)
    for _ in range(_REVISE_TRIES):
        terms = _version_terms(agent.terms, request, _rules_of_version(platform, agent, request))
        _check_judge(platform, parse_rules(terms.rules))
        contract_sha256 = _contract_of_version(platform, agent, request)
        opened = platform.registry.open_upload(agent, terms, contract_sha256)
        if opened.retired_ms is not None:
            raise AgentNotReadyError(agent_id, opened.state)
        awaited = Upload(agent.upload.number + 1, AgentState.AWAITING_UPLOAD, terms, contract_sha256=contract_sha256)
        if opened.upload == awaited:
            return _upload_form(platform, opened)
        agent = opened  # changed at the same time: absent terms are its terms now, and ours is the next upload
    raise PlatformUnavailableError


def _rules_of_version(platform: Platform, agent: Agent, request: VersionRequest) -> Rules:
    """The rules of a new version: those that are sent or the present ones, with the output schema of its contract."""
    present = contracts.stored(platform, agent.contract_sha256)
    rules = request.acceptance
    if rules is None:
        rules = without_output_schema(parse_rules(agent.terms.rules), present)
    return contracts.rules_with(rules, present if request.contract is None else request.contract)


def _contract_of_version(platform: Platform, agent: Agent, request: VersionRequest) -> str | None:
    """The digest of a new version's contract: the one that is sent, or the present one."""
    if request.contract is None:
        return agent.contract_sha256
    return contracts.keep(platform, request.contract)


def activate(platform: Platform, caller: Caller, agent_id: AgentId, number: VersionNumber) -> AgentAnswer:
    """Activates an earlier or later published version, with module, contract and the terms that it last had.

    Tasks that are funded already keep the version and terms that they were funded for. Repeating changes nothing.
    Raises NotFoundError, VersionNotPublishedError, AgentNotReadyError for a retired agent, InvalidRequestError if the
    version's judge is unsuitable now, AccountFrozenError, BondRequiredError, PlatformUnavailableError.
    """
    owner = caller.account
    _check_not_frozen(platform, owner)
    agent = _own(platform, owner, agent_id)
    _check_bond(platform, owner)
    for _ in range(_REVISE_TRIES):
        if agent.retired_ms is not None:
            raise AgentNotReadyError(agent_id, agent.state)
        if agent.version is not None and agent.version.number == number:
            return _described(platform, agent)
        record = _published(platform, agent, number)
        _check_judge(platform, parse_rules(record.terms.rules))
        agent = platform.registry.reactivate(agent, record)
    raise PlatformUnavailableError


def change(platform: Platform, caller: Caller, agent_id: AgentId, request: AgentChange) -> AgentAnswer:
    """Changes an agent's name or description, or the terms of its active version, without an upload.

    Changes by concurrent requests are combined: one that changes the tariff does not undo another one's limits. Tasks
    that are funded already keep their terms. Repeating changes nothing. Raises NotFoundError, AgentNotReadyError for a
    retired agent or for terms without an active version, InvalidRequestError for an unsuitable judge or for rules that
    contradict the contract, AccountFrozenError, BondRequiredError, PlatformUnavailableError.
    """
    owner = caller.account
    _check_not_frozen(platform, owner)
    agent = _own(platform, owner, agent_id)
    _check_bond(platform, owner)
    if request.acceptance is not None:
        _check_judge(platform, request.acceptance)
    for _ in range(_REVISE_TRIES):
        changed = replace(
            agent,
            name=agent.name if request.name is None else request.name,
            description=agent.description if request.description is None else request.description,
            terms=_changed_terms(agent.terms, request, _changed_rules(platform, agent, request)),
        )
        if agent.retired_ms is not None or (agent.version is None and request.has_terms):
            raise AgentNotReadyError(agent_id, agent.state)
        if changed == agent:
            return _described(platform, agent)
        agent = platform.registry.change(agent, changed)
    raise PlatformUnavailableError


def _published(platform: Platform, agent: Agent, number: int) -> VersionRecord:
    """A published version of an agent. Raises NotFoundError, VersionNotPublishedError."""
    if number > agent.upload.number:
        msg = f"The agent {agent.agent_id!r} has no version {number}; its newest is {agent.upload.number}."
        raise NotFoundError(msg)
    record = platform.registry.version(agent, number)
    if record is None or record.version is None:
        raise VersionNotPublishedError(agent.agent_id, number, state=record.state if record else None)
    return record


def _check_bond(platform: Platform, owner: str) -> None:
    """Raises BondRequiredError unless the owner's bond is large enough to publish."""
    minimum_micro = platform.settings.bond_minimum_micro
    if minimum_micro and (bond_micro := platform.ledger.available_micro(bond_account(owner))) < minimum_micro:
        raise BondRequiredError(bond_micro=bond_micro, minimum_micro=minimum_micro)


def _check_not_frozen(platform: Platform, owner: str) -> None:
    if platform.registry.is_frozen(owner):
        raise AccountFrozenError


def retire(platform: Platform, caller: Caller, agent_id: AgentId) -> AgentAnswer:
    """Takes an agent out of service for good; the results of its tasks can still be read.

    Raises NotFoundError, PlatformUnavailableError.
    """
    platform.registry.retire(_own(platform, caller.account, agent_id), now_ms=platform.now_ms())
    return describe(platform, agent_id)


def describe(platform: Platform, agent_id: AgentId) -> AgentAnswer:
    """An agent with its reputation. Raises NotFoundError, PlatformUnavailableError."""
    return _described(platform, platform.registry.get(agent_id))


def _described(platform: Platform, agent: Agent) -> AgentAnswer:
    standing = platform.ledger.standing(agent.agent_id)
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


def card(platform: Platform, agent_id: AgentId) -> AgentCard:
    """What an agent takes, gives and costs now. Raises NotFoundError without an active version."""
    agent = platform.registry.get(agent_id)
    version = contracts.carded_version(agent)
    sha256 = version.contract_sha256
    return AgentCard(
        agent_id=agent_id,
        owner=agent.owner,
        name=agent.name,
        description=agent.description,
        version=version.number,
        module_sha256=version.module_sha256,
        contract_sha256=sha256,
        contract=None if sha256 is None else contracts.stored(platform, sha256),
        tariff=pricing.parse_tariff(agent.terms.tariff),
        tariff_sha256=pricing.tariff_sha256(agent.terms.tariff),
        limits=_limits(agent.terms),
        rules_sha256=agent.terms.rules_sha256,
        acceptance=parse_rules(agent.terms.rules),
        task_judges=_task_judges(agent.terms),
    )


def estimate(platform: Platform, agent_id: AgentId) -> PriceEstimate:
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


def page(  # noqa: PLR0913, PLR0917 - each is a parameter of the query
    platform: Platform,
    owner: Annotated[
        AccountId | None,
        Field(description="All agents of this account, active or not; in a search only its active ones."),
    ] = None,
    q: search.Text = None,
    tag: search.Tag = None,
    max_price: search.Price = None,
    min_score: search.Score = None,
    min_success_rate: search.Rate = None,
    sort: search.Order = None,
    limit: PageLimit = 20,
    after: PageAfter = None,
) -> AgentPage:
    """A page of agents, newest first: those that take tasks, or all of one owner's; or of a search, in its order.

    Raises InvalidRequestError for an invalid text or cursor, PlatformUnavailableError.
    """
    if q or any(given is not None for given in (tag, max_price, min_score, min_success_rate, sort)):
        wanted = Wanted(
            tag=tag,
            owner=owner,
            price_micro_max=max_price,
            score_tenths_min=min_score,
            success_rank_min=None if min_success_rate is None else min_success_rate + 1,
        )
        listed, following = search.find(platform, q, wanted, sort=sort, limit=limit, after=after)
        return AgentPage(agents=_found(platform, listed), next=following)
    found = platform.registry.page(owner=owner, limit=limit, after=_CURSOR.read(after))
    cursor = _CURSOR.write(*found.after) if found.after else None
    return AgentPage(agents=[_answer(agent) for agent in found.agents], next=cursor)


def versions(platform: Platform, agent_id: AgentId, limit: PageLimit = 20, after: PageAfter = None) -> VersionPage:
    """A page of an agent's versions, newest first, with their states and terms.

    Raises InvalidRequestError for an invalid cursor, NotFoundError, PlatformUnavailableError.
    """
    agent = platform.registry.get(agent_id)
    before = _VERSION_CURSOR.read(after)
    newest = agent.upload.number if before is None else min(before[0] - 1, agent.upload.number)
    oldest = max(newest - limit + 1, 1)
    found = platform.registry.versions(agent, range(oldest, newest + 1))
    return VersionPage(
        versions=[_version_answer(found[number]) for number in sorted(found, reverse=True)],
        next=_VERSION_CURSOR.write(oldest) if 1 < oldest <= newest else None,
    )


def _found(platform: Platform, listed: Sequence[ListedAgent]) -> list[AgentAnswer]:
    """The agents of a search as the registry has them now, without those that were retired meanwhile."""
    if not listed:
        return []
    stored = platform.registry.find_all([each.agent_id for each in listed])
    return [
        _answer(stored[each.agent_id]).model_copy(
            update={
                "standing": AgentStanding(
                    score=each.score_tenths,
                    success_rate=(each.success_rank - 1) / 1_000 if each.success_rank else None,
                )
            }
        )
        for each in listed
        if each.agent_id in stored and stored[each.agent_id].state is AgentState.ACTIVE
    ]


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
    upload = agent.upload
    return AgentUpload(agent_id=agent.agent_id, state=upload.state, version=upload.number, upload=form)


def _terms(tariff: Tariff, limits: AgentLimits, rules: Rules, judges: TaskJudges | None) -> Terms:
    return Terms(
        tariff=pricing.tariff_json(tariff),
        memory_bytes=limits.memory_mib * MIB,
        timeout_s=limits.timeout,
        fuel=limits.fuel,
        rules=rules_json(rules),
        task_judge_bps=judges.rejected_share_bps if judges else None,
    )


def _changed_rules(platform: Platform, agent: Agent, request: AgentChange) -> Rules | None:
    """The new rules for outputs, with the output schema of the active version's contract; None if they stay."""
    if request.acceptance is None:
        return None
    return contracts.rules_with(request.acceptance, contracts.stored(platform, agent.contract_sha256))


def _version_terms(terms: Terms, request: VersionRequest, rules: Rules) -> Terms:
    """The terms of a new version, with these rules, of an agent that has these terms."""
    tariff = request.tariff or pricing.parse_tariff(terms.tariff)
    judges = _task_judges(terms) if request.task_judges is None else request.task_judges
    return _terms(tariff, request.limits or _limits(terms), rules, None if judges == "refused" else judges)


def _changed_terms(terms: Terms, request: AgentChange, rules: Rules | None) -> Terms:
    """Terms with a change. What the request does not name stays as it is stored, to the byte."""
    if request.tariff is not None:
        terms = replace(terms, tariff=pricing.tariff_json(request.tariff))
    if request.limits is not None:
        terms = _changed_limits(terms, request.limits)
    if rules is not None:
        terms = replace(terms, rules=rules_json(rules))
    if request.task_judges is not None:
        judges = request.task_judges
        terms = replace(terms, task_judge_bps=None if judges == "refused" else judges.rejected_share_bps)
    return terms


def _changed_limits(terms: Terms, changed: LimitsChange) -> Terms:
    return replace(
        terms,
        memory_bytes=terms.memory_bytes if changed.memory_mib is None else changed.memory_mib * MIB,
        timeout_s=terms.timeout_s if changed.timeout is None else changed.timeout,
        fuel=terms.fuel if changed.fuel is None else changed.fuel,
    )


def _task_judges(terms: Terms) -> TaskJudges | None:
    if terms.task_judge_bps is None:
        return None
    return TaskJudges.model_construct(rejected_share_bps=terms.task_judge_bps)


def _limits(terms: Terms) -> AgentLimits:
    return AgentLimits(memory_mib=terms.memory_bytes // MIB, timeout=terms.timeout_s, fuel=terms.fuel)


def _answer(agent: Agent) -> AgentAnswer:
    return AgentAnswer(
        agent_id=agent.agent_id,
        owner=agent.owner,
        name=agent.name,
        description=agent.description,
        state=agent.state,
        version=agent.version.number if agent.version else None,
        module_sha256=agent.version.module_sha256 if agent.version else None,
        contract_sha256=agent.version.contract_sha256 if agent.version else None,
        rejection=_rejection(agent.upload.rejection),
        tariff=pricing.parse_tariff(agent.terms.tariff),
        tariff_sha256=pricing.tariff_sha256(agent.terms.tariff),
        rules_sha256=agent.terms.rules_sha256,
        limits=_limits(agent.terms),
        task_judges=_task_judges(agent.terms),
        created_at=agent.created_ms,
    )


def _rejection(rejection: Rejection | None) -> AgentRejection | None:
    return AgentRejection(code=rejection.code, message=rejection.message) if rejection else None


def _version_answer(record: VersionRecord) -> VersionAnswer:
    terms, version = record.terms, record.version
    return VersionAnswer(
        number=record.number,
        state=record.state,
        module_sha256=version.module_sha256 if version else None,
        contract_sha256=record.contract_sha256,
        tariff=pricing.parse_tariff(terms.tariff),
        tariff_sha256=pricing.tariff_sha256(terms.tariff),
        rules_sha256=terms.rules_sha256,
        limits=_limits(terms),
        task_judges=_task_judges(terms),
        rejection=_rejection(record.rejection),
        published_at=version.published_ms if version else None,
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
