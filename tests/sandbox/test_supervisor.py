"""The parent's side: workers that end, lie, hang or are worn out, and what a guest that broke out could do."""

import ast
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import wasmtime

from quittance import limits
from quittance.run import Fault, Meter, Outcome, Run
from quittance.sandbox import Sandbox, process, supervisor, wire
from tests.sandbox.wat import ECHO, TRIVIAL, program, writer
from tests.waiting import GENEROUS_MS, GENEROUS_S, Stopwatch, until

PROBE = Path(__file__).parent / "probe.py"
ROOTS = [str(Path(__file__).parents[2] / "layers" / "runtime"), str(Path(__file__).parents[2])]
ENGINE = str(Path(wasmtime.__file__).parents[1])
NOBODY = 65_534
NOBODYS_PYTHON = None if os.getuid() else shutil.which("python3", path="/usr/bin")
ENDLESS = program("(loop $again (br $again))")


def pid_of(sandbox: Sandbox) -> int:
    return sandbox._worker._process.pid


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def after(seconds: float, action) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_worker_that_ended_while_idle_is_replaced(make):
    with Sandbox() as own:
        own.run(make(TRIVIAL))
        first = pid_of(own)
        os.kill(first, signal.SIGKILL)
        assert own.run(make(ECHO, stdin=b"x" * limits.INPUT_BYTES_MAX)).outcome is Outcome.SUCCEEDED
        assert pid_of(own) != first


def test_callbacks_report_starts_and_kills_but_not_worn_workers(make, monkeypatch):
    calls = []
    with Sandbox(started=lambda: calls.append("started"), killed=lambda: calls.append("killed")) as own:
        own.run(make(TRIVIAL))
        os.kill(pid_of(own), signal.SIGKILL)
        os.waitid(os.P_PID, pid_of(own), os.WEXITED | os.WNOWAIT)
        own.run(make(TRIVIAL))
        monkeypatch.setattr(limits, "WORKER_RUNS_MAX", 2)
        own.run(make(TRIVIAL))
        own.run(make(TRIVIAL))
    assert calls == ["started", "killed", "started", "started"]


def test_error_for_an_invalid_job_contains_none_of_its_input(make):
    with Sandbox() as own, pytest.raises(ValueError, match="beyond the platform's limits") as refused:
        own.run(make(TRIVIAL, stdin=b"secret", fuel=limits.FUEL_MAX + 1))
    assert "secret" not in str(refused.value)


def test_worker_that_ends_before_it_reads_the_job_is_replaced(make, monkeypatch):
    with Sandbox() as own:
        own.run(make(TRIVIAL))
        os.kill(pid_of(own), signal.SIGKILL)
        os.waitid(os.P_PID, pid_of(own), os.WEXITED | os.WNOWAIT)
        monkeypatch.setattr(supervisor._Worker, "alive", True)
        assert own.run(make(TRIVIAL)).outcome is Outcome.SUCCEEDED


def test_worker_killed_during_a_run_is_the_platforms_fault(make):
    with Sandbox() as own:
        own.run(make(TRIVIAL))
        timer = after(0.2, lambda: os.kill(pid_of(own), signal.SIGKILL))
        run = own.run(make(ENDLESS, fuel=limits.FUEL_MAX, timeout_ms=GENEROUS_MS))
        timer.join()
        assert run.outcome is Outcome.WORKER_LOST, "the parent did not notice before the guest's deadline"
        assert run.outcome.fault is Fault.PLATFORM
        assert own.run(make(TRIVIAL)).outcome is Outcome.SUCCEEDED


def test_stopped_worker_is_killed_at_the_deadline(make):
    with Sandbox() as own:
        own.run(make(TRIVIAL))
        timer = after(0.1, lambda: os.kill(pid_of(own), signal.SIGSTOP))
        run = own.run(make(ENDLESS, fuel=limits.FUEL_MAX, timeout_ms=300))
        timer.join()
        assert run.outcome is Outcome.TIMEOUT
        assert own.run(make(TRIVIAL)).outcome is Outcome.SUCCEEDED


def test_worker_stopped_before_the_guest_begins_is_lost(make, monkeypatch):
    monkeypatch.setattr(limits, "LOAD_MS_MAX", 300)
    with Sandbox() as own:
        own.warm()
        os.kill(pid_of(own), signal.SIGSTOP)
        job = make(ECHO, stdin=bytes(limits.STDIN_BYTES_MAX), timeout_ms=GENEROUS_MS)
        assert own.run(job).outcome is Outcome.WORKER_LOST, "the parent did not notice before the guest's deadline"


def report(outcome: int = 0, exit_code: int = 0, text: bytes = b"", **counts: int) -> bytes:
    meter = Meter(**{"fuel": 1} | counts)
    return wire.encode(wire._REPORT.pack(outcome, exit_code, 0, *wire._meter_of(meter)) + text)


COUNTS = ["cpu_ms", "wall_ms", "stderr_bytes"]
NOT_WORKER_OUTCOMES = [Outcome.TIMEOUT, Outcome.REJECTED, Outcome.EXPIRED, Outcome.SUPERSEDED, Outcome.NOT_NEEDED]


def fake_worker(monkeypatch, script: str) -> None:
    """Start a script instead of the worker. It can use `channel`, `shared`, `greet` and `take`."""
    opening = """
        import os, sys, time
        from quittance.sandbox import wire
        channel, shared = int(sys.argv[1]), wire.SharedMemory(int(sys.argv[2]))
        greet = lambda: os.write(channel, wire.encode_greeting(seccomp=False))
        take = lambda: wire.receive(lambda count: os.read(channel, count))
    """
    whole = textwrap.dedent(opening) + textwrap.dedent(script)
    monkeypatch.setattr(process, "command", lambda _p, _m, *rest: [sys.executable, "-sSP", "-c", whole, *rest])


@pytest.mark.parametrize("greeting", [b"\xff" * 64, wire.encode(b""), wire.encode(b"ab"), wire.encode(b"a") + b"b"])
def test_worker_with_an_invalid_greeting_is_lost(make, monkeypatch, greeting):
    fake_worker(monkeypatch, f"os.write(channel, {greeting!r}); input(os.read(channel, 1))")
    with Sandbox() as own:
        assert own.run(make(TRIVIAL)).outcome is Outcome.WORKER_LOST
        assert own.seccomp is None


@pytest.mark.parametrize(  # the job has 10^9 fuel, 16 MiB of memory and no input
    "answer",
    [
        b"\xff" * 64,
        wire.encode(b""),
        report()[:-1],
        report()[:-1] + report(),
        report() + b"x",
        report() + report(),
        report(outcome=len(Outcome)),
        report(exit_code=-2),
        report(exit_code=2**32),
        report(fuel=2**63),
        *(report(**{count: limits.COUNT_MAX + 1}) for count in COUNTS),
        report(fuel=10**9 + 1),
        report(memory_bytes=16 * limits.MIB + 1),
        report(input_bytes=1),
        report(output_bytes=limits.OUTPUT_BYTES_MAX + 1),
        *(report(outcome=list(Outcome).index(outcome)) for outcome in NOT_WORKER_OUTCOMES),
        report(text=b"\xff"),
        report(text=b"x" * (limits.MESSAGE_CHARS_MAX + 1)),
        report(text=b"x" * 20 * limits.KIB),
        (16 * limits.KIB + 1).to_bytes(4, "little"),
    ],
    ids=itertools.count(),
)
def test_worker_with_an_impossible_report_is_lost(make, monkeypatch, answer):
    fake_worker(monkeypatch, f"greet(); take(); os.write(channel, {answer!r}); os.close(channel)")
    with Sandbox() as own:
        assert own.run(make(TRIVIAL)).outcome is Outcome.WORKER_LOST


def test_valid_report_at_every_limit_is_accepted(make, monkeypatch):
    most = dict.fromkeys(COUNTS, limits.COUNT_MAX)
    most |= {"fuel": 10**9, "memory_bytes": 16 * limits.MIB, "wall_ms": 60_000}  # the limits of the job
    longest = report(text=b"x" * limits.MESSAGE_CHARS_MAX, exit_code=2**32 - 1, **most)
    fake_worker(monkeypatch, f"greet(); take(); os.write(channel, {longest!r}); take()")
    with Sandbox() as own:
        run = own.run(make(TRIVIAL))
        assert (run.outcome, len(run.message)) == (Outcome.SUCCEEDED, limits.MESSAGE_CHARS_MAX)
        assert own.seccomp is False


# The deadline.


@pytest.mark.parametrize(("beyond_ms", "outcome"), [(0, Outcome.SUCCEEDED), (1, Outcome.TIMEOUT)])
def test_late_run_is_a_timeout_even_if_the_report_came_first(make, monkeypatch, beyond_ms, outcome):
    """The parent may be stopped at the deadline and find the report when it continues."""
    late = report(wall_ms=GENEROUS_MS + beyond_ms)
    fake_worker(monkeypatch, f"greet(); take(); os.write(channel, {late!r}); take()")
    with Sandbox() as own:
        run = own.run(make(TRIVIAL, timeout_ms=GENEROUS_MS))
        assert (run.outcome, run.meter.wall_ms) == (outcome, GENEROUS_MS)
        assert (own._worker is None) == (outcome is Outcome.TIMEOUT), "a late worker must be replaced"


def test_loading_does_not_count_towards_the_timeout(make, monkeypatch):
    monkeypatch.setattr(limits, "LOAD_MS_MAX", GENEROUS_MS)
    fake_worker(monkeypatch, f"greet(); take(); time.sleep(2.5); shared.begin(); os.write(channel, {report()!r})")
    with Sandbox() as own:
        assert own.run(make(TRIVIAL, timeout_ms=2_000)).outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize(
    "note",
    ["0x7FFFFFFFFFFFFFFF", "time.monotonic_ns() + 10**13", "1", "time.monotonic_ns()"],
    ids=["end of time", "future", "past", "again and again"],
)
def test_false_beginning_gains_a_worker_at_most_one_timeout(make, monkeypatch, note):
    fake_worker(
        monkeypatch,
        f"""
        greet()
        while True:
            shared._memory[:16] = wire._BEGAN.pack({note}, 0)
        """,
    )
    with Sandbox() as own:
        own.warm()
        time.sleep(0.3)
        watch = Stopwatch()
        run = own.run(make(TRIVIAL, timeout_ms=300))
        assert run.outcome is Outcome.TIMEOUT
        assert 0.3 <= watch.seconds() < GENEROUS_S, "the deadline followed the false beginning"


@pytest.mark.parametrize("noted_s", [-(10**4), -1, 1, 10**9], ids=lambda seconds: f"{seconds} s from now")
def test_recorded_beginning_is_clamped_and_counts_once(shared, noted_s):
    sent = time.monotonic()  # noqa: TID251 - the deadline is on this clock
    clock = supervisor._GuestClock(shared, timeout=100, begin_by=sent + 5)
    assert not clock.began
    assert clock.wait_until() == sent + 5
    shared._memory[:16] = wire._BEGAN.pack(max(time.monotonic_ns() + noted_s * 10**9, 1), 0)
    deadline = clock.wait_until()
    assert sent + 100 <= deadline <= time.monotonic() + 100  # noqa: TID251 - as above
    assert clock.began
    shared.begin()
    assert clock.wait_until() == deadline


@pytest.mark.parametrize("pause", ["", "shared.begin()"], ids=["slow", "slow, always beginning again"])
def test_slow_report_does_not_extend_the_deadline(make, monkeypatch, pause):
    head = (16 * limits.KIB).to_bytes(4, "little")
    fake_worker(
        monkeypatch,
        f"""
        greet(); take(); shared.begin(); os.write(channel, {head!r})
        while True:
            os.write(channel, bytes(1))
            time.sleep(0.001)
            {pause}
        """,
    )
    with Sandbox() as own:
        own.warm()
        time.sleep(0.3)
        watch = Stopwatch()
        assert own.run(make(TRIVIAL, timeout_ms=300)).outcome is Outcome.TIMEOUT, "the whole report was awaited"
        assert watch.seconds() >= 0.3


def test_worker_that_ends_before_the_guest_begins_is_replaced(make, monkeypatch, tmp_path):
    mark = str(tmp_path / "mark")
    fake_worker(
        monkeypatch,
        f"""
        greet(); take()
        if not os.path.exists({mark!r}):
            open({mark!r}, "w").close()
            os._exit(1)
        os.write(channel, {report()!r})
        """,
    )
    with Sandbox() as own:
        assert own.run(make(TRIVIAL)).outcome is Outcome.SUCCEEDED


def test_replaced_workers_share_the_time_to_begin(make, monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "LOAD_MS_MAX", 1_200)
    starts = tmp_path / "starts"
    fake_worker(monkeypatch, f"open({str(starts)!r}, 'a').write('x'); greet(); take(); time.sleep(0.5)")
    with Sandbox() as own:
        assert own.run(make(TRIVIAL)).outcome is Outcome.WORKER_LOST
    assert len(starts.read_text()) <= 3, "each start takes half a second of the shared time"


def test_run_that_began_is_never_repeated(make, monkeypatch, tmp_path):
    fake_worker(monkeypatch, f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); greet(); take(); shared.begin()")
    with Sandbox() as own:
        assert own.run(make(TRIVIAL)).outcome is Outcome.WORKER_LOST
    assert (tmp_path / "starts").read_text() == "x"


@pytest.mark.parametrize("beyond", [0, 1])
def test_frame_lengths_are_checked_before_the_frame_is_read(beyond):
    content = b"c" * (16 * limits.KIB + beyond)
    stream = io.BytesIO(wire.encode(content))
    if not beyond:
        assert wire.receive(stream.read) == content
        return
    with pytest.raises(wire.CorruptFrameError):
        wire.receive(stream.read)
    assert stream.tell() <= wire._FRAME_BYTES_MAX


@pytest.mark.parametrize("piece", [1, 2, 3, 4, 5, 7, 10**6])
def test_frames_are_reassembled_from_pieces_of_any_size(piece):
    stream = io.BytesIO(wire.encode(b"content" * 1_000))
    assert wire.receive(lambda count: stream.read(min(piece, count))) == b"content" * 1_000
    assert stream.read() == b""


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 5, 10])
def test_stream_that_ends_within_a_frame_is_an_error(cut):
    stream = io.BytesIO(wire.encode(b"content")[:cut])
    with pytest.raises(EOFError):
        wire.receive(stream.read)


def test_jobs_and_reports_survive_encoding_and_decoding(make, shared):
    job = make(ECHO, stdin=b"in", seed=bytes(range(256)), artefact_path="/p\udcff\u00e4")
    shared.put_job(job.stdin)
    assert wire.decode_job(wire.receive(io.BytesIO(wire.encode_job(job)).read), shared) == job
    meter = Meter(10, False, *range(11, 15), output_bytes=3, stderr_bytes=16)
    shared.append_stdout(b"out")
    shared.append_stderr(b"err")
    for exit_code in (None, 0, 2**32 - 1):
        run = Run(Outcome.EXIT_CODE, "Ended ä.", meter, exit_code, b"out", b"err")
        assert wire.decode_run(wire.receive(io.BytesIO(wire.encode_run(run, 77)).read), shared, 3) == (run, 77)


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false"])
def test_worker_that_never_starts_is_lost(make, python):
    with Sandbox(python=python) as own:
        assert own.run(make(TRIVIAL)).outcome is Outcome.WORKER_LOST


def test_worn_workers_are_replaced(make, monkeypatch):
    monkeypatch.setattr(limits, "WORKER_RUNS_MAX", 2)
    with Sandbox() as own:
        pids = []
        for _ in range(4):
            own.warm()
            pids.append(pid_of(own))
            assert own.run(make(TRIVIAL)).outcome is Outcome.SUCCEEDED
        assert pids[0] == pids[1] != pids[2] == pids[3]
        monkeypatch.setattr(limits, "WORKER_RSS_BYTES_MAX", 1)
        own.warm()
        own.run(make(TRIVIAL))
        assert own._worker is None


def test_closed_sandbox_leaks_nothing_and_can_be_reused(make):
    own = Sandbox()
    before = descriptors()
    own.run(make(TRIVIAL))
    pid = pid_of(own)
    own.close()
    own.close()
    assert not Path(f"/proc/{pid}").exists()
    assert descriptors() == before
    assert own.run(make(TRIVIAL)).outcome is Outcome.SUCCEEDED
    own.close()


def test_threads_can_share_one_sandbox(make):
    with Sandbox() as own:
        outputs: dict[int, bytes] = {}
        threads = [
            threading.Thread(target=lambda n=n: outputs.update({n: own.run(make(ECHO, stdin=b"%d" % n)).stdout}))
            for n in range(20)
        ]
        make(ECHO)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outputs == {n: b"%d" % n for n in range(20)}


def test_worker_survives_the_thread_that_started_it(make):
    with Sandbox() as own:
        thread = threading.Thread(target=own.run, args=(make(TRIVIAL),))
        thread.start()
        thread.join()
        pid = pid_of(own)
        time.sleep(0.2)
        assert own.run(make(TRIVIAL)).outcome is Outcome.SUCCEEDED
        assert pid_of(own) == pid


@pytest.mark.parametrize("start", ["main", "thread"])
def test_worker_ends_with_its_parent_even_during_a_run(make, start):
    job = make(ENDLESS, fuel=limits.FUEL_MAX, timeout_ms=GENEROUS_MS)
    script = f"""
        import os, sys, threading
        sys.path[:0] = {ROOTS!r}
        from quittance.run import Job
        from quittance.sandbox import Sandbox
        own = Sandbox()
        if {start!r} == "main":
            own.warm()
        thread = threading.Thread(target=own.run, args=({job!r},))
        thread.start()
        while not own._worker:
            pass
        print(own._worker._process.pid, flush=True)
        sys.stdin.read()
        os._exit(0)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    stat = Path(f"/proc/{int(parent.stdout.readline())}/stat")
    ticks = os.sysconf("SC_CLK_TCK")
    until(lambda: int(stat.read_text().split()[13]) > ticks / 2, "the guest used no processor time")
    parent.kill()
    parent.communicate()
    until(lambda: not stat.exists() or "Z" in stat.read_text().split()[2], "the worker did not end")


def test_failing_runs_do_not_leak_memory_in_the_worker(make):
    with Sandbox() as own:
        for wat in (TRIVIAL, writer(1, 65_536, None), program("unreachable"), program("(call $main) (call $main)")):
            own.run(make(wat))

        def resident() -> int:
            return int(Path(f"/proc/{pid_of(own)}/statm").read_text().split()[1])

        own.run(make(TRIVIAL))
        before, pid = resident(), pid_of(own)
        for _ in range(300):
            for wat in (TRIVIAL, writer(1, 65_536, None), program("unreachable")):
                own.run(make(wat))
        assert pid_of(own) == pid
        assert (resident() - before) * 4096 < 8 * limits.MIB


def probe_as(make, user: int | None) -> dict[str, object]:
    """Start the probe as the worker is started, from a parent that holds secrets; `user` is another user or None."""
    script = f"""
        import os, sys
        sys.path[:0] = {[*ROOTS, ENGINE]!r}
        from quittance.run import Job
        from quittance.sandbox import Sandbox, process
        secret = open("/dev/null"); os.set_inheritable(secret.fileno(), True)
        whole = process.command
        process.command = lambda python, module, *rest: [*whole(python, module)[:2], {str(PROBE)!r}, *rest]
        with Sandbox() as own:
            run = own.run({make(TRIVIAL)!r})
        sys.stdout.write(run.stdout.decode() or run.message)
    """
    secrets = {"AWS_SECRET_ACCESS_KEY": "hunter2", "PYTHONPATH": "/secret/place", "HOME": "/secret/home"}
    done = subprocess.run(
        [NOBODYS_PYTHON if user else sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, **secrets},
        user=user,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


@pytest.mark.parametrize("user", [None, NOBODY], ids=["same user", "nobody"])
def test_native_code_in_the_worker_finds_no_secrets(make, user):
    if user and not NOBODYS_PYTHON:
        pytest.skip("needs root, and a Python that another user can start")
    found = probe_as(make, user)
    assert set(found["environment"]) <= {"PYTHONPATH", "LD_LIBRARY_PATH", "LC_CTYPE"}
    assert "hunter2" not in repr(found)
    assert "/secret" not in repr(found)
    kinds = sorted(place.split(":")[0] for place in found["descriptors"] if "(deleted)" not in place)
    assert kinds == ["/dev/null", "/dev/null", "pipe", "socket"]
    assert len(found["descriptors"]) == len(kinds) + 1, "the memory file is the shared memory"
    for place in ("parent_environment", "parent_memory", "parent_descriptors"):
        assert str(found[place]).startswith("refused"), place
    assert found["capabilities"] == "0000000000000000"
    assert found["no_new_privileges"] == "1"
    assert found["dumpable"] == 0
    assert found["session"]
    assert found["core"] == (0, 0)
    assert found["seccomp"] is True
    for action in ("fork", "open_to_write", "create", "signal_to_parent", "socket_pair"):
        assert found[action] == "refused: Operation not permitted", action
    assert found["open_to_read"].isdigit()
    assert found["directory"] == "/"


def test_worker_has_resource_limits_and_no_privileges(make, sandbox):
    sandbox.run(make(TRIVIAL))
    place = Path(f"/proc/{pid_of(sandbox)}")
    status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    assert (status["NoNewPrivs"].strip(), int(status["CapEff"], 16)) == ("1", 0)
    bounds = {line[:26].strip(): line[26:].split()[:2] for line in (place / "limits").read_text().splitlines()}
    for name, most in {
        "Max core file size": 0,
        "Max processes": 0,
        "Max file size": limits.ARTEFACT_BYTES_MAX,
        "Max data size": limits.WORKER_DATA_BYTES_MAX,
        "Max open files": limits.WORKER_MODULES_MAX + 16,
    }.items():
        assert bounds[name] == [str(most)] * 2, name


def test_parent_process_never_loads_the_engine():
    script = (
        f"import sys; sys.path[:0] = {ROOTS!r}\n"
        "from quittance.sandbox import ENGINE_VERSION, Sandbox, artefact_key, compile_module, validate_module\n"
        "Sandbox().warm()\n"
        "assert not {'wasmtime', 'pydantic', 'boto3'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def test_every_public_name_can_be_imported():
    from quittance import sandbox

    assert sandbox.__all__ == sorted(sandbox.__all__, key=lambda name: (not name.isupper(), name))
    assert all(getattr(sandbox, name) is not None for name in sandbox.__all__)
    with pytest.raises(AttributeError):
        _ = sandbox.nothing
