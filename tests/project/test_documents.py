"""Documents agree with the code: links, limits, error codes, commands, the amounts of the first example."""

import json
import re
from pathlib import Path

import pytest

from local.demo import _TARIFF
from quittance import canonical_json, limits
from quittance.api.models import AgentRequest
from quittance.errors import _PROBLEMS
from quittance.ledger import escrow as escrows
from quittance.ledger import pricing
from quittance.ledger.credits import format_credits, parse_credits
from quittance.ledger.pricing import ComputePrices
from quittance.run import Meter
from tests.support import ROOT
from tests.template import template

PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(ROOT).parts)
)
PACKAGE = ROOT / "layers" / "runtime" / "quittance"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub generates them."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def first_cells(lines: str) -> list[str]:
    """The first cell of each row of a table, without the head."""
    return [line.split("|")[1].strip() for line in lines.splitlines() if line.strip().startswith("|")][2:]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_has_a_target(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        to = (page.parent / name).resolve() if name else page
        assert to.exists(), link
        assert not anchor or to.suffix != ".md" or anchor in anchors(to), link


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_file_that_is_named_exists(page: Path) -> None:
    for name in re.findall(r"`(tests/[\w/]+\.py)", page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_of_a_python_file_exists(page: Path) -> None:
    """Paths are relative to the repository or to the package; `file.py: name` also names a definition in the file."""
    for path, name in re.findall(r"`([\w-]+/[\w/-]+\.py)(?:: (\w+))?", page.read_text(encoding="utf-8")):
        found = [place / path for place in (ROOT, PACKAGE) if (place / path).exists()]
        assert found, path
        assert not name or re.search(rf"\b(def|class) {name}\b", found[0].read_text(encoding="utf-8")), name


def test_architecture_page_names_functions_of_use_cases() -> None:
    names = re.findall(r"`(execute|launch|judges|settle|result)\.(\w+)`", text("docs/architecture.md"))
    assert names
    for module, name in names:
        source = (PACKAGE / "usecases" / f"{module}.py").read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\b", source, re.M), f"{module}.{name}"


def test_architecture_page_shows_every_room_and_file() -> None:
    drawing = text("docs/architecture.md").split("## Packages")[1].split("```")[1].split("quittance ──")[1]
    drawn = {name.rstrip("/") for line in drawing.splitlines()[1:] for name in line[:28].split()}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert drawn == rooms | {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}


def test_documents_state_the_limits_of_a_workflow_run() -> None:
    plan_kib = f"{limits.RUN_PLAN_BYTES_MAX / limits.KIB:g}"
    row = f"| tasks in a workflow run | {limits.RUN_TASKS_MAX} | inputs of a workflow run | {plan_kib} KiB |"
    assert row in text("docs/using.md")
    page = text("docs/howto/step-functions.md")
    left = limits.WORKFLOW_STATE_BYTES_MAX - (1 + limits.RUN_TASKS_MAX) * limits.RUN_TASK_BYTES
    task_kib = f"{limits.RUN_TASK_BYTES / limits.KIB:g}"
    assert f"({plan_kib} KiB \N{MINUS SIGN} {task_kib} KiB for each task of the run) / inputs" in page
    assert f"{left // limits.RUN_TASKS_MAX} bytes with {limits.RUN_TASKS_MAX} inputs" in page


def test_contract_page_has_a_valid_example_and_the_limits() -> None:
    page = text("docs/contract.md")
    example = canonical_json.read(page.partition("```json\n")[2].partition("```")[0])
    assert AgentRequest.model_validate(example).contract
    for row in (
        f"| inputs, each with what the agent must do | {limits.EXAMPLES_MAX} |",
        f"| {limits.TAGS_MAX} of {limits.TAG_CHARS_MAX} characters |",
        f"| {limits.LICENCE_CHARS_MAX} characters |",
        f"| {limits.SOURCE_URL_CHARS_MAX:,} characters |",
        f"| canonical JSON | {limits.CONTRACT_BYTES_MAX // limits.KIB} KiB |",
        f"| {limits.SCHEMA_BYTES_MAX // limits.KIB} KiB |",
    ):
        assert row in page, row
    assert f"10¹¹ fuel and {limits.EXAMPLES_SECONDS_MAX} seconds" in page
    assert limits.EXAMPLES_FUEL_MAX == 10**11
    assert f"{limits.INPUT_STEPS_MIN:,} and one for each three\nbytes" in page


def test_documents_state_the_limits_of_channels() -> None:
    page = text("docs/using.md")
    for row in (
        (
            f"| tickets of an opening or a top-up | {limits.CHANNEL_TICKETS_MAX:,} "
            f"| tickets of one task | {limits.TICKETS_PER_TASK_MAX} |"
        ),
        f"| numbers of a channel | {limits.TICKET_NUMBER_MAX:,} | agents of a channel | {limits.CHANNEL_AGENTS_MAX} |",
        (
            f"| time to a channel's expiry | {limits.CHANNEL_DAYS_MAX} days "
            f"| a ticket | {limits.TICKET_CHARS_MAX // limits.KIB} KiB |"
        ),
    ):
        assert row in page, row
    assert f"{limits.TICKETS_PER_TASK_MAX} tickets, or its" in text("docs/errors.md")
    assert f"{limits.CHANNEL_CLOSE_MS // 1_000} s later (`CHANNEL_CLOSE_MS`" in text("docs/operations.md")


def test_errors_page_lists_every_refusal() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| `(\w+)`", text("docs/errors.md"), re.M)
    stated = {(int(status), code) for statuses, code in rows for status in statuses.split(",")}
    gateways = {(429, "throttled"), (502, "platform_unavailable"), (504, "platform_unavailable")}
    assert stated - gateways == {(int(status), code) for status, code, _ in _PROBLEMS.values()}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_name_functions_in_the_form_aws_accepts(page: Path) -> None:
    """Outputs are ARNs of an alias, so no alias may follow them; concurrency is set on the function itself."""
    commands = page.read_text(encoding="utf-8").replace("\n", " ")
    assert not re.search(r"<\w+Function>:live", commands)
    named = re.findall(r"(?:function-concurrency|get-alias|update-alias) +--function-name +(.{10})", commands)
    assert all(name.startswith("<name of") for name in named), named


def test_tables_have_one_row_for_each_subject() -> None:
    roles = first_cells(text("docs/operations.md").split("## Roles")[1].split("## ")[0])
    assert len(roles) == len(set(roles)), roles
    invariants = re.findall(r"^ *\| (I\d[^|]*|form) \|", text("docs/runbooks.md"), re.M)
    assert len(invariants) == len(set(invariants)), invariants


def test_readme_example_has_the_amounts_that_the_code_computes() -> None:
    answer = json.loads(re.search(r"```json\n(.*?)```", text("README.md"), re.S)[1])  # type: ignore[index]  # it is there
    named = ("ComputePerRunMicro", "ComputePerBillionFuelMicro", "FeeBps")
    run_micro, billion_micro, fee_bps = (int(template()["Parameters"][name]["Default"]) for name in named)
    prices = ComputePrices(run_micro, billion_micro)
    fuel, budget_micro = answer["resource_usage"]["fuel_used"], parse_credits("0.05")
    compute_micro = prices.micro(fuel)
    tariff = pricing.parse_tariff(json.dumps(_TARIFF))
    split = escrows.split(
        budget_micro=budget_micro,
        price_micro=pricing.price_micro(tariff, Meter(fuel=fuel)),
        fee_bps=fee_bps,
        compute_micro=compute_micro,
    )
    due = (split.paid_micro, split.fee_micro, compute_micro, split.refunded_micro)
    names = ("amount_paid", "fee", "compute", "amount_refunded")
    assert {name: answer[name] for name in names} == dict(zip(names, map(format_credits, due), strict=True))


def test_runbooks_name_only_resources_of_the_template() -> None:
    named = set(re.findall(r"<(?:name of\s+)?([A-Z]\w+)>", text("docs/runbooks.md")))
    assert named
    assert named <= template()["Resources"].keys()
