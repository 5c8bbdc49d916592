"""Agents: registration, uploads and retirement by their owners, and what anyone may read about them."""

import base64
import secrets
from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import Field

from quittance.acceptance.rules import Rules, parse_rules, rules_json
from quittance.agent import Agent, AgentState, Terms, Upload
from quittance.api.identity import Caller
from quittance.api.models import (
    AccountId,
    AgentAnswer,
    AgentEstimate,
    AgentId,
    AgentLimits,
    AgentPage,
    AgentRejection,
    AgentReputation,
    AgentRequest,
    AgentStanding,
    AgentUpload,
    ComputeAnswer,
    CreditsSpread,
    PriceEstimate,
    TaskJudges,
    TimeSpread,
    UploadForm,
    VersionRequest,
)
from quittance.api.requests import Cursor, PageAfter, PageLimit
from quittance.errors import (
    AccountFrozenError,
    AgentNotReadyError,
    BondRequiredError,
    InvalidRequestError,
    NotFoundError,
    PlatformUnavailableError,
)
from quittance.ledger import pricing, reputation
from quittance.ledger.balances import bond_account
from quittance.ledger.pricing import Tariff
from quittance.ledger.reputation import Standing
from quittance.limits import MIB, UPLOAD_SECONDS_MAX
from quittance.platform import Platform
from quittance.store.listings import ListedAgent, Wanted
from quittance.usecases import judges as judging
from quittance.usecases import search

_OPEN_TRIES: Final = 5  # one fails only if another version of the same agent is opened at the same time
_AGENT_ID_BYTES: Final = 10
_CURSOR: Final = Cursor("[A-Za-z0-9_-]{1,64}")


def register(platform: Platform, caller: Caller, request: AgentRequest) -> AgentUpload:
    """Registers an agent of the caller, and returns the form for the upload of its module.

    Raises AccountFrozenError, BondRequiredError, InvalidRequestError for an unsuitable judge,
    PlatformUnavailableError.
    """
    owner = caller.account
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


def open_version(platform: Platform, caller: Caller, agent_id: AgentId, request: VersionRequest) -> AgentUpload:
    """Opens the upload of a new version, with new terms if there are any; until it is active, the old one takes tasks.

    Raises NotFoundError, AgentNotReadyError for a retired agent, InvalidRequestError for an unsuitable judge,
    AccountFrozenError, BondRequiredError, PlatformUnavailableError.
    """
    owner = caller.account
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


def retire(platform: Platform, caller: Caller, agent_id: AgentId) -> AgentAnswer:
    """Takes an agent out of service for good; the results of its tasks can still be read.

    Raises NotFoundError, PlatformUnavailableError.
    """
    platform.registry.retire(_own(platform, caller.account, agent_id), now_ms=platform.now_ms())
    return describe(platform, agent_id)


def describe(platform: Platform, agent_id: AgentId) -> AgentAnswer:
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
