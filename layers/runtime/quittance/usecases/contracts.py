"""Contracts of agents: where they are kept, and whether an input meets one."""

from quittance.acceptance import contract as contracts
from quittance.acceptance.contract import Contract, contract_json, contract_sha256, stored_contract
from quittance.acceptance.rules import Rules
from quittance.agent import Agent, Version
from quittance.errors import InputNotAcceptedError, InvalidRequestError, NotFoundError
from quittance.platform import Platform
from quittance.run import Input


def digest(contract: Contract | None) -> str | None:
    """The digest of a contract; None if it says nothing."""
    return contract_sha256(contract_json(contract or Contract()))


def keep(platform: Platform, contract: Contract | None) -> str | None:
    """Stores a contract; returns its digest, None if it says nothing. Raises PlatformUnavailableError."""
    text = contract_json(contract or Contract())
    sha256 = contract_sha256(text)
    if sha256 is not None:
        platform.registry.keep_contract(sha256, text)
    return sha256


def stored(platform: Platform, sha256: str | None) -> Contract:
    """The contract with this digest, or one that says nothing. Raises PlatformUnavailableError."""
    return Contract() if sha256 is None else stored_contract(platform.registry.contract(sha256))


def rules_with(rules: Rules, contract: Contract) -> Rules:
    """The rules of an agent with this contract. Raises InvalidRequestError if they contradict it."""
    try:
        return contracts.with_output_schema(rules, contract)
    except ValueError as exc:
        raise InvalidRequestError(("acceptance.json_schema", str(exc))) from exc


def carded_version(agent: Agent) -> Version:
    """The version that an agent's card describes. Raises NotFoundError without an active one."""
    if agent.version is None or agent.retired_ms is not None:
        msg = f"The agent {agent.agent_id!r} is {agent.state.replace('_', ' ')} and has no card."
        raise NotFoundError(msg)
    return agent.version


def check_input(platform: Platform, sha256: str | None, stdin: Input) -> None:
    """Raises InputNotAcceptedError if an input does not meet the contract with this digest.

    No money has moved, and the refusal does not count against the agent. Raises PlatformUnavailableError.
    """
    if sha256 is None:
        return
    schema = contracts.stored_input_schema(platform.registry.contract(sha256))
    if refusal := contracts.refused(schema, stdin.data):
        raise InputNotAcceptedError(*refusal, contract_sha256=sha256)
