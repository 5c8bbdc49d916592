"""Which modules each function loads before its first invocation, and what copies of a SnapStart snapshot share."""

import multiprocessing
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import snapshot_restore_py
from pydantic import ValidationError

from quittance import platform
from quittance.run import Job, Outcome
from quittance.sandbox import compile_module
from quittance.store import clients
from tests.functions.test_handlers import load
from tests.support import ROOT, Cloud, wasm

ENGINE = {"wasmtime", "quittance.sandbox.engine"}  # loaded by the worker and the compiler, never by a function
SDK = ("boto3", "botocore", "s3transfer")
CLIENTS = {"boto3", "s3transfer", "botocore.session", "quittance.store.clients"}
ROUTES = {"aws_lambda_powertools.event_handler", "asyncio"}
UNUSED = {"pydantic.v1", "cffi", "pycparser", "quittance.proof.verify", "quittance.proof.replay", "unittest"}
SUPERVISOR = {"quittance.sandbox.supervisor"}
AUDIT, EXECUTE, PUBLISH = ({f"quittance.usecases.{name}"} for name in ("audit", "execute", "publish"))
POWERTOOLS_ROUTES = {"aws_lambda_powertools.event_handler"}
USE_CASES = AUDIT | EXECUTE | PUBLISH | {"quittance.sandbox"}
NOT_LOADED = {
    "health": ENGINE | CLIENTS | ROUTES | {"pydantic", "jwt", "cryptography", "quittance.config"},
    "authorizer": ENGINE | CLIENTS | ROUTES | {"quittance.api.models", "quittance.acceptance.rules"},
    "execute": ENGINE | SUPERVISOR | AUDIT | PUBLISH,
    "result": ENGINE | SUPERVISOR | AUDIT | EXECUTE | PUBLISH,
    "agents": ENGINE | SUPERVISOR | AUDIT | EXECUTE | PUBLISH,
    "accounts": ENGINE | USE_CASES,
    "channels": ENGINE | USE_CASES,
    "operations": ENGINE | USE_CASES,
    "public": ENGINE | SUPERVISOR | AUDIT | PUBLISH,
    "publish": ENGINE | ROUTES | AUDIT | EXECUTE,
    "work": ENGINE | SUPERVISOR | AUDIT | PUBLISH,
    "deadletter": ENGINE | SUPERVISOR | AUDIT | PUBLISH,
    "plan": ENGINE | CLIENTS | USE_CASES,
    "notify": ENGINE | POWERTOOLS_ROUTES | USE_CASES,
    "listings": ENGINE | POWERTOOLS_ROUTES | USE_CASES,
    "webhook": ENGINE | POWERTOOLS_ROUTES | USE_CASES,
    "sweep": ENGINE | ROUTES | SUPERVISOR | AUDIT | EXECUTE | PUBLISH,
    "drain": ENGINE | ROUTES | SUPERVISOR | AUDIT | EXECUTE | PUBLISH,
    "archive": ENGINE | ROUTES | USE_CASES | {"quittance.api.models"},
    "audit": ENGINE | ROUTES | EXECUTE | PUBLISH | {"quittance.sandbox", "quittance.api.models"},
}


def test_table_has_every_function() -> None:
    assert sorted(NOT_LOADED) == sorted(path.name for path in (ROOT / "functions").iterdir() if path.is_dir())


@pytest.mark.parametrize("function", NOT_LOADED)
def test_cold_start_loads_nothing_unneeded(function: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import sys, app; print(*sys.modules)"],
        cwd=ROOT / "functions" / function,
        env={"PYTHONPATH": f"{ROOT}/layers/runtime:."},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (NOT_LOADED[function] | UNUSED) & set(found.stdout.split()) == set()


@dataclass(frozen=True)
class Copy:
    """What a restored copy of an environment used in its first invocation."""

    key_id: str
    random_value: float
    outcome: Outcome
    worker: int
    loaded_now: set[str]


@pytest.fixture
def initialised(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """An environment of the execute function in the worst state for a copy: with key, worker and random state."""
    monkeypatch.setattr(platform, "settings", lambda: cloud.settings)
    monkeypatch.setattr(platform, "_prepared", [])
    platform._forget()
    load("execute")
    random.random()
    made = platform._platform()
    made.keys.signing_key(now_s=cloud.now_ms() // 1_000)
    with made.sandbox:
        made.sandbox.warm()
        yield cloud
    platform._forget()


def hooks(registry: list[Any]) -> None:
    """Runs each registered hook once, as Lambda's runtime does; the tests load functions repeatedly."""
    for hook, arguments, named in {hook: (hook, *rest) for hook, *rest in registry}.values():
        hook(*arguments, **named)


def first_invocation(job: Job, random_state: Any, answers: Any) -> None:
    """Runs in a copy: the hooks, then everything that a task needs."""
    random.setstate(random_state)  # Python reseeds after a fork, but not after the restore of a snapshot
    hooks(snapshot_restore_py._after_restore_registry)
    before = set(sys.modules)
    restored = platform._platform()
    with restored.sandbox as sandbox:
        worker = sandbox._worker
        assert worker is not None, "the worker starts before the first request"
        pid, run = worker._process.pid, sandbox.run(job)
        assert restored.ledger.find("nobody's") is None
        assert restored.outputs.keep(b"x" * 4_096).inline is None
        key = restored.keys.signing_key(now_s=restored.now_ms() // 1_000)
        answers.put(Copy(key.key_id, random.random(), run.outcome, pid, set(sys.modules) - before))


def test_snapshot_copies_share_no_key_random_state_or_worker(initialised: Cloud) -> None:
    before = platform._platform()
    key_before = before.keys.signing_key(now_s=initialised.now_ms() // 1_000).key_id
    worker_before = before.sandbox._worker
    assert worker_before is not None
    artefact = compile_module(wasm("echo"))
    path = initialised.settings.scratch_dir / "artefact"
    path.write_bytes(artefact.data)
    job = Job(
        artefact_path=str(path), artefact_sha256=artefact.sha256, stdin=b"", fuel=10**7, memory_bytes=2**24,
        timeout_ms=10_000, epoch_ns=0, seed=bytes(32),
    )  # fmt: skip
    hooks(snapshot_restore_py._before_snapshot_registry)
    forking = multiprocessing.get_context("fork")
    answers = forking.SimpleQueue()
    copies = [forking.Process(target=first_invocation, args=(job, random.getstate(), answers)) for _ in range(2)]
    for copy in copies:
        copy.start()
    for copy in copies:
        copy.join(30)
        assert copy.exitcode == 0
    one, other = answers.get(), answers.get()
    assert len({one.key_id, other.key_id, key_before}) == 3
    assert one.random_value != other.random_value
    assert len({one.worker, other.worker, worker_before._process.pid}) == 3
    assert one.outcome == other.outcome == Outcome.SUCCEEDED
    ours = {name for name in one.loaded_now if name.startswith(("quittance", *SDK, "cryptography", "jwt"))}
    assert ours == set(), "the snapshot contains all modules that a task needs"


def test_snapshot_holds_no_platform_and_no_credentials(initialised: Cloud) -> None:
    platform.before_snapshot()
    assert platform._platform.cache_info().currsize == 0
    assert clients._session.cache_info().currsize == 0
    assert clients._descriptions.cache_info().currsize == 1, "public service descriptions stay"
    assert clients._session().get_credentials().access_key != "none", "the snapshot's credentials are gone"


def test_restored_copy_fetches_the_root_keys_again(initialised: Cloud) -> None:
    made = platform._platform().keys
    made.jwks()
    platform.after_restore()
    with platform._platform().sandbox:
        keys = platform._platform().keys
    config = initialised.settings
    published = {config.receipt_key_ids, config.checkpoint_key_ids, config.webhook_key_ids, config.card_key_ids}
    assert (made._roots.keys(), keys._roots) == (published, {})


def test_version_with_missing_settings_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    from quittance import config

    config.settings.cache_clear()
    monkeypatch.delenv("LEDGER_TABLE", raising=False)
    with pytest.raises(ValidationError, match="ledger_table"):
        platform.before_snapshot()
    platform._forget()


@pytest.mark.parametrize("function", ["execute", "result", "agents", "accounts", "public"])
def test_prepared_parts_exist(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    monkeypatch.setattr(platform, "settings", lambda: cloud.settings)
    monkeypatch.setattr(platform, "_prepared", [])
    load(function)
    assert platform._prepared
    platform.before_snapshot()
