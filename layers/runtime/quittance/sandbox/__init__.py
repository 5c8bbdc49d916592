"""The sandbox: checks, compiles and runs untrusted WebAssembly agents. See docs/sandbox.md.

    artefact = compile_module(module)               # when an agent is published
    with Sandbox() as sandbox:
        run = sandbox.run(Job(...))                 # for each task

Each name is imported on first use. So a process that only starts runs never loads the engine, and a worker never loads
the parent's side.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from quittance.sandbox.compile import Artefact, CompileFailedError, compile_module
    from quittance.sandbox.supervisor import Sandbox
    from quittance.sandbox.target import (
        CONFIG_DIGEST,
        CPU_TARGET,
        ENGINE_DIGEST,
        ENGINE_VERSION,
        artefact_key,
        config_digest,
        host_rules_of,
    )
    from quittance.sandbox.validate import ModuleFacts, ModuleRejectedError, Refusal, validate_module

__all__ = [
    "CONFIG_DIGEST",
    "CPU_TARGET",
    "ENGINE_DIGEST",
    "ENGINE_VERSION",
    "Artefact",
    "CompileFailedError",
    "ModuleFacts",
    "ModuleRejectedError",
    "Refusal",
    "Sandbox",
    "artefact_key",
    "compile_module",
    "config_digest",
    "host_rules_of",
    "validate_module",
]

_MODULE_OF: Final = {
    "Artefact": "compile",
    "CompileFailedError": "compile",
    "compile_module": "compile",
    "Sandbox": "supervisor",
    "CONFIG_DIGEST": "target",
    "CPU_TARGET": "target",
    "ENGINE_DIGEST": "target",
    "ENGINE_VERSION": "target",
    "artefact_key": "target",
    "config_digest": "target",
    "host_rules_of": "target",
    "ModuleFacts": "validate",
    "ModuleRejectedError": "validate",
    "Refusal": "validate",
    "validate_module": "validate",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    if name not in _MODULE_OF:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
