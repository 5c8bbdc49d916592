"""The host calls, called by real guests: what they return, and how bad pointers fail."""

import os
import re
import struct
from pathlib import Path

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from quittance import limits
from quittance.run import Outcome
from quittance.sandbox.engine import new_engine
from quittance.sandbox.wasi import ARGV, CALLS, CLOCK_READS_PER_STEP, CLOCK_STEP_NS, MODULE, NO_RESULT, Errno, Guest
from tests.hostile.harness import without_times
from tests.sandbox.wat import PAGE_BYTES, TRIVIAL, call, errno_program, iovecs, memory, program, writer

END = 2 * PAGE_BYTES  # of the guest's memory
TOP = 2**32 - 1
DOCS = Path(__file__).parents[2] / "docs" / "sandbox.md"


def subscription(
    tag: int, *, clock: int = 0, timeout: int = 0, flags: int = 0, fd: int = 0, userdata: int = 7
) -> bytes:
    part = struct.pack("<I4xQ8xH6x", clock, timeout, flags) if tag == 0 else struct.pack("<I28x", fd)
    return struct.pack("<QB7x", userdata, tag) + part


def polled(
    make, sandbox, *subscriptions: bytes, before: str = "", names: tuple[str, ...] = ()
) -> list[tuple[int, ...]]:
    """Poll once; return the events as userdata, errno, type, bytes and flags."""
    count = len(subscriptions)
    body = f"""{before} (if {call("poll_oneoff", 0, 8192, count, 8000)} (then unreachable))
        (i32.store (i32.const 8004) (i32.const 8192))
        (i32.store (i32.const 8008) (i32.mul (i32.load (i32.const 8000)) (i32.const 32)))
        (drop {call("fd_write", 1, 8004, 1, 8012)})"""
    wat = program(body, "poll_oneoff", "fd_write", *names, more=memory(0, b"".join(subscriptions)))
    run = sandbox.run(make(wat, stdin=b"input"))
    assert run.outcome is Outcome.SUCCEEDED, run.message
    return list(struct.iter_unpack("<QHB5xQH6x", run.stdout))


# Pointers: each pointer parameter of each call, at the end of the memory, beyond it, and wrapping around.

POINTERS = [
    ("args_sizes_get", (None, 0), 4),
    ("args_sizes_get", (0, None), 4),
    ("args_get", (None, 0), 4),
    ("args_get", (0, None), len(ARGV[0])),
    ("environ_sizes_get", (None, 0), 4),
    ("environ_sizes_get", (0, None), 4),
    ("clock_res_get", (0, None), 8),
    ("clock_time_get", (0, 0, None), 8),
    ("random_get", (None, 16), 16),
    ("fd_fdstat_get", (0, None), 24),
    ("fd_filestat_get", (0, None), 64),
    ("fd_read", (0, None, 1, 64), 8),
    ("fd_read", (0, 64, 1, None), 4),
    ("fd_write", (1, None, 1, 64), 8),
    ("fd_write", (1, 64, 1, None), 4),
    ("poll_oneoff", (None, 64, 1, 128), 48),
    ("poll_oneoff", (0, None, 1, 128), 32),
    ("poll_oneoff", (0, 64, 1, None), 4),
]


@pytest.mark.parametrize(("name", "arguments", "size"), POINTERS)
def test_pointers_may_reach_the_end_of_memory_but_not_beyond(make, sandbox, name, arguments, size):
    def errno(pointer: int) -> int | None:
        places = [pointer if value is None else value for value in arguments]
        return sandbox.run(make(errno_program(name, *places))).exit_code

    assert errno(END - size) == Errno.SUCCESS
    for pointer in (END - size + 1, END, END + 1, 2**31 - 1, 2**31, TOP - size, TOP):
        assert errno(pointer) == Errno.FAULT, pointer


@pytest.mark.parametrize("name", ["fd_read", "fd_write"])
@pytest.mark.parametrize(
    ("buffers", "errno"),
    [
        ([(1024, 0)], Errno.SUCCESS),
        ([(END, 0)], Errno.SUCCESS),
        ([(END - 8, 8)], Errno.SUCCESS),
        ([(END - 8, 9)], Errno.FAULT),
        ([(END + 1, 0)], Errno.SUCCESS),
        ([(TOP, 0), (1024, 8), (TOP, 0)], Errno.SUCCESS),
        ([(TOP, TOP)], Errno.FAULT),
        ([(8, TOP - 7)], Errno.FAULT),
        ([(1024, 8), (TOP, 1)], Errno.FAULT),
        ([(1024, 16), (1028, 16), (1024, 16)], Errno.SUCCESS),  # overlapping
    ],
)
def test_buffers_outside_the_memory_fail_with_fault(make, sandbox, name, buffers, errno):
    more = memory(0, iovecs(*buffers))
    wat = errno_program(name, int(name == "fd_write"), 0, len(buffers), 8000, more=more)
    assert sandbox.run(make(wat, stdin=b"x" * 64)).exit_code == errno


@pytest.mark.parametrize("count", [limits.IOVECS_MAX + 1, 2**31, TOP])
def test_too_many_buffers_are_invalid(make, sandbox, count):
    for name, fd in (("fd_read", 0), ("fd_write", 1)):
        assert sandbox.run(make(errno_program(name, fd, 0, count, 8000))).exit_code == Errno.INVAL
        assert sandbox.run(make(errno_program(name, fd, 0, limits.IOVECS_MAX, 16_000))).exit_code == Errno.SUCCESS


def test_many_large_buffers_cannot_exhaust_host_memory(make, sandbox):
    more = memory(16_384, iovecs((0, END)) * limits.IOVECS_MAX)
    run = sandbox.run(make(errno_program("fd_write", 1, 16_384, limits.IOVECS_MAX, 8000, more=more)))
    assert run.outcome is Outcome.OUTPUT_LIMIT
    run = sandbox.run(make(errno_program("fd_write", 2, 16_384, limits.IOVECS_MAX, 8000, more=more)))
    assert (run.exit_code, len(run.stderr)) == (0, limits.STDERR_BYTES_MAX)
    assert run.meter.stderr_bytes == limits.IOVECS_MAX * END


def test_writes_gather_and_reads_scatter(make, sandbox):
    body = f"""(drop {call("fd_read", 0, 0, 3, 100)}) (drop {call("fd_write", 1, 16, 3, 100)})"""
    more = memory(0, iovecs((200, 2), (300, 2))) + memory(16, iovecs((300, 3), (200, 2), (100, 4)))
    wat = program(body, "fd_read", "fd_write", more=more)
    assert sandbox.run(make(wat, stdin=b"abcd")).stdout == b"cd\0ab" + (4).to_bytes(4, "little")


BUFFERS = st.lists(st.integers(0, 20) | st.just(0), max_size=12)


@given(BUFFERS, st.binary(max_size=60))
def test_reads_scatter_as_readv_does(lengths, data):
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    expected = [bytearray(length) for length in lengths]
    count = os.readv(reader, expected)
    os.close(reader)
    flat, caller = Flat(), Guest(stdin=data, epoch_ns=0, seed=b"", write_stderr=lambda _: None)
    places = [(1_024 + 32 * index, length) for index, length in enumerate(lengths)]
    flat.write(0, iovecs(*places))
    assert caller.fd_read(flat, 0, 0, len(places), 512) == Errno.SUCCESS
    assert int.from_bytes(flat.read(512, 4), "little") == count
    assert [flat.read(*place) for place in places] == expected


@given(BUFFERS, st.sampled_from([1, 2]))
def test_writes_gather_as_writev_does(lengths, fd):
    kept: list[bytes] = []
    flat, caller = Flat(), guest(kept)
    pieces = [bytes([index + 1]) * length for index, length in enumerate(lengths)]
    places = [(1_024 + 32 * index, length) for index, length in enumerate(lengths)]
    flat.write(0, iovecs(*places))
    for (address, _), piece in zip(places, pieces, strict=True):
        flat.write(address, piece)
    assert caller.fd_write(flat, fd, 0, len(places), 512) == Errno.SUCCESS
    reader, writer = os.pipe()
    assert int.from_bytes(flat.read(512, 4), "little") == os.writev(writer, pieces)
    os.close(writer)
    assert (bytes(caller.stdout) if fd == 1 else b"".join(kept)) == os.read(reader, 1_000)
    os.close(reader)


def test_read_skips_a_leading_empty_buffer(make, sandbox):
    """Emscripten's C library reads so for scanf, getchar and std::cin."""
    body = f"(drop {call('fd_read', 0, 0, 2, 100)}) (drop {call('fd_write', 1, 16, 3, 104)})"
    more = memory(0, iovecs((200, 0), (300, 1_024))) + memory(16, iovecs((100, 4), (0, 0), (300, 5)))
    run = sandbox.run(make(program(body, "fd_read", "fd_write", more=more), stdin=b"hello"))
    assert run.stdout == b"\5\0\0\0hello"


# Descriptors.


@pytest.mark.parametrize(
    ("name", "arguments", "errno"),
    [
        ("fd_write", (0, 0, 0, 64), Errno.BADF),
        ("fd_write", (3, 0, 0, 64), Errno.BADF),
        ("fd_write", (TOP, 0, 0, 64), Errno.BADF),
        ("fd_read", (1, 0, 0, 64), Errno.BADF),
        ("fd_read", (3, 0, 0, 64), Errno.BADF),
        ("fd_close", (3,), Errno.BADF),
        ("fd_seek", (0, 0, 0, 64), Errno.SPIPE),
        ("fd_seek", (3, 0, 0, 64), Errno.BADF),
        ("fd_prestat_get", (3, 64), Errno.BADF),
        ("fd_renumber", (1, 2), Errno.NOTSUP),
        ("fd_renumber", (1, 9), Errno.BADF),
        ("path_open", (0, 0, 0, 1, 0, 0, 0, 0, 64), Errno.NOTDIR),
        ("path_open", (3, 0, 0, 1, 0, 0, 0, 0, 64), Errno.BADF),
        ("sock_send", (1, 0, 0, 0, 64), Errno.NOTSOCK),
        ("sock_accept", (3, 0, 64), Errno.BADF),
        ("proc_raise", (9,), Errno.NOTSUP),
        ("clock_time_get", (2, 0, 64), Errno.INVAL),
        ("clock_res_get", (4, 64), Errno.INVAL),
        ("random_get", (0, limits.RANDOM_PIECE_BYTES), Errno.SUCCESS),
        ("random_get", (0, limits.RANDOM_PIECE_BYTES + 1), Errno.SUCCESS),
        ("random_get", (0, END), Errno.SUCCESS),
        ("random_get", (0, END + 1), Errno.FAULT),
        ("random_get", (0, TOP), Errno.FAULT),
        ("poll_oneoff", (0, 8192, 0, 64), Errno.INVAL),
        ("poll_oneoff", (0, 8192, limits.POLL_SUBSCRIPTIONS_MAX, 64), Errno.SUCCESS),
        ("poll_oneoff", (0, 8192, limits.POLL_SUBSCRIPTIONS_MAX + 1, 64), Errno.INVAL),
        ("poll_oneoff", (0, 8192, TOP, 64), Errno.INVAL),
    ],
)
def test_host_calls_return_the_documented_errno(make, sandbox, name, arguments, errno):
    assert sandbox.run(make(errno_program(name, *arguments))).exit_code == errno


@pytest.mark.parametrize("name", sorted(set(CALLS) - NO_RESULT))
def test_calls_with_invalid_arguments_return_an_errno(make, sandbox, name):
    for value in (0, 1, 3, 2**31, TOP):
        run = sandbox.run(make(errno_program(name, *(value for _ in CALLS[name]))))
        assert run.outcome in {Outcome.SUCCEEDED, Outcome.EXIT_CODE}, run.message
        assert run.exit_code in set(Errno)


def test_closed_stream_stays_closed(make, sandbox):
    body = f"(drop {call('fd_close', 1)}) (call $proc_exit {call('fd_write', 1, 0, 0, 64)})"
    assert sandbox.run(make(program(body, "fd_close", "fd_write", "proc_exit"))).exit_code == Errno.BADF


# Polling.


def test_the_earliest_clock_fires(make, sandbox):
    late, early = subscription(0, timeout=2_000, userdata=1), subscription(0, timeout=1_000, userdata=2)
    same = subscription(0, timeout=1_000, clock=1, userdata=3)
    assert polled(make, sandbox, late, early, same) == [(2, 0, 0, 0, 0), (3, 0, 0, 0, 0)]


def test_absolute_times_are_compared_with_their_clock(make, sandbox):
    now = make(TRIVIAL).epoch_ns
    relative = subscription(0, timeout=5_000, userdata=1)
    past = subscription(0, timeout=now - 1, flags=1, userdata=2)
    soon = subscription(0, clock=1, timeout=4_000, flags=1, userdata=3)
    late = subscription(0, timeout=now + 6_000, flags=1, userdata=4)
    assert polled(make, sandbox, relative, past) == [(2, 0, 0, 0, 0)]
    assert polled(make, sandbox, relative, soon, late) == [(3, 0, 0, 0, 0)]
    assert polled(make, sandbox, relative, late) == [(1, 0, 0, 0, 0)]


def test_poll_with_ready_streams_does_not_advance_time(make, sandbox):
    read, write = subscription(1, fd=0, userdata=1), subscription(2, fd=1, userdata=2)
    events = polled(make, sandbox, subscription(0, timeout=10**9, userdata=3), read, write)
    assert [(event[0], event[1], event[2]) for event in events] == [(1, 0, 1), (2, 0, 2)]
    assert events[0][3] == len(b"input")


def test_invalid_subscriptions_are_reported_one_by_one(make, sandbox):
    clock, stream = subscription(0, clock=9, userdata=1), subscription(1, fd=1, userdata=2)
    assert polled(make, sandbox, clock, stream) == [(1, Errno.INVAL, 0, 0, 0), (2, Errno.BADF, 1, 0, 0)]
    odd = errno_program("poll_oneoff", 0, 8192, 1, 64, more=memory(0, subscription(3)))
    assert sandbox.run(make(odd)).exit_code == Errno.INVAL


WAITS = [20 * 10**9, 600 * 10**9]


@pytest.mark.parametrize("clock", [0, 1])
@pytest.mark.parametrize("wait_ns", WAITS)
@pytest.mark.parametrize("between", ["", f"(drop {call('sched_yield')})"], ids=["spin", "yield"])
def test_busy_wait_ends_after_few_readings_of_the_clock(make, sandbox, clock, wait_ns, between):
    """Compilers emit this for `while (now() < end) {}`. 16,000 readings take a tenth of a second of processor time."""
    read = f"(drop {call('clock_time_get', clock, 0, 64)})"
    body = f"""{read} (i64.store (i32.const 72) (i64.add (i64.load (i32.const 64)) (i64.const {wait_ns})))
        (loop $again {read} {between} (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if $again (i64.lt_u (i64.load (i32.const 64)) (i64.load (i32.const 72)))))
        (call $proc_exit (local.get $i))"""
    job = make(program(body, "clock_time_get", "sched_yield", "proc_exit"), fuel=10**10)
    run = sandbox.run(job)
    assert run.exit_code is not None
    assert run.exit_code < (wait_ns / 10**9) ** 0.5 * 4_000, "too many readings of the clock"
    assert without_times(sandbox.run(job)) == without_times(run)


def test_clock_does_not_speed_up_between_reads_and_writes():
    """A guest that writes thousands of lines, each with the time, is not waiting."""
    flat, caller = Flat(), guest([])
    flat.write(0, iovecs((1_024, 1)))
    for _ in range(10_000):
        caller.clock_time_get(flat, 1, 0, 64)
        caller.fd_write(flat, 1, 0, 1, 512)
    assert int.from_bytes(flat.read(64, 8), "little") == 10_000 * CLOCK_STEP_NS
    for _ in range(CLOCK_READS_PER_STEP):
        caller.clock_time_get(flat, 1, 0, 64)
    assert int.from_bytes(flat.read(64, 8), "little") == (10_000 + CLOCK_READS_PER_STEP) * CLOCK_STEP_NS
    caller.clock_time_get(flat, 1, 0, 64)
    assert int.from_bytes(flat.read(64, 8), "little") == (10_002 + CLOCK_READS_PER_STEP) * CLOCK_STEP_NS


def test_clock_does_not_speed_up_for_a_computing_guest(make, sandbox):
    """A task scheduler reads the clock for each task; its deadlines must not pass ten times too early."""
    work = f"""(loop $work (local.set $j (i32.add (local.get $j) (i32.const 1)))
        (br_if $work (i32.rem_u (local.get $j) (i32.const {limits.WAIT_FUEL_MAX // 5}))))"""
    body = f"""(loop $again (drop {call("clock_time_get", 1, 0, 64)}) {work}
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $i) (i32.const 5000))))
        (call $proc_exit (i32.wrap_i64 (i64.div_u (i64.load (i32.const 64)) (i64.const {CLOCK_STEP_NS}))))"""
    run = sandbox.run(make(program(body, "clock_time_get", "proc_exit")))
    assert run.exit_code == 5_000


# The fuel of host calls.


def cost(make, sandbox, name: str, *arguments: int, more: str = "") -> int:
    """Return the fuel of one call, without the few instructions around it."""
    run = sandbox.run(make(errno_program(name, *arguments, more=more)))
    assert run.exit_code == Errno.SUCCESS
    return (run.meter.fuel - limits.HOST_CALL_FUEL) // 100 * 100  # minus the call of proc_exit


def test_calls_buffers_and_random_bytes_cost_fuel(make, sandbox):
    call_fuel, buffer_fuel = limits.HOST_CALL_FUEL, limits.HOST_BUFFER_FUEL
    buffers = memory(0, iovecs((1_024, 1), (0, 0), (1_024, 5)))
    assert cost(make, sandbox, "sched_yield") == call_fuel
    assert cost(make, sandbox, "clock_time_get", 1, 0, 64) == call_fuel
    assert cost(make, sandbox, "fd_write", 2, 0, 3, 512, more=buffers) == call_fuel + 3 * buffer_fuel
    assert cost(make, sandbox, "fd_read", 0, 0, 3, 512, more=buffers) == call_fuel + 3 * buffer_fuel
    assert cost(make, sandbox, "poll_oneoff", 0, 8192, 64, 512) == call_fuel + 64 * buffer_fuel
    assert cost(make, sandbox, "random_get", 0, 100_000) == call_fuel + 100_000 * limits.RANDOM_BYTE_FUEL


def test_host_calls_count_exactly_against_the_fuel_limit(make, sandbox):
    wat = program(f"(drop {call('random_get', 0, 100_000)})", "random_get")
    needed = sandbox.run(make(wat)).meter.fuel
    assert needed > 100_000 * limits.RANDOM_BYTE_FUEL
    assert sandbox.run(make(wat, fuel=needed)).outcome is Outcome.SUCCEEDED
    for fuel in (needed - 1, 1):
        run = sandbox.run(make(wat, fuel=fuel))
        assert (run.outcome, run.meter.fuel, run.meter.fuel_exact) == (Outcome.FUEL_EXHAUSTED, fuel, True)
        assert f"{fuel} units of fuel" in run.message


@pytest.mark.parametrize(
    "wat",
    [
        program(f"(loop $again (drop {call('sched_yield')}) (br $again))", "sched_yield"),
        program(f"(drop {call('random_get', 0, 256 * PAGE_BYTES)})", "random_get", pages=256),
        writer(2, 1, None),
    ],
    ids=["calls", "one huge call", "writes"],
)
def test_guest_that_only_calls_the_host_exhausts_its_fuel(make, sandbox, wat):
    run = sandbox.run(make(wat, fuel=5 * 10**8, memory_bytes=32 * limits.MIB))
    assert (run.outcome, run.meter.fuel) == (Outcome.FUEL_EXHAUSTED, 5 * 10**8)


@pytest.mark.parametrize("timeout", [2**63 - 1, 2**64 - 1])
def test_huge_sleeps_return_at_once_and_time_never_decreases(make, sandbox, timeout):
    body = f"""(drop {call("poll_oneoff", 0, 8192, 1, 8000)}) (drop {call("poll_oneoff", 0, 8192, 1, 8000)})
        (drop {call("clock_time_get", 0, 0, 8000)})
        (call $proc_exit (i64.ne (i64.load (i32.const 8000)) (i64.const {2**63 - 1})))"""
    wat = program(body, "poll_oneoff", "clock_time_get", "proc_exit", more=memory(0, subscription(0, timeout=timeout)))
    assert sandbox.run(make(wat)).exit_code == 0


# Behaviour that a guest cannot observe: the calls are made without an engine.


class Flat:
    """A guest memory without bounds checks."""

    def __init__(self) -> None:
        self.data = bytearray(END)

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.data[address : address + length])

    def write(self, address: int, data: bytes) -> None:
        self.data[address : address + len(data)] = data

    def check(self, address: int, length: int) -> None:
        pass


def guest(kept: list[bytes]) -> Guest:
    return Guest(stdin=b"", epoch_ns=0, seed=b"seed", write_stderr=kept.append)


def test_random_bytes_do_not_depend_on_the_sizes_drawn():
    flat, whole, pieces = Flat(), guest([]), guest([])
    whole.random_get(flat, 0, 500)
    at = 1_000
    for length in (5, 0, 40, 32, 1, 400, 22):
        pieces.random_get(flat, at, length)
        at += length
    assert flat.read(0, 500) == flat.read(1_000, 500) != bytes(500)
    huge, parts = guest([]), guest([])
    huge.random_get(flat, 0, 70_001)
    for at, length in ((70_001, 65_536), (70_001 + 65_536, 70_001 - 65_536)):
        parts.random_get(flat, at, length)
    assert flat.read(0, 500) == flat.read(70_001, 500)
    assert flat.read(69_000, 1_001) == flat.read(139_001, 1_001)


def test_random_bytes_are_generated_in_bounded_pieces(monkeypatch):
    taken = []
    caller = guest([])
    take = caller._random.take
    monkeypatch.setattr(caller._random, "take", lambda length: taken.append(length) or take(length))
    caller.random_get(Flat(), 0, END)
    assert (sum(taken), max(taken)) == (END, limits.RANDOM_PIECE_BYTES)


def test_stderr_is_copied_only_up_to_its_limit():
    flat, kept = Flat(), []
    caller = guest(kept)
    flat.write(0, iovecs((0, END), (0, END)))
    for _ in range(3):
        assert caller.fd_write(flat, 2, 0, 2, 64) == Errno.SUCCESS
    assert [len(piece) for piece in kept] == [limits.STDERR_BYTES_MAX]
    assert caller.stderr_bytes == 6 * END


def test_stderr_count_stops_at_the_maximum_of_a_receipt():
    flat, caller = Flat(), guest([])
    flat.write(0, iovecs((0, END)))
    caller.stderr_bytes = limits.COUNT_MAX - 1
    for _ in range(2):
        assert caller.fd_write(flat, 2, 0, 1, 64) == Errno.SUCCESS
        assert caller.stderr_bytes == limits.COUNT_MAX


# The table of calls equals the engine's and the documentation's.


def test_call_signatures_equal_those_of_the_engine():
    engine = new_engine()
    linker, store = wasmtime.Linker(engine), wasmtime.Store(engine)
    linker.define_wasi()
    for name, parameters in CALLS.items():
        kind = linker.get(store, MODULE, name).type(store)
        assert [str(value) for value in kind.params] == [{"i": "i32", "I": "i64"}[letter] for letter in parameters]
        assert len(kind.results) == (name not in NO_RESULT)
    assert len(CALLS) == 46


def test_documentation_lists_every_call():
    (table,) = re.findall(r"^## Host calls$(.*?)^## ", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE) == sorted(CALLS)
