"""The cost of receipts: the time to sign and to verify one, and the KMS calls for a thousand settlements.

    python benchmarks/receipts.py            # prints the table; exit status 1 if a goal is missed

The platform's code runs on one thread, with a fake KMS that counts its calls. The settlements are one second apart, so
that a thousand are within the validity of one certificate.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from quittance.proof import log, receipt

sys.path.insert(0, str(Path(__file__).parents[1] / "layers" / "runtime"))

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from scale import scaled, status

from quittance.ledger.escrow import Escrow, StoredBytes, decide, escrow_id
from quittance.proof.receipt import ReceiptClaims
from quittance.proof.statement import Purpose
from quittance.run import Limits, Meter, Outcome, Run
from quittance.store.keys import Keys

SETTLEMENTS = scaled(1_000, 100)
LOG_SIZE = scaled(100_000, 1_000)
SIGN_MS_MAX = 0.2
KMS_CALLS_MAX = 1
NOW_S = 1_800_000_000
METER = Meter(fuel=34_898, cpu_ms=1, wall_ms=2, memory_bytes=327_680, output_bytes=56, stderr_bytes=0)


class Kms:
    """A fake KMS with a root key; it counts the calls of `sign`."""

    def __init__(self) -> None:
        self.calls = 0
        self._private = ec.generate_private_key(ec.SECP256R1())

    def sign(self, *, Message: bytes, **_: Any) -> dict[str, bytes]:  # noqa: N803 - as KMS names them
        """Implement KMS's Sign."""
        self.calls += 1
        return {"Signature": self._private.sign(Message, ec.ECDSA(SHA256()))}

    def get_public_key(self, **_: Any) -> dict[str, bytes]:
        """Implement KMS's GetPublicKey."""
        public = self._private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return {"PublicKey": public}


def claims(number: int) -> ReceiptClaims:
    """The claims of one success."""
    name, now_ms = f"task-{number}", (NOW_S + number) * 1_000
    escrow = Escrow(
        escrow_id=escrow_id("user", name), payer="user", task_id=name, request_sha256="", agent_id="agt_1",
        owner="owner", module_sha256="bb" * 32, input_sha256="cc" * 32,
        tariff='{"type":"flat","price":"0.4"}', budget_micro=1_000_000, fee_bps=250, timeout_ms=10_000, runner="r",
        fence=1, funded_ms=now_ms, lease_ms=now_ms, expires_ms=now_ms + 100_000,
    )  # fmt: skip
    run = Run(Outcome.SUCCEEDED, "", METER, limits=Limits(10**9, 2**28, 10_000))
    settled = decide(escrow, run, now_ms=now_ms + 5)
    settled = replace(settled, output=StoredBytes("dd" * 32, 56, b""), stderr=StoredBytes("ee" * 32, 0, b""))
    return ReceiptClaims.of(
        escrow,
        settled,
        run,
        issuer="https://q.example",
        engine="50.0.1",
        config_sha256="ff" * 32,
    )


def p50_ms(calls: list[Callable[[], object]]) -> float:
    """Return the median time of the calls."""
    took = []
    for call in calls:
        begun = time.perf_counter()
        call()
        took.append(time.perf_counter() - begun)
    return statistics.median(took) * 1_000


def main() -> int:
    """Measure and print; return 1 if a goal is missed."""
    kms = Kms()
    keys = Keys(kms, root_key_ids={Purpose.RECEIPT: ["key/root"]})  # type: ignore[arg-type]  # the two calls that it needs
    settlements = [claims(number) for number in range(SETTLEMENTS)]
    receipts: list[str] = []

    def settle(number: int) -> None:
        receipts.append(receipt.sign(settlements[number], keys.signing_key(now_s=NOW_S + number)))

    sign_ms = p50_ms([partial(settle, number) for number in range(SETTLEMENTS)])
    calls = kms.calls
    jwks = keys.jwks()
    verify_ms = p50_ms([partial(receipt.verify, token, jwks) for token in receipts])
    leaves = [log.leaf_hash(token.encode()) for token in receipts]
    tiles: dict[log.Tile, bytes] = dict(log.grow(0, (leaves * (LOG_SIZE // SETTLEMENTS)), _nothing).tiles)
    grow_ms = p50_ms([lambda: log.grow(LOG_SIZE, leaves, tiles.__getitem__)] * 20)
    path = log.inclusion_proof(7, LOG_SIZE, tiles.__getitem__)
    root = log.tree_root(LOG_SIZE, tiles.__getitem__)
    prove_ms = p50_ms([lambda: log.inclusion_proof(7, LOG_SIZE, tiles.__getitem__)] * 200)
    check_ms = p50_ms([lambda: log.check_inclusion(leaves[7], 7, LOG_SIZE, path, root)] * 200)
    rows = [
        ("sign a receipt, p50", f"{sign_ms:.3f} ms", f"< {SIGN_MS_MAX} ms"),
        ("verify a receipt, p50", f"{verify_ms:.3f} ms", ""),
        ("KMS calls for 1,000 settlements of an environment", str(calls), f"= {KMS_CALLS_MAX}"),
        ("bytes of a receipt", str(len(receipts[0])), ""),
        ("add 1,000 entries to a log of 100,000, p50", f"{grow_ms:.2f} ms", ""),
        ("prove an entry of 100,000, p50", f"{prove_ms:.3f} ms", ""),
        ("check that proof, p50", f"{check_ms:.3f} ms", ""),
    ]
    for name, found, goal in rows:
        print(f"{name:<52} {found:>10}  {goal}")
    return int(sign_ms >= SIGN_MS_MAX or calls != KMS_CALLS_MAX)


def _nothing(tile: log.Tile) -> bytes:
    message = f"an empty log has no {tile.path}"
    raise LookupError(message)


if __name__ == "__main__":
    sys.exit(status(main()))
