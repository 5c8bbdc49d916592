"""The only adapter to wasmtime: its configuration, and the few private functions of its C interface that we use.

Everything that a new release of wasmtime can break is in this module and is covered by the tests in `tests/sandbox`.
Host calls use the unchecked C interface, because a call through the public one costs four times as much.
"""

import ctypes
import errno
from collections import Counter
from collections.abc import Callable, Sequence
from ctypes import (
    POINTER,
    addressof,
    byref,
    c_bool,
    c_char_p,
    c_int,
    c_int64,
    c_size_t,
    c_ssize_t,
    c_uint32,
    c_uint64,
    c_void_p,
    py_object,
)
from dataclasses import dataclass
from typing import Any, Final, Self

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime._exportable import AsExtern
from wasmtime._extern import wrap_extern

from quittance.sandbox.target import CONFIG, CPU_FLAGS, TARGET_TRIPLE
from quittance.sandbox.wasi import CALLS, MODULE, NO_RESULT, CallFailedError, Errno

PAGE_BYTES: Final = 65_536
_WORDS_PER_SLOT: Final = 4  # an argument's slot holds a v128 in 32-bit words; an integer is in the first ones
_WORD_BITS: Final = 32
_MEMORY_NAME: Final = b"memory"
_START_NAME: Final = b"_start"
_FRAMES_MAX: Final = 16
_NAME_CHARS_MAX: Final = 80  # of a function's name in a message
_UTF8_BYTES_MAX: Final = 4
_OUT_OF_MEMORY: Final = f"(os error {errno.ENOMEM})"  # in the engine's error text when an allocation failed
_UNKNOWN_OFFSET: Final = ctypes.c_size_t(-1).value  # for a trap in a function's first instructions

_Callback = ctypes.CFUNCTYPE(c_size_t, c_void_p, c_void_p, POINTER(c_uint32), c_size_t)
_NO_FINALIZER = ctypes.CFUNCTYPE(None, c_void_p)()


def new_engine() -> wasmtime.Engine:
    """Create an engine with the hardened configuration."""
    config = wasmtime.Config()
    for name, value in CONFIG.items():
        setattr(config, name, value)
    config.target = TARGET_TRIPLE
    for flag in CPU_FLAGS:
        config.cranelift_flag_enable(flag)
    return wasmtime.Engine(config)


def _private(name: str, result: type | None, *parameters: type) -> Any:  # noqa: ANN401 - ctypes has no public name for it
    function = ffi.dll[name]  # an index makes a new function object, so the binding's own types do not change
    function.argtypes, function.restype = parameters, result
    return function


# Plain addresses instead of the binding's typed pointers: ctypes converts them several times as fast.
_store_new = _private("wasmtime_store_new", c_void_p, c_void_p, c_void_p, c_void_p)
_store_context = _private("wasmtime_store_context", c_void_p, c_void_p)
_store_delete = _private("wasmtime_store_delete", None, c_void_p)
_store_limiter = _private("wasmtime_store_limiter", None, c_void_p, c_int64, c_int64, c_int64, c_int64, c_int64)
_set_fuel = _private("wasmtime_context_set_fuel", c_void_p, c_void_p, c_uint64)
_get_fuel = _private("wasmtime_context_get_fuel", c_void_p, c_void_p, c_void_p)
_instantiate = _private("wasmtime_instance_pre_instantiate", c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)
_export_get = _private("wasmtime_instance_export_get", c_bool, c_void_p, c_void_p, c_char_p, c_size_t, c_void_p)
_call = _private("wasmtime_func_call", c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p)
_deserialize = _private("wasmtime_module_deserialize", c_void_p, c_void_p, c_char_p, c_size_t, c_void_p)
_caller_export_get = _private("wasmtime_caller_export_get", c_bool, c_void_p, c_char_p, c_size_t, c_void_p)
_caller_context = _private("wasmtime_caller_context", c_void_p, c_void_p)
_data_of = _private("wasmtime_memory_data", c_void_p, c_void_p, c_void_p)
_size_of = _private("wasmtime_memory_data_size", c_size_t, c_void_p, c_void_p)

_view_of = ctypes.pythonapi.PyMemoryView_FromMemory
_view_of.argtypes, _view_of.restype = (c_void_p, c_ssize_t, c_int), py_object
_WRITABLE: Final = 0x200  # PyBUF_WRITE
_ITEM_AT: Final[int] = ffi.wasmtime_extern_t.of.offset  # of the memory or function in a `wasmtime_extern_t`


class GuestMemory:
    """The guest's linear memory during host calls.

    Call `refresh` at the start of each host call: the guest may have grown its memory since the last one.
    """

    def __init__(self, caller: int) -> None:
        item = ffi.wasmtime_extern_t()
        found = _caller_export_get(caller, _MEMORY_NAME, len(_MEMORY_NAME), addressof(item))
        kind: int = item.kind  # type: ignore[assignment]  # ctypes reads a plain number here
        if not found or kind != ffi.WASMTIME_EXTERN_MEMORY.value:
            raise CallFailedError(Errno.FAULT)
        self._context: int = _caller_context(caller)
        self._item = item  # keeps the memory alive that `_memory` points to
        self._memory = addressof(item) + _ITEM_AT
        self.size = -1
        self.refresh()

    def refresh(self) -> None:
        """Look up the memory's size, and its address if the size has changed: a memory moves only when it grows.

        Neither can change during the host call.
        """
        size: int = _size_of(self._context, self._memory)
        if size != self.size:
            self.size = size
            self._bytes: memoryview = _view_of(_data_of(self._context, self._memory), size, _WRITABLE)

    def read(self, address: int, length: int) -> bytes:
        """Copy bytes out of the guest."""
        end = address + length
        if address < 0 or length < 0 or end > self.size:
            raise CallFailedError(Errno.FAULT)
        return self._bytes[address:end].tobytes()

    def check(self, address: int, length: int) -> None:
        """Check that bytes are inside the guest's memory."""
        if address < 0 or length < 0 or address + length > self.size:
            raise CallFailedError(Errno.FAULT)

    def write(self, address: int, data: bytes | memoryview) -> None:
        """Copy bytes into the guest."""
        end = address + len(data)
        if address < 0 or end > self.size:
            raise CallFailedError(Errno.FAULT)
        self._bytes[address:end] = data


Handler = Callable[[str, GuestMemory, Sequence[int]], int]
"""Answers one host call: takes its name, the guest's memory and the arguments, and returns an errno.

Any exception except `CallFailedError` ends the run and is stored in `Host.failure`.
"""


def _outside_of_a_run(_name: str, _memory: GuestMemory, _arguments: Sequence[int]) -> int:
    message = "a host call was made outside of a run"
    raise RuntimeError(message)


class Host:
    """Links modules to the host calls. It serves one run at a time, the one passed to `begin`."""

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._linker = wasmtime.Linker(engine)
        self._callbacks = [self._define(name, parameters) for name, parameters in CALLS.items()]
        self._handler: Handler = _outside_of_a_run
        self._memory: GuestMemory | None = None
        self.failure: BaseException | None = None

    def begin(self, handler: Handler | None) -> None:
        """Let `handler` answer the calls of a new run; drop the state of the previous run."""
        self._handler, self._memory, self.failure = handler or _outside_of_a_run, None, None

    def link(self, module: wasmtime.Module) -> wasmtime.InstancePre:
        """Resolve a module's imports; raises `WasmtimeError` if one has the wrong type."""
        return self._linker.instantiate_pre(module)

    @property
    def memory_bytes(self) -> int:
        """Size of the guest's memory at the last host call; 0 if there was none."""
        return self._memory.size if self._memory else 0

    def _define(self, name: str, parameters: str) -> Any:  # noqa: ANN401 - ctypes has no name for a callback's type
        callback = _Callback(self._trampoline(name, parameters))
        types = [wasmtime.ValType.i32() if kind == "i" else wasmtime.ValType.i64() for kind in parameters]
        results = [] if name in NO_RESULT else [wasmtime.ValType.i32()]
        signature = wasmtime.FuncType(types, results)  # must stay alive until the call below has copied it
        module, item = MODULE.encode(), name.encode()
        error = ffi.wasmtime_linker_define_func_unchecked(
            self._linker.ptr(),
            ctypes.create_string_buffer(module),
            len(module),
            ctypes.create_string_buffer(item),
            len(item),
            signature.ptr(),
            ctypes.cast(callback, ffi.wasmtime_func_unchecked_callback_t),
            None,
            _NO_FINALIZER,
        )
        if error:  # type: ignore[truthy-bool]  # a null pointer is false
            raise wasmtime.WasmtimeError._from_ptr(error)  # noqa: SLF001 - private; this module is the adapter
        return callback

    def _trampoline(self, name: str, parameters: str) -> Callable[[Any, int, Any, int], int]:
        first_words = slice(0, len(parameters) * _WORDS_PER_SLOT, _WORDS_PER_SLOT)
        long = [index for index, kind in enumerate(parameters) if kind == "I"]

        def answer(_environment: object, caller: int, slots: Any, _count: int) -> int:  # noqa: ANN401 - a ctypes pointer
            try:
                memory = self._memory
                if memory is None:
                    memory = self._memory = GuestMemory(caller)
                else:
                    memory.refresh()
                arguments: list[int] = slots[first_words] if parameters else []
                for index in long:
                    arguments[index] |= slots[index * _WORDS_PER_SLOT + 1] << _WORD_BITS
                slots[0] = self._handler(name, memory, arguments)
            except CallFailedError as failed:
                slots[0] = failed.errno
            except BaseException as failure:  # noqa: BLE001 - no exception may unwind through the engine's frames
                self.failure = failure
                return _new_trap()
            return 0

        return answer


def _new_trap() -> int:
    text = b"host"
    trap = ffi.wasmtime_trap_new(ctypes.create_string_buffer(text), len(text))
    return ctypes.cast(trap, c_void_p).value or 0


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded and linked module."""

    linked: wasmtime.InstancePre
    address: int  # of the linked module in the engine
    memory_minimum_bytes: int


class Store:
    """Everything of one run inside the engine: an instance with its memory, tables, fuel and limits.

    It calls the C interface directly, because the binding's own classes cost more than a short run.
    """

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._address: int = _store_new(engine.ptr(), None, None)
        self._context: int = _store_context(self._address)
        self._instance = ffi.wasmtime_instance_t()
        self._memory = ffi.wasmtime_extern_t()
        self._fuel = c_uint64()
        self._trap = c_void_p()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _store_delete(self._address)

    def limit(self, *, memory_bytes: int, table_elements: int, tables: int) -> None:
        """Limit the only instance: its memory, and the elements and number of its tables."""
        _store_limiter(self._address, memory_bytes, table_elements, 1, tables, 1)

    def set_fuel(self, fuel: int) -> None:
        """Set the fuel that is left."""
        _check(_set_fuel(self._context, fuel))

    def fuel(self) -> int:
        """Return the fuel that is left."""
        _check(_get_fuel(self._context, byref(self._fuel)))
        return self._fuel.value

    def instantiate(self, program: Program) -> None:
        """Make the instance, which runs its start function; raises `Trap` or `WasmtimeError`."""
        error = _instantiate(program.address, self._context, byref(self._instance), byref(self._trap))
        self._check_trap(error)
        self._export(_MEMORY_NAME, ffi.WASMTIME_EXTERN_MEMORY.value, self._memory)

    def start(self) -> None:
        """Call the instance's `_start`; raises `Trap` or `WasmtimeError`."""
        function = ffi.wasmtime_extern_t()
        self._export(_START_NAME, ffi.WASMTIME_EXTERN_FUNC.value, function)
        error = _call(self._context, addressof(function) + _ITEM_AT, None, 0, None, 0, byref(self._trap))
        self._check_trap(error)

    def memory_bytes(self) -> int:
        """Return the size of the instance's memory."""
        return _size_of(self._context, addressof(self._memory) + _ITEM_AT)  # type: ignore[no-any-return]  # a foreign call

    def _export(self, name: bytes, kind: int, item: ffi.wasmtime_extern_t) -> None:
        found = _export_get(self._context, byref(self._instance), name, len(name), byref(item))
        found_kind: int = item.kind  # type: ignore[assignment]  # ctypes reads a plain number here
        if not found or found_kind != kind:
            message = f"the instance does not export {name.decode()} as it should"
            raise wasmtime.WasmtimeError(message)

    def _check_trap(self, error: int | None) -> None:
        _check(error)
        if self._trap.value:
            raise wasmtime.Trap._from_ptr(ctypes.cast(self._trap, POINTER(ffi.wasm_trap_t)))  # noqa: SLF001 - as above


def _check(error: int | None) -> None:
    if error:
        raise wasmtime.WasmtimeError._from_ptr(ctypes.cast(error, POINTER(ffi.wasmtime_error_t)))  # noqa: SLF001 - as above


class InvalidModuleError(Exception):
    """The engine rejects the module; the text states the reason for its author."""


def compile_to_artefact(module: bytes) -> bytes:
    """Compile a binary module to native code for this engine, configuration and CPU target.

    Raises `InvalidModuleError`, or `MemoryError` if the engine reached this process's memory limit. The engine reports
    that only in the error's text.
    """
    engine = new_engine()
    try:
        wasmtime.Module.validate(engine, module)  # first: it is cheap, and unlike `Module` it accepts binaries only
        compiled = wasmtime.Module(engine, module)
        Host(engine).link(compiled)
    except wasmtime.WasmtimeError as error:
        if _OUT_OF_MEMORY in str(error):
            raise MemoryError from error
        raise InvalidModuleError(" ".join(str(error).split())) from error
    return bytes(compiled.serialize())


def load(engine: wasmtime.Engine, host: Host, artefact: bytes) -> Program:
    """Load and link an artefact. This makes its native code executable, so the caller must have checked its digest.

    The engine copies the artefact. The public interface would copy it once more: 4 of 120 ms of CPython's first run.
    """
    loaded = POINTER(ffi.wasmtime_module_t)()
    _check(_deserialize(engine.ptr(), artefact, len(artefact), byref(loaded)))
    module = wasmtime.Module._from_ptr(loaded)  # noqa: SLF001 - private; this module is the adapter
    linked = host.link(module)
    address = ctypes.cast(linked.ptr(), c_void_p).value or 0
    return Program(linked, address, _memory_minimum_bytes(module))


def _memory_minimum_bytes(module: wasmtime.Module) -> int:
    """Return the size of a module's initial memory."""
    types = (export.type for export in module.exports if export.name == "memory")
    return sum(kind.limits.min * PAGE_BYTES for kind in types if isinstance(kind, wasmtime.MemoryType))


def exported(store: wasmtime.Store, instance: wasmtime.Instance, name: str) -> AsExtern:
    """Look up one export by its name. The public interface would list all exports again for every run."""
    item, text = ffi.wasmtime_extern_t(), name.encode()
    found = ffi.wasmtime_instance_export_get(
        store._context(),  # noqa: SLF001 - private; this module is the adapter
        ctypes.byref(instance._instance),  # noqa: SLF001 - as above
        ctypes.create_string_buffer(text),
        len(text),
        ctypes.byref(item),
    )
    if not found:
        message = f"the instance does not export {name}"
        raise wasmtime.WasmtimeError(message)
    return wrap_extern(item)


def backtrace(trap: wasmtime.Trap) -> list[str]:
    """List the guest's functions on the stack at a trap, each with its code offset, innermost first."""
    names: dict[int, str] = {}
    lines = []
    for frame in trap.frames[:_FRAMES_MAX]:
        place = "" if frame.module_offset == _UNKNOWN_OFFSET else f" at 0x{frame.module_offset:x}"
        lines.append(_name(frame, names) + place)
    return lines


def recursive_functions(trap: wasmtime.Trap) -> list[str]:
    """List the functions that used up the stack, each once, in the module's order.

    Functions that appear only once are left out, and so are code offsets: the size of frames depends on the processor,
    and so do the place and the function in which the stack ends.
    """
    frames = trap.frames[:_FRAMES_MAX]
    names: dict[int, str] = {}
    times = Counter(frame.func_index for frame in frames)
    repeated = [frame for frame in frames if times[frame.func_index] > 1]
    for frame in repeated or frames:
        _name(frame, names)
    return [name for _, name in sorted(names.items())]


def _name(frame: wasmtime.Frame, names: dict[int, str]) -> str:
    """Name a frame's function. `names` caches the names of one trap, because the engine copies a name at each call."""
    index = frame.func_index
    if index not in names:
        text = _name_prefix(frame).decode(errors="ignore")
        printable = "".join(character for character in text if character.isprintable())
        names[index] = f"{printable[:_NAME_CHARS_MAX] or 'function'} [{index}]"
    return names[index]


def _name_prefix(frame: wasmtime.Frame) -> bytes:
    """Copy only as much of a name as is displayed: modules published before names were limited may have huge ones."""
    found = ffi.wasmtime_frame_func_name(frame.ptr())
    if not found:  # type: ignore[truthy-bool]  # a null pointer is false
        return b""
    size: int = found.contents.size
    return ctypes.string_at(found.contents.data, min(size, _NAME_CHARS_MAX * _UTF8_BYTES_MAX))
