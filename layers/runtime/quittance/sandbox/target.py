"""What an artefact depends on besides its module: engine version, configuration and CPU target.

This module loads no engine, so that the process that only starts runs can name artefacts cheaply.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from quittance.run import HOST_RULES

ENGINE_VERSION: Final = "50.0.1"
"""The pinned release of wasmtime; a test holds it equal to the installed one."""

CONFIG: Final[Mapping[str, bool | int | str]] = MappingProxyType(
    {
        # Metering. No epoch: the parent's kill bounds wall time, and the check costs up to a fifth on calls.
        "consume_fuel": True,
        "epoch_interruption": False,
        # The same module and input must give the same bits on every machine.
        "cranelift_nan_canonicalization": True,
        "wasm_relaxed_simd_deterministic": True,
        # Over 2 MiB the engine aborts the process. The stack is part of the behaviour: deeper recursion traps.
        "max_wasm_stack": 512 * 1024,
        "cranelift_opt_level": "speed",
        "parallel_compilation": False,  # one thread: bounded memory, and no process limit to widen
        # Small, old, well-tested features only: what clang, Rust, Go, Zig and AssemblyScript emit.
        "wasm_simd": True,
        "wasm_bulk_memory": True,
        "wasm_multi_value": True,
        "wasm_reference_types": True,
        "wasm_tail_call": True,
        "wasm_threads": False,
        "shared_memory": False,
        "wasm_memory64": False,
        "wasm_multi_memory": False,
        "wasm_gc": False,
        "gc_support": False,
        "wasm_function_references": False,
        "wasm_exceptions": False,
        "wasm_wide_arithmetic": False,
        "wasm_custom_page_sizes": False,
        "wasm_stack_switching": False,
        "wasm_component_model": False,
        "wasm_relaxed_simd": False,
    }
)

_X86_64_FLAGS: Final = (
    "has_sse3", "has_ssse3", "has_sse41", "has_sse42", "has_popcnt", "has_avx", "has_avx2",
    "has_fma", "has_bmi1", "has_bmi2", "has_lzcnt", "has_cmpxchg16b",
)  # fmt: skip
_TARGETS: Final = {
    "x86_64": ("x86_64-unknown-linux-gnu", "x86_64-avx2", _X86_64_FLAGS),  # every x86 host of Lambda since Haswell
    "aarch64": ("aarch64-unknown-linux-gnu", "aarch64", ()),
}
_MACHINE: Final = {"amd64": "x86_64", "arm64": "aarch64"}.get(os.uname().machine, os.uname().machine)

if _MACHINE not in _TARGETS:
    message = f"the sandbox runs on x86_64 and aarch64, not on {_MACHINE}"
    raise ImportError(message)

TARGET_TRIPLE, CPU_TARGET, CPU_FLAGS = _TARGETS[_MACHINE]


def _digest(triple: str, flags: tuple[str, ...], rules: int) -> str:
    numbered = [{"host_rules": rules}] if rules > 1 else []  # the first ones had no number
    return hashlib.sha256(json.dumps([dict(CONFIG), triple, flags, *numbered], sort_keys=True).encode()).hexdigest()


def config_digest(host_rules: int) -> str:
    """SHA-256 of all that a run on this machine depends on beside the engine's version: receipts state it."""
    return _digest(TARGET_TRIPLE, CPU_FLAGS, host_rules)


CONFIG_DIGEST: Final = config_digest(HOST_RULES)
"""The configuration by which agents are run now."""

ENGINE_DIGEST: Final = config_digest(1)
"""SHA-256 of all that an artefact depends on. The engine itself checks only a part of it when it loads one.

The rules of host calls are not in it: they are no part of the compiled code, so a change of them needs no compilation.
"""

_HOST_RULES_OF: Final = {
    _digest(triple, flags, rules): rules for triple, _, flags in _TARGETS.values() for rules in range(1, HOST_RULES + 1)
}


def host_rules_of(config_sha256: str) -> int | None:
    """The rules of host calls that are part of a configuration, None if this release does not know it."""
    return _HOST_RULES_OF.get(config_sha256)


def artefact_key(module_sha256: str) -> str:
    """Name the artefact of a module for this engine, configuration and CPU target; fit to be part of an S3 key."""
    return f"{module_sha256}-wasmtime-{ENGINE_VERSION}-{ENGINE_DIGEST[:16]}-{CPU_TARGET}"
