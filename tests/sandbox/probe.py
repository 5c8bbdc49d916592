"""Native code in place of the worker: reports what a guest that broke out would find and could do.

It is started exactly as the worker is, and drops the same privileges.
"""

import ctypes
import os
import resource
import socket
import sys
from pathlib import Path

from quittance import limits
from quittance.run import Meter, Outcome, Run
from quittance.sandbox import process, seccomp, wire

PR_GET_DUMPABLE = 3


def attempt(action):
    try:
        return str(action())
    except OSError as error:
        return f"refused: {error.strerror}"


def target_of(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:  # the descriptor that listed the directory is closed by now
        return ""


def findings(parent: int) -> dict[str, object]:
    proc = Path("/proc") / str(parent)
    status = Path("/proc/self/status").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in status)
    return {
        "environment": dict(os.environ),
        "descriptors": [target for target in map(target_of, Path("/proc/self/fd").iterdir()) if target],
        "parent_environment": attempt((proc / "environ").read_bytes),
        "parent_memory": attempt(lambda: (proc / "mem").open("rb")),
        "parent_descriptors": attempt((proc / "fd" / "0").readlink),
        "capabilities": facts["CapEff"].strip(),
        "no_new_privileges": facts["NoNewPrivs"].strip(),
        "dumpable": ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0),
        "session": os.getsid(0) == os.getpid(),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "processes": resource.getrlimit(resource.RLIMIT_NPROC),
        "directory": str(Path.cwd()),
    }


def actions(parent: int) -> dict[str, object]:
    """Try what the filter refuses with EPERM; calls that kill the process are tested in `test_seccomp.py`."""
    return {
        "fork": attempt(os.fork),
        "open_to_write": attempt(lambda: os.open("/dev/null", os.O_WRONLY)),
        "create": attempt(lambda: os.open("/tmp/quittance-probe", os.O_RDONLY | os.O_CREAT)),
        "signal_to_parent": attempt(lambda: os.kill(parent, 0)),
        "socket_pair": attempt(socket.socketpair),
        "open_to_read": attempt(lambda: os.open("/dev/null", os.O_RDONLY)),
    }


def main(channel: int, descriptor: int, parent: int, _tied: int) -> None:
    shared = wire.SharedMemory(descriptor)
    os.close(descriptor)
    process.confine(data_bytes=2**30, file_bytes=limits.ARTEFACT_BYTES_MAX, open_files=80)
    found = findings(parent)
    filtered = seccomp.restrict()
    os.write(channel, wire.encode_greeting(seccomp=filtered))
    wire.receive(lambda count: os.read(channel, count))
    found = repr({**found, "seccomp": filtered, **actions(parent)}).encode()
    shared.append_stdout(found)
    os.write(channel, wire.encode_run(Run(Outcome.SUCCEEDED, "", Meter(output_bytes=len(found))), resident_bytes=0))
    os.read(channel, 1)


main(*map(int, sys.argv[1:]))
