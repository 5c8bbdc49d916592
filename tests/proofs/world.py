"""A platform with a real ledger whose other parts are instant and deterministic.

The outcome of a task depends only on its seed, so a checker can compute what each escrow must be: see `expected`. The
tests control the clock.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import chain, count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from quittance.agent import Agent, AgentState, Terms, Upload, Version
from quittance.api.identity import Caller
from quittance.api.models import ChannelRequest, TaskRequest
from quittance.config import Settings
from quittance.errors import NotFoundError
from quittance.ledger import channels
from quittance.ledger import escrow as escrows
from quittance.ledger.escrow import Escrow
from quittance.limits import KIB, MIB
from quittance.observability import logger
from quittance.platform import Platform
from quittance.proof.log import Tile
from quittance.proof.statement import Purpose, SigningKey
from quittance.run import Job, Meter, Outcome, Run, Side
from quittance.sandbox import artefact_key
from quittance.store.blobs import Outputs
from quittance.store.keys import Keys
from quittance.store.ledger import Ledger
from quittance.store.registry import Due as CompilationDue
from quittance.store.registry import OwnedAgents, OwnerState
from quittance.usecases import channels as channel_cases
from quittance.usecases import launch
from tests.template import template
from tests.tickets import claims_for, jwk, signed

TABLE = "LedgerTable"
PLATFORM_ACCOUNT = "quittance:platform"
FEE_BPS = 333  # with odd prices, so that every fee is rounded
COMPUTE_RUN, COMPUTE_BILLION = 101, 7_001  # the platform's prices of computing
TASK_JUDGE_BPS = 2_500
BOND_MINIMUM = 30_000
START_MS = 1_800_000_000_000
TIMEOUT_S = 10
LIFE_MS = 60_000  # time of one invocation
LEASE_MS = TIMEOUT_S * 1_000 + launch.RUN_RESERVE_MS
FUEL = 10**9
OUTPUT = b"done"
METERED = {"base": 1_003, "per_million_fuel": 7_919, "per_kib_output": 11, "minimum": 5_003}
FLAT_MICRO = 10_007
MODULE = hashlib.sha256(b"module").hexdigest()


def micro(amount: int) -> str:
    """An amount in the format of the API."""
    return f"{amount // 10**6}.{amount % 10**6:06}"


def _agent(
    name: str,
    owner: str,
    tariff: str,
    *,
    rules: str = "{}",
    artefact: str = "artefact",
    task_judge_bps: int | None = None,
) -> Agent:
    terms = Terms(tariff, memory_bytes=MIB, timeout_s=TIMEOUT_S, fuel=FUEL, rules=rules, task_judge_bps=task_judge_bps)
    return Agent(
        agent_id=name,
        owner=owner,
        name=name,
        description="",
        created_ms=0,
        terms=terms,
        upload=Upload(1, AgentState.ACTIVE, terms),
        version=Version(MODULE, artefact_key(MODULE), artefact, "engine", "c0" * 32),
    )


_FLAT = f'{{"type":"flat","price":"{micro(FLAT_MICRO)}"}}'
_RATES = ",".join(f'"{name}":"{micro(rate)}"' for name, rate in METERED.items())
HOT, FLAT, OWN = "agt_" + "h" * 26, "agt_" + "f" * 26, "agt_" + "o" * 26
JUDGED, JUDGE = "agt_" + "d" * 26, "agt_" + "j" * 26
JUDGE_COMPUTE = COMPUTE_RUN + COMPUTE_BILLION  # for the whole fuel limit, whatever the judge uses
JUDGE_MICRO = FLAT_MICRO + JUDGE_COMPUTE + 3  # what is held for a judge
_JUDGED_RULES = f'{{"judge":{{"agent_id":"{JUDGE}","budget":"{micro(JUDGE_MICRO)}","threshold":"0.5"}}}}'
AGENTS = {
    HOT: _agent(HOT, "olga", f'{{"type":"metered",{_RATES}}}'),
    FLAT: _agent(FLAT, "oskar", _FLAT),
    OWN: _agent(OWN, PLATFORM_ACCOUNT, _FLAT),
    JUDGED: _agent(JUDGED, "olga", _FLAT, rules=_JUDGED_RULES, task_judge_bps=TASK_JUDGE_BPS),
    JUDGE: _agent(JUDGE, "judith", _FLAT, artefact="judge"),
}


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the log lines about outcomes that a fault leaves unknown."""
    level = logger.log_level
    logger.setLevel("CRITICAL")
    try:
        yield
    finally:
        logger.setLevel(level)


class Agents:
    """A fake registry: agents that are always active, and recorded flags of their owners."""

    def __init__(self) -> None:
        self.short: dict[str, bool] = {}
        self.owned = OwnedAgents(unretired=False, retired_ms=None)

    def agents_of(self, _owner_id: str) -> OwnedAgents:
        return self.owned

    def get(self, agent_id: str) -> Agent:
        if agent_id not in AGENTS:
            raise NotFoundError(agent_id)
        return AGENTS[agent_id]

    get_cached = get

    def is_frozen(self, account: str) -> bool:
        return False

    def is_bonded(self, _owner_id: str) -> bool:
        return True  # the proofs must not depend on it, because the flag may be ten seconds old

    def dues(self) -> Iterator[CompilationDue]:
        return iter(())

    def funding_is_paused(self) -> bool:
        return False

    def owner(self, owner_id: str) -> OwnerState:
        return OwnerState(bonded=not self.short.get(owner_id))

    def set_bond_short(self, owner_id: str, short: bool) -> None:
        self.short[owner_id] = short


class Kms:
    """A fake KMS with the root key."""

    private = ec.generate_private_key(ec.SECP256R1())

    def sign(self, *, Message: bytes, **_: Any) -> dict[str, bytes]:  # noqa: N803 - boto3's names
        return {"Signature": self.private.sign(Message, ec.ECDSA(SHA256()))}

    def get_public_key(self, **_: Any) -> dict[str, bytes]:
        form, kind = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        return {"PublicKey": self.private.public_key().public_bytes(form, kind)}


@dataclass(frozen=True)
class OneKey:
    """One signing key for all environments and purposes, so that equal settlements have equal receipts."""

    keys: dict[Purpose, SigningKey]
    roots: dict[str, Any]

    def signing_key(self, *, now_s: int, purpose: Purpose = Purpose.RECEIPT) -> SigningKey:
        return self.keys[purpose]

    def jwks(self) -> dict[str, Any]:
        return self.roots


def new_keys() -> Keys:
    """New keys for one environment."""
    roots = {purpose: [f"alias/{purpose}"] for purpose in Purpose}
    return Keys(Kms(), root_key_ids=roots)  # type: ignore[arg-type]  # the two calls that Keys makes


@cache
def one_key() -> OneKey:
    keys = new_keys()
    signing = {purpose: keys.signing_key(now_s=START_MS // 1_000, purpose=purpose) for purpose in Purpose}
    return OneKey(signing, keys.jwks())


class Watched(Ledger):
    """A ledger that passes the fence of a settling actor to its client."""

    def settle(self, settled: Escrow, *judges: Escrow) -> Escrow:
        self._client.fence = settled.fence  # type: ignore[attr-defined]  # for the client's journal
        return super().settle(settled, *judges)


class Shelf:
    """A fake log bucket: a tile must not be stored twice with different hashes."""

    def __init__(self) -> None:
        self.tiles: dict[Tile, bytes] = {}
        self.checkpoints: dict[int, str] = {}

    def keep(self, tile: Tile, hashes: bytes) -> None:
        assert self.tiles.setdefault(tile, hashes) == hashes, f"{tile.path} was published before with other hashes"

    def read(self, tile: Tile) -> bytes:
        return self.tiles[tile]

    def keep_checkpoint(self, size: int, checkpoint: str) -> None:
        self.checkpoints[size] = checkpoint

    def checkpoint(self, size: int | None = None) -> str:
        return self.checkpoints[max(self.checkpoints) if size is None else size]


class World(Platform):
    """A platform with a given DynamoDB client: a real one, a faulty one, or the in-memory one."""

    def __init__(
        self,
        client: Any,
        *,
        now_ms: Callable[[], int],
        run: Callable[[Job], Run] | None = None,
        keys: Any = None,
        work_shards: int = 1,
        left_ms: Callable[[], int] = lambda: 0,
        tiles: "Shelf | None" = None,
    ) -> None:
        """`left_ms` is the time for which the ledger retries; by default it does not retry."""
        super().__init__(
            Settings(
                ledger_table=TABLE,
                registry_table="-",
                uploads_bucket="-",
                binaries_bucket="-",
                outputs_bucket="-",
                log_bucket="-",
                ledger_shards=work_shards,
                fee_bps=FEE_BPS,
                compute_run_micro=COMPUTE_RUN,
                compute_per_billion_fuel_micro=COMPUTE_BILLION,
                bond_minimum_micro=BOND_MINIMUM,
                platform_account=PLATFORM_ACCOUNT,
                receipt_key_ids="alias/receipt",
                checkpoint_key_ids="alias/checkpoint",
                webhook_key_ids="alias/webhook",
                card_key_ids="alias/card",
                receipt_issuer="urn:quittance:test",
                issuer_url="-",
                jwks_url="-",
                audience="-",
            )
        )
        parts = {
            "_dynamodb": client,
            "ledger": Watched(
                client, table=TABLE, work_shards=work_shards, platform_account=PLATFORM_ACCOUNT, left_ms=left_ms
            ),
            "registry": Agents(),
            "keys": keys or one_key(),
            "binaries": SimpleNamespace(artefact=lambda *_: nullcontext(Path("artefact")), forget=lambda *_: None),
            "tiles": tiles or Shelf(),
            "outputs": Outputs(None, bucket="-"),  # type: ignore[arg-type]  # small outputs stay inline
            "sandbox": SimpleNamespace(run=run or instant_run),
        }
        vars(self).update(parts)  # replaces the properties that would create the real parts
        self._now_ms = now_ms
        self.begin(lambda: LIFE_MS)

    def now_ms(self) -> int:
        return self._now_ms()


def instant_run(job: Job) -> Run:
    """A run without a guest: outcome, output and meter depend on the escrow's seed and the fuel limit."""
    run = drawn_run(job.seed, len(job.stdin), job.fuel, judges=job.artefact_sha256 == "judge")
    return replace(run, meter=replace(run.meter, wall_ms=min(run.meter.wall_ms, job.timeout_ms)))


def drawn_run(seed: bytes, input_bytes: int = 0, fuel_max: int = FUEL, *, judges: bool = False) -> Run:
    """The run that a seed leads to."""
    draw = hashlib.sha256(seed).digest()
    output = OUTPUT if not judges else b"0.5" if draw[6] < 128 else b"0.4"
    fuel = int.from_bytes(draw[:3])
    meter = Meter(
        fuel=min(fuel, fuel_max),
        wall_ms=draw[4] * 8,
        memory_bytes=KIB,
        input_bytes=input_bytes,
        output_bytes=len(output),
    )
    if fuel > fuel_max:
        return Run(Outcome.FUEL_EXHAUSTED, "It used up its fuel.", meter, 3)
    if draw[5] < 190:
        return Run(Outcome.SUCCEEDED, "", meter, 0, output)
    outcome = Outcome.EXIT_CODE if draw[5] < 230 else Outcome.WORKER_LOST
    return Run(outcome, "It failed.", meter, 3)


def ask(
    task_id: str, agent_id: str = FLAT, *, budget: int = 2 * FLAT_MICRO, text: str = "in", judge: bool = False
) -> TaskRequest:
    """The request of a task, optionally with its own judge."""
    rule = {"agent_id": JUDGE, "budget": micro(JUDGE_MICRO), "threshold": "0.5"}
    asked: dict[str, Any] = {"task_id": task_id, "agent_id": agent_id, "input": text, "budget": micro(budget)}
    return TaskRequest.model_validate(asked | ({"acceptance": {"judge": rule}} if judge else {}))


def append_to_log(ledger: Ledger, *batch_ids: str) -> int:
    """Appends batches to the log, or all that the index lists; returns the number of receipts."""
    lists = [batch_ids] if batch_ids else list(ledger.log.waiting())
    appends = chain.from_iterable(map(ledger.log.append, lists))
    return sum(len(receipts) for appended in appends for receipts in appended.values())


@dataclass(frozen=True)
class Due:
    """The expected settlement, computed independently of the code under test."""

    state: str
    paid: int
    fee: int
    refunded: int
    charge: int = 0
    judging: int = 0


def compute(fuel: int) -> int:
    """The compute price of a run."""
    return COMPUTE_RUN + -(-fuel * COMPUTE_BILLION // 10**9)


def price(agent_id: str, fuel: int) -> int:
    """The agent's price of a run that prints one KiB or less."""
    if agent_id != HOT:
        return FLAT_MICRO
    used = METERED["base"] + -(-fuel * METERED["per_million_fuel"] // 10**6) + METERED["per_kib_output"]
    return max(METERED["minimum"], used)


def fuel_bought(agent_id: str, budget: int) -> int:
    """The most fuel whose price a budget covers, without output."""
    low, high = 0, FUEL
    while low < high:
        fuel = (low + high + 1) // 2
        output = METERED["per_kib_output"] if agent_id == HOT else 0
        of_fuel = max(price(agent_id, fuel) - output, METERED["minimum"] if agent_id == HOT else 0)
        low, high = (fuel, high) if of_fuel + compute(fuel) <= budget else (low, fuel - 1)
    return low


def due_of_judge(run: Run, *, asked: bool, excused: bool, budget: int = JUDGE_MICRO) -> Due:
    """The expected settlement of a judge's escrow. `excused` if the platform failed, so that nobody is paid."""
    if not asked or excused or run.outcome is Outcome.WORKER_LOST:
        return Due("refunded", 0, 0, budget)
    fee = FLAT_MICRO * FEE_BPS // 10_000
    return Due("released", FLAT_MICRO - fee, fee + JUDGE_COMPUTE, budget - FLAT_MICRO - JUDGE_COMPUTE)


def expected(
    payer: str, task_id: str, agent_id: str, budget: int, *, judges: Mapping[Side, bytes] | None = None
) -> Due:
    """The expected settlement of a task that settles in time. `judges` are the seeds of its judges."""
    seed = escrows.task_seed(channels.escrow_id_of(payer, task_id))
    bought = fuel_bought(agent_id, budget)
    run = drawn_run(seed, fuel_max=bought)
    of_compute = compute(run.meter.fuel)
    due = price(agent_id, run.meter.fuel)
    if run.outcome is Outcome.WORKER_LOST:
        return Due("refunded", 0, 0, budget)
    if run.outcome is Outcome.EXIT_CODE:
        return Due("refunded", 0, 0, budget, charge=of_compute)
    if (
        run.outcome is Outcome.FUEL_EXHAUSTED or due + of_compute > budget
    ):  # a limit of the budget, so the payer's fault
        return Due("refunded", 0, min(of_compute, budget), budget - min(of_compute, budget))
    return _judged(judges or {}, due, of_compute, budget)


def _judged(judges: Mapping[Side, bytes], due: int, of_compute: int, budget: int) -> Due:
    """The expected settlement of a successful run, by the verdicts of its judges."""
    judging, state = 0, "released"
    for side, seed in sorted(judges.items()):
        verdict = drawn_run(seed, judges=True)
        if verdict.outcome is Outcome.WORKER_LOST:
            return Due("refunded", 0, 0, budget)
        judging += JUDGE_MICRO - 3 if side is Side.AGENT else 0
        if verdict.outcome is not Outcome.SUCCEEDED or verdict.stdout != b"0.5":
            if side is Side.AGENT:
                return Due("refunded", 0, 0, budget, charge=of_compute, judging=judging)
            due, state = due * TASK_JUDGE_BPS // 10_000, "refunded"
    fee = due * FEE_BPS // 10_000
    return Due(state, due - fee, fee + of_compute, budget - due - of_compute, judging=judging)


def task_named(prefix: str, *, payer: str, state: str) -> str:
    """A task id whose task ends in `state`."""
    names = (f"{prefix}{number}" for number in count())
    return next(name for name in names if expected(payer, name, FLAT, 2 * FLAT_MICRO).state == state)


def successful_task_named(prefix: str, *, payer: str, success: bool = True) -> str:
    """A task id of the judged agent whose own run succeeds or fails, as `success` states."""
    names = (f"{prefix}{number}" for number in count())
    runs = ((name, drawn_run(escrows.task_seed(escrows.escrow_id(payer, name)))) for name in names)
    wanted = Outcome.SUCCEEDED if success else Outcome.EXIT_CODE
    return next(name for name, run in runs if run.outcome is wanted)


def judge_seed(*, succeeds: bool = True, score: str = "0.5") -> bytes:
    """A seed with which a judge ends as stated."""
    seeds = (number.to_bytes(32) for number in count())
    runs = ((seed, drawn_run(seed, judges=True)) for seed in seeds)
    wanted = Outcome.SUCCEEDED if succeeds else Outcome.EXIT_CODE
    return next(seed for seed, run in runs if run.outcome is wanted and run.stdout in (score.encode(), b""))


@dataclass(frozen=True)
class OpenedChannel:
    """A channel and its key, with which a test signs tickets."""

    channel_id: str
    issuer: str
    expires_ms: int
    key: Ed25519PrivateKey


def channel_key(name: str) -> Ed25519PrivateKey:
    """The key of a name: always the same, so that channel ids are."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def open_channel(
    world: Platform, payer: str, salt: str = "salt", *, ticket: int = 2 * FLAT_MICRO, days: float = 30, **fields: Any
) -> OpenedChannel:
    """Opens a channel of 20 tickets whose key follows from payer and salt; `fields` are further ones of the request."""
    key = channel_key(f"{payer} {salt}")
    expires_at = datetime.fromtimestamp(world.now_ms() // 1_000, UTC) + timedelta(days=days)
    asked: dict[str, Any] = {
        "salt": salt,
        "key": jwk(key),
        "ticket_value": micro(ticket),
        "tickets": 20,
        "expires_at": expires_at.isoformat(),
    }
    opened = channel_cases.open_channel(world, Caller(payer), ChannelRequest.model_validate(asked | fields))
    return OpenedChannel(opened.channel_id, opened.issuer, opened.expires_at, key)


def ticket_for(channel: OpenedChannel, request: TaskRequest, **claims: Any) -> str:
    """A ticket for exactly this request, whose task_id names its number; `claims` replace those that follow from it."""
    named = {"iss": channel.issuer, "exp": channel.expires_ms // 1_000}
    return signed(claims_for(request, **(named | claims)), channel.key)


def fill_bonds(world: "World", amount: int = 10**9) -> None:
    """Fills the bonds of the agents' owners."""
    for owner in sorted({agent.owner for agent in AGENTS.values()}):
        world.ledger.deposit(owner, "bond", amount, now_ms=START_MS)
        world.ledger.move_bond(owner, "bond", amount, now_ms=START_MS)


@cache
def table_properties() -> dict[str, Any]:
    """The ledger's table as `template.yaml` declares it, for `create_table`."""
    declared = template()["Resources"]["LedgerTable"]["Properties"]
    wanted = ("AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode")
    return {"TableName": TABLE, **{name: declared[name] for name in wanted}}
