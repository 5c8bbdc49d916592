"""Every command block of README and docs runs on a local cloud as `make up` leaves it, and prints what is shown."""

from collections import Counter
from pathlib import Path

import pytest

from tests.documents.blocks import PAGES, RUN, SHOWN, Block, blocks, matches
from tests.documents.conftest import Shell
from tests.support import ROOT

BLOCKS = [block for page in PAGES for block in blocks(page)]
WITH_COMMANDS = [page for page in PAGES if any(block.kind in RUN and not block.not_run for block in blocks(page))]
REASONS = {
    "it deploys to AWS",
    "it needs an AWS account",
    "it needs a container engine",
    "it is this test, or runs it",
    "it needs a person at a browser",
    "tests/e2e/test_identity.py runs it",
    "tests/local/test_verifying.py runs it",
    "tests/e2e/test_direct.py runs it",
    "tests/e2e/test_operating.py runs it",
    "make bench runs it",
    "tests/e2e/test_command_line.py runs it",
    "tests/e2e/test_generated_clients.py runs it",
    "tests/cli runs it",
    "make test or make proofs runs it",
    "tests/e2e/test_workflows.py runs it",
    "it needs files of an earlier delivery",
    "it needs an archived escrow",
    "it serves until it is ended",
    "it is a part of a program",
}


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_do_what_it_says(page: Path, shell: Shell) -> None:
    shell([block for block in blocks(page) if block.kind in RUN and not block.not_run])


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_every_block_says_what_it_is(block: Block) -> None:
    assert block.kind in RUN | SHOWN, "name the block's language: sh or console for commands"
    assert not block.not_run or block.not_run in REASONS


def test_few_blocks_are_not_run() -> None:
    skipped = Counter(block.not_run for block in BLOCKS if block.kind in RUN and block.not_run)
    assert skipped.total() <= 45, skipped


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a  \nb", "a\nb\n", True),
        ("a 12 b\n", "a … b\n", True),
        ("a\n1\n2\nb\n", "a\n…\nb\n", True),
        ("a 12 c\n", "a … b\n", False),
        ("a\nb\nc\n", "a\nb\n", False),
        ("", "a\n", False),
        ("a.c", "abc", False),
    ],
)
def test_an_ellipsis_stands_for_any_text(printed: str, shown: str, same: bool) -> None:
    assert matches(printed, shown) == same
