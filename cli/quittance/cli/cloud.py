"""`quittance up` and `quittance down`: the local cloud of a checkout, and the profile `local` that calls it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from quittance.cli import options, output, profiles
from quittance.cli.exits import Exit, PlatformError, UsageError
from quittance.cli.files import read_file
from quittance.cli.profiles import Profile
from quittance.limits import MIB

PROFILE: Final = "local"
SUBJECT: Final = "alice"
"""The user of the local cloud to whom `make up` gives credits."""

_SCOPES: Final = "ledger:deposit"  # on this cloud everybody is the bank
_TOKEN_DAYS: Final = 30
_BOND: Final = 2
_CREDITS: Final = 10
_ONCE: Final = "quittance-up"  # the id of both movements, so that a second start adds nothing
_NEXT: Final = (
    "quittance new hello --lang c",
    "quittance publish hello",
    'quittance call hello --text "to be or not to be"',
    "quittance balance       # quittance deposit 5 adds credits here",
)
_MARKS: Final = ("local/__main__.py", "template.yaml")


def checkout() -> Path:
    """The checkout that the current folder is in. Raises UsageError."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if all((folder / mark).is_file() for mark in _MARKS):
            return folder
    mend = "Go to a checkout of Quittance (the folder with template.yaml), or use a deployed platform: quittance login."
    raise UsageError("The local cloud is started from a checkout, and this folder is in none.", mend)


def up(
    user: Annotated[str, typer.Option(help="The user whose token the profile gets.")] = SUBJECT,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,
) -> int:
    """Start the local cloud of this checkout, and write the profile `local` that calls it."""
    folder = checkout()
    _local(folder, "up", quiet=quiet)
    api = _api(folder)
    ttl = _TOKEN_DAYS * 24 * 3_600
    token = _local(folder, "token", "--scope", _SCOPES, "--ttl", str(ttl), "--", user, quiet=True).strip()
    token_file = profiles.path().parent / f"{PROFILE}.token"
    profiles.write_private(token_file, token + "\n")
    file = profiles.write(PROFILE, Profile(api=api, token_file=token_file.name))
    _give(user)
    if output.mode.json:
        output.document({"profile": PROFILE, "api": api, "user": user, "config": str(file)})
    output.result(f"The local cloud is up: {api}")
    output.result(f"Profile {PROFILE} in {file}, as the user {user} for {_TOKEN_DAYS} days. quittance down stops it.")
    other = profiles.read().default != PROFILE
    output.result("Next:")
    if other:
        output.result(f"    export {profiles.PROFILE}={PROFILE}   # another profile is the default")
    for line in _NEXT:
        output.result(f"    {line}")
    return Exit.DONE


def _give(user: str) -> None:
    """Give the user what an author and a payer need, once on each cloud: a bond, and credits. Raises PlatformError."""
    from quittance.cli import remote

    with remote.connected(PROFILE) as found, output.progress(f"a bond and credits for {user}"):
        amount = _BOND if user == SUBJECT else _CREDITS + _BOND  # the cloud's own start has given alice credits
        found.client.deposit(amount, deposit_id=_ONCE)
        found.client.move_bond(_BOND, bond_id=_ONCE)


def down(
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,
) -> int:
    """Stop the local cloud of this checkout."""
    text = _local(checkout(), "down", quiet=quiet).strip()
    if output.mode.json:
        output.document({"stopped": text == "stopped"})
    output.result("The local cloud is stopped." if text == "stopped" else "No local cloud was running.")
    return Exit.DONE


def _local(folder: Path, *words: str, quiet: bool) -> str:
    """Run a command of the local cloud, its progress to stderr; return what it prints. Raises PlatformError."""
    command = [sys.executable, "-m", "local", *words]
    progress = subprocess.PIPE if quiet else None
    try:
        done = subprocess.run(  # noqa: S603 - the checkout's own command
            command, cwd=folder, stdout=subprocess.PIPE, stderr=progress, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise PlatformError(f"{folder} cannot run its local cloud: {error.strerror}.") from error
    if done.returncode:
        said = output.one_line(done.stderr)[-500:] if done.stderr else "its reason is above"
        raise PlatformError(
            f"The local cloud did not do it: {said}.", f"Look into {folder}/.local/logs; quittance doctor."
        )
    return done.stdout


def _api(folder: Path) -> str:
    path = folder / ".local" / "stack.json"
    try:
        stack = json.loads(read_file(path, bytes_max=MIB))
        return str(stack["api_url"])
    except (ValueError, KeyError, TypeError) as error:
        raise PlatformError(f"{path} does not say where the local cloud is.", "Start it again: quittance up") from error
