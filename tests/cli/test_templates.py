"""Each language's template, as a new user meets it: new, build, test. The compilers are those of package registries.

They are kept in .local/, where the example agents' compilers are, so only the first run installs them.
"""

import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quittance import sandbox
from quittance.cli import new
from quittance.cli.artefacts import Artefacts
from quittance.cli.embed import arguments_of, embed
from quittance.cli.execution import Request, Terms, execute
from quittance.cli.exits import Exit
from quittance.cli.project import Project
from quittance.cli.toolchains import LANGUAGES, QUICKJS, Toolchains
from quittance.limits import FUEL_MAX, MIB
from quittance.run import Limits, Run
from tests.cli.conftest import Command
from tests.support import ROOT

LOCAL = ROOT / ".local"
TEMPLATES = Path(new.__file__).parent / "templates"
MILLION, BAD_INPUT = 10**6, 2
BAD_INPUTS = [b"", b"null", b'{"text": 1}', b'{"text": "a"', b'{"text": "\\ud83d', b'{"text":"a"}x', b'{"txt":"a"}']


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> Toolchains:
    monkeypatch.setenv("QUITTANCE_TOOLS", str(LOCAL))
    return Toolchains(LOCAL, lambda _line: None)


@pytest.fixture(scope="module")
def box() -> Iterator[sandbox.Sandbox]:
    with sandbox.Sandbox() as made:
        yield made


Try = Callable[..., Run]


@pytest.fixture
def attempt(box: sandbox.Sandbox) -> Iterator[Try]:
    """`attempt(module, stdin)`: one run in the sandbox, without the contract's check of the input."""
    with Artefacts() as artefacts:

        def run(module: Path, stdin: bytes) -> Run:
            own = Limits(FUEL_MAX, 64 * MIB, 20_000)
            return execute(box, artefacts.of(module.read_bytes()), Terms(own), Request(stdin)).run

        yield run


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_new_project_is_built_and_passes_its_examples(
    language: str, quittance: Command, tools: Toolchains, attempt: Try, tmp_path: Path
) -> None:
    if mend := tools.check(LANGUAGES[language]).mend:
        pytest.skip(f"{language}: {mend}")
    built = []
    for name in ("first", "another-folder"):
        new.write(tmp_path / name, new.files_of(language, name))
        done = quittance("build", "--json", cwd=tmp_path / name)
        assert done.returncode == Exit.DONE, done.stderr.decode()
        built.append(json.loads(done.stdout))
    assert built[0]["module_sha256"] == built[1]["module_sha256"], "the same sources must give the same bytes"

    done = quittance("test", "--json", cwd=tmp_path / "first")
    tested = json.loads(done.stdout)
    assert (done.returncode, tested["passed"], tested["failed"]) == (Exit.DONE, 3, 0), tested

    module = Project.read(tmp_path / "first").module_path
    for sent in BAD_INPUTS:  # the platform refuses these before they reach the agent; elsewhere it must fail, too
        assert attempt(module, sent).exit_code == BAD_INPUT, sent
    used, stated = attempt(module, b'{"text":"To be, or not to be."}').meter.fuel, _stated_fuel(language)
    assert abs(used - stated) <= stated / 10, f"the README says {stated}, and it used {used}"
    if language == "python":
        run = attempt(module, b"[" * 100_000)
        assert run.exit_code == 1
        assert b'File "agent.py", line ' in run.stderr


def _stated_fuel(language: str) -> float:
    text = tomllib.loads((TEMPLATES / language / "template.toml").read_text())["fuel"]
    number, _, unit = text.partition(" ")
    return float(number.replace(",", "")) * (MILLION if unit == "million" else 1)


RUNNER = "const Script = (async () => {}).constructor; await new Script(agent.input())();"
"""Runs its input as a script, so that one module serves many tests."""


@pytest.mark.parametrize(
    ("script", "code", "output", "log"),
    [
        ("throw undefined", 1, b"", b"undefined"),
        ("nonsense(", 1, b"", b"SyntaxError: "),
        ("agent.exit(7)", 7, b"", b""),
        ("agent.exit(125)", 125, b"", b""),
        ("agent.exit(126)", 1, b"", b"RangeError: agent.exit takes a code from 0 to 125"),
        ("await new Promise(() => {})", 1, b"", b"waits for something that never comes"),
        ("Promise.reject(new Error('late')); console.log(1)", 1, b"1\n", b"Error: late"),
        ("try { await Promise.reject(new Error('x')) } catch (e) { console.log(e.message) }", 0, b"x\n", b""),
        ("function f() { return f() + 1 }\nf()", 1, b"", b"Maximum call stack size exceeded"),
        ("await import('./y.js')", 1, b"", b"could not load module"),
        ("agent.write(new Uint8Array([0, 255])); console.log(agent.inputBytes().length, 1)", 0, b"\0\xff80 1\n", b""),
        ("console.log([3, 1, 2].toSorted(), 2n ** 70n, 'é')", 0, "1,2,3 1180591620717411303424 é\n".encode(), b""),
    ],
)
def test_javascript_ends_as_the_script_says(
    script: str, code: int, output: bytes, log: bytes, tools: Toolchains, attempt: Try, tmp_path: Path
) -> None:
    run = attempt(_javascript(RUNNER, tools, tmp_path), script.encode())
    assert (run.exit_code, run.stdout) == (code, output), run
    assert log in run.stderr


def test_javascript_names_the_place_of_an_error(tools: Toolchains, attempt: Try, tmp_path: Path) -> None:
    run = attempt(_javascript("\nagent.input()", tools, tmp_path), b"\xff\xfe\x00")
    assert run.exit_code == 1
    assert b"TypeError: the input is not UTF-8" in run.stderr
    assert b"(agent.js:2:" in run.stderr


def _javascript(script: str, tools: Toolchains, folder: Path) -> Path:
    module = folder / "agent.wasm"
    module.write_bytes(embed(tools.interpreter(QUICKJS), arguments_of(QUICKJS, "agent.js", script.encode())))
    return module
