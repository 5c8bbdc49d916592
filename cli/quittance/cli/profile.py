"""Fuel by function: an instrumented copy of the module runs once more, and the exact fuel of each stack is written.

Sampling would be less work and wrong: the engine checks its fuel only where functions begin and loops turn, so a sample
would charge a function for the work of another that ran before it.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from quittance.cli import output
from quittance.cli.artefacts import Artefact, Artefacts
from quittance.cli.execution import Result
from quittance.cli.exits import PlatformError, UsageError
from quittance.cli.instrument import Instrumented, MalformedError, instrument
from quittance.run import Outcome
from quittance.sandbox import process, wasi

_TREE_BYTES_MAX: Final = 64 * 1024**2
_SPEEDSCOPE: Final = "https://www.speedscope.app/file-format-schema.json"
_TIMEOUT_S: Final = 3_600
_NOT_REPEATED: Final = frozenset({Outcome.TIMEOUT, Outcome.TRAP_STACK, Outcome.MEMORY_LIMIT})


class Profile:
    """The fuel of each stack of functions."""

    def __init__(self, names: list[str], tree: dict[str, list[int]]) -> None:
        self.names = names
        self.parents, self.frames, self.fuel = tree["parents"], tree["frames"], tree["fuel"]
        if not len(self.parents) == len(self.frames) == len(self.fuel):
            msg = "the tree is not one"
            raise ValueError(msg)

    @property
    def total(self) -> int:
        """The fuel of the whole run."""
        return sum(self.fuel)

    def stacks(self) -> Iterator[tuple[list[int], int]]:
        """Each stack that used fuel itself, outermost function first, with that fuel."""
        paths: list[list[int]] = []
        for node, parent in enumerate(self.parents):
            frame = self.frames[node]
            if not -1 <= parent < node or not -1 <= frame < len(self.names):
                msg = "the tree is not one"
                raise ValueError(msg)
            paths.append([] if parent < 0 else [*paths[parent], frame])
            if self.fuel[node]:
                yield paths[node], self.fuel[node]

    def own(self) -> dict[str, int]:
        """The fuel that each function used itself, without what it called; most first."""
        used: dict[str, int] = {}
        for path, fuel in self.stacks():
            name = self.names[path[-1]] if path else "host"
            used[name] = used.get(name, 0) + fuel
        return dict(sorted(used.items(), key=lambda pair: -pair[1]))

    def speedscope(self, name: str) -> str:
        """The profile in the file format of https://www.speedscope.app."""
        stacks = [(path, fuel) for path, fuel in self.stacks() if path]
        return json.dumps(
            {
                "$schema": _SPEEDSCOPE,
                "exporter": "quittance",
                "name": name,
                "activeProfileIndex": 0,
                "shared": {"frames": [{"name": each} for each in self.names]},
                "profiles": [
                    {
                        "type": "sampled",
                        "name": f"{name}: fuel",
                        "unit": "none",
                        "startValue": 0,
                        "endValue": sum(fuel for _, fuel in stacks),
                        "samples": [path for path, _ in stacks],
                        "weights": [fuel for _, fuel in stacks],
                    }
                ],
            }
        )

    def folded(self) -> str:
        """The profile as folded stacks, the input of flamegraph.pl and inferno: `a;b;c 123`."""
        lines = []
        for path, fuel in self.stacks():
            frames = ";".join(self.names[frame].replace(";", ":") for frame in path) or "host"
            lines.append(f"{frames} {fuel}\n")
        return "".join(lines)


def write(path: Path, module: bytes, result: Result) -> None:
    """Profile a run and write it. Raises UsageError, PlatformError."""
    if result.run.outcome in _NOT_REPEATED:
        output.say(f"Note: the run ended as {result.run.outcome}, so its profile may end elsewhere than the run.")
    profile, named = take(module, result)
    text = profile.speedscope(hashlib.sha256(module).hexdigest()[:12]) if path.suffix == ".json" else profile.folded()
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.", "Name a file that you may write.") from error
    if profile.total != result.run.meter.fuel:
        output.say(f"Note: the profile has {profile.total:,} fuel, the run used {result.run.meter.fuel:,}.")
    if not named:
        output.say("Note: the module has no names of functions: build it without -s or strip.")
    output.say(f"Profile: {path} (open .json at speedscope.app; folded stacks with flamegraph.pl)")


def take(module: bytes, result: Result) -> tuple[Profile, bool]:
    """The profile of a run, and whether the module names its functions. Raises PlatformError."""
    try:
        copy = instrument(module)
    except MalformedError as error:
        raise PlatformError(f"The module cannot be profiled: {error}.") from error
    calls = list(wasi.CALLS)
    with Artefacts() as artefacts:
        try:
            artefact = artefacts.of(copy.module)
        except UsageError as error:
            mend = "Its instrumented copy has twice as many functions, and one table more."
            raise PlatformError(f"The module is too large to be profiled: {error.problem}", mend) from error
        job = _job(copy, calls, result, artefact)
        with output.progress("counting the fuel of each function"):
            answer = _child(job, result.request.stdin)
    names = [printable_name(name) for name in copy.names] + [f"{name} (host)" for name in calls]
    try:
        return Profile(names, json.loads(answer)), copy.named
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PlatformError(f"The profile is damaged: {error}.", "Try again.") from error


def printable_name(name: str) -> str:
    """A function's name that cannot control a terminal."""
    return output.one_line(name)[:200]


def _job(copy: Instrumented, calls: list[str], result: Result, artefact: Artefact) -> dict[str, Any]:
    limits = result.run.limits
    if limits is None:
        msg = "a run has limits"
        raise ValueError(msg)
    return {
        "artefact_path": str(artefact.path),
        "artefact_sha256": artefact.sha256,
        "parameters": copy.parameters,
        "calls": calls,
        "has_start": copy.has_start,
        "fuel": limits.fuel,
        "memory_bytes": limits.memory_bytes,
        "output_bytes": limits.output_bytes,
        "epoch_ns": result.request.epoch_ns,
        "seed": result.request.seed.hex(),
    }


def _child(job: dict[str, Any], stdin: bytes) -> bytes:
    environment = process.environment()
    own = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join((own, environment["PYTHONPATH"]))
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and our own module
            process.command(sys.executable, "quittance.cli.profiler"),
            input=json.dumps(job).encode() + b"\n" + stdin,
            capture_output=True,
            env=environment,
            cwd="/",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PlatformError(f"The module could not be profiled: {error}.", "Try a smaller input.") from error
    if done.returncode or len(done.stdout) > _TREE_BYTES_MAX:
        reason = done.stderr.decode(errors="replace")[-500:] or f"the process ended with {done.returncode}"
        raise PlatformError(f"The module could not be profiled: {output.one_line(reason)}.", "Try a smaller input.")
    return done.stdout
