"""Routes: reads from a use case's signature what it needs, so a function's file is a table of routes and use cases.

    def balance(platform, caller) -> AccountAnswer                           GET  /accounts/me
    def deposit(platform, caller, account_id: AccountInPath, request: DepositRequest) -> DepositAnswer
                                                                             POST /accounts/<account_id>/deposits

`http.Api` passes `platform`, `caller` and `root`. Powertools reads every other parameter from the request: a model from
the body, a parameter in the route from the path, `prefer` and `payment_ticket` from headers, any other from the query.
"""

import inspect
from collections.abc import Callable
from http import HTTPStatus
from types import UnionType
from typing import Annotated, Any, Final, get_args, get_origin

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Header, Path, Query
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from quittance.api.documentation import Document, MediaType
from quittance.api.models import TaskPending

PREFIX: Final = "/api/v1/economic"
"""The path of the API below the path at which a client finds it."""
UseCase = Callable[..., BaseModel | Document]
_GIVEN = ("platform", "caller", "root")
_HEADERS = ("prefer", "payment_ticket")
_BOUNDS = ("ge", "le")


def needed(use_case: UseCase) -> list[str]:
    """Which of `platform`, `caller` and `root` a use case has as parameters."""
    return [name for name in _GIVEN if name in inspect.signature(use_case).parameters]


def read_from_request(use_case: UseCase, path: str) -> inspect.Signature:
    """The parameters that are read from the request, as Powertools wants them."""
    parameters = inspect.signature(use_case).parameters.values()
    read = [_placed(parameter, path) for parameter in parameters if parameter.name not in _GIVEN]
    return inspect.Signature(read, return_annotation=Response[str])


def answers_of(use_case: UseCase, status: HTTPStatus) -> list[tuple[HTTPStatus, type[BaseModel]]]:
    """The models that a use case answers with, each with its status, for the API's description."""
    answer = inspect.signature(use_case).return_annotation
    if (media := media_type_of(use_case)) and media.model:
        return [(status, media.model)]
    models = get_args(answer) if isinstance(answer, UnionType) else (answer,)
    return [
        (HTTPStatus.ACCEPTED if model is TaskPending else status, model)
        for model in models
        if isinstance(model, type) and issubclass(model, BaseModel)
    ]


def media_type_of(use_case: UseCase) -> MediaType | None:
    """What a use case states about the Document that it returns; None if it returns models."""
    notes = getattr(inspect.signature(use_case).return_annotation, "__metadata__", ())
    return next((note for note in notes if isinstance(note, MediaType)), None)


def _placed(parameter: inspect.Parameter, path: str) -> inspect.Parameter:
    """A parameter with Powertools' `Path`, `Header` or `Query` in place of pydantic's `Field`, if it has one.

    Raises TypeError for a check beside `ge` and `le`, which Powertools would not see.
    """
    if get_origin(parameter.annotation) is not Annotated:
        return parameter
    kind, *notes = get_args(parameter.annotation)
    field = next((note for note in notes if isinstance(note, FieldInfo)), None)
    if field is None:
        return parameter
    bounds: dict[str, Any] = {
        name: getattr(bound, name) for bound in field.metadata for name in _BOUNDS if hasattr(bound, name)
    }
    if len(notes) > 1 or len(bounds) != len(field.metadata):
        msg = f"{parameter.name}: beside Field's description, ge and le, a check belongs in a type of its own"
        raise TypeError(msg)  # it would be lost
    in_path, in_header = f"<{parameter.name}>" in path, parameter.name in _HEADERS
    place = Path if in_path else Header if in_header else Query
    return parameter.replace(annotation=Annotated[kind, place(description=field.description, **bounds)])
