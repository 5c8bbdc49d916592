"""Finding a container engine. A local server replays the engine's answers."""

import http.server
import json
import socket
import socketserver
import threading

import pytest

from local import engine
from local.console import CommandError

BRIDGE = {"IPAM": {"Config": [{"Subnet": "172.30.0.0/16", "Gateway": "172.30.0.9"}]}}


class Answers(http.server.BaseHTTPRequestHandler):
    answers: dict[str, object]

    def do_GET(self):
        found = self.path.partition("?")[0] in self.answers
        body = json.dumps(self.answers.get(self.path.partition("?")[0], {"message": "not found"})).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

    def address_string(self):
        return "local"


@pytest.fixture
def engine_with(tmp_path, monkeypatch):
    """`engine_with(answers)`: a server on the socket that DOCKER_HOST names."""
    path = tmp_path / "engine.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    servers = []

    def listen(answers):
        handler = type("Handler", (Answers,), {"answers": answers})
        servers.append(socketserver.ThreadingUnixStreamServer(str(path), handler))
        threading.Thread(target=servers[0].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    yield listen
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_gateway_of_the_bridge_is_used(engine_with):
    engine_with({"/networks/bridge": BRIDGE})
    assert engine.find().gateway() == "172.30.0.9"


def test_without_a_gateway_the_first_address_is_used(engine_with):
    engine_with({"/networks/bridge": {"IPAM": {"Config": [{"Subnet": "172.30.0.0/16"}]}}})
    assert engine.find().gateway() == "172.30.0.1"


def test_only_containers_with_the_variable_are_listed(engine_with):
    described = {f"/containers/{name}/json": {"Id": name, "Config": {"Env": [f"A={name}"]}} for name in "xy"}
    listed = {"/containers/json": [{"Id": name} for name in ("x", "y", "gone")]}
    engine_with({"/networks/bridge": BRIDGE, **listed, **described})
    assert engine.find().lambda_containers("A=y") == ["y"]


def test_images_are_found_by_name_without_registry(engine_with):
    images = [{"RepoTags": None}, {"RepoTags": ["far.example/some/here:1", "plain:2"]}]
    engine_with({"/networks/bridge": BRIDGE, "/images/json": images})
    found = [engine.find().has_image(name) for name in ("some/here:1", "here:1", "plain:2", "ere:1", "here:2")]
    assert found == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({}, "has no IPv4 network named bridge"),
        ({"/networks/bridge": {"IPAM": {"Config": None}}}, "has no IPv4 network"),
    ],
)
def test_an_engine_without_a_bridge_is_an_error(engine_with, answers, says):
    engine_with(answers)
    with pytest.raises(CommandError, match=says):
        engine.find()


def test_no_engine_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(engine, "_SOCKETS", (str(tmp_path / "a.sock"), str(tmp_path / "b.sock")))
    with pytest.raises(CommandError) as told:
        engine.find()
    assert str(told.value) == (
        f"no container engine at {tmp_path}/a.sock nor at {tmp_path}/b.sock: "
        "install and start Docker or Finch, or name its socket in DOCKER_HOST"
    )


def test_an_engine_on_another_machine_is_refused(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.9:2375")
    with pytest.raises(CommandError, match=r"DOCKER_HOST=tcp://192\.0\.2\.9:2375: containers must run on this machine"):
        engine.find()


def test_a_socket_without_a_listener_is_an_error(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/dead.sock")
    with pytest.raises(CommandError, match="does not answer"):
        engine.find()
