"""The log, compared with the definitions of RFC 9162 §2.1, which are implemented here as the RFC states them."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quittance.limits import LOG_SIZE_MAX
from quittance.proof.log import (
    EMPTY_ROOT,
    Checkpoint,
    Frontier,
    Proof,
    Tile,
    check_consistency,
    check_inclusion,
    consistency_proof,
    grow,
    inclusion_proof,
    leaf_hash,
    sign_checkpoint,
    tree_root,
    verify_checkpoint,
)
from quittance.proof.statement import Flaw, ProofError, Purpose
from tests.proof.roots import NOW_S, Root

ENTRIES = [str(number).encode() for number in range(700)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]
SIZES = [*range(1, 301 if os.environ.get("QUITTANCE_LONG") else 66), 255, 256, 257, 300, 513]


@cache
def mth(low: int, high: int) -> bytes:
    """§2.1.1: MTH(D[low:high])."""
    if high == low:
        return hashlib.sha256().digest()
    if high == low + 1:
        return hashlib.sha256(b"\x00" + ENTRIES[low]).digest()
    k = below(high - low)
    return hashlib.sha256(b"\x01" + mth(low, low + k) + mth(low + k, high)).digest()


def below(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def path(m: int, low: int, high: int) -> list[bytes]:
    """§2.1.3.1: PATH(m, D[low:high])."""
    if high - low == 1:
        return []
    k = below(high - low)
    if m < k:
        return [*path(m, low, low + k), mth(low + k, high)]
    return [*path(m - k, low + k, high), mth(low, low + k)]


def subproof(m: int, low: int, high: int, *, whole: bool) -> list[bytes]:
    """§2.1.4.1: SUBPROOF(m, D[low:high], b)."""
    if m == high - low:
        return [] if whole else [mth(low, high)]
    k = below(high - low)
    if m <= k:
        return [*subproof(m, low, low + k, whole=whole), mth(low + k, high)]
    return [*subproof(m - k, low + k, high, whole=False), mth(low, low + k)]


class Store:
    """A bucket of tiles, read and written by their published names."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.size = 0
        self.reads = 0

    def read(self, tile: Tile) -> bytes:
        self.reads += 1
        return self.objects[tile.path]

    def add(self, *leaves: bytes) -> bytes:
        growth = grow(self.size, leaves, self.read)
        for tile, data in growth.tiles.items():
            assert self.objects.setdefault(tile.path, data) == data  # a published object never changes
        self.size = growth.size
        return growth.root


@pytest.fixture(scope="module")
def grown() -> Store:
    """A log that grew entry by entry, so it has the partial tiles of every size."""
    store = Store()
    for size, leaf in enumerate(LEAVES[:600], start=1):
        assert store.add(leaf) == mth(0, size)
    return store


# Certificate Transparency's reference vectors: the leaves, and the results of every correct implementation.
CT_ENTRIES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
CT_INCLUSION_0_OF_8 = [
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
]
CT_INCLUSION_5_OF_8 = [
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
]
CT_CONSISTENCY_6_TO_8 = ["0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a", *CT_INCLUSION_5_OF_8[1:]]
CT_CONSISTENCY_2_TO_5 = [CT_INCLUSION_0_OF_8[1], CT_INCLUSION_5_OF_8[0]]


def test_the_frontier_has_the_same_roots_leaf_by_leaf() -> None:
    frontier = Frontier()
    assert frontier.root() == EMPTY_ROOT
    for leaf in LEAVES:
        frontier.append(leaf)
        if frontier.size in SIZES:
            assert frontier.root() == mth(0, frontier.size)
    assert (frontier.size, frontier.root()) == (len(LEAVES), mth(0, len(LEAVES)))


def test_certificate_transparency_reference_vectors_pass() -> None:
    store = Store()
    for entry, root in zip(CT_ENTRIES, CT_ROOTS, strict=True):
        assert store.add(leaf_hash(bytes.fromhex(entry))).hex() == root
    proofs = [
        (inclusion_proof(0, 8, store.read), CT_INCLUSION_0_OF_8),
        (inclusion_proof(5, 8, store.read), CT_INCLUSION_5_OF_8),
        (consistency_proof(1, 8, store.read), CT_INCLUSION_0_OF_8),
        (consistency_proof(6, 8, store.read), CT_CONSISTENCY_6_TO_8),
        (consistency_proof(2, 5, store.read), CT_CONSISTENCY_2_TO_5),
    ]
    for made, published in proofs:
        assert [node.hex() for node in made] == published
    assert tree_root(0, store.read) == EMPTY_ROOT == hashlib.sha256().digest()


def test_inclusion_proofs_follow_the_rfc_and_prove_one_entry(grown: Store) -> None:
    for size in SIZES:
        root = mth(0, size)
        assert tree_root(size, grown.read) == root
        for index in range(size):
            proof = inclusion_proof(index, size, grown.read)
            assert proof == path(index, 0, size)
            check_inclusion(LEAVES[index], index, size, proof, root)
            for other, entry in ((index, (index + 1) % size), ((index + 1) % size, index)):
                if size > 1:
                    with pytest.raises(ProofError, match=r"leads to the root|too (long|short)"):
                        check_inclusion(LEAVES[entry], other, size, proof, root)


def test_consistency_proofs_follow_the_rfc_and_prove_a_prefix(grown: Store) -> None:
    for size in SIZES:
        for old in range(1, size + 1):
            proof = consistency_proof(old, size, grown.read)
            assert proof == subproof(old, 0, size, whole=True)
            check_consistency(old, mth(0, old), size, mth(0, size), proof)


@given(st.data())
def test_no_node_of_an_inclusion_proof_can_be_changed(grown: Store, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 600))
    index = data.draw(st.integers(0, size - 1))
    leaf, proof, root = LEAVES[index], inclusion_proof(index, size, grown.read), mth(0, size)
    for forged in forgeries([leaf, root, *proof], data):
        if forged[2:] != proof or forged[0] != leaf or forged[1] != root:
            with pytest.raises(ProofError) as refused:
                check_inclusion(forged[0], index, size, forged[2:], forged[1])
            assert refused.value.flaw is Flaw.LOG


@given(st.data())
def test_no_node_of_a_consistency_proof_can_be_changed(grown: Store, data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 600))
    old = data.draw(st.integers(1, size))
    proof = consistency_proof(old, size, grown.read)
    honest = [mth(0, old), mth(0, size), *proof]
    for forged in forgeries(honest, data):
        with pytest.raises(ProofError) as refused:
            check_consistency(old, forged[0], size, forged[1], forged[2:])
        assert refused.value.flaw is Flaw.HISTORY


def forgeries(honest: list[bytes], data: st.DataObject) -> list[list[bytes]]:
    """Each hash with one bit flipped; one hash removed, one added, two exchanged."""
    bit = data.draw(st.integers(0, 255))
    made = []
    for at, value in enumerate(honest):
        flipped = (int.from_bytes(value) ^ (1 << bit)).to_bytes(32)
        made.append([*honest[:at], flipped, *honest[at + 1 :]])
    made.append([*honest, secrets.token_bytes(32)])
    made.append([*honest, honest[-1]])
    made += [[*honest[:at], *honest[at + 1 :]] for at in range(2, len(honest))]
    made += [
        [*honest[:at], honest[at + 1], honest[at], *honest[at + 2 :]]
        for at in range(2, len(honest) - 1)
        if honest[at] != honest[at + 1]
    ]
    return made


def test_an_empty_log_begins_every_log(grown: Store) -> None:
    assert consistency_proof(0, 9, grown.read) == consistency_proof(9, 9, grown.read) == []
    check_consistency(0, EMPTY_ROOT, 9, mth(0, 9), [])
    check_consistency(9, mth(0, 9), 9, mth(0, 9), [])
    for old, old_root, size, root in (
        (0, mth(0, 1), 9, mth(0, 9)),
        (9, mth(0, 8), 9, mth(0, 9)),
        (10, mth(0, 10), 9, mth(0, 9)),
        (-1, EMPTY_ROOT, 9, mth(0, 9)),
        (5, mth(0, 5), 9, mth(0, 9)),
    ):
        with pytest.raises(ProofError):
            check_consistency(old, old_root, size, root, [])


@given(
    index=st.integers(-2, LOG_SIZE_MAX + 2),
    size=st.integers(-2, LOG_SIZE_MAX + 2),
    nodes=st.lists(st.binary(min_size=32, max_size=32), max_size=70),
)
def test_any_claimed_proof_passes_or_fails_with_a_reason(index: int, size: int, nodes: list[bytes]) -> None:
    with pytest.raises(ProofError):
        check_inclusion(LEAVES[0], index, size, nodes, LEAVES[1])
    with pytest.raises(ProofError):
        check_consistency(index, LEAVES[0], size, LEAVES[1], nodes)


@given(st.lists(st.integers(0, 300), max_size=6))
@settings(max_examples=40)
def test_the_batches_in_which_a_log_grows_do_not_matter(batches: list[int]) -> None:
    store, size = Store(), 0
    for batch in batches:
        before, size = size, min(size + batch, len(LEAVES))
        assert store.add(*LEAVES[before:size]) == mth(0, size)
    assert store.size == size
    for tile in edge(size):
        assert len(store.objects[tile.path]) == tile.width * 32


def edge(size: int) -> list[Tile]:
    tiles, level = [], 0
    while size:
        if size % 256:
            tiles.append(Tile(level, size // 256, size % 256))
        level, size = level + 1, size // 256
    return tiles


@pytest.mark.parametrize("batch", [65_535, 65_536, 65_537])
def test_a_log_grows_beyond_a_full_tile_of_full_tiles(batch: int) -> None:
    """256² leaves fill the first tile of level 1, whose root is the first hash of level 2."""
    leaves = [leaf_hash(number.to_bytes(4)) for number in range(65_540)]
    store = Store()
    store.add(*leaves[:batch])
    for leaf in leaves[batch:]:
        store.add(leaf)
    assert {name.split("/")[1] for name in store.objects} == {"0", "1", "2"}
    assert len(store.objects["tile/1/000"]) == 256 * 32
    assert len(store.objects["tile/2/000.p/1"]) == 32
    sizes = {batch, 65_536, 65_537, 65_540}
    roots = {size: balanced(leaves[:size]) for size in sizes}
    for size in sizes:
        assert tree_root(size, store.read) == roots[size]
        for index in (0, 255, 256, 65_279, 65_280, 65_534, size - 1):
            store.reads = 0
            proof = inclusion_proof(index, size, store.read)
            assert store.reads <= 6  # of 257 tiles
            check_inclusion(leaves[index], index, size, proof, roots[size])
        store.reads = 0
        proof = consistency_proof(batch, size, store.read) if size >= batch else []
        assert store.reads <= 6
        if size >= batch:
            check_consistency(batch, roots[batch], size, roots[size], proof)


def balanced(hashes: list[bytes]) -> bytes:
    """The same root, computed level by level: a node without a sibling moves up unchanged."""
    while len(hashes) > 1:
        pairs = [hashlib.sha256(b"\x01" + hashes[at] + hashes[at + 1]).digest() for at in range(0, len(hashes) - 1, 2)]
        hashes = pairs + hashes[len(pairs) * 2 :]
    return hashes[0]


@pytest.mark.parametrize(
    ("tile", "name"),
    [
        (Tile(0, 0, 256), "tile/0/000"),
        (Tile(0, 0, 1), "tile/0/000.p/1"),
        (Tile(1, 67, 255), "tile/1/067.p/255"),
        (Tile(0, 1000, 256), "tile/0/x001/000"),
        (Tile(0, 999, 256), "tile/0/999"),
        (Tile(0, 1_234_067, 256), "tile/0/x001/x234/067"),
        (Tile(2, 12_345_678_901, 7), "tile/2/x012/x345/x678/901.p/7"),
    ],
)
def test_tile_paths_follow_tlog_tiles(tile: Tile, name: str) -> None:
    assert tile.path == name


def test_a_wider_tile_is_accepted_and_a_truncated_one_is_not(grown: Store) -> None:
    def wider(tile: Tile) -> bytes:
        return grown.objects[replace(tile, width=256).path if tile.index == 0 else tile.path]

    assert inclusion_proof(3, 200, wider) == path(3, 0, 200)
    for tear in (lambda data: data[:-1], lambda data: data[32:], lambda data: b"", lambda data: data * 300):
        with pytest.raises(ValueError, match=r"tile/0/000\.p/200 has"):
            inclusion_proof(3, 200, lambda tile, tear=tear: tear(grown.read(tile)))


@pytest.mark.parametrize("ask", [lambda r: inclusion_proof(5, 5, r), lambda r: inclusion_proof(-1, 5, r)])
def test_missing_entries_cannot_be_proven(grown: Store, ask: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match="no entry"):
        ask(grown.read)
    with pytest.raises(ValueError, match="cannot be the beginning"):
        consistency_proof(6, 5, grown.read)


ROOT = Root(purpose=Purpose.CHECKPOINT)
CHECKPOINT = Checkpoint("https://q.example", 600, mth(0, 600), NOW_S * 1_000)


def test_a_verified_checkpoint_is_the_one_that_was_signed() -> None:
    token = sign_checkpoint(CHECKPOINT, ROOT.certify())
    assert verify_checkpoint(token, ROOT.jwks()) == CHECKPOINT
    with pytest.raises(ProofError, match="unknown root key"):
        verify_checkpoint(token, Root("other").jwks())


@pytest.mark.parametrize(
    "change", [{"v": 2}, {"size": -1}, {"size": "1"}, {"size": 2**53 + 1}, {"root": "AA" * 32}, {"at": None}, {"x": 1}]
)
def test_a_signed_checkpoint_of_a_wrong_form_is_refused(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    from quittance.proof import statement

    key, sign = ROOT.certify(), statement.sign
    monkeypatch.setattr(statement, "sign", lambda claims, key, kind: sign({**claims, **change}, key, kind))
    token = sign_checkpoint(CHECKPOINT, key)
    with pytest.raises(ProofError, match="the checkpoint has a wrong form"):
        verify_checkpoint(token, ROOT.jwks())


def test_a_checkpoint_must_be_dated_within_its_certificate() -> None:
    late = Checkpoint("i", 0, EMPTY_ROOT, (NOW_S + 12 * 60 * 60) * 1_000)
    with pytest.raises(ProofError, match="outside the validity"):
        verify_checkpoint(sign_checkpoint(late, ROOT.certify()), ROOT.jwks())


def test_the_proof_document_is_plain_json(grown: Store) -> None:
    proof = Proof(
        leaf_index=3,
        tree_size=5,
        path=[node.hex() for node in inclusion_proof(3, 5, grown.read)],
        checkpoint="a.b.c",
    )
    assert json.loads(proof.model_dump_json(exclude_none=True)) == {
        "leaf_index": 3,
        "tree_size": 5,
        "path": [mth(2, 3).hex(), mth(0, 2).hex(), mth(4, 5).hex()],
        "checkpoint": "a.b.c",
    }


@given(st.integers(0, 70), st.lists(st.integers(0, 70), max_size=6))
def test_ranges_of_the_log_join_to_its_root(size: int, cuts: list[int]) -> None:
    """Readers of parts of any length, aligned or not, together have the root of one reader."""
    leaves = [leaf_hash(str(number).encode()) for number in range(size)]
    whole = Frontier()
    for leaf in leaves:
        whole.append(leaf)
    bounds = sorted({0, size, *(min(cut, size) for cut in cuts)})
    joined = Frontier()
    for begin, end in pairwise(bounds):
        part = Frontier(begin)
        for leaf in leaves[begin:end]:
            part.append(leaf)
        assert (part.begin, part.size, len(part.nodes) <= 2 * size.bit_length()) == (begin, end, True)
        joined.join(Frontier(begin, part.nodes))
    assert (joined.size, joined.root(), joined.nodes) == (whole.size, whole.root(), whole.nodes)


def test_ranges_that_do_not_adjoin_are_not_joined() -> None:
    part = Frontier(3)
    part.append(leaf_hash(b""))
    with pytest.raises(ValueError, match="does not continue"):
        Frontier().join(part)
    with pytest.raises(ValueError, match="no root"):
        part.root()
    with pytest.raises(ValueError, match="cannot begin"):
        Frontier(3, [(1, b"\0" * 32)])
