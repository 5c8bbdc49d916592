"""Where tokens come from, when they are replaced, and that no text shows them."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest

from quittance.client import (
    ApiError,
    AsyncClient,
    Client,
    ClientCredentials,
    ConfigurationError,
    DeviceFlow,
    FileStore,
    FileToken,
    LoginFailedError,
    LoginRequiredError,
    StaticToken,
    TokenError,
    UnauthenticatedError,
)
from quittance.limits import TOKEN_CHARS_MAX
from tests.client.issuers import DEVICE_GRANT, METADATA, SECRET, Issuer
from tests.client.servers import Clock, Reply, Seen, Server, problem
from tests.client.test_calls import BALANCE
from tests.support import ROOT


@pytest.fixture
def issuer(server: Server) -> Issuer:
    return Issuer(server)


def accepting(issuer: Issuer) -> Any:
    """A route that accepts the issuer's newest token alone."""

    def answer(seen: Seen) -> Reply:
        newest = issuer.issued[-1] if issuer.issued else ""
        valid = seen.headers.get("authorization") == f"Bearer {newest}"
        return Reply(body=BALANCE) if valid else problem(401, "unauthenticated", "The token has expired.")

    return answer


def credentials(at: Issuer, **changes: Any) -> ClientCredentials:
    return ClientCredentials(**{"issuer": at.url, "client_id": "sh op", "client_secret": SECRET, **changes})


def device(at: Issuer, **changes: Any) -> DeviceFlow:
    shown: list[Any] = []
    flow = DeviceFlow(**{"issuer": at.url, "client_id": "cli", "prompt": shown.append, **changes})
    flow.__dict__["shown"] = shown
    return flow


def grants(server: Server) -> list[str]:
    return [seen.form["grant_type"] for seen in server.calls("/token")]


# Files and functions.


def test_a_token_file_is_read_again_when_it_changes(server: Server, make: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    client = make(token=FileToken(file))
    server.api("GET /accounts/me", Reply(body=BALANCE))
    client.balance()
    file.with_suffix(".new").write_text("two")
    file.with_suffix(".new").replace(file)
    client.balance()
    assert [seen.headers["authorization"] for seen in server.seen] == ["Bearer one", "Bearer two"]


def test_a_refused_token_file_is_read_again_once(server: Server, make: Any, tmp_path: Path) -> None:
    """Even if its size and time are the same."""
    file = tmp_path / "token"
    file.write_text("one")
    stamp = file.stat()

    def renewed(seen: Seen) -> Reply:
        if seen.headers["authorization"] == "Bearer two":
            return Reply(body=BALANCE)
        file.write_text("two")
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        return problem(401, "unauthenticated", "The token has expired.")

    server.api("GET /accounts/me", renewed)
    assert make(token=FileToken(file)).balance().account_id == "alice"
    server.api("GET /accounts/me", problem(401, "unauthenticated"))
    server.seen.clear()
    with pytest.raises(UnauthenticatedError):
        make(token=FileToken(file)).balance()
    assert len(server.seen) == 1, "the same token is not tried twice"


@pytest.mark.parametrize(
    "data", [b"", b"  \n", b"two words", b"\xff\xfe", b"x" * (TOKEN_CHARS_MAX + 1), b"a\r\nHost: evil", b"a\x00b"]
)
def test_files_that_are_no_token_are_refused_without_quoting(make: Any, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "token").write_bytes(data)
    with pytest.raises(TokenError, match=r"The file .*token is (empty|not a token)") as caught:
        make(token=FileToken(tmp_path / "token")).balance()
    assert "words" not in str(caught.value)


def test_a_missing_token_file_is_a_sentence(make: Any, tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="cannot be read: No such file"):
        make(token=FileToken(tmp_path / "token")).balance()


def test_a_function_gives_a_new_token_after_a_refusal(server: Server, make: Any) -> None:
    tokens = ["old", "new", "new"]
    server.api("GET /accounts/me", problem(401, "unauthenticated"), Reply(body=BALANCE))
    make(token=lambda: tokens.pop(0)).balance()
    assert [seen.headers["authorization"] for seen in server.seen] == ["Bearer old", "Bearer new"]


def test_public_routes_get_no_token(server: Server, make: Any) -> None:
    server.api("GET /accounts/me", Reply(body=BALANCE))
    make(token=None).balance()
    assert "authorization" not in server.seen[0].headers


def test_longest_token_is_accepted() -> None:
    StaticToken("x" * TOKEN_CHARS_MAX)
    with pytest.raises(TokenError):
        StaticToken("x" * (TOKEN_CHARS_MAX + 1))


# Client credentials.


@pytest.mark.parametrize("in_body", [False, True])
def test_client_credentials_get_one_token_for_its_life(
    server: Server, make: Any, issuer: Issuer, clock: Clock, in_body: bool
) -> None:
    server.api("GET /accounts/me", accepting(issuer))
    client = make(token=credentials(issuer, secret_in_body=in_body, scope="ledger:deposit", audience="quittance"))
    for _ in range(3):
        client.balance()
    assert len(issuer.issued) == 1
    (asked,) = server.calls("/token")
    assert asked.form["scope"] == "ledger:deposit"
    assert asked.form["audience"] == "quittance"
    assert ("authorization" in asked.headers) != in_body
    clock.at += 3_540
    client.balance()
    assert len(issuer.issued) == 2, "a token is replaced a minute before it expires"


def test_short_lives_are_used_for_nine_tenths(make: Any, server: Server, clock: Clock) -> None:
    issuer = Issuer(server, life_s=100)
    server.api("GET /accounts/me", accepting(issuer))
    client = make(token=credentials(issuer))
    for seconds, count in ((0, 1), (89, 1), (2, 2)):
        clock.at += seconds
        client.balance()
        assert len(issuer.issued) == count


def test_a_refused_token_is_replaced_once(server: Server, make: Any, issuer: Issuer) -> None:
    server.api("GET /accounts/me", problem(401, "unauthenticated", "The token has expired."), accepting(issuer))
    make(token=credentials(issuer)).balance()
    assert len(issuer.issued) == 2
    server.api("GET /accounts/me", problem(401, "unauthenticated", "No."))
    with pytest.raises(UnauthenticatedError):
        make(token=credentials(issuer)).balance()
    assert len(issuer.issued) == 4


def test_wrong_credentials_are_a_sentence_without_the_secret(make: Any, issuer: Issuer) -> None:
    tokens = credentials(issuer, client_secret="wrong-secret")
    with pytest.raises(TokenError, match="refused the client credentials: invalid_client") as caught:
        make(token=tokens).balance()
    for text in (str(caught.value), repr(caught.value), repr(tokens), repr(make(token=tokens))):
        assert "secret" not in text
        assert SECRET not in text


def test_issuers_that_fail_are_asked_again(server: Server, make: Any, issuer: Issuer) -> None:
    server.on(f"GET {METADATA}", Reply(503, b""), Reply(body=issuer.metadata()))
    server.on("POST /token", Reply(drop=True), Reply(500, b""), issuer.token)
    server.api("GET /accounts/me", accepting(issuer))
    assert make(token=credentials(issuer)).balance().account_id == "alice"


def test_issuers_without_openid_describe_themselves_by_rfc_8414(server: Server, make: Any, issuer: Issuer) -> None:
    server.on(f"GET {METADATA}", Reply(404, b""))
    server.on("GET /.well-known/oauth-authorization-server", Reply(body=issuer.metadata()))
    server.api("GET /accounts/me", accepting(issuer))
    make(token=credentials(issuer)).balance()


def test_path_of_an_issuer_is_where_each_standard_puts_it(server: Server, make: Any, issuer: Issuer) -> None:
    url = f"{issuer.url}/tenant/1"
    server.on("GET /.well-known/oauth-authorization-server/tenant/1", Reply(body=issuer.metadata(issuer=url)))
    server.api("GET /accounts/me", accepting(issuer))
    make(token=credentials(issuer, issuer=f"{url}/")).balance()
    assert server.seen[0].path == f"/tenant/1{METADATA}"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"issuer": "https://other.example"}, "is of another issuer"),
        ({"token_endpoint": "http://other.example/token"}, "must begin with https"),
        ({"token_endpoint": None}, "names no token endpoint"),
        ({"issuer": None}, "not that of an OAuth issuer"),
    ],
)
def test_wrong_descriptions_of_issuers_are_refused(
    server: Server, make: Any, issuer: Issuer, changes: dict[str, Any], sentence: str
) -> None:
    server.on(f"GET {METADATA}", Reply(body=issuer.metadata(**changes)))
    with pytest.raises((TokenError, ConfigurationError), match=sentence):
        make(token=credentials(issuer)).balance()


@pytest.mark.parametrize(
    "granted",
    [
        b"", b"[]", b"{}", b'{"access_token": "secret two"}', b'{"access_token": "secret", "token_type": "DPoP"}',
        b'{"access_token": 5}', b'{"access_token": ""}',
    ],
)  # fmt: skip
def test_grants_that_are_no_token_are_refused_without_quoting(
    server: Server, make: Any, issuer: Issuer, granted: bytes
) -> None:
    server.on("POST /token", Reply(body=granted))
    with pytest.raises(TokenError) as caught:
        make(token=credentials(issuer)).balance()
    assert "secret" not in str(caught.value)


def test_sources_without_https_are_refused() -> None:
    for wrong in ({"issuer": "http://issuer.example"}, {"token_endpoint": "http://issuer.example/token"}, {}):
        with pytest.raises(ConfigurationError):
            ClientCredentials(client_id="a", client_secret="b", **wrong)  # type: ignore[arg-type]


def test_threads_share_one_token(server: Server, issuer: Issuer, clock: Clock) -> None:
    server.api("GET /accounts/me", accepting(issuer))
    with Client(server.url, token=credentials(issuer), timing=clock.timing()) as client:
        start = threading.Barrier(8)

        def read(_: int) -> str:
            start.wait()
            return client.balance().account_id

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(read, range(8))) == ["alice"] * 8
    assert len(issuer.issued) == 1


@pytest.mark.parametrize("backend", ["asyncio"])
def test_coroutines_share_one_token(server: Server, issuer: Issuer, clock: Clock, backend: str) -> None:
    server.api("GET /accounts/me", accepting(issuer))
    found: list[str] = []

    async def main() -> None:
        async with AsyncClient(server.url, token=credentials(issuer), timing=clock.timing()) as client:

            async def read() -> None:
                found.append((await client.balance()).account_id)

            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(read)

    anyio.run(main, backend=backend)
    assert found == ["alice"] * 8
    assert len(issuer.issued) == 1


def test_a_cancelled_call_frees_the_token_for_others(server: Server, issuer: Issuer, clock: Clock) -> None:
    server.on("POST /token", Reply(hang=True), issuer.token)
    server.api("GET /accounts/me", accepting(issuer))

    async def main() -> str:
        async with AsyncClient(server.url, token=credentials(issuer), timing=clock.timing()) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(client.balance)
                while not server.calls("/token"):
                    await anyio.sleep(0.01)
                group.cancel_scope.cancel()
            return (await client.balance()).account_id

    assert anyio.run(main) == "alice"


# Device flow.


def test_a_person_signs_in_with_a_device_flow(server: Server, make: Any, issuer: Issuer, clock: Clock) -> None:
    issuer.polls = ["authorization_pending", "slow_down", "authorization_pending"]
    server.api("GET /accounts/me", accepting(issuer))
    flow = device(issuer)
    client = make(token=flow)
    client.balance()
    client.balance()
    (prompt,) = flow.__dict__["shown"]
    assert (prompt.code, prompt.uri, prompt.expires_in_s) == ("WDJB-MJHT", f"{issuer.url}/go", 600)
    assert clock.pauses == [5, 5, 10, 10], "slow_down adds five seconds for good (RFC 8628 §3.5)"
    assert grants(server) == [DEVICE_GRANT] * 4
    assert server.calls("/device")[0].form == {"client_id": "cli", "scope": "openid"}


def test_failing_polls_slow_down(server: Server, make: Any, issuer: Issuer, clock: Clock) -> None:
    """A connection that fails lets the client poll less often (RFC 8628 §3.5)."""
    issuer.polls = [Reply(drop=True)] * 4
    server.api("GET /accounts/me", accepting(issuer))
    make(token=device(issuer)).balance()
    assert clock.pauses[0] == 5
    assert clock.pauses[-1] == 10


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        ("access_denied", LoginFailedError, "denied"),
        ("expired_token", LoginFailedError, "before the code expired"),
        ("invalid_client", TokenError, "ended the sign-in: invalid_client"),
    ],
)
def test_refused_sign_ins_are_sentences(
    make: Any, issuer: Issuer, answer: str, error: type[TokenError], sentence: str
) -> None:
    issuer.polls = ["authorization_pending", answer]
    with pytest.raises(error, match=sentence) as caught:
        make(token=device(issuer)).balance()
    assert "device-secret" not in str(caught.value)


def test_a_sign_in_ends_when_its_code_expires(make: Any, issuer: Issuer, clock: Clock) -> None:
    issuer.polls = ["authorization_pending"] * 1_000
    with pytest.raises(LoginFailedError, match="before the code expired"):
        make(token=device(issuer)).balance()
    assert 600 <= sum(clock.pauses) < 610


@pytest.mark.parametrize("wrong", [{"interval": -5}, {"interval": 0}, {"expires_in": 10**12}, {"interval": 10**9}])
def test_hostile_intervals_neither_hammer_nor_hang(
    make: Any, issuer: Issuer, clock: Clock, wrong: dict[str, Any]
) -> None:
    issuer.device |= wrong
    issuer.polls = ["authorization_pending"] * 10_000
    with pytest.raises(LoginFailedError):
        make(token=device(issuer)).balance()
    assert min(clock.pauses) >= 1
    assert sum(clock.pauses) <= 3_610


@pytest.mark.parametrize(
    "page", ["javascript:alert(1)", "file:///etc/passwd", "http://issuer.example/go", "\x1b[31m", ""]
)
def test_pages_to_sign_in_at_are_web_pages(make: Any, issuer: Issuer, page: str) -> None:
    """A program may open them in a browser."""
    for name in ("verification_uri", "verification_uri_complete"):
        issuer.device = {"interval": 5, "expires_in": 600, name: page}
        flow = device(issuer)
        if page or name == "verification_uri":
            with pytest.raises(ConfigurationError, match="The page to sign in at must"):
                make(token=flow).balance()
            assert flow.__dict__["shown"] == []


def test_issuers_without_a_device_flow_are_a_sentence(server: Server, make: Any, issuer: Issuer) -> None:
    server.on(f"GET {METADATA}", Reply(body=issuer.metadata(device_authorization_endpoint=None)))
    with pytest.raises(TokenError, match="has no device flow"):
        make(token=device(issuer)).balance()


def test_refresh_tokens_spare_the_next_sign_in(server: Server, make: Any, issuer: Issuer, clock: Clock) -> None:
    server.api("GET /accounts/me", accepting(issuer))
    client = make(token=device(issuer))
    client.balance()
    for _ in range(2):
        clock.at += 3_600
        client.balance()
    assert grants(server) == [DEVICE_GRANT, "refresh_token", "refresh_token"]
    issuer.refreshable.clear()
    clock.at += 3_600
    client.balance()
    assert grants(server)[3:] == ["refresh_token", DEVICE_GRANT], (
        "a refresh token that was revoked asks the person again"
    )


def test_a_stored_sign_in_serves_the_next_program(
    server: Server, make: Any, issuer: Issuer, clock: Clock, tmp_path: Path
) -> None:
    store = tmp_path / "folder" / "sign-in.json"
    server.api("GET /accounts/me", accepting(issuer))
    make(token=device(issuer, store=FileStore(store))).balance()
    assert store.stat().st_mode & 0o777 == 0o600
    make(token=device(issuer, store=FileStore(store), prompt=None)).balance()
    assert len(issuer.issued) == 1
    clock.at += 3_600
    make(token=device(issuer, store=FileStore(store), prompt=None)).balance()
    assert grants(server) == [DEVICE_GRANT, "refresh_token"]
    other = device(issuer, store=FileStore(store), prompt=None, scope="openid offline_access")
    with pytest.raises(LoginRequiredError, match="Sign in again"):
        make(token=other).balance()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"issuer": 1}', "\x00" * 100_000])
def test_a_damaged_store_asks_for_a_sign_in(make: Any, issuer: Issuer, tmp_path: Path, text: str) -> None:
    (tmp_path / "store").write_text(text)
    with pytest.raises(LoginRequiredError):
        make(token=device(issuer, store=FileStore(tmp_path / "store"), prompt=None)).balance()


def test_signing_out_forgets_the_sign_in(server: Server, make: Any, issuer: Issuer, tmp_path: Path) -> None:
    server.api("GET /accounts/me", accepting(issuer))
    flow = device(issuer, store=FileStore(tmp_path / "store"))
    client = make(token=flow)
    client.balance()
    flow.sign_out()
    assert not (tmp_path / "store").exists()
    client.balance()
    assert grants(server) == [DEVICE_GRANT] * 2


REFRESHING = """
import sys
from quittance.client import Client, DeviceFlow, FileStore
url, store = sys.argv[1:]
flow = DeviceFlow(issuer=url, client_id="cli", store=FileStore(store))
print(Client(url, token=flow).balance().account_id)
"""


def test_two_programs_never_use_one_refresh_token_twice(
    server: Server, make: Any, issuer: Issuer, tmp_path: Path
) -> None:
    server.api("GET /accounts/me", Reply(body=BALANCE))
    store = tmp_path / "store"
    make(token=device(issuer, store=FileStore(store))).balance()  # on a clock of 1970, so the token has expired
    command = [sys.executable, "-c", REFRESHING, server.url, str(store)]
    path = ":".join(str(ROOT / folder) for folder in ("layers/runtime", "client"))
    running = [subprocess.Popen(command, env={"PYTHONPATH": path}, stdout=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate()[0] for process in running] == [b"alice\n"] * 3
    assert grants(server) == [DEVICE_GRANT, "refresh_token"]


def test_no_text_of_a_source_contains_a_token(server: Server, make: Any, issuer: Issuer, tmp_path: Path) -> None:
    server.api("GET /accounts/me", problem(403, "missing_scope", required_scope="x"))
    for source in (credentials(issuer), device(issuer, store=FileStore(tmp_path / "store"))):
        client = make(token=source)
        with pytest.raises(ApiError) as caught:
            client.balance()
        texts = [repr(source), str(source), repr(client), repr(caught.value), str(caught.value), repr(source._issuer)]
        for secret in (SECRET, *issuer.issued, "refresh-1", "device-secret"):
            assert not [text for text in texts if secret in text]
