"""What an attacker gets for one credit, under the former and the current rules, for each attack that was found.

    python benchmarks/attacks.py            # prints the table
    python benchmarks/attacks.py --write    # also writes it into docs/who-pays.md

The platform's code decides the amounts. An escrow without prices and without the agent's limits is settled by the
former rules. Effects outside of the decision are figures measured at that time, marked ¹. "∞" means: free of charge.
"""

import argparse
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from quittance.ledger import pricing

sys.path.insert(0, str(Path(__file__).parents[1] / "layers" / "runtime"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from scale import QUICK

from quittance.api.requests import read_json
from quittance.errors import QuittanceError
from quittance.ledger.escrow import Escrow, decide, decide_judge
from quittance.ledger.pricing import ComputePrices
from quittance.limits import FUEL_MAX, KIB, MEMORY_BYTES_DEFAULT, OUTPUT_BYTES_MAX
from quittance.run import Limits, Meter, Outcome, RejectedBy, Run
from tests.template import template

PAGE = Path(__file__).parents[1] / "docs" / "who-pays.md"
BEGIN, END = "<!-- the table: python benchmarks/attacks.py --write -->\n", "<!-- end of the table -->\n"
CREDIT = 10**6
BILLION = 10**9
OWN = Limits(FUEL_MAX, MEMORY_BYTES_DEFAULT, 10_000)
NAMES = 5_000 if QUICK else 45_000


def default(name: str) -> int:
    """Return the default of a template parameter."""
    return int(template()["Parameters"][name]["Default"])


COMPUTE = ComputePrices(default("ComputePerRunMicro"), default("ComputePerBillionFuelMicro"))


def escrow(tariff: str, budget_micro: int, *, now: bool, share_bps: int = 0) -> Escrow:
    """Return a funded escrow under the current (`now`) or the former rules."""
    plain = Escrow(
        escrow_id="e", payer="p", task_id="t", request_sha256="r", agent_id="a", owner="o", tariff=tariff,
        budget_micro=budget_micro, fee_bps=default("FeeBps"), timeout_ms=10_000, runner="r", fence=1, funded_ms=1,
        lease_ms=2, expires_ms=10**15, module_sha256="00" * 32, input_sha256="00" * 32,
    )  # fmt: skip
    return replace(plain, compute=COMPUTE, own_limits=OWN, task_judge_bps=share_bps) if now else plain


FLAT = '{"type":"flat","price":"0.01"}'


@dataclass(frozen=True)
class Attack:
    """One attack: what is counted, and how much of it one credit bought before and buys now."""

    name: str
    unit: str
    before: str
    now: str


def per_credit(got: Fraction | int, cost_micro: int) -> str:
    """Return how much one credit buys if `got` costs `cost_micro`."""
    if not cost_micro:
        return "∞" if got else "0"
    return f"{float(Fraction(got) * CREDIT / cost_micro):,.4g}"


def cost(made: Escrow, run: Run, *, owner_too: bool = False) -> int:
    """Return what a task costs its payer. With `owner_too` they are one party, which keeps what is paid."""
    done = decide(made, run, now_ms=5)
    spent = done.split.budget_micro - done.split.refunded_micro
    return spent + done.charge_micro - done.split.paid_micro if owner_too else spent


def both(got: int | Fraction, run: Run, *, owner_too: bool = False) -> tuple[str, str]:
    """Return how much of what a run yields one credit buys, before and now. Each task has a budget of one credit."""
    costs = [cost(escrow(FLAT, CREDIT, now=now), run, owner_too=owner_too) for now in (False, True)]
    return per_credit(got, costs[0]), per_credit(got, costs[1])


def free_compute() -> list[Attack]:
    meter = Meter(fuel=100 * BILLION)
    rejected = Run(Outcome.REJECTED, "", meter, limits=OWN, rejected_by=RejectedBy.TASK_RULES)
    trapped = Run(Outcome.TRAP_UNREACHABLE, "", meter, limits=OWN)
    unit = "10⁹ units of fuel"
    return [
        Attack(
            "a rule that no output meets, on somebody's agent", unit,
            *both(100, rejected),
        ),
        Attack(
            "an agent of one's own that fails at its end", unit,
            *both(100, trapped, owner_too=True),
        ),
        Attack(
            "a module that compiles for 95 s", "seconds of processor time", "∞",
            per_credit(1, default("PublishPerCpuSecondMicro")),
        ),
    ]  # fmt: skip


def ruin() -> Attack:
    exhausted = Run(Outcome.FUEL_EXHAUSTED, "", Meter(fuel=1_000), limits=replace(OWN, fuel=1_000))

    def points(*, now: bool) -> str:
        done = decide(escrow(FLAT, 20_000, now=now), exhausted, now_ms=5)
        spent = done.split.budget_micro - done.split.refunded_micro
        return per_credit(Fraction(-done.reputation_tenths, 10), spent)

    return Attack(
        "a budget that buys too little fuel, to ruin an agent",
        "points of its reputation",
        points(now=False),
        points(now=True),
    )


def output_for_nothing() -> Attack:
    tariff = '{"type":"metered","per_kib_output":"1"}'
    terms = pricing.parse_tariff(tariff)
    least_micro = pricing.least_budget_micro(terms, COMPUTE)
    bought = pricing.limits_bought(terms, COMPUTE, budget_micro=CREDIT, own=OWN)
    before = per_credit(OUTPUT_BYTES_MAX // KIB, 1)  # the price was cut to the budget, whatever it was
    return Attack(
        f"a budget of a millionth, at 1 credit a KiB (least budget now {least_micro} millionths)", "KiB of output",
        before, f"{bought.output_bytes / KIB:g}",
    )  # fmt: skip


def toll() -> Attack:
    """An owner's own judge rejects everything: what the owner gains from a budget of one credit."""
    judge = Run(Outcome.SUCCEEDED, "", Meter(), limits=replace(OWN, fuel=BILLION))
    hold = escrow('{"type":"flat","price":"0.9"}', 900_040, now=True)
    paid = decide_judge(hold, judge, now_ms=5, released=False).split
    gained_micro = paid.paid_micro - (
        paid.budget_micro - paid.refunded_micro
    )  # paid to the owner's account, charged to the owner's bond
    return Attack(
        "an agent whose own judge always rejects",
        "credits taken of a budget of 1",
        "0.8775¹",
        f"{gained_micro / CREDIT:g}",
    )


def theft() -> Attack:
    """A payer reads an output through their own judge: bits for each credit that the payer loses."""
    judge = Run(Outcome.SUCCEEDED, "", Meter(), limits=replace(OWN, fuel=BILLION))
    hold = escrow('{"type":"flat","price":"0"}', CREDIT, now=True)
    judged = decide_judge(hold, judge, now_ms=5, released=False).split
    share_bps = 2_500
    task = escrow('{"type":"flat","price":"0.01"}', CREDIT, now=True, share_bps=share_bps)
    rejected = Run(Outcome.REJECTED, "", Meter(fuel=BILLION), limits=OWN, rejected_by=RejectedBy.TASK_JUDGE)
    spent = cost(task, rejected) + judged.fee_micro
    return Attack(
        "an output read through a judge of one's own (share of the price 0.25, price 0.01)", "bytes",
        "∞ (134 bytes in 9 tasks¹)", per_credit(Fraction(1, 8), spent),
    )  # fmt: skip


def parsing() -> Attack:
    """A body of many names, one of them twice: it needs neither account nor credits."""
    body = "{" + ",".join(f'"n{number}":0' for number in range(NAMES)) + ',"n0":0}'
    began = time.process_time()
    with suppress(QuittanceError):
        read_json(body)
    seconds = time.process_time() - began
    return Attack(
        f"{len(body):,} bytes of names, one of them twice",
        "seconds of processor time for a request",
        "60¹",
        f"{seconds:.2g}",
    )


def rows() -> list[Attack]:
    minimum = default("BondMinimumMicro") / CREDIT
    return [
        *free_compute(),
        ruin(),
        output_for_nothing(),
        toll(),
        theft(),
        parsing(),
        Attack(
            "registrations that end the listing for everyone",
            "entries in the listing",
            "∞ (5,600 were enough¹)",
            f"0: only published agents, by owners with a bond of {minimum:g}",
        ),
        Attack("requests for an agent of an old engine", "compilations by 50 requests", "50¹", "1"),
    ]


def table() -> str:
    lines = ["| attack | what a credit gets | before | now |", "|---|---|---|---|"]
    lines += [f"| {row.name} | {row.unit} | {row.before} | {row.now} |" for row in rows()]
    note = "¹ as it was measured on the code of before. ∞: as much as one likes, for nothing."
    return "\n".join([*lines, "", note]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="write the table into docs/who-pays.md")
    text = table()
    sys.stdout.write(text)
    if parser.parse_args().write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + text + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
