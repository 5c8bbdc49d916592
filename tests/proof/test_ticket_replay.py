"""The run of a task that a ticket paid is replayed as any other: its seed follows from the ticket's escrow."""

import hashlib
from collections.abc import Callable

import pytest

from quittance.ledger.escrow import Escrow, decide, task_seed
from quittance.proof.receipt import ReceiptClaims
from quittance.proof.replay import replay
from quittance.proof.statement import Flaw, ProofError
from quittance.run import Limits, Meter, Outcome, Run
from quittance.sandbox import CONFIG_DIGEST, ENGINE_VERSION
from tests.proof import test_ticket_forgeries as forgeries
from tests.proof.ticketing import paid_by_ticket
from tests.support import wasm

INPUT = b'{"text":"to be or not to be"}'


def test_the_run_of_a_ticket_is_replayed(new_escrow: Callable[..., Escrow]) -> None:
    escrow = paid_by_ticket(new_escrow(input_sha256=hashlib.sha256(INPUT).hexdigest()), issuer=forgeries.ISSUER)
    run = Run(Outcome.EXIT_CODE, "", Meter(), limits=Limits(10**9, 2**26, 10_000, 2**20))
    stated = forgeries.stated(escrow, decide(escrow, run, now_ms=escrow.funded_ms + 5), run)
    claims = ReceiptClaims.model_validate(stated)
    assert claims.seed == task_seed(escrow.escrow_id).hex()
    for outcome in (Outcome.SUCCEEDED, Outcome.EXIT_CODE):
        found = claims.model_copy(
            update={"outcome": outcome, "engine": ENGINE_VERSION + "x", "config_sha256": CONFIG_DIGEST}
        )
        if outcome is Outcome.SUCCEEDED:
            assert replay(found, wasm("wordcount"), INPUT).run.outcome is Outcome.SUCCEEDED
        else:
            with pytest.raises(ProofError) as caught:
                replay(found, wasm("wordcount"), INPUT)
            assert caught.value.flaw is Flaw.REPLAY
