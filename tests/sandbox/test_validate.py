"""Which modules may be published: each refusal has a code and states the remedy; no module crashes the check."""

import time

import pytest
import wasmtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quittance import limits
from quittance.run import Outcome
from quittance.sandbox import ModuleRejectedError, validate_module
from quittance.sandbox.engine import InvalidModuleError, compile_to_artefact
from quittance.sandbox.validate import Refusal
from tests.sandbox.wat import ECHO, PAGE_BYTES, TRIVIAL, WORLD, imports, memory, program

PREAMBLE = b"\0asm\1\0\0\0"


def leb(value: int) -> bytes:
    groups = []
    while True:
        value, low = value >> 7, value & 0x7F
        groups.append(low | (0x80 if value else 0))
        if not value:
            return bytes(groups)


def section(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + leb(len(body)) + body


def vector(items: list[bytes]) -> bytes:
    return leb(len(items)) + b"".join(items)


def command(**bodies: bytes) -> bytes:
    """Encode a small command, with some of its sections replaced or added."""
    parts = {
        1: vector([b"\x60\0\0"]),
        3: vector([b"\0"]),
        5: b"\1\0\1",
        7: vector([b"\6_start\0\0", b"\6memory\2\0"]),
        10: vector([b"\2\0\x0b"]),
    } | {int(key[1:]): body for key, body in bodies.items()}
    return PREAMBLE + b"".join(section(kind, parts[kind]) for kind in sorted(parts, key=lambda kind: (kind, 12)))


def refusal(module: bytes) -> ModuleRejectedError:
    with pytest.raises(ModuleRejectedError) as caught:
        validate_module(module)
    assert caught.value.message.endswith(".")
    assert len(caught.value.message) < 400
    return caught.value


def named(name: bytes) -> bytes:
    return leb(len(name)) + name


def name_section(*parts: tuple[int, bytes]) -> bytes:
    return section(0, named(b"name") + b"".join(section(kind, part) for kind, part in parts))


PLACES = {
    "custom section": lambda name: command() + section(0, named(name)),
    "export": lambda name: command(_7=vector([b"\6_start\0\0", b"\6memory\2\0", named(name) + b"\0\0"])),
    "function": lambda name: command() + name_section((0, named(b"module")), (1, vector([b"\0" + named(name)]))),
    "second list": lambda name: command() + name_section((1, b"\0")) + name_section((1, vector([b"\0" + named(name)]))),
    "import's module": lambda name: command(_2=vector([named(name) + named(b"f") + b"\0\0"])),
    "import": lambda name: command(_2=vector([named(b"wasi_snapshot_preview1") + named(name) + b"\0\0"])),
}


@pytest.mark.parametrize("place", PLACES)
def test_every_name_has_a_length_limit(place):
    most = limits.MODULE_NAME_BYTES_MAX
    within = PLACES[place](b"n" * most)
    if "import" in place:
        assert refusal(within).code in {Refusal.IMPORT_FOREIGN, Refusal.IMPORT_UNKNOWN}
    else:
        validate_module(within)
        compile_to_artefact(within)
    beyond = refusal(PLACES[place](b"n" * (most + 1)))
    assert beyond.code is Refusal.NAME_TOO_LONG
    assert f"{most + 1}; the maximum is {most} bytes" in beyond.message


@pytest.mark.parametrize(
    "damage", [b"\1", b"\1\x7f", section(1, b"\5"), section(1, vector([b"\0\1\xff"])), b"\xff" * 9]
)
def test_damaged_name_section_is_ignored_as_by_the_engine(damage):
    module = command() + section(0, named(b"name") + damage)
    validate_module(module)
    compile_to_artefact(module)


def test_function_names_have_a_count_limit():
    many = leb(101_001) + b"".join(leb(index) + b"\0" for index in range(101_001))
    assert refusal(command() + name_section((1, many))).code is Refusal.TOO_MANY_ITEMS
    validate_module(command() + name_section((1, leb(101_000) + many[3:])))


def test_emscripten_memory_growth_refusal_names_the_flags():
    wat = '(module (import "env" "emscripten_notify_memory_growth" (func (param i32))) (memory (export "memory") 1))'
    refused = refusal(binary(wat))
    assert refused.code is Refusal.IMPORT_FOREIGN
    for flag in ("-sALLOW_MEMORY_GROWTH", "-sPURE_WASI", "-sINITIAL_MEMORY"):
        assert flag in refused.message


def binary(wat: str) -> bytes:
    return bytes(wasmtime.wat2wasm(wat))


def test_valid_modules_pass_and_their_facts_are_returned():
    facts = validate_module(binary(WORLD))
    assert facts.imports == {"clock_time_get", "random_get", "poll_oneoff", "fd_write"}
    assert (facts.functions, facts.memories, facts.memory_bytes_min) == (1, 1, 2 * PAGE_BYTES)
    assert validate_module(command()).exports == {"_start": (0, 0), "memory": (2, 0)}
    compile_to_artefact(command())


@pytest.mark.parametrize(
    ("wat", "code", "says"),
    [
        ("(module)", Refusal.NO_START, "_start"),
        ('(module (func (export "_initialize")))', Refusal.REACTOR, "main()"),
        ('(module (func (export "_start") (param i32)))', Refusal.NO_START, "_start"),
        ('(module (global (export "_start") i32 (i32.const 0)))', Refusal.NO_START, "_start"),
        ('(module (func (export "_start")))', Refusal.NO_MEMORY, "memory"),
        ('(module (memory 1) (func (export "_start")))', Refusal.NO_MEMORY, "memory"),
        ('(module (import "env" "f" (func)))', Refusal.IMPORT_FOREIGN, "STANDALONE_WASM"),
        ('(module (import "wasi_unstable" "fd_write" (func)))', Refusal.IMPORT_FOREIGN, "preview 0"),
        ('(module (import "wasi_snapshot_preview1" "sock_open" (func)))', Refusal.IMPORT_UNKNOWN, "sock_open"),
        ('(module (import "wasi_snapshot_preview1" "fd_write" (func)))', Refusal.IMPORT_TYPE, "fd_write"),
        ('(module (import "wasi_snapshot_preview1" "m" (memory 1)))', Refusal.IMPORT_KIND, "function"),
        ("(module (memory 1) (memory 1))", Refusal.UNSUPPORTED_FEATURE, "more than one memory"),
        ("(module (memory i64 1))", Refusal.UNSUPPORTED_FEATURE, "64-bit memory"),
        ("(module (memory 1 2 shared))", Refusal.UNSUPPORTED_FEATURE, "threads"),
        ("(module (table i64 1 funcref))", Refusal.UNSUPPORTED_FEATURE, "64-bit or shared tables"),
        ("(module (type (struct)))", Refusal.UNSUPPORTED_FEATURE, "garbage collection"),
        ("(module (tag))", Refusal.UNSUPPORTED_FEATURE, "exceptions"),
        ("(module (type $f (func)) (func (param (ref $f))))", Refusal.UNSUPPORTED_FEATURE, "references"),
        (f"(module (memory {limits.MEMORY_BYTES_MAX // PAGE_BYTES + 1}))", Refusal.MEMORY_TOO_LARGE, "memory"),
        (f"(module (table {limits.TABLE_ELEMENTS_MAX + 1} funcref))", Refusal.TABLE_TOO_LARGE, "table"),
        (f"(module {'(table 1 funcref)' * (limits.MODULE_TABLES_MAX + 1)})", Refusal.TOO_MANY_ITEMS, "tables"),
    ],
)
def test_refusals_have_a_code_and_a_reason(wat, code, says):
    refused = refusal(binary(wat))
    assert refused.code is code
    assert says in refused.message


@pytest.mark.parametrize(
    ("module", "code"),
    [
        (b"", Refusal.NOT_WASM),
        (b"(module)", Refusal.NOT_WASM),
        (b"\0asm", Refusal.WASM_VERSION),
        (b"\0asm\2\0\0\0", Refusal.WASM_VERSION),
        (b"\0asm\x0d\0\1\0", Refusal.COMPONENT),
        (PREAMBLE + b"\1", Refusal.MALFORMED),
        (PREAMBLE + b"\1\x7f\0", Refusal.MALFORMED),
        (PREAMBLE + b"\1\xff\xff\xff\xff\xff\1", Refusal.MALFORMED),
        (PREAMBLE + b"\1\xff\xff\xff\xff\x7f", Refusal.MALFORMED),
        (PREAMBLE + section(14, b""), Refusal.MALFORMED),
        (PREAMBLE + section(1, b"\0") * 2, Refusal.MALFORMED),
        (PREAMBLE + section(0, b"\1\xff"), Refusal.MALFORMED),
        (PREAMBLE + section(2, vector([b"\x16wasi_snapshot_preview1\x08fd_close\0\1"])), Refusal.MALFORMED),
        (command(s10=vector([b"\3\0\x0b"])), Refusal.MALFORMED),
        (command(s7=vector([b"\6_start\0\5", b"\6memory\2\0"])), Refusal.NO_START),
        (command(s3=vector([b"\5"])), Refusal.NO_START),
    ],
)
def test_damaged_modules_are_rejected_with_a_code(module, code):
    assert refusal(module).code is code


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (b"\xff\xff\xff\xff\x7f", "too large"),
        (b"\x80\x80\x80\x80\x80\0", "too long"),
        (b"\x80\x80\x80\x80\x10", "too large"),
    ],
)
def test_leb128_numbers_over_32_bits_are_rejected(number, says):
    assert says in refusal(PREAMBLE + b"\1" + number).message


def repeated(kind: int, count: int, item: bytes) -> bytes:
    return command(**{f"s{kind}": leb(count) + item * count})


ITEM = b"\x7f\0\x41\0\x0b"  # a global


@pytest.mark.parametrize(
    ("at_limit", "beyond", "code"),
    [
        (
            command() + section(0, b"\0") * (limits.MODULE_SECTIONS_MAX - 5),
            command() + section(0, b"\0") * (limits.MODULE_SECTIONS_MAX - 4),
            Refusal.TOO_MANY_ITEMS,
        ),
        (
            repeated(1, limits.MODULE_ITEMS_MAX, b"\x60\0\0"),
            repeated(1, limits.MODULE_ITEMS_MAX + 1, b"\x60\0\0"),
            Refusal.TOO_MANY_ITEMS,
        ),
        (
            repeated(6, limits.MODULE_ITEMS_MAX, ITEM),
            repeated(6, limits.MODULE_ITEMS_MAX + 1, ITEM),
            Refusal.TOO_MANY_ITEMS,
        ),
        (
            repeated(11, limits.MODULE_ITEMS_MAX, b"\1\0"),
            repeated(11, limits.MODULE_ITEMS_MAX + 1, b"\1\0"),
            Refusal.TOO_MANY_ITEMS,
        ),
        (
            command(s3=leb(limits.MODULE_FUNCTIONS_MAX) + bytes(limits.MODULE_FUNCTIONS_MAX)),
            command(s3=leb(limits.MODULE_FUNCTIONS_MAX + 1) + bytes(limits.MODULE_FUNCTIONS_MAX + 1)),
            Refusal.TOO_MANY_ITEMS,
        ),
        (
            command(s10=vector([leb(limits.MODULE_BODY_BYTES_MAX) + bytes(limits.MODULE_BODY_BYTES_MAX)])),
            command(s10=vector([leb(limits.MODULE_BODY_BYTES_MAX + 1) + bytes(limits.MODULE_BODY_BYTES_MAX + 1)])),
            Refusal.FUNCTION_TOO_LARGE,
        ),
        (
            command(s9=b"\0" + bytes(limits.MODULE_ELEMENT_BYTES_MAX - 1)),
            command(s9=b"\0" + bytes(limits.MODULE_ELEMENT_BYTES_MAX)),
            Refusal.ELEMENTS_TOO_LARGE,
        ),
        (
            command(s5=b"\1\0" + leb(limits.MEMORY_BYTES_MAX // PAGE_BYTES)),
            command(s5=b"\1\0" + leb(limits.MEMORY_BYTES_MAX // PAGE_BYTES + 1)),
            Refusal.MEMORY_TOO_LARGE,
        ),
    ],
    ids=["sections", "types", "globals", "data segments", "functions", "body", "elements", "memory"],
)
def test_each_count_at_its_limit_and_one_beyond(at_limit, beyond, code):
    began = time.thread_time()
    validate_module(at_limit)
    assert refusal(beyond).code is code
    assert time.thread_time() - began < 2


def test_module_size_at_the_limit_and_one_beyond():
    room = limits.MODULE_BYTES_MAX - len(command())
    padded = command() + section(0, b"\1x" + bytes(room - 7))
    assert len(padded) == limits.MODULE_BYTES_MAX
    validate_module(padded)
    assert refusal(padded + b"\0").code is Refusal.MODULE_TOO_LARGE


def test_repeated_imports_are_accepted_up_to_the_limit():
    one = imports("fd_close").replace("$fd_close", "")
    most = '(module {} (memory (export "memory") 1) (func (export "_start")))'
    validate_module(binary(most.format(one * limits.MODULE_IMPORTS_MAX)))
    assert refusal(binary(most.format(one * (limits.MODULE_IMPORTS_MAX + 1)))).code is Refusal.TOO_MANY_ITEMS


SEEDS = [
    binary(TRIVIAL),
    binary(ECHO),
    binary(WORLD),
    binary(
        program("(call_indirect (i32.const 0))", more="(table 2 funcref) (elem (i32.const 0) $main)" + memory(9, b"x"))
    ),
]


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(8, 400), st.integers(0, 255)), min_size=1, max_size=6),
    st.one_of(st.none(), st.integers(0, 400)),
)
def test_mutated_modules_never_harm_the_host(make, sandbox, seed, edits, cut):
    """Every mutant is rejected with an error or runs to an end that is not the platform's fault."""
    module = bytearray(seed)
    for position, byte in edits:
        module[position % len(module)] = byte
    mutant = bytes(module if cut is None else module[:cut])
    try:
        validate_module(mutant)
        compile_to_artefact(mutant)
    except (ModuleRejectedError, InvalidModuleError):
        return
    run = sandbox.run(make(mutant, fuel=10**6, timeout_ms=2_000))
    assert run.outcome not in {Outcome.WORKER_LOST, Outcome.ARTEFACT_MISSING, Outcome.ARTEFACT_TAMPERED}, run.message
