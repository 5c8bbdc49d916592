"""Compilation in a child of its own: what comes out, what is refused, and that bombs are bounded."""

import contextlib
import hashlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wasmtime

from quittance import limits
from quittance.run import Job, Outcome
from quittance.sandbox import (
    CPU_TARGET,
    ENGINE_DIGEST,
    ENGINE_VERSION,
    CompileFailedError,
    ModuleRejectedError,
    artefact_key,
    compile_module,
    process,
)
from quittance.sandbox.validate import Refusal
from tests.sandbox.wat import ECHO, TRIVIAL, program
from tests.waiting import GENEROUS_S


def binary(wat: str) -> bytes:
    return bytes(wasmtime.wat2wasm(wat))


def test_an_artefact_names_all_that_it_depends_on_and_runs(tmp_path, sandbox):
    module = binary(ECHO)
    artefact = compile_module(module)
    assert artefact.sha256 == hashlib.sha256(artefact.data).hexdigest()
    assert artefact.key == artefact_key(hashlib.sha256(module).hexdigest())
    for part in (hashlib.sha256(module).hexdigest(), ENGINE_VERSION, ENGINE_DIGEST[:16], CPU_TARGET):
        assert part in artefact.key
    path = tmp_path / artefact.key
    path.write_bytes(artefact.data)
    run = sandbox.run(Job(str(path), artefact.sha256, b"hi", 10**6, 2**24, 1_000, 0, b""))
    assert (run.outcome, run.stdout) == (Outcome.SUCCEEDED, b"hi")


def test_compiling_again_gives_the_same_bytes():
    assert compile_module(binary(TRIVIAL)) == compile_module(binary(TRIVIAL))


def test_the_engine_is_the_one_that_artefacts_are_named_for():
    assert importlib.metadata.version("wasmtime") == ENGINE_VERSION


@pytest.mark.parametrize(
    "wat",
    [
        program("(drop (i32.const 1)) drop", more=""),
        program("(global.set 0 (i32.const 1))", more="(global i32 (i32.const 0))"),
        program("(drop (ref.null extern))"),
        program("(drop (i8x16.relaxed_swizzle (v128.const i64x2 0 0) (v128.const i64x2 0 0)))"),
        program("(drop (i32.atomic.load (i32.const 0)))"),
    ],
    ids=["stack", "immutable", "externref", "relaxed simd", "atomics"],
)
def test_what_the_engine_refuses_is_the_modules_fault(wat):
    with pytest.raises(ModuleRejectedError) as caught:
        compile_module(binary(wat))
    assert caught.value.code is Refusal.INVALID_MODULE
    assert len(caught.value.message) <= 500


def test_a_module_that_takes_too_much_processor_time_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "COMPILE_SECONDS_MAX", 1)
    with pytest.raises(ModuleRejectedError) as caught:
        compile_module(bomb(60_000))
    assert caught.value.code is Refusal.COMPILE_LIMIT, "before it was compiled"
    assert "1 s of processor time" in caught.value.message
    assert 900 < caught.value.cpu_ms < 2_500, "it was ended when it had used that much, as the kernel counts"


@pytest.mark.parametrize("mebibytes", [1, 4, 12])
def test_a_module_that_takes_too_much_memory_is_refused(monkeypatch, mebibytes):
    """The engine states in words that it may have no more, in place of an invalid module."""
    monkeypatch.setattr(limits, "COMPILE_MEMORY_BYTES_MAX", mebibytes * limits.MIB)
    with pytest.raises(ModuleRejectedError, match=f"or {mebibytes} MiB") as caught:
        compile_module(binary(TRIVIAL))
    assert caught.value.code is Refusal.COMPILE_LIMIT


@pytest.mark.parametrize("work", ["time.sleep(10**6)", "os.kill(0, signal.SIGSTOP)", "os.close(1); time.sleep(10**6)"])
def test_a_machine_that_is_too_busy_is_the_platforms_fault(monkeypatch, work):
    """A child that waits instead of computing is one that other work on the machine holds up."""
    monkeypatch.setattr(limits, "COMPILE_WALL_SECONDS_MAX", 1)
    stand_in(monkeypatch, work)
    with pytest.raises(CompileFailedError, match="did not end within 1 s") as caught:
        compile_module(binary(TRIVIAL))
    assert 0 < caught.value.cpu_ms < 1_000


def test_a_child_killed_for_its_processor_time_is_overloaded(monkeypatch):
    monkeypatch.setattr(limits, "COMPILE_SECONDS_MAX", 1)
    monkeypatch.setattr(limits, "COMPILE_WALL_SECONDS_MAX", GENEROUS_S)
    limit = "resource.setrlimit(resource.RLIMIT_CPU, (1, 2))"
    stand_in(monkeypatch, f"import resource; {limit}; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass")
    with pytest.raises(ModuleRejectedError) as caught:
        compile_module(binary(TRIVIAL))
    assert caught.value.code is Refusal.COMPILE_LIMIT, "it ignored SIGXCPU, and SIGKILL does not say why"
    assert caught.value.cpu_ms >= 1_000


def test_success_and_refusal_state_their_processor_time(monkeypatch):
    """Whoever publishes pays for it."""
    small, large = compile_module(binary(TRIVIAL)), compile_module(bomb(20_000))
    assert 0 < small.cpu_ms < large.cpu_ms
    for module in (bomb(20_000)[:-1], binary(program("(drop (ref.null extern))"))):
        with pytest.raises(ModuleRejectedError) as refused:
            compile_module(module)
        assert refused.value.cpu_ms > 0
    burn = "end = time.process_time() + 0.5\nwhile time.process_time() < end: pass\n"
    for ending, error in (("os._exit(3)", ModuleRejectedError), ("os._exit(4)", CompileFailedError)):
        stand_in(monkeypatch, burn + ending)
        with pytest.raises(error) as ended:
            compile_module(binary(TRIVIAL))
        assert ended.value.cpu_ms >= 500


def test_no_more_of_an_answer_is_read_than_an_artefact_may_have(monkeypatch):
    monkeypatch.setattr(limits, "ARTEFACT_BYTES_MAX", 10**6)
    stand_in(monkeypatch, "while True: os.write(1, b'A' * 10**6)")
    with pytest.raises(ModuleRejectedError) as caught:
        compile_module(binary(TRIVIAL))
    assert caught.value.code is Refusal.ARTEFACT_TOO_LARGE


def stand_in(monkeypatch, work: str) -> None:
    """Put a script in the compiler's place."""
    script = f"import os, signal, sys, time; sys.stdin.buffer.read()\n{work}"
    monkeypatch.setattr(process, "command", lambda *_: [sys.executable, "-c", script])


def test_nothing_of_a_child_is_left(monkeypatch):
    before = len(list(Path("/proc/self/fd").iterdir()))
    compile_module(binary(TRIVIAL))
    stand_in(monkeypatch, "os._exit(3)")
    for python in (sys.executable, "/nowhere/python"):
        with pytest.raises((ModuleRejectedError, CompileFailedError)):
            compile_module(binary(TRIVIAL), python=python)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with contextlib.suppress(ChildProcessError):  # the sandbox of other tests may be there, and lives
        assert os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, "an ended child was not collected"


@pytest.mark.parametrize(
    ("ending", "error"),
    [
        ("os.kill(os.getpid(), signal.SIGXCPU)", ModuleRejectedError),
        ("os.abort()", ModuleRejectedError),
        ("os._exit(3)", ModuleRejectedError),
        ("os.kill(os.getpid(), signal.SIGKILL)", CompileFailedError),
        ("sys.exit('no such module')", CompileFailedError),
        ("pass", CompileFailedError),
    ],
)
def test_each_end_of_the_child_is_told_apart(monkeypatch, ending, error):
    stand_in(monkeypatch, ending)
    with pytest.raises(error):
        compile_module(binary(TRIVIAL))


def test_a_child_that_cannot_start_is_the_platforms_fault():
    with pytest.raises(CompileFailedError):
        compile_module(binary(TRIVIAL), python="/nowhere/python")


def test_the_structure_is_checked_before_any_child_is_started():
    with pytest.raises(ModuleRejectedError) as caught:
        compile_module(b"(module)", python="/nowhere/python")
    assert caught.value.code is Refusal.NOT_WASM


def test_an_artefact_that_is_too_large_is_refused(monkeypatch):
    size = len(compile_module(binary(TRIVIAL)).data)
    monkeypatch.setattr(limits, "ARTEFACT_BYTES_MAX", size)
    compile_module(binary(TRIVIAL))
    monkeypatch.setattr(limits, "ARTEFACT_BYTES_MAX", size - 1)
    with pytest.raises(ModuleRejectedError) as caught:
        compile_module(binary(TRIVIAL))
    assert caught.value.code is Refusal.ARTEFACT_TOO_LARGE


def bomb(functions: int) -> bytes:
    """Make many functions that each take the compiler some work."""
    return binary(
        program("", more="(func (local i64) (local.set 0 (i64.mul (local.get 0) (i64.const 3))))" * functions)
    )


def test_memory_of_the_child_is_bounded():
    """The child is really under its limit: with little room it dies, and the module is blamed, not the platform."""
    child = subprocess.run(
        [sys.executable, "-sSP", "-m", "quittance.sandbox.compile", "120", str(96 * limits.MIB)],
        input=bomb(90_000),
        env=process.environment(),
        capture_output=True,
        check=False,
    )
    assert child.returncode != 0
    assert child.stdout == b""
