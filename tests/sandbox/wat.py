"""Agents in WebAssembly text, and the parts from which tests build others."""

from quittance.sandbox.wasi import CALLS, MODULE, NO_RESULT

TYPES = {"i": "i32", "I": "i64"}
PAGE_BYTES = 65_536


def imports(*names: str) -> str:
    """Import preview-1 functions, each under its own name."""
    lines = []
    for name in names:
        parameters = " ".join(TYPES[letter] for letter in CALLS[name])
        result = "" if name in NO_RESULT else "(result i32)"
        lines.append(f'(import "{MODULE}" "{name}" (func ${name} (param {parameters}) {result}))')
    return "\n".join(lines)


def program(body: str, *names: str, pages: int = 2, more: str = "") -> str:
    """Return a module whose `_start` has the given body."""
    return f"""(module {imports(*names)}
        (memory (export "memory") {pages}) {more}
        (func $main (export "_start") (local $i i32) (local $j i32) {body}))"""


def call(name: str, *arguments: int) -> str:
    """Call a host function with constants."""
    kinds = (TYPES[letter] for letter in CALLS[name])
    constants = (f"({kind}.const {value})" for kind, value in zip(kinds, arguments, strict=True))
    return f"(call ${name} {' '.join(constants)})"


def errno_program(name: str, *arguments: int, more: str = "") -> str:
    """Call a host function once and exit with the errno that it returned."""
    return program(f"(call $proc_exit {call(name, *arguments)})", name, "proc_exit", more=more)


def memory(address: int, data: bytes) -> str:
    """Return a data segment that initialises memory at an address."""
    text = "".join(f"\\{byte:02x}" for byte in data)
    return f'(data (i32.const {address}) "{text}")'


def iovecs(*buffers: tuple[int, int]) -> bytes:
    """Encode a list of buffers."""
    return b"".join(value.to_bytes(4, "little") for buffer in buffers for value in buffer)


def writer(fd: int, chunk: int, times: int | None, last: int = 0) -> str:
    """Write a chunk to a stream a number of times (None: endlessly), then one last chunk."""
    write = call("fd_write", fd, 0, 1, 8)
    again = "(br $again)" if times is None else f"(br_if $again (i32.lt_u (local.get $i) (i32.const {times})))"
    body = f"""(loop $again (drop {write}) (local.set $i (i32.add (local.get $i) (i32.const 1))) {again})
        (i32.store (i32.const 4) (i32.const {last})) (drop {write})"""
    return program(body, "fd_write", pages=20, more=memory(0, iovecs((32, chunk))))


ECHO = program(
    f"""(loop $again
        (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 60000))
        (drop {call("fd_read", 0, 0, 1, 8)})
        (i32.store (i32.const 4) (i32.load (i32.const 8)))
        (drop {call("fd_write", 1, 0, 1, 12)})
        (br_if $again (i32.load (i32.const 8))))""",
    "fd_read",
    "fd_write",
)

TRIVIAL = program("")

# Reads both clocks, draws random bytes twice, sleeps an hour, reads the clock again, and writes all of it to stdout.
WORLD = program(
    f"""(drop {call("clock_time_get", 0, 1, 100)}) (drop {call("clock_time_get", 1, 1, 108)})
        (drop {call("random_get", 116, 5)}) (drop {call("random_get", 121, 40)})
        (drop {call("poll_oneoff", 200, 300, 1, 400)})
        (drop {call("clock_time_get", 0, 1, 161)})
        (drop {call("fd_write", 1, 0, 1, 500)})""",
    "clock_time_get",
    "random_get",
    "poll_oneoff",
    "fd_write",
    more=memory(0, iovecs((100, 69)))
    + memory(200, b"\7" + bytes(15) + b"\1" + bytes(7) + (3_600 * 10**9).to_bytes(8, "little") + bytes(16)),
)
