"""Every outcome of a run, every limit at the limit and one beyond, and determinism."""

import dataclasses
import hashlib
import os
import random
import struct
from pathlib import Path

import pytest

from quittance import limits
from quittance.proof import receipt
from quittance.run import Fault, Meter, Outcome
from quittance.sandbox import Sandbox
from quittance.sandbox.wasi import CLOCK_STEP_NS
from tests.hostile.generated import body as function_body
from tests.hostile.generated import command, leb, section, vector
from tests.sandbox.wat import ECHO, PAGE_BYTES, TRIVIAL, WORLD, call, memory, program, writer
from tests.waiting import Stopwatch

ENDLESS = program("(loop $again (br $again))")


def test_run_that_returns_has_succeeded(make, sandbox):
    run = sandbox.run(make(TRIVIAL, stdin=b"ignored"))
    assert (run.outcome, run.exit_code, run.stdout, run.stderr) == (Outcome.SUCCEEDED, 0, b"", b"")
    assert run.meter.fuel == 1
    assert run.meter.fuel_exact
    assert run.meter.memory_bytes == 2 * PAGE_BYTES
    assert run.meter.input_bytes == 7


@pytest.mark.parametrize(
    ("body", "outcome", "fuel_exact", "says"),
    [
        ("unreachable", Outcome.TRAP_UNREACHABLE, True, "unreachable"),
        ("(drop (i32.load (i32.const -4)))", Outcome.TRAP_MEMORY, False, "out of bounds"),
        ("(memory.fill (i32.const 0) (i32.const 0) (i32.const -1))", Outcome.TRAP_MEMORY, False, "out of bounds"),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", Outcome.TRAP_ARITHMETIC, False, "zero"),
        ("(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))", Outcome.TRAP_ARITHMETIC, False, "overflow"),
        ("(drop (i32.trunc_f32_s (f32.const nan)))", Outcome.TRAP_ARITHMETIC, False, "number"),
        ("(call $main) (call $main)", Outcome.TRAP_STACK, True, "stack"),
        ("(call_indirect (type $none) (i32.const 0))", Outcome.TRAP_TABLE, True, "null"),
        ("(call_indirect (type $none) (i32.const 9))", Outcome.TRAP_TABLE, False, "table"),
        ("(drop (call_indirect (type $one) (i32.const 1)))", Outcome.TRAP_TABLE, True, "another type"),
    ],
)
def test_each_trap_has_an_outcome_and_names_the_function(make, sandbox, body, outcome, fuel_exact, says):
    more = "(type $none (func)) (type $one (func (result i32))) (table 2 funcref) (elem (i32.const 1) $main)"
    run = sandbox.run(make(program(body, more=more)))
    assert run.outcome is outcome
    assert run.outcome.fault is Fault.AGENT
    assert run.meter.fuel_exact is fuel_exact
    assert says in run.message
    assert ("in main [0]" if outcome is Outcome.TRAP_STACK else "in main [0] at 0x") in run.message
    assert "0xffff" not in run.message, "an unknown offset is left out"
    assert len(run.message) <= limits.MESSAGE_CHARS_MAX


def test_stack_overflow_names_functions_without_offsets(make, sandbox):
    """Frame sizes depend on the processor, and so do the function and the offset at which the stack ends."""
    messages = set()
    for values in (0, 5, 10, 15):  # values that the leaf function keeps on the stack
        kept = "".join(f"(local.set {i} (i64.load (i32.const {8 * i})))" for i in range(values))
        used = "".join(f"(i64.xor (local.get {i}) " for i in range(values)) + "(i64.const 1)" + ")" * values
        more = f"""(func $odd (result i64) (i64.add (call $even) (i64.const 1)))
            (func $even (result i64) (i64.mul (call $leaf) (call $odd)))
            (func $leaf (result i64) (local {"i64 " * values}) {kept} (call $last) {used})
            (func $last)"""
        run = sandbox.run(make(program("(drop (call $odd))", more=more)))
        assert run.outcome is Outcome.TRAP_STACK
        messages.add(run.message)
    (message,) = messages
    assert message.splitlines()[1:] == ["  in odd [0]", "  in even [1]"]


def test_huge_function_name_is_truncated_before_it_is_copied(make):
    """Modules published before names had a limit may have such names."""
    name = b"n" * 12 * 10**6
    body, index = leb(len(name)) + name, iter(range(4))
    functions = vector(*(leb(next(index)) + body for _ in range(4)))
    names = section(0, b"\4name" + b"\1" + leb(len(functions)) + functions)
    calls = [b"\x10\1", b"\x10\2", b"\x10\3", b"\0"]  # each calls the next, the last one is unreachable
    module = command({3: vector(*[b"\0"] * 4), 10: vector(*map(function_body, calls))}) + names
    with Sandbox() as own:
        own.run(make(TRIVIAL))
        trivial = peak_of(own)
        run = own.run(make(module))
        assert (run.outcome, len(run.message) < limits.MESSAGE_CHARS_MAX) == (Outcome.TRAP_UNREACHABLE, True)
        assert "in " + "n" * 80 + " [3] at 0x" in run.message
        # The artefact is in memory twice, and the engine copies the names.
        assert peak_of(own) - trivial < 5 * len(body) * 4


def peak_of(sandbox: Sandbox) -> int:
    status = Path("/proc", str(sandbox._worker._process.pid), "status").read_text()
    return next(int(line.split()[1]) * limits.KIB for line in status.splitlines() if line.startswith("VmHWM:"))


@pytest.mark.parametrize("code", [0, 1, 3, 125, 126, 255, 256, 2**31, 2**32 - 1])
def test_exit_codes_are_reported_with_all_32_bits(make, sandbox, code):
    run = sandbox.run(make(program(call("proc_exit", code) + " unreachable", "proc_exit")))
    assert run.outcome is (Outcome.EXIT_CODE if code else Outcome.SUCCEEDED)
    assert run.exit_code == code
    assert run.meter.fuel_exact


@pytest.mark.parametrize(
    "wat",
    [
        ENDLESS,
        program("(return_call $main)"),
        program("", more="(func $again (loop $again (br $again))) (start $again)"),
        program(f"(loop $again (drop {call('sched_yield')}) (br $again))", "sched_yield"),
        program(f"(loop $again (drop {call('random_get', 0, 65_536)}) (br $again))", "random_get"),
        program("(loop $again (memory.fill (i32.const 0) (i32.const 1) (i32.const 131072)) (br $again))"),
        writer(2, 1, None),
        writer(1, 0, None),
    ],
    ids=["loop", "tail call", "start", "yield", "random", "fill", "stderr", "empty writes"],
)
def test_endless_guests_are_killed_at_their_deadline(make, wat):
    with Sandbox() as own:
        own.warm()
        own.run(make(TRIVIAL))
        watch = Stopwatch()
        run = own.run(make(wat, fuel=limits.FUEL_MAX, timeout_ms=250))
        assert run.outcome is Outcome.TIMEOUT
        assert "250 ms" in run.message
        assert not run.meter.fuel_exact
        assert watch.seconds() >= 0.25
        assert 0 < run.meter.cpu_ms < 550
        assert run.meter.fuel == run.meter.cpu_ms * limits.FUEL_PER_CPU_MS, "the fuel must be an estimate, not zero"
        assert own.run(make(TRIVIAL)).outcome is Outcome.SUCCEEDED


def test_estimated_fuel_of_a_killed_run_is_at_most_its_limit(make, sandbox, monkeypatch):
    monkeypatch.setattr(limits, "FUEL_PER_CPU_MS", limits.FUEL_MAX)
    run = sandbox.run(make(ENDLESS, fuel=10**11, timeout_ms=200))
    assert (run.outcome, run.meter.fuel, run.meter.fuel_exact) == (Outcome.TIMEOUT, 10**11, False)


def test_stderr_written_before_a_timeout_is_kept(make, sandbox):
    body = f"(drop {call('fd_write', 2, 0, 1, 8)}) (loop $again (br $again))"
    wat = program(body, "fd_write", more=memory(0, b"\x10\0\0\0\5\0\0\0") + memory(16, b"hello"))
    run = sandbox.run(make(wat, fuel=limits.FUEL_MAX, timeout_ms=200))
    assert (run.outcome, run.stderr) == (Outcome.TIMEOUT, b"hello")


def test_fuel_at_the_limit_and_one_below(make, sandbox):
    wat = program("(loop $again (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1)))"
                  " (i32.const 1000))))")  # fmt: skip
    needed = sandbox.run(make(wat)).meter.fuel
    assert sandbox.run(make(wat, fuel=needed)).outcome is Outcome.SUCCEEDED
    run = sandbox.run(make(wat, fuel=needed - 1))
    assert (run.outcome, run.meter.fuel, run.meter.fuel_exact) == (Outcome.FUEL_EXHAUSTED, needed - 1, True)
    assert str(needed - 1) in run.message


def test_input_and_output_at_the_limit_pass_unchanged(make, sandbox):
    data = random.Random(1).randbytes(limits.INPUT_BYTES_MAX)
    run = sandbox.run(make(ECHO, stdin=data))
    assert run.outcome is Outcome.SUCCEEDED
    assert run.stdout == data
    assert (run.meter.input_bytes, run.meter.output_bytes) == (len(data), len(data))


def test_output_one_byte_beyond_the_limit(make, sandbox):
    exact = sandbox.run(make(writer(1, PAGE_BYTES, limits.OUTPUT_BYTES_MAX // PAGE_BYTES)))
    assert (exact.outcome, len(exact.stdout)) == (Outcome.SUCCEEDED, limits.OUTPUT_BYTES_MAX)
    beyond = sandbox.run(make(writer(1, PAGE_BYTES, limits.OUTPUT_BYTES_MAX // PAGE_BYTES, last=1)))
    assert beyond.outcome is Outcome.OUTPUT_LIMIT
    assert str(limits.OUTPUT_BYTES_MAX) in beyond.message
    assert beyond.meter.fuel_exact


@pytest.mark.parametrize("most", [0, 1, 1_000, limits.OUTPUT_BYTES_MAX - 1])
def test_output_limit_of_a_job_is_exact_to_the_byte(make, sandbox, most):
    exact = sandbox.run(make(ECHO, stdin=bytes(most), output_bytes=most))
    assert (exact.outcome, len(exact.stdout), exact.meter.output_bytes) == (Outcome.SUCCEEDED, most, most)
    beyond = sandbox.run(make(ECHO, stdin=bytes(most + 1), output_bytes=most))
    assert beyond.outcome is Outcome.OUTPUT_LIMIT
    assert beyond.meter.output_bytes <= most
    assert f"more than {most} bytes" in beyond.message


def test_many_tiny_writes_stop_at_the_output_limit(make, sandbox):
    run = sandbox.run(make(writer(1, 16, None), timeout_ms=20_000))
    assert run.outcome is Outcome.OUTPUT_LIMIT
    assert len(run.stdout) == limits.OUTPUT_BYTES_MAX


def test_stderr_beyond_its_limit_never_fails_a_run(make, sandbox):
    exact = sandbox.run(make(writer(2, PAGE_BYTES, 1)))
    assert (exact.outcome, len(exact.stderr), exact.meter.stderr_bytes) == (Outcome.SUCCEEDED, 65_536, 65_536)
    beyond = sandbox.run(make(writer(2, PAGE_BYTES, 1, last=1)))
    assert (beyond.outcome, len(beyond.stderr), beyond.meter.stderr_bytes) == (Outcome.SUCCEEDED, 65_536, 65_537)


def test_memory_at_the_limit_and_one_page_beyond(make, sandbox):
    grow = program("(if (i32.lt_s (memory.grow (i32.const 14)) (i32.const 0)) (then unreachable))")
    assert sandbox.run(make(grow, memory_bytes=16 * PAGE_BYTES)).outcome is Outcome.SUCCEEDED
    until_refused = program(
        "(loop $more (br_if $more (i32.ge_s (memory.grow (i32.const 1)) (i32.const 0)))) unreachable"
    )
    run = sandbox.run(make(until_refused, memory_bytes=16 * PAGE_BYTES))
    assert (run.outcome, run.meter.memory_bytes) == (Outcome.MEMORY_LIMIT, 16 * PAGE_BYTES)
    assert str(16 * PAGE_BYTES) in run.message
    unharmed = program("(drop (memory.grow (i32.const 15)))")
    assert sandbox.run(make(unharmed, memory_bytes=16 * PAGE_BYTES)).outcome is Outcome.SUCCEEDED


GROW_AT_ONCE = "(if (i32.lt_s (memory.grow (i32.const 64)) (i32.const 0)) (then {then}))"
FAILURES = {
    "trap": program(GROW_AT_ONCE.format(then="unreachable")),
    "exit": program(GROW_AT_ONCE.format(then=call("proc_exit", 1)), "proc_exit"),
    "bounds": program(GROW_AT_ONCE.format(then="") + "(i32.store (i32.const 4000000) (i32.const 1)) unreachable"),
    "endless": program(GROW_AT_ONCE.format(then="(loop $again (br $again))")),
    "initial": program("", pages=20),
}


@pytest.mark.parametrize("wat", FAILURES.values(), ids=FAILURES)
def test_failure_after_refused_memory_states_it(make, sandbox, wat):
    low, own = 16 * PAGE_BYTES, 100 * PAGE_BYTES
    refused = sandbox.run(make(wat, memory_bytes=low, memory_bytes_own=own, fuel=10**6))
    assert refused.outcome.fault is Fault.AGENT
    assert refused.memory_refused
    assert refused.meter.memory_bytes <= low, "the second run leaves the first one's meter as it is"
    assert not sandbox.run(make(wat, memory_bytes=low, fuel=10**6)).memory_refused, "it is the agent's own limit"
    assert not sandbox.run(make(wat, memory_bytes=own, memory_bytes_own=own, fuel=10**6)).memory_refused


@pytest.mark.parametrize("body", ["unreachable", "(drop (memory.grow (i32.const 10))) unreachable"])
def test_failure_without_refused_memory_does_not_state_it(make, sandbox, body):
    run = sandbox.run(make(program(body), memory_bytes=16 * PAGE_BYTES, memory_bytes_own=100 * PAGE_BYTES))
    assert (run.outcome, run.memory_refused) == (Outcome.TRAP_UNREACHABLE, False)


def test_success_after_refused_memory_is_a_success(make, sandbox):
    wat = program("(drop (memory.grow (i32.const 64)))")
    run = sandbox.run(make(wat, memory_bytes=16 * PAGE_BYTES, memory_bytes_own=100 * PAGE_BYTES))
    assert (run.outcome, run.memory_refused) == (Outcome.SUCCEEDED, False)


def test_memory_counts_as_refused_if_no_time_is_left(make, sandbox, monkeypatch):
    """With the higher limit the guest loops until its deadline, so the second run decides nothing."""
    body = GROW_AT_ONCE.format(then="unreachable") + "(loop $again (br $again))"
    limited = {"memory_bytes": 16 * PAGE_BYTES, "memory_bytes_own": 100 * PAGE_BYTES}
    divided = "(drop (i32.div_u (i32.const 1) (i32.const 0)))"  # its fuel is not exact, so only time limits the rerun
    job = make(program(body.replace("unreachable", divided)), timeout_ms=300, fuel=limits.FUEL_MAX, **limited)
    run = sandbox.run(job)
    assert (run.outcome, run.memory_refused) == (Outcome.TRAP_ARITHMETIC, True)
    monkeypatch.setattr(limits, "KILL_MARGIN_MS", 10**6)
    assert sandbox.run(make(program("unreachable"), **limited)).memory_refused, "no time is left for a second run"


def test_initial_memory_at_the_limit_and_one_page_beyond(make, sandbox):
    assert sandbox.run(make(TRIVIAL, memory_bytes=2 * PAGE_BYTES)).outcome is Outcome.SUCCEEDED
    run = sandbox.run(make(TRIVIAL, memory_bytes=2 * PAGE_BYTES - 1))
    assert run.outcome is Outcome.MEMORY_LIMIT
    assert (run.meter.fuel, run.meter.memory_bytes) == (0, 0)


def test_trap_far_below_the_memory_limit_keeps_its_outcome(make, sandbox):
    assert sandbox.run(make(program("unreachable"))).outcome is Outcome.TRAP_UNREACHABLE


def test_maximum_memory_of_an_agent_can_be_used(make, sandbox):
    pages = limits.MEMORY_BYTES_MAX // PAGE_BYTES
    fill = f"(memory.fill (i32.const 0) (i32.const 7) (i32.const {limits.MEMORY_BYTES_MAX - 1}))"
    wat = program(f"(if (i32.lt_s (memory.grow (i32.const {pages - 2})) (i32.const 0)) (then unreachable)) {fill}")
    run = sandbox.run(make(wat, memory_bytes=limits.MEMORY_BYTES_MAX, fuel=10**10, timeout_ms=20_000))
    assert (run.outcome, run.meter.memory_bytes) == (Outcome.SUCCEEDED, limits.MEMORY_BYTES_MAX)


def test_tables_at_the_limit_and_one_beyond(make, sandbox):
    def grow(by: int) -> str:
        body = f"(call $proc_exit (i32.lt_s (table.grow (ref.null func) (i32.const {by})) (i32.const 0)))"
        return program(body, "proc_exit", more="(table 1 funcref)")

    assert sandbox.run(make(grow(limits.TABLE_ELEMENTS_MAX - 1))).exit_code == 0
    assert sandbox.run(make(grow(limits.TABLE_ELEMENTS_MAX))).exit_code == 1


def test_trap_in_the_start_function_fails_the_run(make, sandbox):
    run = sandbox.run(make(program("", more="(func $first unreachable) (start $first)")))
    assert run.outcome is Outcome.TRAP_UNREACHABLE
    assert run.meter.memory_bytes == 2 * PAGE_BYTES


def test_start_function_can_call_the_host(make, sandbox):
    start = f"(func $first (drop {call('fd_write', 1, 0, 1, 8)})) (start $first)"
    wat = program("", "fd_write", more=start + memory(0, b"\x10\0\0\0\2\0\0\0") + memory(16, b"hi"))
    assert sandbox.run(make(wat)).stdout == b"hi"


def test_time_and_randomness_come_from_the_job(make, sandbox):
    job = make(WORLD)
    stdout = sandbox.run(job).stdout
    realtime, monotonic = struct.unpack_from("<QQ", stdout)
    (after,) = struct.unpack_from("<Q", stdout, 61)
    assert realtime == job.epoch_ns + CLOCK_STEP_NS
    assert monotonic == 2 * CLOCK_STEP_NS
    assert after == job.epoch_ns + 3 * CLOCK_STEP_NS + 3_600 * 10**9
    assert sandbox.run(job).stdout == stdout
    other = sandbox.run(dataclasses.replace(job, seed=b"other")).stdout
    assert other[:16] == stdout[:16]
    assert other[16:61] != stdout[16:61]


def test_runs_are_equal_in_fresh_processes(make):
    seen = set()
    for _ in range(4):
        with Sandbox() as fresh:
            for _ in range(2):
                run = fresh.run(make(WORLD))
                seen.add((run.outcome, run.stdout, run.meter.fuel, run.meter.memory_bytes))
    assert len(seen) == 1
    assert seen.pop()[0] is Outcome.SUCCEEDED


def test_no_state_of_a_run_is_visible_to_the_next(make, sandbox):
    first = sandbox.run(make(ECHO, stdin=b"secret"))
    wat = program(
        f"""(i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 100000))
            (drop {call("fd_write", 1, 0, 1, 8)})""",
        "fd_write",
    )
    second = sandbox.run(make(wat))
    assert first.stdout == b"secret"
    assert second.stdout == bytes(100_000)
    assert sandbox.run(make(ECHO)).stdout == b""
    assert sandbox.run(make(writer(2, 16, 1))).stderr
    assert sandbox.run(make(TRIVIAL)).stderr == b""
    assert sandbox.run(make(writer(2, 16, 1))).stderr == bytes(16)
    assert sandbox.run(make(TRIVIAL, artefact_sha256="0" * 64)).stderr == b"", "a run that never began has no stderr"


def test_more_modules_can_run_than_the_cache_holds(make, sandbox):
    """Some modules are evicted and loaded again."""
    names = [
        program(f"(drop (i32.const {index}))", more=memory(0, b"x")) for index in range(limits.WORKER_MODULES_MAX + 24)
    ]
    for _ in range(2):
        assert {sandbox.run(make(wat)).outcome for wat in names} == {Outcome.SUCCEEDED}


@pytest.mark.parametrize(
    "fields",
    [
        {"stdin": bytes(limits.STDIN_BYTES_MAX + 1)},
        {"fuel": limits.FUEL_MAX + 1},
        {"fuel": 0},
        {"memory_bytes": limits.MEMORY_BYTES_MAX + 1},
        {"memory_bytes_own": limits.MEMORY_BYTES_MAX + 1},
        {"output_bytes": limits.OUTPUT_BYTES_MAX + 1},
        {"output_bytes": -1},
        {"timeout_ms": limits.TIMEOUT_S_ASYNC_MAX * 1_000 + 1},
        {"timeout_ms": 0},
        {"epoch_ns": -1},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_jobs_beyond_the_platform_limits_raise(make, sandbox, fields):
    with pytest.raises(ValueError, match="limits"):
        sandbox.run(make(TRIVIAL, **fields))


def test_missing_or_altered_artefacts_are_the_platforms_fault(make, tmp_path):
    job = make(TRIVIAL)
    original = Path(job.artefact_path).read_bytes()
    foreign = tmp_path / "foreign"
    with Sandbox() as own:
        gone = own.run(dataclasses.replace(job, artefact_path=str(tmp_path / "gone")))
        assert gone.outcome is Outcome.ARTEFACT_MISSING
        changed = tmp_path / "changed"
        changed.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        assert own.run(dataclasses.replace(job, artefact_path=str(changed))).outcome is Outcome.ARTEFACT_TAMPERED
        foreign.write_bytes(b"\x7fELF of another engine")
        digest = hashlib.sha256(foreign.read_bytes()).hexdigest()
        odd = own.run(dataclasses.replace(job, artefact_path=str(foreign), artefact_sha256=digest))
        assert odd.outcome is Outcome.ARTEFACT_MISSING
        assert {gone.outcome.fault, odd.outcome.fault} == {Fault.PLATFORM}
        assert own.run(job).outcome is Outcome.SUCCEEDED
        os.truncate(str(changed), 0)
        assert own.run(dataclasses.replace(job, artefact_path=str(changed))).outcome is Outcome.SUCCEEDED, "not cached"


def test_receipts_can_state_every_count_of_a_meter(make, sandbox):
    """Every count that a guest can increase has a limit, and every limit is at most the maximum of a receipt."""
    counts = receipt.MeterClaims.model_fields
    assert set(counts) == {field.name for field in dataclasses.fields(Meter)}
    at_most = (limits.FUEL_MAX, limits.MEMORY_BYTES_MAX, limits.STDIN_BYTES_MAX, limits.OUTPUT_BYTES_MAX)
    assert max(at_most) <= limits.COUNT_MAX
    many = sandbox.run(make(writer(2, 19 * PAGE_BYTES, 2_000), memory_bytes=64 * limits.MIB))
    assert many.meter.stderr_bytes > limits.STDERR_BYTES_MAX
    most = dict.fromkeys(counts, limits.COUNT_MAX) | {"fuel_exact": True}
    receipt.MeterClaims.model_validate(most)
    with pytest.raises(ValueError, match="stderr_bytes"):
        receipt.MeterClaims.model_validate(most | {"stderr_bytes": limits.COUNT_MAX + 1})
