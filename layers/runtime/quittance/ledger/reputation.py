"""An agent's standing: a summary of its receipts in one document of bounded size. Pure, integers only.

`fold` adds ratings, one from each receipt, to a standing. `score_tenths` computes a score from 0.0 to 100.0 by one of
ALGORITHMS. docs/reputation.md has the reasons, the formulae, and what a ring of fake payers gains.

Apart from the reference score, a standing depends only on the set of receipts, not on their order or batches. It
consists of sums, capped sums, maxima, and the payers with the smallest keys.
"""

import hashlib
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise
from math import isqrt
from typing import Any, Final

from quittance.ledger.balances import bond_account
from quittance.run import Fault, Outcome

START_TENTHS: Final = 500
SCORE_TENTHS_MAX: Final = 1_000
_SUCCESS_TENTHS: Final = 20
_EFFICIENCY_TENTHS: Final = 5
_EFFICIENT_BELOW_MS: Final = 1_000
_FAILURE_TENTHS: Final = -50

# What a standing keeps. Together these limits bound the size of the document: see STANDING_BYTES_MAX.
STANDING_BYTES_MAX: Final = 64 * 1024
PERIOD_MS: Final = 30 * 24 * 60 * 60 * 1_000
PERIODS_MAX: Final = 8
MEASURED_PERIODS_MAX: Final = 2  # prices and times are kept for these only, because tariffs change
PAYERS_MAX: Final = 128  # kept for each period, and for the count of distinct payers
_STAKE_MICRO: Final = 1_000  # the unit of a stake
_STAKE_MAX: Final = 999_999_999
_COUNT_MAX: Final = 999_999  # in one bucket of a histogram
_KEY_HEX: Final = 10

# Parameters of the robust score.
FEE_UNIT_MICRO: Final = 10_000  # a payer that has paid fees of u units has ln(1 + u) votes
FEE_MICRO_MAX: Final = 20 * FEE_UNIT_MICRO  # of one payer: at most ln 21 = 3.04 votes, whatever it pays
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode
_BITS: Final = 32  # binary places of a vote
_ONE: Final = 1 << _BITS
_LN_2: Final = 2_977_044_472  # ln 2
_Z: Final = 7_064_592_534  # 1.6448536270: 5 % of a normal distribution lie above it
_COMPLAINT: Final = _ONE // 8  # the most votes of a payer that has paid no fee; they count against an agent only
_COMPLAINTS_PART: Final = 3  # complaints of non-payers count at most the votes of payers, divided by this
_DECAY_BITS: Final = 16
_DECAY: Final = (65_536, 46_341, 32_768, 23_170, 16_384, 11_585, 8_192, 5_793)  # 2^(-age / 2): half in two periods


def delta_tenths(outcome: Outcome, fault: Fault, *, wall_ms: int) -> int:
    """How one outcome changes the score: success +2.0 (+0.5 under a second), the agent's fault -5.0, otherwise 0."""
    if outcome is Outcome.SUCCEEDED:
        return _SUCCESS_TENTHS + (_EFFICIENCY_TENTHS if wall_ms < _EFFICIENT_BELOW_MS else 0)
    return _FAILURE_TENTHS if fault is Fault.AGENT else 0


def moved_tenths(score_tenths: int, delta: int) -> int:
    """The reference score after one more outcome. Clamping makes it depend on the order, which is the log's."""
    return min(SCORE_TENTHS_MAX, max(0, score_tenths + delta))


@dataclass(frozen=True, slots=True)
class Rating:
    """What one receipt contributes to a standing. `fee_micro` is the commission only: compute gives no votes."""

    agent: str
    user: str
    owner: str
    outcome: Outcome
    fault: Fault
    paid_micro: int
    fee_micro: int
    budget_micro: int
    wall_ms: int
    settled_ms: int
    reputation_tenths: int


def rating(claims: Mapping[str, Any]) -> Rating:
    """The rating in a verified receipt. Raises KeyError or ValueError if these are not the claims of a receipt."""
    return Rating(
        agent=claims["agent"],
        user=claims["user"],
        owner=claims["owner"],
        outcome=Outcome(claims["outcome"]),
        fault=Fault(claims["fault"]),
        paid_micro=int(claims["paid"]),
        fee_micro=int(claims["fee"]) - int(claims.get("compute", 0)),
        budget_micro=int(claims["budget"]),
        wall_ms=claims["meter"]["wall_ms"],
        settled_ms=claims["settled_at"],
        reputation_tenths=claims["reputation_tenths"],
    )


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values: exact below 32, then 16 buckets a power of two, each at most 1/16 of its value wide."""

    counts: Mapping[int, int] = field(default_factory=dict)
    least: int | None = None
    greatest: int | None = None

    @property
    def total(self) -> int:
        """The number of values."""
        return sum(self.counts.values())

    def plus(self, other: "Histogram") -> "Histogram":
        """The sum of two histograms. The count of a bucket is capped at 999,999."""
        counts = dict(self.counts)
        for bucket, count in other.counts.items():
            counts[bucket] = min(_COUNT_MAX, counts.get(bucket, 0) + count)
        ends = [end for end in (self.least, self.greatest, other.least, other.greatest) if end is not None]
        return Histogram(counts, min(ends, default=None), max(ends, default=None))

    def quantile(self, percent: int) -> int:
        """The smallest v such that at least `percent` % of all values are at most v, or up to 1/16 more.

        The result is the upper end of that value's bucket, at most the greatest value. Raises ValueError if there are
        no values.
        """
        if self.greatest is None:
            msg = "a histogram without values has no quantile"
            raise ValueError(msg)
        rank = -(-self.total * percent // 100)
        buckets = sorted(self.counts)
        reached = accumulate(self.counts[bucket] for bucket in buckets)
        bucket = next(bucket for bucket, count in zip(buckets, reached, strict=True) if count >= rank)
        return min(_bucket_end(bucket), self.greatest)


def histogram(values: Iterable[int]) -> Histogram:
    """The histogram of non-negative values."""
    known = list(values)
    counts = Counter(map(_bucket, known))
    return Histogram().plus(Histogram(counts, min(known, default=None), max(known, default=None)))


@dataclass(frozen=True, slots=True)
class Payer:
    """One payer in one period: the fees it paid, and its budgets by whether the agent succeeded or failed.

    Fees are in micro-credits, budgets in thousandths of a credit. Each sum is capped.
    """

    fee_micro: int = 0
    served: int = 0
    failed: int = 0

    def plus(self, rating: Rating) -> "Payer":
        """The payer with one more rating."""
        succeeded = rating.outcome is Outcome.SUCCEEDED
        stake = -(-rating.budget_micro // _STAKE_MICRO)
        return Payer(
            min(FEE_MICRO_MAX, self.fee_micro + rating.fee_micro),
            min(_STAKE_MAX, self.served + stake * succeeded),
            min(_STAKE_MAX, self.failed + stake * (not succeeded)),
        )


@dataclass(frozen=True, slots=True)
class Period:
    """Thirty days of an agent: its payers by key, and the prices and times of its released runs."""

    payers: Mapping[str, Payer] = field(default_factory=dict)
    price_micro: Histogram = field(default_factory=Histogram)
    wall_ms: Histogram = field(default_factory=Histogram)
    _text: list[str] = field(init=False, default_factory=list, compare=False, repr=False)

    @property
    def text(self) -> str:
        """The period as JSON. It is kept, because a period that is over does not change any more."""
        if not self._text:
            payers = {key: _numbers(payer) for key, payer in sorted(self.payers.items())}
            self._text.append(
                _to_json({"payers": payers, "price": _flat(self.price_micro), "wall": _flat(self.wall_ms)})
            )
        return self._text[0]


@dataclass(frozen=True, slots=True)
class Standing:
    """Everything that is kept of an agent's receipts. The default is the standing of an agent without receipts.

    `reference_tenths` is the reference score. `payer_keys` are the smallest keys of all accounts that ever paid.
    `periods` are the newest periods by number. They exclude runs that the owner paid for and failures of the platform.
    """

    reference_tenths: int = START_TENTHS
    outcomes: int = 0
    successes: int = 0
    failures: int = 0
    payer_keys: tuple[str, ...] = ()
    periods: Mapping[int, Period] = field(default_factory=dict)

    @property
    def success_permille(self) -> int | None:
        """Successes as thousandths of successes and failures, rounded down; None if there are neither."""
        decided = self.successes + self.failures
        return 1_000 * self.successes // decided if decided else None

    @property
    def distinct_payers(self) -> int:
        """How many users have paid, without the owner: exact below 128, then an estimate with an error of about 9 %.

        The estimate is (k - 1) / U, where U is the k-th smallest key as a fraction of the key space (Bar-Yossef et al.
        2002; unbiased, Beyer et al. 2007).
        """
        if len(self.payer_keys) < PAYERS_MAX:
            return len(self.payer_keys)
        return (PAYERS_MAX - 1) * 16**_KEY_HEX // int(self.payer_keys[-1], 16)


def fold(standing: Standing, ratings: Iterable[Rating]) -> Standing:
    """The standing after more ratings of its agent. Each receipt must be folded exactly once."""
    batch = list(ratings)
    reference_tenths = standing.reference_tenths
    for moved in batch:
        reference_tenths = moved_tenths(reference_tenths, moved.reputation_tenths)
    counted = [(_key(rating), rating) for rating in batch if _is_decided(rating) and not _is_own(rating)]
    paying = {key for key, rating in counted if rating.paid_micro + rating.fee_micro}.difference(standing.payer_keys)
    return Standing(
        reference_tenths=reference_tenths,
        outcomes=standing.outcomes + len(batch),
        successes=standing.successes + sum(rating.outcome is Outcome.SUCCEEDED for rating in batch),
        failures=standing.failures + sum(rating.fault is Fault.AGENT for rating in batch),
        payer_keys=tuple(heapq.nsmallest(PAYERS_MAX, paying.union(standing.payer_keys)))
        if paying
        else standing.payer_keys,
        periods=_periods(standing.periods, counted),
    )


def score_tenths(standing: Standing, algorithm: str) -> int:
    """The score by one of ALGORITHMS, in tenths. Raises KeyError for an unknown name."""
    return ALGORITHMS[algorithm](standing)


@dataclass(frozen=True, slots=True)
class Spread:
    """The exact minimum and maximum of some values; the median and the 95th percentile by `Histogram.quantile`."""

    least: int
    p50: int
    p95: int
    greatest: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What recent runs of an agent cost and how long they took."""

    runs: int
    price_micro: Spread
    wall_ms: Spread


def estimate(standing: Standing) -> Estimate | None:
    """Price (owner's share plus fee) and time of the runs released in the newest two periods; None without any."""
    price, wall = Histogram(), Histogram()
    for period in standing.periods.values():
        price, wall = price.plus(period.price_micro), wall.plus(period.wall_ms)
    return Estimate(price.total, _spread(price), _spread(wall)) if price.total else None


def serialise(standing: Standing) -> str:
    """The standing as JSON, at most STANDING_BYTES_MAX long. Equal standings give the same text."""
    counts = _to_json(
        {
            "v": 1,
            "reference": standing.reference_tenths,
            "outcomes": standing.outcomes,
            "successes": standing.successes,
            "failures": standing.failures,
            "payers": standing.payer_keys,
        }
    )
    periods = ",".join(f'"{number}":{period.text}' for number, period in sorted(standing.periods.items()))
    return f'{counts[:-1]},"periods":{{{periods}}}}}'


def parse(text: str) -> Standing:
    """The standing in a text that `serialise` wrote. Raises ValueError for an unknown version."""
    document = json.loads(text)
    if document["v"] != 1:
        msg = f"a standing of version {document['v']} is not supported"
        raise ValueError(msg)
    return Standing(
        reference_tenths=document["reference"],
        outcomes=document["outcomes"],
        successes=document["successes"],
        failures=document["failures"],
        payer_keys=tuple(document["payers"]),
        periods={
            int(number): Period(
                {key: Payer(*numbers) for key, numbers in period["payers"].items()},
                _unflat(period["price"]),
                _unflat(period["wall"]),
            )
            for number, period in document["periods"].items()
        },
    )


# Parts of a standing.


def _is_decided(rating: Rating) -> bool:
    """Whether a receipt says anything about the agent's work."""
    return rating.outcome is Outcome.SUCCEEDED or rating.fault is Fault.AGENT


def _is_own(rating: Rating) -> bool:
    """Whether the owner paid for the run of its own agent, from its account or its bond."""
    return rating.user in {rating.owner, bond_account(rating.owner)}


def _key(rating: Rating) -> str:
    """A payer's key. It differs from agent to agent, so that no account is among the smallest keys of every agent."""
    named = f"{len(rating.agent)}:{rating.agent}{rating.user}".encode()
    return hashlib.sha256(named).hexdigest()[:_KEY_HEX]


def _periods(known: Mapping[int, Period], ratings: Iterable[tuple[str, Rating]]) -> dict[int, Period]:
    """The periods with more ratings, each with its payer's key."""
    added: dict[int, list[tuple[str, Rating]]] = {number: [] for number in known}
    for key, rating in ratings:
        added.setdefault(rating.settled_ms // PERIOD_MS, []).append((key, rating))
    newest = max(added, default=0)
    return {
        number: _period(known.get(number, Period()), added[number], measured=newest - number < MEASURED_PERIODS_MAX)
        for number in added
        if newest - number < PERIODS_MAX
    }


def _period(known: Period, ratings: Sequence[tuple[str, Rating]], *, measured: bool) -> Period:
    if not ratings and (measured or not known.price_micro.counts):
        return known
    payers = known.payers
    released = []
    if ratings:
        more = dict(payers)
        for key, rating in ratings:
            more[key] = more.get(key, Payer()).plus(rating)
            if rating.outcome is Outcome.SUCCEEDED:
                released.append(rating)
        # A key that is among the smallest now has been since its first receipt, so no rating of it was dropped.
        payers = {key: more[key] for key in heapq.nsmallest(PAYERS_MAX, more)} if len(more) > PAYERS_MAX else more
    if not measured:
        return Period(payers)
    prices = histogram(rating.paid_micro + rating.fee_micro for rating in released)
    return Period(payers, known.price_micro.plus(prices), known.wall_ms.plus(histogram(e.wall_ms for e in released)))


def _numbers(payer: Payer) -> tuple[int, int, int]:
    return payer.fee_micro, payer.served, payer.failed


def _bucket(value: int) -> int:
    octave = max(0, value.bit_length() - 5)
    return 16 * octave + (value >> octave)


def _bucket_end(bucket: int) -> int:
    octave = max(0, bucket // 16 - 1)
    return (bucket - 16 * octave + 1 << octave) - 1


def _spread(values: Histogram) -> Spread:
    return Spread(values.least or 0, values.quantile(50), values.quantile(95), values.greatest or 0)


def _flat(values: Histogram) -> list[int]:
    """Minimum, maximum, then for each bucket its distance from the previous bucket and its count."""
    if values.least is None or values.greatest is None:
        return []
    buckets = sorted(values.counts)
    gaps = [after - before for before, after in pairwise([0, *buckets])]
    pairs = [(gap, values.counts[bucket]) for gap, bucket in zip(gaps, buckets, strict=True)]
    return [values.least, values.greatest, *chain.from_iterable(pairs)]


def _unflat(flat: list[int]) -> Histogram:
    if not flat:
        return Histogram()
    least, greatest, *pairs = flat
    return Histogram(dict(zip(accumulate(pairs[::2]), pairs[1::2], strict=True)), least, greatest)


# Algorithms.


def _reference(standing: Standing) -> int:
    return standing.reference_tenths


def _robust(standing: Standing) -> int:
    """Payers vote, weighted by the fees they paid, for or against by how they were served: docs/reputation.md."""
    won = lost = complaints = 0
    for voter in _voters(standing.periods):
        votes = _ln((FEE_UNIT_MICRO << _DECAY_BITS) + voter.fee, FEE_UNIT_MICRO << _DECAY_BITS)
        stake = voter.served + voter.failed
        won += votes * voter.served // stake
        lost += votes * voter.failed // stake
        unpaid = max(0, (_COMPLAINT * voter.fresh >> _DECAY_BITS) - votes)
        complaints += unpaid * voter.failed // stake
    return _wilson_tenths(won, lost + min(complaints, (won + lost) // _COMPLAINTS_PART))


ALGORITHMS: Final[Mapping[str, Callable[[Standing], int]]] = {"reference": _reference, "robust": _robust}
"""The algorithms by name. `reference` depends on the order of the log, `robust` does not."""


@dataclass(slots=True)
class _Voter:
    """A payer over all periods, each weighted by its age, in units of 2^-16."""

    fee: int = 0
    served: int = 0
    failed: int = 0
    fresh: int = 0


def _voters(periods: Mapping[int, Period]) -> Iterable[_Voter]:
    newest = max(periods, default=0)
    voters: dict[str, _Voter] = defaultdict(_Voter)
    for number, period in periods.items():
        weight = _DECAY[newest - number]
        for key, payer in period.payers.items():
            voter = voters[key]
            voter.fee = min(FEE_MICRO_MAX << _DECAY_BITS, voter.fee + weight * payer.fee_micro)
            voter.served += weight * payer.served
            voter.failed += weight * payer.failed
            voter.fresh = max(voter.fresh, weight)
    return voters.values()


def _ln(numerator: int, denominator: int) -> int:
    """The natural logarithm of a ratio of at least 1, times 2^32, rounded down.

    Computed bit by bit, because squaring a number doubles its binary logarithm (Turner 2010, "A fast binary logarithm
    algorithm").
    """
    whole = (numerator // denominator).bit_length() - 1
    rest = (numerator << _BITS) // (denominator << whole)  # at least 1 and below 2
    log2 = whole
    for _ in range(_BITS):
        rest = rest * rest >> _BITS
        carry = rest >> _BITS + 1
        rest >>= carry
        log2 = log2 << 1 | carry
    return log2 * _LN_2 >> _BITS


def _wilson_tenths(won: int, lost: int) -> int:
    """The one-sided 95 % lower confidence bound of the share of `won`, in thousandths (Wilson 1927).

    Both are in units of 2^-32. With n = won + lost: (won + z²/2 - z·√(won·lost/n + z²/4)) / (n + z²).
    """
    total = won + lost
    z_squared = _Z * _Z >> _BITS
    root = isqrt(won * lost // max(1, total) + z_squared // 4 << _BITS)
    return max(0, SCORE_TENTHS_MAX * (won + z_squared // 2 - (_Z * root >> _BITS)) // (total + z_squared))
