"""The parts of an audit: what each is to do, and what its steps found, as bytes. Pure.

    plan ─► parts ─► steps ─► chain of headers ─► verdict
                        └───► sections ─► comparisons

An audit is planned once. A part (of the log, of the table, of a comparison) runs in steps; each step may run in another
process. A step writes a header and, if it has any, its sections: rows for the comparisons, one section for each kind of
row and each partition of the keys. Everything is named by its digest, and each header names the one before it. So the
result of a part is one digest; a repeated step replaces nothing; and what is missing, changed, or of another audit or
part is noticed when it is read.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Final, Self

from quittance.limits import AUDIT_PARTS_MAX, AUDIT_STEPS_MAX
from quittance.proof.invariants import Audit, Difference
from quittance.proof.log import Frontier, LogHead

LOG, SCAN, LINES, ACCOUNTS, CHANNELS, AGENTS, FIRSTS = (
    "log",
    "scan",
    "lines",
    "accounts",
    "channels",
    "agents",
    "firsts",
)
"""The kinds of parts. The last four compare one partition of the keys each; sections have the same names."""


class Phase(StrEnum):
    """Where an audit is: it reads log and table, walks what was logged meanwhile, compares, or has ended."""

    READ = "read"
    TAIL = "tail"
    COMPARE = "compare"
    DONE = "done"


_WINDOW_BITS, _MEMORY_LEVEL = 12, 5  # a compressor of these sizes keeps 32 KiB
_SLICE_BYTES: Final = 1 << 14
_VALUE_CHARS_MAX: Final = 1_000  # of one side of a difference
_SUMMED: Final = tuple(
    each.name for each in fields(Audit) if each.name not in {"differences", "unnamed", "log", "standings"}
)

Keep = Callable[[bytes], str]
"""Stores bytes, and returns their digest."""

Load = Callable[[str], bytes]
"""Reads the bytes that have a digest."""

LoadRange = Callable[[str, int, int], bytes]
"""Reads a range of the bytes that were stored under a digest: digest, first byte, number of bytes."""


class PartsError(Exception):
    """A part of the audit, or one of its results, is missing, changed, or belongs elsewhere: there is no verdict."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One audit: its time, the log as it was then, and into how many parts it is split.

    `run` makes the plans of two audits differ. `is_broken`: the log's head cannot be read. `parts` is the number of
    parts of the log, and of the table; `partitions` is that of each comparison.
    """

    run: str
    now_ms: int
    recent_ms: int
    head: LogHead
    is_broken: bool
    parts: int
    partitions: int
    standings: bool


@dataclass(frozen=True, slots=True)
class Part:
    """What one step is to do: part `number` of `count` of a kind, from a place on.

    `first` and `end` are the entries of a part of the log. `at` is the place where the step continues, None at the
    beginning. `last` is the digest of the previous step's header. `given` is what all parts of a comparison start from.
    """

    plan: str
    kind: str
    number: int
    count: int
    first: int = 0
    end: int = 0
    given: str | None = None
    at: Any = None
    step: int = 0
    last: str | None = None
    done: bool = False

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """A part from its JSON. Raises PartsError."""
        try:
            return cls(**document)
        except TypeError as exc:
            msg = "this is not a part of an audit"
            raise PartsError(msg) from exc

    @property
    def place(self) -> tuple[str, str, int, int, int, int]:
        """What identifies the part, whichever step it has reached."""
        return self.plan, self.kind, self.number, self.count, self.first, self.end

    def then(self, at: Any, digest: str, *, done: bool) -> "Part":  # noqa: ANN401 - each kind has its own places
        """The part after a step. Raises PartsError if it has had too many."""
        if self.step >= AUDIT_STEPS_MAX:
            msg = f"{self.kind} {self.number} does not end"
            raise PartsError(msg)
        return replace(self, at=at, step=self.step + 1, last=digest, done=done)

    def json(self) -> dict[str, Any]:
        """The part as JSON."""
        return asdict(self)


@dataclass(slots=True)
class Found:
    """What one step found: sums and differences, and for the log which entries it walked.

    `walked` is where the part of the log really begins and ends: between two batches; None if no batch begins in it.
    `nodes` are those of its range; `published` those of its beginning up to the published size, if it has that entry.
    `old_lines_met` and `old_lines_due` count lines of credits, `unpaired` fees of publications minus their charges.
    """

    result: Audit = field(default_factory=Audit)
    walked: tuple[int, int] | None = None
    nodes: list[tuple[int, bytes]] = field(default_factory=list)
    published: list[tuple[int, bytes]] | None = None
    is_broken: bool = False
    old_lines_met: int = 0
    old_lines_due: int = 0
    unpaired: int = 0

    def add(self, other: "Found") -> None:
        """Adds the sums and differences of another step. What belongs to the log's order is not added."""
        merge(self.result, other.result)
        self.is_broken |= other.is_broken
        self.old_lines_met += other.old_lines_met
        self.old_lines_due += other.old_lines_due
        self.unpaired += other.unpaired


def merge(result: Audit, other: Audit) -> None:
    """Adds the sums, differences and standings of another part."""
    oldest = max(result.oldest_payout_age_ms, other.oldest_payout_age_ms)
    for name in _SUMMED:
        setattr(result, name, getattr(result, name) + getattr(other, name))
    result.oldest_payout_age_ms = oldest
    result.add(other.differences)
    result.unnamed += other.unnamed
    result.standings |= other.standings


# Rows.


class Rows:
    """The rows of a step, by kind and partition, compressed as they come: the memory is that of the compressed rows."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._streams: dict[tuple[str, int], tuple[Any, list[bytes]]] = {}

    def add(self, kind: str, key: str, *row: object) -> None:
        """Adds a row under a key, which decides on its partition."""
        at = (kind, partition_of(key, self._partitions))
        if at not in self._streams:
            self._streams[at] = (zlib.compressobj(1, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL), [])
        stream, pieces = self._streams[at]
        if piece := stream.compress(json.dumps([key, *row], separators=(",", ":")).encode() + b"\n"):
            pieces.append(piece)

    def sections(self) -> Iterator[tuple[str, int, bytes]]:
        """The kind, the partition and the bytes of each section. Only once."""
        for (kind, number), (stream, pieces) in sorted(self._streams.items()):
            yield kind, number, b"".join([*pieces, stream.flush()])


def partition_of(key: str, count: int) -> int:
    """The partition of a key."""
    return zlib.crc32(key.encode()) % count


def rows(section: bytes) -> Iterator[list[Any]]:
    """The rows of a section, in their order; a few are decompressed at a time."""
    stream, waiting, rest = zlib.decompressobj(_WINDOW_BITS), section, b""
    while not stream.eof and (piece := stream.decompress(waiting, _SLICE_BYTES)):
        *lines, rest = (rest + piece).split(b"\n")
        waiting = stream.unconsumed_tail
        yield from map(json.loads, lines)
    if rest or not stream.eof:
        msg = "a section ends too early"
        raise PartsError(msg)


# Headers.


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a step: which step of which part it is, where it ended, what it found, where its sections are."""

    part: Part
    at: Any
    found: Found
    object: str | None
    sections: Mapping[tuple[str, int], tuple[int, int, str]]
    done: bool


def keep_step(part: Part, found: Found, rows_: Rows, keep: Keep, *, at: Any = None, done: bool) -> Part:  # noqa: ANN401
    """Stores what a step of a part found. Returns the part as its next step must begin it."""
    places: dict[str, tuple[int, int, str]] = {}
    pieces: list[bytes] = []
    first = 0
    for kind, number, section in rows_.sections():
        places[f"{kind} {number}"] = (first, len(section), digest_of(section))
        pieces.append(section)
        first += len(section)
    header = {
        "part": part.json(),
        "at": at,
        "found": found_json(found),
        "object": keep(b"".join(pieces)) if pieces else None,
        "sections": places,
        "done": done,
    }
    return part.then(at, keep_json(header, keep), done=done)


def headers(part: Part, load: Load) -> list[Header]:
    """The headers of all steps of a part that is done, the first one first. Raises PartsError."""
    found: list[Header] = []
    digest, expected_step, done, at = part.last, part.step - 1, part.done, part.at
    while digest is not None:
        header = _header(load, digest)
        expected = (part.place, expected_step, done, at)
        if (header.part.place, header.part.step, header.done, header.at) != expected:
            msg = f"{digest} is not the result of step {expected_step} of {part.kind} {part.number}"
            raise PartsError(msg)
        found.append(header)
        digest, expected_step, done, at = header.part.last, expected_step - 1, False, header.part.at
    if not part.done or expected_step != -1 or at is not None:
        msg = f"{part.kind} {part.number} is not done"
        raise PartsError(msg)
    return found[::-1]


class Index:
    """Where the sections of each kind and partition are, in the order in which steps are added."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._places: dict[tuple[str, int], list[tuple[str, str, int, int, str]]] = {}

    def add(self, header: Header) -> None:
        """Adds the sections of a step."""
        for name, (first, size, digest) in header.sections.items():
            self._places.setdefault(name, []).append((header.part.kind, str(header.object), first, size, digest))

    def keep(self, kind: str, number: int, keep: Keep) -> str:
        """Stores where the sections of a kind and a partition are. Returns the digest."""
        return keep_json([kind, self._places.get((kind, number), [])], keep)


def indexed_rows(given: str, load: Load, load_range: LoadRange) -> Iterator[list[Any]]:
    """The rows of all sections of an index; batches also with the kind of part that found them. Raises PartsError."""
    kind, places = load_json(load, given)
    for source, name, first, size, digest in places:
        section = load_range(name, first, size)
        if digest_of(section) != digest:
            msg = f"a section of {name} has changed"
            raise PartsError(msg)
        yield from ([*row, source] if kind == FIRSTS else row for row in rows(section))


def digest_of(data: bytes) -> str:
    """The digest under which bytes are stored."""
    return hashlib.sha256(data).hexdigest()


def _header(load: Load, digest: str) -> Header:
    document = load_json(load, digest)
    return Header(
        Part.read(document["part"]),
        document["at"],
        read_found(document["found"]),
        document["object"],
        {_section_name(name): (first, size, sha256) for name, (first, size, sha256) in document["sections"].items()},
        document["done"],
    )


def _section_name(name: str) -> tuple[str, int]:
    kind, _, number = name.partition(" ")
    return kind, int(number)


def load_json(load: Load, digest: str) -> Any:  # noqa: ANN401 - whatever the JSON is
    """A stored document. Raises PartsError if it is not the one with this digest."""
    if digest_of(data := load(digest)) != digest:
        msg = f"{digest} has changed"
        raise PartsError(msg)
    return json.loads(data)


def keep_json(document: object, keep: Keep) -> str:
    """Stores a document. Returns its digest."""
    return keep(json.dumps(document, separators=(",", ":")).encode())


def keep_plan(plan: Plan, keep: Keep) -> str:
    """Stores a plan. Returns its digest."""
    return keep_json(asdict(plan), keep)


def load_plan(load: Load, digest: str) -> Plan:
    """A stored plan. Raises PartsError."""
    document = load_json(load, digest)
    return Plan(**{**document, "head": LogHead(**document["head"])})


def found_json(found: Found) -> dict[str, Any]:
    """What one or several steps found, as JSON. The sides of a difference are kept as text, unless they are numbers."""
    result = found.result
    return {
        "sums": {name: value for name in _SUMMED if (value := getattr(result, name))},
        "differences": [
            [each.invariant, each.at, _side(each.expected), _side(each.found)] for each in result.differences
        ],
        "unnamed": result.unnamed,
        "log": asdict(result.log),
        "standings": result.standings,
        "walked": found.walked,
        "nodes": _nodes_json(found.nodes),
        "published": None if found.published is None else _nodes_json(found.published),
        "is_broken": found.is_broken,
        "counts": [found.old_lines_met, found.old_lines_due, found.unpaired],
    }


def read_found(document: Mapping[str, Any]) -> Found:
    """What one or several steps found, from its JSON."""
    met, due, unpaired = document["counts"]
    result = Audit(
        **document["sums"],
        differences=[Difference(*each) for each in document["differences"]],
        unnamed=document["unnamed"],
        log=LogHead(**document["log"]),
        standings=document["standings"],
    )
    walked, published = document["walked"], document["published"]
    return Found(
        result,
        (walked[0], walked[1]) if walked else None,
        _read_nodes(document["nodes"]),
        None if published is None else _read_nodes(published),
        document["is_broken"],
        met,
        due,
        unpaired,
    )


def _side(value: object) -> object:
    return value if value is None or isinstance(value, bool | int) else str(value)[:_VALUE_CHARS_MAX]


def _nodes_json(nodes: Iterable[tuple[int, bytes]]) -> list[tuple[int, str]]:
    return [(level, root.hex()) for level, root in nodes]


def _read_nodes(nodes: Iterable[Sequence[Any]]) -> list[tuple[int, bytes]]:
    return [(level, bytes.fromhex(root)) for level, root in nodes]


# The log's parts together.


@dataclass(slots=True)
class Chain:
    """Parts of the log, joined in its order: the range of all, and the root at the published size.

    `gap` is where a part begins that does not continue the one before it: the range ends before it.
    """

    published: int
    range: Frontier = field(default_factory=Frontier)
    root: bytes | None = None
    gap: int | None = None
    is_broken: bool = False

    @property
    def is_cut(self) -> bool:
        """Whether the log cannot be walked to its end."""
        return self.is_broken or self.gap is not None

    def join(self, header: Header) -> None:
        """Adds the next step of the log's walk."""
        found = header.found
        self.is_broken |= found.is_broken
        if self.gap is not None or found.walked is None:
            return
        begin, _ = found.walked
        if begin != self.range.size:
            self.gap = begin
            return
        self._note_root()
        if found.published is not None and self.root is None:
            upto = Frontier(0, self.range.nodes)
            upto.join(Frontier(begin, found.published))
            self.root = upto.root()
        self.range.join(Frontier(begin, found.nodes))
        self._note_root()

    def _note_root(self) -> None:
        if self.range.size == self.published and self.root is None:
            self.root = self.range.root()


# The audit's state.


@dataclass(frozen=True, slots=True)
class State:
    """Where an audit is: the parts that are to run now. `given` is the digest of what the phases before found."""

    plan: str
    phase: Phase
    parts: Sequence[Part]
    given: str | None = None

    def sent(self, keep: Keep) -> dict[str, Any]:
        """What the state machine needs of the state, as JSON. The state itself is stored, and named by its digest."""
        document = {**asdict(self), "parts": [part.json() for part in self.parts]}
        return {"state": keep_json(document, keep), "phase": self.phase, "parts": document["parts"]}

    @classmethod
    def received(cls, digest: str, load: Load) -> Self:
        """The state that was sent with this digest. Raises PartsError."""
        document = load_json(load, digest)
        try:
            phase, planned = Phase(document["phase"]), [Part.read(part) for part in document["parts"]]
            return cls(**{**document, "phase": phase, "parts": planned})
        except (KeyError, TypeError, ValueError) as exc:
            msg = "this is not the state of an audit"
            raise PartsError(msg) from exc


def log_parts(plan: str, first: int, end: int, count: int) -> list[Part]:
    """The parts of a range of the log, in its order. Each begins at the first batch at or after its first entry."""
    count = max(1, min(count, AUDIT_PARTS_MAX))
    bounds = [first + (end - first) * number // count for number in range(count + 1)]
    return [Part(plan, LOG, number, count, bounds[number], bounds[number + 1]) for number in range(count)]


def all_done(planned: Sequence[Part], results: Iterable[Part]) -> list[Part]:
    """The results of all planned parts, in their order. Raises PartsError if one is missing, doubled or not done."""
    found = list(results)
    done = {part.place: part for part in found if part.done and part.last}
    wanted = [part.place for part in planned]
    if len(found) != len(wanted) or set(done) != set(wanted):
        missing = [place for place in wanted if place not in done]
        msg = f"{len(found)} of {len(wanted)} parts, of which these have no result: {missing[:3]}"
        raise PartsError(msg)
    return [done[place] for place in wanted]
