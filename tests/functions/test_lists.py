"""Pages of every list: an empty cursor is none, another list's cursor is refused, and a page has a limit."""

import pytest

from tests.functions.test_handlers import Call, call  # noqa: F401 - a fixture
from tests.support import Cloud

LISTS = [
    ("accounts", "/accounts/me/statement", ""),
    ("accounts", "/accounts/me/bond/statement", ""),
    ("accounts", "/payouts", "ledger:payout"),
    ("agents", "/agents", ""),
    ("operations", "/operations", "platform:operate"),
]


@pytest.mark.parametrize(("function", "path", "scope"), LISTS)
def test_empty_cursor_is_the_first_page(platform: Cloud, call: Call, function: str, path: str, scope: str) -> None:  # noqa: F811
    first = call(function, "GET", path, scope=scope)
    assert first[0] == 200
    assert call(function, "GET", path, scope=scope, query={"after": ""})[:2] == first[:2]


@pytest.mark.parametrize(("function", "path", "scope"), LISTS)
def test_cursor_of_no_list_is_refused(platform: Cloud, call: Call, function: str, path: str, scope: str) -> None:  # noqa: F811
    status, problem, _ = call(function, "GET", path, scope=scope, query={"after": "no cursor"})
    assert (status, problem["errors"][0]["field"]) == (400, "after")


@pytest.mark.parametrize(("function", "path", "scope"), LISTS)
@pytest.mark.parametrize(("limit", "status"), [("100", 200), ("101", 400), ("0", 400), ("x", 400)])
def test_page_limit_is_bounded(  # the parameters are fixtures and cases
    platform: Cloud,
    call: Call,  # noqa: F811
    function: str,
    path: str,
    scope: str,
    limit: str,
    status: int,
) -> None:
    assert call(function, "GET", path, scope=scope, query={"limit": limit})[0] == status
