"""The hostile corpus as data: corpus.toml with its modules."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import wasmtime

from quittance import limits
from quittance.run import Outcome
from quittance.sandbox import Refusal
from tests.hostile import generated

FOLDER = Path(__file__).parent

FUEL = limits.FUEL_MAX  # so that time, not fuel, stops endless modules
MEMORY_MIB = 16
TIMEOUT_MS = 200


@dataclass(frozen=True, kw_only=True)
class Case:
    """One hostile module, its limits, and its expected end."""

    name: str
    group: str
    does: str
    ends: str
    module: str = ""  # the file's name if it differs from the case's; or "generated"
    fuel: int = FUEL
    memory_mib: int = MEMORY_MIB
    timeout_ms: int = TIMEOUT_MS
    stdin_bytes: int = 0
    compile_seconds: int = limits.COMPILE_SECONDS_MAX  # some cases lower it, to keep the test short
    compile_mib: int = limits.COMPILE_MEMORY_BYTES_MAX // limits.MIB  # as above
    exit_code: int | None = None
    stdout: str | None = None
    stderr_bytes: int | None = None  # how much of standard error is kept

    @property
    def is_refused(self) -> bool:
        """Whether it must be rejected before it runs."""
        return self.ends in set(Refusal)

    @property
    def source(self) -> str:
        """The path of its source, relative to this folder."""
        return "generated.py" if self.module == "generated" else f"modules/{self.module or self.name}.wat"

    def binary(self) -> bytes:
        """Return the module's bytes."""
        if self.module == "generated":
            module: bytes = getattr(generated, self.name)()
            return module
        return bytes(wasmtime.wat2wasm((FOLDER / self.source).read_text(encoding="utf-8")))


def _case(name: str, fields: Mapping[str, object]) -> Case:
    case = Case(name=name, **fields)  # type: ignore[arg-type]  # a wrong field fails here
    if case.ends not in {*Refusal, *Outcome}:
        message = f"{name}: {case.ends!r} is neither an outcome nor a refusal"
        raise ValueError(message)
    return case


CASES = [
    _case(name, fields) for name, fields in tomllib.loads((FOLDER / "corpus.toml").read_text(encoding="utf-8")).items()
]
