"""The container engine, as far as `sam local` needs to be prepared and cleared up after: Docker's HTTP API."""

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

from local.console import MendError

_SOCKETS = ("/var/run/docker.sock", "/var/run/finch.sock")
_ANSWER_SECONDS = 30
_LAMBDA_CONTAINERS = json.dumps({"label": ["sam.cli.container.type=lambda"]})


@dataclass(frozen=True)
class Engine:
    """A container engine on this machine."""

    socket: Path

    @property
    def host(self) -> str:
        """Its address as its clients want it (DOCKER_HOST)."""
        return f"unix://{self.socket}"

    def gateway(self) -> str:
        """This machine's address on the bridge that containers hang on."""
        try:
            (bridge,) = self._ask("GET", "/networks/bridge")["IPAM"]["Config"]
            # Some releases do not tell their default, which is the first address.
            return str(bridge.get("Gateway") or ipaddress.ip_network(bridge["Subnet"])[1])
        except (KeyError, TypeError, ValueError) as error:
            msg = f"the container engine at {self.socket} has no IPv4 network named bridge"
            raise MendError(msg) from error

    def has_image(self, name: str) -> bool:
        """Is an image of this name and tag there already, wherever it comes from?"""
        tags = [tag for image in self._ask("GET", "/images/json") for tag in image["RepoTags"] or ()]
        return any(f"/{tag}".endswith(f"/{name}") for tag in tags)

    def lambda_containers(self, variable: str) -> list[str]:
        """The ids of containers of `sam local` that have this NAME=value in their environment."""
        listed = self._ask("GET", f"/containers/json?all=1&filters={urllib.parse.quote(_LAMBDA_CONTAINERS)}")
        described = (self._ask("GET", f"/containers/{container['Id']}/json") for container in listed)
        # One that has ended meanwhile is described by a message only.
        return [one["Id"] for one in described if variable in one.get("Config", {}).get("Env", [])]

    def remove(self, container: str) -> None:
        """End a container and forget it."""
        self._ask("DELETE", f"/containers/{container}?force=1")

    def _ask(self, method: str, path: str) -> Any:  # noqa: ANN401 - JSON
        connection = _UnixConnection(self.socket)
        try:
            connection.request(method, path)
            return json.loads(connection.getresponse().read() or b"null")
        except (OSError, http.client.HTTPException, ValueError) as error:
            msg = f"the container engine at {self.socket} does not answer ({error})"
            raise MendError(msg) from error
        finally:
            connection.close()


def find() -> Engine:
    """The engine that DOCKER_HOST names, or the one at a usual place. Raises MendError where there is none."""
    named = os.environ.get("DOCKER_HOST", "")
    if named and not named.startswith("unix:///"):
        msg = (
            f"DOCKER_HOST={named}: containers must run on this machine to reach its local cloud; name a unix:// socket"
        )
        raise MendError(msg)
    places = [Path(named.removeprefix("unix://"))] if named else [Path(place) for place in _SOCKETS]
    engine = next((Engine(place) for place in places if place.is_socket()), None)
    if engine is None:
        looked = " nor at ".join(map(str, places))
        msg = f"no container engine at {looked}: install and start Docker or Finch, or name its socket in DOCKER_HOST"
        raise MendError(msg)
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
