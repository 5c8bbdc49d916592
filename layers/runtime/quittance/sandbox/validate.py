"""A cheap check of a module's structure before the engine reads it: what it imports, and whether it may be published.

The check is one pass over the binary in linear time, with every count bounded. It does not validate the code: the
engine does that when it compiles the module. Each refusal has a code and a sentence that tells the author what to
change.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NoReturn

from quittance import limits
from quittance.frames import in_one_chunk
from quittance.sandbox.wasi import CALLS, MODULE, NO_RESULT

_MAGIC: Final = b"\0asm"
_VERSION: Final = b"\1\0\0\0"
_COMPONENT: Final = b"\x0d\0\1\0"
_PAGE_BYTES: Final = 65_536
_FUNCTION: Final = 0
_MEMORY: Final = 2
_I32, _I64 = b"\x7f", b"\x7e"
_REFERENCE_TYPES: Final = b"\x70\x6f"
_VALUE_TYPES: Final = _I32 + _I64 + b"\x7d\x7c\x7b" + _REFERENCE_TYPES
_BY_LETTER: Final = bytes.maketrans(b"iI", _I32 + _I64)
_FUNCTION_TYPE: Final = 0x60
_HAS_MAXIMUM: Final = 1
_NAME_SECTION: Final = "name"  # the custom section that names functions, for debuggers and backtraces
_FUNCTION_NAMES: Final = 1
_FUNCTION_NAMES_MAX: Final = limits.MODULE_IMPORTS_MAX + limits.MODULE_FUNCTIONS_MAX


class Refusal(StrEnum):
    """Why a module cannot be published. The values are part of the API: never rename one."""

    NOT_WASM = "not_wasm"
    COMPONENT = "component"
    WASM_VERSION = "wasm_version"
    MALFORMED = "malformed"
    MODULE_TOO_LARGE = "module_too_large"
    TOO_MANY_ITEMS = "too_many_items"
    NAME_TOO_LONG = "name_too_long"
    FUNCTION_TOO_LARGE = "function_too_large"
    ELEMENTS_TOO_LARGE = "elements_too_large"
    TABLE_TOO_LARGE = "table_too_large"
    MEMORY_TOO_LARGE = "memory_too_large"
    UNSUPPORTED_FEATURE = "unsupported_feature"
    IMPORT_FOREIGN = "import_foreign"
    IMPORT_UNKNOWN = "import_unknown"
    IMPORT_KIND = "import_kind"
    IMPORT_TYPE = "import_type"
    REACTOR = "reactor"
    NO_START = "no_start"
    NO_MEMORY = "no_memory"
    INVALID_MODULE = "invalid_module"
    COMPILE_LIMIT = "compile_limit"
    ARTEFACT_TOO_LARGE = "artefact_too_large"


_Type = tuple[bytes, bytes]  # value types of the parameters and of the results


class ModuleRejectedError(Exception):
    """The module cannot be published. `code` is for programs, `message` for the author.

    `compile_module` sets `cpu_ms` to the processor time that was used before the refusal.
    """

    def __init__(self, code: Refusal, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.cpu_ms = 0


@dataclass(slots=True)
class ModuleFacts:
    """What a module contains."""

    imports: set[str] = field(default_factory=set)
    exports: dict[str, tuple[int, int]] = field(default_factory=dict)  # name → kind and index
    functions: int = 0
    body_bytes_max: int = 0
    data_segments: int = 0
    memories: int = 0
    memory_bytes_min: int = 0
    tables: int = 0
    has_start_function: bool = False
    custom_sections: set[str] = field(default_factory=set)


@in_one_chunk
def validate_module(module: bytes) -> ModuleFacts:
    """Check a module's structure; raises `ModuleRejectedError`, which states what the author should change."""
    if len(module) > limits.MODULE_BYTES_MAX:
        _refuse_over_limit(
            Refusal.MODULE_TOO_LARGE, "The module", len(module), limits.MODULE_BYTES_MAX, "bytes; strip it (-s)"
        )
    _check_preamble(module)
    scan = _Scan()
    scan.sections(_Reader(module, len(_MAGIC) + len(_VERSION), len(module)))
    scan.check_exports()
    return scan.facts


def _check_preamble(module: bytes) -> None:
    if not module.startswith(_MAGIC):
        sentence = "This is not a WebAssembly binary; upload the .wasm file that the compiler wrote."
        raise ModuleRejectedError(Refusal.NOT_WASM, sentence)
    version = module[len(_MAGIC) : len(_MAGIC) + len(_VERSION)]
    if version == _COMPONENT:
        sentence = "This is a component; build a core module for WASI preview 1 (target wasm32-wasip1)."
        raise ModuleRejectedError(Refusal.COMPONENT, sentence)
    if version != _VERSION:
        raise ModuleRejectedError(Refusal.WASM_VERSION, "Only version 1 of the WebAssembly binary format is supported.")


class _Reader:
    """A position in the binary, with an end that no read may cross."""

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self._data = data
        self._at = start
        self._end = end

    @property
    def more(self) -> bool:
        return self._at < self._end

    @property
    def length(self) -> int:
        return self._end - self._at

    def skip(self, count: int) -> None:
        if count > self._end - self._at:
            self.damaged("an item is longer than the part that contains it")
        self._at += count

    def byte(self) -> int:
        self.skip(1)
        return self._data[self._at - 1]

    def number(self, bits: int = 32) -> int:
        """Read an unsigned LEB128 number."""
        value = 0
        for shift in range(0, bits, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            self.damaged("a number is too long")
        if value >> bits:
            self.damaged("a number is too large")
        return value

    def take(self, count: int) -> bytes:
        self.skip(count)
        return self._data[self._at - count : self._at]

    def name(self, what: str) -> str:
        length, limit = self.number(), limits.MODULE_NAME_BYTES_MAX
        if length > limit:
            _refuse_over_limit(
                Refusal.NAME_TOO_LONG, f"The name of {what}", length, limit, "bytes; shorten or strip it"
            )
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            self.damaged("a name is not UTF-8")

    def part(self, length: int) -> "_Reader":
        """Return a separate reader for the next `length` bytes, and skip them."""
        start = self._at
        self.skip(length)
        return _Reader(self._data, start, start + length)

    def count(self, what: str, limit: int) -> int:
        """Read how many items follow."""
        found = self.number()
        if found > limit:
            _refuse_over_limit(
                Refusal.TOO_MANY_ITEMS, f"The number of {what}", found, limit, "items; split the program or strip it"
            )
        return found

    def damaged(self, why: str) -> NoReturn:
        sentence = f"The module is damaged at byte {self._at}: {why}; build and upload it again."
        raise ModuleRejectedError(Refusal.MALFORMED, sentence)


class _Scan:
    """One pass over a module's sections."""

    def __init__(self) -> None:
        self.facts = ModuleFacts()
        self._types: list[_Type] = []
        self._functions: list[int] = []  # type of each function, imported ones first
        self._seen: set[int] = set()

    def sections(self, reader: _Reader) -> None:
        limit = limits.MODULE_SECTIONS_MAX
        for _ in range(limit):
            if not reader.more:
                return
            kind = reader.byte()
            self._section(kind, reader.part(reader.number()))
        if reader.more:
            raise ModuleRejectedError(Refusal.TOO_MANY_ITEMS, f"The module has more than {limit} sections; strip it.")

    def _section(self, kind: int, body: _Reader) -> None:
        if kind == 0:
            name = body.name("a custom section")
            self.facts.custom_sections.add(name)
            if name == _NAME_SECTION:
                self._check_names(body)
            return
        if kind in self._seen:
            body.damaged("a section occurs twice")
        self._seen.add(kind)
        handler = _SECTIONS.get(kind)
        if handler is None:
            body.damaged("a section has an unknown kind")
        handler(self, body)

    def _check_names(self, body: _Reader) -> None:
        """Check the limits of function names, which messages about a run may display.

        A damaged name section is not an error: the engine ignores it from the damage on.
        """
        try:
            while body.more:
                kind, part = body.byte(), body.part(body.number())
                if kind == _FUNCTION_NAMES:
                    for _ in range(part.count("names of functions", _FUNCTION_NAMES_MAX)):
                        part.number()
                        part.name("a function")
        except ModuleRejectedError as refused:
            if refused.code is not Refusal.MALFORMED:
                raise

    def type_section(self, body: _Reader) -> None:
        for _ in range(body.count("types", limits.MODULE_ITEMS_MAX)):
            if body.byte() != _FUNCTION_TYPE:
                _refuse_feature("garbage collection (struct, array or recursive types)")
            self._types.append((self._values(body), self._values(body)))

    def _values(self, body: _Reader) -> bytes:
        values = body.take(body.count("values of a type", limits.MODULE_TYPE_VALUES_MAX))
        if values.strip(_VALUE_TYPES):
            _refuse_feature("typed references")
        return values

    def import_section(self, body: _Reader) -> None:
        for _ in range(body.count("imports", limits.MODULE_IMPORTS_MAX)):
            module, name, kind = body.name("an import's module"), body.name("an import"), body.byte()
            if module != MODULE:
                _refuse_import(module, name)
            if kind != _FUNCTION:
                sentence = f"The import {name!r:.100} is not a function; only WASI functions can be imported."
                raise ModuleRejectedError(Refusal.IMPORT_KIND, sentence)
            self._import_function(name, body.number(), body)

    def _import_function(self, name: str, index: int, body: _Reader) -> None:
        parameters = CALLS.get(name)
        if parameters is None:
            sentence = f"WASI preview 1 has no function {name!r:.100}; build for the target wasm32-wasip1."
            raise ModuleRejectedError(Refusal.IMPORT_UNKNOWN, sentence)
        expected = (parameters.encode().translate(_BY_LETTER), b"" if name in NO_RESULT else _I32)
        if self._type(index, body) != expected:
            sentence = f"The import {name!r} does not have its WASI preview 1 type; build for wasm32-wasip1."
            raise ModuleRejectedError(Refusal.IMPORT_TYPE, sentence)
        self.facts.imports.add(name)
        self._functions.append(index)

    def _type(self, index: int, body: _Reader) -> _Type:
        if index >= len(self._types):
            body.damaged("it refers to a type that does not exist")
        return self._types[index]

    def function_section(self, body: _Reader) -> None:
        self.facts.functions = body.count("functions", limits.MODULE_FUNCTIONS_MAX)
        self._functions += [body.number() for _ in range(self.facts.functions)]

    def table_section(self, body: _Reader) -> None:
        self.facts.tables = body.count("tables", limits.MODULE_TABLES_MAX)
        for _ in range(self.facts.tables):
            if body.byte() not in _REFERENCE_TYPES:
                _refuse_feature("typed references")
            flags = body.byte()
            if flags & ~_HAS_MAXIMUM:
                _refuse_feature("64-bit or shared tables")
            elements = body.number()
            if elements > limits.TABLE_ELEMENTS_MAX:
                _refuse_over_limit(
                    Refusal.TABLE_TOO_LARGE, "A table", elements, limits.TABLE_ELEMENTS_MAX, "elements; shrink it"
                )
            if flags:
                body.number()

    def memory_section(self, body: _Reader) -> None:
        self.facts.memories = body.number()
        if self.facts.memories > 1:
            _refuse_feature("more than one memory")
        if self.facts.memories:
            self._memory(body)

    def _memory(self, body: _Reader) -> None:
        flags = body.byte()
        for bit, feature in _MEMORY_FEATURES.items():
            if flags & bit:
                _refuse_feature(feature)
        size, limit = body.number() * _PAGE_BYTES, limits.MEMORY_BYTES_MAX
        if size > limit:
            _refuse_over_limit(
                Refusal.MEMORY_TOO_LARGE, "The initial memory", size, limit, "bytes; lower --initial-memory"
            )
        self.facts.memory_bytes_min = size

    def global_section(self, body: _Reader) -> None:
        body.count("globals", limits.MODULE_ITEMS_MAX)

    def export_section(self, body: _Reader) -> None:
        for _ in range(body.count("exports", limits.MODULE_EXPORTS_MAX)):
            name, kind, index = body.name("an export"), body.byte(), body.number()
            self.facts.exports[name] = (kind, index)

    def start_section(self, body: _Reader) -> None:
        """Accept a start function: some compilers initialise with it, and it runs under the same limits as `_start`."""
        body.number()
        self.facts.has_start_function = True

    def element_section(self, body: _Reader) -> None:
        size, limit = body.length, limits.MODULE_ELEMENT_BYTES_MAX
        if size > limit:
            _refuse_over_limit(
                Refusal.ELEMENTS_TOO_LARGE, "The element section", size, limit, "bytes; use fewer function pointers"
            )
        body.count("element segments", limits.MODULE_ITEMS_MAX)

    def code_section(self, body: _Reader) -> None:
        for _ in range(body.count("functions", limits.MODULE_FUNCTIONS_MAX)):
            size = body.number()
            body.skip(size)
            self.facts.body_bytes_max = max(self.facts.body_bytes_max, size)
        largest, limit = self.facts.body_bytes_max, limits.MODULE_BODY_BYTES_MAX
        if largest > limit:
            _refuse_over_limit(Refusal.FUNCTION_TOO_LARGE, "The largest function", largest, limit, "bytes; split it")

    def data_section(self, body: _Reader) -> None:
        self.facts.data_segments = body.count("data segments", limits.MODULE_ITEMS_MAX)

    def data_count_section(self, body: _Reader) -> None:
        body.count("data segments", limits.MODULE_ITEMS_MAX)

    def tag_section(self, _body: _Reader) -> None:
        _refuse_feature("exceptions")

    def check_exports(self) -> None:
        """Check that the module is a WASI command: it exports `_start` and `memory`."""
        kind, index = self.facts.exports.get("_start", (None, 0))
        if kind is None and "_initialize" in self.facts.exports:
            sentence = "The module is a WASI reactor (a library); build a command: a program with main()."
            raise ModuleRejectedError(Refusal.REACTOR, sentence)
        if kind != _FUNCTION or not self._is_plain(index):
            sentence = "The module has no _start function without parameters and results; build a program with main()."
            raise ModuleRejectedError(Refusal.NO_START, sentence)
        if self.facts.exports.get("memory", (None, 0))[0] != _MEMORY:
            sentence = 'The module does not export its memory under the name "memory"; do not pass --no-export-memory.'
            raise ModuleRejectedError(Refusal.NO_MEMORY, sentence)

    def _is_plain(self, index: int) -> bool:
        if index >= len(self._functions):
            return False
        of = self._functions[index]
        return of < len(self._types) and self._types[of] == (b"", b"")


_SECTIONS: Final[dict[int, Callable[[_Scan, _Reader], None]]] = {
    1: _Scan.type_section,
    2: _Scan.import_section,
    3: _Scan.function_section,
    4: _Scan.table_section,
    5: _Scan.memory_section,
    6: _Scan.global_section,
    7: _Scan.export_section,
    8: _Scan.start_section,
    9: _Scan.element_section,
    10: _Scan.code_section,
    11: _Scan.data_section,
    12: _Scan.data_count_section,
    13: _Scan.tag_section,
}

_MEMORY_FEATURES: Final = {2: "shared memory (threads)", 4: "64-bit memory", 8: "custom page sizes"}

_FOREIGN_MODULES: Final = {
    "wasi_unstable": "it is built for WASI preview 0; use a newer compiler, with the target wasm32-wasip1",
    "env": "only WASI preview 1 can be imported; with Emscripten pass -sSTANDALONE_WASM",
}


_GROWTH: Final = "emscripten_notify_memory_growth"
_GROWTH_REASON: Final = (
    "only WASI preview 1 can be imported; with Emscripten's -sALLOW_MEMORY_GROWTH also pass -sPURE_WASI and, because"
    " the memory may then not grow, a large enough -sINITIAL_MEMORY"
)


def _refuse_import(module: str, name: str) -> NoReturn:
    otherwise = "only WASI preview 1 can be imported; build for the target wasm32-wasip1"
    reason = _GROWTH_REASON if (module, name) == ("env", _GROWTH) else _FOREIGN_MODULES.get(module, otherwise)
    raise ModuleRejectedError(
        Refusal.IMPORT_FOREIGN, f"The module imports {name!r:.100} from {module!r:.100}: {reason}."
    )


def _refuse_feature(feature: str) -> NoReturn:
    sentence = f"The module uses {feature}, which is not supported; turn the feature off in the compiler."
    raise ModuleRejectedError(Refusal.UNSUPPORTED_FEATURE, sentence)


def _refuse_over_limit(code: Refusal, subject: str, found: int, limit: int, rest: str) -> NoReturn:
    raise ModuleRejectedError(code, f"{subject} is {found}; the maximum is {limit} {rest}.")
