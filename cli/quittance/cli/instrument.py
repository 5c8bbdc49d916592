"""A copy of a module that reports when each of its functions begins and ends. Pure.

Every function gets a wrapper that takes over the function's index, and the functions themselves follow behind:

    before:  imports | f0 f1 …
    after:   imports | w0 w1 … | f0 f1 …        wi = enter(i); fi(arguments); leave(i)

Calls, function pointers and exports name functions by index, so all of them now reach the wrappers, and no instruction
of the module has to be read or changed. `enter` and `leave` are the two entries of an exported table, which the host
fills in: an import would shift all indices. What a wrapper itself costs is known exactly (`before_enter` and so on), so
it can be taken off again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from quittance.cli.leb128 import signed, sized, unsigned

TABLE: Final = "quittance profile"
"""The exported table: entry 0 is `enter`, entry 1 is `leave`, both of type (i32) -> ()."""
START: Final = "quittance start"
"""The exported start function, if the module has one: it must not run before the table is filled in."""

COST_BEFORE_ENTER: Final = 4
"""Fuel of a wrapper before the host reads the fuel in `enter`: its beginning, two constants, the call."""
COST_CALL: Final = 1
"""Fuel of a wrapper between `enter` and its function: the call, and one for each argument."""
COST_BEFORE_LEAVE: Final = 3
"""Fuel of a wrapper between the end of its function and `leave`."""
COST_START: Final = 2
"""Fuel that the engine itself uses to call a start function, beside that function's own."""

_PREAMBLE: Final = b"\0asm\1\0\0\0"
_CUSTOM, _TYPE, _IMPORT, _FUNCTION, _TABLE, _EXPORT, _START, _CODE = 0, 1, 2, 3, 4, 7, 8, 10
# Sections come in this order; the tag section (13) stands between memory and globals, the data count (12) before code.
_ORDER: Final = (1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11)
_FUNCTION_KIND, _TABLE_KIND = b"\0", b"\1"
_REPORT_TYPE: Final = b"\x60\x01\x7f\x00"  # (i32) -> ()
_REPORT_TABLE: Final = b"\x70\x01\x02\x02"  # of function references, with exactly two entries
_FUNCTION_NAMES: Final = 1


class MalformedError(ValueError):
    """The bytes are not a module that this understands."""


@dataclass(frozen=True, slots=True)
class Instrumented:
    """The copy, and for each function its name, and its number of parameters."""

    module: bytes
    names: list[str]
    parameters: list[int]
    named: bool
    has_start: bool


@dataclass(slots=True)
class _Module:
    sections: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)


def instrument(module: bytes) -> Instrumented:
    """The instrumented copy of a module that the sandbox accepts. Raises MalformedError."""
    try:
        return _instrument(_parse(module))
    except (IndexError, UnicodeDecodeError, KeyError) as error:
        msg = "the module ends too early, or a part of it has another form than it must have"
        raise MalformedError(msg) from error


def _instrument(parsed: _Module) -> Instrumented:
    sections = parsed.sections
    types = list(_types(sections[_TYPE]))
    imported = _imported_functions(sections.get(_IMPORT, b"\0"))
    type_of = list(_numbers(sections.get(_FUNCTION, b"\0")))
    count = len(type_of)
    report, tables = len(types), _count(sections.get(_TABLE, b"\0"))
    new = dict(sections)
    new[_TYPE] = _append(sections[_TYPE], [_REPORT_TYPE])
    new[_FUNCTION] = _append(sections.get(_FUNCTION, b"\0"), [unsigned(index) for index in type_of])
    new[_TABLE] = _append(sections.get(_TABLE, b"\0"), [_REPORT_TABLE])
    exports = [_name(TABLE) + _TABLE_KIND + unsigned(tables)]
    start = new.pop(_START, None)
    if start is not None:
        exports.append(_name(START) + _FUNCTION_KIND + start)
    new[_EXPORT] = _append(sections.get(_EXPORT, b"\0"), exports)
    parameters = [types[index] for index in type_of]
    wrappers = [
        _wrapper(number, parameters[number], imported + count + number, report=report, table=tables)
        for number in range(count)
    ]
    new[_CODE] = _prepend(sections.get(_CODE, b"\0"), wrappers)
    names = _names(parsed, imported, count)
    return Instrumented(_assembled(new), names, parameters, named=bool(parsed.names), has_start=start is not None)


def _wrapper(number: int, parameters: int, function: int, *, report: int, table: int) -> bytes:
    tell = b"\x11" + unsigned(report) + unsigned(table)  # call_indirect
    body = b"".join(
        (
            b"\0",  # no locals of its own
            b"\x41" + signed(number) + b"\x41\x00" + tell,
            *(b"\x20" + unsigned(local) for local in range(parameters)),
            b"\x10" + unsigned(function),
            b"\x41" + signed(number) + b"\x41\x01" + tell,
            b"\x0b",
        )
    )
    return sized(body)


def _names(parsed: _Module, imported: int, count: int) -> list[str]:
    """The name of each function: from the name section, or from its export, or its index."""
    exported = {index: name for name, kind, index in _exports(parsed.sections.get(_EXPORT, b"\0")) if kind == 0}
    indices = range(imported, imported + count)
    return [parsed.names.get(index) or exported.get(index) or f"function [{index}]" for index in indices]


# Reading.


def _parse(module: bytes) -> _Module:
    if not module.startswith(_PREAMBLE):
        msg = "it is no WebAssembly module"
        raise MalformedError(msg)
    parsed, at = _Module(), len(_PREAMBLE)
    while at < len(module):
        kind = module[at]
        length, start = _read_leb(module, at + 1)
        at = start + length
        if at > len(module):
            raise IndexError
        body = module[start:at]
        if kind == _CUSTOM:
            _read_names(parsed, body)
        else:
            parsed.sections[kind] = body
    return parsed


def _read_names(parsed: _Module, body: bytes) -> None:
    """Read the names of functions, if this custom section has them. Damaged names are no fault: nothing needs them."""
    try:
        title, at = _read_bytes(body, 0)
        while title == b"name" and at < len(body):
            kind = body[at]
            length, at = _read_leb(body, at + 1)
            if kind == _FUNCTION_NAMES:
                count, place = _read_leb(body, at)
                for _ in range(count):
                    index, place = _read_leb(body, place)
                    text, place = _read_bytes(body, place)
                    parsed.names[index] = text.decode(errors="replace")
            at += length
    except IndexError:
        return


def _types(section: bytes) -> Iterator[int]:
    """The number of parameters of each type."""
    count, at = _read_leb(section, 0)
    for _ in range(count):
        if section[at] != 0x60:
            raise IndexError
        parameters, at = _read_leb(section, at + 1)
        results, at = _read_leb(section, at + parameters)
        at += results
        yield parameters


def _imported_functions(section: bytes) -> int:
    """How many functions are imported; a module that the sandbox accepts imports nothing else."""
    return _count(section)


def _numbers(section: bytes) -> Iterator[int]:
    count, at = _read_leb(section, 0)
    for _ in range(count):
        number, at = _read_leb(section, at)
        yield number


def _exports(section: bytes) -> Iterator[tuple[str, int, int]]:
    count, at = _read_leb(section, 0)
    for _ in range(count):
        name, at = _read_bytes(section, at)
        kind = section[at]
        index, at = _read_leb(section, at + 1)
        yield name.decode(), kind, index


def _count(section: bytes) -> int:
    return _read_leb(section, 0)[0]


def _read_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    length, at = _read_leb(data, at)
    if at + length > len(data):
        raise IndexError
    return data[at : at + length], at + length


def _read_leb(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number of at most 32 bits, and where it ends."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 28:
            raise IndexError


# Writing.


def _append(section: bytes, items: list[bytes]) -> bytes:
    count, at = _read_leb(section, 0)
    return unsigned(count + len(items)) + section[at:] + b"".join(items)


def _prepend(section: bytes, items: list[bytes]) -> bytes:
    count, at = _read_leb(section, 0)
    return unsigned(count + len(items)) + b"".join(items) + section[at:]


def _assembled(sections: dict[int, bytes]) -> bytes:
    parts = [bytes([kind]) + sized(sections[kind]) for kind in _ORDER if kind in sections]
    return _PREAMBLE + b"".join(parts)


def _name(text: str) -> bytes:
    return sized(text.encode())
