"""`quittance call`, `result` and `tasks`: paid tasks, and what became of them."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from quittance.acceptance.contract import refused
from quittance.api.models import AgentCard, PriceEstimate, TaskPending, TaskResult
from quittance.cli import options, output, remote
from quittance.cli.exits import CliError, Exit, PlatformError, UsageError
from quittance.cli.files import STDIN, read_file, read_stdin
from quittance.cli.remote import Remote, when
from quittance.cli.run import as_text_or_base64
from quittance.client import (
    ChannelKey,
    Client,
    ConfigurationError,
    TaskTerms,
    Verifier,
    format_credits,
    new_id,
    output_bytes,
)
from quittance.ledger import pricing
from quittance.ledger.pricing import ComputePrices, FlatTariff
from quittance.limits import BUDGET_MICRO_MAX, INPUT_BYTES_MAX, KIB, MIB
from quittance.run import Meter

_SHARES: Final = ("payer", "log")
_POLL_S_MIN: Final = 0.3
_POLL_S_MAX: Final = 3.0
_GUESSED_FUEL: Final = 1_000_000_000
_GUESSED_OUTPUT_BYTES: Final = 64 * KIB
_GUESS_MICRO_MAX: Final = 1_000_000
"""The default budget for an agent without recent runs: never more than one credit unless its least price is more."""

Verify = Annotated[bool, typer.Option("--verify", help="Check the receipt before the answer is shown.")]
Keys = Annotated[
    Path | None, typer.Option(help="Root keys (jwks.json) that you saved: check the receipt with these alone.")
]
SaveReceipt = Annotated[Path | None, typer.Option(help="Write the receipt to this file.")]
InputFile = Annotated[
    Path | None, typer.Option("--input", "-i", help="The file that the agent reads; - for standard input.")
]
Timeout = Annotated[str | None, typer.Option(help="The agent's time for it, in whole seconds.")]
KeepInput = Annotated[bool, typer.Option("--keep-input", help="Keep the input, to read it again: result TASK --input.")]
Share = Annotated[str | None, typer.Option(help="What the agent's owner may see: payer, log, or both (payer,log).")]


def call(
    agent: remote.AgentName = None,
    input_file: InputFile = None,
    text: Annotated[
        str | None,
        typer.Option(
            help='The text that the agent reads; where its contract takes JSON, as a string or {"text": ...}.'
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="The most that it may cost, in credits; by default as recent runs cost.")
    ] = None,
    timeout: Timeout = None,
    queued: Annotated[bool, typer.Option("--async", help="Return at once; read the outcome with result.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Queue the task, and show its state until it is settled.")
    ] = False,
    pin: Annotated[
        bool, typer.Option("--pin", help="Only with the module, tariff and rules that the agent has at this moment.")
    ] = False,
    keep_input: KeepInput = False,
    share: Share = None,
    task_id: Annotated[
        str | None, typer.Option(help="The task's id: the same one never runs twice; by default a new one.")
    ] = None,
    channel: Annotated[
        Path | None,
        typer.Option(help="Pay by a ticket of the channel whose key is in this file. No sign-in is needed."),
    ] = None,
    verify: Verify = False,
    keys: Keys = None,
    save_receipt: SaveReceipt = None,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Run a task and pay for it if it succeeds. The output goes to stdout, the log and the report to stderr.

    Exit code 1: the agent failed, and was not paid.
    """
    if queued and watch:
        raise UsageError("--async and --watch are both given.", "--watch queues the task too, and waits.")
    data = given_input(input_file, text)
    if channel is not None:
        others = {"--async": queued, "--watch": watch, "--pin": pin, "--task-id": task_id, "--profile": profile}
        for option in (name for name, value in others.items() if value):
            raise UsageError(f"--channel and {option} are both given.", _WITHOUT[option])
        check_writable(save_receipt)
        checking = verifier(verify, keys)
        paid = _by_ticket(channel, agent, data, Wanted(budget, timeout, keep_input, share), checking)
        return show(paid, save_receipt=save_receipt, verified=checking is not None)
    budget_micro = None if budget is None else options.amount("--budget", budget, least_micro=1)
    timeout_s = None if timeout is None else options.timeout_ms(timeout) // 1_000
    shared = _share(share)
    check_writable(save_receipt)
    with remote.connected(profile, verify=verifier(verify, keys), id_option="--task-id") as found:
        agent_id = remote.agent_of(agent, found).agent_id
        agents = found.client.agents
        with output.progress("reading the agent's terms"):
            wants_card = text is not None or budget_micro is None
            card = agents.card(agent_id) if wants_card else None
            estimate = agents.estimate(agent_id) if budget_micro is None else None
        if card is not None and text is not None:
            data = _as_taken(text, data, card)
        if card is not None and estimate is not None:
            budget_micro, why = default_budget(estimate, card)
            output.say(f"budget {format_credits(budget_micro)}: {why}; what is not spent comes back")
        terms = TaskTerms(timeout=timeout_s, keep_input=keep_input or None, share=shared)
        if pin:
            terms = TaskTerms(**terms, **agents.pins(agent_id))
        task = _Task(task_id or new_id(), agent_id, data, format_credits(budget_micro or 0), terms)
        result = _run(found.client, task, queued=queued, watch=watch)
    return show(result, save_receipt=save_receipt, verified=verify or keys is not None)


@dataclass(frozen=True, slots=True)
class _Task:
    task_id: str
    agent_id: str
    data: bytes
    budget: str
    terms: TaskTerms


def _run(client: Client, task: _Task, *, queued: bool, watch: bool) -> TaskResult | TaskPending:
    with goes_on(task.task_id):
        if queued or watch:
            found = client.submit(task.agent_id, task.data, budget=task.budget, task_id=task.task_id, **task.terms)
            return watched(client, found) if watch else found
        with output.progress("the agent works"):
            return client.execute(task.agent_id, task.data, budget=task.budget, task_id=task.task_id, **task.terms)


_WITHOUT: Final = {
    "--async": "Without a sign-in, the outcome cannot be read later: call waits for it.",
    "--watch": "call waits for the outcome anyway.",
    "--pin": "Without a sign-in, the agent's terms cannot be read.",
    "--task-id": "A ticket's number names its task. To send a task again, see: quittance channel sign --help",
    "--profile": "The file of the key names its platform.",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Options of a task that a ticket pays, as they were given."""

    budget: str | None
    timeout: str | None
    keep_input: bool
    share: str | None


def _by_ticket(file: Path, agent: str | None, data: bytes, wanted: Wanted, checking: Verifier | None) -> TaskResult:
    key = channel_key(file)
    with remote.spending(key, verify=checking, pending=file) as found:
        task = asked_by_ticket(key, found, agent, wanted)
        with output.progress("the agent works"):
            return found.client.spend(key, task.agent_id, data, budget=task.budget, **task.terms)


def asked_by_ticket(key: ChannelKey, found: Remote, agent: str | None, wanted: Wanted) -> "_Task":
    """A task that a ticket is to pay, without its input. Raises UsageError."""
    agents = key.agents
    alone = agents[0] if agent is None and agents is not None and len(agents) == 1 else None
    agent_id = alone or remote.agent_of(agent, found).agent_id
    budget, timeout = wanted.budget, wanted.timeout
    budget_micro = key.most_micro if budget is None else options.amount("--budget", budget, least_micro=1)
    timeout_s = None if timeout is None else options.timeout_ms(timeout) // 1_000
    terms = TaskTerms(timeout=timeout_s, keep_input=wanted.keep_input or None, share=_share(wanted.share))
    return _Task("", agent_id, b"", format_credits(budget_micro), terms)


def channel_key(file: Path) -> ChannelKey:
    """The key of a channel in a file. Raises UsageError."""
    with key_errors():
        key = ChannelKey.load(file)
        _ = key.channel_id
    return key


@contextlib.contextmanager
def key_errors() -> Iterator[None]:
    """Makes what is wrong with a key or a ticket wrong use."""
    try:
        yield
    except ConfigurationError as error:
        raise UsageError(str(error), "quittance channel open makes a key; quittance channel sign, a ticket.") from error


class goes_on:  # noqa: N801 - used as a statement
    """Says how to find the task again if the user interrupts the command: the task does not end."""

    def __init__(self, task_id: str) -> None:
        self._task_id = task_id

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            output.say(f"\nThe task goes on: quittance result {self._task_id} --watch")


def watched(
    client: Client, found: TaskResult | TaskPending, *, now: Callable[[], float] = time.monotonic
) -> TaskResult:
    """Show a task's state until it is settled, and return its result."""
    began, pause_s, said = now(), _POLL_S_MIN, ""
    with output.progress(f"task {found.task_id}") as step:
        while isinstance(found, TaskPending):
            state = f"{found.escrow_status}, settled or refunded by {when(found.expires_at)} UTC"
            step.update(what=state)
            if state != said and not step.shown:
                output.say(f"{now() - began:5.1f} s  {state}")
            said = state
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _POLL_S_MAX)
            found = client.result(found.task_id)
    output.say(f"{now() - began:5.1f} s  {found.escrow_status}")
    return found


def given_input(file: Path | None, text: str | None) -> bytes:
    """What the agent is to read. Raises UsageError."""
    if file is not None and text is not None:
        raise UsageError("--input and --text are both given.", "Give one of them.")
    if text is not None:
        data = text.encode(errors="surrogateescape")
        if len(data) > INPUT_BYTES_MAX:
            raise UsageError(f"--text has more than {INPUT_BYTES_MAX} bytes.", "A task's input may not be larger.")
        return data
    if file is None:
        return b""
    return read_stdin(bytes_max=INPUT_BYTES_MAX) if file == STDIN else read_file(file, bytes_max=INPUT_BYTES_MAX)


def _as_taken(text: str, data: bytes, card: AgentCard) -> bytes:
    """A text in the form that the agent's contract takes: as it is, as a JSON string, or as the member `text`."""
    if card.contract is None or card.contract.input_schema is None:
        return data
    check = card.contract.input_check
    try:
        string = json.dumps(text, ensure_ascii=False)
        forms = [data, string.encode(), f'{{"text":{string}}}'.encode()]
    except ValueError:
        return data
    for form in forms:
        if refused(check, form) is None:
            if form is not data:
                output.say(f"input {output.one_line(form.decode())[:200]}: so the agent's contract takes it")
            return form
    return data


def default_budget(estimate: PriceEstimate, card: AgentCard) -> tuple[int, str]:
    """A budget for an agent, and why this one: enough for most runs, and no more than that."""
    compute = ComputePrices(estimate.compute.run_micro, estimate.compute.per_billion_fuel_micro)
    least, limits = estimate.least_price_micro, card.limits
    if isinstance(card.tariff, FlatTariff):
        most = max(least, card.tariff.price_micro + compute.micro(limits.fuel))
        return min(most, BUDGET_MICRO_MAX), "the agent's price, and the compute of its longest run"
    if estimate.recent is not None:
        p95 = estimate.recent.price.p95_micro
        return min(
            max(least, p95 + p95 // 2 + 1), BUDGET_MICRO_MAX
        ), "95 of 100 recent runs cost at most two thirds of it"
    meter = Meter(
        fuel=min(limits.fuel, _GUESSED_FUEL), memory_bytes=limits.memory_mib * MIB, output_bytes=_GUESSED_OUTPUT_BYTES
    )
    guess = min(pricing.due_micro(card.tariff, compute, meter), _GUESS_MICRO_MAX)
    return max(least, guess), "a guess, for the agent has no recent runs"


def _share(text: str | None) -> dict[str, bool] | None:
    if text is None:
        return None
    named = [part.strip() for part in text.split(",")]
    if not set(named) <= set(_SHARES):
        raise UsageError(f"--share is not valid: {text}.", "Write payer, log, or payer,log.")
    return dict.fromkeys(named, True)


def verifier(verify: bool, keys: Path | None) -> Verifier | None:  # noqa: FBT001 - an option
    """What checks receipts, if anything does. Raises UsageError."""
    if keys is not None:
        read_file(keys, bytes_max=MIB)
        return Verifier(keys=keys)
    return Verifier() if verify else None


def check_writable(path: Path | None) -> None:
    """Find out before a task is paid that its receipt cannot be saved. Raises UsageError."""
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise UsageError(f"The receipt cannot be written to {path}.", "Name a file in a folder where you may write.")


def show(result: TaskResult | TaskPending, *, save_receipt: Path | None = None, verified: bool = False) -> int:
    """Print a task's outcome; the exit code."""
    if isinstance(result, TaskPending):
        if save_receipt is not None:
            output.say("There is no receipt before the task is settled.")
        if output.mode.json:
            output.document(result.model_dump(mode="json", by_alias=True))
        output.result(result.task_id)
        output.say(f"The task is {result.escrow_status}: quittance result {result.task_id} --watch")
        return Exit.DONE
    failure = _saved(result, save_receipt)
    if output.mode.json:
        output.document(result.model_dump(mode="json", by_alias=True))
    else:
        written = output_bytes(result)
        if written is not None:
            output.data(written)
        if result.log:
            output.say("log:")
            for line in result.log.splitlines():
                output.say(f"  {line}")
        output.facts(_facts(result, verified=verified), to_stderr=True)
    if failure is not None:
        raise failure
    return Exit.DONE if result.success else Exit.FAILED


def _saved(result: TaskResult, path: Path | None) -> CliError | None:
    if path is None:
        return None
    try:
        path.write_text(result.receipt + "\n", encoding="ascii")
    except OSError as error:
        mend = f"The task is settled: quittance result {result.task_id} --save-receipt FILE"
        return PlatformError(f"The receipt cannot be written to {path}: {error.strerror}.", mend)
    return None


_STAYS: Final = {"escrow": "", "ticket": ", which stays in the channel"}


def _facts(result: TaskResult, *, verified: bool) -> list[tuple[str, str]]:
    usage = result.resource_usage
    lines = [("outcome", "succeeded" if result.error is None else str(result.error.code))]
    if result.error is not None:
        lines.append(("reason", result.error.message))
    price = result.amount_paid_micro + result.fee_micro - result.compute_micro
    if result.success:
        lines.append(("price", f"{format_credits(price)}, and compute {format_credits(result.compute_micro)}"))
    else:
        lines.append(("price", f"the agent is not paid; you pay {format_credits(price + result.compute_micro)}"))
    if result.judging_micro:
        lines.append(("judging", format_credits(result.judging_micro)))
    return [
        *lines,
        ("refund", f"{format_credits(result.amount_refunded_micro)} of the budget{_STAYS[result.payment_method]}"),
        ("fuel", f"{usage.fuel_used:,}" + ("" if usage.fuel_exact else " (an estimate)")),
        ("time", f"{result.execution_time_ms} ms"),
        ("task", result.task_id),
        *([("receipt", "verified")] if verified else []),
    ]


def result(
    task_id: Annotated[str, typer.Argument(metavar="TASK", help="The task's id.")],
    watch: Annotated[bool, typer.Option("--watch", help="Show its state until it is settled.")] = False,
    kept_input: Annotated[
        bool, typer.Option("--input", help="Write the input that was kept instead of the output.")
    ] = False,
    user: Annotated[str | None, typer.Option(help="Whose task it is, for the agent's owner.")] = None,
    verify: Verify = False,
    keys: Keys = None,
    save_receipt: SaveReceipt = None,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """The outcome of a task: its output to stdout, its log and the report to stderr.

    Exit code 1: the agent failed, and was not paid. A task that is not settled yet is no failure.
    """
    check_writable(save_receipt)
    with remote.connected(profile, verify=verifier(verify, keys)) as found:
        if kept_input:
            return _show_input(found, task_id)
        with goes_on(task_id):
            outcome = found.client.result(task_id, user=user)
            if watch and isinstance(outcome, TaskPending):
                outcome = watched(found.client, outcome)
    return show(outcome, save_receipt=save_receipt, verified=verify or keys is not None)


def _show_input(found: Remote, task_id: str) -> int:
    data = found.client.task_input(task_id)
    if output.mode.json:
        output.document({"task_id": task_id, **as_text_or_base64("input", data)})
    else:
        output.data(data)
    return Exit.DONE


def tasks(
    agent: Annotated[
        str | None, typer.Option(help="Only those of this agent: its id, or its project's folder.")
    ] = None,
    state: Annotated[
        Literal["pending", "succeeded", "failed"] | None, typer.Option(help="Only those in this state.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only those since a time, or so long ago: 30m, 2h, 7d.")] = None,
    limit: remote.Limit = 20,
    profile: remote.ProfileName = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Your tasks, newest first. A task is listed some seconds after it is funded."""
    start = remote.moment("--since", since)
    with remote.connected(profile) as found:
        agent_id = None if agent is None else remote.agent_of(agent, found).agent_id
        pages = found.client.tasks(agent_id=agent_id, state=state, since=start, page_size=min(limit, 100))
        lines, more = remote.first(pages, limit)
    if output.mode.json:
        output.document({"tasks": [line.model_dump(mode="json", by_alias=True) for line in lines], "more": more})
        return Exit.DONE
    rows = [
        [
            line.task_id,
            line.agent_id,
            line.outcome or line.state,
            _sum(line.amount_paid_micro, line.fee_micro),
            when(line.funded_at),
        ]
        for line in lines
    ]
    output.table(["task", "agent", "outcome", "paid", "funded (UTC)"], rows)
    remote.say_more(len(lines), more=more, what="tasks")
    return Exit.DONE


def _sum(*parts: int | None) -> str:
    known = [part for part in parts if part is not None]
    return format_credits(sum(known)) if known else ""
