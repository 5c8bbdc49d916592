"""Sends each file in `events/` to its function in process.

tests/e2e sends it to the deployed function, tests/sam_local to a container. All expect the same answers.
"""

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from local import issuer
from quittance.api import identity
from quittance.api.identity import Caller
from quittance.api.models import AgentRequest
from quittance.usecases import agents
from tests.e2e.test_events import (
    CHANNEL,
    EXPIRES_AT,
    EXPIRY,
    FILES,
    HTTP,
    LOGGED,
    MESSAGES,
    NO_JSON,
    NOTHING_FAILED,
    OTHERS,
    UNREACHABLE,
    channel_placeholders,
)
from tests.functions.test_handlers import load
from tests.support import FLAT, Cloud, wasm

ISSUER_KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def platform(platform: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    identity._jwks.cache_clear()
    monkeypatch.setattr(jwt.PyJWKClient, "fetch_data", lambda _: {"keys": [issuer.jwk(ISSUER_KEY)]})
    return platform


class Sender:
    """Sends event files to their functions with the placeholders filled in."""

    def __init__(self, platform: Cloud, context: Any) -> None:
        self._platform, self._context = platform, context
        self.hired = platform.publish(wasm("wordcount"))
        request = AgentRequest.model_validate({"name": "own", "tariff": FLAT})
        own = agents.register(platform, Caller("alice"), request).agent_id
        token = issuer.sign(ISSUER_KEY, issuer.claims("alice") | {"iss": platform.settings.issuer_url})
        self._real = {EXPIRY: EXPIRES_AT, "agt_aaaaaaaaaaaaaaaa": self.hired, "agt_bbbbbbbbbbbbbbbb": own}
        self._real |= {"TOKEN": token, "096fKKXTRTtl3on89fVO.nfljtsv6qko": platform.post(own, 1, wasm("echo"))}

    def real_in(self, text: str) -> Any:
        for placeholder, value in self._real.items():
            text = text.replace(placeholder, value)
        return json.loads(text)

    def answer(self, name: str) -> Any:
        function = load(name.partition("-")[0])
        if name == "authorizer-request":
            function.settings = lambda: self._platform.settings  # type: ignore[attr-defined]  # it imported the name
        said = json.loads(json.dumps(function.handler(self.real_in(FILES[name]), self._context)))
        if name == "channels-open":
            self._real |= channel_placeholders(json.loads(said["body"]), self.hired)
        return said

    def check(self, name: str, status: int, fields: dict[str, Any]) -> None:
        said = self.answer(name)
        assert said["statusCode"] == status, said
        if name in NO_JSON:
            assert said["body"].startswith(NO_JSON[name])
        else:
            body, expected = json.loads(said["body"]), self.real_in(json.dumps(fields))
            assert {field: body[field] for field in expected} == expected, name


def test_every_event_file_is_handled(platform: Cloud, context: Any) -> None:
    sender = Sender(platform, context)
    answer = sender.answer
    assert answer("publish-s3") == ["active"]
    for name, expected in HTTP.items():
        sender.check(name, *expected)
    done = answer("execute-direct")
    assert (done["task_id"], done["success"], done["escrow_status"]) == ("task-2", True, "released")
    assert answer("execute-ticket")["task_id"] == sender.real_in(f'"{CHANNEL}.2"')
    for name in MESSAGES:
        assert answer(name) == {"batchItemFailures": []}
    assert [task["budget"] for line in answer("plan-run")["lines"] for task in line["tasks"]] == ["0.05"] * 2
    swept = answer("sweep-schedule")
    expected_sweep = {"expired": 0, "credited": 6, "logged": 6, "published": 6, "failed": 0, "complete": True}
    assert {name: swept[name] for name in expected_sweep} == expected_sweep
    drained = answer("drain-shard")
    assert (drained["credited"], drained["logged"], drained["failed"], drained["complete"]) == (0, 0, 0, True)
    for name, expected in LOGGED.items():
        sender.check(name, *expected)
    assert answer("audit-now")["differences"] == 0
    assert [part["kind"] for part in answer("audit-begin")["parts"]] == ["log", "scan"]
    assert answer("archive-schedule") == {"escrows": 0, "bundles": 0, "until": 0, "complete": False}
    assert answer("notify-stream") == NOTHING_FAILED
    assert answer("listings-stream") == NOTHING_FAILED
    filled = answer("listings-backfill")
    assert (filled["backfill"], filled["failed"]) == (None, 0)
    assert answer("webhook-sqs") == UNREACHABLE
    assert answer("authorizer-request")["context"] == {"sub": "alice", "scope": ""}
    assert {*HTTP, *LOGGED, *OTHERS} == FILES.keys()
