"""Compilation in a child of its own: what comes out, what is refused, and that bombs are bounded."""

import hashlib
import importlib.metadata
import subprocess
import sys

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


def test_a_module_that_takes_too_long_is_refused_in_time(monkeypatch):
    monkeypatch.setattr(limits, "COMPILE_SECONDS_MAX", 1)
    with pytest.raises(ModuleRejectedError) as caught:
        compile_module(bomb(60_000))
    assert caught.value.code is Refusal.COMPILE_LIMIT, "before it was compiled"


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
    child = [sys.executable, "-c", f"import os, signal, sys; sys.stdin.buffer.read(); {ending}"]
    monkeypatch.setattr(process, "command", lambda *_: child)
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
    script = (
        "import sys; from quittance import limits; limits.COMPILE_MEMORY_BYTES_MAX = 96 * 2**20;"
        "from quittance.sandbox.compile import _main; _main()"
    )
    child = subprocess.run(
        [sys.executable, "-sSP", "-c", script],
        input=bomb(90_000),
        env=process.environment(),
        capture_output=True,
        check=False,
    )
    assert child.returncode != 0
    assert child.stdout == b""
