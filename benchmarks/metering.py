"""The cost of metering: real programs with fuel, with epoch interruption, with both and with neither.

    python benchmarks/metering.py            # prints the table
    python benchmarks/metering.py --write    # also writes it into docs/metering.md

Every program runs in this process with the sandbox's configuration and host calls, except for the two settings that are
compared. The four variants run in turn, and the least CPU time of each counts. `kernels.wasm` is built from kernels.c;
the other programs are the example agents that have been built.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from quittance import limits
from quittance.sandbox import engine as adapter
from quittance.sandbox import target

sys.path.insert(0, str(Path(__file__).parents[1] / "layers" / "runtime"))

import wasmtime
from scale import QUICK, scaled

from quittance.sandbox.engine import GuestMemory, Host
from quittance.sandbox.wasi import ExitedError, Guest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "metering.md"
BEGIN, END = "<!-- the table: python benchmarks/metering.py --write -->\n", "<!-- end of the table -->\n"
AGENTS = ROOT / "examples" / "agents"
BUILT = ROOT / ".local" / "agents"
KERNELS = Path(__file__).with_name("kernels.wasm")
ROUNDS = scaled(7, 1)
FUEL = 10**12
WORDS = "the quick brown fox jumps over the lazy dog and runs away from it as fast as ever it can "
SCRIPT = "import json, re\nprint(sum(len(json.dumps({'n': n, 'x': n / 7})) for n in range(3000)))\n"
LINES = [
    {"description": f"item {n}", "quantity": n % 9 + 1, "unit_price": f"{n}.99", "tax_rate": "19"} for n in range(8000)
]


@dataclass(frozen=True)
class Program:
    """A program, and an input for which it computes for some tenths of a second."""

    name: str
    kind: str
    module: Path
    stdin: bytes


@dataclass(frozen=True)
class Variant:
    """One combination of the metering settings."""

    name: str
    fuel: bool
    epoch: bool


NONE = Variant("none", fuel=False, epoch=False)
VARIANTS = (
    NONE,
    Variant("fuel", fuel=True, epoch=False),
    Variant("epoch", fuel=False, epoch=True),
    Variant("both", fuel=True, epoch=True),
)


def programs() -> Iterator[Program]:
    """Yield every program whose module exists."""
    all_of_them = [
        Program("sha256", "integer", KERNELS, b"sha256 100000"),
        Program("collatz", "integer, branches", KERNELS, b"collatz 300000"),
        Program("mandelbrot", "float", KERNELS, b"mandelbrot 600"),
        Program("bodies", "float", KERNELS, b"bodies 150000"),
        Program("matrices", "float, memory", KERNELS, b"matrices 60"),
        Program("chase", "memory, at random", KERNELS, b"chase 2000000"),
        Program("stream", "memory, in order", KERNELS, b"stream 60"),
        Program("calls", "direct calls", KERNELS, b"calls 36"),
        Program("sorting", "calls by pointer", KERNELS, b"sorting 300000"),
        Program("searching", "string", KERNELS, b"searching 300"),
        Program("formatting", "string, float", KERNELS, b"formatting 60000"),
        Program("wordcount (C)", "string", AGENTS / "wordcount-c/wordcount.wasm", _text(900_000)),
        Program("sieve (AssemblyScript)", "integer, memory", AGENTS / "sieve-assemblyscript/sieve.wasm", b"20000000"),
        Program("echo (Zig)", "host calls, bulk memory", AGENTS / "echo-zig/echo.wasm", bytes(limits.INPUT_BYTES_MAX)),
        Program("invoice (Go)", "JSON, collected memory", BUILT / "invoice.wasm", _invoice()),
        Program("python (CPython)", "interpreter", BUILT / "python.wasm", SCRIPT.encode()),
    ]
    return (program for program in all_of_them[: 2 if QUICK else None] if program.module.exists())


def _text(length: int) -> bytes:
    return json.dumps({"text": (WORDS * (length // len(WORDS) + 1))[:length], "top": 5}).encode()


def _invoice() -> bytes:
    return json.dumps({"currency": "EUR", "lines": LINES}).encode()


class Subject:
    """A program compiled for one variant."""

    def __init__(self, program: Program, variant: Variant) -> None:
        self._variant = variant
        self._stdin = program.stdin
        config = {**target.CONFIG, "consume_fuel": variant.fuel, "epoch_interruption": variant.epoch}
        with mock.patch.object(adapter, "CONFIG", config):
            self._engine = adapter.new_engine()
        self._host = Host(self._engine)
        self._linked = self._host.link(wasmtime.Module(self._engine, program.module.read_bytes()))

    def run(self) -> tuple[float, bytes, int]:
        """Run once; return the CPU seconds, the output and the fuel."""
        guest = Guest(stdin=self._stdin, epoch_ns=0, seed=b"", write_stderr=lambda _: None)

        def answer(name: str, memory: GuestMemory, arguments: Sequence[int]) -> int:
            return guest.answer(name, memory, arguments)

        self._host.begin(answer)
        with wasmtime.Store(self._engine) as store:
            if self._variant.fuel:
                store.set_fuel(FUEL)
            if self._variant.epoch:
                store.set_epoch_deadline(1)  # the epoch never advances: only the checks are measured
            store.set_limits(memory_size=limits.MEMORY_BYTES_DEFAULT)
            began = time.thread_time()
            self._start(store)
            took = time.thread_time() - began
            return took, bytes(guest.stdout), FUEL - store.get_fuel() if self._variant.fuel else 0

    def _start(self, store: wasmtime.Store) -> None:
        try:
            start = self._linked.instantiate(store).exports(store)["_start"]
            assert isinstance(start, wasmtime.Func)
            start(store)
        except (wasmtime.Trap, wasmtime.WasmtimeError):
            if not isinstance(self._host.failure, ExitedError) or self._host.failure.code:
                raise


def measure(program: Program) -> tuple[dict[str, float], int]:
    """Return the least CPU seconds of each variant, and the fuel."""
    subjects = [(variant.name, Subject(program, variant)) for variant in VARIANTS]
    least = {variant.name: float("inf") for variant in VARIANTS}
    outputs = set()
    fuels = set()
    for _, subject in subjects:
        subject.run()  # warm-up: maps pages, fills caches
    for _ in range(ROUNDS):
        for name, subject in subjects:
            took, output, fuel = subject.run()
            least[name] = min(least[name], took)
            outputs.add(output)
            fuels |= {fuel} - {0}
    if len(outputs) != 1 or len(fuels) != 1:
        message = f"{program.name} is not deterministic: {outputs!r:.200}, {fuels}"
        raise RuntimeError(message)
    return least, fuels.pop()


def table() -> list[str]:
    """Measure all programs; return the lines of the table."""
    lines = [
        "| program | kind of work | none, ms | fuel | epoch | both | both ÷ fuel | million fuel per second |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ratios: dict[str, list[float]] = {"fuel": [], "epoch": [], "both": [], "both ÷ fuel": []}
    for program in programs():
        least, fuel = measure(program)
        row = {name: least[name] / least["none"] for name in ("fuel", "epoch", "both")}
        row["both ÷ fuel"] = least["both"] / least["fuel"]
        for name, ratio in row.items():
            ratios[name].append(ratio)
        cells = " | ".join(f"{ratio:.2f}" for ratio in row.values())
        speed = fuel / least["fuel"] / 10**6
        lines.append(f"| {program.name} | {program.kind} | {least['none'] * 1_000:.0f} | {cells} | {speed:,.0f} |")
        sys.stderr.write(f"{lines[-1]}\n")
    means = " | ".join(f"**{statistics.geometric_mean(each):.2f}**" for each in ratios.values())
    return [*lines, f"| **geometric mean of {len(lines) - 2}** | | | {means} | |"]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure what metering costs.")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.relative_to(ROOT)}")
    write = parser.parse_args().write
    text = "\n".join(table()) + "\n"
    print(text)
    if write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text("".join((before, BEGIN, "\n", text, "\n", END, after)), encoding="utf-8")


if __name__ == "__main__":
    main()
