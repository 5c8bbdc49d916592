"""The commands of the local cloud."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from local import cloud as clouds
from local import deploy, engine, issuer, sam_local
from local.client import PREFIX, Api, RefusedError
from local.console import CommandError, relative, say, step
from local.demo import SEED_AGENT, invoke, run_demo, seed
from local.paths import Stack, locked

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from local.cloud import Cloud
    from local.paths import State

_PORT_VARIABLE = "QUITTANCE_PORT"


def run(options: argparse.Namespace, state: State) -> int:
    """Run one command on the local cloud of this state."""
    command: Callable[[argparse.Namespace, State], None] = {
        "up": _up,
        "down": lambda _, state: down(state),
        "demo": lambda _, state: demo(state),
        "sam-local": _sam_local,
        "status": _status,
        "audit": _audit,
        "reputation": _reputation,
        "logs": _logs,
        "token": _token,
        "build": _build,
    }[options.command]
    command(options, state)
    return 0


def up(state: State, *, seeded: bool) -> str:
    """Start the cloud if it is not running, deploy what has changed; return the example agent's id."""
    with locked(state.root / "up.lock"):
        wanted = _wanted_port()
        built = deploy.build()
        cloud = clouds.running(state)
        if cloud and (deploy.is_broken(cloud) or (wanted and wanted != cloud.port)):
            cloud = None
        began = cloud is None
        try:
            if cloud is None:
                with step("starting the local cloud"):
                    cloud = clouds.start(state, wanted)
            stack = deploy.deploy(state, cloud, built)
            _check_api(stack)
            return seed(stack, state) if seeded else ""
        except BaseException:
            if began:
                clouds.stop(state)
            raise


def down(state: State) -> None:
    """Stop the cloud if it is running."""
    with locked(state.root / "up.lock"):
        say("stopped" if clouds.stop(state) else "nothing was running")


def demo(state: State) -> None:
    """Run the demo; stop the cloud afterwards if it was not running before."""
    with _temporary_cloud(state, seeded=False):
        try:
            run_demo(Stack.read(state.stack), state, deploy.layer(deploy.build()))
        except RefusedError as error:
            msg = f"{error} (see {relative(state.log('cloud'))})"
            raise CommandError(msg) from error


@contextmanager
def _temporary_cloud(state: State, *, seeded: bool) -> Iterator[str]:
    """Provide a running cloud; stop it afterwards if it was not running before. Yields the example agent's id."""
    was_up = clouds.running(state) is not None and state.stack.is_file()
    try:
        yield up(state, seeded=seeded)
    finally:
        if not was_up:
            with step("stopping the local cloud (make up keeps it)"):
                clouds.stop(state)


def _up(options: argparse.Namespace, state: State) -> None:
    agent_id = up(state, seeded=not options.no_seed)
    stack = Stack.read(state.stack)
    if agent_id:
        _print_example_calls(stack, agent_id)
    else:
        say(f"Quittance is up: {stack.endpoint_url}")


def _sam_local(options: argparse.Namespace, state: State) -> None:
    containers = engine.find()  # first: without a container engine nothing is started
    with (
        _temporary_cloud(state, seeded=True) as agent_id,
        sam_local.ready(state, _running(state), containers) as functions,
        suppress(KeyboardInterrupt),
    ):
        if options.words:
            functions.run(*options.words)
            return
        with functions.api(shown=True) as (url, sam):
            say(f"\nsam local: {url}  (Ctrl-C stops it)\n{_calls(url, agent_id)}\n")
            msg = f"sam local start-api ended unexpectedly with status {sam.wait()}"
            raise CommandError(msg)


def _status(_: argparse.Namespace, state: State) -> None:
    cloud = clouds.running(state)
    say(f"up: {cloud.url}" if cloud and state.stack.is_file() else "down")


def _audit(_: argparse.Namespace, state: State) -> None:
    _running(state)
    found = invoke(Stack.read(state.stack), "AuditFunction")
    for line in found["report"]:
        say(line)
    if found["differences"]:
        msg = "the ledger's equations do not hold: see docs/runbooks.md"
        raise CommandError(msg)


def _reputation(_: argparse.Namespace, state: State) -> None:
    _running(state)
    for line in invoke(Stack.read(state.stack), "AuditFunction", {"standings": True})["standings"]:
        say(line)


def _logs(_: argparse.Namespace, state: State) -> None:
    for line in deploy.functions_log(_running(state)):
        say(line)


def _running(state: State) -> Cloud:
    cloud = clouds.running(state)
    if cloud is None:
        msg = "nothing is running: make up"
        raise CommandError(msg)
    return cloud


def _token(options: argparse.Namespace, state: State) -> None:
    ttl = issuer.TTL_SECONDS if options.ttl is None else options.ttl
    audience = options.audience or issuer.AUDIENCE
    claims = issuer.claims(options.subject, options.scope, ttl, audience)
    say(issuer.sign(issuer.load_key(state.key), claims))


def _build(options: argparse.Namespace, _: State) -> None:
    for architecture in options.architectures:
        built = deploy.build(options.python, architecture)
        files = [path for path in deploy.layer(built).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        say(f"  {relative(built)}: the layer has {size / (1 << 20):.0f} MiB unzipped")
        if not any(path.suffix == ".pyc" for path in files):
            say(f"  without bytecode: no python{options.python} here. Every cold start compiles the layer again.")


def _wanted_port() -> int | None:
    text = os.environ.get(_PORT_VARIABLE, "")
    if not text:
        return None
    if not text.isdigit() or not 0 < int(text) < 1 << 16:
        msg = f"{_PORT_VARIABLE}={text} must be a number from 1 to 65535"
        raise CommandError(msg)
    return int(text)


def _check_api(stack: Stack) -> None:
    """Call the API once: the stack is up when it responds."""
    with step("first call through API Gateway and Lambda"):
        try:
            Api(stack.api_url).get("/health")
        except (RefusedError, OSError, ValueError) as error:
            msg = f"the API is deployed but does not respond: {error}"
            raise CommandError(msg) from error


def _print_example_calls(stack: Stack, agent_id: str) -> None:
    say(f"\nQuittance is up: {stack.endpoint_url}  (make down stops it, make demo runs the demo)")
    say(_calls(stack.api_url, agent_id))


def _calls(api_url: str, agent_id: str) -> str:
    return f"""
  API={api_url}{PREFIX}
  TOKEN=$(make -s token SUBJECT=alice)
  curl -s $API/health
  curl -s $API/accounts/me -H "Authorization: Bearer $TOKEN"
  curl -s $API/tasks/execute -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \\
    -d '{{"task_id": "first", "agent_id": "{agent_id}", "budget": "0.05", "input": {SEED_AGENT.example}}}'
  curl -s $API/tasks/first/result -H "Authorization: Bearer $TOKEN"
  curl -s -X POST $API/accounts/alice/deposits -H "Content-Type: application/json" \\
    -H "Authorization: Bearer $(make -s token SUBJECT=alice SCOPE=ledger:deposit)" \\
    -d '{{"deposit_id": "first", "amount": "5"}}'"""
