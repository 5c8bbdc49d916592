"""`quittance balance`, `bond`, `statement` and `deposit`: the user's account."""

from typing import Annotated

import typer

from quittance.cli import options, output, remote
from quittance.cli.exits import Exit, UsageError
from quittance.client import BondAnswer, format_credits
from quittance.limits import AMOUNT_MICRO_MAX

_Id = Annotated[
    str | None, typer.Option("--id", help="The movement's id: the same one never counts twice; by default a new one.")
]


def balance(
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """What your account has."""
    with remote.connected(profile) as found:
        account = found.client.balance()
    if output.mode.json:
        output.document(account.model_dump(mode="json", by_alias=True))
    output.facts(
        [
            ("account", account.account_id),
            ("available", format_credits(account.available_micro)),
            ("held", f"{format_credits(account.held_micro)} in tasks that are not settled"),
            ("earned", f"{format_credits(account.earned_micro)} not credited yet"),
        ]
    )
    return Exit.DONE


def bond(
    add: Annotated[str | None, typer.Option(help="Move so many credits from your account into the bond.")] = None,
    release: Annotated[str | None, typer.Option(help="Move so many credits back to your account.")] = None,
    movement: _Id = None,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Your bond, which pays for what failed runs of your agents cost; publishing needs a least one."""
    if add is not None and release is not None:
        raise UsageError("--add and --release are both given.", "Give one of them.")
    change = _change("--add", add) if release is None else -(_change("--release", release) or 0)
    if movement is not None and change is None:
        raise UsageError("--id is given without --add or --release.", "It names a movement.")
    with remote.connected(profile, id_option="--id") as found:
        if change is not None:
            found.client.move_bond(format_credits(change), bond_id=movement)
        now = found.client.bond()
    if output.mode.json:
        output.document(now.model_dump(mode="json", by_alias=True))
    output.facts(_bond_facts(now))
    return Exit.DONE


def _change(option: str, text: str | None) -> int | None:
    return None if text is None else options.amount(option, text, least_micro=1, most_micro=AMOUNT_MICRO_MAX)


def _bond_facts(now: BondAnswer) -> list[tuple[str, str]]:
    return [
        ("available", format_credits(now.available_micro)),
        ("held", format_credits(now.held_micro)),
        ("charged", f"{format_credits(now.charged_micro)} in all"),
        ("releasable", format_credits(now.releasable_micro)),
        ("minimum", f"{format_credits(now.minimum_micro)} to publish"),
    ]


def statement(
    limit: remote.Limit = 20,
    csv: Annotated[bool, typer.Option("--csv", help="The whole statement as CSV, to stdout.")] = False,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Every movement of your credits, newest first."""
    if csv and output.mode.json:
        raise UsageError("--csv and --json are both given.", "Give one of them.")
    with remote.connected(profile) as found:
        if csv:
            for line in found.client.statement_csv():
                output.data(line.encode() + b"\r\n")
            return Exit.DONE
        lines, more = remote.first(found.client.statement(page_size=min(limit, 100)), limit)
    if output.mode.json:
        output.document({"lines": [line.model_dump(mode="json", by_alias=True) for line in lines], "more": more})
        return Exit.DONE
    rows = [
        [remote.when(line.at), line.kind, format_credits(line.amount_micro), line.id, line.agent_id or ""]
        for line in lines
    ]
    output.table(["at (UTC)", "kind", "amount", "id", "agent"], rows)
    remote.say_more(len(lines), more=more, what="movements")
    return Exit.DONE


def deposit(
    amount: Annotated[str, typer.Argument(help="How many credits.")],
    account: Annotated[str, typer.Option(help="Whose account; by default your own.")] = "me",
    movement: _Id = None,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Add credits to an account: on a local cloud, or with a token of the platform's bank (scope ledger:deposit)."""
    micro = options.amount("AMOUNT", amount, least_micro=1, most_micro=AMOUNT_MICRO_MAX)
    with remote.connected(profile, id_option="--id") as found:
        done = found.client.deposit(format_credits(micro), account=account, deposit_id=movement)
    if output.mode.json:
        output.document(done.model_dump(mode="json", by_alias=True))
    output.result(f"Deposited {format_credits(done.amount_micro)} credits to {done.account_id}.")
    return Exit.DONE
