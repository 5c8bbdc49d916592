"""A real HTTP server on 127.0.0.1 that answers as a test says, and misbehaves if the test says so."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from quittance.client import Timing


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.body.decode(), keep_blank_values=True).items()}


@dataclass(frozen=True)
class Reply:
    """What the server sends. `cut` bytes of the body are left out; with `hang` it waits until the test ends,
    and with `drip` it sends one byte after the other until then, of the body or of the `head`.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int = 0
    drop: bool = False
    hang: bool = False
    drip: bool | str = False


Answering = Reply | Callable[[Seen], Reply]


class Server:
    """Answers each request with the next reply of its route; the last one is repeated."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.slow = False  # reads bodies piece by piece
        self._replies: dict[tuple[str, str], list[Answering]] = {}
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def on(self, route: str, *replies: Answering) -> None:
        """Set the replies of `METHOD /path`."""
        method, path = route.split(" ")
        self._replies[method, path] = list(replies)

    def api(self, route: str, *replies: Answering) -> None:
        """Set the replies of a route of the API."""
        method, path = route.split(" ")
        self.on(f"{method} /api/v1/economic{path}", *replies)

    def calls(self, path: str = "") -> list[Seen]:
        """The requests to paths with this end."""
        return [seen for seen in self.seen if seen.path.endswith(path)]

    @contextmanager
    def running(self) -> Iterator["Server"]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def _reply(self, seen: Seen) -> Reply:
        with self._lock:
            self.seen.append(seen)
            replies = self._replies.get((seen.method, seen.path))
            if not replies:
                problem = {"code": "not_found", "detail": f"nothing at {seen.path}"}
                return Reply(404, problem)
            found = replies[0] if len(replies) == 1 else replies.pop(0)
        return found(seen) if callable(found) else found


class _Handler(BaseHTTPRequestHandler):
    owner: Server

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for head and body

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        body = self._read()
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.owner._reply(Seen(self.command, parts.path, query, headers, body))
        if reply.hang:
            self.owner._over.wait()
        if reply.hang or reply.drop:
            self.close_connection = True
            return
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        if reply.drip:
            self._drip(head=reply.drip == "head")
            return
        data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        kind = "application/json" if reply.status < 400 else "application/problem+json"
        headers = {"Content-Type": kind, "Content-Length": str(len(data)), **reply.headers}
        self.send_response_only(reply.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) - reply.cut])
        if reply.cut:
            self.close_connection = True

    def _drip(self, *, head: bool) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6000000\r\n" + (b"X: " if head else b"\r\n"))
        with suppress(OSError):
            while not self.owner._over.wait(0.01):
                self.wfile.write(b" ")
                self.wfile.flush()
        self.close_connection = True

    def _read(self) -> bytes:
        left, body = int(self.headers.get("Content-Length", 0)), bytearray()
        while left:
            piece = self.rfile.read(min(left, 16_384))
            body += piece
            left -= len(piece)
            if self.owner.slow:
                self.owner._over.wait(0.005)
        return bytes(body)

    def log_message(self, *_: Any) -> None:
        pass


for _method in ("GET", "POST", "DELETE", "PATCH"):
    setattr(_Handler, f"do_{_method}", _Handler._serve)


class Clock:
    """Time that passes only while the client pauses."""

    def __init__(self) -> None:
        self.at = 1_000_000.0
        self.pauses: list[float] = []
        self._lock = threading.Lock()

    def read(self) -> float:
        with self._lock:
            return self.at

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.pauses.append(seconds)
            self.at += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)

    def timing(self, chance: float = 1.0) -> Timing:
        return Timing(
            monotonic=self.read, now=self.read, chance=lambda: chance, sleep=self.sleep, sleep_async=self.sleep_async
        )


def problem(
    status: int, code: str, detail: str = "No.", *, headers: Mapping[str, str] | None = None, **more: Any
) -> Reply:
    """A problem document as the platform sends it."""
    body = {"type": f"urn:quittance:problem:{code}", "title": code, "status": status, "code": code, "detail": detail}
    return Reply(status, {**body, **more}, headers or {})
