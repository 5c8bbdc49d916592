"""Exit codes of the command line, and the errors that end a command.

    CliError
    ├── UsageError        2  wrong options, a file that cannot be read or is not what it must be
    ├── RefusedError      3  the platform refused the request (problem+json)
    ├── PlatformError     4  no network, no answer, or a failure of the platform or of this machine
    └── UnprovenError     5  a receipt, a log or a replay does not prove what it must

Code 1 is not an error of the command: the agent or the task failed, and the answer says why.
"""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes, the same for every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    PLATFORM = 4
    UNPROVEN = 5
    INTERRUPTED = 130
    CLOSED_PIPE = 141


class CliError(Exception):
    """Ends a command: what is wrong and where, and what to do. `details` go into the JSON of `--json`."""

    exit_code = Exit.PLATFORM

    def __init__(self, problem: str, mend: str = "", **details: object) -> None:
        super().__init__(problem)
        self.problem = problem
        self.mend = mend
        self.details = details


class UsageError(CliError):
    """The call is wrong, or a file is."""

    exit_code = Exit.USAGE


class RefusedError(CliError):
    """The platform refused the request as it is."""

    exit_code = Exit.REFUSED


class PlatformError(CliError):
    """The network, the platform or this machine failed; the same call may succeed later."""

    exit_code = Exit.PLATFORM


class UnprovenError(CliError):
    """Something is not proven."""

    exit_code = Exit.UNPROVEN
