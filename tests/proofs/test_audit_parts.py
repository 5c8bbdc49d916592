"""The parts of an audit as a state machine runs them: repeated, in any order, lost, of another audit, or changed."""

import json
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from quittance import limits
from quittance.proof import parts
from quittance.proof.invariants import Audit
from quittance.proof.log import LogHead
from quittance.proof.parts import Part, PartsError, Phase, Plan, Rows, State
from quittance.store.blobs import BlobMissingError
from quittance.usecases import audit as auditing
from tests.proofs import test_streaming
from tests.proofs.test_streaming import Ledger, limit_steps
from tests.proofs.world import fill_bonds

if TYPE_CHECKING:
    from collections.abc import Callable

STATE_BYTES_MAX = 256 * limits.KIB  # of Step Functions, for each input and output
COUNT = 3


class Shelf:
    """A fake bucket. `objects` may be changed or removed."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def keep(self, data: bytes) -> str:
        digest = parts.digest_of(data)
        self.objects[digest] = data
        return digest

    def load(self, digest: str) -> bytes:
        if digest not in self.objects:
            raise BlobMissingError(digest)
        return self.objects[digest]

    def load_range(self, digest: str, first: int, size: int) -> bytes:
        return self.load(digest)[first : first + size]


class Machine:
    """Runs an audit as the state machine does: all that passes between its parts is JSON and the bucket."""

    def __init__(self, ledger: Ledger, *, run: str = "run-1", shelf: Shelf | None = None) -> None:
        self.world = ledger.world
        self.shelf: Any = shelf or Shelf()
        self.random = random.Random(7)
        self.state = self.sent(auditing.begin(self.world, self.shelf, run=run).sent(self.shelf.keep))
        self.results: list[Any] = []
        self.between: Callable[[], object] = lambda: None

    def sent(self, document: Any) -> Any:
        text = json.dumps(document)
        assert len(text) < STATE_BYTES_MAX
        return json.loads(text)

    def step(self, part: Any) -> Any:
        self.between()
        return self.sent(auditing.step(self.world, self.shelf, Part.read(part)).json())

    def finish(self, part: Any, *, times: int = 1) -> Any:
        """Does all steps of a part, each of them as often as told; any of the answers may be the one that counts."""
        while not part["done"]:
            part = self.random.choice([self.step(part) for _ in range(times)])
        return part

    def read(self, *, times: int = 1) -> list[Any]:
        """Does all parts of the phase, in any order."""
        order = self.random.sample(self.state["parts"], len(self.state["parts"]))
        done = [self.finish(part, times=times) for part in order]
        return self.random.sample(done, len(done))

    def advance(self, results: list[Any]) -> None:
        self.between()
        self.results = results
        given = self.sent({"state": self.state["state"], "results": results})
        state = State.received(given["state"], self.shelf.load)
        reached = auditing.advance(self.world, self.shelf, state, [Part.read(part) for part in given["results"]])
        self.state = self.sent(reached.sent(self.shelf.keep))

    def ended(self, results: list[Any]) -> Audit:
        """The verdict, if the parts of this phase have these results."""
        self.advance(results)
        return self.verdict()

    def verdict(self, *, times: int = 1) -> Audit:
        while self.state["phase"] != Phase.DONE:
            self.advance(self.read(times=times))
        return auditing.verdict(self.shelf, State.received(self.state["state"], self.shelf.load))


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A ledger with tasks and channels, and audits of three parts of each kind, of several steps each."""
    monkeypatch.setattr(auditing, "_INDEX_LAG_S", 0)
    monkeypatch.setattr(auditing, "_PARTS_MIN", COUNT)
    limit_steps(monkeypatch, receipts=10)
    monkeypatch.setattr(test_streaming, "PAGE_ITEMS", 10)
    made = Ledger()
    fill_bonds(made.world)
    for _ in range(6):
        made.run(10)
    made.live()
    made.run(5)
    return made


def summary(result: Audit) -> dict[str, Any]:
    """Everything that an audit reports but the agents' standings."""
    return {name: getattr(result, name) for name in Audit.__dataclass_fields__ if name != "standings"}


@pytest.mark.parametrize("times", [1, 2, 3])
def test_repeated_steps_in_any_order_double_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    result = Machine(ledger).verdict(times=times)
    monkeypatch.setattr(auditing, "_PARTS_MIN", 1)
    alone = auditing.audit(ledger.world)
    assert summary(result) == summary(alone)
    assert (result.count, result.escrows > 60, result.channels) == (0, True, 2)


@pytest.mark.parametrize("times", [1, 2])
def test_changes_before_any_step_and_its_repetition_are_no_differences(ledger: Ledger, times: int) -> None:
    """Tasks, tickets, top-ups, sweeps and closings happen between all steps, also between a step and its repetition."""
    machine = Machine(ledger)
    machine.between = ledger.live
    result = machine.verdict(times=times)
    assert (result.differences, result.unsettled, result.unsettled_channels) == ([], 0, 0)


@pytest.mark.parametrize("kind", ["credit", "line", "spent", "standing", "batch", "pointer", "receipt"])
def test_a_difference_is_found_while_the_ledger_changes(ledger: Ledger, kind: str) -> None:
    items = ledger.table.items
    assert ledger.channel

    def first(prefix: str, name: str = "pk") -> str:
        return next(pk for pk, item in items.items() if pk.startswith(prefix) and name in item)

    match kind:
        case "credit":
            ledger.change("ACCT#alice", available={"N": str(int(items["ACCT#alice"]["available"]["N"]) + 1)})
        case "line":
            del items[first("EARN#")]
        case "spent":
            ledger.change(f"CHAN#{ledger.channel.channel_id}", spent={"N": "1"})
        case "standing":
            ledger.change(
                pk := first("REP#"), standing={"S": items[pk]["standing"]["S"].replace('outcomes":', 'outcomes":1')}
            )
        case "batch":
            del items[first("BATCH#", "first")]
        case "pointer":
            del items[first("LOG#")]
        case "receipt":
            ledger.change(first("ESC#", "receipt"), receipt={"S": "e30.e30.e30"})
    machine = Machine(ledger)
    machine.between = ledger.live if kind not in {"batch", "pointer"} else machine.between
    assert machine.verdict().count


def test_every_pointer_that_is_lost_or_false_is_found(ledger: Ledger) -> None:
    """Also at the beginning of a part of the log's walk, and just before it and after it."""
    kept = dict(ledger.table.items)
    pointers = [pk for pk in kept if pk.startswith("LOG#")]
    batch = kept[pointers[0]]["batch"]
    for pk in pointers:
        ledger.table.items = {name: item for name, item in kept.items() if name != pk}
        assert Machine(ledger).verdict().count, pk
    size = int(kept["LOG"]["size"]["N"])
    for at in range(size + 3):
        if (pk := f"LOG#{at}") not in kept:
            ledger.table.items = {**kept, pk: {"pk": {"S": pk}, "batch": batch}}
            assert Machine(ledger).verdict().count, pk
    ledger.table.items = {pk: item for pk, item in kept.items() if not pk.startswith("LOG")}
    assert Machine(ledger).verdict().count


@pytest.mark.parametrize("size", [0, 1, 10**15])
def test_a_false_size_of_the_log_is_found(ledger: Ledger, size: int) -> None:
    ledger.change("LOG", size={"N": str(size)}, published={"N": "0"})
    assert Machine(ledger).verdict().count


@pytest.mark.parametrize("phase", [Phase.READ, Phase.TAIL, Phase.COMPARE])
@pytest.mark.parametrize("fault", ["lost", "doubled", "replaced", "not done", "of another run", "of another part"])
def test_a_lost_or_foreign_result_gives_no_verdict(ledger: Ledger, phase: Phase, fault: str) -> None:
    machine = Machine(ledger)
    other = Machine(ledger, run="run-2", shelf=machine.shelf)
    if phase == Phase.TAIL:
        machine.between = other.between = lambda: ledger.run(1)
    while machine.state["phase"] != phase:
        machine.advance(machine.read())
        other.advance(other.read())
    done, foreign = machine.read(), other.read()
    assert done
    changed = {
        "lost": done[1:],
        "doubled": [*done, done[0]],
        "replaced": [*done[:-1], done[0]] if len(done) > 1 else [],
        "not done": [{**done[0], "done": False}, *done[1:]],
        "of another run": [foreign[0], *done[1:]],
        "of another part": [{**done[0], "last": foreign[0]["last"]}, *done[1:]],
    }[fault]
    with pytest.raises(PartsError):  # at once, or when the result is read
        machine.ended(changed)


def test_a_part_that_claims_to_be_done_too_early_gives_no_verdict(ledger: Ledger) -> None:
    """The header of its last step says that more was to be read."""
    machine = Machine(ledger)
    begun = [machine.step(part) for part in machine.state["parts"]]
    assert not any(part["done"] for part in begun if part["kind"] == parts.SCAN)
    with pytest.raises(PartsError):
        machine.ended([{**part, "done": True} for part in begun])


@pytest.mark.parametrize("phase", [Phase.READ, Phase.TAIL, Phase.COMPARE])
@pytest.mark.parametrize("fault", ["missing", "changed", "cut", "swapped"])
def test_every_stored_result_must_be_there_unchanged(ledger: Ledger, phase: Phase, fault: str) -> None:
    """Each object of the phases before, in turn: without it, or with another content, there is no verdict."""
    machine = Machine(ledger)
    while machine.state["phase"] != phase:
        machine.advance(machine.read())
    results = machine.read()
    kept, state = dict(machine.shelf.objects), machine.state
    used = set()
    for digest, data in kept.items():
        other = next(text for text in kept.values() if text != data)
        machine.shelf.objects = {
            **{name: text for name, text in kept.items() if name != digest},
            **{
                "missing": {},
                "changed": {digest: data[:-1] + b" "},
                "cut": {digest: data[:-1]},
                "swapped": {digest: other},
            }[fault],
        }
        machine.state = state
        try:
            assert machine.ended(results).count == 0, f"{digest} was needed"
        except (BlobMissingError, PartsError):
            used.add(digest)
    assert used  # what no later part reads is what earlier phases have used up


@pytest.mark.parametrize("kind", [parts.LOG, parts.SCAN, parts.ACCOUNTS])
def test_a_step_that_leaves_something_out_gives_no_verdict(ledger: Ledger, kind: str) -> None:
    """Each step must continue where the one before it has ended, and the first one at the beginning."""
    machine = Machine(ledger)
    while kind not in {part["kind"] for part in machine.state["parts"]}:
        machine.advance(machine.read())
    skipped, *others = sorted(machine.state["parts"], key=lambda part: part["kind"] != kind)
    far: Any = {parts.LOG: skipped["end"], parts.SCAN: {"page": 10}, parts.ACCOUNTS: "~"}[kind]
    begun = machine.step(skipped)
    assert begun["done"] == (kind == parts.ACCOUNTS)
    state = machine.state
    for part in ({**skipped, "at": far}, *([] if begun["done"] else [{**begun, "at": far}])):
        machine.state = state
        results = [machine.finish(part), *map(machine.finish, others)]
        with pytest.raises(PartsError):
            machine.ended(results)


def test_a_part_that_never_ends_fails(ledger: Ledger) -> None:
    part = Part.read(Machine(ledger).state["parts"][0])
    almost = Part(**{**part.json(), "step": limits.AUDIT_STEPS_MAX - 1})
    assert almost.then(0, "-", done=False).step == limits.AUDIT_STEPS_MAX
    with pytest.raises(PartsError, match="does not end"):
        almost.then(0, "-", done=False).then(0, "-", done=False)


@pytest.mark.parametrize("kind", [parts.ACCOUNTS, parts.CHANNELS, parts.AGENTS, parts.FIRSTS])
def test_a_comparison_of_too_many_entries_fails(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(auditing, "_PARTS_MIN", 1)
    monkeypatch.setattr(auditing, "_ENTRY_CHARS", 10**9)  # so that each standing is one entry, that of the scan
    machine = Machine(ledger)
    while machine.state["phase"] != Phase.COMPARE:
        machine.advance(machine.read())
    (part,) = (part for part in machine.state["parts"] if part["kind"] == kind)
    prefix = {parts.ACCOUNTS: "ACCT#", parts.CHANNELS: "CHAN#", parts.AGENTS: "REP#", parts.FIRSTS: "LOG#"}[kind]
    entries = len({pk.split("#")[1] for pk in ledger.table.items if pk.startswith(prefix)})
    monkeypatch.setattr(auditing, "AUDIT_COMPARED_MAX", entries)
    assert machine.finish(part)["done"]
    monkeypatch.setattr(auditing, "AUDIT_COMPARED_MAX", entries - 1)
    with pytest.raises(PartsError, match=f"more than {entries - 1} entries"):
        machine.finish(part)


def test_the_function_serves_the_state_machine(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events in, answers out, as AWS passes them on; the last answer is bounded, whatever the differences contain."""
    vars(ledger.world)["audit_results"] = Shelf()

    def sent(event: dict[str, Any]) -> Any:
        answer, result = auditing.serve(ledger.world, json.loads(json.dumps(event)))
        assert (result is None) == ("report" not in answer)
        assert len(json.dumps(answer)) < STATE_BYTES_MAX
        return answer

    def verdict() -> Any:
        answer = sent({"begin": {"run": "run", "parts": COUNT}})
        while answer["phase"] != Phase.DONE:
            results = answer["parts"]
            while not all(part["done"] for part in results):
                results = [part if part["done"] else sent({"step": part}) for part in results]
            answer = sent({"advance": {"state": answer["state"], "results": results}})
        return answer

    assert verdict().items() >= {"phase": "done", "differences": 0}.items()
    whole = sent({"standings": True})
    assert (whole["differences"], len(whole["standings"]) > 2) == (0, True)
    for number in range(2 * limits.AUDIT_REPORT_LINES_MAX):
        pk = f"{number:4}" + "\U0001f4a5" * 400
        ledger.table.items[pk] = {"pk": {"S": pk}}
    found = verdict()
    assert found["differences"] == 2 * limits.AUDIT_REPORT_LINES_MAX
    assert len(found["report"]) == limits.AUDIT_REPORT_LINES_MAX + 1
    assert found["report"][-1].endswith("more lines: the function's log has the differences")


@pytest.mark.parametrize("event", [{"begin": {}}, {"begin": {"run": "a", "parts": 0.5}}, {"step": 1}, {"advance": {}}])
def test_no_other_event_is_taken_for_a_whole_audit(ledger: Ledger, event: dict[str, Any]) -> None:
    vars(ledger.world)["audit_results"] = Shelf()
    with pytest.raises(PartsError):
        auditing.serve(ledger.world, event)


@pytest.mark.parametrize("size", [0, 1, 100_000, 100_001, 10**7, 10**12])
def test_the_number_of_parts_is_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The state with all parts, and with their results, fits into what Step Functions passes on."""
    monkeypatch.setattr(auditing, "_PARTS_MIN", 1)
    ledger.change("LOG", size={"N": str(size)})
    state = auditing.begin(ledger.world, Shelf(), run="r" * 80)  # type: ignore[arg-type]
    count = min(max(1, -(-size // limits.AUDIT_PART_RECEIPTS)), limits.AUDIT_PARTS_MAX)
    assert [part.kind for part in state.parts] == [parts.LOG] * count + [parts.SCAN] * count
    assert (state.parts[0].first, state.parts[count - 1].end) == (0, size)
    results = [part.then(None, "f" * 64, done=True).json() for part in state.parts]
    sent = state.sent(Shelf().keep)
    assert max(len(json.dumps(sent)), len(json.dumps({**sent, "parts": results}))) < STATE_BYTES_MAX // 2


def test_rows_return_in_their_order_and_partition() -> None:
    drawn = random.Random(3)
    rows = Rows(COUNT)
    added = [(f"key {drawn.randrange(50)}", drawn.randrange(2**60), "é" * drawn.randrange(300)) for _ in range(2_000)]
    for key, *row in [*added, ("highly compressible", 0, "x" * 10**6)]:
        rows.add(parts.ACCOUNTS, key, *row)
    found = {number: list(parts.rows(section)) for _, number, section in rows.sections()}
    for number, here in found.items():
        due = [list(row) for row in added if parts.partition_of(row[0], COUNT) == number]
        assert [row for row in here if row[0] != "highly compressible"] == due
    assert sum(map(len, found.values())) == len(added) + 1
    section = next(Rows_of("a").sections())[2]
    with pytest.raises(PartsError, match="too early"):
        list(parts.rows(section[:-2]))


def Rows_of(key: str) -> Rows:  # noqa: N802 - a Rows
    rows = Rows(1)
    rows.add(parts.ACCOUNTS, key)
    return rows


@pytest.mark.parametrize("document", [{}, {"plan": "a"}, {"unknown": 1}, {"phase": "?", "parts": [], "plan": "a"}])
def test_other_json_is_no_part_and_no_state(document: dict[str, Any]) -> None:
    shelf = Shelf()
    with pytest.raises(PartsError):
        Part.read(document)
    with pytest.raises(PartsError):
        State.received(shelf.keep(json.dumps(document).encode()), shelf.load)


def test_a_verdict_is_given_once_only(ledger: Ledger) -> None:
    machine = Machine(ledger)
    with pytest.raises(PartsError, match="has not ended"):
        auditing.verdict(machine.shelf, State.received(machine.state["state"], machine.shelf.load))
    machine.verdict()
    with pytest.raises(PartsError, match="has ended"):
        machine.advance([])
    unknown = Part(Machine(ledger, shelf=machine.shelf).state["parts"][0]["plan"], "unheard of", 0, 1)
    with pytest.raises(PartsError, match="no parts of the kind"):
        auditing.step(ledger.world, machine.shelf, unknown)


def test_an_audit_without_time_fails(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process it raises; a step alone ends, and the next one continues it."""
    monkeypatch.setattr(auditing, "AUDIT_STEP_RESERVE_MS", ledger.world.left_ms())
    assert Machine(ledger).verdict().count == 0
    with pytest.raises(auditing.PlatformUnavailableError):
        auditing.audit(ledger.world)


def test_plans_differ_by_their_run() -> None:
    shelf = Shelf()
    plan = partial(Plan, now_ms=1, recent_ms=0, head=LogHead(), is_broken=False, parts=1, partitions=1, standings=False)
    digests = {parts.keep_plan(plan(run), shelf.keep) for run in ("a", "b")}
    assert len(digests) == 2
    assert {parts.load_plan(shelf.load, digest).run for digest in digests} == {"a", "b"}


def test_a_step_without_time_continues_within_a_page(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page may have thousands of items, and each of them may need a slow read."""
    expected = summary(Machine(ledger).verdict())
    monkeypatch.setattr(auditing, "_PARTS_MIN", 1)
    monkeypatch.setattr(test_streaming, "PAGE_ITEMS", 10_000)
    monkeypatch.setattr(auditing, "AUDIT_STEP_ITEMS_MAX", 10_000)
    monkeypatch.setattr(auditing, "_has_time", lambda _: False)
    machine = Machine(ledger, run="run-2")
    done = machine.read()
    (scan,) = [part for part in done if part["kind"] == parts.SCAN]
    assert scan["step"] > 1
    machine.advance(done)
    assert summary(machine.verdict()) == expected
