"""The cost of the sandbox, beside the same modules without it, in the same run.

    python benchmarks/sandbox.py                  # prints the tables; exit status 1 if a value misses its bound
    python benchmarks/sandbox.py --json FILE      # also writes everything that was measured

Each program runs in turn, in many alternating blocks:

- through the sandbox: `Sandbox.run`, a warm worker with the artefact loaded;
- bare: wasmtime-py in this process with its own settings and its own WASI, compiled once, a new store and instance for
  each run, input from bytes and output captured. It has no metering, no limits and no second process. There are two
  ways to capture output, a file and a callback; the one that is faster for the program counts;
- the same with the sandbox's settings (fuel, one form of NaN, the processor's baseline): what metering costs;
- in process: the sandbox's own engine and host calls without the worker: the rest is the process boundary;
- Node's WASI, where `node` exists: compiled once, a new instance for each run.

These runs share one processor, as parent and worker do at the functions' default size, where Lambda gives about one.
The sandbox is also measured on all processors: there each run wakes the worker on another one, whose caches are cold.

Wall times depend on the machine and on its other work. So the ratios are of processor time: that of all threads of
this process, and of the worker. Go and CPython are built by `examples/agents/build.py`; where that fails, their rows
say so and their bounds are not checked.
"""

import argparse
import ctypes
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1] / "layers" / "runtime"))

import wasmtime
from scale import QUICK, scaled, status
from wasmtime import _ffi as ffi

from quittance import limits
from quittance.run import Job, Outcome
from quittance.sandbox import ENGINE_VERSION, Sandbox, compile_module, validate_module
from quittance.sandbox.engine import new_engine
from quittance.sandbox.execution import Executor

ROOT: Final = Path(__file__).parents[1]
AGENTS: Final = ROOT / "examples" / "agents"
BUILT: Final = ROOT / ".local" / "agents"
IN_MEMORY: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

WARM_RATIO_MAX: Final = 1.5  # a warm run, to a bare one
NOTHING_RATIO_MAX: Final = 3.0  # the same for a module that does nothing, if the bare run does not even open a file
COMPILE_RATIO_MIN: Final = 100.0  # a run that compiles first, to a warm run
PUBLISH_RATIO_MIN: Final = 70.0  # compiling at publication, to the first run of the published artefact
MIB_MS_MAX: Final = 4.0  # of 1 MiB in and out, more than a run that does nothing
START_MS_MAX: Final = 150.0
LATE_MS_MAX: Final = 300.0
DEADLINE_MS: Final = 200
RSS_GROWTH_BYTES_MAX: Final = 4 * limits.MIB

BLOCKS: Final = scaled(25, 2)
BLOCK_MS: Final = scaled(60, 10)
RUNS_PER_BLOCK_MAX: Final = scaled(200, 20)
FIRST_RUNS: Final = scaled(9, 2)
PUBLICATIONS: Final = scaled(3, 1)
STARTS: Final = scaled(15, 3)
WARM_RUNS: Final = scaled(500, 20)
MANY_RUNS: Final = scaled(10_000, 200)

TRIVIAL: Final = '(module (memory (export "memory") 1) (func (export "_start")))'
ENDLESS: Final = '(module (memory (export "memory") 1) (func (export "_start") (loop $again (br $again))))'
LINES: Final = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\10\\00\\00\\00\\10\\00\\00\\00") (data (i32.const 16) "one line of text")
  (func (export "_start") (local $i i32)
    (loop $again
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 1000))))))"""
SCRIPT: Final = "print(sum(n * n for n in range(1000)), sorted('one two two'.split()))\n"
INVOICE: Final = {
    "currency": "EUR",
    "lines": [
        {"description": f"item {n}", "quantity": n % 9 + 1, "unit_price": f"{n}.99", "tax_rate": "19"}
        for n in range(100)
    ],
}
JUDGED: Final = {"input": "the quick brown fox " * 20, "output": "the lazy brown dog " * 20}


@dataclass(frozen=True)
class Program:
    """A module and its input. `large` programs have bounds for compiling and publishing too."""

    name: str
    module: bytes | Path
    stdin: bytes = b""
    bounded: bool = True
    large: bool = False

    def read(self) -> bytes:
        """Read the module."""
        return self.module if isinstance(self.module, bytes) else self.module.read_bytes()


def programs() -> list[Program]:
    """List the programs, without those that a quick run leaves out."""
    small = [
        Program("trivial", bytes(wasmtime.wat2wasm(TRIVIAL))),
        Program("judge, Zig", AGENTS / "coverage-zig" / "coverage.wasm", json.dumps(JUDGED).encode()),
        Program("1 MiB in and out", AGENTS / "echo-zig" / "echo.wasm", os.urandom(limits.INPUT_BYTES_MAX)),
        Program("1,000 lines", bytes(wasmtime.wat2wasm(LINES)), bounded=False),
    ]
    large = [
        Program("invoice, Go", BUILT / "invoice.wasm", json.dumps(INVOICE).encode(), large=True),
        Program("script, CPython", BUILT / "python.wasm", SCRIPT.encode(), large=True),
    ]
    return small if QUICK else small + large


def missing(program: Program) -> str:
    """Build a program that does not exist yet; return why it cannot be built, or nothing."""
    if isinstance(program.module, bytes) or program.module.exists():
        return ""
    builder = [sys.executable, str(AGENTS / "build.py"), program.module.stem]
    done = subprocess.run(builder, capture_output=True, text=True, check=False)
    if program.module.exists():
        return ""
    return (done.stderr.strip().splitlines() or ["its build failed"])[-1]


# Ways to run a program.


class Bare:
    """wasmtime-py alone: a new store, WASI configuration and instance for each run."""

    def __init__(self, program: Program, *, to_file: bool, engine: wasmtime.Engine | None = None) -> None:
        self._metered = engine is not None
        self._engine = engine or wasmtime.Engine()
        self._stdin = program.stdin
        self._linker = wasmtime.Linker(self._engine)
        self._linker.define_wasi()
        began, cpu = time.perf_counter(), time.process_time()
        self._module = wasmtime.Module(self._engine, program.read())
        self.compile_ms, self.compile_cpu_ms = since(began), (time.process_time() - cpu) * 1_000
        self._linked = self._linker.instantiate_pre(self._module)
        # In memory where that can be had: a disk's cost is not the engine's. The file lives as long as this object.
        self._file = tempfile.NamedTemporaryFile(dir=IN_MEMORY) if to_file else None  # noqa: SIM115

    def run(self) -> bytes:
        """Run once; return the output."""
        wasi = wasmtime.WasiConfig()
        wasi.argv = ["agent"]
        given = ffi.wasm_byte_vec_t()
        ffi.wasm_byte_vec_new(ctypes.byref(given), len(self._stdin), (ctypes.c_uint8 * len(self._stdin))(*b""))
        if self._stdin:
            ctypes.memmove(given.data, self._stdin, len(self._stdin))
        ffi.wasi_config_set_stdin_bytes(wasi.ptr(), ctypes.byref(given))
        pieces: list[bytes] = []
        if self._file:
            wasi.stdout_file = self._file.name
        else:
            wasi.stdout_custom = lambda piece: pieces.append(bytes(piece))
        with wasmtime.Store(self._engine) as store:
            if self._metered:
                store.set_fuel(limits.FUEL_MAX)
            store.set_wasi(wasi)
            instance = self._linked.instantiate(store)
            try:
                instance.exports(store)["_start"](store)  # type: ignore[operator]
            except wasmtime.ExitTrap as ended:
                if ended.code:
                    raise
        return Path(self._file.name).read_bytes() if self._file else b"".join(pieces)


NODE: Final = """
const { WASI } = require('node:wasi'), fs = require('node:fs');
const [wasm, input, output] = process.argv.slice(1);
const module_ = new WebAssembly.Module(fs.readFileSync(wasm)), nothing = fs.openSync('/dev/null', 'w');
function once() {
  const stdin = fs.openSync(input, 'r'), stdout = fs.openSync(output, 'w');
  const options = { version: 'preview1', args: ['agent'], stdin, stdout, stderr: nothing, returnOnExit: true };
  const wasi = new WASI(options);
  const code = wasi.start(new WebAssembly.Instance(module_, wasi.getImportObject()));
  fs.closeSync(stdin); fs.closeSync(stdout);
  if (code) throw new Error('exit code ' + code);
  return fs.readFileSync(output);
}
require('node:readline').createInterface({ input: process.stdin }).on('line', (count) => {
  const times = [], before = process.cpuUsage();
  for (let i = 0; i < Number(count); i++) {
    const began = process.hrtime.bigint(); once(); times.push(Number(process.hrtime.bigint() - began) / 1e6);
    if (i % 20 == 0) gc();  // each instance reserves address space, of which Node 20 runs out before it collects
  }
  const used = process.cpuUsage(before);
  process.stdout.write(JSON.stringify([times, (used.user + used.system) / 1e3 / Number(count)]) + '\\n');
});
"""


class Node:
    """Node's WASI: one process that has compiled the module and runs it as often as it is told to."""

    def __init__(self, program: Program, folder: Path) -> None:
        wasm, given, written = folder / "module.wasm", folder / "stdin", folder / "stdout"
        wasm.write_bytes(program.read())
        given.write_bytes(program.stdin)
        self.output = written
        command = ["node", "--no-warnings", "--expose-gc", "-e", NODE, str(wasm), str(given), str(written)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def block(self, count: int) -> tuple[list[float], float]:
        """Run a number of times; return the wall times and the mean processor time, in ms."""
        assert self._process.stdin
        assert self._process.stdout
        print(count, file=self._process.stdin, flush=True)
        times, cpu_ms = json.loads(self._process.stdout.readline() or "[[], 0]")
        return times, cpu_ms


# Measuring.


def since(began: float) -> float:
    """Return the milliseconds since a time of `perf_counter`."""
    return (time.perf_counter() - began) * 1_000


def measured(action: Callable[[], object]) -> float:
    """Return how many milliseconds an action takes."""
    began = time.perf_counter()
    action()
    return since(began)


def cpu_of(process: int) -> float:
    """Return the processor time of a process's main thread in ms, from the kernel's scheduler."""
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e6


@dataclass
class Times:
    """The wall times of one way to run a program, and the processor time of each block's mean run, in ms."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    worker_cpu: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        """Summarise them. The spread is the middle half's width, relative to the median."""
        ordered = sorted(self.wall)
        middle = statistics.median(ordered)
        quarter = len(ordered) // 4
        summary = {
            "p50_ms": middle,
            "p95_ms": ordered[len(ordered) * 95 // 100],
            "least_ms": ordered[0],
            "spread": (ordered[len(ordered) - 1 - quarter] - ordered[quarter]) / middle,
            "runs": float(len(ordered)),
        }
        summary |= {"cpu_ms": statistics.median(self.cpu)} if self.cpu else {}
        return summary | ({"worker_cpu_ms": statistics.median(self.worker_cpu)} if self.worker_cpu else {})


Block = Callable[[int, Times], None]


def here(action: Callable[[], object]) -> Block:
    """Make a block of runs in this process."""

    def block(count: int, times: Times) -> None:
        action()  # the other contestants have filled the caches
        cpu = time.process_time()
        times.wall += [measured(action) for _ in range(count)]
        times.cpu.append((time.process_time() - cpu) * 1_000 / count)

    return block


def through(sandbox: Sandbox, job: Job) -> Block:
    """Make a block of runs in the worker."""

    def block(count: int, times: Times) -> None:
        sandbox.run(job)
        worker, cpu = cpu_of(worker_of(sandbox)), time.process_time()
        times.wall += [measured(lambda: sandbox.run(job)) for _ in range(count)]
        times.cpu.append((time.process_time() - cpu) * 1_000 / count)
        times.worker_cpu.append((cpu_of(worker_of(sandbox)) - worker) / count)

    return block


def beside(node: Node) -> Block:
    """Make a block of runs in Node."""

    def block(count: int, times: Times) -> None:
        node.block(1)
        wall, cpu = node.block(count)
        times.wall += wall
        times.cpu.append(cpu)

    return block


@contextmanager
def on(processors: Collection[int]) -> Iterator[None]:
    """Let this thread, and processes that it starts, run only on some processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def on_all(block: Block, processors: Collection[int]) -> Block:
    """Make a block whose own side may run on all processors."""

    def everywhere(count: int, times: Times) -> None:
        with on(processors):
            block(count, times)

    return everywhere


def worker_of(sandbox: Sandbox) -> int:
    """Return the worker's process id."""
    assert sandbox._worker  # noqa: SLF001 - its processor time and memory are measured
    return sandbox._worker._process.pid  # noqa: SLF001 - as above


def in_turn(blocks: Mapping[str, Block], first: str) -> dict[str, dict[str, float]]:
    """Run the blocks in turn, each as long as about BLOCK_MS of the contestant `first`."""
    trial = Times()
    blocks[first](3, trial)
    count = max(1, min(RUNS_PER_BLOCK_MAX, round(BLOCK_MS / statistics.median(trial.wall))))
    times = {name: Times() for name in blocks}
    for _ in range(BLOCKS):
        for name, block in blocks.items():
            block(count, times[name])
    return {name: each.row() for name, each in times.items() if each.wall}


# What is measured of one program.


@contextmanager
def stored(data: bytes) -> Iterator[Path]:
    """Keep bytes in a file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def job_of(path: Path, sha256: str, stdin: bytes, timeout_ms: int = 60_000) -> Job:
    """Make a job whose limits the programs do not reach."""
    return Job(str(path), sha256, stdin, limits.FUEL_MAX, limits.MEMORY_BYTES_DEFAULT, timeout_ms, 0, b"")


def published(module: bytes) -> tuple[bytes, Times]:
    """Publish a module some times: check and compile it; return the artefact and the times."""
    times = Times()
    for _ in range(PUBLICATIONS):
        began = time.perf_counter()
        validate_module(module)
        artefact = compile_module(module)
        times.wall.append(since(began))
        times.cpu.append(float(artefact.cpu_ms))
    return artefact.data, times


def first_runs(job: Job) -> tuple[Times, Times]:
    """Measure first runs: in a new worker, and in a worker that runs but has not loaded the artefact."""
    new, unloaded = Times(), Times()
    other = compile_module(bytes(wasmtime.wat2wasm(LINES)))
    with stored(other.data) as path:
        for _ in range(FIRST_RUNS):
            with Sandbox() as sandbox:
                measure_first(sandbox, job, new)
            with Sandbox() as sandbox:
                sandbox.run(job_of(path, other.sha256, b""))
                measure_first(sandbox, job, unloaded)
    return new, unloaded


def measure_first(sandbox: Sandbox, job: Job, times: Times) -> None:
    """Measure one run, which starts the worker if there is none."""
    before = cpu_of(worker_of(sandbox)) if sandbox._worker else 0.0  # noqa: SLF001 - its processor time is measured
    cpu = time.process_time()
    times.wall.append(measured(lambda: sandbox.run(job)))
    times.cpu.append((time.process_time() - cpu) * 1_000)
    times.worker_cpu.append(cpu_of(worker_of(sandbox)) - before)


def compared(program: Program) -> dict[str, Any]:
    """Measure everything about one program."""
    module = program.read()
    artefact, publications = published(module)
    with ExitStack() as stack:
        path = stack.enter_context(stored(artefact))
        job = job_of(path, hashlib.sha256(artefact).hexdigest(), program.stdin)
        everywhere = stack.enter_context(Sandbox())
        run = everywhere.run(job)
        executor = Executor()
        loaded = executor.load(artefact)
        to_file, to_callback = (Bare(program, to_file=each) for each in (True, False))
        same = Bare(program, to_file=True, engine=new_engine())
        if run.outcome is not Outcome.SUCCEEDED or {to_file.run(), to_callback.run(), same.run()} != {run.stdout}:
            message = f"{program.name} does not give the same output in all ways: {run.outcome}, {run.message}"
            raise RuntimeError(message)
        processors = os.sched_getaffinity(0)
        pinned = stack.enter_context(ExitStack())
        pinned.enter_context(on({max(processors)}))
        sandbox = stack.enter_context(Sandbox())
        blocks = {
            "sandbox": through(sandbox, job),
            "sandbox, all processors": on_all(through(everywhere, job), processors),
            "bare, to a file": here(to_file.run),
            "bare, to a callback": here(to_callback.run),
            "bare, our settings": here(same.run),
            "in process": here(lambda: executor.run(loaded, job, lambda _: None)),
        }
        if shutil.which("node"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            node = stack.enter_context(Node(program, folder))
            if node.block(1)[0] and node.output.read_bytes() == run.stdout:
                blocks["Node"] = beside(node)
        rows = in_turn(blocks, "sandbox")
        pinned.close()
        new, unloaded = first_runs(job)
    rows |= {"first run, new worker": new.row(), "first run, not loaded": unloaded.row()}
    rows |= {"publish": publications.row()}
    way = min(("bare, to a file", "bare, to a callback"), key=lambda way: rows[way]["cpu_ms"])
    bare = rows[way]
    rows["compile at every call"] = {
        "p50_ms": to_file.compile_ms + bare["p50_ms"],
        "cpu_ms": min(to_file.compile_cpu_ms, to_callback.compile_cpu_ms) + bare["cpu_ms"],
    }
    return {
        "bare": way,
        "module_bytes": len(module),
        "artefact_bytes": len(artefact),
        "fuel": run.meter.fuel,
        "rows": rows,
        "warm_to_bare": rows["sandbox"]["p50_ms"] / bare["p50_ms"],
        "warm_to_bare_cpu": total_cpu(rows["sandbox"]) / bare["cpu_ms"],
        "warm_to_file_cpu": total_cpu(rows["sandbox"]) / rows["bare, to a file"]["cpu_ms"],
        "compile_to_warm": rows["compile at every call"]["cpu_ms"] / total_cpu(rows["sandbox"]),
        "publish_to_first": rows["publish"]["cpu_ms"] / total_cpu(rows["first run, not loaded"]),
        "publish_to_first_in_new_worker": rows["publish"]["cpu_ms"] / total_cpu(rows["first run, new worker"]),
    }


def total_cpu(row: Mapping[str, float]) -> float:
    """Return the processor time of a run, on both sides."""
    return row["cpu_ms"] + row["worker_cpu_ms"]


# What is measured of the worker.


def start(job: Job) -> dict[str, dict[str, float]]:
    """Measure the start of a worker and its first run, beside that of a bare Python."""

    def once() -> None:
        with Sandbox() as sandbox:
            sandbox.run(job)

    python = [sys.executable, "-S", "-c", "pass"]
    bare = Times([measured(lambda: subprocess.run(python, check=True)) for _ in range(STARTS)])
    return {
        "start of a bare Python": bare.row(),
        "start and first run": Times([measured(once) for _ in range(STARTS)]).row(),
    }


def deadline() -> dict[str, float]:
    """Measure how long after an endless guest's deadline the caller receives the result."""
    artefact = compile_module(bytes(wasmtime.wat2wasm(ENDLESS)))
    with stored(artefact.data) as path, Sandbox() as sandbox:
        job = job_of(path, artefact.sha256, b"", DEADLINE_MS)
        return Times([measured(lambda: sandbox.run(job)) - DEADLINE_MS for _ in range(STARTS)]).row()


def many_runs(job: Job) -> dict[str, float]:
    """Let one worker make many runs, more than in production, and measure how its memory grows."""
    with mock.patch.object(limits, "WORKER_RUNS_MAX", 10 * MANY_RUNS), Sandbox() as sandbox:
        for _ in range(WARM_RUNS):
            sandbox.run(job)
        worker = worker_of(sandbox)
        before, parent_before = resident_bytes(str(worker)), resident_bytes("self")
        for _ in range(MANY_RUNS):
            last = sandbox.run(job)
        if last.outcome is not Outcome.SUCCEEDED or worker_of(sandbox) != worker:
            message = "the worker was replaced during the runs"
            raise RuntimeError(message)
        after, parent_after = resident_bytes(str(worker)), resident_bytes("self")
    return {
        "runs": MANY_RUNS,
        "worker_mib_before": before / limits.MIB,
        "worker_mib_after": after / limits.MIB,
        "growth_mib": max(after - before, parent_after - parent_before) / limits.MIB,
    }


def resident_bytes(process: str) -> int:
    """Return a process's resident memory."""
    pages = int(Path("/proc", process, "statm").read_text().split()[1])
    return pages * 4_096


def bounds(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List every bounded value with its bound, and whether it is kept."""
    found: list[dict[str, Any]] = []

    def check(name: str, value: float, *, least: float | None = None, most: float | None = None, unit: str) -> None:
        kept = (least is None or value >= least) and (most is None or value <= most)
        found.append({"name": name, "value": value, "least": least, "most": most, "unit": unit, "kept": kept})

    measured_ones = {name: facts for name, facts in result["programs"].items() if "rows" in facts}
    for program in programs():
        if not (facts := measured_ones.get(program.name)):
            continue
        if program.name == "trivial":
            check("trivial: warm run, to bare", facts["warm_to_bare_cpu"], most=NOTHING_RATIO_MAX, unit="x")
            check("trivial: warm, to bare to a file", facts["warm_to_file_cpu"], most=WARM_RATIO_MAX, unit="x")
        elif program.bounded:
            check(f"{program.name}: warm run, to bare", facts["warm_to_bare_cpu"], most=WARM_RATIO_MAX, unit="x")
        if program.large:
            check(
                f"{program.name}: compile first, to warm", facts["compile_to_warm"], least=COMPILE_RATIO_MIN, unit="x"
            )
            check(
                f"{program.name}: publish, to first run", facts["publish_to_first"], least=PUBLISH_RATIO_MIN, unit="x"
            )
    large, trivial = (measured_ones[name]["rows"]["sandbox"]["p50_ms"] for name in ("1 MiB in and out", "trivial"))
    check("1 MiB in and out, more than trivial", large - trivial, most=MIB_MS_MAX, unit=" ms")
    check("start and first run", result["worker"]["start and first run"]["p50_ms"], most=START_MS_MAX, unit=" ms")
    check("answer after the deadline", result["worker"]["deadline"]["p50_ms"], most=LATE_MS_MAX, unit=" ms")
    growth = result["worker"]["many runs"]["growth_mib"]
    check("growth of memory", growth, most=RSS_GROWTH_BYTES_MAX / limits.MIB, unit=" MiB")
    return found


def measure(report: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure everything; `report` receives a line about each step."""
    result: dict[str, Any] = {"engine": ENGINE_VERSION, "quick": QUICK, "programs": {}, "worker": {}}
    for program in programs():
        if reason := missing(program):
            result["programs"][program.name] = {"skipped": reason}
            report(f"{program.name}: skipped, {reason}")
            continue
        facts = result["programs"][program.name] = compared(program)
        report(described(program.name, facts))
    artefact = compile_module(bytes(wasmtime.wat2wasm(TRIVIAL)))
    with stored(artefact.data) as path:
        job = job_of(path, artefact.sha256, b"")
        result["worker"] = {**start(job), "deadline": deadline(), "many runs": many_runs(job)}
    result["bounds"] = bounds(result)
    for each in result["bounds"]:
        bound = f"at most {each['most']:g}" if each["most"] is not None else f"at least {each['least']:g}"
        kept = "ok" if each["kept"] else "MISSED"
        report(f"{each['name']:44} {each['value']:8.2f}{each['unit']}, {bound}{each['unit']}: {kept}")
    return result


COLUMNS: Final = (
    ("p50_ms", "p50 ms", 10, 3),
    ("p95_ms", "p95", 10, 3),
    ("least_ms", "least", 10, 3),
    ("spread", "spread", 8, 2),
    ("cpu_ms", "cpu ms", 10, 3),
    ("worker_cpu_ms", "worker", 10, 3),
)


def described(name: str, facts: Mapping[str, Any]) -> str:
    """Describe one program's measurements as a table; the last column is processor time, relative to the bare run's."""
    bare = facts["rows"][facts["bare"]]["cpu_ms"]
    lines = [f"{name}: module {facts['module_bytes']:,} bytes, {facts['fuel']:,} fuel; bare is {facts['bare']}"]
    lines.append(" " * 26 + "".join(f"{title:>{width}}" for _, title, width, _ in COLUMNS) + f"{'to bare':>9}")
    for way, row in facts["rows"].items():
        cells = "".join(
            f"{row[key]:{width}.{digits}f}" if key in row else " " * width for key, _, width, digits in COLUMNS
        )
        ratio = (row["cpu_ms"] + row.get("worker_cpu_ms", 0.0)) / bare if "cpu_ms" in row else None
        lines.append(f"  {way:24}{cells}{ratio:9.2f}" if ratio is not None else f"  {way:24}{cells}")
    return "\n".join(lines)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure what the sandbox costs.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to this file")
    target = parser.parse_args().json
    result = measure(lambda line: print(line, flush=True))
    if target:
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(not all(each["kept"] for each in result["bounds"]))


if __name__ == "__main__":
    sys.exit(status(main()))
