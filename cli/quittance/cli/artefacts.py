"""Compiled modules, kept in the user's cache folder so that a module is compiled once.

An artefact is native code: whoever can write one here runs code as this user. So the folder must belong to this user
and be closed to all others, which is checked on the open folder itself. The name of a file holds the digest of its
content, and the sandbox checks that digest when it loads the file. Without such a folder artefacts are temporary.
"""

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from quittance import sandbox
from quittance.cli import output
from quittance.cli.exits import PlatformError, UsageError

KEPT_BYTES_MAX: Final = 2 * 1024**3
"""Of all artefacts together; the ones that were not used for the longest time are removed."""

_DIGEST_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class Artefact:
    """A compiled module in a file."""

    path: Path
    sha256: str
    module_sha256: str


class Artefacts:
    """The artefacts of this user. Use it as a context: temporary ones are removed at its end."""

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def of(self, module: bytes) -> Artefact:
        """The artefact of a module, compiled now if it is not kept. Raises UsageError if the platform rejects it."""
        module_sha256 = hashlib.sha256(module).hexdigest()
        key = sandbox.artefact_key(module_sha256)
        folder = cache_folder() / "artefacts"
        with _opened(folder) as descriptor:
            if descriptor is not None and (kept := _kept(descriptor, key)):
                return Artefact(folder / f"{key}.{kept}", kept, module_sha256)
            made = compiled(module)
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    _keep(descriptor, f"{key}.{made.sha256}", made.data)
                    return Artefact(folder / f"{key}.{made.sha256}", made.sha256, module_sha256)
        temporary = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix="quittance-"))) / key
        temporary.write_bytes(made.data)
        return Artefact(temporary, made.sha256, module_sha256)


def compiled(module: bytes) -> sandbox.Artefact:
    """A module, checked and compiled as the platform does it. Raises UsageError, PlatformError."""
    with output.progress("checking and compiling the module"):
        try:
            return sandbox.compile_module(module)
        except sandbox.ModuleRejectedError as error:
            mend = "The platform would reject it when it is published; docs/sandbox.md says what it takes."
            raise UsageError(f"The module is rejected: {error.message}", mend, code=str(error.code)) from error
        except (sandbox.CompileFailedError, ValueError, OSError, MemoryError) as error:
            mend = "Try again; `quittance doctor` checks this machine."
            raise PlatformError(f"The module could not be compiled: {error}.", mend) from error


def cache_folder() -> Path:
    """The folder for everything that can be made again."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if base.startswith("/"):
        return Path(base) / "quittance"
    try:
        return Path.home() / ".cache" / "quittance"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"quittance-{os.geteuid()}"


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """The open folder; None if it cannot be made or another user could write to it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        found = os.fstat(descriptor)
        private = found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077
        if not private:
            output.say(f"Note: {folder} is open to other users, so nothing is kept in it: chmod 700 {folder}")
        yield descriptor if private else None
    finally:
        os.close(descriptor)


def _kept(folder: int, key: str) -> str | None:
    """The digest of a kept artefact; a file that is not what its name says is removed."""
    for name in os.listdir(folder):
        stem, _, digest = name.rpartition(".")
        if stem != key or len(digest) != _DIGEST_CHARS:
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            with os.fdopen(descriptor, "rb") as file:
                own = os.fstat(descriptor).st_uid == os.geteuid()
                if own and hashlib.file_digest(file, "sha256").hexdigest() == digest:
                    os.utime(descriptor)
                    return digest
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
    return None


def _keep(folder: int, name: str, data: bytes) -> None:
    """Write a file under its name at once, so that no reader sees a part of it."""
    fresh = f".{name}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(fresh, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(data)
        os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(fresh, dir_fd=folder)
        raise
    _prune(folder, name)


def _prune(folder: int, newest: str) -> None:
    """Remove the artefacts that were not used for the longest time, beyond what is kept."""
    found = []
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            about = os.stat(name, dir_fd=folder, follow_symlinks=False)
            found.append((name == newest, about.st_mtime_ns, about.st_size, name))
    total = 0
    for _, _, size, name in sorted(found, reverse=True):
        total += size
        if total > KEPT_BYTES_MAX and name != newest:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)
