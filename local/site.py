"""Builds the documentation site into `.local/site/html`: `make docs`.

The pages are the Markdown files of `docs/`, the README and the pages beside it, and a reference that is generated from
the code: every route of the API, every limit, every command. Sphinx renders them, with a search that needs no server;
the pages load nothing from the network. A page that is missing in `NAVIGATION`, a broken link or any other warning
fails the build.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from local.paths import LOCAL, ROOT

SITE: Final = LOCAL / "site"
_RUNTIME: Final = ROOT / "layers" / "runtime" / "quittance"
_API: Final = "/api/v1/economic"
_LINK: Final = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE: Final = re.compile(r"^(```.*?^```)", re.M | re.S)

BESIDE: Final = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "examples/agents/README.md": "examples.md",
}
"""Pages outside `docs/`, and their names in the site."""

NAVIGATION: Final[dict[str, list[str]]] = {
    "Start": ["readme", "tutorial"],
    "How to": [
        "howto/agents",
        "contract",
        "using",
        "howto/command-line",
        "howto/python-client",
        "howto/generated-clients",
        "howto/channels",
        "howto/async",
        "howto/webhooks",
        "howto/sdk",
        "howto/step-functions",
        "howto/identity",
        "howto/sam-local",
        "examples",
    ],
    "Reference": ["reference/api", "reference/command-line", "errors", "reference/limits", "events", "metering"],
    "How it works": [
        "architecture",
        "ledger",
        "who-pays",
        "receipts",
        "acceptance",
        "reputation",
        "sandbox",
        "performance",
        "hostile",
        "security",
    ],
    "Operate": ["operations", "runbooks", "local-cloud"],
    "Develop": ["contributing", "dependencies", "changelog", "adr/index"],
}
"""The pages of the site by subject; each page appears once."""

_SUMMARY: Final = (
    "**Pay an agent only for work that it did, and prove it.** A budget is held in escrow while an agent, a "
    "WebAssembly module, runs in a sandbox. The agent's owner is paid on success, you are refunded on failure, and "
    "both get a signed receipt that anyone can check."
)
_SAFETY: Final = (
    "- **Why is it safe?** [Escrow](ledger.md), [determinism](sandbox.md), [receipts](receipts.md), "
    "[reputation](reputation.md) and the [threat model](security.md)."
)
_CONFIGURATION: Final = """
project = "Quittance"
html_title = "Quittance"
html_theme = "furo"
extensions = ["myst_parser"]
myst_heading_anchors = 4
myst_enable_extensions = ["tasklist"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_last_updated_fmt = None
pygments_style = "friendly"
suppress_warnings = ["misc.highlighting_failure"]
"""


def build() -> Path:
    """Builds the site; returns the path of its first page. Raises CalledProcessError with Sphinx's warnings."""
    source, html = SITE / "source", SITE / "html"
    shutil.rmtree(SITE, ignore_errors=True)
    for name, text in pages().items():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "docs" / "screens", source / "screens")
    (source / "conf.py").write_text(_CONFIGURATION, encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html", source, html], check=True
    )
    return html / "index.html"


def pages() -> dict[str, str]:
    """All pages of the site as Markdown, by file name."""
    docs = ROOT / "docs"
    found = {str(path.relative_to(docs)): path for path in sorted(docs.rglob("*.md"))}
    found |= {name: ROOT / path for path, name in BESIDE.items()}
    names = {path.resolve(): name for name, path in found.items()}
    written = {name: _relinked(path, name, names) for name, path in found.items()}
    decisions = [name for name in found if name.startswith("adr/")]
    written["adr/index.md"] = _decisions(decisions)
    written["reference/api.md"] = api_reference(json.loads((_RUNTIME / "openapi.json").read_text()))
    written["reference/limits.md"] = limits_reference((_RUNTIME / "limits.py").read_text())
    written["reference/command-line.md"] = command_reference()
    written["index.md"] = _first_page()
    return written


def _relinked(path: Path, name: str, names: dict[Path, str]) -> str:
    """A page with links that work in the site. A link to a source file becomes the file's path."""
    depth = name.count("/")

    def link(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        file, _, anchor = target.partition("#")
        to = (path.parent / file).resolve()
        if to in names:
            return f"[{text}]({'../' * depth}{names[to]}{'#' + anchor if anchor else ''})"
        if to.parent.name == "screens":
            return f"[{text}]({'../' * depth}screens/{to.name})"
        shown = str(to.relative_to(ROOT))
        return f"`{shown}`" if text.strip("`") in {shown, Path(shown).name} else f"{text} (`{shown}`)"

    parts = _FENCE.split(path.read_text(encoding="utf-8"))
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def _toctree(entries: list[str], caption: str = "", *, hidden: bool = True) -> str:
    options = [f":caption: {caption}"] if caption else []
    options += [":hidden:"] if hidden else [":maxdepth: 1"]
    return "\n".join(["```{toctree}", *options, "", *entries, "```"])


def _first_page() -> str:
    lines = [
        "# Quittance",
        "",
        _SUMMARY,
        "",
        "- **New here?** The [tutorial](tutorial.md) pays a first agent in ten minutes.",
        "- **A task to do?** [Using Quittance](using.md) has every use, with commands that you can copy.",
        "- **An exact answer?** The [API](reference/api.md), [errors](errors.md) and [limits](reference/limits.md).",
        _SAFETY,
        "",
    ]
    return "\n".join(lines + [_toctree(entries, caption) + "\n" for caption, entries in NAVIGATION.items()])


def _decisions(names: list[str]) -> str:
    entries = [name.removeprefix("adr/").removesuffix(".md") for name in sorted(names)]
    return "# Decisions\n\nChoices that are hard to undo, each with its reasons.\n\n" + _toctree(entries, hidden=False)


# The reference.


def api_reference(description: dict[str, Any]) -> str:
    """The page of all routes and all models, from the OpenAPI description."""
    lines = ["# API", "", f"All paths are under `{_API}`. This page is generated from the API's description.", ""]
    by_tag: dict[str, list[str]] = {}
    for path, item in description["paths"].items():
        for method, operation in item.items():
            by_tag.setdefault(operation["tags"][0], []).extend(_operation(path, method, operation, description))
    for tag, operations in sorted(by_tag.items()):
        lines += [f"## {tag.capitalize()}", "", *operations]
    lines += ["## Models", ""]
    for name, schema in sorted(description["components"]["schemas"].items()):
        lines += _model(name, schema)
    return "\n".join(lines)


def _operation(path: str, method: str, operation: dict[str, Any], description: dict[str, Any]) -> Iterator[str]:
    yield from (f"### {operation['summary']}", "", f"`{method.upper()} {path.removeprefix(_API)}`", "")
    if text := operation.get("description"):
        yield from (_plain(text), "")
    parameters = operation.get("parameters", [])
    if parameters:
        yield from ("| parameter | in | type | |", "|---|---|---|---|")
        for each in parameters:
            needed = "" if each.get("required") else " (optional)"
            yield f"| `{each['name']}`{needed} | {each['in']} | {_type(each['schema'])} | {_cell(_about(each))} |"
        yield ""
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield from (f"Body (`{media}`): {_type(content['schema'])}", "")
        yield from _example(content)
    for status, answer in operation["responses"].items():
        answer = _resolved(answer, description)  # noqa: PLW2901 - an answer may be a reference to a shared one
        kinds = ", ".join(
            f"{_type(content.get('schema', {}))} as `{media}`" for media, content in answer.get("content", {}).items()
        )
        text = _plain(answer["description"])
        yield f"- **{status}** {text}{': ' + kinds if kinds else ''}"
    yield ""
    for answer in operation["responses"].values():
        for media, content in _resolved(answer, description).get("content", {}).items():
            if media != "application/problem+json":
                yield from _example(content)


def _example(content: dict[str, Any]) -> Iterator[str]:
    examples = [one["value"] for one in content.get("examples", {}).values() if "value" in one]
    examples += [content["example"]] if "example" in content else []
    for example in examples[:1]:
        text = example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)
        yield from ("```json" if not isinstance(example, str) else "```text", text, "```", "")


def _model(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield from (f"### {name}", "")
    if text := schema.get("description"):
        yield from (_plain(text), "")
    if values := schema.get("enum"):
        yield from ("One of " + ", ".join(f"`{value}`" for value in values) + ".", "")
    properties = schema.get("properties", {})
    if properties:
        yield from ("| property | type | |", "|---|---|---|")
        required = schema.get("required", [])
        for key, value in properties.items():
            optional = "" if key in required else " (optional)"
            yield f"| `{key}`{optional} | {_type(value)} | {_cell(_about(value))} |"
        yield ""


def _resolved(answer: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in answer:
        return answer
    found: Any = description
    for part in answer["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    resolved: dict[str, Any] = found
    return resolved


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if union := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(each) for each in union))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any JSON value")
    kinds = " or ".join(kind) if isinstance(kind, list) else kind
    return f"{kinds} ({schema['format']})" if "format" in schema else kinds


def _about(schema: dict[str, Any]) -> str:
    text = schema.get("description", "")
    inner = schema.get("schema", schema)
    names = {"minimum": "at least", "maximum": "at most", "maxLength": "at most (characters)", "pattern": "form"}
    facts = [f"{said} `{inner[name]}`" for name, said in names.items() if name in inner]
    if inner.get("default") is not None:
        facts.append(f"default `{json.dumps(inner['default'])}`")
    return " ".join(filter(None, [text, "; ".join(facts)]))


def _plain(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def command_reference() -> str:
    """The page of all commands, from their help."""
    import typer
    from typer.cli import get_docs_for_click

    from quittance.cli.main import app

    command = typer.main.get_command(app)
    page: str = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="quittance"), name="quittance")
    return page.replace("# `quittance`", "# Command line", 1)


@dataclass(frozen=True)
class Limit:
    """A limit of `limits.py`: its section, its name, its value as written in the code and its comment."""

    section: str
    name: str
    value: str
    comment: str


def limits_of(source: str) -> list[Limit]:
    """All limits of `limits.py`, in order."""
    comments: dict[int, tuple[str, bool]] = {}
    for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# "), not token.line[: token.start[1]].strip()
    found, section, last = [], "Units", 0
    for node in ast.parse(source).body:
        above = [comments[line][0] for line in range(last + 1, node.lineno) if comments.get(line, ("", False))[1]]
        if above and not source.splitlines()[node.lineno - len(above) - 2].strip():
            section = above[0].split(": ")[0].rstrip(".")
        last = node.end_lineno or node.lineno
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            said = comments.get(last, ("", False))[0]
            value = ast.get_source_segment(source, node.value) or ""
            found.append(Limit(section, node.target.id, " ".join(value.split()), said))
    return found


def limits_reference(source: str) -> str:
    """The page of all limits."""
    lines = ["# Limits", "", "All limits of the platform, from `layers/runtime/quittance/limits.py`.", ""]
    section = ""
    for limit in limits_of(source):
        if limit.section != section:
            section = limit.section
            lines += ["", f"## {section}", "", "| limit | value | |", "|---|---|---|"]
        lines.append(f"| `{limit.name}` | `{limit.value}` | {_cell(limit.comment)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
