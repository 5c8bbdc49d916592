"""One run of one module inside the worker: from the job to its outcome and meter."""

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import wasmtime
from wasmtime import TrapCode

from quittance import limits
from quittance.run import HOST_RULES, Job, Meter, Outcome, Run
from quittance.sandbox import wasi_1
from quittance.sandbox.engine import Host, Program, Store, backtrace, load, new_engine, recursive_functions
from quittance.sandbox.wasi import ExitedError, FuelLimitError, Guest, OutputLimitError

_MEMORY_NEARLY_USED: Final = 8  # a guest that failed with less than 1/8 of its limit left most likely needed more

_GUESTS: Final[Mapping[int, type[Guest]]] = {1: wasi_1.Guest, HOST_RULES: Guest}

_TRAPS: Final = {
    TrapCode.UNREACHABLE: (Outcome.TRAP_UNREACHABLE, "It reached unreachable code: a panic, abort or assertion."),
    TrapCode.MEMORY_OUT_OF_BOUNDS: (Outcome.TRAP_MEMORY, "It accessed memory out of bounds."),
    TrapCode.HEAP_MISALIGNED: (Outcome.TRAP_MEMORY, "It accessed memory at a misaligned address."),
    TrapCode.TABLE_OUT_OF_BOUNDS: (Outcome.TRAP_TABLE, "It accessed a table out of bounds."),
    TrapCode.INDIRECT_CALL_TO_NULL: (Outcome.TRAP_TABLE, "It called a function pointer that is null."),
    TrapCode.BAD_SIGNATURE: (Outcome.TRAP_TABLE, "It called a function pointer as another type."),
    TrapCode.NULL_REFERENCE: (Outcome.TRAP_TABLE, "It used a reference that is null."),
    TrapCode.INTEGER_OVERFLOW: (Outcome.TRAP_ARITHMETIC, "An integer division overflowed."),
    TrapCode.INTEGER_DIVISION_BY_ZERO: (Outcome.TRAP_ARITHMETIC, "It divided an integer by zero."),
    TrapCode.BAD_CONVERSION_TO_INTEGER: (Outcome.TRAP_ARITHMETIC, "It converted a number that no integer can hold."),
    TrapCode.STACK_OVERFLOW: (Outcome.TRAP_STACK, "It used up its stack, most likely by endless recursion."),
    TrapCode.OUT_OF_FUEL: (Outcome.FUEL_EXHAUSTED, "It ran out of fuel."),
}
_OTHER_TRAP: Final = (Outcome.TRAP_UNREACHABLE, "It trapped.")

# The engine keeps the fuel count in a register. For these traps, which the hardware raises, it is not written back.
_FUEL_LOST: Final = frozenset(
    {
        TrapCode.MEMORY_OUT_OF_BOUNDS,
        TrapCode.TABLE_OUT_OF_BOUNDS,
        TrapCode.INTEGER_OVERFLOW,
        TrapCode.INTEGER_DIVISION_BY_ZERO,
        TrapCode.BAD_CONVERSION_TO_INTEGER,
    }
)

# How a guest typically fails after a refused allocation.
_ALLOCATION_FAILURES: Final = frozenset({Outcome.EXIT_CODE, Outcome.TRAP_UNREACHABLE, Outcome.TRAP_MEMORY})


@dataclass(frozen=True, slots=True)
class _Ending:
    outcome: Outcome
    message: str
    exit_code: int | None = None
    fuel_exact: bool = True


class Executor:
    """Runs programs, one at a time. No state of a run remains when the next one begins."""

    def __init__(self) -> None:
        self._engine = new_engine()
        self._host = Host(self._engine)

    def load(self, artefact: bytes) -> Program:
        """Load an artefact. This makes its native code executable, so the caller must have checked its digest."""
        return load(self._engine, self._host, artefact)

    def run(
        self,
        program: Program,
        job: Job,
        write_stderr: Callable[[bytes], None],
        write_stdout: Callable[[bytes], None] | None = None,
    ) -> Run:
        """Run a program. `write_stderr` and `write_stdout` receive what it writes; without the second, `Run` has it."""
        with Store(self._engine) as store:
            guest = _GUESTS[job.host_rules](
                stdin=job.stdin,
                epoch_ns=job.epoch_ns,
                seed=job.seed,
                write_stderr=write_stderr,
                write_stdout=write_stdout,
                output_bytes_max=job.output_bytes,
                fuel=job.fuel,
                engine_fuel=lambda: job.fuel + 1 - store.fuel(),
            )
            self._host.begin(guest.answer)
            try:
                return self._run(store, program, job, guest)
            finally:
                self._host.begin(None)

    def _run(self, store: Store, program: Program, job: Job, guest: Guest) -> Run:
        # The engine may overrun the count by some instructions and then reports no fuel left. One unit beyond the limit
        # distinguishes that from a run that used exactly its limit.
        store.set_fuel(job.fuel + 1)
        store.limit(
            memory_bytes=job.memory_bytes,
            table_elements=limits.TABLE_ELEMENTS_MAX,
            tables=limits.MODULE_TABLES_MAX,
        )
        wall_ns, cpu_ns = time.monotonic_ns(), time.process_time_ns()
        if program.memory_minimum_bytes > job.memory_bytes:
            ending, memory_bytes = _too_large(program.memory_minimum_bytes, job.memory_bytes), 0
        else:
            ending, memory_bytes = self._start(store, program, job)
        fuel = job.fuel + 1 - store.fuel() + guest.fuel
        if fuel > job.fuel:
            ending, fuel = _out_of_fuel(ending, job.fuel), job.fuel
        meter = Meter(
            fuel=fuel,
            fuel_exact=ending.fuel_exact,
            cpu_ms=_milliseconds(time.process_time_ns() - cpu_ns),
            wall_ms=_milliseconds(time.monotonic_ns() - wall_ns),
            memory_bytes=memory_bytes,
            input_bytes=len(job.stdin),
            output_bytes=guest.stdout_bytes,
            stderr_bytes=guest.stderr_bytes,
        )
        return Run(ending.outcome, ending.message, meter, ending.exit_code, bytes(guest.stdout))

    def _start(self, store: Store, program: Program, job: Job) -> tuple[_Ending, int]:
        instantiated = False
        try:
            store.instantiate(program)
            instantiated = True
            store.start()
            ending = _Ending(Outcome.SUCCEEDED, "The agent succeeded.", exit_code=0)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as stop:
            ending = self._classify(stop, job)
        peak = store.memory_bytes() if instantiated else max(self._host.memory_bytes, program.memory_minimum_bytes)
        return _or_memory_limit(ending, peak, job.memory_bytes), peak

    def _classify(self, stop: wasmtime.Trap | wasmtime.WasmtimeError, job: Job) -> _Ending:
        failure = self._host.failure
        if isinstance(failure, ExitedError):
            return _exited(failure.code)
        if isinstance(failure, FuelLimitError):
            return _Ending(Outcome.FUEL_EXHAUSTED, "It ran out of fuel.")
        if isinstance(failure, OutputLimitError):
            sentence = f"The agent wrote more than {job.output_bytes} bytes to standard output."
            return _Ending(Outcome.OUTPUT_LIMIT, sentence)
        if failure is not None or not isinstance(stop, wasmtime.Trap):
            traceback.print_exception(failure or stop)
            return _Ending(Outcome.WORKER_LOST, "The sandbox failed; the agent is not to blame.", fuel_exact=False)
        return _trapped(stop)


def _exited(code: int) -> _Ending:
    if code == 0:
        return _Ending(Outcome.SUCCEEDED, "The agent succeeded.", exit_code=0)
    return _Ending(Outcome.EXIT_CODE, f"The agent ended with exit code {code}.", exit_code=code)


def _trapped(trap: wasmtime.Trap) -> _Ending:
    try:
        code = trap.trap_code
    except ValueError:  # a code that the binding does not know
        code = None
    outcome, sentence = _TRAPS.get(code, _OTHER_TRAP) if code else _OTHER_TRAP
    where = recursive_functions(trap) if outcome is Outcome.TRAP_STACK else backtrace(trap)
    message = "\n  in ".join((f"The agent trapped. {sentence}", *where))
    return _Ending(outcome, message[: limits.MESSAGE_CHARS_MAX], fuel_exact=code not in _FUEL_LOST)


def _out_of_fuel(ending: _Ending, fuel: int) -> _Ending:
    """Replace the ending of a run that used more fuel than its limit, however it ended."""
    where = "".join(ending.message.partition("\n")[1:]) if ending.outcome is Outcome.FUEL_EXHAUSTED else ""
    message = f"The agent used up its {fuel} units of fuel.{where}"[: limits.MESSAGE_CHARS_MAX]
    return _Ending(Outcome.FUEL_EXHAUSTED, message)


def _too_large(minimum: int, limit: int) -> _Ending:
    return _Ending(Outcome.MEMORY_LIMIT, f"The agent needs {minimum} bytes of memory to start; its limit is {limit}.")


def _or_memory_limit(ending: _Ending, peak: int, limit: int) -> _Ending:
    """Attribute a failure close to the memory limit to that limit.

    This is an inference: the engine leaves no trace of a refused `memory.grow`.
    """
    if ending.outcome not in _ALLOCATION_FAILURES or peak <= limit - limit // _MEMORY_NEARLY_USED:
        return ending
    sentence = f"The agent failed with {peak} of its {limit} bytes of memory in use; most likely it needed more."
    message = f"{sentence} {ending.message}"[: limits.MESSAGE_CHARS_MAX]
    return _Ending(Outcome.MEMORY_LIMIT, message, ending.exit_code, ending.fuel_exact)


def _milliseconds(nanoseconds: int) -> int:
    return -(-nanoseconds // 1_000_000)
