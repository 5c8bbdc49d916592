"""The remote commands against a server on 127.0.0.1 that answers as a test says, and misbehaves if it says so."""

import base64
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quittance.cli import profiles, remote
from quittance.cli.exits import Exit, UsageError
from quittance.cli.main import main
from quittance.cli.profiles import Profile
from quittance.cli.project import Project
from quittance.client import Retries
from tests.cli.conftest import Command
from tests.client.issuers import SECRET, Issuer
from tests.client.servers import Reply, Seen, Server, problem
from tests.support import ROOT, wasm

AGENT = "agt_k5x2mfq7w3nzt4ab"
TOKEN = "not-to-be-shown"
_PATHS = json.loads((ROOT / "layers/runtime/quittance/openapi.json").read_text())["paths"]
TOML = """# my agent
[agent]
name = "echo"
[build]
module = "echo.wasm"
[tariff]
type = "flat"
price = 0.01

[[contract.examples]]
name = "text"
input = "hello"
output = "hello"
"""


def example(route: str, status: int = 200) -> Any:
    """The example of an answer in the API's description."""
    method, path = route.split(" ")
    content = _PATHS[f"/api/v1/economic{path}"][method.lower()]["responses"][str(status)]["content"]
    return json.loads(json.dumps(content["application/json"]["example"]))


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A platform that the profile `p` calls; its answers are the examples of the API's description."""
    monkeypatch.setattr(remote, "RETRIES", Retries(tries=2, wait_s_min=0.001, wait_s_max=0.002))
    monkeypatch.setenv(remote.TIMEOUT, "5")
    with Server().running() as running:
        profiles.write("p", Profile(api=running.url, token_file="p.token"))
        profiles.write_private(profiles.path().parent / "p.token", TOKEN)
        for route in ("/accounts/me", "/accounts/me/bond", "/accounts/me/statement", "/tasks", "/agents"):
            running.api(f"GET {route}", Reply(body=example(f"GET {route}")))
        for end in ("", "/card", "/estimate", "/versions", "/runs"):
            running.api(f"GET /agents/{AGENT}{end}", Reply(body=_of_agent(f"/agents/{{agent_id}}{end}")))
        running.api("POST /tasks/execute", _settled)
        yield running


def _of_agent(path: str) -> Any:
    found = example(f"GET {path}")
    if path.endswith("/card"):
        found |= {"contract": None, "contract_sha256": None, "tariff": {"type": "flat", "price": "0.01"}}
    if path.endswith("/estimate"):
        found |= {"tariff": {"type": "flat", "price": "0.01"}, "least_price": "0.010011"}
    return found


def _settled(seen: Seen) -> Reply:
    found = example("POST /tasks/execute")
    return Reply(body=found | {"task_id": seen.json["task_id"], "agent_id": seen.json["agent_id"]})


def answer(capsys: Any, *words: object) -> tuple[int, Any]:
    """The exit code and the one JSON document of a command."""
    code = main([*map(str, words), "--json"])
    written = capsys.readouterr()
    assert TOKEN not in written.out + written.err
    return code, json.loads(written.out)


# Failures of servers and networks.

FAILURES: dict[str, tuple[Reply | str, int, str]] = {
    "500 of a gateway": (Reply(500, "<h1>no</h1>"), Exit.PLATFORM, "status 500"),
    "500 of the platform": (problem(500, "internal_error", "The platform failed."), Exit.PLATFORM, "platform failed"),
    "503": (problem(503, "platform_unavailable", "Not now."), Exit.PLATFORM, "Not now."),
    "503 in a while": (problem(503, "funding_paused", headers={"Retry-After": "90"}), Exit.PLATFORM, "No."),
    "429": (problem(429, "throttled", "Too many calls."), Exit.PLATFORM, "Too many calls."),
    "429 of a gateway": (Reply(429, {"message": "Too Many Requests"}), Exit.PLATFORM, "status 429"),
    "nothing": (Reply(drop=True), Exit.PLATFORM, "connection"),
    "half an answer": (Reply(body={"a": "b" * 100}, cut=50), Exit.PLATFORM, "connection"),
    "no answer": (Reply(hang=True), Exit.PLATFORM, "did not answer in time"),
    "HTML": (Reply(200, "<html>welcome</html>"), Exit.PLATFORM, "no AccountAnswer"),
    "other JSON": (Reply(200, {"status": "ok"}), Exit.PLATFORM, "no AccountAnswer"),
    "a redirect": (Reply(302, "", {"Location": "https://elsewhere.test/"}), Exit.PLATFORM, "status 302"),
    "404 of another server": (Reply(404, "<h1>not here</h1>"), Exit.PLATFORM, "not as Quittance does"),
    "403 of a gateway": (Reply(403, {"message": "Missing Authentication Token"}), Exit.PLATFORM, "not as Quittance"),
    "an expired token": (problem(401, "unauthenticated", "The token has expired."), Exit.REFUSED, "has expired"),
    "a refused token": (Reply(401, {"message": "Unauthorized"}), Exit.REFUSED, "refused the token"),
    "a frozen account": (problem(403, "account_frozen", "Frozen."), Exit.REFUSED, "Frozen."),
}


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_has_a_sentence_a_mend_and_a_code(
    server: Server, capsys: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    reply, code, said = FAILURES[name]
    monkeypatch.setenv(remote.TIMEOUT, "1")
    server.api("GET /accounts/me", reply)
    found, document = answer(capsys, "balance")
    assert (found, document["error"]["exit_code"]) == (code, code)
    assert said in document["error"]["message"]
    assert document["error"]["message"].endswith(".")
    assert document["error"]["mend"]


def test_a_platform_that_is_down_is_code_4(home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RETRIES", Retries(tries=1))
    profiles.write("local", Profile(api="http://127.0.0.1:1", token_file="t"))
    profiles.write_private(profiles.path().parent / "t", TOKEN)
    code, document = answer(capsys, "balance")
    assert code == Exit.PLATFORM
    assert "quittance up" in document["error"]["mend"]


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (None, "No platform is configured"),
        (Profile(api="http://far.test", token_file="t"), "must begin with https://"),
        (Profile(api="http://127.0.0.1:1", token_file="absent"), "cannot be read"),
        (Profile(api="http://127.0.0.1:1", token_file="empty"), "is empty"),
        (Profile(api="http://127.0.0.1:1"), "has no token"),
        (
            Profile(api="http://127.0.0.1:1", issuer="http://127.0.0.1:1", client_id="c", client_secret_file="absent"),
            "does not exist",
        ),
    ],
)
def test_a_wrong_profile_is_wrong_use(home: Path, capsys: Any, profile: Profile | None, said: str) -> None:
    if profile is not None:
        profiles.write("p", profile)
        profiles.write_private(profiles.path().parent / "t", TOKEN)
        profiles.write_private(profiles.path().parent / "empty", "\n")
    code, document = answer(capsys, "balance")
    assert code == Exit.USAGE
    assert said in document["error"]["message"]
    assert document["error"]["mend"]


def test_an_unknown_profile_is_wrong_use(server: Server, capsys: Any) -> None:
    code, document = answer(capsys, "balance", "--profile", "q")
    assert code == Exit.USAGE
    assert "has no profile 'q'; it has: p" in document["error"]["message"]


def test_processes_exit_with_these_codes(server: Server, quittance: Command) -> None:
    """As a script sees it: nothing but one document on stdout, the sentence on stderr."""
    server.api("GET /accounts/me", Reply(body=example("GET /accounts/me")), problem(400, "invalid_request", "Bad."))
    done = quittance("balance", "--json")
    assert (done.returncode, json.loads(done.stdout)["account_id"]) == (0, example("GET /accounts/me")["account_id"])
    assert done.stderr == b""
    done = quittance("balance", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["message"]) == (3, "Bad.")
    assert done.stderr.startswith(b"Error: Bad.")


# Money that is missing.


def test_missing_funds_are_counted_with_the_command(server: Server, capsys: Any) -> None:
    reply = problem(402, "insufficient_funds", "Too little.", available="0.25", required="1")
    server.api("POST /tasks/execute", reply)
    code, document = answer(capsys, "call", AGENT, "--text", "a", "--budget", "1")
    assert code == Exit.REFUSED
    assert "0.75 credits are missing: quittance deposit 0.75" in document["error"]["mend"]


def test_only_the_bank_deposits_elsewhere(server: Server, capsys: Any) -> None:
    reply = problem(403, "missing_scope", "The token lacks the scope.", required_scope="ledger:deposit")
    server.api("POST /accounts/me/deposits", reply)
    code, document = answer(capsys, "deposit", "5")
    assert code == Exit.REFUSED
    assert "Whoever runs the platform" in document["error"]["mend"]


def test_an_unsure_deposit_can_be_repeated_with_its_id(server: Server, capsys: Any) -> None:
    server.api("POST /accounts/me/deposits", Reply(drop=True))
    code, document = answer(capsys, "deposit", "5")
    assert code == Exit.PLATFORM
    sent = server.calls("/deposits")[-1].json["deposit_id"]
    assert f"--id {sent}" in document["error"]["mend"]
    assert document["error"]["id"] == sent


# Tasks.


def test_a_call_says_its_budget_and_what_it_cost(server: Server, capsys: Any) -> None:
    assert main(["call", AGENT, "--text", "hello"]) == Exit.DONE
    written = capsys.readouterr()
    sent = server.calls("/tasks/execute")[0].json
    assert sent["input"] == "hello"
    assert f"budget {sent['budget']}" in written.err
    assert "refund" in written.err
    assert written.out == example("POST /tasks/execute")["output"]


def test_options_of_a_call_are_sent(server: Server, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"\xff\x00")
    words = ["--input", tmp_path / "in", "--budget", "0.5", "--timeout", "7", "--pin", "--keep-input"]
    code, _ = answer(capsys, "call", AGENT, *words, "--share", "payer,log", "--task-id", "mine")
    assert code == Exit.DONE
    sent = server.calls("/tasks/execute")[0].json
    pins = _of_agent("/agents/{agent_id}/estimate")
    assert base64.b64decode(sent.pop("input_base64")) == b"\xff\x00"
    assert sent == {
        "task_id": "mine",
        "agent_id": AGENT,
        "budget": "0.5",
        "timeout": 7,
        "keep_input": True,
        "share": {"payer": True, "log": True},
        **{name: pins[name] for name in ("module_sha256", "tariff_sha256", "rules_sha256")},
    }


@pytest.mark.parametrize(
    ("schema", "sent"),
    [
        (None, "a b"),
        ({"type": "string"}, '"a b"'),
        ({"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}, '{"text":"a b"}'),
        ({"type": "array"}, "a b"),
    ],
)
def test_text_takes_the_form_of_the_contract(server: Server, capsys: Any, schema: Any, sent: str) -> None:
    from quittance.acceptance.contract import Contract, contract_json, contract_sha256

    contract = {} if schema is None else {"input_schema": schema}
    digest = contract_sha256(contract_json(Contract.model_validate(contract)))
    card = {"contract": contract or None, "contract_sha256": digest}
    server.api(f"GET /agents/{AGENT}/card", Reply(body=_of_agent("/agents/{agent_id}/card") | card))
    assert main(["call", AGENT, "--text", "a b"]) == Exit.DONE
    assert server.calls("/tasks/execute")[0].json["input"] == sent


def test_an_agent_that_fails_is_code_1(server: Server, capsys: Any) -> None:
    failed = {"success": False, "output": None, "error": {"code": "exit_code", "message": "The agent ended with 3."}}
    server.api("POST /tasks/execute", lambda seen: Reply(body={**_settled(seen).body, **failed}))
    code, document = answer(capsys, "call", AGENT, "--text", "a")
    assert (code, document["error"]["message"]) == (Exit.FAILED, "The agent ended with 3.")
    assert main(["call", AGENT, "--text", "a"]) == Exit.FAILED
    assert "The agent ended with 3." in capsys.readouterr().err


def test_a_task_can_be_left_and_watched(server: Server, capsys: Any) -> None:
    pending = example("POST /tasks/execute", 202)
    server.api("POST /tasks/execute", lambda seen: Reply(202, pending | {"task_id": seen.json["task_id"]}))
    assert main(["call", AGENT, "--text", "a", "--async", "--task-id", "t"]) == Exit.DONE
    assert capsys.readouterr().out == "t\n"
    done = example("GET /tasks/{task_id}/result") | {"task_id": "t"}
    server.api("GET /tasks/t/result", Reply(202, pending | {"task_id": "t"}), Reply(body=done))
    code, document = answer(capsys, "result", "t", "--watch")
    assert (code, document["task_id"]) == (Exit.DONE, "t")


def test_a_receipt_that_proves_nothing_is_code_5(server: Server, capsys: Any) -> None:
    server.api("GET /.well-known/jwks.json", Reply(body=example("GET /.well-known/jwks.json")))
    code, document = answer(capsys, "call", AGENT, "--text", "a", "--verify")
    assert code == Exit.UNPROVEN
    assert "does not prove" in document["error"]["message"]


def test_a_receipt_is_saved_or_the_task_not_sent(server: Server, capsys: Any, tmp_path: Path) -> None:
    code, document = answer(capsys, "call", AGENT, "--text", "a", "--save-receipt", tmp_path / "no" / "r.jws")
    assert (code, server.calls("/tasks/execute")) == (Exit.USAGE, [])
    code, document = answer(capsys, "call", AGENT, "--text", "a", "--save-receipt", tmp_path / "r.jws")
    assert (tmp_path / "r.jws").read_text().strip() == document["receipt"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["call", "agt_unknown00000000"], Exit.REFUSED, "Check the id"),
        (["call", "no such agent"], Exit.USAGE, "agents search"),
        (["call", "../elsewhere"], Exit.USAGE, "quittance new"),
        (["call"], Exit.USAGE, "quittance new"),
        (["call", AGENT, "--text", "a", "--input", "b"], Exit.USAGE, "one of them"),
        (["call", AGENT, "--share", "everything"], Exit.USAGE, "payer,log"),
        (["call", AGENT, "--async", "--watch"], Exit.USAGE, "--watch queues"),
        (["runs", AGENT, "--since", "yesterday"], Exit.USAGE, "2h"),
        (["price", AGENT, "--flat", "1", "--base", "1"], Exit.USAGE, "flat or metered"),
        (["price", AGENT, "--flat", "-1"], Exit.USAGE, "credits"),
        (["retire", AGENT], Exit.USAGE, "--yes"),
        (["rollback", AGENT, "1", "2"], Exit.USAGE, "one version"),
        (["statement", "--csv"], Exit.USAGE, "one of them"),
        (["bond", "--add", "1", "--release", "1"], Exit.USAGE, "one of them"),
    ],
)
def test_wrong_use_says_what_is_right(
    server: Server, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found, document = answer(capsys, *words)
    assert found == code
    assert said in document["error"]["mend"]


# Publishing.


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "echo").mkdir()
    (tmp_path / "echo" / "echo.wasm").write_bytes(wasm("echo"))
    (tmp_path / "echo" / "quittance.toml").write_text(TOML)
    return tmp_path / "echo"


@pytest.fixture
def publishing(server: Server) -> Server:
    """A platform that publishes what is uploaded."""
    opened = {"agent_id": AGENT, "state": "awaiting_upload", "version": 1}
    form = {
        "method": "POST",
        "url": f"{server.url}/bucket",
        "fields": {"key": "k"},
        "expires_at": "2026-01-01T00:00:00Z",
    }
    server.api("POST /agents", Reply(201, {**opened, "upload": form}))
    server.api(f"POST /agents/{AGENT}/versions", Reply(201, {**opened, "version": 2, "upload": form}))
    server.on("POST /bucket", Reply(204))
    version = example("GET /agents/{agent_id}/versions")["versions"][0] | {"state": "active", "rejection": None}
    digest = "0" * 64

    def versions(_: Seen) -> Reply:
        number = 2 if server.calls(f"/agents/{AGENT}/versions") and _posted(server) else 1
        return Reply(body={"versions": [version | {"number": number, "module_sha256": digest}], "next": None})

    server.api(f"GET /agents/{AGENT}/versions", versions)
    agent = example("GET /agents/{agent_id}") | {"name": "echo", "description": ""}
    server.api(f"GET /agents/{AGENT}", Reply(body=agent))
    return server


def _posted(server: Server) -> bool:
    return any(seen.method == "POST" and seen.path.endswith("/versions") for seen in server.seen)


def test_publish_writes_the_id_and_then_the_next_version(publishing: Server, capsys: Any, project: Path) -> None:
    code, document = answer(capsys, "publish", project)
    assert (code, document["agent_id"], document["number"]) == (Exit.DONE, AGENT, 1)
    text = (project / "quittance.toml").read_text()
    assert text.startswith(TOML)
    assert f'p = "{AGENT}"' in text
    code, document = answer(capsys, "publish", project)
    assert (code, document.get("number")) == (Exit.DONE, 2), document
    sent = [seen.json for seen in publishing.seen if seen.method == "POST" and seen.path.endswith("/versions")]
    assert sent[0]["contract"]["examples"][0]["name"] == "text"
    assert sent[0]["task_judges"] == "refused", "what the file does not have is taken away"
    assert len(publishing.calls("/bucket")) == 2


def test_a_failing_example_is_not_published(publishing: Server, capsys: Any, project: Path) -> None:
    (project / "quittance.toml").write_text(TOML.replace('output = "hello"', 'output = "other"'))
    code, document = answer(capsys, "publish", project)
    assert code == Exit.FAILED
    assert "text" in document["error"]["message"]
    assert publishing.calls("/agents") == []
    code, _ = answer(capsys, "publish", project, "--no-test")
    assert code == Exit.DONE


def test_a_missing_bond_is_counted_and_added(publishing: Server, capsys: Any, project: Path) -> None:
    low = example("GET /accounts/me/bond") | {"available": "0.25", "minimum": "1"}
    publishing.api("GET /accounts/me/bond", Reply(body=low))
    code, document = answer(capsys, "publish", project)
    assert code == Exit.REFUSED
    assert "0.75 are missing" in document["error"]["message"]
    assert "quittance publish --bond 0.75" in document["error"]["mend"]
    publishing.api("GET /accounts/me", Reply(body=example("GET /accounts/me") | {"available": "0.5"}))
    _, document = answer(capsys, "publish", project)
    assert "quittance deposit 0.25" in document["error"]["mend"]
    publishing.api("POST /accounts/me/bond", Reply(201, example("POST /accounts/me/bond", 201)))
    publishing.api("GET /accounts/me/bond", Reply(body=low | {"available": "1"}))
    code, _ = answer(capsys, "publish", project, "--bond", "0.75")
    assert code == Exit.DONE
    assert [seen.json["amount"] for seen in publishing.calls("/bond") if seen.method == "POST"] == ["0.75"]


def test_a_rejected_version_has_its_reason(publishing: Server, capsys: Any, project: Path) -> None:
    version = example("GET /agents/{agent_id}/versions")["versions"][0]
    rejected = version | {"number": 1, "state": "rejected", "rejection": {"code": "example_failed", "message": "x: y."}}
    publishing.api(f"GET /agents/{AGENT}/versions", Reply(body={"versions": [rejected], "next": None}))
    code, document = answer(capsys, "publish", project)
    assert (code, document["error"]["code"]) == (Exit.REFUSED, "example_failed")
    assert "x: y." in document["error"]["message"]
    assert AGENT in (project / "quittance.toml").read_text(), "the next publish opens a version of the same agent"


def test_a_refused_upload_has_the_storages_word(publishing: Server, capsys: Any, project: Path) -> None:
    publishing.on("POST /bucket", Reply(400, "<Error><Code>EntityTooLarge</Code></Error>"))
    code, document = answer(capsys, "publish", project)
    assert (code, document["error"]["code"]) == (Exit.REFUSED, "EntityTooLarge")


def test_a_local_cloud_that_was_started_anew_gets_the_agent_again(
    publishing: Server, capsys: Any, project: Path
) -> None:
    (project / "quittance.toml").write_text(TOML + '[agents]\np = "agt_ofbefore0000000"\n')
    publishing.api("GET /agents/agt_ofbefore0000000", problem(404, "not_found", "There is no such agent."))
    code, document = answer(capsys, "publish", project)
    assert (code, document["agent_id"]) == (Exit.DONE, AGENT)
    assert Project.read(project).file.agents == {"p": AGENT}


def test_a_progress_bar_never_touches_stdout(publishing: Server, project: Path) -> None:
    """stderr is a terminal, stdout a pipe."""
    publishing.slow = True
    (project / "echo.wasm").write_bytes(wasm("echo"))
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "quittance.cli", "publish", str(project), "--json"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=slave, env=environment, stdin=subprocess.DEVNULL)
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65_536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert process.stdout is not None
    assert json.loads(process.stdout.read())["agent_id"] == AGENT
    process.stdout.close()
    assert process.wait() == Exit.DONE
    assert b"uploading the module" in shown


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    lines=st.lists(
        st.sampled_from(["", "# [agents]", "[agents]", 'q = "agt_q"', 'p = "agt_old"', "[limits]", "timeout = 3"]),
        max_size=6,
    )
)
def test_the_id_is_written_and_the_rest_kept(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "quittance.toml").write_text(TOML + "\n".join(lines))
    try:
        before = Project.read(tmp_path)
    except UsageError:
        return
    before.remember("p", "agt_new")
    after = Project.read(tmp_path).file
    assert after.agents == {**Project.read(tmp_path).file.agents, "p": "agt_new"}
    assert after.limits == before.file.limits
    assert (tmp_path / "quittance.toml").read_text().startswith(TOML)


# Signing in.


def signed(subject: str, number: int) -> str:
    return jwt.encode({"sub": subject, "n": number, "exp": int(time.time()) + 3_600}, "k" * 32)


@pytest.fixture
def issuer(server: Server) -> Issuer:
    found = Issuer(server, make=signed)
    found.device = {"interval": 1, "expires_in": 600}
    return found


def written_privately() -> dict[str, str]:
    """The content of all files of the configuration, which only this user may read."""
    files = [path for path in profiles.path().parent.iterdir() if path.is_file()]
    assert {path.stat().st_mode & 0o077 for path in files} == {0}
    return {path.name: path.read_text() for path in files}


def test_a_program_signs_in_once_for_many_commands(server: Server, issuer: Issuer, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    words = ["--issuer", issuer.url, "--client-id", "shop", "--client-secret-file", tmp_path / "secret"]
    code, document = answer(capsys, "login", "--profile", "shop", "--api", server.url, *words)
    assert (code, document["account_id"]) == (Exit.DONE, example("GET /accounts/me")["account_id"])
    for _ in range(2):
        assert answer(capsys, "balance", "--profile", "shop")[0] == Exit.DONE
    assert len(issuer.issued) == 1
    assert all(SECRET not in text for text in written_privately().values())
    assert {seen.headers["authorization"] for seen in server.calls("/accounts/me")} == {f"Bearer {issuer.issued[0]}"}


def test_a_kept_token_that_is_refused_is_replaced(server: Server, issuer: Issuer, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    words = ["--issuer", issuer.url, "--client-id", "shop", "--client-secret-file", tmp_path / "secret"]
    assert answer(capsys, "login", "--profile", "shop", "--api", server.url, *words)[0] == Exit.DONE
    refusal = problem(401, "unauthenticated", "The token has expired.")
    server.api("GET /accounts/me", refusal, Reply(body=example("GET /accounts/me")))
    assert answer(capsys, "balance", "--profile", "shop")[0] == Exit.DONE
    assert len(issuer.issued) == 2


def test_a_person_signs_in_with_a_browser(server: Server, issuer: Issuer, capsys: Any) -> None:
    issuer.polls = ["authorization_pending"]
    words = ["--profile", "me", "--api", server.url, "--issuer", issuer.url, "--client-id", "cli", "--quiet"]
    assert main(["login", *words]) == Exit.DONE
    written = capsys.readouterr()
    assert f"Open {issuer.url}/go?c=WDJB-MJHT" in written.err
    assert all(token not in written.out + written.err for token in issuer.issued)
    written_privately()
    assert answer(capsys, "balance", "--profile", "me")[0] == Exit.DONE
    assert len(issuer.issued) == 1


def test_nobody_is_asked_to_sign_in_by_other_commands(server: Server, issuer: Issuer, capsys: Any) -> None:
    profiles.write("me", Profile(api=server.url, issuer=issuer.url, client_id="cli"))
    code, document = answer(capsys, "balance", "--profile", "me")
    assert (code, document["error"]["mend"]) == (Exit.REFUSED, "quittance login --profile me")


def test_a_wrong_secret_is_not_quoted(server: Server, issuer: Issuer, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("wrong-secret")
    words = ["--issuer", issuer.url, "--client-id", "shop", "--client-secret-file", tmp_path / "secret"]
    code = main(["login", "--profile", "shop", "--api", server.url, *map(str, words), "--json"])
    written = capsys.readouterr()
    assert code == Exit.USAGE
    assert "invalid_client" in written.err
    assert "wrong-secret" not in written.out + written.err
    assert "shop" not in profiles.read().profiles, "a profile that does not work is not written"


def test_a_token_from_a_file_or_from_stdin(server: Server, quittance: Command, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("of-the-file\n")
    done = quittance("login", "--profile", "f", "--api", server.url, "--token-file", tmp_path / "t")
    assert done.returncode == Exit.DONE
    done = quittance("login", "--profile", "s", "--api", server.url, "--token-file", "-", stdin=b"of-stdin\n")
    assert done.returncode == Exit.DONE
    assert b"of-stdin" not in done.stdout + done.stderr
    assert written_privately()["s.token"] == "of-stdin\n"
    sent = [seen.headers["authorization"] for seen in server.calls("/accounts/me")]
    assert sent == ["Bearer of-the-file", "Bearer of-stdin"]


def test_login_says_what_is_missing(server: Server, capsys: Any) -> None:
    code, document = answer(capsys, "login", "--profile", "new")
    assert (code, "--api URL" in document["error"]["mend"]) == (Exit.USAGE, True)
    code, document = answer(capsys, "login", "--profile", "new", "--api", server.url)
    assert (code, "--issuer" in document["error"]["mend"]) == (Exit.USAGE, True)


# Other lists.


@pytest.mark.parametrize(
    ("words", "member"),
    [
        (["agents", "search", "count", "words"], "agents"),
        (["agents", "search", "--mine"], "agents"),
        (["versions", AGENT], "versions"),
        (["runs", AGENT, "--failed"], "runs"),
        (["tasks", "--state", "failed"], "tasks"),
        (["statement"], "lines"),
    ],
)
def test_lists_are_tables_or_one_document(server: Server, capsys: Any, words: list[str], member: str) -> None:
    code, document = answer(capsys, *words, "--limit", "1")
    assert code == Exit.DONE
    assert len(document[member]) == 1
    assert main([*words, "--limit", "1"]) == Exit.DONE
    assert capsys.readouterr().out.count("\n") >= 2


def test_hostile_names_cannot_control_a_terminal(server: Server, capsys: Any) -> None:
    page = example("GET /agents")
    page["agents"][0] |= {"name": "\x1b]0;owned\x07 evil\nline", "description": "\x1b[2J"}
    server.api("GET /agents", Reply(body=page | {"next": None}))
    server.api(f"GET /agents/{AGENT}", Reply(body=example("GET /agents/{agent_id}") | {"name": "\x1b[31mred"}))
    for words in (["agents", "search", "x"], ["agents", "show", AGENT]):
        assert main(words) == Exit.DONE
        assert "\x1b" not in capsys.readouterr().out
