"""Each language's template, as a new user meets it: new, build, test. The compilers are those of package registries.

They are kept in .local/, where the example agents' compilers are, so only the first run installs them.
"""

import json
import tomllib
from pathlib import Path

import pytest

from quittance.cli import new
from quittance.cli.exits import Exit
from quittance.cli.toolchains import LANGUAGES, Toolchains
from tests.cli.conftest import Command
from tests.support import ROOT

LOCAL = ROOT / ".local"
TEMPLATES = Path(new.__file__).parent / "templates"
MILLION = 10**6
BAD_INPUTS = [b"", b"null", b'{"text": 1}', b'{"text": "a"', b'{"text": "\\ud83d', b'{"text":"a"}x', b'{"txt":"a"}']


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> Toolchains:
    monkeypatch.setenv("QUITTANCE_TOOLS", str(LOCAL))
    return Toolchains(LOCAL, lambda _line: None)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_new_project_is_built_and_passes_its_examples(
    language: str, quittance: Command, tools: Toolchains, tmp_path: Path
) -> None:
    if mend := tools.check(LANGUAGES[language]).mend:
        pytest.skip(f"{language}: {mend}")
    digests = set()
    for name in ("first", "another-folder"):
        assert quittance("new", name, "--lang", language).returncode == Exit.DONE
        done = quittance("build", "--json", cwd=tmp_path / name)
        assert done.returncode == Exit.DONE, done.stderr.decode()
        digests.add(json.loads(done.stdout)["module_sha256"])
    assert len(digests) == 1, "the same sources must give the same bytes in every folder"

    done = quittance("test", "--json", cwd=tmp_path / "first")
    tested = json.loads(done.stdout)
    assert (done.returncode, tested["passed"], tested["failed"]) == (Exit.DONE, 3, 0), tested

    for sent in BAD_INPUTS:  # the platform refuses these before they reach the agent; run elsewhere it must fail, too
        run = json.loads(quittance("run", "--json", "--input", "-", "first", stdin=sent).stdout)
        assert run["exit_code"] == 2, (sent, run)

    fuel = json.loads(quittance("run", "--json", "--input-text", '{"text":"To be, or not to be."}', "first").stdout)
    used, stated = fuel["resource_usage"]["fuel_used"], _stated_fuel(language)
    assert abs(used - stated) <= stated / 10, f"the README says {stated}"


def _stated_fuel(language: str) -> float:
    text = tomllib.loads((TEMPLATES / language / "template.toml").read_text())["fuel"]
    number, _, unit = text.partition(" ")
    return float(number.replace(",", "")) * (MILLION if unit == "million" else 1)


def test_javascript_reports_where_it_failed(quittance: Command, tmp_path: Path) -> None:
    quittance("new", "js", "--lang", "javascript")
    cases = {
        "throw new Error('bad')": (1, "Error: bad\n    at <anonymous> (agent.js:1:"),
        "agent.exit(7)": (7, ""),
        "agent.exit(126)": (1, "RangeError: agent.exit takes a code from 0 to 125"),
        "await new Promise(() => {})": (1, "waits for something that never comes"),
        "Promise.reject(new Error('late'))": (1, "Error: late"),
        "function f() { return f() + 1 }\nf()": (1, "Maximum call stack size exceeded"),
        "agent.write(new Uint8Array([0, 255])); console.log(agent.inputBytes().length)": (0, ""),
        "try { agent.input() } catch (e) { console.log(e.message) }": (0, ""),
    }
    printed = {"agent.write": b"\x00\xff3\n", "try": b"the input is not UTF-8\n"}
    for script, (code, log) in cases.items():
        (tmp_path / "js/src/agent.js").write_text(script)
        assert quittance("build", "js").returncode == Exit.DONE
        done = quittance("run", "js", "--input", "-", stdin=b"\xff\xfe\x00")
        assert done.returncode == (1 if code else 0), script
        assert log in done.stderr.decode(), script
        for begin, output in printed.items():
            if script.startswith(begin):
                assert done.stdout == output


def test_python_reports_where_it_failed(quittance: Command, tmp_path: Path) -> None:
    quittance("new", "py", "--lang", "python")
    (tmp_path / "py/src/agent.py").write_text("import sys\nprint(sys.stdin.read(), sys.argv, __name__)\n\n1 / 0\n")
    assert quittance("build", "py").returncode == Exit.DONE
    done = quittance("run", "py", "--input", "-", stdin="é".encode())
    assert done.stdout.decode() == ""  # of a failed run nothing is delivered
    assert 'File "agent.py", line 4' in done.stderr.decode()
    assert "ZeroDivisionError" in done.stderr.decode()
