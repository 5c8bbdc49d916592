"""Requests to strangers' servers: real sockets, real TLS, and servers that do all that they should not."""

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from quittance.api import outbound, targets
from quittance.api.outbound import UndeliveredError
from quittance.limits import WEBHOOK_ANSWER_BYTES_MAX
from tests.waiting import GENEROUS_S, Stopwatch

Serve = Callable[..., tuple[int, list[bytes]]]
pytestmark = pytest.mark.enable_socket
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Authority:
    """A certificate authority of this test's own."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._certificate("ca", self.key, None)

    def _certificate(self, name: str, key: ec.EllipticCurvePrivateKey, host: str | None) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        called = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca")])
        made = (
            x509.CertificateBuilder()
            .subject_name(called)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
        )
        if host is not None:
            try:
                alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
            except ValueError:
                alternative = x509.DNSName(host)
            made = made.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        return made.sign(self.key, SHA256())

    def server(self, host: str, folder: Path) -> ssl.SSLContext:
        """What a server of that name proves itself with."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = folder / f"{host.replace(':', '_')}.pem"
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pem.write_bytes(secret + self._certificate(host, key, host).public_bytes(Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        return context

    def trust(self) -> ssl.SSLContext:
        """What a client has that trusts this authority alone."""
        return ssl.create_default_context(cadata=self.certificate.public_bytes(Encoding.PEM).decode())


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A server for one or more connections: `serve(script, tls=None)` gives its port and what it was sent."""
    with contextlib.ExitStack() as ends:

        def start(
            script: Callable[[socket.socket], None], tls: ssl.SSLContext | None = None
        ) -> tuple[int, list[bytes]]:
            listening = ends.enter_context(socket.create_server(("127.0.0.1", 0)))
            listening.settimeout(0.1)
            over, requests = threading.Event(), []

            def run() -> None:
                while not over.is_set():
                    with contextlib.suppress(OSError):
                        came, _ = listening.accept()
                        came.settimeout(15)
                        with came if tls is None else tls.wrap_socket(came, server_side=True) as connection:
                            requests.append(read_request(connection))
                            script(connection)

            thread = threading.Thread(target=run)
            thread.start()
            ends.callback(thread.join)
            ends.callback(over.set)
            return listening.getsockname()[1], requests

        yield start


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(4096) or b"\r\n\r\n"
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")), 0)
    while len(body) < length:
        body += connection.recv(4096)
    return head + b"\r\n\r\n" + body


def answers(data: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(data)


def post(url: str, **more: object) -> int:
    return outbound.post(url, b"{}", {"X-One": "1"}, **({"loopback": True} | more))  # type: ignore[arg-type]


def test_the_request_is_what_it_should_be_and_only_the_status_is_read(serve: Serve) -> None:
    port, requests = serve(answers(b"HTTP/1.1 204 No Content\r\n\r\n"))
    assert post(f"http://127.0.0.1:{port}/a/b?c=d") == 204
    (request,) = requests
    lines = request.decode().split("\r\n")
    assert lines[0] == "POST /a/b?c=d HTTP/1.1"
    assert {"X-One: 1", f"Host: 127.0.0.1:{port}", "Content-Length: 2", "Connection: close"} <= set(lines)
    assert lines[-1] == "{}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(serve: Serve, status: int) -> None:
    elsewhere, asked = serve(answers(OK))
    port, requests = serve(answers(f"HTTP/1.1 {status} Go\r\nLocation: http://127.0.0.1:{elsewhere}/\r\n\r\n".encode()))
    assert post(f"http://127.0.0.1:{port}") == status
    assert (len(requests), len(asked)) == (1, 0)


def test_no_proxy_of_the_environment_is_used(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    port, requests = serve(answers(OK))
    proxy, asked = serve(answers(OK))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
    assert post(f"http://127.0.0.1:{port}") == 200
    assert (len(requests), len(asked)) == (1, 0)


# Where to.


@pytest.mark.parametrize(
    "found",
    [
        ["127.0.0.1"],
        ["169.254.169.254"],
        ["8.8.8.8", "10.0.0.1"],
        ["10.0.0.1", "8.8.8.8"],
        ["8.8.8.8", "::1"],
        ["8.8.8.8", "fe80::1%eth0"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        [],
    ],
)
def test_one_address_that_is_not_public_spoils_the_name(found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", _never)
    with pytest.raises(UndeliveredError, match=r"not public|no address"):
        post("https://example.com/", loopback=False, resolve=lambda *_: found)


NOT_PUBLIC = [
    *("10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1"),
    *("255.255.255.255", "::", "fe80::1%eth0", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
    *("::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_local_targets_are_loopback_only(address: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", _never)
    for found in ([address], ["127.0.0.1", address], ["::1", address], ["8.8.8.8", address]):
        with pytest.raises(UndeliveredError, match=r"not .*loopback"):
            post(f"{scheme}://name.example/", resolve=lambda *_, found=found: found)
    host = address.partition("%")[0]
    with pytest.raises(UndeliveredError, match="private address"):
        post(f"{scheme}://[{host}]/" if ":" in host else f"{scheme}://{host}/", resolve=_never)


@pytest.mark.parametrize("url", ["http://name.example/", "https://name.example:8443/", "http://name.example:443/"])
@pytest.mark.parametrize("found", [["8.8.8.8"], ["127.0.0.1", "8.8.8.8"], ["::1", "2606:4700::1"]])
def test_local_forms_never_reach_public_addresses(url: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", _never)
    with pytest.raises(UndeliveredError, match="not loopback"):
        post(url, resolve=lambda *_: found)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://name.example:8000/", "127.0.0.1"),
        ("http://name.example:8000/", "127.255.255.254"),
        ("https://name.example:8000/", "::1"),
        ("https://name.example/", "127.0.0.1"),
        ("https://name.example/", "8.8.8.8"),
    ],
)
def test_a_local_cloud_calls_itself_and_public_https(url: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connected = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(UndeliveredError, match="cannot be connected to"):
        post(url, resolve=lambda *_: [found])
    assert connected == [(found, targets.port_of(targets.parse_url(url)))]


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.com/", "https://example.com:8443/", "https://127.0.0.1/", "https://127.0.0.1./"),
        *("https://a..b/", "https://./", "no URL"),
    ],
)
def test_what_the_form_gives_away_is_refused_without_a_lookup(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", _never)
    with pytest.raises(UndeliveredError, match="must"):
        post(url, loopback=False, resolve=_never)


@pytest.mark.parametrize("host", ["localhost", "0x7f.1", "2130706433", "0177.0.0.1", "127.1"])
def test_other_spellings_of_this_machine_are_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", _never)
    with pytest.raises(UndeliveredError, match=r"not public|cannot be resolved"):
        post(f"https://{host}/", loopback=False)


def test_the_name_is_resolved_once_and_the_checked_address_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the second answer would be this machine."""
    calls, connected = [], []

    def rebinding(host: str, port: int) -> list[str]:
        calls.append((host, port))
        return ["2606:4700::1111", "93.184.215.14"] if len(calls) == 1 else ["127.0.0.1"]

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        connected.append((address, timeout))
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(socket, "getaddrinfo", _never)
    with pytest.raises(UndeliveredError, match="cannot be connected to"):
        post("https://example.com/", loopback=False, resolve=rebinding)
    assert calls == [("example.com", 443)]
    assert connected == [(("93.184.215.14", 443), 3.0)]


# TLS.


def test_tls_is_verified_for_the_name_although_the_address_is_connected_to(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    port, requests = serve(answers(OK), authority.server("hook.example", tmp_path))
    here = {"resolve": lambda *_: ["127.0.0.1"], "trust": authority.trust()}
    assert post(f"https://hook.example:{port}/", **here) == 200
    assert f"Host: hook.example:{port}".encode() in requests[0]
    with pytest.raises(UndeliveredError, match=r"(?i)certificate"):
        post(f"https://other.example:{port}/", **here)
    with pytest.raises(UndeliveredError, match=r"(?i)certificate"):
        post(f"https://hook.example:{port}/", resolve=here["resolve"])  # the system does not know the authority
    with pytest.raises(UndeliveredError, match=r"(?i)certificate"):
        post(f"https://127.0.0.1:{port}/", trust=authority.trust())
    assert len(requests) == 1


def test_tls_and_certificates_know_no_trailing_dot(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    """RFC 6066 §3. The dot only says that the name is whole, so it stays for the resolver and in `Host`."""
    asked, indicated = [], []
    context = authority.server("hook.example", tmp_path)
    context.sni_callback = lambda _connection, name, _context: indicated.append(name)
    port, requests = serve(answers(OK), context)

    def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    here = {"resolve": resolve, "trust": authority.trust()}
    assert post(f"https://hook.example.:{port}/", **here) == 200
    assert (asked, indicated) == (["hook.example."], ["hook.example"])
    assert f"Host: hook.example.:{port}".encode() in requests[0]
    with pytest.raises(UndeliveredError, match=r"(?i)certificate"):
        post(f"https://other.example.:{port}/", **here)


def test_an_address_may_have_a_certificate_of_its_own(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    port, _ = serve(answers(OK), authority.server("127.0.0.1", tmp_path))
    assert post(f"https://127.0.0.1:{port}/", trust=authority.trust()) == 200


def test_a_server_without_tls_gets_no_request(authority: Authority) -> None:
    sent = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            came, _ = listening.accept()
            with came:
                came.sendall(OK)
                sent.append(came.recv(65536))

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(UndeliveredError, match="SSL"):
            post(f"https://127.0.0.1:{listening.getsockname()[1]}/", trust=authority.trust())
        thread.join()
    assert b"POST" not in sent[0]


# The answer.


def in_pieces(data: bytes) -> Callable[[socket.socket], None]:
    def script(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(len(data)):
            connection.sendall(data[position : position + 1])

    return script


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX: 200\r\n\r\n"


@pytest.mark.parametrize("send", [answers, in_pieces])
@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (INTERIM[0] + OK, 200),
        (INTERIM[1] + OK, 200),
        (b"HTTP/1.1 102 Processing\r\n\r\n" + INTERIM[1] + INTERIM[0] + b"HTTP/1.1 410 Gone\r\n\r\n", 410),
        (b"HTTP/1.1 199 \r\n\r\n" * 100 + b"HTTP/1.1 204\r\n\r\n", 204),
        (b"HTTP/1.0 200 OK\n\n", 200),
        (b"HTTP/1.1 299 \xe4\r\nX: \xff\r\nno header\r\n folded\r\n\r\n", 299),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + OK, 101),
    ],
    ids=["continue", "hints", "several", "many", "old", "odd", "switching"],
)
def test_the_status_is_that_of_the_final_answer(
    serve: Serve, send: Callable[[bytes], Callable[[socket.socket], None]], answer: bytes, status: int
) -> None:
    assert post(f"http://127.0.0.1:{serve(send(answer))[0]}/") == status


def test_any_number_of_headers_is_taken(serve: Serve) -> None:
    for number in (100, 101, 10_000):
        port, _ = serve(answers(b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * number + b"\r\n"))
        assert post(f"http://127.0.0.1:{port}/") == 200


@pytest.mark.parametrize("interim", INTERIM)
def test_interim_answers_count_towards_the_bytes(serve: Serve, interim: bytes) -> None:
    start = interim * (WEBHOOK_ANSWER_BYTES_MAX // len(interim) - 1) + b"HTTP/1.1 200 "
    answer = start.ljust(WEBHOOK_ANSWER_BYTES_MAX - len(b"\r\n\r\n"), b"x") + b"\r\n\r\n"
    assert len(answer) == WEBHOOK_ANSWER_BYTES_MAX
    check_taken(serve, answer, taken=True)
    check_taken(serve, answer.replace(b"200 ", b"200 x"), taken=False)


@pytest.mark.parametrize("line", [b"X: 1\r\n", b"\xff\n", b"X: " + b"1" * 8_000 + b"\r\n"])
def test_headers_may_have_so_many_bytes_and_no_more(serve: Serve, line: bytes) -> None:
    status, size = b"HTTP/1.1 200 OK\r\n", WEBHOOK_ANSWER_BYTES_MAX
    many, rest = divmod(size - len(status) - len(b"Y\r\n\r\n"), len(line))
    answer = status + line * many + b"Y" * rest + b"Y\r\n\r\n"
    assert len(answer) == size
    check_taken(serve, answer, taken=True)
    check_taken(serve, answer + b"a body, which nobody reads" * 1_000, taken=True)
    check_taken(serve, answer.replace(b"OK", b"OKK"), taken=False)


def check_taken(serve: Serve, answer: bytes, *, taken: bool) -> None:
    port, _ = serve(answers(answer))
    if taken:
        assert post(f"http://127.0.0.1:{port}/") == 200
    else:
        with pytest.raises(UndeliveredError, match=f"more than {WEBHOOK_ANSWER_BYTES_MAX} bytes"):
            post(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("whole", [OK, INTERIM[0] + INTERIM[1] + OK, b"HTTP/1.1 200 OK\nX: 1\n\n"])
def test_an_answer_cut_anywhere_is_no_answer(serve: Serve, whole: bytes) -> None:
    lengths = iter(range(len(whole) + 1))
    port, _ = serve(lambda connection: connection.sendall(whole[: next(lengths)]))
    for _length in range(len(whole)):
        with pytest.raises(UndeliveredError, match="closed"):
            post(f"http://127.0.0.1:{port}/")
    assert post(f"http://127.0.0.1:{port}/") == 200


def test_an_answer_counts_that_comes_before_the_request_ends() -> None:
    """A server that reads no more than it must: it answers, closes, and so breaks the sending of the rest."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer_at_once() -> None:
            came, _ = listening.accept()
            with came:
                came.recv(100)
                came.sendall(b"HTTP/1.1 410 Gone\r\n\r\n")

        thread = threading.Thread(target=answer_at_once)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        assert outbound.post(url, b"x" * (64 << 20), {}, loopback=True) == 410
        thread.join()


# Time and size.


def drip(start: bytes, each: bytes) -> Callable[[socket.socket], None]:
    def script(connection: socket.socket) -> None:
        connection.sendall(start)
        watch = Stopwatch()
        with contextlib.suppress(OSError):
            while watch.seconds() < 2 * GENEROUS_S:
                connection.sendall(each)
                time.sleep(0.05)

    return script


@pytest.mark.parametrize(
    "script",
    [
        drip(b"", b"H"),
        drip(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n"),
        drip(b"HTTP/1.1 200 OK\r\nX: ", b"1"),
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        drip(b"", b"HTTP/1.1 103 Early Hints\r\nX: 1\r\n\r\n"),
        lambda connection: connection.recv(1 << 20) and connection.recv(1),  # until the other side closes
    ],
    ids=["status", "headers", "header", "continue", "hints", "silence"],
)
def test_a_server_that_never_ends_its_answer_is_cut_off(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, script: Callable[[socket.socket], None]
) -> None:
    monkeypatch.setattr(outbound, "WEBHOOK_MS_MAX", 500)
    port, _ = serve(script)
    watch = Stopwatch()
    with pytest.raises(UndeliveredError, match="took too long"):
        post(f"http://127.0.0.1:{port}/")
    assert watch.seconds() < GENEROUS_S, "before the server has ended"


def test_a_server_may_think_longer_than_it_may_take_to_connect(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "WEBHOOK_CONNECT_MS_MAX", 200)

    def slow(connection: socket.socket) -> None:
        time.sleep(0.5)
        connection.sendall(OK)

    assert post(f"http://127.0.0.1:{serve(slow)[0]}/") == 200


def test_a_handshake_that_never_ends_is_cut_off(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "WEBHOOK_MS_MAX", 300)
    took_too_long = pytest.raises(UndeliveredError, match="took too long")
    with socket.create_server(("127.0.0.1", 0)) as listening, took_too_long:
        post(f"https://127.0.0.1:{listening.getsockname()[1]}/", trust=authority.trust())


def test_an_endless_body_is_not_read(serve: Serve) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b"x" * 65536)

    port, _ = serve(flood)
    assert post(f"http://127.0.0.1:{port}/") == 200


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"1" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 99999 No\r\n\r\n",
        b"HTTP/1.1 099 No\r\n\r\n",
        b"HTTP/1.1 +20 No\r\n\r\n",
        b"HTTP/1.1 200OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"\r\n" + OK,
        b"HTTP/1.1 100 Continue\r\n\r\nSSH-2.0-server\r\n",
        b"SSH-2.0-server\r\n",
        b"HTTP/1.1 " + b"9" * 70_000,
        b"",
    ],
)
def test_an_answer_that_is_no_http_is_no_answer(serve: Serve, answer: bytes) -> None:
    port, _ = serve(answers(answer))
    with pytest.raises(UndeliveredError):
        post(f"http://127.0.0.1:{port}/")


def test_nobody_there_is_told_as_such() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(UndeliveredError, match="cannot be connected to"):
        post(f"http://127.0.0.1:{port}/")
    with pytest.raises(UndeliveredError, match="cannot be resolved"):
        post("https://nowhere.invalid/")


def _never(*_: object, **__: object) -> list[str]:
    raise AssertionError("must not be called")
