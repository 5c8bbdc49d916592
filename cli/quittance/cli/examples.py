"""`quittance test`: run the examples of a project's contract, as the platform does when a version is published."""

import difflib
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from quittance import canonical_json, sandbox
from quittance.acceptance.contract import Example
from quittance.acceptance.examples import Result, run_all
from quittance.cli import options, output
from quittance.cli.artefacts import Artefact, Artefacts
from quittance.cli.execution import Request, job_of
from quittance.cli.exits import Exit, PlatformError, UsageError
from quittance.cli.project import FILE_NAME, Project
from quittance.cli.run import Target
from quittance.limits import EXAMPLES_SECONDS_MAX, MIB
from quittance.run import Fault, Limits, Meter, Run

_DIFF_LINES_MAX: Final = 40


def run_tests(
    agent: Annotated[
        Path | None, typer.Argument(help=f"The folder of a project ({FILE_NAME}); by default the current project.")
    ] = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Run the examples of the contract: each must end and write as it says. The platform runs them at each publication.

    Exit code 1: an example failed, so the platform would reject the version.
    """
    project = Project.find(agent)
    examples = project.contract.examples
    if not examples:
        mend = f"Add one to {FILE_NAME}: [[contract.examples]] with name, input and output."
        raise UsageError("The contract has no examples.", mend)
    results = run_examples(project, Target(project.module_path, project).read())
    failed = sum(result.failure is not None for result in results)
    if output.mode.json:
        output.document({"passed": len(results) - failed, "failed": failed, "examples": list(map(_as_json, results))})
    else:
        _print(results)
        output.result(f"{len(results) - failed} of {len(results)} examples passed")
    return Exit.FAILED if failed else Exit.DONE


def run_examples(project: Project, module: bytes) -> list[Result]:
    """Run the examples of a project's contract. Raises UsageError, PlatformError."""
    terms = project.file.limits
    own = Limits(terms.fuel, terms.memory_mib * MIB, terms.timeout * 1_000)
    ends = time.monotonic() + EXAMPLES_SECONDS_MAX
    with Artefacts() as artefacts, sandbox.Sandbox() as box:
        artefact = artefacts.of(module)
        with output.progress("running the examples") as step:
            found = []
            for result in run_all(
                project.contract.examples,
                own=own,
                rules=project.rules,
                start=lambda example, limits: _run(box, artefact, example, limits, own),
                left_ms=lambda: round((ends - time.monotonic()) * 1_000),
            ):
                found.append(result)
                step.update(done=len(found), total=len(project.contract.examples), what=result.example.name)
    return found


def _run(box: sandbox.Sandbox, artefact: Artefact, example: Example, limits: Limits, own: Limits) -> Run:
    try:
        run = box.run(job_of(artefact, Request(example.stdin), limits=limits, own=own))
    except (OSError, MemoryError, ValueError) as error:
        raise PlatformError(f"This machine could not run the agent: {error}.", "quittance doctor") from error
    if run.outcome.fault is Fault.PLATFORM:
        raise PlatformError(f"The sandbox failed: {run.message}", "Try again; quittance doctor checks this machine.")
    return run


def _as_json(result: Result) -> dict[str, Any]:
    run = result.run
    meter = run.meter if run else Meter()
    return {
        "name": result.example.name,
        "passed": result.failure is None,
        "failure": result.failure,
        "outcome": run.outcome if run else None,
        "exit_code": run.exit_code if run else None,
        "fuel_used": meter.fuel,
        "fuel_max": result.example.fuel_max,
        "memory_bytes": meter.memory_bytes,
        "output_bytes": meter.output_bytes,
    }


def _print(results: list[Result]) -> None:
    rows: list[list[str | Text]] = []
    for result in results:
        failed = result.failure is not None
        mark = Text("FAILED", style="bold red") if failed else Text("ok", style="green")
        bound = "" if result.example.fuel_max is None else f"{result.example.fuel_max:,}"
        ended, fuel = (str(result.run.outcome), f"{result.run.meter.fuel:,}") if result.run else ("not run", "")
        rows.append([mark, result.example.name, ended, fuel, bound])
    output.table(["", "example", "outcome", "fuel", "fuel_max"], rows)
    for result in results:
        if result.failure is not None:
            output.result("")
            output.result(Text("FAILED ", style="bold red"), f"{result.example.name}: {result.failure}")
            for line in _difference(result):
                output.result(f"  {line}")


def _difference(result: Result) -> list[str]:
    """The lines in which the output differs from the one that the example states; none if it states no output."""
    expected = _expected(result.example)
    if expected is None or result.run is None or result.run.exit_code != 0:
        return []
    written = result.run.stdout.decode(errors="backslashreplace")
    lines = difflib.unified_diff(expected.splitlines(), written.splitlines(), "expected", "written", lineterm="", n=2)
    found = list(lines)
    more = [f"… and {len(found) - _DIFF_LINES_MAX} more lines"] if len(found) > _DIFF_LINES_MAX else []
    return found[:_DIFF_LINES_MAX] + more


def _expected(example: Example) -> str | None:
    if example.stdout is not None:
        return example.stdout.decode(errors="backslashreplace")
    if "output" in example.model_fields_set:
        return canonical_json.canonical(example.output)
    return None
