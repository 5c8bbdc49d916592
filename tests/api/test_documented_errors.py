"""The errors that a use case can raise are those that its docstring, and so the API's description, names.

The errors are found in the syntax of the code: what a use case and all that it calls raise, less what they catch. Calls
are followed by names, methods only where one class of the stores or the border has that name. This finds no error that
is raised through a variable, and may find one that cannot happen: NEVER names those, with the reason.
"""

import ast
import inspect
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import pytest

from local import openapi
from quittance import errors
from quittance.api.http import Operation
from quittance.errors import QuittanceError, RequestError
from quittance.platform import Platform
from tests.described import PROBLEM_JSON, operations, resolved
from tests.support import ROOT

SOURCES = ROOT / "layers" / "runtime" / "quittance"
FOLDERS = ("usecases", "api", "store", "proof", "ledger", "acceptance")
ERRORS = {
    name: each for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, QuittanceError)
}
OPERATIONS = [operation for app in openapi.apps() for operation in app.operations]
# Found by names, but impossible.
ONLY_AGENTS = {"NotFoundError": "only the operation on an agent looks for what it names"}
_OF_TICKETS = (
    "AgentNotAllowedError", "ChannelClosedError", "ChannelExpiredError", "TicketInvalidError", "TicketTooSmallError",
    "TicketUsedError",
)  # fmt: skip
OPENED = "`open` of a file is no `open` of a channel"
NEVER: dict[str, dict[str, str]] = {
    "execute_task": dict.fromkeys(_OF_TICKETS, "an account pays, not a ticket") | {"ChannelConflictError": OPENED},
    "redeem_ticket": {
        "ChannelConflictError": OPENED,
        "InsufficientFundsError": "a channel pays, not an account's balance",
        "TaskConflictError": "the ticket's number was used: TicketUsedError",
    },
    "get_bond": {"BondInUseError": "made to answer why the bond is in use, and not raised"},
    "freeze_account": ONLY_AGENTS,
    "unfreeze_account": ONLY_AGENTS,
    "pause_funding": ONLY_AGENTS,
    "resume_funding": ONLY_AGENTS,
}
# Raised by request parsing, before the use case, or in validators of the request's model.
BY_PARSING = {"InvalidRequestError", "PayloadTooLargeError"}

PARTS = {
    name: str(part.func.__annotations__["return"])
    for name, part in vars(Platform).items()
    if isinstance(part, cached_property)
}
"""The class of each part of the platform."""

Name = tuple[str, str]
"""A function: its module, and its name with that of its class."""


@dataclass
class Function:
    """What a function raises itself, and whom it calls, each with the errors that it catches there."""

    raised: set[tuple[str, frozenset[str]]] = field(default_factory=set)
    called: set[tuple[Name, frozenset[str]]] = field(default_factory=set)


class Reader:
    """The functions of one module."""

    def __init__(self, module: str, tree: ast.Module, methods: dict[str, set[Name]]) -> None:
        self.module, self.tree, self.methods = module, tree, methods
        self.modules: dict[str, str] = {}
        self.names: dict[str, Name] = {}
        self.functions: dict[Name, Function] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("quittance"):
                for each in node.names:
                    self.modules[each.asname or each.name] = f"{node.module}.{each.name}"
                    self.names[each.asname or each.name] = (str(node.module), each.name)

    def read(self) -> dict[Name, Function]:
        """All functions and methods, with what is defined inside them."""
        for owner, node in definitions(self.tree):
            found = self.functions[self.module, f"{owner}{node.name}"] = Function()
            for statement in node.body:
                self._read(statement, owner, found, frozenset())
        return self.functions

    def _read(self, node: ast.AST, owner: str, found: Function, caught: frozenset[str]) -> None:
        if isinstance(node, ast.Try):
            inside = caught | frozenset(self._caught(node))
            for each in node.body:
                self._read(each, owner, found, inside)
            for each in [*node.orelse, *node.finalbody, *(line for one in node.handlers for line in one.body)]:
                self._read(each, owner, found, caught)
            return
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id in ERRORS:
            found.raised.add((node.exc.id, caught))
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                found.raised.add((node.func.id, caught))
            # A method that is passed on is called there: `self._cache.get(agent_id, self.get)`.
            passed = [each for each in node.args if isinstance(each, ast.Attribute)]
            found.called |= {(name, caught) for each in (node.func, *passed) for name in self._callees(each, owner)}
        for each in ast.iter_child_nodes(node):
            self._read(each, owner, found, caught)

    def _caught(self, node: ast.Try) -> Iterator[str]:
        """The errors that a `try` ends: its handlers do not raise them again."""
        for handler in node.handlers:
            again = any(isinstance(each, ast.Raise) and each.exc is None for each in ast.walk(handler))
            for each in ast.walk(handler.type) if handler.type and not again else ():
                if isinstance(each, ast.Name) and each.id in ERRORS:
                    yield from (name for name, one in ERRORS.items() if issubclass(one, ERRORS[each.id]))

    def _callees(self, called: ast.expr, owner: str) -> set[Name]:
        if isinstance(called, ast.Name):
            return {self.names.get(called.id, (self.module, called.id))}
        if not isinstance(called, ast.Attribute):
            return set()
        if isinstance(called.value, ast.Name):
            if called.value.id == "self":
                return {(self.module, f"{owner}{called.attr}")}
            if called.value.id in self.modules:
                return {(self.modules[called.value.id], called.attr)}
        named = self.methods[called.attr]
        if isinstance(called.value, ast.Attribute) and called.value.attr in PARTS:
            named = {name for name in named if name[1].startswith(f"{PARTS[called.value.attr]}.")}
        return named if len(named) == 1 else set()


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions of a module, and the methods of its classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield "", node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.", each) for each in node.body if isinstance(each, ast.FunctionDef))


@cache
def functions() -> dict[Name, Function]:
    """All functions of the layer."""
    trees = {
        module_of(path): ast.parse(path.read_text()) for folder in FOLDERS for path in (SOURCES / folder).glob("*.py")
    }
    methods: dict[str, set[Name]] = defaultdict(set)
    for module, tree in trees.items():
        for owner, node in definitions(tree):
            if owner:
                methods[node.name].add((module, owner + node.name))
    found: dict[Name, Function] = {}
    for module, tree in trees.items():
        found |= Reader(module, tree, methods).read()
    return found


def module_of(path: Path) -> str:
    """The name of a source file's module."""
    return ".".join(["quittance", *path.relative_to(SOURCES).with_suffix("").parts])


def raised_by(name: Name) -> set[str]:
    """The names of the errors that leave a function."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting, seen = {(name, frozenset[str]())}, set()
    while waiting:
        call = waiting.pop()
        seen.add(call)
        function, caught = functions().get(call[0], Function()), call[1]
        found |= {(error, caught | its) for error, its in function.raised}
        waiting |= {(callee, caught | its) for callee, its in function.called} - seen
    return {error for error, caught in found if error not in caught}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_what_a_use_case_raises_is_described(operation: Operation) -> None:
    module = inspect.getmodule(operation.use_case)
    assert module is not None
    found = raised_by((module.__name__, operation.use_case.__name__)) - {*NEVER.get(operation.name, {})}
    answers = next(each for _, _, each in operations() if each["operationId"] == operation.name)["responses"]
    described = {
        (int(status), code)
        for status, answer in answers.items()
        for code in resolved(answer)["content"].get(PROBLEM_JSON, {}).get("examples", {})
    }
    missing = {name for name in found if errors.classified(ERRORS[name])[:2] not in described}
    assert not missing, "name them after `Raises` in the docstring"


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_what_a_docstring_names_is_raised(operation: Operation) -> None:
    module = inspect.getmodule(operation.use_case)
    assert module is not None
    found = raised_by((module.__name__, operation.use_case.__name__)) | BY_PARSING
    named = {each.__name__ for each in openapi.errors_of(operation.use_case)}
    assert named <= found, "the docstring promises an error that nothing raises"


def test_the_search_finds_errors_through_calls_and_stores() -> None:
    found = raised_by(("quittance.usecases.execute", "request"))
    assert {"TaskConflictError", "TaskInProgressError", "InsufficientFundsError", "AgentNotReadyError"} <= found
    assert not {RequestError.__name__, QuittanceError.__name__} & found


def test_exceptions_of_the_search_are_still_needed() -> None:
    for operation in OPERATIONS:
        module = inspect.getmodule(operation.use_case)
        assert module is not None
        assert {*NEVER.get(operation.name, {})} <= raised_by((module.__name__, operation.use_case.__name__))
    assert {*NEVER} <= {operation.name for operation in OPERATIONS}
