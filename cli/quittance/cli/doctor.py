"""`quittance doctor`: what this machine lacks, and how to mend it. Nothing is changed, and nothing is installed."""

import os
import platform
import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

from rich.text import Text

from quittance.cli import cloud, options, output, profiles
from quittance.cli.artefacts import cache_folder
from quittance.cli.exits import CliError, Exit, UsageError
from quittance.cli.login import expiry
from quittance.cli.profiles import Platform

_DISK_BYTES_MIN: Final = 2 * 1024**3
_SKEW_S_MAX: Final = 60
_WAIT_S: Final = 5
_PREFIX: Final = "/api/v1/economic"
# (module (memory (export "memory") 1) (func (export "_start")))
_LEAST_MODULE: Final = bytes.fromhex(
    "0061736d01000000010401600000030201000503010001071302066d656d6f72790200065f737461727400000a040102000b"
)


class Verdict(StrEnum):
    """What a check found."""

    FINE = "ok"
    OPTIONAL = "optional"
    """Missing, and needed only for some things."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and what to do."""

    name: str
    verdict: Verdict
    detail: str
    mend: str = ""


def doctor(
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Say what this machine lacks to build, run, test and publish agents, and how to mend it.

    Exit code 1: something is missing that every user needs.
    """
    found = []
    with output.progress("looking at this machine") as step:
        for number, check in enumerate(CHECKS):
            step.update(done=number, total=len(CHECKS))
            found += list(check())
    missing = sum(each.verdict is Verdict.MISSING for each in found)
    if output.mode.json:
        output.document({"missing": missing, "checks": [_as_json(each) for each in found]})
    else:
        output.table(["", "what", "found", "to do"], [_row(each) for each in found])
    return Exit.FAILED if missing else Exit.DONE


def _as_json(found: Finding) -> dict[str, str | None]:
    return {"name": found.name, "verdict": found.verdict, "detail": found.detail, "mend": found.mend or None}


_STYLES: Final = {Verdict.FINE: "green", Verdict.OPTIONAL: "yellow", Verdict.MISSING: "bold red"}


def _row(found: Finding) -> list[str | Text]:
    return [Text(found.verdict, style=_STYLES[found.verdict]), found.name, found.detail, found.mend]


# The checks. Each yields what it found, and raises nothing.


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 14):
        yield Finding("Python", Verdict.FINE, version)
    else:
        yield Finding("Python", Verdict.MISSING, version, "Install Python 3.11 to 3.14 and quittance with it.")


def _sandbox() -> Iterator[Finding]:
    """Run the least module: engine, processor, processes and limits must work."""
    name = "sandbox"
    try:
        from quittance.cli.execution import Request, Terms
        from quittance.cli.run import execute
        from quittance.run import Limits

        result = execute(_LEAST_MODULE, Terms(Limits(10**6, 2**20, 10_000)), Request(b""))
    except ImportError as error:
        yield Finding(name, Verdict.MISSING, str(error), "pip install 'quittance[replay]', on Linux x86_64 or aarch64.")
        return
    except CliError as error:
        yield Finding(name, Verdict.MISSING, error.problem, "Agents run on Linux 5.11 or newer, x86_64 or aarch64.")
        return
    if result.success:
        yield Finding(name, Verdict.FINE, f"runs on {platform.machine()}")
    else:
        yield Finding(name, Verdict.MISSING, result.run.message, "Report this: the least module must run.")


def _disk() -> Iterator[Finding]:
    folder = cache_folder()
    existing = next(above for above in (folder, *folder.parents) if above.exists())
    try:
        free = shutil.disk_usage(existing).free
    except OSError as error:
        yield Finding("disk", Verdict.MISSING, f"{existing}: {error.strerror}", "Set XDG_CACHE_HOME to another folder.")
        return
    detail = f"{free / 1024**3:.1f} GiB free for {folder}"
    if free >= _DISK_BYTES_MIN:
        yield Finding("disk", Verdict.FINE, detail)
    else:
        yield Finding("disk", Verdict.OPTIONAL, detail, f"Free some space, or delete {folder}: it can be made again.")


def _cache() -> Iterator[Finding]:
    folder = cache_folder()
    if not os.access(next(above for above in (folder, *folder.parents) if above.exists()), os.W_OK):
        yield Finding("cache", Verdict.OPTIONAL, f"{folder} is not writable", "Each run compiles; set XDG_CACHE_HOME.")
    elif (folder / "artefacts").exists() and stat.S_IMODE((folder / "artefacts").stat().st_mode) & 0o077:
        yield Finding("cache", Verdict.OPTIONAL, "open to other users", f"chmod 700 {folder}/artefacts")
    else:
        yield Finding("cache", Verdict.FINE, str(folder))


def _languages() -> Iterator[Finding]:
    """Whether each language's tools are there; most are installed by the first build."""
    from quittance.cli.build import toolchains
    from quittance.cli.toolchains import LANGUAGES, ToolchainError

    try:
        tools = toolchains()
    except ToolchainError as error:  # a user without a home, where tools are installed
        yield Finding("compilers", Verdict.OPTIONAL, error.problem, error.mend)
        return
    for language in LANGUAGES.values():
        found = tools.check(language)
        if found.ready:
            yield Finding(language.title, Verdict.FINE, f"{found.what} is ready")
        elif found.mend:
            yield Finding(language.title, Verdict.OPTIONAL, f"{found.what} is missing", found.mend)
        else:
            yield Finding(language.title, Verdict.FINE, f"the first build installs {found.what}")


def _local_cloud() -> Iterator[Finding]:
    name = "local cloud"
    try:
        folder = cloud.checkout()
    except UsageError:
        yield Finding(name, Verdict.OPTIONAL, "not in a checkout", "quittance up works in a checkout of Quittance.")
        return
    ready = all((folder / ".local" / "venvs" / venv).is_dir() for venv in ("cloud", "sam"))
    detail = "its tools are installed" if ready else "its tools are installed at the first start"
    yield Finding(name, Verdict.FINE, f"{folder}: {detail}")
    if shutil.which("make"):
        yield Finding("make", Verdict.FINE, shutil.which("make") or "")
    else:
        yield Finding("make", Verdict.OPTIONAL, "not found", "To build the platform: install make.")
    if port := os.environ.get("QUITTANCE_PORT"):
        yield _port(port)


def _port(text: str) -> Finding:
    name = "QUITTANCE_PORT"
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:6]) < 1 << 16:
        return Finding(name, Verdict.MISSING, text, "It must be a number from 1 to 65535.")
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex(("127.0.0.1", int(text))) == 0
    return Finding(name, Verdict.FINE, f"{text} is {'in use, by the local cloud if it is up' if taken else 'free'}")


def _profile() -> Iterator[Finding]:
    """Whether the configuration can be read, its token be used, and the platform be reached."""
    try:
        found = profiles.chosen()
    except CliError as error:
        yield Finding("profile", Verdict.MISSING, error.problem, error.mend)
        return
    if found is None:
        mend = "To publish and call agents: quittance up in a checkout, or quittance login."
        yield Finding("profile", Verdict.OPTIONAL, "no platform is configured", mend)
        return
    yield Finding("profile", Verdict.FINE, f"{found.name or profiles.API}: {found.profile.api}")
    yield from _token(found)
    yield from _reach(found)


def _token(found: Platform) -> Iterator[Finding]:
    token, path = found.token, found.token_path
    if token is None and path is not None:
        try:
            about = path.stat()
            token = path.read_text("utf-8", errors="replace")[: 64 * 1024].strip()
        except OSError as error:
            yield Finding("token", Verdict.MISSING, f"{path}: {error.strerror}", "quittance login, or quittance up")
            return
        if stat.S_IMODE(about.st_mode) & 0o077:
            yield Finding("token", Verdict.MISSING, f"{path} is readable by other users", f"chmod 600 {path}")
    if token is None:
        yield Finding("token", Verdict.FINE, "fetched when it is needed" if found.profile.client_id else "none")
        return
    expires = expiry(token)
    if expires is not None and expires <= time.time():
        yield Finding("token", Verdict.MISSING, f"expired {_when(expires)}", "quittance login, or quittance up")
    else:
        until = "" if expires is None else f", valid until {_when(expires)}"
        yield Finding("token", Verdict.FINE, f"present{until}")


def _when(moment: float) -> str:
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return "at an impossible time"


def _reach(found: Platform) -> Iterator[Finding]:
    import httpx

    root = found.profile.api.rstrip("/")
    url = f"{root if root.endswith(_PREFIX) else root + _PREFIX}/health"
    try:
        answer = httpx.get(url, timeout=_WAIT_S, follow_redirects=False)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
        reason = output.one_line(str(error)) or type(error).__name__
        mend = "Is the URL right, the network up, and the platform running? Locally: quittance up"
        yield Finding("platform", Verdict.MISSING, f"{url}: {reason}", mend)
        return
    if answer.status_code == httpx.codes.OK:
        yield Finding("platform", Verdict.FINE, f"{url} answers")
    else:
        yield Finding("platform", Verdict.MISSING, f"{url} answers {answer.status_code}", "Try again later.")
    yield from _clock(answer.headers.get("date", ""))


def _clock(date: str) -> Iterator[Finding]:
    try:
        skew = abs(time.time() - parsedate_to_datetime(date).timestamp())
    except (ValueError, TypeError, OverflowError):
        return
    if skew <= _SKEW_S_MAX:
        yield Finding("clock", Verdict.FINE, f"within {_SKEW_S_MAX} s of the platform's")
    else:
        mend = "Set this machine's clock: tokens and receipts have times."
        yield Finding("clock", Verdict.MISSING, f"{skew:.0f} s from the platform's", mend)


CHECKS: Final[tuple[Callable[[], Iterator[Finding]], ...]] = (
    _python,
    _sandbox,
    _cache,
    _disk,
    _languages,
    _local_cloud,
    _profile,
)
"""All checks, in the order in which they are shown."""
