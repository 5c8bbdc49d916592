"""The platform that a command calls: its client, its failures as sentences, and the agents that users name."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Annotated, Final, TypeVar
from urllib.parse import urlsplit

import typer

from quittance.cli import output, profiles
from quittance.cli.exits import CliError, PlatformError, RefusedError, UnprovenError, UsageError
from quittance.cli.login import source_of
from quittance.cli.profiles import Platform, Profile
from quittance.cli.project import FILE_NAME, Project
from quittance.client import (
    ApiError,
    BondRequiredError,
    ChannelKey,
    Client,
    ConfigurationError,
    ConnectionFailedError,
    InsufficientFundsError,
    InvalidRequestError,
    LoginFailedError,
    LoginRequiredError,
    MissingScopeError,
    NotFoundError,
    NotProvenError,
    PublishFailedError,
    QuittanceError,
    Retries,
    StillRunningError,
    TicketInvalidError,
    TokenError,
    TokenSource,
    TooManyRequestsError,
    UnauthenticatedError,
    UploadFailedError,
    Verifier,
    format_credits,
)
from quittance.client import PlatformError as ServerError
from quittance.client._wire import host_of, is_loopback
from quittance.ledger.pricing import FlatTariff, MeteredTariff

_Item = TypeVar("_Item")
ProfileName = Annotated[
    str | None, typer.Option("--profile", "-p", help="The profile of the platform; by default the default profile.")
]
AgentName = Annotated[
    str | None,
    typer.Argument(metavar="[AGENT]", help="An agent's id, or the folder of its project; by default the current one."),
]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="The most lines to show.")]

RETRIES: Final = Retries(tries=4)
TIMEOUT: Final = "QUITTANCE_TIMEOUT"
_TIMEOUT_S: Final = 60.0
_AGENT_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_AGO: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
DEPOSIT_SCOPE: Final = "ledger:deposit"


@dataclass(frozen=True, slots=True)
class Remote:
    """A platform with this user's client for it."""

    client: Client
    platform: Platform

    @property
    def is_local(self) -> bool:
        """Whether the platform runs on this machine."""
        return is_loopback(urlsplit(self.platform.profile.api).hostname or "")


@contextlib.contextmanager
def connected(
    name: str | None, *, verify: Verifier | None = None, id_option: str = "", needs_token: bool = True
) -> Iterator[Remote]:
    """The platform of a profile, or of the default one. Raises every failure as a CliError with its mend.

    `id_option` is the option with which a repeated command does nothing twice.
    """
    platform = chosen(name)
    source = source_of(platform)
    if source is None and needs_token:
        named = f"The profile {platform.name!r}" if platform.name else f"{profiles.API} alone"
        raise UsageError(f"{named} has no token.", f"Sign in: quittance login{_of(platform)}, or set {profiles.TOKEN}.")
    with signed_in(platform, source, verify=verify, id_option=id_option) as found:
        yield found


@contextlib.contextmanager
def signed_in(
    platform: Platform, source: TokenSource | None, *, verify: Verifier | None = None, id_option: str = ""
) -> Iterator[Remote]:
    """A platform with a source of tokens. Raises every failure as a CliError."""
    try:
        with Client(
            platform.profile.api, token=source, retries=RETRIES, timeout=_timeout_s(), verify=verify or False
        ) as client:
            yield Remote(client, platform)
    except QuittanceError as error:
        raise as_cli_error(error, platform, id_option=id_option) from error


@contextlib.contextmanager
def spending(key: ChannelKey, *, verify: Verifier | None = None, pending: Path | None = None) -> Iterator[Remote]:
    """The platform of a channel's key, without a token. Raises every failure as a CliError.

    A ticket whose outcome is unknown is written to a file beside `pending`, so that it can be sent again.
    """
    named = next((name for name, found in profiles.read().profiles.items() if found.api.rstrip("/") == key.api), None)
    platform = Platform(named, Profile(api=key.api), None)
    try:
        with Client(key.api, retries=RETRIES, timeout=_timeout_s(), verify=verify or False) as client:
            yield Remote(client, platform)
    except QuittanceError as error:
        made = as_cli_error(error, platform)
        unknown = isinstance(error, ServerError | ConnectionFailedError | StillRunningError | TooManyRequestsError)
        if error.ticket is not None and pending is not None and unknown:
            kept = pending.with_name(f"{pending.name}.{error.ticket.number}.ticket")
            with contextlib.suppress(UsageError):  # a folder where nobody may write
                profiles.write_private(kept, error.ticket.to_json() + "\n")
                made.mend = f"It may have been carried out. The same ticket pays once: quittance channel send {kept}"
                made.mend += f" --channel {pending}"
        raise made from error


def chosen(name: str | None) -> Platform:
    """The platform of a profile, or of the default one. Raises UsageError."""
    platform = profiles.chosen(name)
    if platform is None:
        mend = "For a local cloud: quittance up, in a checkout. For another platform: quittance login --api URL."
        raise UsageError("No platform is configured.", mend)
    return platform


def _timeout_s() -> float:
    text = os.environ.get(TIMEOUT, "")
    if not text:
        return _TIMEOUT_S
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) == 0:
        raise UsageError(f"{TIMEOUT} is not valid: {text}.", "Write how many whole seconds one call may take.")
    return float(text)


def _of(platform: Platform) -> str:
    """The option that a command needs to use this profile again; nothing for the default one."""
    usual = platform.name is None or platform.name == (profiles.from_environment() or profiles.read().default)
    return "" if usual else f" --profile {platform.name}"


# Agents.


@dataclass(frozen=True, slots=True)
class Named:
    """An agent that the user named: its id, and its project if it was named by that."""

    agent_id: str
    project: Project | None


def agent_of(name: str | None, remote: Remote) -> Named:
    """The agent of an id or a project's folder; by default of the current project. Raises UsageError."""
    if name is not None and (Path(name) / FILE_NAME).is_file():
        return _of_project(Project.read(Path(name)), remote)
    if name is None or name in {".", ".."} or "/" in name:
        return _of_project(Project.find(None if name in {None, "."} else Path(str(name))), remote)
    if not _AGENT_ID.fullmatch(name):
        raise UsageError(f"{name!r} is no agent's id, and no folder with a {FILE_NAME}.", _FIND)
    return Named(name, None)


def _of_project(project: Project, remote: Remote) -> Named:
    key = remote.platform.name
    agent_id = project.file.agents.get(key) if key else None
    if agent_id is None:
        where = f"in the profile {key!r}" if key else f"on {remote.platform.profile.api}"
        mend = f"Publish it: quittance publish {project.folder}, or name an agent's id."
        raise UsageError(f"The agent {project.file.agent.name!r} is not published {where}.", mend)
    return Named(agent_id, project)


_FIND: Final = "Find agents with: quittance agents search WORDS. An id looks like agt_k5x2mfq7w3nzt4ab."


def price_text(tariff: FlatTariff | MeteredTariff) -> str:
    """A tariff in words."""
    if isinstance(tariff, FlatTariff):
        return f"{format_credits(tariff.price_micro)} for each run"
    rates = (
        (tariff.base_micro, "for each run"),
        (tariff.per_million_fuel_micro, "per million fuel"),
        (tariff.per_mib_memory_micro, "per MiB of memory"),
        (tariff.per_kib_output_micro, "per KiB of output"),
    )
    parts = [f"{format_credits(micro)} {unit}" for micro, unit in rates if micro] or ["nothing"]
    least = f", at least {format_credits(tariff.minimum_micro)}" if tariff.minimum_micro else ""
    return " + ".join(parts) + least


def moment(option: str, text: str | None) -> datetime | None:
    """A time on the command line: ISO 8601, or how long ago, such as 2h. Raises UsageError."""
    if text is None:
        return None
    if ago := _AGO.fullmatch(text):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        found = datetime.fromisoformat(text)
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        mend = "Write how long ago (30m, 2h, 7d), or a time such as 2026-01-01T00:00:00Z."
        raise UsageError(f"{option} is not valid: {text}.", mend) from error


def when(at_ms: int | None) -> str:
    """A time as tables show it."""
    if at_ms is None:
        return ""
    try:
        return datetime.fromtimestamp(at_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "?"


def first(items: Iterator[_Item], most: int) -> tuple[list[_Item], bool]:
    """The first items of a list, and whether there are more."""
    found = list(islice(items, most + 1))
    return found[:most], len(found) > most


def say_more(shown: int, *, more: bool, what: str) -> None:
    """Say that a list has nothing, or more than is shown."""
    if not shown:
        output.say(f"No {what}.")
    elif more:
        output.say(f"There are more {what}: --limit shows them.")


# Failures.


def as_cli_error(error: QuittanceError, platform: Platform, *, id_option: str = "") -> CliError:
    """A failure of the client as a sentence with its mend and its exit code."""
    made = _translated(error, platform)
    if error.call_id is not None:
        made.details.setdefault("id", error.call_id)
    unsure = isinstance(error, ServerError) or (isinstance(error, ConnectionFailedError) and error.sent)
    if unsure and id_option and error.call_id:
        again = f"It may have been carried out: repeated with {id_option} {error.call_id}, it is not done twice."
        made.mend = f"{made.mend} {again}".strip()
    return made


def _translated(error: QuittanceError, platform: Platform) -> CliError:
    if isinstance(error, ApiError):
        return _of_api(error, platform)
    if isinstance(error, PublishFailedError):
        problem = f"The version is {error.state}: {output.one_line(error.reason)}"
        return RefusedError(problem, _REJECTED, code=error.code, agent_id=error.agent_id)
    url, details, problem = platform.profile.api, {}, str(error)
    made: type[CliError] = PlatformError
    match error:
        case ConnectionFailedError():
            mend = _NETWORK_LOCAL if is_loopback(_host(url)) else _NETWORK
        case ConfigurationError():
            made, mend = UsageError, f"Correct it in {profiles.path()}, or in the options and the environment."
        case LoginRequiredError() | LoginFailedError():
            made, mend = RefusedError, f"quittance login{_of(platform)}"
        case TokenError():
            made, mend = UsageError, f"Sign in again: {_renewal(platform)}"
        case StillRunningError():
            mend = f"quittance result {error.task_id} --watch"
        case UploadFailedError():
            made, mend, details = RefusedError, "Publish again: a form is valid for a short time.", {"code": error.code}
        case NotProvenError():
            made, mend = UnprovenError, "Do not trust the answer; keep it, and report it with its receipt."
        case _:
            mend = f"Is {url} the address of a Quittance platform? quittance doctor checks it."
    return made(problem, mend, **details)


_REJECTED: Final = (
    "An earlier version stays active. `quittance test` and `quittance build` check what the platform checks."
)
_NETWORK: Final = "Try again; `quittance doctor` says what can be reached."
_NETWORK_LOCAL: Final = "Is the local cloud running? Start it with `quittance up`; `quittance doctor` checks the rest."


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _of_api(error: ApiError, platform: Platform) -> CliError:
    details = {"code": error.code, "status": error.status}
    fields = [f"{found['field']} {found['message']}" for found in error.errors]
    if isinstance(error, InvalidRequestError) and not error.members.get("type"):
        return UsageError(f"{'; '.join(fields) or error}.".replace("..", "."), "Correct it, and call again.", **details)
    if not error.code:
        return _not_of_api(error, platform, details)
    problem = str(error)
    if fields and not all(found["message"] in problem for found in error.errors):
        problem = f"{problem.rstrip('.')}: {'; '.join(fields)}"
    if error.errors:
        details["errors"] = error.errors
    problem = problem if problem.endswith((".", "!", "?")) else f"{problem}."
    if isinstance(error, ServerError | TooManyRequestsError):
        after = f" in {error.retry_after_s:g} s" if error.retry_after_s else " in a minute"
        return PlatformError(problem, f"Try again{after}.", **details)
    return RefusedError(problem, _mend(error, platform), **details)


def _not_of_api(error: ApiError, platform: Platform, details: dict[str, object]) -> CliError:
    """An error without a problem document: of a gateway or a proxy, or of a server that is no Quittance."""
    host = host_of(platform.profile.api)
    if error.status >= 500 or isinstance(error, TooManyRequestsError):
        after = f" in {error.retry_after_s:g} s" if error.retry_after_s else " in a minute"
        problem = f"{host} answered with the status {error.status} ({error.title}), again and again."
        return PlatformError(problem, f"Try again{after}. `quittance doctor` checks the platform.", **details)
    if isinstance(error, UnauthenticatedError):
        return RefusedError(f"{host} refused the token.", f"Sign in again: {_renewal(platform)}", **details)
    problem = f"{host} answered with the status {error.status} ({error.title}), and not as Quittance does."
    mend = f"Check the address {platform.profile.api} of {f'the profile {platform.name!r}' if platform.name else 'it'}."
    return PlatformError(problem, mend, **details)


def _mend(error: ApiError, platform: Platform) -> str:
    mend = _BY_CODE.get(error.code, "")
    match error:
        case UnauthenticatedError():
            mend = f"Sign in again: {_renewal(platform)}"
        case InsufficientFundsError():
            mend = _deposit(error, platform)
        case BondRequiredError():
            missing = max((error.required_micro or 0) - (error.bond_micro or 0), 0)
            mend = f"Add to your bond: quittance bond --add {format_credits(missing)}"
        case MissingScopeError() if error.required_scope == DEPOSIT_SCOPE:
            mend = "Whoever runs the platform makes deposits: state the account that `quittance balance` shows."
        case MissingScopeError():
            mend = f"Sign in with the scope {error.required_scope}: quittance login{_of(platform)} --scope ..."
        case TicketInvalidError() if error.numbers is not None:
            mend = "Top it up: quittance channel topup CHANNEL TICKETS. What cheap and failed tasks leave is free again"
            mend += " in about a minute."
        case NotFoundError():
            mend = f"Check the id and the profile ({platform.name or platform.profile.api})."
    return mend


_BY_CODE: Final = {
    "task_conflict": "Choose another --task-id: this one belongs to another request of yours.",
    "task_in_progress": "Wait for it: quittance result TASK --watch",
    "movement_conflict": "Choose another --id: this one belongs to another amount.",
    "agent_not_ready": "See its state: quittance agents show AGENT",
    "terms_changed": "The agent has changed since: see quittance agents show AGENT, and call again.",
    "version_not_published": "List the versions: quittance versions",
    "budget_too_low": "Give a larger --budget, or leave it out.",
    "input_not_accepted": "See what the agent takes: quittance agents show AGENT",
    "account_frozen": "Ask whoever runs the platform.",
    "ticket_invalid": "Check this machine's clock, and that the file is the key of this channel.",
    "ticket_used": "Let its payer write the free numbers into the file: quittance channel tickets FILE --sync",
    "ticket_too_small": "Give a smaller --budget: quittance channel show CHANNEL says what one task may cost.",
    "agent_not_allowed": "See which agents it pays: quittance channel show CHANNEL",
    "channel_closed": "Open another one: quittance channel open --help",
    "channel_expired": "Open another one: quittance channel open --help",
    "channel_conflict": "Name another file for another channel. Your channels: quittance channel list",
    "bond_in_use": "Retire the agents first, and wait until their tasks are settled.",
}


def _deposit(error: InsufficientFundsError, platform: Platform) -> str:
    if error.available_micro is None or error.required_micro is None:
        return "See your balance: quittance balance"
    missing = format_credits(max(error.required_micro - error.available_micro, 1))
    if is_loopback(_host(platform.profile.api)):
        return f"{missing} credits are missing: quittance deposit {missing}{_of(platform)}"
    return (
        f"{missing} credits are missing. Whoever runs the platform deposits them (scope {DEPOSIT_SCOPE}):"
        f" quittance deposit {missing} --account ACCOUNT, with the account of `quittance balance`."
    )


def _renewal(platform: Platform) -> str:
    if platform.token is not None:
        return f"set {profiles.TOKEN} to a new token."
    if platform.name == "local" and is_loopback(_host(platform.profile.api)):
        return "quittance up, in the checkout of the local cloud."
    if platform.token_path is not None and not platform.profile.client_id:
        return f"put a new token into {platform.token_path}, or: quittance login{_of(platform)}"
    return f"quittance login{_of(platform)}"
