import subprocess
import sys
import time
from dataclasses import replace

import pytest

from local import processes

SLEEPER = "import time; time.sleep(60)"
# A parent that ignores SIGTERM, with a child in a separate session.
FAMILY = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def sleeper():
    with subprocess.Popen([sys.executable, "-c", SLEEPER]) as process:
        yield process
        process.kill()


def test_processes_and_their_detached_children_end():
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = processes.find(int(parent.stdout.readline()))
        head = processes.find(parent.pid)
        assert head
        assert child

        processes.end({head}, term_seconds=0.2)

        assert not {head, child} & processes.table().keys()


def test_process_with_a_reused_id_is_not_killed(sleeper):
    own = processes.find(sleeper.pid)
    assert own

    processes.end({replace(own, began="long ago")}, term_seconds=0.1)

    assert own in processes.table()


def test_process_is_found_by_its_environment_mark():
    mark = f"QUITTANCE_TEST_MARK={time.time_ns()}"
    name, _, value = mark.partition("=")
    with subprocess.Popen([sys.executable, "-c", f"print(1, flush=True);{SLEEPER}"], env={name: value},
                          stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        found = processes.marked(mark)
        process.kill()
    assert [one.pid for one in found] == ([process.pid] if sys.platform == "linux" else [])
