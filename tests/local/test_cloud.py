"""The local cloud's process."""

import io
import json
import os
import signal
import socket
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

from local import cloud, deploy, processes, venvs
from local.console import MendError
from local.paths import State


@pytest.fixture
def state(tmp_path):
    venvs.ensure("cloud")
    state = State(tmp_path)
    yield state
    cloud.stop(state)


def listening_addresses(process):
    """The local addresses of a process's listening sockets (Linux)."""
    inodes = set()
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        target = str(descriptor.readlink())
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process.pid}/net/{table}").read_text("ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1])
    return found


def test_it_starts_answers_on_the_loopback_alone_and_ends(state):
    running = cloud.start(state)

    assert cloud.running(state) == running
    with urllib.request.urlopen(f"{running.url}/_ministack/health") as answer:
        assert answer.status == 200
    if Path("/proc").is_dir():
        assert listening_addresses(running.process) == {f"0100007F:{running.port:04X}"}

    assert cloud.stop(state)
    assert cloud.running(state) is None
    assert running.process not in processes.table()
    assert not state.scratch.exists()
    assert not cloud.stop(state)


def test_one_that_was_killed_is_started_again_on_its_port(state):
    killed = cloud.start(state)
    os.kill(killed.process.pid, signal.SIGKILL)

    assert cloud.running(state) is None
    assert cloud.start(state).port == killed.port


def test_workers_share_one_unpacked_layer(state):
    """A repair of launch.py: two functions run, and the layer is on the disk once."""
    running = cloud.start(state)
    client = deploy.aws(running, "lambda")
    files = {"python/shared.py": "ANSWER = __file__"}
    layer = client.publish_layer_version(LayerName="shared", Content={"ZipFile": zipped(files)})
    answers = []
    for name in ("one", "two"):
        code = "import shared\ndef handler(event, context):\n    return shared.ANSWER\n"
        client.create_function(
            FunctionName=name, Runtime=f"python{venvs.PYTHON_VERSION}", Handler="app.handler",
            Role="arn:aws:iam::000000000000:role/r", Code={"ZipFile": zipped({"app.py": code})},
            Layers=[layer["LayerVersionArn"]],
        )  # fmt: skip
        answers.append(json.loads(client.invoke(FunctionName=name)["Payload"].read()))

    places = {Path(answer).resolve() for answer in answers}
    assert len(set(answers)) == 2
    assert len(places) == 1, "ministack unpacks layers in another way now: see local/launch.py"


def test_what_a_handler_raises_keeps_its_name_and_its_worker(state):
    """A repair of launch.py, as Lambda has it. Without it: `Runtime.HandlerError`, and a new process for each call."""
    running = cloud.start(state)
    client = deploy.aws(running, "lambda")
    code = """
import os
class RefusedError(Exception): pass
def handler(event, context):
    if event.get("raise"):
        raise RefusedError("no")
    return os.getpid()
"""
    client.create_function(
        FunctionName="raising", Runtime=f"python{venvs.PYTHON_VERSION}", Handler="app.handler",
        Role="arn:aws:iam::000000000000:role/r", Code={"ZipFile": zipped({"app.py": code})},
    )  # fmt: skip

    def invoke(event):
        answer = client.invoke(FunctionName="raising", Payload=json.dumps(event).encode())
        return json.loads(answer["Payload"].read()), answer.get("FunctionError")

    first = invoke({})
    error, kind = invoke({"raise": True})
    assert (error["errorType"], error["errorMessage"], kind) == ("RefusedError", "no", "Unhandled")
    assert error["requestId"]
    assert "raise RefusedError" in "".join(error["stackTrace"])
    assert invoke({}) == first, "the same process"
    waits_until = time.monotonic() + 10
    while not any("[ERROR] RefusedError: no" in line for line in deploy.functions_log(running)):
        assert time.monotonic() < waits_until, "the log does not tell of it"
        time.sleep(0.05)


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def test_a_taken_port_is_told(state):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(MendError, match=f"port {port} on 127.0.0.1 is taken"):
            cloud.start(state, port)


def test_the_cloud_of_a_copied_checkout_is_left_alone(state, tmp_path):
    running = cloud.start(state)
    copy = State(tmp_path / "copy")
    copy.root.mkdir()
    copy.process.write_bytes(state.process.read_bytes())

    assert cloud.running(copy) is None
    assert not cloud.stop(copy)
    assert cloud.running(state) == running
