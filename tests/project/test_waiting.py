"""No test depends on speed: finds what ruff's ban of clocks in tests (TID251) cannot find."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
ASSERTS_SPEED = re.compile(
    r"assert .*seconds\(\) *<=?+ *(?! *GENEROUS_S)(?=\S)|assert .*seconds\(\) *== |assert .*took_m?s *<"
)


def test_no_test_asserts_that_something_is_fast() -> None:
    assert ASSERTS_SPEED.search("assert watch.seconds() < 2")
    assert not ASSERTS_SPEED.search("assert 0.3 <= watch.seconds() < GENEROUS_S")
    found = [
        f"{path.relative_to(TESTS)}: {line.strip()}"
        for path in sorted(TESTS.rglob("*.py"))
        if path != Path(__file__)
        for line in path.read_text(encoding="utf-8").splitlines()
        if ASSERTS_SPEED.search(line)
    ]
    assert found == []
