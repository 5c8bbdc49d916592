"""The worker process: loads artefacts and runs guests until its parent ends.

    python -m quittance.sandbox.worker <socket> <shared> <parent> <tied>

`socket` and `shared` are inherited descriptors: the channel on which jobs arrive, and the memory shared with the
parent. `parent` is the parent's process id. `tied` is 1 if the parent's main thread started the worker; the kernel then
kills the worker when that thread ends. From another thread that would be wrong, because the thread may end first.
"""

import gc
import hashlib
import os
import select
import sys
import threading
import traceback
from collections import OrderedDict
from pathlib import Path
from typing import Final

from wasmtime import WasmtimeError

from quittance import limits
from quittance.run import Job, Meter, Outcome, Run
from quittance.sandbox import process, seccomp, wire
from quittance.sandbox.engine import Program
from quittance.sandbox.execution import Executor

_OTHER_FILES_MAX: Final = 16
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class _ArtefactRefusedError(Exception):
    """The artefact cannot be loaded, or must not be."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class Programs:
    """A cache of loaded programs by the digest of their artefact. The least recently used are dropped first."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._kept: OrderedDict[str, tuple[Program, int]] = OrderedDict()
        self._bytes = 0

    def get(self, job: Job) -> Program:
        """Return the job's program; load it if it is not in the cache."""
        if kept := self._kept.get(job.artefact_sha256):
            self._kept.move_to_end(job.artefact_sha256)
            return kept[0]
        artefact = _read_verified(job)
        self._make_room(len(artefact))
        try:
            program = self._executor.load(artefact)
        except WasmtimeError as error:
            reason = "The artefact was made for another engine or CPU; publish the agent again."
            raise _ArtefactRefusedError(Outcome.ARTEFACT_MISSING, reason) from error
        self._kept[job.artefact_sha256] = program, len(artefact)
        self._bytes += len(artefact)
        return program

    def _make_room(self, wanted: int) -> None:
        while self._kept and not self._has_room(wanted):
            _, (_, size) = self._kept.popitem(last=False)
            self._bytes -= size

    def _has_room(self, wanted: int) -> bool:
        fits = self._bytes + wanted <= limits.WORKER_MODULE_BYTES_MAX
        return fits and len(self._kept) < limits.WORKER_MODULES_MAX


def _read_verified(job: Job) -> bytes:
    """Read the artefact once and check its digest. The bytes returned are those checked, not read again."""
    try:
        with Path(job.artefact_path).open("rb") as file:
            artefact = file.read(limits.ARTEFACT_BYTES_MAX + 1)
    except OSError as error:
        raise _ArtefactRefusedError(Outcome.ARTEFACT_MISSING, "The agent's artefact is missing.") from error
    if hashlib.sha256(artefact).hexdigest() != job.artefact_sha256:
        reason = "The agent's artefact differs from the one that was registered."
        raise _ArtefactRefusedError(Outcome.ARTEFACT_TAMPERED, reason)
    return artefact


class Worker:
    """Receives jobs on the channel and runs them one after the other."""

    def __init__(self, channel: int, shared: wire.SharedMemory) -> None:
        self._channel = channel
        self._shared = shared
        self._executor = Executor()
        self._programs = Programs(self._executor)
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)  # kept open: it is read after each run

    def serve(self) -> None:
        """Run jobs until the parent closes the channel."""
        while True:
            run = self._run(wire.decode_job(wire.receive(self._read), self._shared))
            self.send(wire.encode_run(run, self._resident_bytes()))
            del run

    def _read(self, count: int) -> bytes:
        return os.read(self._channel, count)

    def _run(self, job: Job) -> Run:
        try:
            program = self._programs.get(job)
        except _ArtefactRefusedError as refused:
            return Run(refused.outcome, str(refused), Meter(input_bytes=len(job.stdin)))
        self._shared.begin()
        return self._executor.run(program, job, self._shared.append_stderr, self._shared.append_stdout)

    def _resident_bytes(self) -> int:
        pages = os.pread(self._statm, 100, 0).split()[1]
        return int(pages) * _PAGE_BYTES

    def send(self, frame: bytes) -> None:
        """Send a whole frame to the parent."""
        rest = memoryview(frame)
        while rest:
            rest = rest[os.write(self._channel, rest) :]


def _exit_on_hangup(channel: int) -> None:
    """Exit when the parent's end of the channel is closed, even while a guest runs."""
    poll = select.poll()
    poll.register(channel, 0)  # no events: a hang-up is always reported
    poll.poll()
    os._exit(0)


def main(channel: int, shared: int, parent: int, tied: int) -> None:
    """Serve until the parent ends; never returns."""
    try:
        worker = Worker(channel, wire.SharedMemory(shared))
        os.close(shared)
        threading.Thread(target=_exit_on_hangup, args=(channel,), daemon=True).start()
        process.confine(
            data_bytes=limits.WORKER_DATA_BYTES_MAX,
            file_bytes=limits.ARTEFACT_BYTES_MAX,  # the engine writes each module's initial memory to a memory file
            open_files=limits.WORKER_MODULES_MAX + _OTHER_FILES_MAX,
        )
        if tied:
            process.exit_with_parent(parent)
        gc.freeze()
        worker.send(wire.encode_greeting(seccomp=seccomp.restrict()))
        worker.serve()
    except (EOFError, ConnectionError):
        os._exit(0)
    except BaseException:  # noqa: BLE001 - on any error this process exits here, without running destructors
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
