"""Every command as a process: exit codes, one JSON document with `--json`, and sentences instead of tracebacks."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from quittance.cli.exits import Exit
from quittance.cli.main import COMMANDS, app, main
from quittance.limits import INPUT_BYTES_MAX, MODULE_BYTES_MAX
from tests.cli.conftest import Command
from tests.support import AGENTS, wasm
from tests.waiting import GENEROUS_S

TOML = """
[agent]
name = "echo"
[build]
module = "echo.wasm"
[tariff]
type = "flat"
price = 0.01
"""
EXAMPLES = """
[[contract.examples]]
name = "text"
input = "hello"
output = "hello"
fuel_max = 1_000_000

[[contract.examples]]
name = "a file"
input_file = "in.json"
output_file = "in.json"

[[contract.examples]]
name = "values"
input = {price = 0.5, list = [1, 2]}
output = {list = [1, 2], price = 0.5}
"""
ECHO = AGENTS / "echo-zig" / "echo.wasm"
FAILING = AGENTS / "failing-c" / "failing.wasm"
MISBEHAVE = AGENTS / "misbehave-c" / "misbehave.wasm"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose module is there."""
    (tmp_path / "echo.wasm").write_bytes(wasm("echo"))
    (tmp_path / "quittance.toml").write_text(TOML)
    (tmp_path / "in.json").write_text('{"a": 1}\n')
    return tmp_path


def on_terminal(
    *words: str, columns: int = 80, environment: dict[str, str] | None = None, cwd: Path
) -> tuple[int, str]:
    """Run the command line on a terminal; return its exit code and everything that the terminal got."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.environ.update({"TERM": "xterm", "COLUMNS": str(columns), **(environment or {})})
        os.execv(sys.executable, [sys.executable, "-m", "quittance.cli", *words])
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65_536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


# Output.


def test_output_is_piped_byte_for_byte(quittance: Command) -> None:
    data = bytes(range(256)) * 3
    done = quittance("run", ECHO, "--input", "-", stdin=data)
    assert (done.returncode, done.stdout) == (Exit.DONE, data)
    assert b"fuel" in done.stderr


def test_terminal_never_gets_control_characters_of_agents(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"safe\x1b]0;owned\x07\x1b[2J\xe2\x80\xaeabc\xff\n")
    code, shown = on_terminal("run", str(ECHO), "-i", "in", environment={"NO_COLOR": "1"}, cwd=tmp_path)
    assert code == Exit.DONE
    assert "safe\\x1b]0;owned\\x07\\x1b[2J\\u202eabc\\xff" in shown
    assert not {"\x07", "\u202e"} & set(shown)
    assert "\x1b]0;" not in shown


def test_log_of_an_agent_cannot_control_the_terminal(tmp_path: Path) -> None:
    code, shown = on_terminal("run", str(FAILING), environment={"NO_COLOR": "1"}, cwd=tmp_path)
    assert code == Exit.FAILED
    assert "failing: this agent always fails" in shown


def test_json_is_one_document_and_the_only_thing_on_stdout(quittance: Command, project: Path) -> None:
    (project / "quittance.toml").write_text(TOML + EXAMPLES)
    for words in (
        ["run", "--json", "--input-text", "x"],
        ["run", MISBEHAVE, "--json", "--input-text", "binary"],
        ["run", FAILING, "--json"],
        ["test", "--json"],
        ["doctor", "--json"],
        ["run", "nothing.wasm", "--json"],
        ["test", "nowhere", "--json"],
        ["replay", "nothing.jws", "--module", "m", "--input", "i", "--json"],
    ):
        done = quittance(*words, cwd=project)
        assert done.returncode != Exit.PLATFORM, done.stderr
        answer = json.loads(done.stdout)
        assert ("error" in answer) == (done.returncode not in {Exit.DONE, Exit.FAILED}), words
        assert done.stdout.count(b"\n}\n") == 1


def test_progress_on_a_terminal_never_reaches_stdout(tmp_path: Path) -> None:
    """Stderr is a terminal, stdout is a file, as in `quittance run --json > file`."""
    shell = f"{sys.executable} -m quittance.cli run {ECHO} --json --input-text x > out.json"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv("/bin/sh", ["/bin/sh", "-c", shell])
    while True:
        try:
            if not os.read(terminal, 65_536):
                break
        except OSError:
            break
    os.close(terminal)
    os.waitpid(pid, 0)
    assert json.loads((tmp_path / "out.json").read_text())["output"] == "x"


def test_no_color_and_dumb_terminals_get_plain_text(tmp_path: Path) -> None:
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        _, shown = on_terminal("run", "nothing.wasm", environment=environment, cwd=tmp_path)
        assert "\x1b[1;31m" not in shown
        assert "nothing.wasm does not exist" in shown


def test_a_narrow_terminal_loses_nothing(project: Path) -> None:
    (project / "quittance.toml").write_text(TOML + EXAMPLES)
    code, shown = on_terminal("test", columns=24, environment={"NO_COLOR": "1"}, cwd=project)
    assert code == Exit.DONE
    letters = "".join(shown.split())
    assert "3of3examplespassed" in letters
    assert "succeeded" in letters


def test_quiet_prints_the_output_only(quittance: Command) -> None:
    done = quittance("run", ECHO, "--input-text", "hello", "--quiet")
    assert (done.stdout, done.stderr) == (b"hello", b"")


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    for words in (["run", str(ECHO), "--input-text", "x"], ["run", str(ECHO), "--json"]):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "quittance.cli", *words]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, cwd=tmp_path)
        os.close(writer)
        assert (done.returncode, done.stderr) == (Exit.CLOSED_PIPE, b""), words


def test_a_full_disk_gets_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quittance.cli", "run", str(ECHO), "--input-text", "x"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, cwd=tmp_path)
    assert done.returncode == Exit.PLATFORM
    assert b"The output cannot be written: No space left on device." in done.stderr


def test_ctrl_c_ends_a_run_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quittance.cli", "run", str(MISBEHAVE), "--input-text", "loop"]
    words = [*command, "--agent-timeout", "600", "--fuel", "1000000000000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as running:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        _wait_for(lambda: len(children.read_text().split()) > 0 or running.poll() is not None)
        workers = children.read_text().split()
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=GENEROUS_S)
    assert running.returncode == Exit.INTERRUPTED
    assert b"Traceback" not in stderr
    _wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def _wait_for(condition: Any) -> None:
    ends = time.time() + GENEROUS_S
    while not condition():
        assert time.time() < ends
        select.select([], [], [], 0.02)


def test_names_that_are_not_utf8_are_escaped(quittance: Command, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\x1b[2J.wasm")
    done = quittance("run", name, "--json")
    assert done.returncode == Exit.USAGE
    assert json.loads(done.stdout)["error"]["message"] == f"{name} does not exist."
    assert b"\\udcff\\x1b[2J.wasm does not exist" in done.stderr


def test_a_terminal_without_utf8_gets_escapes(quittance: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = quittance("run", ECHO, "--input-text", "grüße 🦀", "--json")
    assert json.loads(done.stdout.decode("ascii"))["output"] == "grüße 🦀"
    assert b"gr\\xfc.wasm does not exist" in quittance("run", "grü.wasm").stderr
    assert quittance("--help").returncode == Exit.DONE


def test_a_user_without_a_home_can_run_agents(quittance: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name)
    program = (
        "import pathlib, sys; pathlib.Path.home = classmethod(lambda _: (_ for _ in ()).throw(RuntimeError('none')));"
        "from quittance.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    for words, code in ((["run", str(ECHO), "--json"], Exit.DONE), (["doctor", "--json"], Exit.FAILED)):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, check=False)
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr


def test_a_deleted_folder_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    shell = f"cd gone && rmdir ../gone && {sys.executable} -m quittance.cli test"
    done = subprocess.run(["/bin/sh", "-c", shell], capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == Exit.PLATFORM
    assert b"No such file or directory" in done.stderr
    assert b"Traceback" not in done.stderr


# Wrong calls.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bogus"], "No such option: --bogus"),
        (["bogus"], "No such command 'bogus'"),
        (["run", "nothing.wasm"], "nothing.wasm does not exist"),
        (["run", "empty"], "There is no quittance.toml in empty"),
        (["run", "text.wasm"], "not a WebAssembly binary"),
        (["run", "secret.wasm"], "may not read secret.wasm"),
        (["run", "pipe"], "not a WebAssembly binary"),
        (["run", ECHO, "--input", "nothing"], "nothing does not exist"),
        (["run", ECHO, "--input", "huge"], f"more than {INPUT_BYTES_MAX} bytes"),
        (["run", "huge"], f"more than {MODULE_BYTES_MAX} bytes"),
        (["run", ECHO, "--input", "empty"], "empty is a folder"),
        (["run", ECHO, "--input", "text.wasm", "--input-text", "x"], "are both given"),
        (["run", ECHO, "--tariff", "{"], "--tariff: the tariff must be JSON"),
        (["run", ECHO, "--tariff", '{"type": "flat", "price": -1}'], "flat.price must be a decimal"),
        (["run", ECHO, "--tariff", '{"type": "free"}'], "--tariff: "),
        (["run", ECHO, "--tariff", "nothing"], "nothing does not exist"),
        (["run", ECHO, "--budget", "a lot"], "--budget must be a decimal"),
        (["run", ECHO, "--budget", "0"], "--budget is out of range"),
        (["run", ECHO, "--timeout", "0"], "--timeout is not valid"),
        (["run", ECHO, "--clock", "yesterday"], "--clock is not valid"),
        (["run", ECHO, "--clock", "9" * 40], "--clock is out of range"),
        (["run", ECHO, "--seed", "12"], "--seed is not valid"),
        (["run", ECHO, "--memory-mib", "5000"], "--memory-mib"),
        (["run", ECHO, "--watch", "--json"], "do not go together"),
        (["test", "empty"], "There is no quittance.toml in empty"),
        (["replay", "text.wasm", "--module", ECHO, "--input", "text.wasm"], "The receipt: "),
        (["up"], "started from a checkout"),
        (["down"], "started from a checkout"),
    ],
    ids=lambda value: (
        " ".join(str(getattr(word, "name", word))[:20] for word in value) if isinstance(value, list) else ""
    ),
)
def test_a_wrong_call_gets_a_sentence_and_code_2(
    quittance: Command, tmp_path: Path, words: list[Any], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.wasm").write_text("no module")
    (tmp_path / "secret.wasm").write_bytes(b"")
    (tmp_path / "secret.wasm").chmod(0)
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(1 << 40)
    if "secret.wasm" in words and os.geteuid() == 0:
        pytest.skip("root may read every file")
    done = quittance(*words)
    assert done.returncode == Exit.USAGE, done.stderr
    assert said in " ".join(done.stderr.decode().split())
    assert done.stdout == b"" or "--json" in words


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[agent", "is not TOML"),
        ("\x00", "is not TOML"),
        (TOML.replace('name = "echo"', ""), "agent.name"),
        (TOML + "[limits]\nmemory = 1\n", "limits.memory"),
        (TOML.replace("0.01", "nan"), "is not TOML"),
        (TOML.replace("0.01", "1e999999999"), "price"),
        (TOML.replace("echo.wasm", "../../etc/passwd"), "outside the project"),
        (TOML.replace("echo.wasm", "/etc/passwd"), "outside the project"),
        (TOML.replace("echo.wasm", "link.wasm"), "outside the project"),
        (TOML.replace("echo.wasm", "missing.wasm"), "is not built"),
        (TOML + '[contract]\ninput_schema = "missing.json"\n', "missing.json does not exist"),
        (TOML + '[contract]\ninput_schema = "echo.wasm"\n', "contract.input_schema"),
        (TOML + "[contract]\ninput_schema = {type = 7}\n", "input_schema"),
        (TOML + "[contract]\ninput_schema = {type = 'object'}\n", "input must be one JSON document"),
        (TOML + "a = " + "[" * 100_000, "quittance.toml"),
    ],
)
def test_a_wrong_project_gets_a_sentence_and_code_2(quittance: Command, project: Path, text: str, said: str) -> None:
    (project / "link.wasm").symlink_to("/etc/passwd")
    (project / "quittance.toml").write_text(text)
    done = quittance("run", cwd=project)
    assert done.returncode == Exit.USAGE
    assert said in " ".join(done.stderr.decode().split())


def test_a_project_that_is_not_utf8_gets_a_sentence(quittance: Command, project: Path) -> None:
    (project / "quittance.toml").write_bytes(b"# \xff\n" + TOML.encode())
    assert b"not UTF-8 at byte 2" in quittance("run", cwd=project).stderr


def test_every_command_has_help_and_says_its_exit_codes(quittance: Command, capsys: Any) -> None:
    done = quittance("--help")
    text = done.stdout.decode()
    assert done.returncode == 0
    assert "Exit codes" in text
    for name in COMMANDS:
        assert name in text
        assert main([name, "--help"]) == 0
        assert "Traceback" not in capsys.readouterr().err


def test_help_texts_are_shown_as_they_are_written() -> None:
    """Square brackets are markup there: what is in them would not appear."""

    def check(command: Any, path: str) -> None:
        for parameter in command.params:
            assert "[" not in (getattr(parameter, "help", None) or ""), f"{path}: {parameter.name}"
        for name in getattr(command, "commands", {}):
            check(command.commands[name], f"{path} {name}")

    check(typer.main.get_command(app), "quittance")


def test_version_is_printed(quittance: Command) -> None:
    assert quittance("--version").stdout.startswith(b"quittance 0.")


# Tests of a project.


def test_examples_that_hold_pass(quittance: Command, project: Path) -> None:
    (project / "quittance.toml").write_text(TOML + EXAMPLES)
    done = quittance("test", cwd=project)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (Exit.DONE, b"3 of 3 examples passed"), done.stderr


def test_an_example_that_fails_shows_the_difference(quittance: Command, project: Path) -> None:
    wrong = """
[[contract.examples]]
name = "lines"
input = "one\\ntwo\\n"
output = "one\\nthree\\n"
[[contract.examples]]
name = "too dear"
input = "x"
fuel_max = 10
[[contract.examples]]
name = "must fail"
input = "x"
exit_code = 3
"""
    (project / "quittance.toml").write_text(TOML + wrong)
    done = quittance("test", cwd=project)
    text = done.stdout.decode()
    assert done.returncode == Exit.FAILED
    assert "-three" in text
    assert "+two" in text
    assert "its fuel_max, 10" in text
    assert "exit code 3 was expected" in text
    assert "0 of 3 examples passed" in text
    answer = json.loads(quittance("test", "--json", cwd=project).stdout)
    assert (answer["passed"], answer["failed"]) == (0, 3)
    assert [each["passed"] for each in answer["examples"]] == [False] * 3


def test_a_project_without_examples_says_how_to_add_one(quittance: Command, project: Path) -> None:
    done = quittance("test", cwd=project)
    assert done.returncode == Exit.USAGE
    assert b"[[contract.examples]]" in done.stderr


def test_a_project_is_found_from_a_folder_below_it(quittance: Command, project: Path) -> None:
    (project / "src").mkdir()
    assert quittance("run", "--input-text", "x", cwd=project / "src").stdout == b"x"
