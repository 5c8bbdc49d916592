"""What the command line keeps on a machine (compiled modules, profiles) and finds there (doctor, local cloud)."""

import http.server
import json
import os
import pty
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import jwt
import pytest

from quittance.cli import artefacts, profiles
from quittance.cli.artefacts import Artefacts
from quittance.cli.exits import Exit, UsageError
from quittance.cli.main import main
from quittance.cli.profiles import Profile
from tests.cli.conftest import Command
from tests.client.servers import Reply, Server
from tests.support import wasm
from tests.waiting import GENEROUS_S

CHECKOUT = """
import json, pathlib, sys
words = sys.argv[1:]
if words[0] == "up":
    print("Quittance is up: example calls", file=sys.stdout)
    print("  starting the local cloud", file=sys.stderr)
    path = pathlib.Path(".local/stack.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"api_url": pathlib.Path("url").read_text()}))
elif words[0] == "token":
    print("token-of-" + words[-1])
elif words[0] == "down":
    print("stopped")
else:
    sys.exit(1)
"""


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that only this test uses."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "quittance" / "artefacts"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What looks like a checkout: its local cloud does what the real one does, but starts nothing."""
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "__init__.py").touch()
    (tmp_path / "local" / "__main__.py").write_text(CHECKOUT)
    (tmp_path / "template.yaml").touch()
    return tmp_path


# Compiled modules.


def test_a_module_is_compiled_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Artefacts() as kept:
        first = kept.of(wasm("echo"))
    monkeypatch.setattr(artefacts, "compiled", lambda _: pytest.fail("compiled again"))
    with Artefacts() as kept:
        assert kept.of(wasm("echo")) == first
    assert first.path.parent == own_cache
    assert own_cache.stat().st_mode & 0o777 == 0o700
    assert first.path.stat().st_mode & 0o777 == 0o600


def test_a_changed_artefact_is_never_loaded(own_cache: Path) -> None:
    with Artefacts() as kept:
        first = kept.of(wasm("echo"))
    first.path.write_bytes(first.path.read_bytes()[:-1] + b"!")
    with Artefacts() as kept:
        again = kept.of(wasm("echo"))
    assert again == first
    assert main(["run", str(_module(own_cache.parent, "echo")), "--json"]) == Exit.DONE


def test_a_folder_open_to_others_is_not_used(own_cache: Path, capsys: Any) -> None:
    with Artefacts() as kept:
        kept.of(wasm("echo"))
    own_cache.chmod(0o777)
    with Artefacts() as kept:
        made = kept.of(wasm("echo"))
        assert own_cache not in made.path.parents
        assert made.path.is_file()
    assert not made.path.exists()
    assert "open to other users" in capsys.readouterr().err


def test_a_link_instead_of_the_folder_is_not_followed(own_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    own_cache.parent.mkdir(parents=True)
    own_cache.symlink_to(tmp_path / "elsewhere")
    with Artefacts() as kept:
        kept.of(wasm("echo"))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_unwritable_cache_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["run", str(_module(tmp_path, "echo")), "--json"]) == Exit.DONE


def test_the_oldest_artefacts_make_room(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefacts, "KEPT_BYTES_MAX", 1)
    with Artefacts() as kept:
        first, second = kept.of(wasm("echo")), kept.of(wasm("failing"))
    assert not first.path.exists()
    assert second.path.is_file()


def _module(folder: Path, name: str) -> Path:
    path = folder / f"{name}.wasm"
    path.write_bytes(wasm(name))
    return path


# Profiles.


def test_a_profile_is_written_and_the_rest_kept(home: Path) -> None:
    file = profiles.path()
    file.parent.mkdir(parents=True)
    file.write_text(
        '# mine\ndefault = "far"\n[profiles.far]\napi = "https://far.test"\n\n[profiles.near]\napi = "http://old"\n'
    )
    profiles.write("near", Profile(api="http://127.0.0.1:1/v1", token_file="near.token"))
    text = file.read_text()
    assert text.startswith('# mine\ndefault = "far"\n')
    assert text.count("[profiles.near]") == 1
    found, near = profiles.chosen(), profiles.chosen("near")
    assert found is not None
    assert near is not None
    assert (found.name, found.profile.api) == ("far", "https://far.test")
    assert near.token_path == file.parent / "near.token"
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_environment_chooses_the_platform(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert profiles.chosen() is None
    profiles.write("one", Profile(api="https://one.test"))
    profiles.write("two", Profile(api="https://two.test"))
    assert profiles.chosen().name == "one"  # type: ignore[union-attr]
    monkeypatch.setenv("QUITTANCE_PROFILE", "two")
    assert profiles.chosen().name == "two"  # type: ignore[union-attr]
    monkeypatch.setenv("QUITTANCE_API", "https://three.test")
    monkeypatch.setenv("QUITTANCE_TOKEN", "t")
    found = profiles.chosen()
    assert found is not None
    assert (found.profile.api, found.token) == ("https://three.test", "t")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[profiles", "is not TOML"),
        ("[profiles.a]\n", "profiles.a.api"),
        ('[profiles.a]\napi = "ftp://a"\n', "profiles.a.api"),
        ('[profiles.a]\napi = "https://a"\nsecret = "x"\n', "profiles.a.secret"),
        ('default = "b"\n[profiles.a]\napi = "https://a"\n', "has no profile 'b'"),
    ],
)
def test_a_wrong_configuration_gets_a_sentence(home: Path, text: str, said: str) -> None:
    profiles.path().parent.mkdir(parents=True)
    profiles.path().write_text(text)
    with pytest.raises(UsageError) as wrong:
        profiles.chosen()
    assert said in wrong.value.problem


# Doctor.


class _Health(http.server.BaseHTTPRequestHandler):
    status, skew_s = 200, 0

    def do_GET(self) -> None:
        self.send_response_only(self.status)
        self.send_header("Date", formatdate(time.time() + self.skew_s, usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def platform_url() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Health)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    thread.join()
    server.server_close()


def diagnosed(capsys: Any) -> dict[str, dict[str, Any]]:
    main(["doctor", "--json"])
    return {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}


def test_doctor_needs_no_platform(capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == Exit.DONE
    assert "no platform is configured" in capsys.readouterr().out
    found = diagnosed(capsys)["profile"]
    assert found["verdict"] == "optional"
    assert "quittance up" in found["mend"]


def test_doctor_tests_sandbox_token_platform_and_clock(
    platform_url: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = jwt.encode({"exp": int(time.time()) + 3_600}, "k" * 32)
    profiles.write("p", Profile(api=platform_url, token_file="t"))
    profiles.write_private(profiles.path().parent / "t", token)
    found = diagnosed(capsys)
    assert {found[name]["verdict"] for name in ("sandbox", "profile", "token", "platform", "clock")} == {"ok"}
    monkeypatch.setattr(_Health, "status", 503)
    monkeypatch.setattr(_Health, "skew_s", -3_600)
    profiles.write_private(profiles.path().parent / "t", jwt.encode({"exp": 1}, "k" * 32))
    found = diagnosed(capsys)
    assert {found[name]["verdict"] for name in ("token", "platform", "clock")} == {"missing"}
    assert "answers 503" in found["platform"]["detail"]
    assert "expired 1970" in found["token"]["detail"]


def test_doctor_says_what_is_wrong_with_a_profile(capsys: Any) -> None:
    profiles.write("p", Profile(api="http://127.0.0.1:1/api", token_file="t"))
    found = diagnosed(capsys)
    assert found["token"]["verdict"] == found["platform"]["verdict"] == "missing"
    (profiles.path().parent / "t").write_text("secret")
    (profiles.path().parent / "t").chmod(0o644)
    main(["doctor", "--json"])
    assert "chmod 600" in capsys.readouterr().out
    profiles.path().write_text("[")
    assert "is not TOML" in diagnosed(capsys)["profile"]["detail"]
    assert main(["doctor"]) == Exit.FAILED


# The local cloud.


def test_up_writes_a_profile_that_calls_the_local_cloud(
    checkout: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server().running() as server:
        (checkout / "url").write_text(server.url)
        moved = {"account_id": "alice", "recorded_at": "2026-01-01T00:00:00Z", "amount": "2"}
        server.api("POST /accounts/me/deposits", Reply(201, {**moved, "deposit_id": "quittance-up"}))
        server.api("POST /accounts/me/bond", Reply(201, {**moved, "bond_id": "quittance-up"}))
        _up_and_down(checkout, server.url, capsys, monkeypatch)
        assert {(seen.headers["authorization"], seen.json["amount"]) for seen in server.seen} == {
            ("Bearer token-of-alice", "2")
        }


def _up_and_down(checkout: Path, url: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "below").mkdir()
    monkeypatch.chdir(checkout / "below")
    assert main(["up", "--json"]) == Exit.DONE
    answer = json.loads(capsys.readouterr().out)
    assert answer["api"] == url
    found = profiles.chosen()
    assert found is not None
    assert found.token_path is not None
    assert (found.name, found.token_path.read_text()) == ("local", "token-of-alice\n")
    assert found.token_path.stat().st_mode & 0o777 == 0o600
    assert main(["down", "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out) == {"stopped": True}


def test_a_local_cloud_that_fails_gets_a_sentence(checkout: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    (checkout / "local" / "__main__.py").write_text("import sys; sys.exit('error: no\\nport is free')")
    assert main(["up", "--quiet"]) == Exit.PLATFORM
    assert "error: no port is free" in capsys.readouterr().err


# Watching.


def test_watch_builds_and_runs_at_each_change(tmp_path: Path) -> None:
    build = "import shutil; shutil.copy('src/agent.wasm', 'build/agent.wasm')"
    (tmp_path / "src").mkdir()
    (tmp_path / "build").mkdir()
    (tmp_path / "src" / "agent.wasm").write_bytes(wasm("echo"))
    (tmp_path / "quittance.toml").write_text(
        f'[agent]\nname = "a"\n[build]\ncommand = ["python", "-c", {json.dumps(build)}]\nmodule = "build/agent.wasm"\n'
        'watch = ["src"]\n[tariff]\ntype = "flat"\nprice = 1\n'
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        words = [sys.executable, "-m", "quittance.cli", "run", "--watch", "--input-text", "hello"]
        os.execv(sys.executable, words)
    try:
        _read_until(terminal, "Waiting for a change", "hello", "succeeded")
        (tmp_path / "src" / "agent.wasm").write_bytes(wasm("failing"))
        _read_until(terminal, "Waiting for a change", "this agent always fails")
        (tmp_path / "src" / "agent.wasm").write_bytes(b"broken")
        _read_until(terminal, "Waiting for a change", "not a WebAssembly binary")
        (tmp_path / "src" / "agent.wasm").write_bytes(wasm("echo"))
        _read_until(terminal, "Waiting for a change", "hello")
        os.kill(pid, signal.SIGINT)
        _read_until(terminal, "stopped")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)  # hangs up: whatever still runs ends
    assert os.waitstatus_to_exitcode(status) == Exit.DONE


def _read_until(terminal: int, end: str, *others: str) -> None:
    shown, ends = "", time.time() + GENEROUS_S
    while end not in shown:
        assert time.time() < ends, shown
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65_536).decode(errors="replace")
    assert all(other in shown for other in others), shown


def test_projects_elsewhere_are_not_found(quittance: Command) -> None:
    assert b"There is no quittance.toml" in quittance("test").stderr
