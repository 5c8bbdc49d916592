"""`quittance agents search` and `agents show`: which agents there are, what they take, give and cost."""

import json as jsons
from typing import Annotated, Any, Final, Literal

import typer

from quittance.acceptance.contract import Contract
from quittance.api.models import AgentAnswer, PriceEstimate
from quittance.cli import options, output, remote
from quittance.cli.exits import Exit
from quittance.cli.remote import price_text
from quittance.client import NotFoundError, format_credits
from quittance.limits import AMOUNT_MICRO_MAX

_TENTHS: Final = 10
_SCORE_MAX: Final = 100.0
_SCHEMA_CHARS_MAX: Final = 2_000

app: Final = typer.Typer(
    help="Find agents, and see what one takes, gives and costs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def search(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[QUERY]...", help="Words of the name, description and tags.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Only agents with this tag.")] = None,
    max_price: Annotated[str | None, typer.Option(help="Only agents whose least price is at most this.")] = None,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=_SCORE_MAX, help="Only agents with at least this score.")
    ] = None,
    min_success_rate: Annotated[
        float | None, typer.Option(min=0, max=1, help="Only agents with at least this share of successes, from 0 to 1.")
    ] = None,
    sort: Annotated[
        Literal["newest", "price", "score", "success_rate"] | None, typer.Option(help="The order; by default newest.")
    ] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Your own agents, also those that take no tasks.")] = False,
    limit: remote.Limit = 20,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Find agents that take tasks."""
    most = None if max_price is None else options.amount("--max-price", max_price, most_micro=AMOUNT_MICRO_MAX)
    query = " ".join(words or ()) or None
    with remote.connected(profile) as found:
        pages = found.client.agents.list(
            q=query,
            tag=tag,
            max_price=None if most is None else format_credits(most),
            min_score=min_score,
            min_success_rate=min_success_rate,
            sort=sort,
            owner=found.client.balance().account_id if mine else None,
            page_size=min(limit, 100),
        )
        shown, more = remote.first(pages, limit)
    if output.mode.json:
        output.document({"agents": [agent.model_dump(mode="json", by_alias=True) for agent in shown], "more": more})
        return Exit.DONE
    rows = [
        [agent.agent_id, output.one_line(agent.name), agent.state, price_text(agent.tariff), *_standing(agent)]
        for agent in shown
    ]
    output.table(["agent", "name", "state", "price", "score", "successes"], rows)
    remote.say_more(len(shown), more=more, what="agents")
    return Exit.DONE


def _standing(agent: AgentAnswer) -> list[str]:
    found = agent.standing or agent.reputation
    if found is None:
        return ["", ""]
    return [f"{found.score / _TENTHS:g}", "" if found.success_rate is None else f"{found.success_rate:.1%}"]


@app.command()
def show(
    agent: remote.AgentName = None,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """What an agent takes, gives and costs, and how it has done so far."""
    with remote.connected(profile) as found:
        agent_id = remote.agent_of(agent, found).agent_id
        agents = found.client.agents
        known, estimate = agents.get(agent_id), agents.estimate(agent_id)
        try:
            contract = agents.card(agent_id).contract
        except NotFoundError:  # without an active version there is no card
            contract = None
    if output.mode.json:
        body = known.model_dump(mode="json", by_alias=True) | {
            "estimate": estimate.model_dump(mode="json", by_alias=True)
        }
        output.document(body | {"contract": None if contract is None else _plain(contract)})
        return Exit.DONE
    output.facts(_facts(known, estimate))
    if contract is not None:
        _show_contract(contract)
    return Exit.DONE


def _plain(contract: Contract) -> Any:  # noqa: ANN401 - JSON
    from quittance.acceptance.contract import contract_json

    return jsons.loads(contract_json(contract))


def _facts(agent: AgentAnswer, estimate: PriceEstimate) -> list[tuple[str, str]]:
    lines = [
        ("agent", f"{agent.agent_id} ({output.one_line(agent.name)}), of {agent.owner}"),
        ("about", output.one_line(agent.description)),
        ("state", f"{agent.state}, version {agent.version or 'none'}"),
        ("module", agent.module_sha256 or "none"),
        ("price", price_text(agent.tariff)),
        ("least", f"{format_credits(estimate.least_price_micro)} with the compute of the shortest run"),
        ("limits", f"{agent.limits.memory_mib} MiB, {agent.limits.timeout} s, {agent.limits.fuel:,} fuel"),
    ]
    if agent.rejection is not None:
        lines.append(("rejected", output.one_line(agent.rejection.message)))
    if agent.reputation is not None:
        rate = agent.reputation.success_rate
        share = "no results yet" if rate is None else f"{rate:.1%} successes"
        lines.append(("score", f"{agent.reputation.score / _TENTHS:g} of 100, {share}"))
    if estimate.recent is not None:
        spread = estimate.recent.price
        lines.append(("recent", f"{format_credits(spread.p50_micro)} to {format_credits(spread.p95_micro)} a run"))
    return lines


def _show_contract(contract: Contract) -> None:
    facts = [("tags", " ".join(contract.tags)), ("licence", contract.licence or ""), ("source", contract.source or "")]
    for name, schema in (("takes", contract.input_schema), ("gives", contract.output_schema)):
        if schema is not None:
            facts.append((name, jsons.dumps(schema, ensure_ascii=False, default=str)[:_SCHEMA_CHARS_MAX]))
    facts += [
        ("example", f"{output.one_line(example.name)}: {output.one_line(_shortened(example.stdin))}")
        for example in contract.examples
    ]
    output.facts([(name, value) for name, value in facts if value])


def _shortened(data: bytes, chars_max: int = 200) -> str:
    text = data.decode(errors="backslashreplace")
    return text if len(text) <= chars_max else f"{text[:chars_max]}…"
