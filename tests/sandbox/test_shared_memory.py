"""The memory shared with the worker: what a worker under a guest's control can do there, and what later runs find."""

import fcntl
import hashlib
import os

import pytest

from quittance import limits
from quittance.run import Meter, Outcome, Run
from quittance.sandbox import Sandbox, supervisor, wire
from tests.sandbox.test_supervisor import fake_worker
from tests.sandbox.wat import ECHO, TRIVIAL, call, iovecs, memory, program, writer

SECRET = b"secret of an earlier run"
IMPORTS = "from quittance.run import Meter, Outcome, Run\n"
LENGTHS = [0, 1, 4095, 4096, 4097, 64 * limits.KIB, 64 * limits.KIB + 1, limits.OUTPUT_BYTES_MAX]

# Reads all of its input and exits with the number of bytes; the last byte read is at address 1,024.
COUNTER = program(
    f"""(loop $again
        (drop {call("fd_read", 0, 0, 1, 8)})
        (local.set $i (i32.add (local.get $i) (i32.load (i32.const 8))))
        (br_if $again (i32.load (i32.const 8))))
        (call $proc_exit (local.get $i))""",
    "fd_read",
    "proc_exit",
    more=memory(0, iovecs((1_024, 60_000))),
)


def report(output: int | str, stdin: bytes = b"") -> str:
    """Return a script that reports a success with this many bytes of output, which need not be there."""
    meter = f"Meter(output_bytes={output}, input_bytes={len(stdin)}, stderr_bytes=100)"
    return f"os.write(channel, wire.encode_run(Run(Outcome.SUCCEEDED, '', {meter}), 0))"


def scripted(monkeypatch, *lines: str) -> None:
    """Start a worker that greets, then runs one line for each job."""
    fake_worker(
        monkeypatch, IMPORTS + "greet()\n" + "\n".join(f"take(); shared.clear(); {line}" for line in lines) + "\ntake()"
    )


def everything(shared: wire.SharedMemory) -> bytes:
    return shared._memory[wire._STDERR_START :]


# What a worker under a guest's control writes and claims.


@pytest.mark.parametrize(("claimed", "outcome"), [(10, Outcome.SUCCEEDED), (11, Outcome.WORKER_LOST)])
def test_claimed_output_may_not_exceed_the_limit_of_the_job(make, monkeypatch, claimed, outcome):
    scripted(monkeypatch, f"shared.append_stdout(b'x' * 11); {report(claimed)}")
    with Sandbox() as own:
        run = own.run(make(TRIVIAL, output_bytes=10))
        assert (run.outcome, len(run.stdout)) == (outcome, 10 if outcome is Outcome.SUCCEEDED else 0)


@pytest.mark.parametrize("claimed", [limits.OUTPUT_BYTES_MAX + 1, limits.COUNT_MAX, 2**63])
def test_output_beyond_the_area_is_never_read(make, monkeypatch, claimed):
    scripted(monkeypatch, report(claimed))
    with Sandbox() as own:
        assert own.run(make(TRIVIAL)).outcome is Outcome.WORKER_LOST


def test_output_that_the_worker_changes_later_stays_as_reported(make, monkeypatch):
    """The parent copies once and uses the copy: digests and answers cannot differ from what was checked."""
    change = "[shared.clear() or shared.append_stdout(bytes([n % 256]) * 2**20) for n in range(2000)]"
    scripted(monkeypatch, f"shared.append_stdout(b'a' * 2**20); {report(2**20)}; {change}")
    with Sandbox() as own:
        run = own.run(make(TRIVIAL))
        assert run.outcome is Outcome.SUCCEEDED
        first = hashlib.sha256(run.stdout).digest()
        for _ in range(50):
            assert hashlib.sha256(run.stdout).digest() == first
        assert len(run.stdout) == 2**20


def test_decoded_report_shares_no_memory_with_the_worker(shared):
    shared.append_stdout(b"output")
    shared.append_stderr(b"log")
    frame = wire.encode_run(Run(Outcome.SUCCEEDED, "", Meter(output_bytes=6, stderr_bytes=3)), 0)
    run, _ = wire.decode_run(frame[4:], shared, 6)
    shared._memory[:] = b"\xff" * wire.SHARED_BYTES
    assert (run.stdout, run.stderr) == (b"output", b"log")
    assert (type(run.stdout), type(run.stderr)) == (bytes, bytes)


def test_false_count_of_standard_error_is_bounded(shared):
    shared._memory[:] = b"\xff" * wire.SHARED_BYTES
    assert len(shared.stderr()) == limits.STDERR_BYTES_MAX


def test_worker_cannot_shorten_the_memory_under_the_parent(make, monkeypatch):
    """Reading a page beyond the end of a file ends a process with SIGBUS."""
    shorten = """
for number in os.listdir("/proc/self/fd"):
    try:
        os.ftruncate(int(number), 0)
    except OSError:
        pass
"""
    fake_worker(monkeypatch, f"{IMPORTS}greet(); take()\n{shorten}{report(5, b'input')}; take()")
    with Sandbox() as own:
        assert own.run(make(TRIVIAL, stdin=b"input")).stdout == bytes(5)


def test_length_and_seals_of_the_memory_cannot_be_changed():
    descriptor = supervisor._shared_file()
    try:
        for length in (0, wire.SHARED_BYTES - 1, wire.SHARED_BYTES + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, length)
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert os.fstat(descriptor).st_size == wire.SHARED_BYTES
    finally:
        os.close(descriptor)


# What a run leaves for the next one.


def test_output_that_was_claimed_but_not_written_is_zeros(make, monkeypatch):
    honest = f"shared.append_stdout({SECRET!r}); {report(len(SECRET))}"
    scripted(monkeypatch, honest, report(len(SECRET)))
    with Sandbox() as own:
        assert own.run(make(TRIVIAL)).stdout == SECRET
        assert own.run(make(TRIVIAL)).stdout == bytes(len(SECRET))


def test_later_runs_find_no_bytes_of_earlier_ones(make, monkeypatch):
    whole = "shared.append_stderr(shared.stdin(24)); shared.append_stdout(shared.stdin(24))"
    search = f"found = {SECRET!r} in shared._memory[:]; shared.append_stdout(str(found).encode())"
    scripted(monkeypatch, f"{whole}; {report(24, SECRET)}", f"{search}; {report('len(str(found))', b'other')}")
    with Sandbox() as own:
        assert own.run(make(TRIVIAL, stdin=SECRET)).stdout == SECRET
        assert own.run(make(TRIVIAL, stdin=b"other")).stdout == b"False"


@pytest.mark.parametrize("length", LENGTHS)
def test_nothing_of_a_run_stays_in_the_memory(make, length):
    with Sandbox() as own:
        run = own.run(make(ECHO, stdin=b"\xa5" * length, fuel=10**11))
        assert run.stdout == b"\xa5" * length
        assert own._worker
        assert b"\xa5" not in everything(own._worker._shared)


@pytest.mark.parametrize("fd", [1, 2])
def test_failed_runs_leave_nothing_either(make, fd):
    text = memory(32, b"\xa5" * 64)
    wat = writer(fd, 64, 3).replace('(memory (export "memory") 20)', f'(memory (export "memory") 20) {text}')
    with Sandbox() as own:
        run = own.run(make(wat, output_bytes=100))
        assert run.outcome is (Outcome.OUTPUT_LIMIT if fd == 1 else Outcome.SUCCEEDED)
        assert b"\xa5" in run.stdout + run.stderr
        assert own._worker
        assert b"\xa5" not in everything(own._worker._shared)


def test_short_output_after_a_long_one_is_exact(make):
    with Sandbox() as own:
        for stdin in (b"a" * limits.OUTPUT_BYTES_MAX, b"b", b"", b"c" * 5_000, b""):
            assert own.run(make(ECHO, stdin=stdin, fuel=10**11)).stdout == stdin


# Limits and size.


@pytest.mark.parametrize(
    ("length", "limit", "outcome"),
    [
        (0, 0, Outcome.SUCCEEDED),
        (1, 0, Outcome.OUTPUT_LIMIT),
        (100, 100, Outcome.SUCCEEDED),
        (101, 100, Outcome.OUTPUT_LIMIT),
        (limits.OUTPUT_BYTES_MAX, limits.OUTPUT_BYTES_MAX, Outcome.SUCCEEDED),
        (limits.OUTPUT_BYTES_MAX + 1, limits.OUTPUT_BYTES_MAX, Outcome.OUTPUT_LIMIT),
    ],
)
def test_output_up_to_its_limit_arrives_whole(make, sandbox, length, limit, outcome):
    data = os.urandom(length)
    run = sandbox.run(make(ECHO, stdin=data, output_bytes=limit, fuel=10**11))
    assert run.outcome is outcome
    assert run.meter.output_bytes == len(run.stdout) <= limit
    assert run.stdout == data[: len(run.stdout)]
    assert (run.stdout == data) == (outcome is Outcome.SUCCEEDED)


def test_input_at_its_limit_arrives_whole_and_one_byte_more_is_refused(make, sandbox):
    job = make(COUNTER, stdin=bytes(limits.STDIN_BYTES_MAX), fuel=10**11)
    run = sandbox.run(job)
    assert (run.exit_code, run.meter.input_bytes) == (limits.STDIN_BYTES_MAX, limits.STDIN_BYTES_MAX)
    with pytest.raises(ValueError, match="beyond the platform's limits"):
        sandbox.run(make(COUNTER, stdin=bytes(limits.STDIN_BYTES_MAX + 1)))


def test_areas_do_not_overlap():
    assert wire._STDERR_START + limits.STDERR_BYTES_MAX <= wire._STDIN_START
    assert wire._STDIN_START + limits.STDIN_BYTES_MAX <= wire._STDOUT_START
    assert wire._STDOUT_START + limits.OUTPUT_BYTES_MAX <= wire.SHARED_BYTES


def test_short_runs_use_few_pages():
    descriptor = supervisor._shared_file()
    assert os.fstat(descriptor).st_blocks == 0
    memory_file = wire.SharedMemory(descriptor)
    memory_file.put_job(b"input")
    memory_file.begin()
    memory_file.append_stdout(b"output")
    memory_file.erase(stdin_bytes=5, stdout_bytes=6, stderr_bytes=0)
    assert os.fstat(descriptor).st_blocks * 512 <= 3 * os.sysconf("SC_PAGE_SIZE")
    memory_file.close()
    os.close(descriptor)


def test_job_frame_does_not_contain_the_input(make):
    assert SECRET not in wire.encode_job(make(ECHO, stdin=SECRET))
