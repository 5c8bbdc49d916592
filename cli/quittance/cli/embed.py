"""Put a script into an interpreter: one module that is an agent by itself.

    python -m quittance.cli.embed --interpreter cpython==3.12.0 src/agent.py build/agent.wasm

An interpreter for WASI reads its script from its arguments, and the platform gives an agent no arguments. `embed` adds
two functions to the interpreter that answer `args_sizes_get` and `args_get` from a data segment, and lets every call
of the two imports call them instead. Nothing else of the module changes, so the interpreter's own compiler is not
needed, and the same script and interpreter give the same bytes.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from quittance.cli import toolchains
from quittance.cli.leb128 import signed, sized, unsigned

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SCRIPT_BYTES_MAX: Final = 1024 * 1024

_PREAMBLE: Final = b"\0asm\1\0\0\0"
_WASI: Final = b"wasi_snapshot_preview1"
_CUSTOM, _TYPE, _IMPORT, _FUNCTION, _CODE, _DATA, _DATA_COUNT = 0, 1, 2, 3, 10, 11, 12
_CALL: Final = 0x10
_PASSIVE: Final = 1
_FUNCTION_KIND, _TABLE_KIND, _MEMORY_KIND, _GLOBAL_KIND = range(4)


class EmbedError(Exception):
    """The script cannot be put into this module; the message says why."""


@dataclass(frozen=True, slots=True)
class _Section:
    """One section: its number and content."""

    number: int
    content: bytes


class _Reader:
    """A position in bytes."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    @property
    def more(self) -> bool:
        return self.at < len(self.data)

    def byte(self) -> int:
        return self.take(1)[0]

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            _damaged("it ends within an item")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self) -> int:
        """An unsigned LEB128 number; also skips a signed one, whose value is then meaningless."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        return _damaged("a number has too many bytes")

    def sized(self) -> bytes:
        return self.take(self.number())


def _damaged(what: str) -> NoReturn:
    msg = f"The interpreter's module is damaged: {what}."
    raise EmbedError(msg)


def embed(module: bytes, arguments: Sequence[bytes]) -> bytes:
    """The module, with these arguments instead of the ones that its host gives. Raises EmbedError."""
    if any(b"\0" in argument for argument in arguments):
        msg = "The script contains a zero byte; remove it."
        raise EmbedError(msg)
    if not module.startswith(_PREAMBLE):
        msg = "The interpreter is not a WebAssembly module."
        raise EmbedError(msg)
    sections = list(_sections(module))
    content = {section.number: section.content for section in sections if section.number != _CUSTOM}
    imports = _function_imports(content.get(_IMPORT, b"\0"))
    types = {name: kind for (space, name), kind in imports if space == _WASI}
    if b"args_get" not in types or b"args_sizes_get" not in types:
        msg = "The interpreter does not read arguments, so it cannot get a script from them."
        raise EmbedError(msg)
    if not {_FUNCTION, _CODE} <= content.keys():
        _damaged("it has no functions")
    index = {name: at for at, ((space, name), _) in enumerate(imports) if space == _WASI}
    first_new = len(imports) + _Reader(content.get(_FUNCTION, b"\0")).number()
    segment = _Reader(content.get(_DATA, b"\0")).number()
    instead = {index[b"args_get"]: first_new, index[b"args_sizes_get"]: first_new + 1}
    added = [_args_get(arguments, segment), _args_sizes_get(arguments)]
    new = {
        _FUNCTION: _appended(content[_FUNCTION], [unsigned(types[b"args_get"]), unsigned(types[b"args_sizes_get"])]),
        _DATA_COUNT: unsigned(segment + 1),
        _CODE: _appended(_redirected(content[_CODE], instead), [sized(body) for body in added]),
        _DATA: _appended(content.get(_DATA, b"\0"), [bytes([_PASSIVE]) + sized(_joined(arguments))]),
    }
    return _PREAMBLE + b"".join(_written(sections, new))


def _sections(module: bytes) -> Iterator[_Section]:
    reader = _Reader(module, len(_PREAMBLE))
    while reader.more:
        number = reader.byte()
        yield _Section(number, reader.sized())


def _written(sections: Sequence[_Section], new: Mapping[int, bytes]) -> Iterator[bytes]:
    """All sections in their order, new content in place of old. The count of data segments comes before the code."""
    for section in sections:
        number = section.number
        if number == _CUSTOM and _Reader(section.content).sized().startswith(b".debug"):
            continue  # debug information names offsets of the code, which have changed
        if number == _DATA_COUNT:
            continue
        if number == _CODE:
            yield bytes([_DATA_COUNT]) + sized(new[_DATA_COUNT])
        yield bytes([number]) + sized(new.get(number, section.content))
        if number == _CODE and not any(other.number == _DATA for other in sections):
            yield bytes([_DATA]) + sized(new[_DATA])


def _function_imports(content: bytes) -> list[tuple[tuple[bytes, bytes], int]]:
    """The imported functions in the order of their numbers: space and name, and the number of the type."""
    reader = _Reader(content)
    found = []
    for _ in range(reader.number()):
        name = (reader.sized(), reader.sized())
        kind = reader.byte()
        if kind == _FUNCTION_KIND:
            found.append((name, reader.number()))
        elif kind == _GLOBAL_KIND:
            reader.take(2)
        elif kind in {_TABLE_KIND, _MEMORY_KIND}:
            reader.take(kind == _TABLE_KIND)
            for _ in range(1 + (reader.byte() & 1)):
                reader.number()
        else:
            _damaged(f"an import is of kind {kind}")
    return found


def _appended(content: bytes, items: Sequence[bytes]) -> bytes:
    reader = _Reader(content)
    count = reader.number()
    return unsigned(count + len(items)) + content[reader.at :] + b"".join(items)


def _joined(arguments: Sequence[bytes]) -> bytes:
    return b"".join(argument + b"\0" for argument in arguments)


def _args_sizes_get(arguments: Sequence[bytes]) -> bytes:
    """(count: i32, size: i32) -> i32: stores how many arguments there are, and how many bytes."""
    return bytes([0]) + b"".join(
        [
            _store(0, 0, _const(len(arguments))),
            _store(1, 0, _const(len(_joined(arguments)))),
            _const(0),
            b"\x0b",
        ]
    )


def _args_get(arguments: Sequence[bytes], segment: int) -> bytes:
    """(pointers: i32, buffer: i32) -> i32: copies the arguments to the buffer and stores where each begins."""
    text = _joined(arguments)
    copied = b"\x20\x01" + _const(0) + _const(len(text)) + b"\xfc\x08" + unsigned(segment) + b"\x00"
    stores, offset = [], 0
    for number, argument in enumerate(arguments):
        stores.append(_store(0, 4 * number, b"\x20\x01" + _const(offset) + b"\x6a"))
        offset += len(argument) + 1
    return bytes([0]) + copied + b"".join(stores) + _const(0) + b"\x0b"


def _store(parameter: int, offset: int, value: bytes) -> bytes:
    """`i32.store` of a value at the address in a parameter."""
    return b"\x20" + unsigned(parameter) + value + b"\x36\x02" + unsigned(offset)


def _const(value: int) -> bytes:
    """`i32.const`."""
    return b"\x41" + signed(value)


def _redirected(content: bytes, instead: Mapping[int, int]) -> bytes:
    """The code section with other functions called instead of these. Raises EmbedError if nothing calls them."""
    reader = _Reader(content)
    count = reader.number()
    bodies = [reader.sized() for _ in range(count)]
    may_call = re.compile(b"|".join(_encodings(function) for function in instead))
    called: set[int] = set()
    for number, body in enumerate(bodies):
        if may_call.search(body):
            bodies[number] = _body_redirected(body, instead, called)
    if called != set(instead):
        msg = "The interpreter never reads its arguments, so it cannot get a script from them."
        raise EmbedError(msg)
    return unsigned(count) + b"".join(sized(body) for body in bodies)


def _encodings(function: int) -> bytes:
    """A pattern for `call` of a function: linkers pad the number with up to four bytes."""
    shortest = unsigned(function)
    going_on = shortest[:-1] + bytes([shortest[-1] | 0x80])
    padded = [going_on + b"\x80" * (zeros - 1) + b"\x00" for zeros in range(1, 6 - len(shortest))]
    return b"|".join(re.escape(bytes([_CALL]) + number) for number in [shortest, *padded])


def _body_redirected(body: bytes, instead: Mapping[int, int], called: set[int]) -> bytes:
    reader = _Reader(body)
    for _ in range(reader.number()):  # groups of locals: how many, and their type
        reader.number()
        reader.byte()
    kept, out = 0, []
    while reader.more:
        begin = reader.at
        if reader.byte() == _CALL:
            function = reader.number()
            if function in instead:
                called.add(function)
                out.append(body[kept:begin] + bytes([_CALL]) + unsigned(instead[function]))
                kept = reader.at
        else:
            reader.at = begin
            _skip_instruction(reader)
    return b"".join(out) + body[kept:]


_NUMBERS: Final = {
    **dict.fromkeys((*range(0x02, 0x05), 0x0C, 0x0D, *range(0x20, 0x27), 0x3F, 0x40, 0x41, 0x42, 0xD0, 0xD2), 1),
    **dict.fromkeys((0x10, 0x12), 1),
    **dict.fromkeys((0x11, 0x13, *range(0x28, 0x3F)), 2),
}
"""How many LEB128 numbers follow an instruction."""

_BULK_NUMBERS: Final = {8: 2, 9: 1, 10: 2, 11: 1, 12: 2, 13: 1, 14: 2, 15: 1, 16: 1, 17: 1}
_PLAIN: Final = frozenset((0x00, 0x01, 0x05, 0x0B, 0x0F, 0x1A, 0x1B, 0xD1, *range(0x45, 0xC5)))


def _skip_instruction(reader: _Reader) -> None:
    code = reader.byte()
    if code in _PLAIN:
        return
    if code in _NUMBERS:
        _skip_numbers(reader, _NUMBERS[code])
    elif code == 0x0E:  # br_table
        _skip_numbers(reader, reader.number() + 1)
    elif code == 0x1C:  # select with types
        _skip_numbers(reader, reader.number())
    elif code in {0x43, 0x44}:  # f32.const, f64.const
        reader.take(4 if code == 0x43 else 8)
    elif code == 0xFC:
        _skip_numbers(reader, _BULK_NUMBERS.get(reader.number(), 0))
    elif code == 0xFD:
        _skip_vector_instruction(reader)
    else:
        _damaged(f"the instruction {code:#04x} is not known")


def _skip_vector_instruction(reader: _Reader) -> None:
    code = reader.number()
    if code <= 11 or 84 <= code <= 93:  # memory
        _skip_numbers(reader, 2)
    if code in {12, 13}:  # v128.const, i8x16.shuffle
        reader.take(16)
    if 21 <= code <= 34 or 84 <= code <= 91:  # a lane
        reader.byte()


def _skip_numbers(reader: _Reader, count: int) -> None:
    for _ in range(count):
        reader.number()


def arguments_of(interpreter: str, name: str, script: bytes) -> list[bytes]:
    """The arguments with which an interpreter runs a script."""
    shown = name.encode()
    if interpreter == toolchains.CPYTHON:
        run = b"import sys; exec(compile(sys.argv.pop(), sys.argv.pop(), 'exec'))"  # so that a traceback has the name
        return [b"python", b"-I", b"-S", b"-X", b"utf8", b"-c", run, shown, script]
    return [shown, script]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="embed", description="Put a script into an interpreter.")
    parser.add_argument("--interpreter", required=True, choices=toolchains.INTERPRETERS)
    parser.add_argument("script", type=Path)
    parser.add_argument("module", type=Path)
    given = parser.parse_args(arguments)
    try:
        module = _embedded(given.interpreter, given.script)
        given.module.parent.mkdir(parents=True, exist_ok=True)
        given.module.write_bytes(module)
    except (EmbedError, toolchains.ToolchainError) as error:
        sys.stderr.write(f"embed: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"embed: {error.filename}: {error.strerror}\n")
        return 1
    return 0


def _embedded(interpreter: str, path: Path) -> bytes:
    script = path.read_bytes()
    if len(script) > SCRIPT_BYTES_MAX:
        msg = f"{path} has more than {SCRIPT_BYTES_MAX} bytes."
        raise EmbedError(msg)
    try:
        script.decode()
    except UnicodeDecodeError as error:
        msg = f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8."
        raise EmbedError(msg) from error
    made = toolchains.Toolchains(toolchains.user_home(), _say).interpreter(interpreter)
    return embed(made, arguments_of(interpreter, path.name, script.removeprefix(b"\xef\xbb\xbf")))


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
