"""The adapter to the engine: what host calls receive, and the guest's memory during them."""

import random

import pytest
import wasmtime

from quittance.run import Outcome
from quittance.sandbox.engine import Host, Store, compile_to_artefact, load, new_engine
from quittance.sandbox.wasi import CALLS, Errno
from tests.sandbox.wat import PAGE_BYTES, call, iovecs, memory, program

BITS = {"i": 32, "I": 64}
FUEL = 10**9


def extremes(kind: str) -> list[int]:
    bits = BITS[kind]
    return [0, 1, 2**31 - 1, 2**31, 2**32 - 1, *([2**32, 2**63] if kind == "I" else []), 2**bits - 1]


@pytest.mark.parametrize("name", CALLS)
def test_host_calls_receive_their_arguments_as_unsigned_integers(name):
    chance = random.Random(name)
    lists = [[chance.choice(extremes(kind)) for kind in CALLS[name]] for _ in range(10)]
    calls = [call(name, *arguments) for arguments in lists]
    body = " ".join(calls if name == "proc_exit" else [f"(drop {each})" for each in calls])
    engine = new_engine()
    host = Host(engine)
    ready = load(engine, host, compile_to_artefact(bytes(wasmtime.wat2wasm(program(body, name)))))
    seen = []

    def handler(called: str, _memory: object, arguments: list[int]) -> int:
        seen.append((called, list(arguments)))
        return 0

    with Store(engine) as store:
        host.begin(handler)
        store.set_fuel(FUEL)
        store.instantiate(ready)
        store.start()
    assert seen == [(name, arguments) for arguments in lists]


def test_guest_receives_what_a_host_call_returns():
    body = f"(if (i32.ne {call('sched_yield')} (i32.const 77)) (then unreachable))"
    engine = new_engine()
    host = Host(engine)
    ready = load(engine, host, compile_to_artefact(bytes(wasmtime.wat2wasm(program(body, "sched_yield")))))
    with Store(engine) as store:
        host.begin(lambda *_: 77)
        store.set_fuel(FUEL)
        store.instantiate(ready)
        store.start()


def test_host_call_outside_of_a_run_fails():
    engine = new_engine()
    host = Host(engine)
    wat = program("(drop (call $sched_yield))", "sched_yield")
    ready = load(engine, host, compile_to_artefact(bytes(wasmtime.wat2wasm(wat))))
    with Store(engine) as store:
        store.set_fuel(FUEL)
        store.instantiate(ready)
        with pytest.raises(wasmtime.WasmtimeError):
            store.start()
    assert isinstance(host.failure, RuntimeError)


def test_memory_that_grew_between_host_calls_is_seen(make, sandbox):
    """The second write takes its buffer, and the third its list, from pages that the first call did not have."""
    far = 5 * PAGE_BYTES
    body = f"""(drop {call("fd_write", 1, 0, 1, 32)})
        (if (i32.ne {call("fd_write", 1, 16, 1, 32)} (i32.const {Errno.FAULT})) (then unreachable))
        (drop (memory.grow (i32.const 8)))
        (i32.store (i32.const {far}) (i32.const 0x64636261))
        (if {call("fd_write", 1, 16, 1, 32)} (then unreachable))
        (i64.store (i32.const {far + 8}) (i64.const {4 << 32 | far}))
        (if {call("fd_write", 1, far + 8, 1, far + 16)} (then unreachable))
        (if (i32.ne (i32.load (i32.const {far + 16})) (i32.const 4)) (then unreachable))"""
    data = memory(0, iovecs((40, 2))) + memory(16, iovecs((far, 4))) + memory(40, b"hi")
    run = sandbox.run(make(program(body, "fd_write", more=data)))
    assert (run.outcome, run.stdout) == (Outcome.SUCCEEDED, b"hiabcdabcd")


def test_memory_without_pages_has_no_valid_address(make, sandbox):
    wat = program(f"(call $proc_exit {call('clock_res_get', 0, 0)})", "clock_res_get", "proc_exit", pages=0)
    assert sandbox.run(make(wat)).exit_code == Errno.FAULT
