"""`quittance login`, and where the tokens of a profile come from.

A profile names a file with a token that another program keeps fresh, or an issuer with a client id: with the file of a
client secret the program signs in by itself (client credentials), without it a person does (device flow). Tokens are
kept in files beside the configuration that only this user may read, and are never printed.
"""

import base64
import json as jsons
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from quittance.cli import options, output, profiles
from quittance.cli.exits import Exit, UsageError
from quittance.cli.files import STDIN, read_file, read_stdin
from quittance.cli.profiles import Platform, Profile
from quittance.client import (
    ClientCredentials,
    ConfigurationError,
    DeviceFlow,
    DevicePrompt,
    FileStore,
    FileToken,
    StaticToken,
    TokenError,
    TokenSource,
)
from quittance.client._retry import Sender
from quittance.client._wire import Flow
from quittance.limits import TOKEN_CHARS_MAX

_SECRET_BYTES_MAX: Final = 4_096
_SPARE_S: Final = 60.0
_DEVICE_SCOPE: Final = "openid"


def source_of(platform: Platform, prompt: Callable[[DevicePrompt], None] | None = None) -> TokenSource | None:
    """Where the tokens for a platform come from; None if its profile does not say. Raises UsageError."""
    profile = platform.profile
    try:
        if platform.token is not None:
            return StaticToken(platform.token)
        if profile.issuer is None or profile.client_id is None:
            return FileToken(platform.token_path) if platform.token_path is not None else None
        if profile.client_secret_file is not None:
            return KeptCredentials(platform)
        return DeviceFlow(
            issuer=profile.issuer,
            client_id=profile.client_id,
            scope=profile.scope or _DEVICE_SCOPE,
            audience=profile.audience,
            prompt=prompt,
            store=FileStore(kept_path(platform)),
        )
    except (ConfigurationError, TokenError) as error:
        raise UsageError(str(error), f"Correct the profile in {profiles.path()}, or {profiles.TOKEN}.") from error


def kept_path(platform: Platform) -> Path:
    """The file of a profile's sign-in."""
    return profiles.path().parent / f"{profiles.checked_name(platform.name or '')}.login"


class KeptCredentials(TokenSource):
    """Client credentials whose token is kept in a file for the next commands: issuers charge for each one."""

    def __init__(self, platform: Platform) -> None:
        profile = platform.profile
        if profile.issuer is None or profile.client_id is None or profile.client_secret_file is None:
            raise UsageError("The profile has no client credentials.", "quittance login --help")
        path = profiles.path().parent / Path(profile.client_secret_file).expanduser()
        secret = read_file(path, bytes_max=_SECRET_BYTES_MAX).decode(errors="replace").strip()
        self._store = FileStore(kept_path(platform))
        self._about = [profile.api, profile.issuer, profile.client_id, profile.scope, profile.audience]
        self._fresh = ClientCredentials(
            issuer=profile.issuer,
            client_id=profile.client_id,
            client_secret=secret,
            scope=profile.scope or "",
            audience=profile.audience,
        )
        self._refused: str | None = None

    def token(self, sender: Sender, deadline: float) -> Flow[str | None]:
        """The kept token while it is valid, else a new one."""
        kept = self._kept(sender.timing.now())
        if kept is not None and kept != self._refused:
            return kept
        token = yield from self._fresh.token(sender, deadline)
        if token is not None and expiry(token) is not None:
            self._store.save(jsons.dumps({"about": self._about, "access_token": token}))
        return token

    def renew(self, refused: str | None) -> bool:
        """Forget a token that the API refused."""
        self._refused = refused
        return self._fresh.renew(refused)

    def _kept(self, now: float) -> str | None:
        try:
            found = jsons.loads(self._store.load() or "{}")
            token = found["access_token"] if found["about"] == self._about else None
        except (ValueError, KeyError, TypeError):
            return None
        if not isinstance(token, str):
            return None
        ends = expiry(token)
        return token if ends is not None and ends - _SPARE_S > now else None


def expiry(token: str) -> float | None:
    """When a JWT expires, by its own word; None if it is another kind of token."""
    try:
        body = token.split(".")[1]
        claims = jsons.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return float(claims["exp"])
    except (IndexError, ValueError, KeyError, TypeError, OverflowError):
        return None


def login(
    profile: Annotated[
        str | None,
        typer.Option("--profile", "-p", help="The profile, which --api makes; by default the default."),
    ] = None,
    api: Annotated[str | None, typer.Option(help="The platform's URL, as its operator states it.")] = None,
    issuer: Annotated[str | None, typer.Option(help="The URL of the issuer of tokens.")] = None,
    client_id: Annotated[str | None, typer.Option(help="The id of this program at the issuer.")] = None,
    client_secret_file: Annotated[
        Path | None, typer.Option(help="A file with the client's secret: sign in as a program, without a person.")
    ] = None,
    audience: Annotated[str | None, typer.Option(help="The audience to request, if the issuer wants one.")] = None,
    scope: Annotated[str | None, typer.Option(help="The scopes to request, separated by spaces.")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="A file with a token that another program keeps fresh; - reads one from standard input."),
    ] = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Sign in to a platform, and make or change its profile.

    With an issuer and a client id you sign in with any browser (device flow); with --client-secret-file the program
    signs in by itself; with --token-file it takes the token from there. Tokens are kept where only you can read them.
    """
    from quittance.cli import remote

    given = {
        "issuer": issuer,
        "client_id": client_id,
        "client_secret_file": None if client_secret_file is None else str(client_secret_file.expanduser().absolute()),
        "audience": audience,
        "scope": scope,
    }
    name, wanted = _wanted(profile, api, {key: value for key, value in given.items() if value is not None}, token_file)
    platform = Platform(name, wanted, None)
    source = source_of(platform, _prompt)
    if source is None:
        mend = "Give --issuer and --client-id (and --client-secret-file for a program), or --token-file."
        raise UsageError(f"The profile {name!r} does not say how to sign in.", mend)
    with remote.signed_in(platform, source) as found:
        account = found.client.balance().account_id
    file = profiles.write(name, wanted)
    if output.mode.json:
        output.document({"profile": name, "api": wanted.api, "account_id": account, "config": str(file)})
    output.result(f"Signed in as {account} at {wanted.api}: the profile {name} in {file}.")
    return Exit.DONE


def _wanted(
    profile: str | None, api: str | None, given: dict[str, str], token_file: Path | None
) -> tuple[str, Profile]:
    """The name and the new content of the profile. Raises UsageError."""
    content = profiles.read()
    name = profiles.checked_name(profile or profiles.from_environment() or content.default or "default")
    known = content.profiles.get(name)
    if known is None and api is None:
        raise UsageError(f"There is no profile {name!r} yet.", f"Make it: quittance login --profile {name} --api URL")
    values: dict[str, str] = known.model_dump(exclude_none=True) if known else {}
    if token_file is not None and given:
        raise UsageError("--token-file and options of an issuer are both given.", "A profile gets tokens in one way.")
    if token_file is not None:
        values = {"api": values.get("api", ""), "token_file": _token_file(name, token_file)}
    elif given:
        values.pop("token_file", None)
    values |= given | ({"api": api} if api is not None else {})
    return name, profiles.profile_of(values)


def _token_file(name: str, path: Path) -> str:
    if path != STDIN:
        return str(path.expanduser().absolute())
    token = read_stdin(bytes_max=TOKEN_CHARS_MAX).decode(errors="replace").strip()
    try:
        StaticToken(token)
    except TokenError as error:
        raise UsageError(str(error), "Pipe a token: it is one word.") from error
    profiles.write_private(profiles.path().parent / f"{name}.token", token + "\n")
    return f"{name}.token"


def _prompt(todo: DevicePrompt) -> None:
    """Say what to do; also with --quiet, for without it nobody can sign in."""
    minutes = max(1, round(todo.expires_in_s / 60))
    where = output.printable(todo.uri_complete or todo.uri)
    sys.stderr.write(f"Open {where}\nand confirm the code {output.printable(todo.code)} within {minutes} minutes.\n")
    sys.stderr.flush()
