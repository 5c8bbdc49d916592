"""Create a receipt and everything its replay needs with the code of this checkout: one folder per host rules version.

    PYTHONPATH=layers/runtime:. python tests/sandbox/receipts/make.py rules-2

Each folder is created once, by the code that introduced the version, and never again: it proves that receipts from then
still verify and replay. The module uses every behaviour that has changed between two versions.
"""

import hashlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import wasmtime

from quittance.ledger.escrow import Escrow, StoredBytes, decide, escrow_id, task_seed
from quittance.limits import MIB
from quittance.run import Job, Limits, Outcome, Run
from quittance.sandbox import CONFIG_DIGEST, ENGINE_VERSION, Sandbox, compile_module
from tests.proof import receipts
from tests.proof.roots import NOW_S, Root
from tests.sandbox.wat import call, iovecs, memory, program

HERE = Path(__file__).parent
STDIN = bytes(range(64))
CLOCK_READS = 5_000
LIMITS = Limits(fuel=10**8, memory_bytes=MIB, timeout_ms=60_000)

# Writes 96 bytes: five 32-bit numbers, the clock after many readings, random bytes, and the input that was read.
BODY = f"""
    (i32.store (i32.const 1024) {call("random_get", 40_000, 65_537)})
    (drop {call("random_get", 1056, 8)})
    (i32.store (i32.const 1028) {call("fd_read", 0, 0, 3, 1032)})
    (i32.store (i32.const 1036) {call("fd_read", 0, 24, 1, 1040)})
    (loop $again
        (drop {call("clock_time_get", 1, 0, 1048)})
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $i) (i32.const {CLOCK_READS}))))
    (drop {call("fd_write", 1, 32, 4, 1044)})
    (drop {call("fd_write", 2, 32, 4, 1044)})
"""
DATA = (
    memory(0, iovecs((0, 0), (1064, 16), (1080, 0)))  # an empty buffer before a non-empty one
    + memory(24, iovecs((1080, 16)))
    + memory(32, iovecs((1024, 0), (1024, 40), (0, 0), (1064, 56)))
)
MODULE = bytes(wasmtime.wat2wasm(program(BODY, "random_get", "fd_read", "fd_write", "clock_time_get", more=DATA)))


def main(folder: Path) -> None:
    """Run the module as for a task, sign its receipt, and write all files."""
    folder.mkdir()
    root, eid = Root(), escrow_id("user", "task")
    with tempfile.TemporaryDirectory() as scratch, Sandbox() as sandbox:
        artefact = compile_module(MODULE)
        path = Path(scratch, "artefact")
        path.write_bytes(artefact.data)
        run = sandbox.run(
            Job(
                artefact_path=str(path),
                artefact_sha256=artefact.sha256,
                stdin=STDIN,
                fuel=LIMITS.fuel,
                memory_bytes=LIMITS.memory_bytes,
                timeout_ms=LIMITS.timeout_ms,
                epoch_ns=NOW_S * 10**9,
                seed=task_seed(eid),
            )
        )
    escrow = Escrow(
        escrow_id=eid, payer="user", task_id="task", request_sha256="", agent_id="agt", owner="owner",
        module_sha256=_sha256(MODULE), input_sha256=_sha256(STDIN),
        tariff='{"type":"flat","price":"0.4"}', budget_micro=10**6, fee_bps=250, timeout_ms=LIMITS.timeout_ms,
        runner="r", fence=1, funded_ms=NOW_S * 1_000, lease_ms=NOW_S * 1_000 + 1, expires_ms=NOW_S * 1_000 + 90_000,
    )  # fmt: skip
    output, log = (StoredBytes(_sha256(data), len(data), data) for data in (run.stdout, run.stderr))
    settled = replace(decide(escrow, run, now_ms=NOW_S * 1_000 + 9), output=output, stderr=log)
    engine = {"engine": ENGINE_VERSION, "config_sha256": CONFIG_DIGEST}
    claims = receipts.claims_of(
        escrow, settled, issuer="i", run=Run(Outcome.SUCCEEDED, "", run.meter, limits=LIMITS), **engine
    )
    (folder / "receipt.jws").write_text(receipts.sign(json.loads(json.dumps(claims)), root.certify()))
    (folder / "jwks.json").write_text(json.dumps(root.jwks()))
    for name, data in (("module.wasm", MODULE), ("input", STDIN), ("output", run.stdout)):
        (folder / name).write_bytes(data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main(HERE / sys.argv[1])
