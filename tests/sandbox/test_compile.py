"""Compilation in a child process: artefacts, rejected modules, and limits on compile bombs."""

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


def test_artefact_key_names_every_dependency(tmp_path, sandbox):
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


def test_compilation_is_deterministic():
    assert compile_module(binary(TRIVIAL)) == compile_module(binary(TRIVIAL))


def test_installed_engine_is_the_pinned_version():
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
def test_modules_the_engine_rejects_are_invalid_modules(wat):
    with pytest.raises(ModuleRejectedError) as caught:
        compile_module(binary(wat))
    assert caught.value.code is Refusal.INVALID_MODULE
    assert len(caught.value.message) <= 500


def test_module_over_the_compile_cpu_limit_is_rejected(monkeypatch):
    monkeypatch.setattr(limits, "COMPILE_SECONDS_MAX", 1)
    with pytest.raises(ModuleRejectedError) as caught:
        compile_module(bomb(60_000))
    assert caught.value.code is Refusal.COMPILE_LIMIT, "it compiled within the limit"
    assert "1 s of processor time" in caught.value.message
    assert 900 < caught.value.cpu_ms < 2_500, "the kernel's CPU limit did not end it"


@pytest.mark.parametrize("mebibytes", [1, 4, 12])
def test_module_over_the_compile_memory_limit_is_rejected(monkeypatch, mebibytes):
    """The engine reports the failed allocation only in its error text, as it reports an invalid module."""
    monkeypatch.setattr(limits, "COMPILE_MEMORY_BYTES_MAX", mebibytes * limits.MIB)
    with pytest.raises(ModuleRejectedError, match=f"or {mebibytes} MiB") as caught:
        compile_module(binary(TRIVIAL))
    assert caught.value.code is Refusal.COMPILE_LIMIT


@pytest.mark.parametrize("work", ["time.sleep(10**6)", "os.kill(0, signal.SIGSTOP)", "os.close(1); time.sleep(10**6)"])
def test_compile_wall_time_limit_is_the_platforms_fault(monkeypatch, work):
    """A child that used little processor time was held up by other work on the machine."""
    monkeypatch.setattr(limits, "COMPILE_WALL_SECONDS_MAX", 1)
    replace_compiler(monkeypatch, work)
    with pytest.raises(CompileFailedError, match="did not end within 1 s") as caught:
        compile_module(binary(TRIVIAL))
    assert 0 < caught.value.cpu_ms < 1_000


def test_child_that_ignores_sigxcpu_is_rejected_as_compile_limit(monkeypatch):
    monkeypatch.setattr(limits, "COMPILE_SECONDS_MAX", 1)
    monkeypatch.setattr(limits, "COMPILE_WALL_SECONDS_MAX", GENEROUS_S)
    limit = "resource.setrlimit(resource.RLIMIT_CPU, (1, 2))"
    replace_compiler(
        monkeypatch, f"import resource; {limit}; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    )
    with pytest.raises(ModuleRejectedError) as caught:
        compile_module(binary(TRIVIAL))
    assert caught.value.code is Refusal.COMPILE_LIMIT, "SIGKILL does not state the reason; the processor time does"
    assert caught.value.cpu_ms >= 1_000


def test_artefacts_and_errors_state_processor_time(monkeypatch):
    """The publisher pays for it."""
    small, large = compile_module(binary(TRIVIAL)), compile_module(bomb(20_000))
    assert 0 < small.cpu_ms < large.cpu_ms
    for module in (bomb(20_000)[:-1], binary(program("(drop (ref.null extern))"))):
        with pytest.raises(ModuleRejectedError) as refused:
            compile_module(module)
        assert refused.value.cpu_ms > 0
    burn = "end = time.process_time() + 0.5\nwhile time.process_time() < end: pass\n"
    for ending, error in (("os._exit(3)", ModuleRejectedError), ("os._exit(4)", CompileFailedError)):
        replace_compiler(monkeypatch, burn + ending)
        with pytest.raises(error) as ended:
            compile_module(binary(TRIVIAL))
        assert ended.value.cpu_ms >= 500


def test_compiler_output_is_read_only_up_to_the_artefact_limit(monkeypatch):
    monkeypatch.setattr(limits, "ARTEFACT_BYTES_MAX", 10**6)
    replace_compiler(monkeypatch, "while True: os.write(1, b'A' * 10**6)")
    with pytest.raises(ModuleRejectedError) as caught:
        compile_module(binary(TRIVIAL))
    assert caught.value.code is Refusal.ARTEFACT_TOO_LARGE


def replace_compiler(monkeypatch, work: str) -> None:
    """Start a script instead of the compiler."""
    script = f"import os, signal, sys, time; sys.stdin.buffer.read()\n{work}"
    monkeypatch.setattr(process, "command", lambda *_: [sys.executable, "-c", script])


def zombies() -> set[int]:
    """The ended children of this process that nobody has reaped; other tests may have left some."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                found.add(int(path.parent.name))
    return found


def test_compiler_child_leaves_no_descriptor_and_no_zombie(monkeypatch):
    before, ended = len(list(Path("/proc/self/fd").iterdir())), zombies()
    compile_module(binary(TRIVIAL))
    replace_compiler(monkeypatch, "os._exit(3)")
    for python in (sys.executable, "/nowhere/python"):
        with pytest.raises((ModuleRejectedError, CompileFailedError)):
            compile_module(binary(TRIVIAL), python=python)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert zombies() <= ended, "an ended child was not reaped"


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
def test_exit_status_decides_between_rejection_and_failure(monkeypatch, ending, error):
    replace_compiler(monkeypatch, ending)
    with pytest.raises(error):
        compile_module(binary(TRIVIAL))


def test_compiler_that_cannot_start_is_the_platforms_fault():
    with pytest.raises(CompileFailedError):
        compile_module(binary(TRIVIAL), python="/nowhere/python")


def test_structure_is_checked_before_the_child_starts():
    with pytest.raises(ModuleRejectedError) as caught:
        compile_module(b"(module)", python="/nowhere/python")
    assert caught.value.code is Refusal.NOT_WASM


def test_artefact_over_the_size_limit_is_rejected(monkeypatch):
    size = len(compile_module(binary(TRIVIAL)).data)
    monkeypatch.setattr(limits, "ARTEFACT_BYTES_MAX", size)
    compile_module(binary(TRIVIAL))
    monkeypatch.setattr(limits, "ARTEFACT_BYTES_MAX", size - 1)
    with pytest.raises(ModuleRejectedError) as caught:
        compile_module(binary(TRIVIAL))
    assert caught.value.code is Refusal.ARTEFACT_TOO_LARGE


def bomb(functions: int) -> bytes:
    """Make a module of many functions, each of which takes the compiler some work."""
    return binary(
        program("", more="(func (local i64) (local.set 0 (i64.mul (local.get 0) (i64.const 3))))" * functions)
    )


def test_memory_of_the_compiler_child_is_limited():
    """The memory limit applies in the real child: with too little memory it fails and writes no answer."""
    child = subprocess.run(
        [sys.executable, "-sSP", "-m", "quittance.sandbox.compile", "120", str(96 * limits.MIB)],
        input=bomb(90_000),
        env=process.environment(),
        capture_output=True,
        check=False,
    )
    assert child.returncode != 0
    assert child.stdout == b""
