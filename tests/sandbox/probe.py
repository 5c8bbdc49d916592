"""A native probe in the worker's place: looks for what a guest that broke out would look for, and tells.

It is started exactly as the worker is, and has given up what the worker gives up.
"""

import ctypes
import os
import resource
import sys
from pathlib import Path

from quittance import limits
from quittance.run import Meter, Outcome, Run
from quittance.sandbox import process, wire

PR_GET_DUMPABLE = 3


def attempt(action):
    try:
        return str(action())
    except OSError as error:
        return f"refused: {error.strerror}"


def place_of(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:  # the one that was open to list them
        return ""


def look(parent: int) -> dict[str, object]:
    proc = Path("/proc") / str(parent)
    status = Path("/proc/self/status").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in status)
    return {
        "environment": dict(os.environ),
        "descriptors": [place for place in map(place_of, Path("/proc/self/fd").iterdir()) if place],
        "parent_environment": attempt((proc / "environ").read_bytes),
        "parent_memory": attempt(lambda: (proc / "mem").open("rb")),
        "parent_descriptors": attempt((proc / "fd" / "0").readlink),
        "capabilities": facts["CapEff"].strip(),
        "no_new_privileges": facts["NoNewPrivs"].strip(),
        "dumpable": ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0),
        "session": os.getsid(0) == os.getpid(),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "processes": resource.getrlimit(resource.RLIMIT_NPROC),
        "fork": attempt(os.fork) if os.getuid() else "refused: not tried as root",
        "directory": str(Path.cwd()),
    }


def main(channel: int, _log: int, parent: int, _tied: int) -> None:
    process.confine(data_bytes=2**30, file_bytes=limits.ARTEFACT_BYTES_MAX, open_files=80)
    os.write(channel, wire.encode_greeting(seccomp=False))
    wire.receive(lambda count: os.read(channel, count), limits.INPUT_BYTES_MAX)
    found = repr(look(parent)).encode()
    os.write(channel, wire.encode_run(Run(Outcome.SUCCEEDED, "", Meter(), stdout=found), resident_bytes=0))
    os.read(channel, 1)


main(*map(int, sys.argv[1:]))
