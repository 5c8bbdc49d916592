"""Reading files that users name: bounded, and every failure is a sentence."""

import os
import sys
from pathlib import Path

from quittance.cli.exits import UsageError

STDIN = Path("-")


def read_file(path: Path, *, bytes_max: int) -> bytes:
    """The bytes of a file of at most this size. Raises UsageError; never blocks on a pipe that nobody writes to."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            os.set_blocking(descriptor, True)
            data = file.read(bytes_max + 1)
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder.", "Name a file.") from error
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist.", "Check its name and the current folder.") from error
    except PermissionError as error:
        raise UsageError(f"You may not read {path}.", "Check its permissions.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{path} cannot be read: {reason}.") from error
    return _bounded(str(path), data, bytes_max)


def read_stdin(*, bytes_max: int) -> bytes:
    """The bytes of standard input. Raises UsageError."""
    if sys.stdin.isatty():
        sys.stderr.write("Reading the input from the terminal; end it with Ctrl-D.\n")
    return _bounded("standard input", sys.stdin.buffer.read(bytes_max + 1), bytes_max)


def replace_file(path: Path, text: str) -> None:
    """Replace a file's content at once, with the permissions that it has. Raises OSError."""
    target = path.resolve()
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with fresh.open("x", encoding="utf-8", newline="") as sink:
            sink.write(text)
        fresh.chmod(target.stat().st_mode & 0o777)
        fresh.replace(target)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def _bounded(name: str, data: bytes, bytes_max: int) -> bytes:
    if len(data) > bytes_max:
        raise UsageError(f"{name} has more than {bytes_max} bytes.", "No file of this kind may have more.")
    return data
