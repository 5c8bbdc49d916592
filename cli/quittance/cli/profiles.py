"""The configuration file: the platforms that this user calls, each under a name.

    default = "local"

    [profiles.local]
    api = "http://127.0.0.1:4566/..."
    token_file = "local.token"

It is `$QUITTANCE_CONFIG`, or `~/.config/quittance/config.toml`. `QUITTANCE_PROFILE` chooses a profile, `QUITTANCE_API`
and `QUITTANCE_TOKEN` replace what the profile says. The file holds no secrets: they are in files that it names, which
only their owner may read.
"""

import contextlib
import json
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from quittance.cli.exits import UsageError
from quittance.cli.files import read_file
from quittance.cli.project import faults
from quittance.limits import MIB

CONFIG: Final = "QUITTANCE_CONFIG"
PROFILE: Final = "QUITTANCE_PROFILE"
API: Final = "QUITTANCE_API"
TOKEN: Final = "QUITTANCE_TOKEN"  # noqa: S105 - the name of a variable

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_Url = Annotated[str, StringConstraints(pattern=r"^https?://[!-~]+$", max_length=2_000)]


class Profile(BaseModel):
    """One platform: its URL, and how this user gets tokens for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    api: _Url
    token_file: str | None = None
    issuer: _Url | None = None
    client_id: str | None = None
    client_secret_file: str | None = None
    audience: str | None = None
    scope: str | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    default: str | None = None
    profiles: dict[str, Profile] = {}


@dataclass(frozen=True, slots=True)
class Platform:
    """The platform that this call uses: the name of its profile if it has one, and a token if the environment has."""

    name: str | None
    profile: Profile
    token: str | None

    @property
    def token_path(self) -> Path | None:
        """The file of the token; a relative path is relative to the configuration's folder."""
        return None if self.profile.token_file is None else path().parent / Path(self.profile.token_file).expanduser()


def path() -> Path:
    """The configuration file; it need not exist."""
    if given := os.environ.get(CONFIG):
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        return (Path(base) if base.startswith("/") else Path.home() / ".config") / "quittance" / "config.toml"
    except RuntimeError as error:
        raise UsageError("This user has no home folder, so there is no configuration.", f"Set {CONFIG}.") from error


def read() -> _File:
    """The content of the configuration file; nothing if there is none. Raises UsageError."""
    file = path()
    if not file.exists():
        return _File()
    try:
        return _File.model_validate(tomllib.loads(read_file(file, bytes_max=MIB).decode()))
    except ValidationError as error:
        raise UsageError(f"{file}: {faults(error)}.", "docs/howto/command-line.md says what a profile has.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not TOML: {error}.", "Correct the line that it names.") from error


def chosen(name: str | None = None) -> Platform | None:
    """The platform of a profile: the named one, that of the environment, or the default; None without any.

    Raises UsageError if the file is wrong or has no such profile.
    """
    url, token = os.environ.get(API), os.environ.get(TOKEN) or None
    file = read()
    name = name or os.environ.get(PROFILE) or (None if url else file.default)
    if name is None and url:
        return Platform(None, _of_url(url), token)
    if name is None:
        return None
    profile = file.profiles.get(name)
    if profile is None:
        known = ", ".join(sorted(file.profiles)) or "none"
        raise UsageError(
            f"{path()} has no profile {name!r}; it has: {known}.", "`quittance up` makes the profile local."
        )
    return Platform(name, profile.model_copy(update={"api": _of_url(url).api}) if url else profile, token)


def _of_url(url: str) -> Profile:
    try:
        return Profile(api=url)
    except ValidationError as error:
        raise UsageError(
            f"{API} is not a URL: {url}.", "It starts with https:// or, on this machine, http://."
        ) from error


def checked_name(name: str) -> str:
    """The name of a profile. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be the name of a profile.", "Use letters, digits, - and _.")
    return name


def from_environment() -> str | None:
    """The name of the profile that the environment chooses."""
    return os.environ.get(PROFILE) or None


def profile_of(values: dict[str, str]) -> Profile:
    """A profile of these values. Raises UsageError."""
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"The profile is not valid: {faults(error)}.", "quittance login --help") from error


def write(name: str, profile: Profile) -> Path:
    """Write a profile to the configuration file, and make it the default if there is none; the rest stays as it is.

    Raises UsageError.
    """
    checked_name(name)
    file, content = path(), read()
    text = read_file(file, bytes_max=MIB).decode() if file.exists() else ""
    header = f"[profiles.{name}]"
    values = profile.model_dump(exclude_none=True)
    section = [header, *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())]
    lines = _without(text.splitlines(), header)
    if content.default is None:
        lines = [f'default = "{name}"', *lines]
    if lines and lines[-1].strip():
        lines.append("")
    write_private(file, "\n".join([*lines, *section]) + "\n")
    return file


def _without(lines: list[str], header: str) -> list[str]:
    """The lines without the section of a header."""
    kept, inside = [], False
    for line in lines:
        if line.lstrip().startswith("["):
            inside = line.strip() == header
        if not inside:
            kept.append(line)
    return kept


def write_private(file: Path, text: str) -> None:
    """Write a file that only this user may read, at once. Raises UsageError."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(fresh, flags, 0o600), "w", encoding="utf-8") as sink:
            sink.write(text)
        fresh.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        mend = f"Check the permissions of {file.parent}, or set {CONFIG}."
        raise UsageError(f"{file} cannot be written: {error.strerror}.", mend) from error
