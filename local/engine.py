"""A small client of the container engine (Docker's HTTP API), to prepare `sam local` and to clean up after it."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import socket
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.console import CommandError

_SOCKETS = ("/var/run/docker.sock", "/var/run/finch.sock")
_ANSWER_SECONDS = 30
_LAMBDA_CONTAINERS = json.dumps({"label": ["sam.cli.container.type=lambda"]})


@dataclass(frozen=True)
class Engine:
    """A container engine on this machine."""

    socket: Path

    @property
    def host(self) -> str:
        """Its address in the form of DOCKER_HOST."""
        return f"unix://{self.socket}"

    def gateway(self) -> str:
        """Return this machine's address on the containers' bridge network."""
        try:
            (bridge,) = self._request("GET", "/networks/bridge")["IPAM"]["Config"]
            # Some releases do not state the default gateway, which is the first address.
            return str(bridge.get("Gateway") or ipaddress.ip_network(bridge["Subnet"])[1])
        except (KeyError, TypeError, ValueError) as error:
            msg = f"the container engine at {self.socket} has no IPv4 network named bridge"
            raise CommandError(msg) from error

    def has_image(self, name: str) -> bool:
        """Return whether an image with this name and tag is present, from any registry."""
        tags = [tag for image in self._request("GET", "/images/json") for tag in image["RepoTags"] or ()]
        return any(f"/{tag}".endswith(f"/{name}") for tag in tags)

    def lambda_containers(self, variable: str) -> list[str]:
        """Return the ids of the `sam local` containers that have this NAME=value in their environment."""
        listed = self._request("GET", f"/containers/json?all=1&filters={urllib.parse.quote(_LAMBDA_CONTAINERS)}")
        described = (self._request("GET", f"/containers/{container['Id']}/json") for container in listed)
        # For a container that has ended meanwhile, the description has only a message.
        return [one["Id"] for one in described if variable in one.get("Config", {}).get("Env", [])]

    def remove(self, container: str) -> None:
        """Stop and remove a container."""
        self._request("DELETE", f"/containers/{container}?force=1")

    def _request(self, method: str, path: str) -> Any:  # noqa: ANN401 - JSON
        connection = _UnixConnection(self.socket)
        try:
            connection.request(method, path)
            return json.loads(connection.getresponse().read() or b"null")
        except (OSError, http.client.HTTPException, ValueError) as error:
            msg = f"the container engine at {self.socket} does not answer ({error})"
            raise CommandError(msg) from error
        finally:
            connection.close()


def find() -> Engine:
    """Return the engine in DOCKER_HOST, or the one at a usual path. Raises CommandError if there is none."""
    named = os.environ.get("DOCKER_HOST", "")
    if named and not named.startswith("unix:///"):
        msg = (
            f"DOCKER_HOST={named}: containers must run on this machine to reach its local cloud; name a unix:// socket"
        )
        raise CommandError(msg)
    places = [Path(named.removeprefix("unix://"))] if named else [Path(place) for place in _SOCKETS]
    engine = next((Engine(place) for place in places if place.is_socket()), None)
    if engine is None:
        looked = " nor at ".join(map(str, places))
        msg = f"no container engine at {looked}: install and start Docker or Finch, or name its socket in DOCKER_HOST"
        raise CommandError(msg)
    engine.gateway()
    return engine


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_ANSWER_SECONDS)
        self.sock.connect(str(self._path))
