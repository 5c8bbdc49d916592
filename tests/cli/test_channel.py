"""The commands of payment channels against a server that checks tickets, and misbehaves if a test says so."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quittance.cli import profiles, remote
from quittance.cli.exits import Exit
from quittance.cli.main import main
from quittance.cli.profiles import Profile
from quittance.client import ChannelKey, Retries
from tests.cli.conftest import Command
from tests.client.servers import Reply, Server, problem
from tests.client.test_calls import UNAVAILABLE
from tests.client.test_channels import AGENT, Book, answer, bound

TOKEN = "not-to-be-shown"


@pytest.fixture
def server(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A platform that the profile `p` calls; commands run in an empty folder."""
    monkeypatch.setattr(remote, "RETRIES", Retries(tries=2, wait_s_min=0.001, wait_s_max=0.002))
    monkeypatch.setenv(remote.TIMEOUT, "5")
    monkeypatch.chdir(tmp_path)
    with Server().running() as running:
        profiles.write("p", Profile(api=running.url, token_file="p.token"))
        profiles.write_private(profiles.path().parent / "p.token", TOKEN)
        yield running


@pytest.fixture
def key(server: Server) -> ChannelKey:
    """The key of a channel, in the file `k`."""
    found = bound(server.url)
    found.save("k")
    server.api(f"POST /channels/{found.channel_id}/tasks", Book(found))
    return found


@pytest.fixture
def signed_out(server: Server, key: ChannelKey) -> None:
    """No configuration at all: as a program that got nothing but the file of the key."""
    profiles.path().unlink()


def run(capsys: Any, *words: object) -> tuple[int, Any]:
    """The exit code and the one JSON document of a command; no secret is printed."""
    code = main([*map(str, words), "--json"])
    written = capsys.readouterr()
    secrets = [json.loads(Path("k").read_text())["key"]["d"]] if Path("k").exists() else []
    assert not any(secret in written.out + written.err for secret in [TOKEN, *secrets])
    return code, json.loads(written.out)


OPEN = ("channel", "open", "k", "--ticket-value", "0.05", "--tickets", "20")


def test_opening_writes_the_key_before_the_deposit_is_paid(server: Server, capsys: Any) -> None:
    def opened(seen: Any) -> Reply:
        assert json.loads(Path("k").read_text())["key"]["x"] == seen.json["key"]["x"]
        return Reply(201, answer(ChannelKey.load("k")))

    server.api("POST /channels", opened)
    code, document = run(capsys, *OPEN, "--agent", AGENT, "--max-per-task", "0.1", "--until", "2027-01-01")
    assert (code, document["state"]) == (Exit.DONE, "open")
    assert Path("k").stat().st_mode & 0o777 == 0o600
    assert ChannelKey.load("k").channel_id == document["channel_id"]
    asked = server.seen[0].json
    assert (asked["agents"], asked["max_per_task"], asked["expires_at"]) == (
        [AGENT],
        "0.1",
        "2027-01-01T00:00:00+00:00",
    )


def test_opening_again_after_a_failure_uses_the_same_key(server: Server, capsys: Any) -> None:
    server.api("POST /channels", UNAVAILABLE)
    assert run(capsys, *OPEN)[0] == Exit.PLATFORM
    server.api("POST /channels", lambda _: Reply(201, answer(ChannelKey.load("k"))))
    assert run(capsys, *OPEN)[0] == Exit.DONE
    assert len({seen.json["salt"] for seen in server.seen}) == 1


def test_a_channel_whose_opening_was_not_answered_is_found(server: Server, capsys: Any) -> None:
    """The second call states another expiry, because that is counted from now."""
    server.api("POST /channels", UNAVAILABLE)
    assert run(capsys, *OPEN)[0] == Exit.PLATFORM
    server.api("POST /channels", problem(409, "channel_conflict"))
    server.api("GET /channels", lambda _: Reply(body={"channels": [answer(ChannelKey.load("k"))], "next": None}))
    code, document = run(capsys, *OPEN)
    assert (code, document["channel_id"]) == (Exit.DONE, ChannelKey.load("k").channel_id)
    Path("k").unlink()
    server.api("GET /channels", Reply(body={"channels": [answer(ChannelKey.new())], "next": None}))
    assert run(capsys, *OPEN)[0] == Exit.REFUSED


def test_a_file_keeps_its_channel(server: Server, key: ChannelKey, capsys: Any) -> None:
    code, document = run(capsys, *OPEN)
    assert (code, server.seen) == (Exit.USAGE, [])
    assert f"has the key of the channel {key.channel_id}" in document["error"]["message"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ticket-value", "0"), "--ticket-value"), (("--until", "soon"), "--until"), (("--until", "400d"), "--until"),
        (("--max-per-task", "x"), "--max-per-task"), (("--agent", "no id"), "no agent's id"),
    ],
)  # fmt: skip
def test_wrong_terms_open_nothing(server: Server, capsys: Any, words: tuple[str, str], said: str) -> None:
    code, document = run(capsys, *OPEN, *words)
    assert (code, server.seen) == (Exit.USAGE, [])
    assert said in document["error"]["message"]


def test_channels_are_listed_shown_topped_up_and_closed(server: Server, key: ChannelKey, capsys: Any) -> None:
    path = f"/channels/{key.channel_id}"
    server.api("GET /channels", Reply(body={"channels": [answer(key)], "next": None}))
    server.api(f"GET {path}", Reply(body=answer(key)))
    server.api(f"POST {path}/close", Reply(body=answer(key, state="closing")))
    added = {
        "channel_id": key.channel_id, "topup_id": "t", "amount": "0.5", "recorded_at": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip
    server.api(f"POST {path}/topups", Reply(201, added))
    assert run(capsys, "channel", "list")[1]["channels"][0]["channel_id"] == key.channel_id
    assert run(capsys, "channel", "show", "k") == run(capsys, "channel", "show", key.channel_id)
    assert run(capsys, "channel", "topup", "k", 10, "--id", "t")[1]["amount"] == "0.5"
    assert server.calls("/topups")[0].json == {"topup_id": "t", "tickets": 10}
    assert run(capsys, "channel", "close", "k")[1]["state"] == "closing"
    assert main(["channel", "show", "k"]) == Exit.DONE
    assert "0.05" in capsys.readouterr().out


def test_tickets_are_listed_and_the_file_gets_the_free_numbers(server: Server, key: ChannelKey, capsys: Any) -> None:
    line = {"number": 1, "tickets": 4, "task_id": f"{key.channel_id}.1", "agent_id": AGENT, "cost": "0.01"}
    page = {"channel_id": key.channel_id, "tickets": [line], "free": [[5, 20]], "next": None}
    server.api(f"GET /channels/{key.channel_id}/tickets", Reply(body=page))
    code, document = run(capsys, "channel", "tickets", "k", "--sync")
    assert (code, document["tickets"][0]["cost"], document["free"]) == (Exit.DONE, "0.01", 16)
    assert ChannelKey.load("k").take() == 5


@pytest.mark.usefixtures("signed_out")
def test_the_file_of_the_key_is_enough_to_pay(server: Server, key: ChannelKey, capsys: Any) -> None:
    for number in (1, 2):
        code, document = run(capsys, "call", AGENT, "--channel", "k", "--text", f"hello {number}")
        assert (code, document["task_id"]) == (Exit.DONE, f"{key.channel_id}.{number}")
    assert [seen.json["budget"] for seen in server.seen] == ["0.05", "0.05"]
    assert main(["call", AGENT, "--channel", "k", "--text", "hello", "--budget", "0.12"]) == Exit.DONE
    written = capsys.readouterr()
    assert written.out == "hello"
    assert "stays in the channel" in written.err


@pytest.mark.usefixtures("signed_out")
def test_the_only_agent_of_a_channel_needs_no_name(server: Server, capsys: Any) -> None:
    key = bound(server.url, agents=[AGENT])
    key.save("k2")
    server.api(f"POST /channels/{key.channel_id}/tasks", Book(key))
    code, document = run(capsys, "call", "--channel", "k2", "--text", "hello")
    assert (code, document["agent_id"]) == (Exit.DONE, AGENT)


@pytest.mark.usefixtures("signed_out")
def test_the_key_closes_without_a_sign_in(server: Server, key: ChannelKey, capsys: Any) -> None:
    server.api(f"POST /channels/{key.channel_id}/signed-close", Reply(body=answer(key, state="closing")))
    assert run(capsys, "channel", "close", "k", "--by-key")[1]["state"] == "closing"
    assert run(capsys, "channel", "close", "k")[0] == Exit.USAGE


@pytest.mark.usefixtures("signed_out")
def test_signed_tickets_are_sent_by_anything(server: Server, key: ChannelKey, capsys: Any) -> None:
    assert main(["channel", "sign", "k", AGENT, "--text", "hello", "--budget", "0.05", "--keep-input"]) == Exit.DONE
    ticket = json.loads(capsys.readouterr().out)
    assert ticket["task_id"] == f"{key.channel_id}.1"
    assert server.seen == []
    Path("t").write_text(json.dumps(ticket))
    for _ in range(2):
        code, document = run(capsys, "channel", "send", "t", "--channel", "k")
        assert (code, document["task_id"]) == (Exit.DONE, ticket["task_id"])
    assert main(["channel", "sign", "k", AGENT, "--text", "hello", "--number", "7"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["task_id"] == f"{key.channel_id}.7"


@pytest.mark.usefixtures("signed_out")
def test_an_unknown_outcome_leaves_a_ticket_to_send_again(server: Server, key: ChannelKey, capsys: Any) -> None:
    server.api(f"POST /channels/{key.channel_id}/tasks", UNAVAILABLE)
    code, document = run(capsys, "call", AGENT, "--channel", "k", "--text", "hello")
    assert code == Exit.PLATFORM
    assert "quittance channel send k.1.ticket --channel k" in document["error"]["mend"]
    assert Path("k.1.ticket").stat().st_mode & 0o777 == 0o600
    server.api(f"POST /channels/{key.channel_id}/tasks", Book(key))
    assert run(capsys, "channel", "send", "k.1.ticket", "--channel", "k")[1]["task_id"].endswith(".1")


@pytest.mark.parametrize(
    ("reply", "mend"),
    [
        (problem(401, "ticket_invalid", "No.", numbers=2, granted=2), "quittance channel topup"),
        (problem(401, "ticket_invalid", "No."), "clock"),
        (problem(409, "ticket_used", "No."), "--sync"),
        (problem(422, "ticket_too_small", "No."), "--budget"),
        (problem(403, "agent_not_allowed", "No."), "quittance channel show"),
        (problem(409, "channel_closed", "No.", state="closed"), "quittance channel open"),
        (problem(409, "channel_expired", "No."), "quittance channel open"),
    ],
)
@pytest.mark.usefixtures("signed_out")
def test_refusals_of_tickets_have_a_mend(server: Server, key: ChannelKey, capsys: Any, reply: Reply, mend: str) -> None:
    server.api(f"POST /channels/{key.channel_id}/tasks", reply)
    code, document = run(capsys, "call", AGENT, "--channel", "k", "--text", "hello")
    assert code == Exit.REFUSED
    assert mend in document["error"]["mend"]


@pytest.mark.parametrize(
    "words",
    [
        ("call", AGENT, "--channel", "k", "--async"), ("call", AGENT, "--channel", "k", "--watch"),
        ("call", AGENT, "--channel", "k", "--pin"), ("call", AGENT, "--channel", "k", "--task-id", "t"),
        ("call", AGENT, "--channel", "k", "--profile", "p"), ("call", AGENT, "--channel", "absent"),
        ("call", AGENT, "--channel", "."), ("call", AGENT, "--channel", "other"), ("call", "--channel", "k"),
        ("call", AGENT, "--channel", "k", "--budget", "no"), ("channel", "show", "absent"),
        ("channel", "close", "k", "--by-key", "--profile", "p"), ("channel", "send", "other"),
        ("channel", "send", "absent"), ("channel", "send", "k", "--channel", "k"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_use_of_channels_is_code_2(server: Server, key: ChannelKey, capsys: Any, words: tuple[str, ...]) -> None:
    Path("other").write_text("no key")
    code, document = run(capsys, *words)
    assert (code, server.seen) == (Exit.USAGE, [])
    assert document["error"]["message"].endswith(".")
    assert document["error"]["mend"]


def test_processes_that_share_a_file_pay_once_each(server: Server, key: ChannelKey, quittance: Command) -> None:
    for text in ("a", "b"):
        done = quittance("call", AGENT, "--channel", "k", "--text", text, "--json")
        assert done.returncode == 0, done.stderr
    numbers = [seen.json["task_id"].rpartition(".")[2] for seen in server.seen]
    assert numbers == ["1", "2"]
