"""`quittance new`: what it makes, and what it refuses."""

import json
import re
from pathlib import Path

import pytest

from quittance.cli import new
from quittance.cli.exits import Exit, UsageError
from quittance.cli.project import Project
from quittance.cli.toolchains import LANGUAGES
from tests.cli.conftest import Command

TEMPLATES = Path(new.__file__).parent / "templates"


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_template_makes_a_complete_project(language: str, tmp_path: Path) -> None:
    files = new.files_of(language, "my-agent")
    new.write(tmp_path / "made", files)
    project = Project.read(tmp_path / "made")
    assert (project.file.agent.name, project.file.build.tools) == ("my-agent", list(LANGUAGES[language].tools))
    assert len(project.contract.examples) == 3
    assert all((project.folder / name).exists() for name in project.file.build.watch)
    for name, content in files.items():
        text = content.decode()
        assert "{{" not in re.sub(r"\{\{(name|\\?\"|\})|\{\{\"|format.*", "", text) or name.endswith(".rs"), name
        assert "://" not in text.replace("https://...", ""), name
    assert (project.folder / ".gitignore").read_text().splitlines() == ["build/", "node_modules/", "target/"]


def test_every_template_belongs_to_a_language() -> None:
    assert {folder.name for folder in TEMPLATES.iterdir()} == {*LANGUAGES, "common"}


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "../a", "/a", ".a", "-a", "1a", "a b", "a\nb", 'a"b', "é", "a" * (new.NAME_CHARS_MAX + 1)]
)
def test_names_that_are_not_plain_are_refused(name: str, quittance: Command, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        new.checked_name(name)
    if "\n" not in name:
        done = quittance("new", "--lang=c", "--", name)
        assert done.returncode == Exit.USAGE
        assert list(tmp_path.glob("[!.]*")) == []


def test_the_longest_name_is_accepted() -> None:
    assert new.checked_name("a" * new.NAME_CHARS_MAX)


def test_a_project_is_made_and_the_next_commands_are_shown(quittance: Command, tmp_path: Path) -> None:
    done = quittance("new", "words", "--lang", "js")
    assert done.returncode == Exit.DONE
    assert done.stdout.decode().splitlines()[1:] == [
        "Next:",
        "    cd words && quittance build",
        "    quittance test",
        "    quittance publish",
    ]
    assert (tmp_path / "words" / "src" / "agent.js").is_file()


def test_json_lists_the_files(quittance: Command, tmp_path: Path) -> None:
    done = quittance("new", "words", "--lang", "c", "--folder", "an other", "--json")
    made = json.loads(done.stdout)
    assert (made["folder"], made["language"]) == ("an other", "c")
    found = {str(path.relative_to(tmp_path / "an other")) for path in (tmp_path / "an other").rglob("*")}
    assert set(made["files"]) <= found


def test_an_unknown_language_is_refused_by_name(quittance: Command, tmp_path: Path) -> None:
    done = quittance("new", "words", "--lang", "cobol")
    assert done.returncode == Exit.USAGE
    assert "Use one of c, zig, go, rust" in done.stderr.decode()
    assert not (tmp_path / "words").exists()


def test_nothing_is_written_over(quittance: Command, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, said in (("full", "is not empty"), ("file", "is not a folder"), ("dangling", "is not a folder")):
        done = quittance("new", name, "--lang", "c")
        assert done.returncode == Exit.USAGE
        assert said in done.stderr.decode()
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    assert not (tmp_path / "nowhere").exists()


def test_an_empty_folder_is_used(quittance: Command, tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    assert quittance("new", "words", "--lang", "zig").returncode == Exit.DONE


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        new.write(tmp_path / "made", {"a/b": b"1", "a": b"2"})
    assert not (tmp_path / "made").exists()
