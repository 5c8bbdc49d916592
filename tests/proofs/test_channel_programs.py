"""Random programs of channels together with all other movements, on the real store and on pure models of both.

Deposits, withdrawals, bonds, plain tasks, sweeps and the log are those of test_model.py; they share alice's balance
with her channel. The actors of the channel keep what they have read, however old it is: a runner spends a number that
its own reading of the channel allows, also long after the channel is closed.
"""

from collections import Counter
from collections.abc import Callable
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from quittance.ledger.balances import bond_account
from quittance.ledger.escrow import State
from quittance.ledger.journal import PayoutState
from quittance.store import channels as channels_store
from tests.depth import LONG
from tests.proofs.channel_model import BOND, CHANNEL_EXPIRY, CLOSE_MS, LEASE_MS, LIFE_MS, TICKET, Both
from tests.proofs.test_model import ALL_OWNERS, LedgerMachine

CHUNK = 4  # numbers that one count reads: small channels are counted in several steps
PROGRAMS, STEPS = (1_000, 80) if LONG else (60, 60)
SEEN = st.integers(0, 40)
NUMBERS = st.integers(1, 10)
COUNTS = st.sampled_from([1, 1, 2, 3])
REQUESTS = st.sampled_from(["r", "r", "other"])
PRICES = st.sampled_from([1, 5_000, TICKET])
LATER = st.sampled_from([-LEASE_MS, 0, 0, 0, LEASE_MS, LIFE_MS])  # clocks differ
SIDES = st.sampled_from(["", "agent", "task", "agent,task"])
FENCES = st.integers(1, 3)
WHO = st.sampled_from(["itself", "agent", "task"])


class ChannelMachine(LedgerMachine):
    def __init__(self) -> None:
        super().__init__()
        self.balances = Counter(self.balances)
        self.both = Both(chunk=CHUNK, world=self.world, money=self.balances)
        self.numbers = 0
        self.deposit("oskar", 0, 100_000)
        self.move_bond("oskar", 0, 50_000)
        self.both.do("open", 20, CHANNEL_EXPIRY)
        self.both.do("look")

    def reading(self, seen: int) -> int:
        return seen % len(self.both.book.seen)

    def allowed(self, seen: int, last: int) -> bool:
        """Whether a runner that has read the channel so spends the numbers up to `last`."""
        old = self.both.book.seen[self.reading(seen)]
        return old.state == "open" and last <= old.granted

    @rule(tickets=st.sampled_from([20, 21]))
    def open_channel(self, tickets: int) -> None:
        self.both.do("open", tickets, CHANNEL_EXPIRY)

    @rule()
    def look(self) -> None:
        self.both.do("look")

    @rule(topup=st.integers(0, 2), tickets=st.integers(1, 3))
    def top_up(self, topup: int, tickets: int) -> None:
        self.both.do("top_up", str(topup), tickets * TICKET, self.now)

    @rule(seen=SEEN, last=st.integers(1, 40))
    def grant(self, seen: int, last: int) -> None:
        self.both.do("grant", self.reading(seen), last)

    @rule()
    def contest(self) -> None:
        self.both.do("contest")

    @rule(seen=SEEN, sure=st.integers(0, 4))
    def begin_closing(self, seen: int, sure: int) -> None:
        if not sure:
            self.both.do("begin_closing", self.reading(seen), self.now + CLOSE_MS)

    @rule(seen=SEEN, late=st.sampled_from([0, CLOSE_MS, 2 * CLOSE_MS]))
    def advance_closing(self, seen: int, late: int) -> None:
        """A sweep, perhaps late, that has read the channel at any time."""
        self.both.do("advance", self.reading(seen), self.now + late)

    @rule(late=st.sampled_from([0, CLOSE_MS]))
    def advance_what_is_stored(self, late: int) -> None:
        self.both.do("look")
        self.both.do("advance", -1, self.now + late)

    @rule(seen=SEEN, number=NUMBERS, count=COUNTS, request=REQUESTS, price=PRICES, success=st.booleans())
    def redeem(self, seen: int, number: int, count: int, request: str, price: int, success: bool) -> None:
        self.both.do("find", number, count)
        if self.allowed(seen, number + count - 1):
            self.both.do("redeem", number, count, request, price, success, self.now)

    @rule(seen=SEEN, number=NUMBERS, count=COUNTS, request=REQUESTS, price=PRICES, sides=SIDES)
    def hold(self, seen: int, number: int, count: int, request: str, price: int, sides: str) -> None:
        if self.allowed(seen, number + count - 1) and (count > 1 or "task" not in sides):
            self.both.do("hold", number, count, request, price, sides, self.now)

    @rule(number=NUMBERS, fence=FENCES, success=st.booleans(), later=LATER)
    def settle_ticket(self, number: int, fence: int, success: bool, later: int) -> None:
        self.both.do("settle", number, fence, success, self.now + later)

    @rule(number=NUMBERS, who=WHO, later=LATER)
    def expire_ticket(self, number: int, who: str, later: int) -> None:
        self.both.do("expire", number, who, self.now + later)

    @rule(number=NUMBERS, fence=FENCES, later=LATER)
    def take_over_ticket(self, number: int, fence: int, later: int) -> None:
        self.both.do("take_over", number, fence, self.now + later)

    @rule(batch=LedgerMachine.batches)
    def credit(self, batch: list[str]) -> None:
        """Credits escrows of accounts and of the channel together, as a sweep that may be late."""
        named = self.both.desk.names()
        tasks = {(task.number, "itself"): task for task in self.both.book.tasks}
        judges = {(task.number, judge.side): judge for task in tasks.values() for judge in task.judges}
        unswept = {name for name, known in named.items() if not {**tasks, **judges}[known].swept}
        owners = {name: "oskar" if known[1] == "itself" else "judith" for name, known in named.items()}
        owners |= {name: held.owner for name, held in self.held.items()}
        plain = [name for name in batch if name in self.held and not self.held[name].swept]
        fresh = sorted((name for name in batch if name in plain or name in unswept), key=owners.__getitem__)
        before = {owner: self.balances[bond_account(owner)] for owner in ALL_OWNERS}
        assert self.world.ledger.credit(batch, now_ms=self.now).escrows == len(fresh)
        if fresh:
            self.unlogged.append((fresh[0], len(fresh)))
        assert self.both.book.credit([named[name] for name in fresh if name in named]) == len(fresh) - len(plain)
        self.credit_held(plain, before)
        self.written_off_before = self.written_off

    @invariant()
    def channel_agrees(self) -> None:
        book = self.both.book
        assert self.both.desk.shown() == book.shown()
        assert book.broken() == []
        assert book.covered >= self.numbers, "the numbers fell"
        self.numbers = book.covered

    @invariant()
    def every_credit_is_in_one_place(self) -> None:
        """Paid in and not paid out: on balances, held, not credited yet, or in the channel."""
        funded = sum(held.budget for held in self.held.values() if held.state is State.FUNDED)
        waiting = sum(held.paid + held.fee for held in self.held.values() if not held.swept)
        paid_in = sum(amount for (kind, *_), amount in self.moved.items() if kind == "in")
        paid_out = sum(
            amount
            for (kind, account, number), amount in self.moved.items()
            if kind == "out" and self.decided.get((account, number)) is not PayoutState.FAILED
        )
        everything = self.balances.total() + funded + waiting + self.both.book.elsewhere()
        assert everything == paid_in - paid_out

    @invariant()
    def the_payer_never_loses_more_than_the_deposit(self) -> None:
        book = self.both.book
        assert 0 <= sum(task.cost for task in book.tasks) <= book.deposit
        assert self.balances[BOND] >= 0

    def teardown(self) -> None:
        # Whatever happened before, time and sweeps bring the channel to its end.
        later = self.now + LIFE_MS
        for task in self.both.book.tasks:
            for who in ("itself", "agent", "task"):
                self.both.do("expire", task.number, who, later)
                self.both.do("credit", ((task.number, who),))
        for sweeps in range(20):
            self.both.do("look")
            self.both.do("advance", -1, CHANNEL_EXPIRY + (4 + sweeps) * CLOSE_MS)
        assert self.both.book.state == "closed"
        super().teardown()


def test_random_programs_of_channels_agree_with_the_model(record_property: Callable[[str, str], None]) -> None:
    with mock.patch.object(channels_store, "TRANSACTION_ITEMS_MAX", CHUNK):
        run_state_machine_as_test(
            ChannelMachine,
            settings=settings(
                max_examples=PROGRAMS,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    record_property("figure", f"{PROGRAMS:,} random programs with channels agree with the model")
