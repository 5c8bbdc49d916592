"""Generates random valid modules: typed expressions, loops, tables, bulk memory, and host calls with odd arguments."""

from random import Random

import wasmtime

from quittance.sandbox.wasi import CALLS, NO_RESULT
from tests.sandbox.wat import TYPES, imports

KINDS = ("i32", "i64", "f32", "f64")
DEPTH_MAX = 4
STATEMENTS_MAX = 8
FUNCTIONS_MAX = 4
LOCALS_PER_KIND = 2
PAGES_MAX = 4
INTEGERS = (0, 1, 2, 7, 8, 16, 48, 64, 255, 1_000, 65_528, 65_535, 65_536, 131_072, 2**31 - 1, 2**31, 2**32 - 1)
ANSWERED = (
    "args_get",
    "args_sizes_get",
    "clock_res_get",
    "clock_time_get",
    "environ_sizes_get",
    "fd_close",
    "fd_fdstat_get",
    "fd_filestat_get",
    "fd_read",
    "poll_oneoff",
    "proc_exit",
    "random_get",
)  # with more than an error
PLACES = (0, 0, 0, 0, 0, 0, 1, 2, 9)  # in the table: a function, one of another type, none, and beyond the end
SMALL = (0, 0, 1, 1, 4, 8, 64, 1_024)
FLOATS = ("0", "-0", "1", "-1.5", "inf", "-inf", "nan", "1e30", "4294967296", "1e-40")
BINARY = {
    "i": ("add", "sub", "mul", "div_s", "div_u", "rem_s", "rem_u", "and", "or", "xor", "shl", "shr_s", "shr_u", "rotl"),
    "f": ("add", "sub", "mul", "div", "min", "max", "copysign"),
}
UNARY = {
    "i": ("clz", "ctz", "popcnt", "extend8_s", "extend16_s"),
    "f": ("abs", "neg", "ceil", "floor", "trunc", "nearest", "sqrt"),
}
LOADS = {
    "i32": ("load", "load8_s", "load8_u", "load16_s", "load16_u"),
    "i64": ("load", "load8_s", "load16_u", "load32_s", "load32_u"),
    "f32": ("load",),
    "f64": ("load",),
}
STORES = {
    "i32": ("store", "store8", "store16"),
    "i64": ("store", "store8", "store32"),
    "f32": ("store",),
    "f64": ("store",),
}
COMPARISONS = {"i": ("eq", "ne", "lt_s", "lt_u", "gt_s", "ge_u"), "f": ("eq", "ne", "lt", "gt", "le", "ge")}
CONVERSIONS = {
    "i32": "i32.wrap_i64:i64 i32.trunc_f32_s:f32 i32.trunc_f64_u:f64 i32.trunc_sat_f64_s:f64 i32.reinterpret_f32:f32",
    "i64": "i64.extend_i32_s:i32 i64.extend_i32_u:i32 i64.trunc_f64_s:f64 i64.trunc_sat_f32_u:f32",
    "f32": "f32.convert_i32_s:i32 f32.convert_i64_u:i64 f32.demote_f64:f64 f32.reinterpret_i32:i32",
    "f64": "f64.convert_i32_u:i32 f64.convert_i64_s:i64 f64.promote_f32:f32 f64.reinterpret_i64:i64",
}


def generated(random: Random) -> bytes:
    """Generate a random valid module."""
    return bytes(wasmtime.wat2wasm(_Writer(random).module()))


class _Writer:
    """Writes one module."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._calls = list({"fd_write", *random.sample(ANSWERED, 5), *random.sample(sorted(CALLS), 2)})
        self._calls.sort()  # the order of a set is another in each process
        self._functions = random.randint(1, FUNCTIONS_MAX)

    def module(self) -> str:
        random = self._random
        functions = "\n".join(self._function(index) for index in range(self._functions))
        start = "(start $main)" if random.random() < 0.1 else ""
        data = "".join(f"\\{byte:02x}" for byte in random.randbytes(random.choice((0, 64, 512))))
        return f"""(module {imports(*self._calls)}
            (type $helper (func (param i32) (result i32)))
            (memory (export "memory") {random.choice((0, 1, 1, 2, PAGES_MAX))})
            (table $table 8 funcref) (elem (i32.const 0) $f0 $main) (elem declare func $f0)
            (data $data "{data}") {start}
            (func $main (export "_start") {self._locals()} {self._statements(0)} {self._write_results()})
            {functions})"""

    def _function(self, index: int) -> str:
        head = f"(func $f{index} (param $p i32) (result i32) {self._locals()}"
        return f"{head} {self._statements(0)} {self._expression('i32', 0)})"

    def _write_results(self) -> str:
        """Write the computed values to standard output, so that a difference between two runs is detected."""
        place = "(i32.const 4096)"
        stores = (f"({kind}.store offset={at * 8} {place} (local.get ${kind}_0))" for at, kind in enumerate(KINDS))
        span = "(i32.store (i32.const 0) (i32.const 0)) (i32.store (i32.const 4) (i32.const 8192))"
        write = "(drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))"
        return f"{' '.join(stores)} {span} {write}"

    def _locals(self) -> str:
        return " ".join(f"(local ${kind}_{index} {kind})" for kind in KINDS for index in range(LOCALS_PER_KIND))

    def _local(self, kind: str) -> str:
        return f"${kind}_{self._random.randrange(LOCALS_PER_KIND)}"

    def _statements(self, depth: int) -> str:
        return " ".join(self._statement(depth) for _ in range(self._random.randint(1, STATEMENTS_MAX >> depth or 1)))

    def _statement(self, depth: int) -> str:
        random = self._random
        kind = random.choice(KINDS)
        if depth >= DEPTH_MAX:
            return f"(local.set {self._local(kind)} {self._constant(kind)})"

        def whole(of: str = "i32") -> str:
            return self._expression(of, depth + 1)

        return random.choice(
            (
                lambda: f"(local.set {self._local(kind)} {whole(kind)})",
                lambda: f"(drop {whole(kind)})",
                lambda: f"({kind}.{random.choice(STORES[kind])} {self._offset()} {self._address(depth)} {whole(kind)})",
                lambda: f"(block (br_if 0 {whole()}) {self._statements(depth + 1)})",
                lambda: f"(loop {self._statements(depth + 1)} (br_if 0 {whole()}))",
                lambda: f"(if {whole()} (then {self._statements(depth + 1)}) (else {self._statements(depth + 1)}))",
                lambda: f"(memory.fill {self._address(depth)} {whole()} {self._address(depth)})",
                lambda: f"(memory.copy {self._address(depth)} {self._address(depth)} {self._address(depth)})",
                lambda: f"(memory.init $data {self._address(depth)} {self._address(depth)} {self._address(depth)})",
                lambda: f"(table.set $table (i32.const {random.randrange(8)}) (ref.func $f0))",
                lambda: f"(drop (table.grow $table (ref.null func) {whole()}))",
                lambda: f"(drop {self._call(depth)})",
                lambda: f"(drop {self._call(depth)})",
                lambda: "unreachable" if random.random() < 0.1 else "nop",
            )
        )()

    def _expression(self, kind: str, depth: int) -> str:
        random = self._random
        if depth >= DEPTH_MAX:
            return random.choice((f"(local.get {self._local(kind)})", self._constant(kind)))

        def whole(of: str = kind) -> str:
            return self._expression(of, depth + 1)

        family = kind[0]
        ways = [
            lambda: self._constant(kind),
            lambda: f"(local.get {self._local(kind)})",
            lambda: f"({kind}.{random.choice(BINARY[family])} {whole()} {whole()})",
            lambda: f"({kind}.{random.choice(UNARY[family])} {whole()})",
            lambda: f"({kind}.{random.choice(LOADS[kind])} {self._offset()} {self._address(depth)})",
            lambda: f"(select {whole()} {whole()} {whole('i32')})",
            lambda: f"(if (result {kind}) {whole('i32')} (then {whole()}) (else {whole()}))",
            lambda: self._conversion(kind, depth),
        ]
        if kind == "i32":
            of = random.choice(KINDS)
            ways += [
                lambda: self._call(depth),
                lambda: f"({of}.{random.choice(COMPARISONS[of[0]])} {whole(of)} {whole(of)})",
                lambda: f"(memory.grow {whole()})",
                lambda: "(memory.size)",
                lambda: (
                    f"(call_indirect $table (type $helper) {whole()} (i32.const {random.choice((0, 0, 0, 1, 2, 9))}))"
                ),
            ]
        return random.choice(ways)()

    def _call(self, depth: int) -> str:
        """Call the host, most often with valid addresses, or a function of the module."""
        random = self._random
        names = [name for name in self._calls if name not in NO_RESULT or random.random() < 0.1]
        if not names:
            return f"(call $f{random.randrange(self._functions)} {self._address(depth)})"
        name = random.choice(names)
        arguments = " ".join(
            self._address(depth) if letter == "i" else self._constant(TYPES[letter]) for letter in CALLS[name]
        )
        return (
            f"(call ${name} {arguments})"
            if name != "proc_exit"
            else f"(block (result i32) (call $proc_exit {arguments}) unreachable)"
        )

    def _conversion(self, kind: str, depth: int) -> str:
        name, _, source = self._random.choice(CONVERSIONS[kind].split()).partition(":")
        return f"({name} {self._expression(source, depth + 1)})"

    def _address(self, depth: int) -> str:
        """Return a number that is usually a valid address or length."""
        if self._random.random() < 0.95:
            return f"(i32.const {self._random.choice(SMALL) * self._random.randrange(8)})"
        return self._constant("i32") if self._random.random() < 0.5 else self._expression("i32", depth + 1)

    def _offset(self) -> str:
        return f"offset={self._random.choice(INTEGERS)}" if self._random.random() < 0.05 else ""

    def _constant(self, kind: str) -> str:
        if kind[0] == "f":
            return f"({kind}.const {self._random.choice(FLOATS)})"
        return f"({kind}.const {self._random.choice(INTEGERS)})"
