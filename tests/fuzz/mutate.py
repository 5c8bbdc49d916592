"""Makes broken and half-broken modules from valid ones: changes bytes, numbers, function bodies and whole sections."""

from random import Random

from tests.hostile.generated import PREAMBLE, leb, section

CODE = 10
NUMBERS = (0, 1, 2, 3, 7, 8, 63, 64, 127, 128, 255, 1_024, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1)
CONSTANTS = b"\x41\x42"  # i32.const and i64.const
SPAN_BYTES_MAX = 64
CHANGES_MAX = 4

Sections = list[tuple[int, bytes]]


def mutant(random: Random, seeds: list[bytes]) -> bytes:
    """Apply one or a few random changes to one of the seeds."""
    module = random.choice(seeds)
    for _ in range(random.randint(1, CHANGES_MAX)):
        change = random.choice(CHANGES)
        module = change(random, module, seeds)
    return module


# Changes to bytes anywhere in the module.


def _flip_bit(random: Random, module: bytes, _seeds: list[bytes]) -> bytes:
    at = _place(random, module)
    return module[:at] + bytes(byte ^ 1 << random.randrange(8) for byte in module[at : at + 1]) + module[at + 1 :]


def _set_byte(random: Random, module: bytes, _seeds: list[bytes]) -> bytes:
    at = _place(random, module)
    return module[:at] + bytes([random.randrange(256)]) + module[at + 1 :]


def _set_number(random: Random, module: bytes, _seeds: list[bytes]) -> bytes:
    at = _place(random, module)
    return module[:at] + leb(random.choice(NUMBERS)) + module[at + 1 :]


def _insert(random: Random, module: bytes, _seeds: list[bytes]) -> bytes:
    at = _place(random, module)
    return module[:at] + random.randbytes(random.randint(1, 8)) + module[at:]


def _delete(random: Random, module: bytes, _seeds: list[bytes]) -> bytes:
    at = _place(random, module)
    return module[:at] + module[at + random.randint(1, SPAN_BYTES_MAX) :]


def _repeat(random: Random, module: bytes, _seeds: list[bytes]) -> bytes:
    at = _place(random, module)
    end = at + random.randint(1, SPAN_BYTES_MAX)
    return module[:end] + module[at:end] * random.choice((1, 2, 100)) + module[end:]


def _truncate(random: Random, module: bytes, _seeds: list[bytes]) -> bytes:
    return module[: random.randint(0, len(module))]


def _splice(random: Random, module: bytes, seeds: list[bytes]) -> bytes:
    other = random.choice(seeds)
    return module[: _place(random, module)] + other[_place(random, other) :]


BYTE_CHANGES = [_flip_bit, _set_byte, _set_number, _insert, _delete, _repeat, _splice]


# Changes to sections; their lengths stay correct.


def _change_section(random: Random, module: bytes, seeds: list[bytes]) -> bytes:
    parts = _sections(module)
    if not parts:
        return module
    index = random.randrange(len(parts))
    kind, body = parts[index]
    parts[index] = kind, random.choice(BYTE_CHANGES)(random, body, seeds)
    return _joined(parts)


def _drop_section(random: Random, module: bytes, _seeds: list[bytes]) -> bytes:
    parts = _sections(module)
    index = random.randrange(len(parts) or 1)
    return _joined(parts[:index] + parts[index + 1 :])


def _shuffle_sections(random: Random, module: bytes, _seeds: list[bytes]) -> bytes:
    parts = _sections(module)
    return _joined(random.sample(parts, len(parts)))


def _duplicate_section(random: Random, module: bytes, _seeds: list[bytes]) -> bytes:
    parts = _sections(module)
    return _joined([*parts, random.choice(parts)] if parts else parts)


def _insert_section(random: Random, module: bytes, seeds: list[bytes]) -> bytes:
    parts, others = _sections(module), _sections(random.choice(seeds))
    if not others:
        return module
    kind, body = random.choice(others)
    return _joined(sorted([part for part in parts if part[0] != kind] + [(kind, body)], key=_order))


def _order(part: tuple[int, bytes]) -> float:
    return {12: 9.5, 0: 99}.get(part[0], part[0])


# Changes to function bodies; their lengths stay correct too. These mutants pass all of the cheap checks.


def _change_body(random: Random, module: bytes, seeds: list[bytes]) -> bytes:
    return _with_body(random, module, lambda code: random.choice(BYTE_CHANGES)(random, code, seeds))


def _set_constant(random: Random, module: bytes, _seeds: list[bytes]) -> bytes:
    """Change the value of a constant. The module usually stays valid."""

    def change(code: bytes) -> bytes:
        places = [at for at, byte in enumerate(code) if byte in CONSTANTS]
        if not places:
            return code
        at = random.choice(places) + 1
        end = at
        while end < len(code) - 1 and code[end] & 0x80:
            end += 1
        return code[:at] + _signed(random.choice(NUMBERS)) + code[end + 1 :]

    return _with_body(random, module, change)


def _with_body(random: Random, module: bytes, change) -> bytes:
    parts = _sections(module)
    for index, (kind, body) in enumerate(parts):
        if kind == CODE and (bodies := _bodies(body)):
            chosen = random.randrange(len(bodies))
            bodies[chosen] = change(bodies[chosen])
            code = leb(len(bodies)) + b"".join(leb(len(one)) + one for one in bodies)
            return _joined([*parts[:index], (kind, code), *parts[index + 1 :]])
    return module


CHANGES = [
    *BYTE_CHANGES,
    _truncate,
    *[_change_section] * 4,
    _drop_section,
    _shuffle_sections,
    _duplicate_section,
    *[_insert_section] * 2,
    *[_change_body] * 6,
    *[_set_constant] * 10,
]


# Parsing and encoding a module, as far as it can still be parsed.


def _place(random: Random, module: bytes) -> int:
    return random.randrange(len(module)) if module else 0


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return value, at


def _signed(value: int) -> bytes:
    """Encode a number from 0 to 2^32-1 as the i32 with the same bits."""
    value -= 2**32 if value >= 2**31 else 0
    groups = []
    while True:
        value, low = value >> 7, value & 0x7F
        if (value, low >> 6) in {(0, 0), (-1, 1)}:
            return bytes([*groups, low])
        groups.append(low | 0x80)


def _sections(module: bytes) -> Sections:
    parts, at = [], len(PREAMBLE)
    while at < len(module):
        kind = module[at]
        length, start = _number(module, at + 1)
        parts.append((kind, module[start : start + length]))
        at = start + length
    return parts


def _joined(parts: Sections) -> bytes:
    return PREAMBLE + b"".join(section(kind, body) for kind, body in parts)


def _bodies(code: bytes) -> list[bytes]:
    count, at = _number(code, 0)
    bodies = []
    for _ in range(count):
        if at >= len(code):
            break
        length, at = _number(code, at)
        bodies.append(code[at : at + length])
        at += length
    return bodies
