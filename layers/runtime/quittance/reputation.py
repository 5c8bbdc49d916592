"""An agent's standing: a score from 0.0 to 100.0, held in tenths, moved by settled escrows alone."""

from typing import Final

from quittance.run import Fault, Outcome

START_TENTHS: Final = 500
SCORE_TENTHS_MAX: Final = 1_000
_SUCCESS_TENTHS: Final = 20
_EFFICIENCY_TENTHS: Final = 5
_EFFICIENT_BELOW_MS: Final = 1_000
_FAILURE_TENTHS: Final = -50


def delta_tenths(outcome: Outcome, *, wall_ms: int) -> int:
    """How far one outcome moves the score: success +2.0 (+0.5 under a second), agent's fault -5.0, else nothing."""
    if outcome is Outcome.SUCCEEDED:
        return _SUCCESS_TENTHS + (_EFFICIENCY_TENTHS if wall_ms < _EFFICIENT_BELOW_MS else 0)
    return _FAILURE_TENTHS if outcome.fault is Fault.AGENT else 0


def fold(score_tenths: int, delta: int) -> int:
    """The score after one more outcome. Clamping makes the order matter: the sweep's order counts."""
    return min(SCORE_TENTHS_MAX, max(0, score_tenths + delta))
