"""The cost of a cold start for each function: imports, the parts for its first request, and what a snapshot saves.

    python benchmarks/cold_start.py                # prints the table; exit status 1 if a budget is exceeded
    python benchmarks/cold_start.py --json FILE    # also writes the figures

Everything runs in new processes on the built layer with its bytecode, without site packages, as on Lambda. Times are
processor times, in units of a process that imports only `json` and `logging` and is measured in turn with the others,
so a budget holds on any machine, busy or not. The best of several rounds counts, because noise only adds time.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from scale import scaled, status

from local import deploy, venvs
from local.paths import ROOT

ROUNDS: Final = scaled(5, 1)
SETTINGS: Final = {
    "AWS_DEFAULT_REGION": "eu-central-1", "LEDGER_TABLE": "l", "REGISTRY_TABLE": "r", "UPLOADS_BUCKET": "u",
    "BINARIES_BUCKET": "b", "OUTPUTS_BUCKET": "o", "LOG_BUCKET": "t", "LEDGER_SHARDS": "4", "FEE_BPS": "250",
    "PLATFORM_ACCOUNT": "quittance:platform", "RECEIPT_KEY_IDS": "k", "CHECKPOINT_KEY_IDS": "c",
    "WEBHOOK_KEY_IDS": "w", "CARD_KEY_IDS": "a", "RECEIPT_ISSUER": "i", "ISSUER_URL": "i",
    "JWKS_URL": "https://issuer.example/jwks.json", "AUDIENCE": "quittance",
}  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """How many times the baseline a function's imports and its prepared parts may cost, and the reason."""

    imports: float
    parts: float
    reason: str


ROUTES: Final = "routes with validation, boto3 and the receipts' cryptography"
BUDGETS: Final[Mapping[str, Budget]] = {
    "health": Budget(3.5, 1, "only Powertools' logger: load balancers call it cold"),
    "authorizer": Budget(11, 1, "PyJWT with cryptography, and the settings by pydantic: it runs before every request"),
    "execute": Budget(24, 9, ROUTES),
    "result": Budget(24, 9, ROUTES),
    "agents": Budget(24, 9, ROUTES),
    "accounts": Budget(23, 8, ROUTES),
    "channels": Budget(23, 9, ROUTES),
    "operations": Budget(23, 1, "routes with validation and boto3; operators call it rarely"),
    "public": Budget(24, 9, ROUTES),
    "publish": Budget(22, 1, "no routes; no caller waits for it"),
    "work": Budget(24, 1, "no routes; the queue waits, not a person"),
    "deadletter": Budget(24, 1, "as work"),
    "plan": Budget(15, 1, "pydantic, but no AWS client"),
    "notify": Budget(22, 1, "no routes; behind a stream"),
    "listings": Budget(22, 1, "no routes; behind a stream"),
    "webhook": Budget(22, 1, "no routes; behind a queue"),
    "sweep": Budget(21, 1, "no routes; it is warm: the schedule calls it every minute"),
    "drain": Budget(21, 1, "as sweep; only a large backlog calls it"),
    "audit": Budget(18, 1, "no routes; once a day"),
    "archive": Budget(18, 1, "no routes; once an hour"),
}

_PARTS: Final = """
from quittance import platform
platform.clients.without_credentials()
made = platform.Platform(platform.settings())
for part in platform._prepared: getattr(made, part)
"""
_RESTORED: Final = """
import time
from quittance import platform
platform.before_snapshot()
began = time.process_time()
platform.clients.without_credentials()
made = platform.Platform(platform.settings())
for part in platform._prepared: getattr(made, part)
print(time.process_time() - began)
"""


def main() -> int:
    """Measure all functions; return 1 if a budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    layer = deploy.layer(deploy.build())
    codes = {"": "import json, logging"}
    for function in BUDGETS:
        codes[function] = (
            f"import sys; sys.path[:0] = [{str(ROOT / 'functions' / function)!r}, {str(layer)!r}]\nimport app"
        )
    with_parts = {f"{name} parts": f"{code}\n{_PARTS}" for name, code in codes.items() if name and _prepares(name)}
    best = dict.fromkeys([*codes, *with_parts], float("inf"))
    for _ in range(ROUNDS):
        for name, code in (codes | with_parts).items():
            best[name] = min(best[name], _cost_s(code))
    base_s, exceeded = best[""], []
    rows: list[dict[str, str | float]] = []
    print(f"baseline: {base_s * 1e3:.0f} ms of processor time, on Python {venvs.PYTHON_VERSION}")
    print(f"{'function':<12}{'imports':>9}{'budget':>8}{'parts':>8}{'budget':>8}{'restored':>10}   in baselines")
    for function, budget in BUDGETS.items():
        imports, parts, restored = best[function] / base_s, 0.0, 0.0
        if f"{function} parts" in best:
            parts = (best[f"{function} parts"] - best[function]) / base_s
            restored = min(_restored_s(codes[function]) for _ in range(ROUNDS)) / base_s
        late = imports > budget.imports or parts > budget.parts
        row = f"{function:<12}{imports:>9.1f}{budget.imports:>8g}{parts:>8.1f}{budget.parts:>8g}{restored:>10.1f}"
        print(f"{row}{'   EXCEEDED: ' + budget.reason if late else ''}")
        exceeded += [function] if late else []
        rows.append({"function": function, "imports": imports, "parts": parts, "restored": restored})
    if options.json:
        options.json.write_text(json.dumps(rows))
    return 1 if exceeded else 0


def _prepares(function: str) -> bool:
    return "\napp = Api(" in (ROOT / "functions" / function / "app.py").read_text()


def _cost_s(code: str) -> float:
    """Return the processor time of a new process that runs the code."""
    process = subprocess.Popen([venvs.BASE_PYTHON, "-I", "-S", "-c", code], env=SETTINGS)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit("a function could not be loaded from the layer")
    return usage.ru_utime + usage.ru_stime


def _restored_s(code: str) -> float:
    """Return the processor time of the prepared parts in a process that has rehearsed them."""
    done = subprocess.run(
        [venvs.BASE_PYTHON, "-I", "-S", "-c", code + _RESTORED], env=SETTINGS, capture_output=True, check=True
    )
    return float(done.stdout)


if __name__ == "__main__":
    sys.exit(status(main()))
