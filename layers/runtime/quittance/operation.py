"""An operation: what an operator did to the platform, as it is recorded."""

from dataclasses import dataclass
from enum import StrEnum


class Action(StrEnum):
    """What an operator can do. The values are shown."""

    RETIRE = "retire"
    FREEZE = "freeze"
    UNFREEZE = "unfreeze"
    PAUSE = "pause"
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class Operation:
    """The record of one operation. `target` is an agent, an account, or `funding`."""

    action: Action
    target: str
    by: str
    reason: str
    at_ms: int
    operation_id: str = ""
