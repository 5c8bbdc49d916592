"""The A2A agent card: an agent described for the Agent2Agent protocol, version 1.0 (section 4.4 of its specification).

The card states only what is true of this platform. Agents here have no A2A interface: the specification demands that
even an interface of one's own implements all operations of A2A (section 12.1), and a paid task is none of them. So
`supportedInterfaces`, which every card must have, is empty, and a required extension says how the agent is called.
A client that knows only A2A finds out from the card alone that it cannot call the agent.
"""

from typing import Any, Final

from quittance.acceptance.contract import Contract
from quittance.acceptance.rules import parse_rules
from quittance.agent import Agent, Version
from quittance.api.routes import PREFIX
from quittance.ledger import pricing
from quittance.limits import CARD_EXAMPLE_CHARS_MAX
from quittance.proof.card import EXTENSION

_JSON: Final = "application/json"
_BYTES: Final = "application/octet-stream"


def agent_card(
    agent: Agent, version: Version, contract: Contract, *, root: str, issuer: str, token_issuer: str, now_ms: int
) -> dict[str, Any]:
    """The card of an agent's active version, unsigned. `root` is the path at which clients find the API."""
    rules = parse_rules(agent.terms.rules)
    outputs = _JSON if rules.json_schema is not None else rules.media_type or _BYTES
    skill: dict[str, Any] = {
        "id": "run",
        "name": agent.name,
        "description": agent.description,
        "tags": list(contract.tags),
    }
    if shown := _examples(contract):  # the specification wants no empty members that are not required
        skill["examples"] = shown
    token = f"An access token of the issuer {token_issuer}"
    return {
        "name": agent.name,
        "description": agent.description,
        "version": str(version.number),
        "supportedInterfaces": [],
        "capabilities": {
            "streaming": False,
            "pushNotifications": False,
            "extensions": [_extension(agent, version, root=root, issuer=issuer, now_ms=now_ms)],
        },
        "securitySchemes": {
            "token": {"httpAuthSecurityScheme": {"scheme": "Bearer", "bearerFormat": "JWT", "description": token}}
        },
        "securityRequirements": [{"schemes": {"token": {}}}],
        "defaultInputModes": [_BYTES if contract.input_schema is None else _JSON],
        "defaultOutputModes": [outputs],
        "skills": [skill],
    }


def _extension(agent: Agent, version: Version, *, root: str, issuer: str, now_ms: int) -> dict[str, Any]:
    at = f"{root}{PREFIX}"
    params: dict[str, Any] = {
        "issuer": issuer,
        "issuedAt": now_ms,
        "agentId": agent.agent_id,
        "version": version.number,
        "moduleSha256": version.module_sha256,
        "tariffSha256": pricing.tariff_sha256(agent.terms.tariff),
        "rulesSha256": agent.terms.rules_sha256,
        "execute": {"method": "POST", "path": f"{at}/tasks/execute"},
        "card": {"method": "GET", "path": f"{at}/agents/{agent.agent_id}/card"},
        "openapi": {"method": "GET", "path": f"{at}/openapi.json"},
        "keys": {"method": "GET", "path": f"{at}/.well-known/jwks.json"},
    }
    if version.contract_sha256 is not None:
        params["contractSha256"] = version.contract_sha256
    return {
        "uri": EXTENSION,
        "description": "Paid tasks over HTTP: post a task with agentId, an input and a budget to execute, on the host"
        " that serves this card. This is no interface of A2A; openapi describes it.",
        "required": True,
        "params": params,
    }


def _examples(contract: Contract) -> list[str]:
    """The inputs of the contract's examples that are text and short."""
    texts = [each.stdin.decode() for each in contract.examples if each.input_base64 is None]
    return [text for text in texts if 0 < len(text) <= CARD_EXAMPLE_CHARS_MAX]
