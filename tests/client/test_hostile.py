"""What hostile answers can do to the client: nothing but an error of its own, in bounded time and memory."""

import hashlib
import json
import subprocess
import sys
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quittance.client import (
    AgentPage,
    ApiError,
    Client,
    InvalidRequestError,
    NotProvenError,
    QuittanceError,
    TokenError,
    UnexpectedAnswerError,
    Verifier,
)
from quittance.client._calls import parsed
from quittance.client._errors import api_error
from quittance.client._wire import ANSWER_BYTES_MAX, Answer, host_of
from tests.client.servers import Reply, Server
from tests.client.test_calls import BALANCE, RESULT
from tests.client.test_desk import CARD
from tests.client.test_publishing import FLAT, MODULE, upload
from tests.proof.roots import Root
from tests.support import ROOT

CONTROLS = "\x1b[2J\u202e\x9b"


def has_controls(text: str) -> bool:
    return any(character in text for character in "\x1b\u202e\x9b\n")


def test_no_cookie_is_kept_or_sent(server: Server, client: Any) -> None:
    cookie = {"Set-Cookie": "sid=secret; Path=/"}
    server.api("GET /accounts/me", Reply(body=BALANCE, headers=cookie))
    server.api("POST /agents", Reply(201, upload(server).body, headers=cookie))
    server.on("POST /bucket", Reply(204, b""))
    client.balance()
    client.balance()
    opened = client.agents.register("a", tariff=FLAT)
    client.agents.upload(opened.upload, MODULE)
    assert [seen.headers.get("cookie") for seen in server.seen] == [None] * 4


def test_headers_of_a_given_client_do_not_reach_the_storage(server: Server) -> None:
    """The storage is a host that the API names: what the caller sends with each request is for the API alone."""
    server.api("POST /agents", upload(server))
    server.api("GET /accounts/me", Reply(body=BALANCE))
    server.on("POST /bucket", Reply(204, b""))
    inner = httpx.Client(headers={"X-Gateway-Key": "secret"}, cookies={"a": "secret"}, params={"k": "secret"})
    with inner, Client(server.url, token="t", http=inner) as client:
        client.balance()
        client.agents.upload(client.agents.register("a", tariff=FLAT).upload, MODULE)
    assert server.calls("/me")[0].headers["x-gateway-key"] == "secret"
    (sent,) = server.calls("/bucket")
    assert "secret" not in json.dumps([*sent.headers.items(), *sent.query.items()])
    assert MODULE in sent.body


def test_a_shared_verifier_keeps_the_keys_of_each_api_apart(server: Server, make: Any) -> None:
    """Keys that one server publishes must not prove the receipts of another one."""
    verifier = Verifier()
    with Server().running() as other:
        for one, root in ((server, Root()), (other, Root())):
            one.api("GET /.well-known/jwks.json", Reply(body=root.jwks()))
            one.api("GET /tasks/t/result", Reply(body=RESULT))
        for api in (server.url, other.url):
            with pytest.raises(NotProvenError):
                make(api=api, verify=verifier).result("t")
        assert len(other.calls("/jwks.json")) == 1


def test_names_in_an_answer_do_not_control_a_terminal(server: Server, client: Any) -> None:
    answer = upload(server).body
    answer["upload"]["fields"] = {CONTROLS + "x" * 100_000: 1}
    server.api("POST /agents", Reply(201, answer))
    with pytest.raises(UnexpectedAnswerError) as caught:
        client.agents.register("a", tariff=FLAT)
    assert not has_controls(str(caught.value))
    assert len(str(caught.value)) < 3_000


@pytest.mark.parametrize("host", ["127.0.0.1" + "a" * 5_000, "evil\u202e.example.com", "evil\x9b.example.com"])
def test_hosts_in_messages_are_bounded_and_plain(host: str) -> None:
    assert not has_controls(host_of(f"https://{host}/"))
    assert len(host_of(f"https://{host}/")) < 400


@pytest.mark.parametrize("text", ["!!!", "====", "a", "\u00e9"])
def test_output_that_is_no_base64_is_an_error_of_the_client(server: Server, make: Any, text: str) -> None:
    server.api("GET /.well-known/jwks.json", Reply(body=Root().jwks()))
    server.api("GET /tasks/t/result", Reply(body=RESULT | {"output": None, "output_base64": text}))
    with pytest.raises(QuittanceError):
        make(verify=True).result("t")


@pytest.mark.parametrize("name", ["\ud800", "a/\udfff"])
def test_half_surrogates_in_ids_and_filters_are_named(server: Server, client: Any, name: str) -> None:
    for call in (
        lambda: client.result(name),
        lambda: client.agents.get(name),
        lambda: client.agents.page(q=name),
        lambda: client.agents.run("agt_a", name),
        lambda: client.result("t", user=name),
    ):
        with pytest.raises(InvalidRequestError):
            call()
    assert server.seen == []


@pytest.mark.parametrize("name", ["../accounts/me", "a/../b", "a?b=c", "a#b", "a%2e%2e", "a\r\nX: y", "ä", "a;b", "\\"])
def test_ids_stay_one_segment_of_the_path(server: Server, client: Any, name: str) -> None:
    for call, end in (
        (lambda: client.agents.versions_page(name), "/versions"),
        (lambda: client.agents.card(name), "/card"),
        (lambda: client.agents.run("agt_a", name), ""),
        (lambda: client.agents.a2a_card(name), "/.well-known/agent-card.json"),
        (lambda: client.task_input(name), "/input"),
        (lambda: client.agents.update(name, name="x"), ""),
        (lambda: client.agents.activate(name, 1), "/versions/1/activate"),
    ):
        with pytest.raises(ApiError):
            call()
        path = server.seen[-1].path
        assert path.startswith("/api/v1/economic/")
        assert path.endswith(end)
        assert path.count("/") == 5 + end.count("/") + 2 * ("/runs/" in path)
        assert server.seen[-1].query == {}


@pytest.mark.parametrize("number", ["1/../2", "1", True, 1.0, None])
def test_numbers_of_versions_are_whole(server: Server, client: Any, number: Any) -> None:
    with pytest.raises(InvalidRequestError, match="number"):
        client.agents.activate("agt_a", number)
    assert server.seen == []


def test_a_remote_issuer_cannot_name_endpoints_of_this_machine() -> None:
    from quittance.client._tokens import _Issuer

    remote = _Issuer("https://issuer.example.com", None)
    for url in ("http://127.0.0.1:2375/x", "https://localhost/x", "http://[::1]/x"):
        with pytest.raises(TokenError, match="this machine"):
            remote._endpoint(url, "token")
    assert _Issuer("http://127.0.0.1:1/a", None)._endpoint("http://127.0.0.1:2/b", "token")


HOSTILE = {
    "faults": b'{"agents":[' + b"0," * 3_000_000 + b'0],"next":null}',
    "objects": b'{"agents":[' + b"{}," * 2_000_000 + b'{}],"next":null}',
    "names": b'{"agents":[],"next":null' + b"".join(b',"%d":0' % number for number in range(500_000)) + b"}",
    "deep": b"[" * 6_000_000,
    "number": b'{"agents":[],"next":' + b"9" * 6_000_000 + b"}",
}


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("kind", HOSTILE)
def test_answers_cost_a_bounded_amount_of_memory(kind: str, status: int) -> None:
    """The largest answers of the worst forms, in a process whose memory is limited."""
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "from quittance.client import AgentPage, QuittanceError\n"
        "from quittance.client._calls import parsed\n"
        "from quittance.client._errors import api_error\n"
        "from quittance.client._wire import Answer\n"
        "body = sys.stdin.buffer.read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    parsed(Answer(200, None, body), AgentPage) if int(sys.argv[1]) < 400 else"
        " api_error(400, body, retry_after_s=None)\n"
        "except QuittanceError:\n"
        "    pass\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    body = HOSTILE[kind]
    assert len(body) <= ANSWER_BYTES_MAX
    done = subprocess.run(
        [sys.executable, "-c", program, str(status)], input=body, capture_output=True, check=False,
        env={"PYTHONPATH": f"{ROOT / 'layers/runtime'}:{ROOT / 'client'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2_000:]
    assert int(done.stdout) < 200, "MiB"


def readable(body: bytes) -> bool:
    try:
        return parsed(Answer(200, httpx.Headers(), body), AgentPage).agents == []
    except UnexpectedAnswerError:
        return False


def test_members_of_an_answer_are_counted_to_the_limit() -> None:
    for name in ("more", "agents"):
        body = {"agents": [], "next": None}
        assert readable(json.dumps(body | {"more": [0] * 1_000}).encode())
        assert not readable(json.dumps(body | {name: [0] * 1_001}).encode())
        assert not readable(json.dumps(body | {name: dict.fromkeys(map(str, range(1_001)))}).encode())
    assert not readable(json.dumps(body | {"more": [[[0] * 1_001]]}).encode())


def test_values_of_an_answer_are_counted_to_the_limit() -> None:
    def page(zeros: int) -> bytes:
        """Values are counted by commas and opening brackets outside of texts."""
        lists = ",".join(["[" + ",".join("0" * 500) + "]"] * (zeros // 501))
        body = '{"agents":[],"next":",,[{","more":[' + lists + "," + ",".join("0" * (zeros % 501)) + "]}"
        return body.encode()

    def count(body: bytes) -> int:
        outside = body.replace(b'",,[{"', b'""')
        return sum(map(outside.count, (b",", b"{", b"[")))

    at = 99_000
    while count(page(at)) < 100_000:
        at += 1
    assert count(page(at)) == 100_000
    assert readable(page(at))
    assert not readable(page(at + 1))


@pytest.mark.parametrize("value", [[0] * 32_000, [[]] * 21_000, {"a": ',"\\\\[{' * 7_000}])
def test_the_largest_contracts_are_read(server: Server, client: Any, value: Any) -> None:
    contract = {"examples": [{"input": value, "name": "a"}]}
    text = json.dumps(contract, separators=(",", ":"), sort_keys=True)
    assert len(text) > 60_000
    digest = hashlib.sha256(text.encode()).hexdigest()
    server.api("GET /agents/agt_a/card", Reply(body=CARD | {"contract": contract, "contract_sha256": digest}))
    assert client.agents.card("agt_a").contract_sha256 == digest


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(
            st.sampled_from(["code", "detail", "errors", "field", "message", "available", "type", "title", "state"]),
            inner,
        ),
    )
)  # fmt: skip
def test_every_problem_document_is_an_error_with_plain_members(document: Any) -> None:
    error = api_error(402, json.dumps(document).encode(), retry_after_s=None)
    error.about("t")
    for kind in (error, api_error(422, json.dumps(document).encode(), retry_after_s=None)):
        assert not has_controls(f"{kind}{kind.title}{kind.detail}{kind.code}{kind.type}{kind.errors}")
    for name in ("available_micro", "required_micro", "required_scope", "state", "least_price_micro"):
        getattr(error, name, None)
