"""The pictures of the command line in docs/screens show what it prints now, apart from ids, digests and times."""

import re
from pathlib import Path

from local import issuer, screens
from local.paths import Stack
from tests.documents.conftest import STATE


def test_pictures_show_what_the_commands_print_now(seeded: tuple[Stack, str], tmp_path: Path) -> None:
    token = issuer.sign(issuer.load_key(STATE.key), issuer.claims("painter", "ledger:deposit"))
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    env = screens.environment(home, seeded[0].api_url, token)
    drawn = {scene.name: svg for scene, svg in screens.capture(env, work)}
    for name, svg in drawn.items():
        kept = (screens.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
        assert screens.text_of(svg) == screens.text_of(kept), f"make up, then make screens: {name}"
        assert not re.search(r"url\((?!#)|<image|href=", kept), f"{name} loads something"
    assert {path.stem for path in screens.FOLDER.iterdir()} == drawn.keys()
