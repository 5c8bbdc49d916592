"""The only adapter to wasmtime: its configuration, and the few private functions of its C interface that we use.

Everything that a new release of wasmtime can break is in this module and is covered by the tests in `tests/sandbox`.
Host calls use the unchecked C interface, because a call through the public one costs four times as much.
"""

import ctypes
import errno
from collections import Counter
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_size_t, c_uint64, c_void_p
from typing import Any, Final

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime._exportable import AsExtern
from wasmtime._extern import wrap_extern

from quittance.sandbox.target import CONFIG, CPU_FLAGS, TARGET_TRIPLE
from quittance.sandbox.wasi import CALLS, MODULE, NO_RESULT, CallFailedError, Errno

PAGE_BYTES: Final = 65_536
_WORDS_PER_SLOT: Final = 2  # an argument's slot holds a v128; an integer is in its first half
_MASKS: Final = {"i": 2**32 - 1, "I": 2**64 - 1}
_MEMORY_NAME: Final = b"memory"
_FRAMES_MAX: Final = 16
_NAME_CHARS_MAX: Final = 80  # of a function's name in a message
_UTF8_BYTES_MAX: Final = 4
_OUT_OF_MEMORY: Final = f"(os error {errno.ENOMEM})"  # in the engine's error text when an allocation failed
_UNKNOWN_OFFSET: Final = ctypes.c_size_t(-1).value  # for a trap in a function's first instructions

_Callback = ctypes.CFUNCTYPE(c_size_t, c_void_p, c_void_p, POINTER(c_uint64), c_size_t)
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


def _private(name: str, result: type) -> Any:  # noqa: ANN401 - ctypes has no public name for a function's type
    function = ffi.dll[name]  # an index makes a new function object, so the binding's own types do not change
    function.argtypes, function.restype = (c_void_p, c_void_p), result
    return function


_data_of = _private("wasmtime_memory_data", c_void_p)
_size_of = _private("wasmtime_memory_data_size", c_size_t)


class GuestMemory:
    """The guest's linear memory during host calls.

    Call `refresh` at the start of each host call: the guest may have grown its memory since the last one.
    """

    def __init__(self, caller: int) -> None:
        pointer = ctypes.cast(caller, POINTER(ffi.wasmtime_caller_t))
        item = ffi.wasmtime_extern_t()
        name = ctypes.create_string_buffer(_MEMORY_NAME)
        found = ffi.wasmtime_caller_export_get(pointer, name, len(_MEMORY_NAME), byref(item))
        kind: int = item.kind  # type: ignore[assignment]  # ctypes reads a plain number here
        if not found or kind != ffi.WASMTIME_EXTERN_MEMORY.value:
            raise CallFailedError(Errno.FAULT)
        self._context = ctypes.cast(ffi.wasmtime_caller_context(pointer), c_void_p)
        self._item = item  # keeps the memory alive that `_memory` points to
        self._memory = ctypes.cast(ctypes.pointer(item.of.memory), c_void_p)
        self.refresh()

    def refresh(self) -> None:
        """Look up the memory's address and size. They cannot change during the host call."""
        self.size: int = _size_of(self._context, self._memory)
        self._base: int = _data_of(self._context, self._memory)

    def read(self, address: int, length: int) -> bytes:
        """Copy bytes out of the guest."""
        if address < 0 or length < 0 or address + length > self.size:
            raise CallFailedError(Errno.FAULT)
        return ctypes.string_at(self._base + address, length)

    def write(self, address: int, data: bytes) -> None:
        """Copy bytes into the guest."""
        if address < 0 or address + len(data) > self.size:
            raise CallFailedError(Errno.FAULT)
        ctypes.memmove(self._base + address, data, len(data))


Handler = Callable[[str, GuestMemory, Sequence[int]], int]
"""Answers one host call: takes its name, the guest's memory and the arguments, and returns an errno.

Any exception except `CallFailedError` ends the run and is stored in `Host.failure`.
"""


class Host:
    """Links modules to the host calls. It serves one run at a time, the one passed to `begin`."""

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._linker = wasmtime.Linker(engine)
        self._callbacks = [self._define(name, parameters) for name, parameters in CALLS.items()]
        self._handler: Handler | None = None
        self._memory: GuestMemory | None = None
        self.failure: BaseException | None = None

    def begin(self, handler: Handler | None) -> None:
        """Let `handler` answer the calls of a new run; drop the state of the previous run."""
        self._handler, self._memory, self.failure = handler, None, None

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
        masks = [(index * _WORDS_PER_SLOT, _MASKS[kind]) for index, kind in enumerate(parameters)]

        def answer(_environment: object, caller: int, slots: Any, _count: int) -> int:  # noqa: ANN401 - a ctypes pointer
            try:
                arguments = [slots[word] & mask for word, mask in masks]
                slots[0] = self._answer(name, caller, arguments)
            except BaseException as failure:  # noqa: BLE001 - no exception may unwind through the engine's frames
                self.failure = failure
                return _new_trap()
            return 0

        return answer

    def _answer(self, name: str, caller: int, arguments: Sequence[int]) -> int:
        if self._handler is None:
            message = "a host call was made outside of a run"
            raise RuntimeError(message)
        try:
            if self._memory is None:
                self._memory = GuestMemory(caller)
            else:
                self._memory.refresh()
            return self._handler(name, self._memory, arguments)
        except CallFailedError as failed:
            return failed.errno


def _new_trap() -> int:
    text = b"host"
    trap = ffi.wasmtime_trap_new(ctypes.create_string_buffer(text), len(text))
    return ctypes.cast(trap, c_void_p).value or 0


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


def memory_minimum_bytes(module: wasmtime.Module) -> int:
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
