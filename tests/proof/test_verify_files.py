"""Files that are given with a receipt: their lengths must be those of the meter, a score what its judge printed."""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quittance.acceptance import rules as acceptance
from quittance.ledger.credits import format_credits
from quittance.ledger.escrow import Escrow, StoredBytes, decide, escrow_id, judge_task_id
from quittance.proof.statement import Flaw
from quittance.proof.verify import Check, CheckResult, Evidence, examine, main
from quittance.run import Limits, Meter, Outcome, Run, Side
from tests.proof.receipts import claims_of, sign
from tests.proof.roots import NOW_S, Root, as_version_1, parse

ROOT = Root()
KEY = ROOT.certify()
KEYS = json.dumps(ROOT.jwks()).encode()
INPUT, OUTPUT, CONFIG = b"some input", b"some output", "ff" * 32
LIMITS = Limits(fuel=50, memory_bytes=60, timeout_ms=70)
JUDGE_MICRO = 400_000  # what the judge below costs
RULES = b'{"judge": {"agent_id": "agt_judge", "threshold": "0.1", "budget": "0.1"}}'


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


@pytest.fixture(scope="session")
def task(new_escrow: Callable[..., Escrow]) -> Callable[..., dict[str, Any]]:
    """The claims of a paid task that its own judge scored, with the cost that `judge` states."""
    rules = acceptance.rules_json(acceptance.parse_rules(RULES.decode()))
    escrow = new_escrow(input_sha256=digest(INPUT), task_rules_sha256=acceptance.rules_sha256(rules))

    def made(score_micro: int | None = None, **meter: int) -> dict[str, Any]:
        measured = replace(Meter(wall_ms=7, input_bytes=len(INPUT), output_bytes=len(OUTPUT)), **meter)
        done = Run(Outcome.SUCCEEDED, "ok", measured)
        settled = decide(escrow, done, now_ms=NOW_S * 1_000 + 5, judging_micro={Side.TASK: JUDGE_MICRO})
        settled = replace(settled, output=StoredBytes(digest(OUTPUT), len(OUTPUT), OUTPUT))
        scores = {} if score_micro is None else {Side.TASK: score_micro}
        run = Run(Outcome.SUCCEEDED, "", measured, limits=LIMITS, scores_micro=scores)
        return claims_of(escrow, settled, issuer="i", run=run, engine="e", config_sha256=CONFIG)

    return made


@pytest.fixture(scope="session")
def judge(new_escrow: Callable[..., Escrow]) -> Callable[..., str]:
    """The receipt of the task's judge, which printed these bytes."""
    read, task_id = acceptance.judge_input(INPUT, OUTPUT), judge_task_id("task-1", Side.TASK)
    escrow = new_escrow(
        escrow_id=escrow_id("user-1", task_id), task_id=task_id, agent_id="agt_judge", input_sha256=digest(read),
        task_rules_sha256=acceptance.rules_sha256(acceptance.rules_json(acceptance.SCORE_RULES)),
    )  # fmt: skip

    def made(printed: bytes, **meter: int) -> str:
        measured = replace(Meter(wall_ms=7, input_bytes=len(read), output_bytes=len(printed)), **meter)
        settled = decide(escrow, Run(Outcome.SUCCEEDED, "ok", measured), now_ms=NOW_S * 1_000 + 5)
        settled = replace(settled, output=StoredBytes(digest(printed), len(printed), printed))
        stated = claims_of(
            escrow,
            settled,
            issuer="i",
            run=Run(Outcome.SUCCEEDED, "", measured, limits=LIMITS),
            engine="e",
            config_sha256=CONFIG,
        )
        return sign(stated, KEY)

    return made


def checks(given_: Evidence) -> dict[str, Check]:
    return {check.name: check for check in examine(given_).checks}


# Lengths.


@pytest.mark.parametrize(
    ("meter", "name", "said"),
    [
        ({}, "", ""),
        ({"input_bytes": 9}, "input", "the input has 10 bytes, the receipt's meter says 9"),
        ({"input_bytes": 0}, "input", "the input has 10 bytes, the receipt's meter says 0"),
        ({"output_bytes": 12}, "output", "the output has 11 bytes, the receipt's meter says 12"),
    ],
)
def test_files_must_be_as_long_as_the_meter_states(
    task: Callable[..., dict[str, Any]], meter: dict[str, int], name: str, said: str
) -> None:
    found = checks(Evidence(sign(task(**meter), KEY), KEYS, input=INPUT, output=OUTPUT))
    failed = [(check.name, check.flaw, check.sentence) for check in found.values() if check.flaw]
    assert failed == ([(name, Flaw.CONTRADICTION, said)] if name else [])


def test_if_nothing_ran_the_input_length_is_not_checked(new_escrow: Callable[..., Escrow]) -> None:
    escrow = new_escrow(input_sha256=digest(INPUT))
    settled = decide(escrow, Run(Outcome.SUPERSEDED, "", Meter()), now_ms=NOW_S * 1_000 + 5)
    stated = claims_of(
        escrow, settled, issuer="i", run=Run(Outcome.SUCCEEDED, "", Meter(), limits=None), engine="", config_sha256=""
    )
    assert checks(Evidence(sign(stated, KEY), KEYS, input=INPUT))["input"].result is CheckResult.PASSED


def test_a_run_longer_than_its_timeout_is_noted_in_version_1(task: Callable[..., dict[str, Any]]) -> None:
    """Correct receipts of version 1 may state it, and a reader should know."""
    for wall_ms, result in ((70, None), (71, CheckResult.NOTED)):
        report = examine(Evidence(sign(as_version_1(task(wall_ms=wall_ms)), KEY), KEYS))
        noted = {check.name: check.result for check in report.checks}
        assert (report.exit_status, noted.get("wall time")) == (0, result)


# Scores.


@pytest.mark.parametrize(
    "printed",
    [
        b"0.9",
        b"0.9\n",
        b"0.90\r\n",
        b"0.900000\n",
        b"0.900",
        b"9e-1",
        b" 0.9 ",
        b"0.9000004",
        b"0.90000000000000002220",
    ],
)
def test_a_score_must_be_what_the_judge_printed(
    task: Callable[..., dict[str, Any]], judge: Callable[..., str], printed: bytes
) -> None:
    whole = Evidence(
        sign(task(900_000), KEY), KEYS, input=INPUT, output=OUTPUT, task_rules=RULES, task_judge=judge(printed),
        task_judge_output=printed,
    )  # fmt: skip
    found = checks(whole)
    assert not [check for check in found.values() if check.flaw]
    assert (found["task score"].result, found["task score"].sentence) == (CheckResult.PASSED, "the judge printed 0.9")


@pytest.mark.parametrize("printed", [b"0.2", b"0.2\n", b"0.899999\n", b"0.900001", b"0", b"1\n", b"1.0", b"0.95\r\n"])
def test_a_wrong_score_is_detected_by_the_output_digest(
    task: Callable[..., dict[str, Any]], judge: Callable[..., str], printed: bytes
) -> None:
    found = checks(Evidence(sign(task(900_000), KEY), KEYS, task_judge=judge(printed)))["task score"]
    shown = format_credits(acceptance.read_score(printed))
    assert (found.flaw, found.sentence) == (
        Flaw.CONTRADICTION, f"the task's judge printed the score {shown}, the receipt states 0.9",
    )  # fmt: skip


@pytest.mark.parametrize("printed", [b"9e-1", b"0.9000004", b"0.9 \n", b"0.8e0"])
def test_a_score_of_unusual_spelling_is_not_reported_as_proven(
    task: Callable[..., dict[str, Any]], judge: Callable[..., str], printed: bytes
) -> None:
    alone = Evidence(sign(task(900_000), KEY), KEYS, task_judge=judge(printed))
    found = checks(alone)["task score"]
    assert (found.result, "--task-judge-output" in found.sentence) == (CheckResult.NOT_DONE, True)
    found = checks(replace(alone, task_judge_output=printed))["task score"]
    assert (found.result is CheckResult.PASSED) == (acceptance.read_score(printed) == 900_000)


@pytest.mark.parametrize(
    ("signed", "given_", "meter", "flaw", "said"),
    [
        (b"0.9", b"0.90", {}, Flaw.DIGEST, "the output of the task's judge has the SHA-256"),
        (b"0.9", b"0.9", {"output_bytes": 4}, Flaw.CONTRADICTION, "has 3 bytes, the receipt's meter says 4"),
        (b"2", b"2", {}, Flaw.CONTRADICTION, "is no score"),
        (b"high", b"high", {}, Flaw.CONTRADICTION, "is no score"),
        (b"0.4", b"0.4", {}, Flaw.CONTRADICTION, "printed the score 0.4, the receipt states 0.9"),
        (b"0.9000011", b"0.9000011", {}, Flaw.CONTRADICTION, "printed the score 0.900001, the receipt states 0.9"),
    ],
)
def test_a_judges_output_must_match_its_digest_and_the_score(
    task: Callable[..., dict[str, Any]], judge: Callable[..., str], signed: bytes, given_: bytes,
    meter: dict[str, int], flaw: Flaw, said: str,
) -> None:  # fmt: skip
    of_judge = judge(signed, **meter)
    whole = Evidence(sign(task(900_000), KEY), KEYS, task_judge=of_judge, task_judge_output=given_)
    found = checks(whole)["task score"]
    assert (found.flaw, said in found.sentence) == (flaw, True), found.sentence


def test_a_judges_input_must_be_as_long_as_its_meter_states(
    task: Callable[..., dict[str, Any]], judge: Callable[..., str]
) -> None:
    short = judge(b"0.9", input_bytes=3)
    found = checks(Evidence(sign(task(900_000), KEY), KEYS, input=INPUT, output=OUTPUT, task_judge=short))
    assert "input of the task's judge has" in found["task judge"].sentence
    assert "task score" not in found


@pytest.mark.parametrize("stated_micro", [0, JUDGE_MICRO - 1, JUDGE_MICRO, JUDGE_MICRO + 1])
def test_a_judges_cost_must_be_that_of_its_own_receipt(
    task: Callable[..., dict[str, Any]], judge: Callable[..., str], stated_micro: int
) -> None:
    whole = task(900_000) | {"task_judging": str(stated_micro)}
    found = checks(Evidence(sign(whole, KEY), KEYS, task_judge=judge(b"0.9")))["task judge"]
    if stated_micro == JUDGE_MICRO:
        assert found.result is CheckResult.PASSED
    else:
        said = f"the task's judge cost {JUDGE_MICRO} by its own receipt, this receipt states {stated_micro}"
        assert (found.flaw, found.sentence) == (Flaw.AMOUNTS, said)


def test_receipts_of_version_1_state_no_cost_of_judges(
    task: Callable[..., dict[str, Any]], judge: Callable[..., str]
) -> None:
    of_judge = as_version_1(parse(judge(b"0.9")).payload)
    found = checks(Evidence(sign(as_version_1(task(900_000)), KEY), KEYS, task_judge=sign(of_judge, KEY)))
    assert (found["task judge"].result, found["task score"].result) == (CheckResult.PASSED, CheckResult.PASSED)


def test_a_judges_output_alone_proves_nothing(task: Callable[..., dict[str, Any]]) -> None:
    found = checks(Evidence(sign(task(900_000), KEY), KEYS, task_judge_output=b"0.9"))
    assert found["task judge"].result is CheckResult.NOT_DONE
    assert "task score" not in found


@given(
    stated_micro=st.integers(0, 10**6), thousandths=st.integers(0, 1_000), end=st.sampled_from([b"", b"\n", b"\r\n"])
)
def test_a_plain_score_passes_only_if_it_is_the_stated_one(
    task: Callable[..., dict[str, Any]],
    judge: Callable[..., str],
    stated_micro: int,
    thousandths: int,
    end: bytes,
) -> None:
    printed = format_credits(thousandths * 1_000).encode() + end
    found = checks(Evidence(sign(task(stated_micro), KEY), KEYS, task_judge=judge(printed)))["task score"]
    assert (found.result is CheckResult.PASSED) == (stated_micro == thousandths * 1_000)
    assert found.result is not CheckResult.NOT_DONE


def test_the_command_reads_what_the_judge_printed(
    task: Callable[..., dict[str, Any]], judge: Callable[..., str], tmp_path: Path
) -> None:
    files = {"keys": KEYS, "task-judge": judge(b"4e-1").encode(), "task-judge-output": b"4e-1"}
    words = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        words += [f"--{name}", str(tmp_path / name)]
    for score_micro, status in ((400_000, 0), (900_000, 7)):
        (tmp_path / "receipt").write_text(sign(task(score_micro), KEY))
        assert main([str(tmp_path / "receipt"), *words]) == status
