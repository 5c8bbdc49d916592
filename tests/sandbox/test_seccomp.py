"""The worker's filter on system calls: that it holds, what it refuses, and that runs do not need what it refuses."""

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


def test_all_threads_of_a_worker_are_under_the_filter(make):
    with Sandbox() as own:
        own.warm()
        assert own.seccomp is None
        own.run(make(TRIVIAL))
        assert own.seccomp is True
        tasks = list(Path(f"/proc/{own._worker._process.pid}/task").iterdir())
        assert len(tasks) == 2, "guests, and the wait for the parent's end"
        for task in tasks:
            assert re.search(r"^Seccomp:\t2$", (task / "status").read_text(), re.MULTILINE)
    assert own.seccomp is True


@pytest.mark.parametrize("name", sorted(seccomp._FATAL))
def test_what_can_never_be_innocent_ends_the_process(name):
    number = seccomp._FATAL[name][seccomp._COLUMN]
    if number is None:
        pytest.skip("not on this architecture")
    ended = child(f"call({number}, 0, 0, 0, 0, 0)")
    assert ended.returncode == -signal.SIGSYS, ended.stderr


def test_the_calls_of_another_architecture_end_the_process():
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
def test_other_calls_are_refused_and_the_process_lives(action):
    ended = child(f"""
        import fcntl, socket
        try:
            {action}
        except PermissionError:
            print("refused")
    """)
    assert (ended.returncode, ended.stdout) == (0, "refused\n"), ended.stderr


def test_no_thread_can_be_started_and_reading_goes_on():
    ended = child("""
        try:
            threading.Thread(target=print).start()
        except RuntimeError:
            print("refused")
        assert open("/proc/self/status").read()
        assert os.listdir("/")
    """)
    assert (ended.returncode, ended.stdout) == (0, "refused\n"), ended.stderr


def test_a_process_that_aborts_ends():
    assert child("os.abort()").returncode < 0


def test_a_large_artefact_and_a_whole_input_pass_the_filter(make):
    big = program("", pages=400, more=f'(data (i32.const 0) "{"x" * (25 * limits.MIB)}")')
    with Sandbox() as own:
        run = own.run(make(big, memory_bytes=64 * limits.MIB))
        assert run.outcome is Outcome.SUCCEEDED, run.message
        whole = bytes(limits.INPUT_BYTES_MAX)
        assert own.run(make(ECHO, stdin=whole)).stdout == whole
        assert own.seccomp


def test_where_the_kernel_refuses_the_filter_the_worker_goes_on_without(make):
    """As on AWS Lambda: an outer filter refuses `seccomp` itself."""
    script = f"""
        import sys
        sys.path[:0] = {[str(Path(__file__).parents[2] / "layers" / "runtime")]!r}
        from quittance.run import Job
        from quittance.sandbox import Sandbox, process, seccomp
        number = seccomp._SECCOMP[seccomp._COLUMN]
        process._prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
        outer = seccomp._load(seccomp._NUMBER_AT), seccomp._instruction(seccomp._JUMP_IF_EQUAL, number, if_false=1)
        verdicts = seccomp._instruction(seccomp._RETURN, seccomp._DENY), seccomp._instruction(seccomp._RETURN, seccomp._ALLOW)
        assert seccomp.install(b"".join(outer + verdicts))
        with Sandbox() as own:
            run = own.run({make(ECHO, stdin=b"hello")!r})
        print(run.outcome, run.stdout, own.seccomp)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "succeeded b'hello' False\n", done.stderr


@pytest.mark.parametrize("column", HEADERS)
def test_the_numbers_are_those_of_the_kernels_headers(column):
    if not HEADERS[column].exists():
        pytest.skip("no kernel headers here")
    text = HEADERS[column].read_text(encoding="ascii")
    known = {name: int(number) for name, number in re.findall(r"^#define __NR(?:3264)?_(\w+) (\d+)$", text, re.M)}
    known.setdefault("newfstatat", known.get("fstatat"))
    single = {"openat": seccomp._OPENAT, "fcntl": seccomp._FCNTL, "seccomp": seccomp._SECCOMP}
    for name, numbers in {**seccomp._ALLOWED, **seccomp._FATAL, **single}.items():
        assert numbers[column] == known.get(name), name
