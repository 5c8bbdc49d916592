"""The documentation site: it builds without a warning, has every page once, and its reference has everything."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from local import site
from quittance.cli.main import COMMANDS
from tests.support import ROOT

RUNTIME = ROOT / "layers" / "runtime" / "quittance"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "SITE", tmp_path_factory.mktemp("site"))
        return site.build().parent  # warnings are errors: a broken link, a page in no table of contents


class Loaded(HTMLParser):
    """What a page loads by itself: scripts, styles, pictures, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {"script": "src", "img": "src", "iframe": "src", "link": "href"}
        self.urls += [value or "" for name, value in attrs if names.get(tag) == name]


def test_every_page_is_in_the_navigation_once() -> None:
    listed = [page for pages in site.NAVIGATION.values() for page in pages]
    written = {name.removesuffix(".md") for name in site.pages()}
    decisions = {name for name in written if name.startswith("adr/") and name != "adr/index"}
    assert sorted(listed) == sorted(written - decisions - {"index"})


def test_the_built_pages_load_nothing_from_the_network(built: Path) -> None:
    pages = list(built.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert not [url for url in loaded.urls if re.match(r"[a-z]+:|//", url)], page
    for style in built.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", style.read_text(encoding="utf-8")), style


def test_the_reference_has_every_route_and_property() -> None:
    description = json.loads((RUNTIME / "openapi.json").read_text())
    page = site.api_reference(description)
    for path, item in description["paths"].items():
        for method in item:
            assert f"`{method.upper()} {path.removeprefix('/api/v1/economic')}`" in page
    for name, schema in description["components"]["schemas"].items():
        section = page.split(f"### {name}\n")[1].split("\n### ")[0]
        for key in schema.get("properties", {}):
            assert f"| `{key}`" in section, (name, key)


def test_the_reference_has_every_limit_with_its_comment() -> None:
    source = (RUNTIME / "limits.py").read_text()
    found = {limit.name: limit for limit in site.limits_of(source)}
    assert found.keys() == set(re.findall(r"^([A-Z_]+): Final", source, re.M))
    assert found["INPUT_BYTES_MAX"].value == "MIB"
    assert found["JSON_DEPTH_MAX"].section == "Contents of a request"
    assert found["PAUSED_RETRY_S"].comment.startswith("`Retry-After`")
    assert found["FUEL_MAX"].section == "Resources of an agent"


def test_the_reference_has_every_command() -> None:
    page = site.command_reference()
    for name in COMMANDS:
        assert f"## `quittance {name}`" in page
