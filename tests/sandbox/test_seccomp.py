"""The worker's seccomp filter: which calls kill the process, which fail, and that runs work under it."""

import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from quittance import limits
from quittance.run import Outcome
from quittance.sandbox import Sandbox, process, seccomp
from tests.sandbox.wat import ECHO, TRIVIAL, program

CONFINED = """
    import ctypes, os, threading
    from quittance.sandbox import process, seccomp
    process.confine(data_bytes=2**30, file_bytes=2**20, open_files=80)
    assert seccomp.restrict()
    call = ctypes.CDLL(None, use_errno=True).syscall
"""
HEADERS = {0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), 1: Path("/usr/include/asm-generic/unistd.h")}


def child(script: str) -> subprocess.CompletedProcess[str]:
    command = [*process.command(sys.executable, "")[:2], "-c", textwrap.dedent(CONFINED) + textwrap.dedent(script)]
    return subprocess.run(command, env=process.environment(), capture_output=True, text=True, check=False, timeout=20)


def test_filter_applies_to_all_threads_of_a_worker(make):
    with Sandbox() as own:
        own.warm()
        assert own.seccomp is None
        own.run(make(TRIVIAL))
        assert own.seccomp is True
        tasks = list(Path(f"/proc/{own._worker._process.pid}/task").iterdir())
        assert len(tasks) == 2, "one thread runs guests, one waits for the parent's end"
        for task in tasks:
            assert re.search(r"^Seccomp:\t2$", (task / "status").read_text(), re.MULTILINE)
    assert own.seccomp is True


@pytest.mark.parametrize("name", sorted(seccomp._FATAL))
def test_fatal_calls_kill_the_process(name):
    number = seccomp._FATAL[name][seccomp._COLUMN]
    if number is None:
        pytest.skip("not on this architecture")
    ended = child(f"call({number}, 0, 0, 0, 0, 0)")
    assert ended.returncode == -signal.SIGSYS, ended.stderr


def test_calls_of_another_architecture_kill_the_process():
    if seccomp._COLUMN:
        pytest.skip("x86_64 only")
    getpid_of_i386 = bytes.fromhex("b814000000cd80c3")
    ended = child(f"""
        import mmap
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write({getpid_of_i386!r})
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    """)
    assert ended.returncode == -signal.SIGSYS, ended.stderr


@pytest.mark.parametrize(
    "action",
    [
        "os.open('/dev/null', os.O_WRONLY)",
        "os.open('/dev/null', os.O_RDWR)",
        "os.open('/tmp', os.O_TMPFILE | os.O_RDWR)",
        "os.open('/tmp/quittance-never', os.O_RDONLY | os.O_CREAT)",
        "os.open('/dev/null', os.O_RDONLY | os.O_TRUNC)",
        "os.open('/dev/null', os.O_RDONLY | os.O_APPEND | os.O_WRONLY)",
        "os.unlink('/tmp/quittance-never')",
        "os.mkdir('/tmp/quittance-never')",
        "os.chmod('/tmp', 0o1777)",
        "os.kill(os.getppid(), 0)",
        "os.fork()",
        "os.dup(0)",
        "fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
        "os.sched_setaffinity(0, os.sched_getaffinity(0))",
        "socket.socketpair()",
    ],
)
def test_other_calls_fail_and_the_process_continues(action):
    ended = child(f"""
        import fcntl, socket
        try:
            {action}
        except PermissionError:
            print("refused")
    """)
    assert (ended.returncode, ended.stdout) == (0, "refused\n"), ended.stderr


def test_threads_cannot_start_and_files_can_be_read():
    ended = child("""
        try:
            threading.Thread(target=print).start()
        except RuntimeError:
            print("refused")
        assert open("/proc/self/status").read()
        assert os.listdir("/")
    """)
    assert (ended.returncode, ended.stdout) == (0, "refused\n"), ended.stderr


def test_abort_ends_a_filtered_process():
    assert child("os.abort()").returncode < 0


def test_filter_permits_a_large_artefact_and_a_full_input(make):
    big = program("", pages=400, more=f'(data (i32.const 0) "{"x" * (25 * limits.MIB)}")')
    with Sandbox() as own:
        run = own.run(make(big, memory_bytes=64 * limits.MIB))
        assert run.outcome is Outcome.SUCCEEDED, run.message
        whole = bytes(limits.INPUT_BYTES_MAX)
        assert own.run(make(ECHO, stdin=whole)).stdout == whole
        assert own.seccomp


def test_worker_runs_without_filter_if_the_kernel_refuses_it(make):
    """On AWS Lambda an outer filter refuses the `seccomp` call."""
    script = f"""
        import sys
        sys.path[:0] = {[str(Path(__file__).parents[2] / "layers" / "runtime")]!r}
        from quittance.run import Job
        from quittance.sandbox import Sandbox, process, seccomp
        number = seccomp._SECCOMP[seccomp._COLUMN]
        process._prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
        assert seccomp.install(
            seccomp._load(seccomp._NUMBER_AT)
            + seccomp._instruction(seccomp._JUMP_IF_EQUAL, number, if_false=1)
            + seccomp._instruction(seccomp._RETURN, seccomp._DENY)
            + seccomp._instruction(seccomp._RETURN, seccomp._ALLOW)
        )
        with Sandbox() as own:
            run = own.run({make(ECHO, stdin=b"hello")!r})
        print(run.outcome, run.stdout, own.seccomp)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "succeeded b'hello' False\n", done.stderr


@pytest.mark.parametrize("column", HEADERS)
def test_call_numbers_equal_those_of_the_kernel_headers(column):
    if not HEADERS[column].exists():
        pytest.skip("no kernel headers here")
    text = HEADERS[column].read_text(encoding="ascii")
    known = {name: int(number) for name, number in re.findall(r"^#define __NR(?:3264)?_(\w+) (\d+)$", text, re.M)}
    known.setdefault("newfstatat", known.get("fstatat"))
    single = {"openat": seccomp._OPENAT, "fcntl": seccomp._FCNTL, "seccomp": seccomp._SECCOMP}
    for name, numbers in {**seccomp._ALLOWED, **seccomp._FATAL, **single}.items():
        assert numbers[column] == known.get(name), name
