"""Routes: what is read from a use case's signature, and that no check in it can be lost."""

from http import HTTPStatus
from typing import Annotated

import pytest
from pydantic import BaseModel, Field, StringConstraints

from quittance.api.models import TaskPending, TaskResult
from quittance.api.routes import answers_of, needed, read_from_request


class Answer(BaseModel):
    """A model to answer with."""


def use_case(platform: object, caller: object, task_id: str, since: Annotated[int, Field(ge=0, le=9)] = 3) -> Answer:
    """A use case with all that a route reads."""
    raise NotImplementedError


def test_given_parameters_are_not_read_from_the_request() -> None:
    assert needed(use_case) == ["platform", "caller"]
    read = read_from_request(use_case, "/tasks/<task_id>")
    assert list(read.parameters) == ["task_id", "since"]
    assert read.parameters["since"].default == 3


def test_answers_have_their_status() -> None:
    def run() -> TaskResult | TaskPending:
        raise NotImplementedError

    assert answers_of(use_case, HTTPStatus.CREATED) == [(HTTPStatus.CREATED, Answer)]
    assert answers_of(run, HTTPStatus.OK) == [(HTTPStatus.OK, TaskResult), (HTTPStatus.ACCEPTED, TaskPending)]


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[str, Field(description="A name."), StringConstraints(pattern="^a$")],
        Annotated[str, Field(pattern="^a$")],
        Annotated[int, Field(gt=0)],
    ],
)
def test_checks_that_a_route_would_lose_are_refused(annotation: object) -> None:
    """Powertools takes one class beside the type: whatever else stands there would check nothing."""

    def checked(name: str) -> Answer:
        raise NotImplementedError

    checked.__annotations__["name"] = annotation
    with pytest.raises(TypeError, match="name"):
        read_from_request(checked, "/")
