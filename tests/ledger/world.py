"""A platform whose ledger is real and whose other parts are instant and deterministic.

What a task comes to follows from its seed alone, so a checker can say beforehand what each escrow must be: see
`expected`. Time is a clock that the tests hold.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from quittance import escrow as escrows
from quittance import tasks
from quittance.bootstrap import Platform
from quittance.certified import Purpose, SigningKey
from quittance.config import Settings
from quittance.errors import NotFoundError
from quittance.escrow import Escrow, Settlement
from quittance.limits import KIB, MIB
from quittance.log import Tile
from quittance.models import TaskRequest
from quittance.observability import logger
from quittance.run import Job, Meter, Outcome, Run, Side
from quittance.sandbox import artefact_key
from quittance.store.blobs import Outputs
from quittance.store.keys import Keys
from quittance.store.ledger import Ledger
from quittance.store.registry import Agent, AgentState, Terms, Upload, Version
from tests.template import template

TABLE = "LedgerTable"
PLATFORM_ACCOUNT = "quittance:platform"
FEE_BPS = 333  # of odd prices: every fee is rounded
START_MS = 1_800_000_000_000
TIMEOUT_S = 10
LIFE_MS = 60_000  # of one invocation
LEASE_MS = TIMEOUT_S * 1_000 + tasks._RUN_RESERVE_MS
FUEL = 10**9
OUTPUT = b"done"
METERED = {"base": 1_003, "per_million_fuel": 7_919, "per_kib_output": 11, "minimum": 5_003}
FLAT_MICRO = 10_007
MODULE = hashlib.sha256(b"module").hexdigest()


def micro(amount: int) -> str:
    """An amount as the API takes it."""
    return f"{amount // 10**6}.{amount % 10**6:06}"


def _agent(name: str, owner: str, tariff: str, *, rules: str = "{}", artefact: str = "artefact") -> Agent:
    terms = Terms(tariff=tariff, memory_bytes=MIB, timeout_s=TIMEOUT_S, fuel=FUEL, rules=rules)
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
JUDGE_MICRO = FLAT_MICRO + 3  # what is held for the judge
_JUDGED_RULES = f'{{"judge":{{"agent_id":"{JUDGE}","budget":"{micro(JUDGE_MICRO)}","threshold":"0.5"}}}}'
AGENTS = {
    HOT: _agent(HOT, "olga", f'{{"type":"metered",{_RATES}}}'),
    FLAT: _agent(FLAT, "oskar", _FLAT),
    OWN: _agent(OWN, PLATFORM_ACCOUNT, _FLAT),
    JUDGED: _agent(JUDGED, "olga", _FLAT, rules=_JUDGED_RULES),
    JUDGE: _agent(JUDGE, "judith", _FLAT, artefact="judge"),
}


@contextmanager
def quiet() -> Iterator[None]:
    """Without a log line for each outcome that a fault leaves unknown."""
    level = logger.log_level
    logger.setLevel("CRITICAL")
    try:
        yield
    finally:
        logger.setLevel(level)


class Agents:
    """The registry: three agents that are always ready."""

    def get(self, agent_id: str) -> Agent:
        if agent_id not in AGENTS:
            raise NotFoundError(agent_id)
        return AGENTS[agent_id]

    get_cached = get


class Kms:
    """The root key, without a KMS."""

    private = ec.generate_private_key(ec.SECP256R1())

    def sign(self, *, Message: bytes, **_: Any) -> dict[str, bytes]:  # noqa: N803 - boto3's names
        return {"Signature": self.private.sign(Message, ec.ECDSA(SHA256()))}

    def get_public_key(self, **_: Any) -> dict[str, bytes]:
        form, kind = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        return {"PublicKey": self.private.public_key().public_bytes(form, kind)}


@dataclass(frozen=True)
class OneKey:
    """One signing key for everybody and each purpose: equal settlements then have equal receipts."""

    keys: dict[Purpose, SigningKey]
    roots: dict[str, Any]

    def signing_key(self, *, now_s: int, purpose: Purpose = Purpose.RECEIPT) -> SigningKey:
        return self.keys[purpose]

    def jwks(self) -> dict[str, Any]:
        return self.roots


def new_keys() -> Keys:
    """An environment's own keys."""
    roots = {purpose: [f"alias/{purpose}"] for purpose in Purpose}
    return Keys(Kms(), root_key_ids=roots)  # type: ignore[arg-type]  # the two calls that Keys makes


@cache
def one_key() -> OneKey:
    keys = new_keys()
    signing = {purpose: keys.signing_key(now_s=START_MS // 1_000, purpose=purpose) for purpose in Purpose}
    return OneKey(signing, keys.jwks())


class Watched(Ledger):
    """The ledger, telling its client which fence an actor settles with."""

    def settle(self, escrow: Escrow, settlement: Settlement) -> Escrow:
        self._client.fence = escrow.fence  # type: ignore[attr-defined]  # for whoever keeps a journal
        return super().settle(escrow, settlement)


class Shelf:
    """The log's bucket: what is kept once is never kept otherwise."""

    def __init__(self) -> None:
        self.tiles: dict[Tile, bytes] = {}
        self.checkpoints: dict[int, str] = {}

    def keep(self, tile: Tile, hashes: bytes) -> None:
        assert self.tiles.setdefault(tile, hashes) == hashes, f"{tile.path} was published otherwise"

    def read(self, tile: Tile) -> bytes:
        return self.tiles[tile]

    def keep_checkpoint(self, size: int, checkpoint: str) -> None:
        self.checkpoints[size] = checkpoint

    def checkpoint(self, size: int | None = None) -> str:
        return self.checkpoints[max(self.checkpoints) if size is None else size]


class World(Platform):
    """A platform over one DynamoDB client, which may be a real one, a faulty one or the stand-in."""

    def __init__(
        self,
        client: Any,
        *,
        now_ms: Callable[[], int],
        run: Callable[[Job], Run] | None = None,
        keys: Any = None,
        shards: int = 1,
        left_ms: Callable[[], int] = lambda: 0,
        tiles: "Shelf | None" = None,
    ) -> None:
        """`left_ms` is how long the ledger tries again; by default each call is sent once."""
        super().__init__(
            Settings(
                ledger_table=TABLE,
                registry_table="-",
                uploads_bucket="-",
                binaries_bucket="-",
                outputs_bucket="-",
                log_bucket="-",
                ledger_shards=shards,
                fee_bps=FEE_BPS,
                platform_account=PLATFORM_ACCOUNT,
                receipt_key_ids="alias/receipt",
                checkpoint_key_ids="alias/checkpoint",
                webhook_key_ids="alias/webhook",
                receipt_issuer="urn:quittance:test",
                issuer_url="-",
                jwks_url="-",
                audience="-",
            )
        )
        parts = {
            "_dynamodb": client,
            "ledger": Watched(client, table=TABLE, shards=shards, platform_account=PLATFORM_ACCOUNT, left_ms=left_ms),
            "registry": Agents(),
            "keys": keys or one_key(),
            "binaries": SimpleNamespace(artefact=lambda *_: nullcontext(Path("artefact")), forget=lambda *_: None),
            "tiles": tiles or Shelf(),
            "outputs": Outputs(None, bucket="-"),  # type: ignore[arg-type]  # small outputs stay inline
            "sandbox": SimpleNamespace(run=run or instant_run),
        }
        vars(self).update(parts)  # before the properties that would make the real ones
        self._now_ms = now_ms
        self.begin(lambda: LIFE_MS)

    def now_ms(self) -> int:
        return self._now_ms()


def instant_run(job: Job) -> Run:
    """A run without a guest: outcome, output and meter follow from the escrow's seed."""
    return _run(job.seed, len(job.stdin), job.fuel, judges=job.artefact_sha256 == "judge")


def _run(seed: bytes, input_bytes: int, fuel_max: int, *, judges: bool = False) -> Run:
    draw = hashlib.sha256(seed).digest()
    output = OUTPUT if not judges else b"0.5" if draw[6] < 128 else b"0.4"
    meter = Meter(
        fuel=min(int.from_bytes(draw[:3]), fuel_max),
        wall_ms=draw[4] * 8,
        memory_bytes=KIB,
        input_bytes=input_bytes,
        output_bytes=len(output),
    )
    if draw[5] < 190:
        return Run(Outcome.SUCCEEDED, "", meter, 0, output)
    outcome = Outcome.EXIT_CODE if draw[5] < 230 else Outcome.WORKER_LOST
    return Run(outcome, "It failed.", meter, 3)


def ask(task_id: str, agent_id: str = FLAT, *, budget: int = 2 * FLAT_MICRO, text: str = "in") -> TaskRequest:
    """A task's request."""
    return TaskRequest.model_validate(
        {"task_id": task_id, "agent_id": agent_id, "input": text, "budget": micro(budget)}
    )


@dataclass(frozen=True)
class Due:
    """What a run comes to, computed apart from the code under test."""

    state: str
    paid: int
    fee: int
    refunded: int


def judged_run(payer: str, task_id: str) -> tuple[Run, Run]:
    """How a judged task's own run ends, and its judge's, if that is asked."""
    names = task_id, escrows.judge_task_id(task_id, Side.AGENT)
    seeds = [escrows.seed(escrows.escrow_id(payer, name)) for name in names]
    return _run(seeds[0], 0, FUEL), _run(seeds[1], 0, FUEL, judges=True)


def expected(payer: str, task_id: str, agent_id: str, budget: int) -> Due:
    """What the escrow of a task must be if its run is settled in time."""
    if agent_id in {JUDGED, JUDGE}:
        own, judge = judged_run(payer, task_id.partition(":")[0])
        paid = own.outcome is judge.outcome is Outcome.SUCCEEDED
        if agent_id == JUDGED:
            paid = paid and judge.stdout == b"0.5"
        return _due(FLAT_MICRO, budget) if paid else Due("refunded", 0, 0, budget)
    bought = (budget - METERED["base"]) * 1_000_000 // METERED["per_million_fuel"] if agent_id == HOT else FUEL
    run = _run(escrows.seed(escrows.escrow_id(payer, task_id)), 0, min(bought, FUEL))
    if run.outcome is not Outcome.SUCCEEDED:
        return Due("refunded", 0, 0, budget)
    used = FLAT_MICRO
    if agent_id == HOT:
        million = 1_000_000
        fuel = (run.meter.fuel * METERED["per_million_fuel"] + million - 1) // million
        used = max(METERED["minimum"], METERED["base"] + fuel + METERED["per_kib_output"])
    return _due(min(used, budget), budget)


def _due(used: int, budget: int) -> Due:
    fee, rest = divmod(used * FEE_BPS, 10_000)
    assert 0 <= rest < 10_000
    return Due("released", used - fee, fee, budget - used)


def task_named(prefix: str, *, payer: str, state: str) -> str:
    """A task id whose run ends in `state`."""
    names = (f"{prefix}{number}" for number in count())
    return next(name for name in names if expected(payer, name, FLAT, 2 * FLAT_MICRO).state == state)


def judged_task_named(prefix: str, *, payer: str, own: bool, judge: bool, score: str) -> str:
    """A task id of the judged agent: whether its run succeeds, whether its judge's does, and what that one says."""

    def fits(name: str) -> bool:
        runs = judged_run(payer, name)
        ended = tuple(run.outcome is Outcome.SUCCEEDED for run in runs)
        return ended == (own, judge) and (not judge or runs[1].stdout.decode() == score)

    return next(filter(fits, (f"{prefix}{number}" for number in count())))


@cache
def table_properties() -> dict[str, Any]:
    """The ledger's table as `template.yaml` declares it, for `create_table`."""
    declared = template()["Resources"]["LedgerTable"]["Properties"]
    wanted = ("AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode")
    return {"TableName": TABLE, **{name: declared[name] for name in wanted}}
