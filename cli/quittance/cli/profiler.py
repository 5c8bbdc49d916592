"""The process in which an instrumented module runs: it counts the fuel of each stack of functions.

    python -m quittance.cli.profiler < job > tree

The module is untrusted, so this process confines itself as the sandbox's worker does, before it loads it. The job is a
line of JSON and then the input; the tree is JSON. Fuel is counted by the engine itself: at each beginning and end of a
function its count is read, and what the wrappers cost is taken off (instrument.py).
"""

import ctypes
import hashlib
import json
import sys
from ctypes import POINTER, byref, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Final

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime._func import Func

from quittance import limits
from quittance.cli.instrument import COST_BEFORE_ENTER, COST_BEFORE_LEAVE, COST_CALL, COST_START, START, TABLE
from quittance.sandbox import process, seccomp
from quittance.sandbox.engine import Host, exported
from quittance.sandbox.target import CONFIG, CPU_FLAGS, TARGET_TRIPLE
from quittance.sandbox.wasi import ExitedError, Guest

NODES_MAX: Final = 200_000
"""Different stacks that are kept; the fuel of further ones counts for the stack that they grow from."""
DEPTH_MAX: Final = 200
"""Functions of a stack that are kept, likewise."""

_STACK_BYTES: Final = 1792 * limits.KIB  # wrappers need stack too; the engine's own maximum is 2 MiB
_SLACK: Final = 10**7  # fuel that is given for wrappers at a time
_OPEN_FILES_MAX: Final = 16
_Callback = ctypes.CFUNCTYPE(c_size_t, c_void_p, c_void_p, POINTER(c_uint64), c_size_t)
_NO_FINALIZER = ctypes.CFUNCTYPE(None, c_void_p)()


class _FuelUsedUpError(Exception):
    """The agent has used its fuel."""


class Tree:
    """The fuel of each stack of functions. Node 0 is the host, before the agent begins."""

    def __init__(self) -> None:
        self.parents = [-1]
        self.frames = [-1]
        self.fuel = [0]
        self.calls = [0]
        self._children: dict[tuple[int, int], int] = {}
        self._stack = [0]
        self._last = 0

    @property
    def counted(self) -> int:
        """The fuel that has been counted so far."""
        return self._last

    def count(self, now: int) -> None:
        """Count the fuel since the last event for the current stack."""
        self.fuel[self._stack[-1]] += now - self._last
        self._last = now

    def push(self, frame: int) -> None:
        """A function begins."""
        here = self._stack[-1]
        node = self._children.get((here, frame))
        if node is None:
            node = self._new(here, frame)
        self._stack.append(node)
        self.calls[node] += 1

    def pop(self) -> None:
        """A function ends."""
        self._stack.pop()

    def _new(self, here: int, frame: int) -> int:
        if len(self.parents) >= NODES_MAX or len(self._stack) > DEPTH_MAX:
            return here
        node = len(self.parents)
        self.parents.append(here)
        self.frames.append(frame)
        self.fuel.append(0)
        self.calls.append(0)
        self._children[here, frame] = node
        return node


class Profiler:
    """One run of an instrumented module."""

    def __init__(self, job: dict[str, Any], stdin: bytes) -> None:
        self.tree = Tree()
        self._job = job
        self._parameters: list[int] = job["parameters"]
        self._calls = {name: len(self._parameters) + number for number, name in enumerate(job["calls"])}
        self._engine = _engine()
        self._store = wasmtime.Store(self._engine)
        self._context = self._store._context()  # noqa: SLF001 - the binding has no public name
        self._fuel_left = c_uint64()
        self._given: int = job["fuel"] + 1 + _SLACK
        self._overhead = -COST_START if job["has_start"] else 0
        self._guest = Guest(
            stdin=stdin,
            epoch_ns=job["epoch_ns"],
            seed=bytes.fromhex(job["seed"]),
            write_stderr=lambda _: None,
            output_bytes_max=job["output_bytes"],
            fuel=job["fuel"],
            engine_fuel=self._engine_fuel,
        )
        self._failure: BaseException | None = None

    def run(self, artefact: bytes) -> str:
        """Run the module; return how it ended: "done", "exited" or "trapped"."""
        store, host = self._store, Host(self._engine)
        module = wasmtime.Module.deserialize(self._engine, artefact)
        host.begin(self._answer)
        store.set_fuel(self._given)
        store.set_limits(
            memory_size=self._job["memory_bytes"],
            table_elements=limits.TABLE_ELEMENTS_MAX,
            instances=1,
            tables=limits.MODULE_TABLES_MAX,
            memories=1,
        )
        ending = "done"
        hooks = [self._function(self._enter), self._function(self._leave)]
        try:
            instance = host.link(module).instantiate(store)
            table: Any = exported(store, instance, TABLE)
            for number, (function, _) in enumerate(hooks):
                table.set(store, number, function)
            if self._job["has_start"]:
                start: Any = exported(store, instance, START)
                start(store)
            start = exported(store, instance, "_start")
            start(store)
        except (wasmtime.Trap, wasmtime.WasmtimeError):
            ending = "exited" if isinstance(host.failure, ExitedError) else "trapped"
        self.tree.count(min(self._now(), self._job["fuel"]) if ending == "trapped" else self._now())
        return ending

    def _function(self, report: Any) -> tuple[Func, Any]:  # noqa: ANN401 - ctypes has no name for a callback's type
        """A function of type (i32) -> () that calls `report`, and the callback that must stay alive for it."""

        def answer(_environment: object, _caller: int, slots: Any, _count: int) -> int:  # noqa: ANN401 - as above
            try:
                report(slots[0] & 0xFFFFFFFF)
            except BaseException as failure:  # noqa: BLE001 - no exception may unwind through the engine's frames
                self._failure = failure
                trap = ffi.wasmtime_trap_new(ctypes.create_string_buffer(b"host"), 4)
                return ctypes.cast(trap, c_void_p).value or 0
            return 0

        callback = _Callback(answer)
        signature, raw = wasmtime.FuncType([wasmtime.ValType.i32()], []), ffi.wasmtime_func_t()
        ffi.wasmtime_func_new_unchecked(
            self._store._context(),  # noqa: SLF001 - as above
            signature.ptr(),
            ctypes.cast(callback, ffi.wasmtime_func_unchecked_callback_t),
            None,
            _NO_FINALIZER,
            byref(raw),
        )
        return Func._from_raw(raw), callback  # noqa: SLF001 - as above

    def _engine_fuel(self) -> int:
        """The fuel that the engine has counted, without that of the wrappers."""
        ffi.wasmtime_context_get_fuel(self._context, byref(self._fuel_left))
        left: int = self._fuel_left.value
        counted: int = self._given - left - self._overhead
        return counted

    def _now(self) -> int:
        return self._engine_fuel() + self._guest.fuel

    def _enter(self, number: int) -> None:
        self._overhead += COST_BEFORE_ENTER
        self.tree.count(self._now())
        self.tree.push(number)
        self._overhead += COST_CALL + self._parameters[number]
        if self.tree.counted > self._job["fuel"]:
            raise _FuelUsedUpError
        if self._given - self._overhead < self._job["fuel"] + _SLACK // 2:
            self._given += _SLACK
            self._store.set_fuel(self._fuel_left.value + _SLACK)

    def _leave(self, _number: int) -> None:
        self._overhead += COST_BEFORE_LEAVE
        self.tree.count(self._now())
        self.tree.pop()

    def _answer(self, name: str, memory: Any, arguments: Any) -> int:  # noqa: ANN401 - passed on
        self.tree.count(self._now())
        self.tree.push(self._calls[name])
        try:
            return self._guest.answer(name, memory, arguments)
        finally:
            self.tree.count(self._now())
            self.tree.pop()


def _engine() -> wasmtime.Engine:
    """The sandbox's engine, with more stack."""
    config = wasmtime.Config()
    for name, value in CONFIG.items():
        setattr(config, name, _STACK_BYTES if name == "max_wasm_stack" else value)
    config.target = TARGET_TRIPLE
    for flag in CPU_FLAGS:
        config.cranelift_flag_enable(flag)
    return wasmtime.Engine(config)


def main() -> None:
    """Read a job, run it, and write the tree."""
    job = json.loads(sys.stdin.buffer.readline())
    stdin = sys.stdin.buffer.read()
    artefact = Path(job["artefact_path"]).read_bytes()
    if hashlib.sha256(artefact).hexdigest() != job["artefact_sha256"]:
        sys.exit("the artefact is not the one that was compiled")
    profiler = Profiler(job, stdin)
    process.confine(
        data_bytes=limits.WORKER_DATA_BYTES_MAX, file_bytes=limits.ARTEFACT_BYTES_MAX, open_files=_OPEN_FILES_MAX
    )
    seccomp.restrict()
    ending, tree = profiler.run(artefact), profiler.tree
    answer = {"ending": ending, "parents": tree.parents, "frames": tree.frames, "fuel": tree.fuel, "calls": tree.calls}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
