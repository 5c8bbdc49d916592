"""`quittance versions`, `rollback`, `price`, `retire` and `runs`: what an owner does with a published agent."""

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from quittance import canonical_json
from quittance.agent import VersionState
from quittance.api.models import AgentAnswer, RunWithLog, VersionAnswer
from quittance.cli import options, output, remote
from quittance.cli.exits import Exit, RefusedError, UsageError
from quittance.cli.project import FILE_NAME
from quittance.cli.remote import Named, Remote, price_text, when
from quittance.client import format_credits
from quittance.ledger.pricing import FlatTariff, tariff_json
from quittance.limits import AMOUNT_MICRO_MAX

_DIGEST_CHARS: Final = 12
_RUN_ID_CHARS: Final = 26
_METERED: Final = ("base", "per_million_fuel", "per_mib_memory", "per_kib_output", "minimum")


def versions(
    agent: remote.AgentName = None,
    limit: remote.Limit = 20,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """The versions of an agent, newest first: what each costs, and why one was rejected."""
    with remote.connected(profile) as found:
        agent_id = remote.agent_of(agent, found).agent_id
        shown, more = remote.first(found.client.agents.versions(agent_id, page_size=min(limit, 100)), limit)
    if output.mode.json:
        lines = [version.model_dump(mode="json", by_alias=True) for version in shown]
        output.document({"agent_id": agent_id, "versions": lines, "more": more})
        return Exit.DONE
    rows: list[list[str | Text]] = [
        [
            str(version.number),
            Text(version.state, style="bold green" if version.state is VersionState.ACTIVE else ""),
            when(version.published_at),
            (version.module_sha256 or "")[:_DIGEST_CHARS],
            price_text(version.tariff),
            output.one_line(version.rejection.message) if version.rejection else "",
        ]
        for version in shown
    ]
    output.table(["version", "state", "published (UTC)", "module", "price", "rejected because"], rows)
    remote.say_more(len(shown), more=more, what="versions")
    return Exit.DONE


def rollback(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[AGENT] [NUMBER]",
            help="The agent, by default that of the current project; and the version, by default the one before the"
            " active one. A later version may be named too.",
            show_default=False,
        ),
    ] = None,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Activate an earlier version of an agent, or a later one again. It gets the terms that it last had."""
    agent, number = _agent_and_number(words or [])
    with remote.connected(profile) as found:
        agent_id = remote.agent_of(agent, found).agent_id
        agents = found.client.agents
        before = agents.get(agent_id)
        if number is None:
            number = _before_active(list(agents.versions(agent_id)), before)
        now = agents.activate(agent_id, number)
    if output.mode.json:
        output.document({**now.model_dump(mode="json", by_alias=True), "version_before": before.version})
        return Exit.DONE
    output.facts(
        [
            ("agent", f"{agent_id} ({now.name})"),
            ("version", f"{before.version} → {now.version}"),
            ("module", now.module_sha256 or ""),
            ("price", price_text(now.tariff)),
        ]
    )
    if before.version is not None:
        output.say(f"Back again: quittance rollback {agent or ''} {before.version}".replace("  ", " "))
    return Exit.DONE


def _agent_and_number(words: list[str]) -> tuple[str | None, int | None]:
    numbers = [word for word in words if word.isascii() and word.isdigit() and len(word) <= 9]
    names = [word for word in words if word not in numbers]
    if len(numbers) > 1 or len(names) > 1:
        raise UsageError(f"There are too many words: {' '.join(words)}.", "Name one agent and one version's number.")
    return next(iter(names), None), next(map(int, numbers), None)


def _before_active(versions: list[VersionAnswer], agent: AgentAnswer) -> int:
    published = [version.number for version in versions if version.state is VersionState.INACTIVE]
    earlier = [number for number in published if agent.version is None or number < agent.version]
    if not earlier:
        others = f" Others are published: {', '.join(map(str, published))}." if published else ""
        raise RefusedError(
            f"The agent {agent.agent_id} has no published version before {agent.version}.{others}",
            "List them: quittance versions",
            code="no_earlier_version",
        )
    return max(earlier)


def price(
    agent: remote.AgentName = None,
    flat: Annotated[str | None, typer.Option(help="One price for each successful run.")] = None,
    base: Annotated[str | None, typer.Option(help="Of each run.")] = None,
    per_million_fuel: Annotated[str | None, typer.Option(help="Per million units of fuel.")] = None,
    per_mib_memory: Annotated[str | None, typer.Option(help="Per MiB of memory.")] = None,
    per_kib_output: Annotated[str | None, typer.Option(help="Per KiB of output.")] = None,
    minimum: Annotated[str | None, typer.Option(help="The least price of a run.")] = None,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Show an agent's price, or change it without an upload. Tasks under way keep the price they were funded with."""
    rates = dict(zip(_METERED, (base, per_million_fuel, per_mib_memory, per_kib_output, minimum), strict=True))
    given = {name: _rate(name, text) for name, text in rates.items() if text is not None}
    if flat is not None and given:
        raise UsageError("--flat and rates of a metered price are both given.", "A price is flat or metered.")
    with remote.connected(profile) as found:
        named = remote.agent_of(agent, found)
        before = found.client.agents.get(named.agent_id)
        change: dict[str, Any] | None = None
        if flat is not None:
            change = {"type": "flat", "price": _rate("flat", flat)}
        elif given:
            old = {} if isinstance(before.tariff, FlatTariff) else canonical_json.read(tariff_json(before.tariff))
            change = {"type": "metered", **{name: old[name] for name in _METERED if name in old}, **given}
        now = before if change is None else found.client.agents.update(named.agent_id, tariff=change)
        estimate = found.client.agents.estimate(named.agent_id)
    if output.mode.json:
        tariff = {"tariff": now.tariff.model_dump(mode="json", by_alias=True), "tariff_sha256": now.tariff_sha256}
        former = {"tariff_before": before.tariff.model_dump(mode="json", by_alias=True)} if change else {}
        output.document(
            {"agent_id": named.agent_id, **tariff, **former, "least_price": format_credits(estimate.least_price_micro)}
        )
        return Exit.DONE
    lines = [("agent", f"{named.agent_id} ({now.name})")]
    lines += [("price", price_text(now.tariff))] if change is None else []
    lines += [] if change is None else [("before", price_text(before.tariff)), ("now", price_text(now.tariff))]
    lines.append(("least", f"{format_credits(estimate.least_price_micro)} with the compute of the shortest run"))
    if estimate.recent:
        recent = estimate.recent.price
        spread = f"{format_credits(recent.p50_micro)} in the middle, {format_credits(recent.p95_micro)} for 95 of 100"
        lines.append(("recent", f"{spread}, of {estimate.recent.runs} runs"))
    output.facts(lines)
    if change is not None and named.project is not None and named.project.tariff != tariff_json(now.tariff):
        output.say(f"{FILE_NAME} still has {price_text(named.project.file.tariff)}: the next publish sets that again.")
    return Exit.DONE


def _rate(name: str, text: str) -> str:
    return format_credits(options.amount(f"--{name.replace('_', '-')}", text, most_micro=AMOUNT_MICRO_MAX))


def retire(
    agent: remote.AgentName = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Take an agent out of service for good. Tasks under way are finished."""
    with remote.connected(profile) as found:
        agent_id = remote.agent_of(agent, found).agent_id
        known = found.client.agents.get(agent_id)
        if not yes and not _confirmed(f"Retire {agent_id} ({output.one_line(known.name)}) for good?"):
            output.say("Nothing was changed.")
            return Exit.FAILED
        now = found.client.agents.retire(agent_id)
    if output.mode.json:
        output.document(now.model_dump(mode="json", by_alias=True))
    output.result(f"The agent {agent_id} is {now.state}.")
    return Exit.DONE


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty() or output.mode.json:
        raise UsageError("This must be confirmed, and there is nobody to ask.", "Add --yes.")
    return typer.confirm(question, err=True)


def runs(
    agent: remote.AgentName = None,
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's id: show this one, with its log.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that were not paid.")] = False,
    since: Annotated[str | None, typer.Option(help="Only those since a time, or so long ago: 30m, 2h, 7d.")] = None,
    limit: remote.Limit = 20,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """The settled runs of your agent, newest first; or one run, with its log if the payer shares that.

    A run is listed some seconds after it is settled.
    """
    if run is None and agent is not None and _is_run(agent) and not (Path(agent) / FILE_NAME).is_file():
        agent, run = None, agent
    start = remote.moment("--since", since)
    with remote.connected(profile) as found:
        named = remote.agent_of(agent, found)
        if run is not None:
            return _one(found, named, run)
        wanted = found.client.agents.runs(
            named.agent_id, outcome="failed" if failed else None, since=start, page_size=min(limit, 100)
        )
        shown, more = remote.first(wanted, limit)
    if output.mode.json:
        lines = [line.model_dump(mode="json", by_alias=True) for line in shown]
        output.document({"agent_id": named.agent_id, "runs": lines, "more": more})
        return Exit.DONE
    rows: list[list[str | Text]] = [
        [
            line.run_id,
            when(line.settled_at),
            Text(line.outcome, style="" if line.success else "red"),
            f"{line.fuel_used:,}",
            f"{line.execution_time_ms} ms",
            format_credits(line.amount_paid_micro),
            output.one_line(line.message or ""),
        ]
        for line in shown
    ]
    output.table(["run", "settled (UTC)", "outcome", "fuel", "time", "earned", "reason"], rows)
    remote.say_more(len(shown), more=more, what="runs")
    return Exit.DONE


def _is_run(text: str) -> bool:
    return len(text) == _RUN_ID_CHARS and all(letter in "abcdefghijklmnopqrstuvwxyz234567" for letter in text)


def _one(found: Remote, named: Named, run: str) -> int:
    one = found.client.agents.run(named.agent_id, run)
    if output.mode.json:
        output.document(one.model_dump(mode="json", by_alias=True))
        return Exit.DONE
    output.facts(_run_facts(one))
    if one.log is not None:
        output.result("log:")
        for line in one.log.splitlines():
            output.result(f"  {line}")
    else:
        output.say("The payer does not share the log.")
    return Exit.DONE


def _run_facts(one: RunWithLog) -> list[tuple[str, str]]:
    return [
        ("run", one.run_id),
        ("settled", f"{when(one.settled_at)} UTC"),
        ("outcome", one.outcome),
        *([("reason", one.message)] if one.message else []),
        *([] if one.success else [("fault", one.fault)]),
        ("module", one.module_sha256),
        ("fuel", f"{one.fuel_used:,}"),
        ("memory", f"{one.memory_used_mb:g} MiB"),
        ("time", f"{one.execution_time_ms} ms"),
        ("earned", format_credits(one.amount_paid_micro)),
        ("payer", one.payer or "not shared"),
    ]
