"""An OAuth issuer for tests: discovery, client credentials, refresh tokens, device flow, and faults on demand."""

import base64
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from joserfc import jwt
from joserfc.jwk import ECKey

from tests.client.servers import Reply, Seen, Server

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
SECRET = "s3cr:t/+ %"
METADATA = "/.well-known/openid-configuration"


class Issuer:
    """Issues signed tokens over a test's server. `answers` are the next replies to polls of a device flow."""

    def __init__(self, server: Server, *, life_s: int = 3_600, make: Callable[[str, int], str] | None = None) -> None:
        self.server = server
        self.url = server.url
        self.life_s = life_s
        self.secret = SECRET
        self.issued: list[str] = []
        self.refreshable: set[str] = set()
        self.polls: list[str | Reply] = []
        self.device: dict[str, Any] = {"interval": 5, "expires_in": 600}
        self._key = ECKey.generate_key("P-256")
        self._make = make or self._signed
        server.on(f"GET {METADATA}", Reply(body=self.metadata()))
        server.on("POST /token", self.token)
        server.on("POST /device", self.begin)

    def metadata(self, **changes: Any) -> dict[str, Any]:
        found = {
            "issuer": self.url,
            "token_endpoint": f"{self.url}/token",
            "device_authorization_endpoint": f"{self.url}/device",
        } | changes
        return {name: value for name, value in found.items() if value is not None}

    def token(self, seen: Seen) -> Reply:
        form = seen.form
        match form["grant_type"]:
            case "client_credentials":
                client, secret = _credentials(seen)
                return self._grant(client) if secret == self.secret else refused("invalid_client", 401)
            case "refresh_token":
                if form["refresh_token"] not in self.refreshable:
                    return refused("invalid_grant")
                self.refreshable.remove(form["refresh_token"])  # each is used once
                return self._grant("alice", refresh=True)
            case _:
                assert form["device_code"] == "device-secret"
                answer = self.polls.pop(0) if self.polls else ""
                if isinstance(answer, Reply):
                    return answer
                return refused(answer) if answer else self._grant("alice", refresh=True)

    def begin(self, seen: Seen) -> Reply:
        assert seen.form["client_id"] == "cli"
        places = {"verification_uri": f"{self.url}/go", "verification_uri_complete": f"{self.url}/go?c=WDJB-MJHT"}
        return Reply(body={"device_code": "device-secret", "user_code": "WDJB-MJHT", **places, **self.device})

    def _grant(self, subject: str, *, refresh: bool = False) -> Reply:
        token = self._make(subject, len(self.issued))
        self.issued.append(token)
        body: dict[str, Any] = {"access_token": token, "token_type": "bearer", "expires_in": self.life_s}
        if refresh:
            body["refresh_token"] = f"refresh-{len(self.issued)}"
            self.refreshable.add(body["refresh_token"])
        return Reply(body=body)

    def _signed(self, subject: str, number: int) -> str:
        return jwt.encode({"alg": "ES256"}, {"sub": subject, "n": number}, self._key)


def refused(code: str, status: int = 400) -> Reply:
    return Reply(status, {"error": code, "error_description": f"not with {SECRET}"})


def _credentials(seen: Seen) -> tuple[str, str]:
    header = seen.headers.get("authorization", "")
    if header.startswith("Basic "):
        client, _, secret = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
        return unquote(client), unquote(secret)
    return seen.form["client_id"], seen.form.get("client_secret", "")
