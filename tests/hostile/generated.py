"""The hostile modules that WebAssembly text cannot express, or only at length: one function per name in corpus.toml."""

from quittance import limits

PREAMBLE = b"\0asm\1\0\0\0"
I32 = b"\x7f"
PLAIN = b"\x60\0\0"  # a function type without parameters and results
END = b"\x0b"
ZERO = b"\x41\0"  # i32.const 0
DROP = b"\x1a"
ENTRY = b"\6_start\0\0"
MEMORY = b"\6memory\2\0"
DATA_COUNT = 12


# Encoding a binary.


def leb(value: int) -> bytes:
    groups = []
    while True:
        value, low = value >> 7, value & 0x7F
        groups.append(low | (0x80 if value else 0))
        if not value:
            return bytes(groups)


def section(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + leb(len(body)) + body


def vector(*items: bytes) -> bytes:
    return leb(len(items)) + b"".join(items)


def repeated(count: int, item: bytes) -> bytes:
    return leb(count) + item * count


def body(code: bytes, local_count: int = 0) -> bytes:
    whole = (vector(leb(local_count) + I32) if local_count else b"\0") + code + END
    return leb(len(whole)) + whole


def function_type(parameters: int, results: int = 0) -> bytes:
    return b"\x60" + leb(parameters) + I32 * parameters + leb(results) + I32 * results


def command(sections: dict[int, bytes] | None = None) -> bytes:
    """Encode a small valid command, with some of its sections replaced or added."""
    parts = {
        1: vector(PLAIN),
        3: vector(b"\0"),
        5: b"\1\0\1",
        7: vector(ENTRY, MEMORY),
        10: vector(body(b"")),
    } | (sections or {})
    order = sorted(parts, key=lambda kind: 9.5 if kind == DATA_COUNT else kind)
    return PREAMBLE + b"".join(section(kind, parts[kind]) for kind in order)


def start_code(code: bytes, local_count: int = 0) -> bytes:
    return command({10: vector(body(code, local_count))})


# Runs.


def loop_straight_line() -> bytes:
    return start_code(b"\x03\x40" + (ZERO + DROP) * (limits.MODULE_BODY_BYTES_MAX // 3 - 10) + b"\x0c\0" + END)


def recursion_large_frames() -> bytes:
    wide = function_type(1_000)
    calls = ZERO * 1_000 + b"\x10\1"
    again = b"".join(b"\x20" + leb(index) for index in range(1_000)) + b"\x10\1"
    return command({1: vector(PLAIN, wide), 3: vector(b"\0", b"\1"), 10: vector(body(calls), body(again + again))})


def recursion_huge_frames() -> bytes:
    """Load 10,000 values, keep them across a recursive call, and store their sum afterwards."""
    count = 10_000
    loads = b"".join(ZERO + b"\x28\2" + leb(4 * index) for index in range(count))
    return start_code(ZERO + loads + b"\x10\0" + b"\x6a" * (count - 1) + b"\x36\2\0")


def data_15_mib() -> bytes:
    data = bytes(range(256)) * (15 * limits.MIB // 256)
    return command({5: b"\1\0" + leb(256), 11: vector(b"\0" + ZERO + END + leb(len(data)) + data)})


def data_32_mib() -> bytes:
    data = bytes(range(256)) * (32 * limits.MIB // 256)
    return command({5: b"\1\0" + leb(512), 11: vector(b"\0" + ZERO + END + leb(len(data)) + data)})


def data_100000_segments() -> bytes:
    return command({11: repeated(limits.MODULE_ITEMS_MAX, b"\0" + ZERO + END + b"\1x")})


def data_100001_segments() -> bytes:
    return command({11: repeated(limits.MODULE_ITEMS_MAX + 1, b"\0" + ZERO + END + b"\1x")})


def elements_4_million() -> bytes:
    segment = b"\0" + ZERO + END + repeated(limits.TABLE_ELEMENTS_MAX, b"\0")
    return command({4: vector(b"\x70\0" + leb(limits.TABLE_ELEMENTS_MAX)), 9: repeated(40, segment)})


def elements_too_large() -> bytes:
    return command({9: b"\0" + bytes(limits.MODULE_ELEMENT_BYTES_MAX)})


def trap_long_names() -> bytes:
    name = ("\x1b[2J\x07" + "n" * 994).encode()
    names = vector(b"\0" + leb(len(name)) + name, b"\1" + leb(len(name)) + name)
    calls = command({3: vector(b"\0", b"\0"), 10: vector(body(b"\x10\1"), body(b"\0"))})
    return calls + section(0, b"\4name" + section(1, names))


# Imports and exports.


def import_1001() -> bytes:
    one = b"\x16wasi_snapshot_preview1\x0bsched_yield\0\1"
    types = vector(PLAIN, function_type(0, 1))
    return command({1: types, 2: repeated(limits.MODULE_IMPORTS_MAX + 1, one)})


def exports_10000() -> bytes:
    count = limits.MODULE_EXPORTS_MAX
    others = b"".join(b"\5%05d\0\0" % index for index in range(count - 2))
    return command({7: leb(count) + ENTRY + MEMORY + others})


def component() -> bytes:
    return b"\0asm\x0d\0\1\0"


# Malformed.


def empty() -> bytes:
    return b""


def text() -> bytes:
    return b'(module (memory (export "memory") 1) (func (export "_start")))'


def elf() -> bytes:
    return b"\x7fELF\2\1\1" + bytes(57)


def magic_only() -> bytes:
    return PREAMBLE[:4]


def version_2() -> bytes:
    return b"\0asm\2\0\0\0" + command()[8:]


def truncated_section() -> bytes:
    return command()[:12]


def truncated_body() -> bytes:
    return command()[:-1]


def section_beyond_end() -> bytes:
    return command() + b"\x0b" + leb(2**32 - 1)


def number_too_long() -> bytes:
    return PREAMBLE + b"\1\x80\x80\x80\x80\x80\0"


def number_too_large() -> bytes:
    return PREAMBLE + b"\1\xff\xff\xff\xff\x7f"


def section_twice() -> bytes:
    return PREAMBLE + section(1, vector(PLAIN)) * 2


def sections_in_disorder() -> bytes:
    return PREAMBLE + section(10, vector(body(b""))) + command()[8 : -len(section(10, vector(body(b""))))]


def section_unknown() -> bytes:
    return command() + section(99, b"")


def name_not_utf8() -> bytes:
    return command({7: vector(ENTRY, MEMORY, b"\2\xff\xfe\0\0")})


def type_missing() -> bytes:
    return command({3: vector(b"\7")})


def counts_disagree() -> bytes:
    return command({3: vector(b"\0", b"\0")})


def section_with_rest() -> bytes:
    return command({7: vector(ENTRY, MEMORY) + b"rest"})


def counts_without_items() -> bytes:
    return command({3: leb(2**32 - 1)})


def body_without_end() -> bytes:
    return command({10: vector(b"\2\0\1")})


def body_of_nonsense() -> bytes:
    return start_code(b"\xff" * 64)


def stack_underflow() -> bytes:
    return start_code(DROP)


def locals_4294967295() -> bytes:
    return start_code(b"", 2**32 - 1)


def export_twice() -> bytes:
    return command({7: vector(ENTRY, ENTRY, MEMORY)})


def start_missing() -> bytes:
    return command({8: b"\7"})


# Compile bombs.


def functions_100001() -> bytes:
    count = limits.MODULE_FUNCTIONS_MAX + 1
    return command({3: repeated(count, b"\0"), 10: repeated(count, body(b""))})


def functions_many_locals() -> bytes:
    return command({3: repeated(20_000, b"\0"), 10: repeated(20_000, body(b"", 50_000))})


def body_too_large() -> bytes:
    return command({10: vector(leb(limits.MODULE_BODY_BYTES_MAX + 1) + bytes(limits.MODULE_BODY_BYTES_MAX + 1))})


def body_of_calls() -> bytes:
    return start_code(b"\x10\0" * (limits.MODULE_BODY_BYTES_MAX // 2 - 16))


def loops_with_parameters() -> bytes:
    """Give each loop a block type with a thousand parameters."""
    code = ZERO * 1_000 + (b"\x03\1" + END) * 1_000 + DROP * 1_000
    return command({1: vector(PLAIN, function_type(1_000, 1_000)), 10: vector(body(code))})


def loops_over_locals() -> bytes:
    loop = b"\x03\x40" + b"\x20\0\x21\1" + ZERO + b"\x0d\0" + END
    return start_code(loop * (limits.MODULE_BODY_BYTES_MAX // len(loop) - 16), 50_000)


def nested_ifs() -> bytes:
    return start_code((ZERO + b"\x04\x40") * 400_000 + END * 400_000)


def nested_blocks() -> bytes:
    return start_code(b"\x02\x40" * 100_000 + END * 100_000)


def branch_table() -> bytes:
    targets = limits.MODULE_BODY_BYTES_MAX - 64
    return start_code(b"\x02\x40" + ZERO + b"\x0e" + leb(targets) + bytes(targets + 1) + END)


def types_distinct() -> bytes:
    """Encode the index of each type in its parameters, one bit each, as i32 or i64."""
    bits = 20
    count = 20_000

    def distinct(index: int) -> bytes:
        kinds = bytes(0x7F - (index >> bit & 1) for bit in range(bits))
        return b"\x60" + leb(1_000) + kinds + I32 * (1_000 - bits) + b"\0"

    return command({1: leb(count) + PLAIN + b"".join(map(distinct, range(1, count)))})


def type_1001_values() -> bytes:
    return command({1: vector(PLAIN, function_type(limits.MODULE_TYPE_VALUES_MAX + 1))})


def sections_1001() -> bytes:
    return command() + section(0, b"\1x") * (limits.MODULE_SECTIONS_MAX + 1)


def globals_100001() -> bytes:
    return command({6: repeated(limits.MODULE_ITEMS_MAX + 1, I32 + b"\0" + ZERO + END)})


def function_name_48_mb() -> bytes:
    name = b"n" * 48 * 10**6
    functions = vector(b"\0" + leb(len(name)) + name)
    return command({10: vector(body(b"\0"))}) + section(0, b"\4name" + section(1, functions))


def module_too_large() -> bytes:
    return command().ljust(limits.MODULE_BYTES_MAX + 1, b"\0")
