"""A disk, a memory or a connection that fails: always the platform's fault, and never an exception that holds money."""

import base64
import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from urllib3.exceptions import ProtocolError, SSLError
from wasmtime import wat2wasm

from quittance.api import messages
from quittance.api.identity import Caller
from quittance.api.models import AgentRequest, TaskResult
from quittance.errors import PlatformUnavailableError
from quittance.proof import receipt
from quittance.run import Input
from quittance.store import blobs, clients
from quittance.store.queue import Delivery, NotDoneError
from quittance.usecases import agents, execute, health, publish, result
from quittance.usecases.sweep import sweep
from quittance.usecases.work import work
from tests.functions.test_handlers import Call, call  # noqa: F401 - a fixture
from tests.sandbox.wat import iovecs, memory
from tests.support import FLAT, Cloud, wasm
from tests.usecases.test_execute import START, ask, run
from tests.usecases.test_judges import judge, judged_by, saying

FULL, BROKEN, READ_ONLY, DENIED, NO_FILES = (
    OSError(number, os.strerror(number))
    for number in (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE)
)
OF_A_BODY = [
    ReadTimeoutError(endpoint_url="https://s3.test"),
    IncompleteReadError(actual_bytes=1, expected_bytes=2),
    ResponseStreamingError(error=ProtocolError("broken")),
    SSLError("decryption failed or bad record mac"),  # botocore passes it on as it is
    ConnectionResetError(),
    MemoryError(),
]
OF_A_CALL = [
    EndpointConnectionError(endpoint_url="https://s3.test"),
    ClientError({"Error": {"Code": "SlowDown", "Message": ""}}, "PutObject"),
    NO_FILES,
    MemoryError(),
]


def names(failures: list[BaseException]) -> list[str]:
    return [type(failure).__name__ + str(getattr(failure, "errno", "") or "") for failure in failures]


def failing(failure: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise failure

    return fail


@pytest.fixture
def rich(cloud: Cloud) -> Cloud:
    cloud.deposit("alice", START)
    return cloud


class Body:
    """A body that breaks off after its first byte."""

    def __init__(self, failure: BaseException) -> None:
        self._failure = failure
        self.closed = False

    def read(self, _amount: int | None = None) -> bytes:
        raise self._failure

    def iter_chunks(self, _size: int) -> Any:
        yield b"x"
        raise self._failure

    def close(self) -> None:
        self.closed = True


def break_bodies(cloud: Cloud, patch: pytest.MonkeyPatch, failure: BaseException) -> list[Body]:
    """Whatever is read from S3 from now on breaks off."""
    bodies: list[Body] = []

    def answer(**_: Any) -> dict[str, Any]:
        bodies.append(Body(failure))
        return {"Body": bodies[-1], "ContentLength": 1_000}

    patch.setattr(cloud._s3, "get_object", answer)
    return bodies


def assert_refunded_as_the_platforms_fault(cloud: Cloud, done: Any, code: str) -> None:
    assert (done.success, done.escrow_status, done.error.code) == (False, "refunded", code)
    assert (done.amount_refunded_micro, done.amount_paid_micro, done.fee_micro) == (50_000, 0, 0)
    assert done.reputation_delta == 0
    assert receipt.verify(done.receipt, cloud.keys.jwks())["fault"] == "platform"
    assert cloud.ledger.available_micro("alice") == START
    sweep(cloud)
    assert cloud.ledger.available_micro("owner") == 0
    assert cloud.total_micro() == START


def assert_all_is_well_again(cloud: Cloud, agent: str) -> None:
    assert run(cloud, agent, task_id="mended").success
    assert cloud.total_micro() == START
    assert leftovers(cloud) == []


def leftovers(cloud: Cloud) -> list[Path]:
    return list((cloud.settings.scratch_dir / "artefacts").glob("part-*"))


@pytest.fixture
def refunded_while(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`refunded_while(agent, code, owner, name, failure, **task)`: a task while `owner.name` fails, and another."""

    def check(agent: str, code: str, owner: Any, name: str, failure: BaseException, **task: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing(failure))
            done = run(rich, agent, **task)
        assert_refunded_as_the_platforms_fault(rich, done, code)
        assert_all_is_well_again(rich, agent)

    return check


# Tasks.


@pytest.mark.parametrize("failure", OF_A_BODY, ids=names(OF_A_BODY))
def test_a_download_that_breaks_off_is_refunded_at_once(
    rich: Cloud, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    agent = rich.publish(wasm("echo"))
    with monkeypatch.context() as patch:
        bodies = break_bodies(rich, patch, failure)
        done = run(rich, agent)
    assert [body.closed for body in bodies] == [True], "its connection can be used again"
    assert leftovers(rich) == []
    assert_refunded_as_the_platforms_fault(rich, done, "storage_down")
    assert_all_is_well_again(rich, agent)


DISK = {
    "no folder": (Path, "mkdir", READ_ONLY),
    "no list": (Path, "iterdir", BROKEN),
    "no new file": (tempfile, "NamedTemporaryFile", DENIED),
    "no descriptor": (Path, "open", NO_FILES),
    "no lock": (fcntl, "flock", OSError(errno.ENOLCK, "")),
    "no figures": (os, "statvfs", BROKEN),
    "no room": (os, "posix_fallocate", FULL),
    "no write": (blobs, "_download", BROKEN),
    "no name": (os, "link", DENIED),
    "no memory": (blobs, "_download", MemoryError()),
}


@pytest.mark.parametrize("place", DISK)
def test_a_disk_that_fails_is_refunded_at_once(rich: Cloud, refunded_while: Callable[..., None], place: str) -> None:
    agent = rich.publish(wasm("echo"))
    folder = rich.settings.scratch_dir / "artefacts"
    folder.mkdir()
    (folder / "another").write_bytes(b"x")
    owner, name, failure = DISK[place]
    refunded_while(agent, "storage_down", owner, name, failure)


@pytest.mark.parametrize("failure", [NO_FILES, MemoryError()], ids=["no files", "no memory"])
def test_a_client_that_cannot_be_made_is_refunded_at_once(
    rich: Cloud, refunded_while: Callable[..., None], failure: BaseException
) -> None:
    agent = rich.publish(wasm("echo"))
    rich.keys.signing_key(now_s=rich.now_ms() // 1_000)
    del rich.binaries, rich._s3
    refunded_while(agent, "storage_down", clients._session(), "create_client", failure)


@pytest.mark.parametrize("failure", [BROKEN, MemoryError()], ids=["broken", "no memory"])
def test_a_sandbox_that_the_host_fails_is_refunded_at_once(
    rich: Cloud, refunded_while: Callable[..., None], failure: BaseException
) -> None:
    agent = rich.publish(wasm("echo"))
    refunded_while(agent, "worker_lost", rich.sandbox, "run", failure)


def test_no_memory_for_the_verdict_blames_nobody(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = rich.publish(wasm("echo"), acceptance={"media_type": "application/json"})
    with monkeypatch.context() as patch:
        patch.setattr(execute.acceptance, "verdict", failing(MemoryError()))
        done = run(rich, agent)
    assert_refunded_as_the_platforms_fault(rich, done, "worker_lost")
    assert run(rich, agent, task_id="mended", input={}).success


def test_no_memory_for_the_judge_asks_and_pays_none(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = judged_by(judge(rich, wasm("coverage")), budget="0.01")
    agent = rich.publish(wasm("echo"))
    monkeypatch.setattr(execute.acceptance, "judge_input", failing(MemoryError()))
    done = run(rich, agent, acceptance=rules)
    assert done.error is not None
    assert (done.error.code, done.amount_refunded_micro, done.reputation_delta) == ("worker_lost", 40_000, 0)
    assert rich.ledger.available_micro("alice") == START, "the judge's part is back, too"
    assert rich.total_micro() == START


@pytest.mark.parametrize("failure", OF_A_CALL, ids=names(OF_A_CALL))
def test_an_output_that_cannot_be_kept_is_refunded_at_once(
    rich: Cloud, refunded_while: Callable[..., None], failure: BaseException
) -> None:
    agent = rich.publish(wasm("echo"))
    refunded_while(agent, "storage_down", rich._s3, "put_object", failure, input="x" * 5_000)


@pytest.mark.parametrize("ended", ["rejected", "refused memory"])
def test_the_receipt_verifies_where_no_log_could_be_kept(
    rich: Cloud, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    """Seen before: `rejected_by` and `memory_refused` of the run, beside an end by the platform's fault."""
    greedy = wat2wasm(f"""(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        {memory(0, iovecs((32, 5_000)))}
        (func (export "_start")
            (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 16)))
            (if (i32.eq (memory.grow (i32.const 300)) (i32.const -1)) (then unreachable))))""")
    if ended == "rejected":
        agent = rich.publish(saying("x", log="l" * 2_000), acceptance={"min_bytes": 2})
    else:
        agent = rich.publish(bytes(greedy), tariff={"type": "metered", "per_mib_memory": "0.01"})
    with monkeypatch.context() as patch:
        patch.setattr(rich._s3, "put_object", failing(NO_FILES))
        done = run(rich, agent)
    assert_refunded_as_the_platforms_fault(rich, done, "storage_down")


@pytest.mark.parametrize("failure", [NO_FILES, MemoryError()], ids=["no files", "no memory"])
def test_a_host_failure_at_the_last_write_is_pending(
    rich: Cloud, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    agent = rich.publish(wasm("echo"))
    with monkeypatch.context() as patch:
        patch.setattr(rich.ledger, "settle", failing(failure))
        assert execute.execute(rich, "alice", ask(agent)).escrow_status == "funded"
    assert rich.total_micro() == START


def test_a_bad_copy_that_cannot_be_deleted_holds_no_money(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = rich.publish(wasm("echo"))
    run(rich, agent, task_id="before", budget="0.01")
    rich.deposit("alice", 10_000)
    (copy,) = (rich.settings.scratch_dir / "artefacts").iterdir()
    copy.write_bytes(b"rotten")
    rich.sandbox.close()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", failing(READ_ONLY))
        done = run(rich, agent)
    assert done.error is not None
    assert (done.error.code, done.amount_refunded_micro) == ("artefact_tampered", 50_000)
    assert rich.ledger.available_micro("alice") == START
    assert run(rich, agent, task_id="t-2").error is not None, "dropped now"
    assert run(rich, agent, task_id="mended").success


# Results, the queue, publishing, health.


@pytest.mark.parametrize("failure", OF_A_BODY, ids=names(OF_A_BODY))
def test_a_result_that_breaks_off_is_a_503_and_comes_later(
    platform: Cloud,
    call: Call,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
) -> None:
    done = run(platform, platform.publish(wasm("echo")), input="x" * 5_000)
    with monkeypatch.context() as patch:
        break_bodies(platform, patch, failure)
        status, problem, headers = call("result", "GET", "/tasks/t-1/result")
    assert (status, problem["code"], headers["Retry-After"]) == (503, "platform_unavailable", "2")
    assert call("result", "GET", "/tasks/t-1/result")[1]["output"] == done.output


@pytest.mark.parametrize("failure", OF_A_BODY, ids=names(OF_A_BODY))
def test_a_message_whose_input_breaks_off_comes_again(
    rich: Cloud, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    agent = rich.publish(wasm("echo"))
    large = Input.of(b"a large one")
    rich.outputs.keep_input(large)
    body = messages.write("alice", ask(agent), input_sha256=large.sha256)
    rich.queue.send(body, of="alice")
    delivery = Delivery("m", body, "gone", 1)
    with monkeypatch.context() as patch:
        break_bodies(rich, patch, failure)
        with pytest.raises(NotDoneError):
            work(rich, delivery)
    assert rich.ledger.available_micro("alice") == START
    work(rich, delivery)
    done = result.read(rich, Caller("alice"), "t-1")
    assert isinstance(done, TaskResult)
    assert (done.success, done.output) == (True, "a large one")


@pytest.mark.parametrize("failure", OF_A_CALL, ids=names(OF_A_CALL))
def test_a_task_whose_input_cannot_be_queued_is_a_503(
    platform: Cloud,
    call: Call,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
) -> None:
    agent = platform.publish(wasm("echo"))
    request = ask(agent, input=None, input_base64=base64.b64encode(bytes(200_000)).decode())
    monkeypatch.setattr(platform._s3, "put_object", failing(failure))
    with pytest.raises(PlatformUnavailableError):
        execute.submit(platform, "alice", request)
    assert platform.total_micro() == 1_000_000
    platform.skew_ms = 2 * 60 * 60 * 1_000
    assert call("result", "GET", "/tasks/t-1/result")[1]["amount_refunded"] == "0.05"


@pytest.mark.parametrize("failure", OF_A_BODY, ids=names(OF_A_BODY))
def test_an_upload_that_breaks_off_is_published_later(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    request = AgentRequest.model_validate({"name": "test", "tariff": FLAT})
    agent_id = agents.register(cloud, Caller("owner"), request).agent_id
    cloud.post(agent_id, 1, wasm("echo"))
    with monkeypatch.context() as patch:
        break_bodies(cloud, patch, failure)
        with pytest.raises(PlatformUnavailableError):
            publish.publish(cloud, f"uploads/{agent_id}/1")
    assert publish.publish(cloud, f"uploads/{agent_id}/1") == "active"


@pytest.mark.parametrize("failure", OF_A_BODY, ids=names(OF_A_BODY))
def test_health_says_which_part_the_host_fails(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    break_bodies(cloud, monkeypatch, failure)
    monkeypatch.setattr(Path, "write_bytes", failing(FULL))
    parts = {name: health._works(cloud, name, check) for name, check in health._CHECKS.items()}
    assert json.dumps([name for name, works in parts.items() if not works]) == '["binaries", "outputs", "sandbox"]'
