"""The functions in containers, and the same functions deployed to a separate local cloud for the session.

Without a container engine the tests are skipped, but `make sam-smoke` fails, because it requires them.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from local import cloud, engine, sam_local
from local.cloud import Cloud
from local.console import CommandError
from local.engine import Engine
from local.paths import LOCAL, Stack, State
from local.sam_local import SamLocal
from tests import clouds

STATE = State(LOCAL / "sam-local-cloud")
REQUIRED = "QUITTANCE_SAM_LOCAL"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow sockets, which the unit tests forbid."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.enable_socket)


@pytest.fixture(scope="session")
def containers(request: pytest.FixtureRequest) -> Engine:
    """The container engine."""
    required = REQUIRED in os.environ
    try:
        found = engine.find()
    except CommandError as error:
        if required:
            clouds.give_up(request, str(error))
        pytest.skip(str(error))
    if not required and not found.has_image(sam_local.base_image()):
        pytest.skip(f"the container engine has no image {sam_local.base_image()}: `make sam-smoke` downloads it")
    return found


@pytest.fixture(scope="session")
def deployed(containers: Engine, request: pytest.FixtureRequest) -> Iterator[Cloud]:
    """The local cloud that the stack is deployed to."""
    clouds.up(STATE, request)
    running = cloud.running(STATE)
    assert running is not None
    try:
        yield running
    finally:
        clouds.run(STATE, "down")


@pytest.fixture(scope="session")
def stack(deployed: Cloud) -> Stack:
    """The deployed stack."""
    return Stack.read(STATE.stack)


@pytest.fixture(scope="session")
def contained(containers: Engine, deployed: Cloud) -> Iterator[SamLocal]:
    """The functions in containers."""
    with sam_local.ready(STATE, deployed, containers) as functions:
        yield functions
