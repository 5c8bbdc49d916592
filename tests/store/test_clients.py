"""The session that makes the AWS clients: what it keeps, and what it forgets."""

from collections.abc import Callable, Iterator
from typing import Any

import boto3.session
import pytest
from botocore.loaders import JSONFileLoader

from quittance.errors import PlatformUnavailableError
from quittance.store import clients

MAKERS = (clients.dynamodb, clients.s3, clients.kms, clients.functions, clients.sqs, clients.events)


@pytest.fixture(autouse=True)
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret of nobody's")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    clients.forget()
    yield
    clients.forget()


def access_key() -> str:
    return clients._session().get_credentials().access_key


@pytest.mark.parametrize("make", MAKERS[1:], ids=lambda make: make.__name__)
def test_boto3_makes_the_clients(make: Callable[[], Any]) -> None:
    assert isinstance(clients._session(), boto3.session.Session)
    assert make().meta.config.user_agent.startswith("Boto3/")


def test_a_new_session_reads_no_description_again(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    load = JSONFileLoader.load_file
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda self, path: read.append(path) or load(self, path))
    clients._descriptions.cache_clear()
    for make in MAKERS:
        make()
    assert read
    read.clear()
    clients.forget()
    for make in MAKERS:
        make()
    assert read == []


def test_sessions_leave_the_shared_loader_as_it_is() -> None:
    paths = list(clients._descriptions().search_paths)
    for _ in range(3):
        clients.s3()
        clients.forget()
    assert clients._descriptions().search_paths == paths


def test_credentials_are_not_looked_for_until_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    clients.without_credentials()
    assert access_key() == "none"
    clients.forget()
    assert access_key() == "AKIDEXAMPLE"
    clients.without_credentials()  # after the session has been used, too
    assert access_key() == "none"


@pytest.mark.parametrize("failure", [OSError(24, "Too many open files"), MemoryError()], ids=["no files", "no memory"])
def test_a_session_that_failed_is_made_anew(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    """Nothing half made is kept: boto3 refuses to give a client of S3 its methods twice."""

    def failing() -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(clients, "_descriptions", failing)
        with pytest.raises(PlatformUnavailableError):
            clients.s3()
    assert clients.s3().meta.service_model.service_name == "s3"
    assert access_key() == "AKIDEXAMPLE"
