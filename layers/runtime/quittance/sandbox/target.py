"""What an artefact depends on besides its module: engine version, configuration and CPU target.

This module does not load the engine, so a process that only starts runs can name artefacts cheaply.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from quittance.run import HOST_RULES

ENGINE_VERSION: Final = "50.0.1"
"""The pinned release of wasmtime. A test checks that it is the installed one."""

CONFIG: Final[Mapping[str, bool | int | str]] = MappingProxyType(
    {
        # Metering. No epoch interruption: the parent's kill bounds wall time, and epoch checks cost up to a fifth more
        # in programs with many calls.
        "consume_fuel": True,
        "epoch_interruption": False,
        # The same module and input must produce the same bits on every machine.
        "cranelift_nan_canonicalization": True,
        "wasm_relaxed_simd_deterministic": True,
        # Above 2 MiB the engine aborts the process. Changing the limit changes behaviour: deeper recursion traps.
        "max_wasm_stack": 512 * 1024,
        "cranelift_opt_level": "speed",
        "parallel_compilation": False,  # one thread bounds memory and needs no higher RLIMIT_NPROC
        # Only small, old, well-tested features: those that clang, Rust, Go, Zig and AssemblyScript emit.
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
    "x86_64": ("x86_64-unknown-linux-gnu", "x86_64-avx2", _X86_64_FLAGS),  # all of Lambda's x86 hosts since Haswell
    "aarch64": ("aarch64-unknown-linux-gnu", "aarch64", ()),
}
_MACHINE: Final = {"amd64": "x86_64", "arm64": "aarch64"}.get(os.uname().machine, os.uname().machine)

if _MACHINE not in _TARGETS:
    message = f"the sandbox runs on x86_64 and aarch64, not on {_MACHINE}"
    raise ImportError(message)

TARGET_TRIPLE, CPU_TARGET, CPU_FLAGS = _TARGETS[_MACHINE]


def _digest(triple: str, flags: tuple[str, ...], rules: int) -> str:
    numbered = [{"host_rules": rules}] if rules > 1 else []  # the first rules had no number in the digest
    return hashlib.sha256(json.dumps([dict(CONFIG), triple, flags, *numbered], sort_keys=True).encode()).hexdigest()


def config_digest(host_rules: int) -> str:
    """Return the SHA-256 of everything a run on this machine depends on besides the engine version.

    Receipts state it.
    """
    return _digest(TARGET_TRIPLE, CPU_FLAGS, host_rules)


CONFIG_DIGEST: Final = config_digest(HOST_RULES)
"""The configuration under which agents run now."""

ENGINE_DIGEST: Final = config_digest(1)
"""SHA-256 of the configuration that an artefact depends on. The engine checks only a part of it when it loads one.

The host rules are not included: they are not part of the compiled code, so new rules need no recompilation.
"""

_HOST_RULES_OF: Final = {
    _digest(triple, flags, rules): rules for triple, _, flags in _TARGETS.values() for rules in range(1, HOST_RULES + 1)
}


def host_rules_of(config_sha256: str) -> int | None:
    """Return the number of the host rules in a configuration; None if this release does not know the configuration."""
    return _HOST_RULES_OF.get(config_sha256)


def artefact_key(module_sha256: str) -> str:
    """Name a module's artefact for this engine, configuration and CPU target. The name can be part of an S3 key."""
    return f"{module_sha256}-wasmtime-{ENGINE_VERSION}-{ENGINE_DIGEST[:16]}-{CPU_TARGET}"
