"""`quittance run --profile`: the fuel of each function is exact, and together it is the fuel of the run."""

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from wasmtime import wat2wasm

from quittance.cli import profile as profiles
from quittance.cli.execution import Request, Terms
from quittance.cli.instrument import MalformedError, instrument
from quittance.cli.main import main
from quittance.cli.profile import Profile
from quittance.cli.run import execute
from quittance.limits import FUEL_MAX, MIB
from quittance.run import Limits, Outcome
from tests.cli.test_price import RUNS
from tests.fuzz.generate import generated
from tests.support import wasm

OWN = Limits(fuel=50_000_000, memory_bytes=16 * MIB, timeout_ms=60_000)
UNEQUAL = {Outcome.TRAP_STACK, Outcome.FUEL_EXHAUSTED, Outcome.MEMORY_LIMIT}
"""The wrappers take stack and the fuel's limit is met a little later; a hardware trap loses fuel."""

SHARES = """(module
  (memory (export "memory") 1)
  (func $work (param $times i32)
    (loop $again
      (local.set $times (i32.sub (local.get $times) (i32.const 1)))
      (br_if $again (local.get $times))))
  (func $once (call $work (i32.const 1000)))
  (func $thrice (call $work (i32.const 3000)))
  (func $straight (result i32)
    i32.const 1 i32.const 2 i32.add i32.const 3 i32.add i32.const 4 i32.add i32.const 5 i32.add i32.const 6 i32.add)
  (func $trifle)
  (func $leaves (param $times i32)
    (loop $again
      (drop (call $straight))
      (call $trifle)
      (local.set $times (i32.sub (local.get $times) (i32.const 1)))
      (br_if $again (local.get $times))))
  (func (export "_start") (call $once) (call $thrice) (call $leaves (i32.const 500))))"""

SHAPES = {
    "pointers": """(module (memory (export "memory") 1) (type $t (func (param i32 i64) (result i64 i32)))
      (table 2 funcref) (elem (i32.const 0) $a $b) (elem declare func $a)
      (func $a (type $t) (local.get 1) (local.get 0))
      (func $b (type $t) (call_indirect (type $t) (local.get 0) (local.get 1) (i32.const 0)))
      (func (export "_start")
        (call_indirect (type $t) (i32.const 7) (i64.const 8) (i32.const 1)) drop drop (ref.func $a) drop))""",
    "tail calls": """(module (memory (export "memory") 1)
      (func $down (param i32) (result i32)
        (if (i32.eqz (local.get 0)) (then (return (i32.const 9))))
        (return_call $down (i32.sub (local.get 0) (i32.const 1))))
      (func (export "_start") (drop (call $down (i32.const 50)))))""",
    "a start function": """(module (memory (export "memory") 1) (global $g (mut i32) (i32.const 0))
      (func $first (global.set $g (i32.const 5))) (start $first)
      (func (export "_start") (if (i32.ne (global.get $g) (i32.const 5)) (then unreachable))))""",
    "recursion": """(module (memory (export "memory") 1)
      (func $fib (param i32) (result i32)
        (if (i32.lt_u (local.get 0) (i32.const 2)) (then (return (local.get 0))))
        (i32.add (call $fib (i32.sub (local.get 0) (i32.const 1))) (call $fib (i32.sub (local.get 0) (i32.const 2)))))
      (func (export "_start") (drop (call $fib (i32.const 15)))))""",
    "deep recursion": """(module (memory (export "memory") 1)
      (func $down (param i32) (if (local.get 0) (then (call $down (i32.sub (local.get 0) (i32.const 1))))))
      (func (export "_start") (call $down (i32.const 3000))))""",
    "a trap": """(module (memory (export "memory") 1)
      (func $deep unreachable) (func $mid (call $deep)) (func (export "_start") (call $mid)))""",
    "vectors": """(module (memory (export "memory") 1)
      (func $v (param v128 f64) (result v128) (v128.not (local.get 0)))
      (func (export "_start") (drop (call $v (v128.const i64x2 1 2) (f64.const 1)))))""",
    "no other function": '(module (memory (export "memory") 1) (func (export "_start")))',
    "data and its count": """(module (memory (export "memory") 1) (data $d "abc")
      (func $copy (memory.init $d (i32.const 0) (i32.const 0) (i32.const 3)) (data.drop $d))
      (func (export "_start") (call $copy)))""",
}


def profiled(module: bytes, data: bytes = b"", own: Limits = OWN) -> tuple[Any, Profile]:
    result = execute(module, Terms(own), Request(data))
    profile, _ = profiles.take(module, result)
    return result.run, profile


def test_each_function_has_exactly_its_fuel() -> None:
    """A sampler would charge `trifle` for the work of `straight`, which has no place where the engine looks."""
    run, profile = profiled(wat2wasm(SHARES))
    stacks = {tuple(profile.names[frame] for frame in path): fuel for path, fuel in profile.stacks()}
    once, thrice = stacks["_start", "once", "work"], stacks["_start", "thrice", "work"]
    turn, rest = divmod(thrice - once, 2_000)
    assert (rest, once - 1_000 * turn) == (0, 1)
    own = profile.own()
    assert own["straight"] == 500 * (11 + 1)
    assert own["trifle"] == 500
    assert profile.total == run.meter.fuel


@pytest.mark.parametrize("name", SHAPES)
def test_all_shapes_of_modules_are_counted_exactly(name: str) -> None:
    run, profile = profiled(wat2wasm(SHAPES[name]))
    assert run.outcome is (Outcome.TRAP_UNREACHABLE if name == "a trap" else Outcome.SUCCEEDED)
    assert profile.total == run.meter.fuel


@pytest.mark.parametrize(("agent", "data"), RUNS, ids=[f"{name}-{data[:12]!r}" for name, data in RUNS])
def test_the_profile_of_an_example_has_the_fuel_of_its_run(agent: str, data: bytes) -> None:
    run, profile = profiled(wasm(agent), data)
    if run.meter.fuel_exact and run.outcome not in UNEQUAL:
        assert profile.total == run.meter.fuel
    assert profile.total <= OWN.fuel
    assert all(fuel >= 0 for fuel in profile.fuel)


def test_generated_modules_are_counted_exactly() -> None:
    chance, compared = random.Random(14), 0
    for _ in range(12):
        run, profile = profiled(generated(chance), b"input", own=Limits(2_000_000, 16 * MIB, 60_000))
        if run.meter.fuel_exact and run.outcome not in UNEQUAL:
            assert profile.total == run.meter.fuel
            compared += 1
    assert compared > 3


def test_a_profile_is_the_same_each_time() -> None:
    first, second = (profiled(wasm("wordcount"), b'"a b a"')[1] for _ in range(2))
    assert (first.parents, first.frames, first.fuel) == (second.parents, second.frames, second.fuel)


def test_host_calls_appear_with_their_fuel() -> None:
    _, profile = profiled(wasm("echo"), b"hello")
    assert profile.own()["fd_write (host)"] >= 10_000


def test_a_loop_without_calls_ends_with_its_fuel() -> None:
    loop = '(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))'
    run, profile = profiled(wat2wasm(loop), own=Limits(1_000_000, MIB, 60_000))
    assert run.outcome is Outcome.FUEL_EXHAUSTED
    assert profile.total == 1_000_000


def test_speedscope_and_folded_files_are_written(tmp_path: Path, capsys: Any) -> None:
    module = tmp_path / "agent.wasm"
    module.write_bytes(wat2wasm(SHARES))
    for name in ("profile.json", "profile.folded"):
        assert main(["run", str(module), "--json", "--profile", str(tmp_path / name)]) == 0
    total = json.loads(capsys.readouterr().out.rpartition("\n{\n")[2].join(["{", ""]))["resource_usage"]["fuel_used"]
    scope = json.loads((tmp_path / "profile.json").read_text())
    (sampled,) = scope["profiles"]
    frames = [frame["name"] for frame in scope["shared"]["frames"]]
    assert scope["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert (sampled["type"], sampled["unit"], sampled["startValue"]) == ("sampled", "none", 0)
    assert sampled["endValue"] == sum(sampled["weights"]) == total
    assert len(sampled["samples"]) == len(sampled["weights"])
    assert {frames[index] for stack in sampled["samples"] for index in stack} >= {"work", "once", "thrice"}
    lines = [line.rpartition(" ") for line in (tmp_path / "profile.folded").read_text().splitlines()]
    assert sum(int(fuel) for _, _, fuel in lines) == total
    assert "_start;thrice;work" in [stack for stack, _, _ in lines]


def test_names_of_functions_cannot_control_a_terminal(tmp_path: Path) -> None:
    module = wat2wasm(SHARES).replace(b"straight", b"\x1b]0;owne")
    _, profile = profiled(module)
    assert not any("\x1b" in name for name in profile.names)
    assert "0;owne" not in profile.folded()


def test_damaged_modules_are_refused_by_a_sentence() -> None:
    module, chance = wasm("wordcount"), random.Random(14)
    for _ in range(2_000):
        data = bytearray(module)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(8, len(data))] = chance.randrange(256)
        with suppress(MalformedError):
            instrument(bytes(data[: chance.randint(8, len(data))]))


def test_a_profile_that_cannot_be_written_gets_a_sentence(tmp_path: Path, capsys: Any) -> None:
    module = tmp_path / "agent.wasm"
    module.write_bytes(wat2wasm(SHARES))
    assert main(["run", str(module), "--profile", str(tmp_path / "none" / "out.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_greatest_fuel_limit_can_be_profiled() -> None:
    run, profile = profiled(wat2wasm(SHARES), own=Limits(FUEL_MAX, MIB, 60_000))
    assert profile.total == run.meter.fuel
