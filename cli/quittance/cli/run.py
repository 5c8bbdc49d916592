"""`quittance run`: run an agent on this machine, and state what a task costs on the platform."""

import base64
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from quittance import sandbox
from quittance.acceptance.contract import Contract, refused
from quittance.acceptance.rules import rules_json
from quittance.api.models import AgentAnswer, AgentLimits
from quittance.cli import execution, options, output
from quittance.cli.artefacts import Artefacts
from quittance.cli.execution import Request, Result, Terms
from quittance.cli.exits import Exit, PlatformError, UsageError
from quittance.cli.files import STDIN, read_file, read_stdin
from quittance.cli.project import FILE_NAME, NO_RULES_SET, Project, parse_tariff
from quittance.ledger.credits import format_credits
from quittance.ledger.pricing import ComputePrices, tariff_json
from quittance.limits import AMOUNT_MICRO_MAX, FEE_BPS_MAX, FUEL_MAX, INPUT_BYTES_MAX, MIB, MODULE_BYTES_MAX
from quittance.run import Fault, Limits


@dataclass(frozen=True, slots=True)
class Target:
    """What is run: a module, and the project that it belongs to if it has one."""

    module: Path
    project: Project | None

    @classmethod
    def of(cls, path: Path | None) -> "Target":
        """The target of a path: a module, a project's folder, or the current project. Raises UsageError."""
        if path is None or path.is_dir():
            project = Project.find(path)
            return cls(project.module_path, project)
        return cls(path, None)

    def read(self) -> bytes:
        """The module's bytes. Raises UsageError."""
        if self.project and not self.module.is_file():
            raise UsageError(f"The module {self.module} is not built.", "Build it: quittance build")
        return read_file(self.module, bytes_max=MODULE_BYTES_MAX)


@dataclass(frozen=True, slots=True)
class Overrides:
    """Terms that the command line sets, instead of the project's."""

    tariff: str | None = None
    memory_mib: int | None = None
    fuel: int | None = None
    agent_timeout: int | None = None
    commission_bps: int | None = None
    compute_run: str | None = None
    compute_fuel: str | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """The terms of a published agent, and the compute prices of its platform."""

    agent: AgentAnswer
    contract: Contract | None
    compute: ComputePrices


_OF_THE_AGENT: Final = "agent"


def published(name: str | None, profile: str | None) -> Published:
    """The terms under which a published agent runs: by its id or its project's folder. Raises CliError."""
    from quittance.cli import remote

    with remote.connected(profile) as found, output.progress("reading the agent's terms"):
        agent_id = remote.agent_of(name, found).agent_id
        agents = found.client.agents
        known, prices, card = agents.get(agent_id), agents.estimate(agent_id).compute, agents.card(agent_id)
    return Published(known, card.contract, ComputePrices(prices.run_micro, prices.per_billion_fuel_micro))


def terms_of(project: Project | None, given: Overrides, of: Published | None = None) -> Terms:
    """The terms of a run: the published agent's, else the project's, else the platform's defaults.

    What the command line sets counts before all of them.
    """
    base = of.agent.limits if of else project.file.limits if project else AgentLimits()
    own = Limits(
        fuel=given.fuel or base.fuel,
        memory_bytes=(given.memory_mib or base.memory_mib) * MIB,
        timeout_ms=(given.agent_timeout or base.timeout) * 1_000,
    )
    tariff = tariff_json(of.agent.tariff) if of else project.tariff if project else None
    if given.tariff and given.tariff != _OF_THE_AGENT:
        tariff = parse_tariff(given.tariff)
    compute = of.compute if of else execution.PLATFORM_COMPUTE
    if given.compute_run is not None:
        micro = options.amount("--compute-run", given.compute_run, most_micro=AMOUNT_MICRO_MAX)
        compute = ComputePrices(micro, compute.per_billion_fuel_micro)
    if given.compute_fuel is not None:
        micro = options.amount("--compute-fuel", given.compute_fuel, most_micro=AMOUNT_MICRO_MAX)
        compute = ComputePrices(compute.run_micro, micro)
    terms = Terms(own=own, tariff=tariff, compute=compute)
    if given.commission_bps is not None:
        terms = replace(terms, fee_bps=given.commission_bps)
    if of:
        return replace(terms, rules=rules_json(of.agent.acceptance or NO_RULES_SET))
    return replace(terms, rules=rules_json(project.rules)) if project else terms


def run(
    agent: Annotated[
        Path | None,
        typer.Argument(help=f"A module, or the folder of a project ({FILE_NAME}); by default the current project."),
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="The file that the agent reads, byte for byte; - for standard input."),
    ] = None,
    input_text: Annotated[str | None, typer.Option(help="The text that the agent reads, instead of a file.")] = None,
    tariff: Annotated[
        str | None,
        typer.Option(
            help="The tariff as JSON, a file with it, or agent: that of the published agent; by default the project's."
        ),
    ] = None,
    of: Annotated[
        str | None,
        typer.Option("--agent", help="Under the terms of this published agent: its id, or its project's folder."),
    ] = None,
    budget: Annotated[str | None, typer.Option(help="The budget of the task, in credits.")] = None,
    timeout: Annotated[str | None, typer.Option(help="The task's timeout, in whole seconds.")] = None,
    memory_mib: Annotated[int | None, typer.Option(min=1, max=1024, help="The agent's memory limit, in MiB.")] = None,
    fuel: Annotated[int | None, typer.Option(min=1, max=FUEL_MAX, help="The agent's fuel limit.")] = None,
    agent_timeout: Annotated[int | None, typer.Option(min=1, max=600, help="The agent's own timeout, in s.")] = None,
    clock: Annotated[
        str | None,
        typer.Option(help="Start of the agent's clock, also as epoch_ns; by default 2026-01-01."),
    ] = None,
    seed: Annotated[
        str | None, typer.Option(help="Seed of the agent's randomness, as a receipt has it; by default a fixed one.")
    ] = None,
    commission_bps: Annotated[
        int | None,
        typer.Option(min=0, max=FEE_BPS_MAX, help="Its commission in basis points; by default 250."),
    ] = None,
    compute_run: Annotated[
        str | None, typer.Option(help="The platform's compute price of each run; by default 0.00001.")
    ] = None,
    compute_fuel: Annotated[
        str | None, typer.Option(help="The platform's compute price of 10^9 fuel; by default 0.00004.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Also write the fuel of each function to this file: .json for speedscope, else folded stacks."
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Build and run the project again at each change.")] = False,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Run an agent in the platform's sandbox on this machine: output, log, exact fuel and memory, exact price.

    The output goes to stdout, the log and the report to stderr. Exit code 1: the agent would not be paid.
    """
    given = Overrides(tariff, memory_mib, fuel, agent_timeout, commission_bps, compute_run, compute_fuel)
    request = Request(
        stdin=_stdin(input_file, input_text),
        budget_micro=None if budget is None else options.amount("--budget", budget, least_micro=1),
        timeout_ms=None if timeout is None else options.timeout_ms(timeout),
        epoch_ns=execution.CLOCK_NS if clock is None else options.clock_ns(clock),
        seed=execution.SEED if seed is None else options.seed(seed),
    )
    terms = None
    if of is not None or tariff == _OF_THE_AGENT:
        terms = published(of or (None if agent is None else str(agent)), None)
    if watch:
        from quittance.cli.watch import watch as keep_running

        return keep_running(agent, lambda: _once(Target.of(agent), given, request, profile, terms))
    return _once(Target.of(agent), given, request, profile, terms)


def _stdin(file: Path | None, text: str | None) -> bytes:
    if file is not None and text is not None:
        raise UsageError("--input and --input-text are both given.", "Give one of them.")
    if text is not None:
        data = text.encode(errors="surrogateescape")
        if len(data) > INPUT_BYTES_MAX:
            raise UsageError(
                f"--input-text has more than {INPUT_BYTES_MAX} bytes.", "A task's input may not be larger."
            )
        return data
    if file is None:
        return b""
    return read_stdin(bytes_max=INPUT_BYTES_MAX) if file == STDIN else read_file(file, bytes_max=INPUT_BYTES_MAX)


def _once(target: Target, given: Overrides, request: Request, profile: Path | None, of: Published | None) -> int:
    module, terms = target.read(), terms_of(target.project, given, of)
    if of and hashlib.sha256(module).hexdigest() != of.agent.module_sha256:
        output.say(f"This module is not the active version of {of.agent.agent_id}: its terms, with another module.")
    contract = of.contract if of else target.project.contract if target.project else None
    if contract and (refusal := refused(contract.input_check, request.stdin)):
        place, sentence = refusal
        mend = (
            "The platform refuses such a task before any money moves: the contract's input_schema does not accept it."
        )
        raise UsageError(f"{place} {sentence}.", mend, code="input_not_accepted")
    result = execute(module, terms, request)
    if profile is not None:
        from quittance.cli import profile as profiles

        profiles.write(profile, module, result)
    report(result)
    return Exit.DONE if result.success else Exit.FAILED


def execute(module: bytes, terms: Terms, request: Request) -> Result:
    """Run a module once. Raises UsageError, PlatformError."""
    with Artefacts() as artefacts, sandbox.Sandbox() as box:
        artefact = artefacts.of(module)
        with output.progress("running the agent"):
            try:
                result = execution.execute(box, artefact, terms, request)
            except (OSError, MemoryError, ValueError) as error:
                raise PlatformError(f"This machine could not run the agent: {error}.", _DOCTOR) from error
    if result.settlement.fault is Fault.PLATFORM:
        raise PlatformError(f"The sandbox failed: {result.run.message}", _DOCTOR, outcome=result.run.outcome)
    return result


_DOCTOR = "Try again; `quittance doctor` checks this machine."


def report(result: Result) -> None:
    """Print the output to stdout and the report to stderr, or all of it as JSON."""
    run = result.run
    if output.mode.json:
        output.document(
            {**result.as_json(), **as_text_or_base64("output", run.stdout), **as_text_or_base64("log", run.stderr)}
        )
        return
    output.data(run.stdout)
    if run.stderr:
        output.say("log:")
        for line in run.stderr.decode(errors="backslashreplace").splitlines():
            output.say(f"  {line}")
    output.facts(facts(result), to_stderr=True)


def facts(result: Result) -> list[tuple[str, str]]:
    """The report of a run, as named values."""
    run, meter = result.run, result.run.meter
    exit_code = "" if run.exit_code is None else f", exit code {run.exit_code}"
    lines = [("outcome", f"{run.outcome}{exit_code}")]
    if not result.success:
        lines.append(("reason", run.message))
    lines += [
        ("fuel", f"{meter.fuel:,}" + ("" if meter.fuel_exact else " (an estimate: the run did not end by itself)")),
        ("memory", f"{meter.memory_bytes / MIB:g} MiB at most"),
        ("output", f"{meter.output_bytes:,} bytes, log {meter.stderr_bytes:,} bytes"),
        ("time", f"{meter.wall_ms} ms on this machine"),
    ]
    return lines + _price(result)


def _price(result: Result) -> list[tuple[str, str]]:
    settlement, compute = result.settlement, format_credits(result.settlement.compute_micro)
    if not result.success:
        who = {
            Fault.AGENT: "nothing is paid: the agent is at fault. Its owner's bond pays "
            f"{format_credits(settlement.charge_micro)} for the compute",
            Fault.PAYER: f"the agent is not paid: the payer's limit was hit. The payer pays {compute} for the compute",
        }.get(settlement.fault, "nobody pays")
        return [("price", who), *_refund(result)]
    if result.terms.tariff is None:
        return [("price", f"not known without --tariff; compute {compute}"), *_refund(result)]
    price, commission = format_credits(result.price_micro), format_credits(result.commission_micro)
    return [
        ("price", f"{price}, of which the platform keeps {commission} as commission"),
        ("compute", compute),
        ("total", f"{format_credits(result.due_micro)} credits"),
        *_refund(result),
    ]


def _refund(result: Result) -> list[tuple[str, str]]:
    split = result.settlement.split
    if result.request.budget_micro is None or (result.terms.tariff is None and result.success):
        return []
    return [("refund", f"{format_credits(split.refunded_micro)} of the budget of {format_credits(split.budget_micro)}")]


def as_text_or_base64(name: str, content: bytes) -> dict[str, Any]:
    """Bytes as the API's answers have them: text if they are UTF-8, else base64."""
    try:
        return {name: content.decode()}
    except UnicodeDecodeError:
        return {name: None, f"{name}_base64": base64.b64encode(content).decode()}
