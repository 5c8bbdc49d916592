"""A TCP relay from containers to the local cloud, which listens on 127.0.0.1 only."""

from __future__ import annotations

import socket
import socketserver
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from local.console import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE_BYTES = 1 << 16
_CONNECT_SECONDS = 5


@contextmanager
def relay(address: str, target: tuple[str, int]) -> Iterator[int]:
    """Relay connections to this address, and to no other, to the target. Yields the port, any free one."""
    try:
        server = _Server((address, 0), _RelayHandler)
    except OSError as error:
        msg = (
            f"{address}, the container engine's bridge, is not an address of this machine ({error.strerror}): "
            "its containers run in a virtual machine and cannot reach the local cloud"
        )
        raise CommandError(msg) from error
    server.target = target
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False  # a container may hold its connection
    target: tuple[str, int]


class _RelayHandler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        with suppress(OSError), socket.create_connection(self.server.target, _CONNECT_SECONDS) as target:
            target.settimeout(None)
            back = threading.Thread(target=_copy, args=(target, self.request), daemon=True)
            back.start()
            _copy(self.request, target)
            back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            sink.sendall(piece)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
