import socket
import socketserver
import threading

import pytest

from local.console import CommandError
from local.relay import relay


class UpperCase(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read().upper())  # answers after the client has closed its side


class Target(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False  # a failed relay must not block the tests


@pytest.fixture
def target():
    with Target(("127.0.0.1", 0), UpperCase) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server.server_address
        server.shutdown()


def send(address, data):
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_all_bytes_pass_in_both_directions(target):
    data = b"to be or not to be " * 100_000
    with relay("127.0.0.1", target) as port:
        assert send(("127.0.0.1", port), data) == data.upper()


def test_it_listens_on_one_address_and_stops_at_the_end(target):
    with relay("127.0.0.2", target) as port:
        assert send(("127.0.0.2", port), b"x") == b"X"
        with pytest.raises(ConnectionRefusedError):
            send(("127.0.0.1", port), b"x")
    with pytest.raises(ConnectionRefusedError):
        send(("127.0.0.2", port), b"x")


def test_a_missing_target_closes_the_connection(target):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = free.getsockname()
    with relay("127.0.0.1", gone) as port:
        assert send(("127.0.0.1", port), b"") == b""


def test_an_address_of_another_machine_is_an_error():
    with (
        pytest.raises(CommandError, match=r"192\.0\.2\.99, the container engine's bridge, is not an address of this"),
        relay("192.0.2.99", ("127.0.0.1", 1)),
    ):
        pass
