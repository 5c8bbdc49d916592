"""What the package exports, and that every answer of the API can be read again from its JSON."""

import ast
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

import quittance.client as package
from quittance.api import models
from quittance.client import AsyncClient, Client
from quittance.client._binding import Listing, Operation
from quittance.client._client import Agents
from quittance.client._errors import QuittanceError, api_error
from tests.support import ROOT

SOURCES = sorted((ROOT / "client/quittance/client").glob("*.py"))


def methods(kind: type) -> dict[str, Any]:
    return {name: found for name in dir(kind) if isinstance(found := getattr(kind, name), Operation | Listing)}


def test_exports_are_complete_and_sorted() -> None:
    assert package.__all__ == sorted(package.__all__)
    public = {name for name, value in vars(package).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert set(package.__all__) == public


def test_every_error_is_exported_and_drawn() -> None:
    def below(kind: type) -> set[type]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    names = {kind.__name__ for kind in below(QuittanceError) if kind.__module__.startswith("quittance.client")}
    assert names <= set(package.__all__)
    drawing = (ROOT / "client/quittance/client/_errors.py").read_text().split('"""')[1]
    assert {word for line in drawing.splitlines() for word in line.split() if word.endswith("Error")} == names


def test_both_clients_have_the_same_methods() -> None:
    assert methods(Client).keys() == methods(AsyncClient).keys()
    assert len(methods(Client)) > 12


@pytest.mark.parametrize("kind", [Client, Agents])
def test_every_method_is_documented_with_an_example(kind: type) -> None:
    for name, method in methods(kind).items():
        assert "Example:\n" in (method.__doc__ or ""), name
        assert ">>> " in method.__doc__, name


def test_methods_keep_their_names_and_signatures() -> None:
    client = Client("https://api.example.com")
    assert client.execute.__name__ == "execute"
    assert "budget" in inspect.signature(client.execute).parameters
    assert "Run an agent" in (client.execute.__doc__ or "")


def test_the_client_is_typed() -> None:
    assert (ROOT / "client/quittance/client/py.typed").exists()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_only_the_package_itself_has_a_public_name(source: Path) -> None:
    assert source.name.startswith("_")
    assert ast.get_docstring(ast.parse(source.read_text()))


@pytest.mark.parametrize(
    "error",
    [
        api_error(402, b'{"code": "insufficient_funds", "available": "1"}', retry_after_s=2.5),
        package.ConnectionFailedError("No.", sent=True),
        package.PublishFailedError("agt_a", 2, state="rejected", code="c", reason="r"),
        package.StillRunningError("t"),
        package.CardNotProvenError("No."),
        package.InvalidRequestError.of("budget", "must be a decimal"),
        package.UploadFailedError("No.", code="EntityTooLarge"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_the_way_between_processes(error: QuittanceError) -> None:
    error.about("t-1")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))


MICRO = st.integers(0, 10**15)
TIMES = st.integers(0, 4 * 10**12)
TENTHS = st.integers(-1_000, 1_000)
SAMPLES: dict[type[BaseModel], dict[str, st.SearchStrategy[Any]]] = {
    models.AccountAnswer: {
        "account_id": st.just("a"), "available_micro": MICRO, "held_micro": MICRO, "earned_micro": MICRO,
    },
    models.StatementLine: {
        "at": TIMES, "kind": st.just("deposit"), "id": st.just("i"), "amount_micro": st.integers(-(10**15), 10**15),
        "due_micro": st.none() | MICRO,
    },
    models.DepositAnswer: {
        "account_id": st.just("a"), "deposit_id": st.just("d"), "amount_micro": MICRO, "recorded_at": TIMES,
    },
    models.AgentReputation: {
        "score": TENTHS, "algorithm": st.just("r"), "scores": st.dictionaries(st.just("r"), TENTHS), "outcomes": MICRO,
        "successes": MICRO, "failures": MICRO, "success_rate": st.none() | st.floats(0, 1), "distinct_payers": MICRO,
        "recent": st.none(),
    },
    models.TaskPending: {
        "task_id": st.just("t"), "agent_id": st.just("a"), "escrow_id": st.just("e"),
        "escrow_status": st.just("funded"), "expires_at": TIMES,
    },
}  # fmt: skip


@pytest.mark.parametrize("model", SAMPLES, ids=lambda model: model.__name__)
@given(data=st.data())
def test_answers_are_read_as_they_were_stated(model: type[BaseModel], data: st.DataObject) -> None:
    answer = model(**data.draw(st.fixed_dictionaries(SAMPLES[model])))
    assert model.model_validate_json(answer.model_dump_json(by_alias=True)) == answer


@pytest.mark.parametrize("text", ['"2026-01-01"', '"2026-01-01T00:00:00"', '"yesterday"', "1e999", '""'])
def test_times_that_are_no_times_are_refused(text: str) -> None:
    body = f'{{"at": {text}, "kind": "deposit", "id": "i", "amount": "1"}}'
    with pytest.raises(ValueError, match="at"):
        models.StatementLine.model_validate_json(body)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "1e308", "null", "[]"])
def test_points_that_are_no_numbers_are_refused(text: str) -> None:
    body = f'{{"least": 1, "p50": 1, "p95": 1, "greatest": {text}}}'
    with pytest.raises(ValueError, match="greatest"):
        models.TimeSpread.model_validate_json(body)
    scores = (
        f'{{"score": {text}, "algorithm": "r", "scores": {{}}, "outcomes": 0, "successes": 0, "failures": 0,'
        ' "success_rate": null, "distinct_payers": 0, "recent": null}'
    )
    with pytest.raises(ValueError, match="score"):
        models.AgentReputation.model_validate_json(scores)
