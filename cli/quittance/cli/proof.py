"""`quittance verify` and `quittance replay`: does a receipt prove what it states, and does its run repeat?"""

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import jwt
import typer
from rich.text import Text

from quittance import limits
from quittance.cli import options, output
from quittance.cli.exits import Exit, PlatformError, UnprovenError, UsageError
from quittance.cli.files import STDIN, read_file, read_stdin
from quittance.ledger.credits import format_credits
from quittance.proof import receipt as receipts
from quittance.proof import verify as verifier
from quittance.proof.receipt import ReceiptClaims
from quittance.proof.statement import Flaw, ProofError, read_json

_NOT_HERE: Final = frozenset({Flaw.UNREPEATABLE, Flaw.NO_SANDBOX})


def verify(context: typer.Context) -> int:
    """Check a receipt or a webhook offline: signatures, times, amounts, each file given. `verify --help` says all.

    The options and the report are those of `quittance-verify`. Exit code 5: something is not proven.
    """
    output.mode.json = "--json" in context.args
    try:
        status = verifier.main(context.args)
    except SystemExit as ended:
        return Exit.USAGE if ended.code else Exit.DONE
    return {0: Exit.DONE, Exit.USAGE: Exit.USAGE}.get(status, Exit.UNPROVEN)


def replay(
    receipt: Annotated[Path, typer.Argument(help="The receipt, a compact JWS; - for standard input.")],
    module: Annotated[Path, typer.Option("--module", "-m", help="The agent's module.")],
    input_file: Annotated[Path, typer.Option("--input", "-i", help="The bytes that the agent read.")],
    keys: Annotated[
        Path | None, typer.Option(help="The platform's key set: also check who signed the receipt.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the output of the run to this file.")
    ] = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Run a real task again from its receipt, and say what agrees: outcome, output, log, fuel, memory.

    Exit code 5: the run ends otherwise than the receipt states, or its files are others.
    """
    token = _token(receipt)
    claims = _claims(token, keys)
    files = {
        "module": (read_file(module, bytes_max=limits.MODULE_BYTES_MAX), claims.module_sha256),
        "input": (read_file(input_file, bytes_max=limits.STDIN_BYTES_MAX), claims.input_sha256),
    }
    for name, (data, digest) in files.items():
        _check_digest(name, data, digest)
    run, same_engine = _replay(claims, files["module"][0], files["input"][0])
    if out is not None:
        _write(out, run.stdout)
    _report(claims, run, same_engine=same_engine, signed=keys is not None)
    return Exit.DONE


def _token(path: Path) -> str:
    most = 2 * limits.TOKEN_CHARS_MAX
    data = read_stdin(bytes_max=most) if path == STDIN else read_file(path, bytes_max=most)
    return data.decode(errors="replace").strip()


def _claims(token: str, keys: Path | None) -> ReceiptClaims:
    """The claims of a receipt; with a key set, only if it is signed by it and agrees with itself."""
    try:
        if keys is None:
            return _unsigned_claims(token)
        claims, signed = receipts.authenticate(token, read_json(read_file(keys, bytes_max=limits.MIB), "key set"))
        for _, check in receipts.checks(claims, signed):
            check()
    except ProofError as error:
        kind = UsageError if error.flaw is Flaw.FORM else UnprovenError
        raise kind(f"The receipt: {error}.", "quittance verify shows every check.", flaw=error.flaw) from error
    return claims


def _unsigned_claims(token: str) -> ReceiptClaims:
    """The claims of a receipt whose signature nobody checks."""
    if len(token) > limits.TOKEN_CHARS_MAX:
        raise ProofError(Flaw.FORM, f"it has more than {limits.TOKEN_CHARS_MAX} characters")
    try:
        claims = receipts.read_claims(token)
    except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
        raise ProofError(Flaw.FORM, "it is no compact JWS") from error
    return receipts.read(claims)


def _check_digest(name: str, data: bytes, digest: str) -> None:
    import hashlib

    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        mend = f"Give the {name} that the receipt names: its SHA-256 is {digest}."
        raise UnprovenError(f"The {name} is another one: its SHA-256 is {found}.", mend, flaw=Flaw.DIGEST)


def _replay(claims: ReceiptClaims, module: bytes, stdin: bytes) -> tuple[Any, bool]:
    from quittance.proof import replay as again

    try:
        with output.progress("running the task again"):
            done = again.replay(claims, module, stdin)
    except ProofError as error:
        if error.flaw is Flaw.NO_SANDBOX:
            raise PlatformError(f"{error}.", "quittance doctor checks this machine.", flaw=error.flaw) from error
        mend = "" if error.flaw in _NOT_HERE else "The receipt, or the platform's word about this run, is wrong."
        raise UnprovenError(f"{error}.", mend, flaw=error.flaw) from error
    return done.run, done.same_engine


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.", "Name a file that you may write.") from error


def _report(claims: ReceiptClaims, run: Any, *, same_engine: bool, signed: bool) -> None:  # noqa: ANN401 - a Run
    names = ["outcome", "output", "log"]
    if same_engine:
        names += ["fuel"] if claims.meter.fuel_exact else []
        names += ["memory", "bytes written"]
    if output.mode.json:
        output.document(
            {
                "agrees": names,
                "counts_compared": same_engine,
                "signature_checked": signed,
                "outcome": run.outcome,
                "fuel_used": run.meter.fuel,
                "memory_bytes": run.meter.memory_bytes,
                "task_id": claims.task,
                "agent_id": claims.agent,
                "price": format_credits(int(claims.paid) + int(claims.fee) - int(claims.compute)),
            }
        )
        return
    output.result(Text("The run repeats. ", style="bold green"), f"Equal: {', '.join(names)}.")
    output.result(f"outcome {run.outcome}, fuel {run.meter.fuel:,}, memory {run.meter.memory_bytes / limits.MIB:g} MiB")
    if not same_engine:
        output.result("The receipt is of another engine, so fuel and memory were not compared.")
    if not signed:
        output.result("The signature was not checked: give --keys.")
    sys.stdout.flush()
