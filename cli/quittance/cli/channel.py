"""`quittance channel`: payment channels, whose key pays tasks without a sign-in."""

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from quittance.api.models import ChannelAnswer
from quittance.cli import call, options, output, remote
from quittance.cli.exits import Exit, UsageError
from quittance.cli.files import read_file
from quittance.cli.remote import when
from quittance.client import ChannelConflictError, ChannelKey, ConfigurationError, Ticket, format_credits
from quittance.limits import CHANNEL_TICKETS_MAX, LAMBDA_SYNC_BYTES_MAX, TICKET_NUMBER_MAX

app: Final = typer.Typer(
    help="Payment channels: one deposit, spent by a key without a sign-in.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_KeyFile = Annotated[Path, typer.Argument(metavar="FILE", help="The file of the channel's key.")]
_Channel = Annotated[str, typer.Argument(metavar="CHANNEL", help="A channel's id, or the file of its key.")]
_AT_ONCE: Final = 100


@app.command("open")
def open_channel(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the new key is kept, for its user alone.")],
    ticket_value: Annotated[str, typer.Option(help="The most that one ticket pays, in credits.")],
    tickets: Annotated[int, typer.Option(min=1, max=CHANNEL_TICKETS_MAX, help="How many tickets the deposit covers.")],
    until: Annotated[str, typer.Option(help="When it closes by itself: a time, or in how long: 12h, 30d.")] = "30d",
    agent: Annotated[
        list[str] | None,
        typer.Option(help="An agent that it may pay; again for others; by default all."),
    ] = None,
    max_per_task: Annotated[str | None, typer.Option(help="The most that one task may cost, in credits.")] = None,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Open a channel, and write a new key for it. The deposit leaves your account; what is not spent comes back.

    Whoever has the file can spend the deposit: no more, on no other agents, and only until then.
    """
    value = options.amount("--ticket-value", ticket_value, least_micro=1)
    most = None if max_per_task is None else options.amount("--max-per-task", max_per_task, least_micro=1)
    expires = options.ahead("--until", until)
    key = _new_key(file)
    with remote.connected(profile) as found:
        agents = [remote.agent_of(name, found).agent_id for name in agent or []]
        try:
            opened = found.client.open_channel(
                key,
                ticket_value=format_credits(value),
                tickets=tickets,
                expires_at=expires,
                agents=agents or None,
                max_per_task=None if most is None else format_credits(most),
            )
        except ChannelConflictError:
            before = next((each for each in found.client.channels() if each.key.x == key.jwk["x"]), None)
            if before is None:
                raise
            key.bind(before, api=found.platform.profile.api)
            opened = before
            output.say("An earlier call had opened this channel, with these terms.")
    return _show(opened, said=f"The key is in {file}. Spend it: quittance call AGENT --channel {file}")


def _new_key(file: Path) -> ChannelKey:
    """A key in a file that had none before. One that has no channel yet is used: opening it did not succeed.

    The file is written before the deposit leaves the account, so no channel is without its key. Raises UsageError.
    """
    with call.key_errors():
        if not file.exists():
            key = ChannelKey.new()
            key.save(file)
            return key
        key = ChannelKey.load(file)
    try:
        named = key.channel_id
    except ConfigurationError:
        return key
    raise UsageError(f"{file} has the key of the channel {named}.", "Name another file for another channel.")


@app.command("list")
def list_channels(
    limit: remote.Limit = 20,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Your channels, newest first. A channel is listed some seconds after it is opened."""
    with remote.connected(profile) as found:
        lines, more = remote.first(found.client.channels(page_size=min(limit, _AT_ONCE)), limit)
    if output.mode.json:
        output.document({"channels": [line.model_dump(mode="json", by_alias=True) for line in lines], "more": more})
        return Exit.DONE
    rows = [
        [
            line.channel_id,
            line.state,
            format_credits(line.deposit_micro),
            format_credits(line.spent_micro),
            format_credits(line.returned_micro),
            when(line.expires_at),
        ]
        for line in lines
    ]
    output.table(["channel", "state", "deposit", "spent", "returned", "expires (UTC)"], rows)
    remote.say_more(len(lines), more=more, what="channels")
    return Exit.DONE


@app.command()
def show(
    channel: _Channel,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """One of your channels: what was paid in, spent, and is held. What tasks cost is counted about a minute later."""
    channel_id = _id_of(channel)
    with remote.connected(profile) as found:
        now = found.client.channel(channel_id)
    return _show(now)


@app.command()
def topup(
    channel: _Channel,
    tickets: Annotated[int, typer.Argument(min=1, max=CHANNEL_TICKETS_MAX, help="How many more tickets.")],
    movement: Annotated[
        str | None, typer.Option("--id", help="The top-up's id: the same one never counts twice; by default a new one.")
    ] = None,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Pay more tickets into one of your open channels."""
    channel_id = _id_of(channel)
    with remote.connected(profile, id_option="--id") as found:
        done = found.client.top_up(channel_id, tickets, topup_id=movement)
    if output.mode.json:
        output.document(done.model_dump(mode="json", by_alias=True))
    output.result(f"Paid {format_credits(done.amount_micro)} credits into {done.channel_id}.")
    return Exit.DONE


@app.command()
def close(
    channel: _Channel,
    by_key: Annotated[
        bool, typer.Option("--by-key", help="By the key in the file, without a sign-in. The rest goes to its payer.")
    ] = False,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Close a channel: it takes no more tickets at once, and in a few minutes the rest is back in your account."""
    if by_key:
        _refuse("--by-key", **{"--profile": profile})
        key = call.channel_key(Path(channel))
        with remote.spending(key) as found:
            closing = found.client.close_channel_by_key(key)
    else:
        channel_id = _id_of(channel)
        with remote.connected(profile) as found:
            closing = found.client.close_channel(channel_id)
    return _show(closing, said="The rest is returned once all its tasks are counted, in about three minutes.")


@app.command()
def tickets(
    channel: _Channel,
    limit: remote.Limit = 20,
    sync: Annotated[
        bool, typer.Option("--sync", help="Also write the numbers that are free now into the file of its key.")
    ] = False,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """The used tickets of one of your channels: which tasks they paid, and what those took so far."""
    key = call.channel_key(Path(channel)) if sync else None
    channel_id = _id_of(channel)
    with remote.connected(profile) as found:
        free = None if key is None else found.client.find_numbers(key)
        lines, more = remote.first(found.client.tickets(channel_id, page_size=min(limit, _AT_ONCE)), limit)
    if output.mode.json:
        lined = [line.model_dump(mode="json", by_alias=True) for line in lines]
        output.document({"channel_id": channel_id, "tickets": lined, "more": more, "free": free})
        return Exit.DONE
    rows = [
        [
            str(line.number),
            str(line.tickets or "taken out of use"),
            line.task_id or "",
            line.agent_id or "",
            line.escrow_status or "",
            "" if line.cost_micro is None else format_credits(line.cost_micro),
        ]
        for line in lines
    ]
    output.table(["number", "tickets", "task", "agent", "state", "cost"], rows)
    remote.say_more(len(lines), more=more, what="used tickets")
    if free is not None:
        output.say(f"{channel} has {free} free numbers.")
    return Exit.DONE


@app.command()
def sign(
    file: _KeyFile,
    agent: remote.AgentName = None,
    input_file: call.InputFile = None,
    text: Annotated[str | None, typer.Option(help="The text that the agent reads.")] = None,
    budget: Annotated[str | None, typer.Option(help="The most that it may cost; by default one ticket.")] = None,
    timeout: call.Timeout = None,
    keep_input: call.KeepInput = False,
    share: call.Share = None,
    number: Annotated[
        int | None,
        typer.Option(min=1, max=TICKET_NUMBER_MAX, help="The ticket's number; by default the file's next."),
    ] = None,
    valid_for: Annotated[str, typer.Option(help="How long it can be used, such as 15m, 2h or 30d.")] = "15m",
) -> int:
    """Sign a ticket for one task, without sending it. Prints the request with its ticket, as one line of JSON.

    That is what a direct invocation and the queue take. Over HTTP, send the member `ticket` as the header
    `Payment-Ticket`, and the rest as the body. Nothing is paid twice, however often it is sent.
    """
    key = call.channel_key(file)
    data = call.given_input(input_file, text)
    with remote.spending(key) as found:
        task = call.asked_by_ticket(key, found, agent, call.Wanted(budget, timeout, keep_input, share))
        ticket = key.sign(
            task.agent_id,
            data,
            budget=task.budget,
            number=number,
            expires_in=options.span_s("--valid-for", valid_for),
            **task.terms,
        )
    output.data(ticket.to_json().encode() + b"\n")
    return Exit.DONE


@app.command()
def send(
    ticket_file: Annotated[Path, typer.Argument(metavar="TICKET", help="What `quittance channel sign` printed.")],
    channel: Annotated[Path | None, typer.Option(help="The file of the channel's key: its platform.")] = None,
    verify: call.Verify = False,
    keys: call.Keys = None,
    save_receipt: call.SaveReceipt = None,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Send a signed ticket and wait for its task, as `quittance call` does. The same ticket never pays twice.

    Exit code 1: the agent failed, and was not paid.
    """
    with call.key_errors():
        ticket = Ticket.from_json(read_file(ticket_file, bytes_max=LAMBDA_SYNC_BYTES_MAX).decode(errors="replace"))
    call.check_writable(save_receipt)
    checking = call.verifier(verify, keys)
    if channel is not None:
        _refuse("--channel", **{"--profile": profile})
        connection = remote.spending(call.channel_key(channel), verify=checking)
    else:
        connection = remote.connected(profile, verify=checking, needs_token=False)
    with connection as found, output.progress("the agent works"):
        result = found.client.redeem(ticket)
    return call.show(result, save_receipt=save_receipt, verified=checking is not None)


def _id_of(channel: str) -> str:
    """The id of a channel that is named by it or by the file of its key. Raises UsageError."""
    if channel.startswith("chn_") and not os.path.lexists(channel):
        return channel
    return call.channel_key(Path(channel)).channel_id


def _refuse(option: str, **others: object) -> None:
    for name, value in others.items():
        if value:
            raise UsageError(f"{option} and {name} are both given.", "The file of the key names its platform.")


def _show(now: ChannelAnswer, *, said: str = "") -> int:
    if output.mode.json:
        output.document(now.model_dump(mode="json", by_alias=True))
    most = "" if now.max_per_task_micro is None else f", at most {format_credits(now.max_per_task_micro)} a task"
    lines = [
        ("channel", now.channel_id),
        ("state", now.state),
        ("deposit", format_credits(now.deposit_micro)),
        ("spent", format_credits(now.spent_micro)),
        ("held", f"{format_credits(now.held_micro)} for tickets that are not counted yet"),
        ("returned", format_credits(now.returned_micro)),
        ("ticket", f"{format_credits(now.ticket_micro)}{most}"),
        ("numbers", f"1 to {now.numbers}; {now.used} of them are counted"),
        ("agents", ", ".join(now.agents) if now.agents else "all"),
        ("expires", f"{when(now.expires_at)} UTC"),
    ]
    output.facts(lines)
    if said:
        output.say(said)
    return Exit.DONE
