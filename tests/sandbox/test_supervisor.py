"""The parent's side: a worker that dies, lies, hangs or is worn out, and what a guest that broke out would find."""

import ast
import io
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
from quittance.run import Fault, Outcome
from quittance.sandbox import Sandbox, process, supervisor, wire
from tests.sandbox.wat import ECHO, TRIVIAL, program, writer

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


def later(seconds: float, action) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_a_worker_that_died_while_idle_is_replaced_in_silence(make):
    with Sandbox() as own:
        own.run(make(TRIVIAL))
        first = pid_of(own)
        os.kill(first, signal.SIGKILL)
        assert own.run(make(ECHO, stdin=b"x" * limits.INPUT_BYTES_MAX)).outcome is Outcome.SUCCEEDED
        assert pid_of(own) != first


def test_a_worker_that_dies_unseen_before_it_reads_the_job_is_replaced_too(make, monkeypatch):
    with Sandbox() as own:
        own.run(make(TRIVIAL))
        os.kill(pid_of(own), signal.SIGKILL)
        os.waitid(os.P_PID, pid_of(own), os.WEXITED | os.WNOWAIT)
        monkeypatch.setattr(supervisor._Worker, "alive", True)
        assert own.run(make(TRIVIAL)).outcome is Outcome.SUCCEEDED


def test_a_worker_killed_during_a_run_is_lost_and_that_is_no_fault_of_the_agent(make):
    with Sandbox() as own:
        own.run(make(TRIVIAL))
        timer = later(0.2, lambda: os.kill(pid_of(own), signal.SIGKILL))
        began = time.monotonic()
        run = own.run(make(ENDLESS, fuel=limits.FUEL_MAX))
        timer.join()
        assert run.outcome is Outcome.WORKER_LOST
        assert run.outcome.fault is Fault.PLATFORM
        assert time.monotonic() - began < 1
        assert own.run(make(TRIVIAL)).outcome is Outcome.SUCCEEDED


def test_a_stopped_worker_cannot_hold_up_the_parent(make):
    with Sandbox() as own:
        own.run(make(TRIVIAL))
        timer = later(0.1, lambda: os.kill(pid_of(own), signal.SIGSTOP))
        run = own.run(make(ENDLESS, fuel=limits.FUEL_MAX, timeout_ms=300))
        timer.join()
        assert run.outcome is Outcome.TIMEOUT
        assert own.run(make(TRIVIAL)).outcome is Outcome.SUCCEEDED


def test_a_worker_that_stops_before_it_begins_is_lost_in_time(make, monkeypatch):
    monkeypatch.setattr(limits, "LOAD_MS_MAX", 300)
    with Sandbox() as own:
        own.warm()
        os.kill(pid_of(own), signal.SIGSTOP)
        began = time.monotonic()
        assert own.run(make(ECHO, stdin=bytes(limits.INPUT_BYTES_MAX))).outcome is Outcome.WORKER_LOST
        assert time.monotonic() - began < 0.6


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff" * 64,
        b"\2\0\0\0\0\0\0\0[]",
        b"\3\0\0\0\0\0\0\0{]}",
        b"\x02\0\0\0\0\0\0\0{}",
        b'\x12\0\0\0\0\0\0\0{"kind":"started"}',
        b'\x30\0\0\0\0\0\0\0{"kind":"ended","outcome":"succeeded","meter":3}',
        (20 * limits.KIB).to_bytes(4, "little") + bytes(4),
        bytes(4) + (limits.OUTPUT_BYTES_MAX + 1).to_bytes(4, "little"),
        b"\x10\x27\0\0\0\0\0\0" + b"[" * 10_000,
    ],
)
def test_a_worker_that_lies_is_lost(make, monkeypatch, answer):
    script = f"import os, sys; c = int(sys.argv[1]); os.read(c, 10); os.write(c, {answer!r}); os.read(c, 9**6); input()"
    monkeypatch.setattr(process, "command", lambda _p, _m, *rest: [sys.executable, "-c", script, *rest])
    with Sandbox() as own:
        assert own.run(make(TRIVIAL)).outcome is Outcome.WORKER_LOST


@pytest.mark.parametrize(("header", "body"), [(16 * limits.KIB, 100), (16 * limits.KIB + 1, 0), (2, 101)])
def test_frames_are_bounded_before_they_are_read(header, body):
    text = b'{"x":"%s"}' % (b"y" * (header - 8)) if header > 8 else b"{}"
    stream = io.BytesIO(header.to_bytes(4, "little") + body.to_bytes(4, "little") + text + bytes(body))
    if (header, body) == (16 * limits.KIB, 100):
        assert wire.receive(stream.read, 100)[1] == bytes(100)
        return
    with pytest.raises(wire.CorruptFrameError):
        wire.receive(stream.read, 100)
    assert stream.tell() == 8


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false"])
def test_a_worker_that_never_starts_is_lost(make, python):
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


def test_a_closed_sandbox_leaves_nothing_and_can_be_used_again(make):
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


def test_many_threads_share_one_sandbox(make):
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


def test_a_worker_outlives_the_thread_that_started_it(make):
    with Sandbox() as own:
        thread = threading.Thread(target=own.run, args=(make(TRIVIAL),))
        thread.start()
        thread.join()
        pid = pid_of(own)
        time.sleep(0.2)
        assert own.run(make(TRIVIAL)).outcome is Outcome.SUCCEEDED
        assert pid_of(own) == pid


@pytest.mark.parametrize("start", ["main", "thread"])
def test_no_worker_outlives_its_parent_even_during_a_run(make, start):
    job = make(ENDLESS, fuel=limits.FUEL_MAX, timeout_ms=60_000)
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
    worker = int(parent.stdout.readline())
    time.sleep(1)
    assert Path(f"/proc/{worker}/stat").read_text().split()[2] == "R", "the guest runs"
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 2
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text()


def test_hostile_runs_do_not_grow_the_worker(make):
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
    """Start the probe as the worker is started, from a parent that holds secrets, perhaps as another user."""
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
def test_a_native_probe_in_the_workers_place_finds_nothing(make, user):
    if user and not NOBODYS_PYTHON:
        pytest.skip("takes root, and a Python that another user can start")
    found = probe_as(make, user)
    assert set(found["environment"]) <= {"PYTHONPATH", "LD_LIBRARY_PATH", "LC_CTYPE"}
    assert "hunter2" not in repr(found)
    assert "/secret" not in repr(found)
    kinds = sorted(place.split(":")[0] for place in found["descriptors"] if "(deleted)" not in place)
    assert kinds == ["/dev/null", "/dev/null", "pipe", "socket"]
    assert len(found["descriptors"]) == len(kinds) + 1, "and the shared log"
    for place in ("parent_environment", "parent_memory", "parent_descriptors"):
        assert str(found[place]).startswith("refused"), place
    assert found["capabilities"] == "0000000000000000"
    assert found["no_new_privileges"] == "1"
    assert found["dumpable"] == 0
    assert found["session"]
    assert found["core"] == (0, 0)
    assert str(found["fork"]).startswith("refused")
    assert found["directory"] == "/"


def test_the_worker_itself_has_given_up_what_it_can(make, sandbox):
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


def test_who_only_starts_runs_never_loads_the_engine():
    script = (
        f"import sys; sys.path[:0] = {ROOTS!r}\n"
        "from quittance.sandbox import ENGINE_VERSION, Sandbox, artefact_key, compile_module, validate_module\n"
        "Sandbox().warm()\n"
        "assert not {'wasmtime', 'pydantic', 'boto3'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def test_every_public_name_is_there():
    from quittance import sandbox

    assert sandbox.__all__ == sorted(sandbox.__all__, key=lambda name: (not name.isupper(), name))
    assert all(getattr(sandbox, name) is not None for name in sandbox.__all__)
    with pytest.raises(AttributeError):
        _ = sandbox.nothing
