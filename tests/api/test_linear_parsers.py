"""Every parser that a stranger's bytes reach takes work in proportion to them, whatever they are.

A row of the table is a parser with hostile shapes of input. Each shape is fed in growing sizes, each four times the one
before. Processor time is compared with processor time, so neither the machine's speed nor its load matters: linear work
grows by 4, quadratic work by 16. What costs less than FLOOR_S at a size is not judged at that size.

Behind the table stand two lists of what parses in the source: a new regular expression, or a new call of a reader of
some library, fails until it is listed with the row that feeds it, or with what bounds it.
"""

import ast
import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from http.client import HTTPException
from io import BytesIO
from typing import Annotated, Any, Final
from unittest import mock

import jwt
import pytest
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Header, Query
from pydantic import ValidationError

from quittance import tracing
from quittance.acceptance import rules as acceptance
from quittance.acceptance.regex import compile_pattern
from quittance.api import identity, messages, models, outbound, targets
from quittance.api.http import Api, answer
from quittance.api.models import (
    AccountId,
    AgentId,
    AgentRequest,
    ChannelRequest,
    DepositRequest,
    DirectTaskRequest,
    RunRequest,
    SignedClose,
    TaskRequest,
    TopUpRequest,
    VersionRequest,
    WithdrawalRequest,
)
from quittance.api.requests import read_direct, read_json, validated, wants_async
from quittance.errors import QuittanceError, UnauthenticatedError
from quittance.ledger import pricing
from quittance.ledger.channels import parse_task_id
from quittance.ledger.credits import parse_credits
from quittance.ledger.journal import parse_payout_id
from quittance.limits import (
    KIB,
    LOG_SIZE_MAX,
    PAGE_ITEMS_MAX,
    SCHEMA_BYTES_MAX,
    TICKET_CHARS_MAX,
    TOKEN_CHARS_MAX,
    WEBHOOK_URL_CHARS_MAX,
)
from quittance.proof import log, receipt, statement, ticket, webhook
from quittance.proof.statement import ProofError
from quittance.sandbox import wire
from quittance.sandbox.validate import ModuleRejectedError, validate_module
from quittance.usecases import accounts, agents, operations
from quittance.usecases.webhook import Notice
from tests.api import hostile_input as hostile
from tests.api import test_identity
from tests.api.hostile_input import Shape
from tests.api.test_http import event
from tests.api.test_identity import SETTINGS
from tests.proof.roots import Root
from tests.support import ROOT

GROWTH: Final = 4
COST_GROWTH_MAX: Final = 8
SMALLEST: Final = 256
FLOOR_S: Final = 0.03
TRIES: Final = 5
BODY: Final = 256 * KIB  # more is let in, and would only cost the test more
PART: Final = 64 * KIB  # of what is read by a reader of the rows of BODY first
HEADER: Final = 10 * KIB  # API Gateway's limit of all headers of a request together
REFUSALS: Final = (
    wire.CorruptFrameError,
    QuittanceError,
    ProofError,
    ModuleRejectedError,
    ValidationError,
    ValueError,
    HTTPException,
    EOFError,
)

Read = Callable[[Any], object]


@dataclass(frozen=True)
class Parser:
    """A parser, the most that the test feeds it, and the shapes of input that it is fed."""

    read: Read
    most: int
    shapes: dict[str, Shape]


# The parsers, each from its border to its refusal.


@cache
def _app() -> Api:
    """A function's resolver, with routes that take what routes take."""
    app = Api()

    @app.post("/tasks")
    def execute(request: TaskRequest, prefer: Annotated[list[str] | None, Header()] = None) -> Response[str]:
        wants_async(prefer or [])
        return answer(request.model_copy(update={"input": None}))

    @app.get("/agents/<agent_id>")
    def describe(
        agent_id: AgentId,
        owner: Annotated[AccountId | None, Query()] = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_ITEMS_MAX)] = 20,
        since: Annotated[int | None, Query(ge=0, le=LOG_SIZE_MAX)] = None,
    ) -> Response[str]:
        return Response(HTTPStatus.OK, "text/plain", f"{agent_id}{owner}{limit}{since}")

    return app


def _answer(asked: dict[str, Any]) -> None:
    """A refusal is the caller's own, never a fault of ours."""
    assert _app().resolve(asked, None)["statusCode"] < HTTPStatus.INTERNAL_SERVER_ERROR


def _query(text: str) -> None:
    asked = dict.fromkeys(("owner", "limit", "since"), text)
    _answer(
        event(
            "GET",
            "/agents/agt_1",
            queryStringParameters=asked,
            multiValueQueryStringParameters={name: [value] for name, value in asked.items()},
        )
    )


def _body_of(*kinds: Any) -> Read:
    def read(text: str) -> None:
        payload = read_json(text)
        for model in kinds:
            with suppress(QuittanceError):
                validated(model, payload)

    return read


def _direct(text: str) -> None:
    """Lambda reads the payload before we do; what it cannot read does not come to us."""
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError):
        return
    read_direct(DirectTaskRequest, payload)


def _accept(case: tuple[Any, bytes]) -> None:
    schema, output = case
    acceptance.verdict(output, agent=acceptance.Rules(json_schema=schema), task=None)


def _accept_json(output: bytes) -> None:
    acceptance.verdict(output, agent=acceptance.Rules(media_type="application/json"), task=None)
    acceptance.judge_input(output, output)


JWKS: Final = Root("rsa-1").jwks()


def _bearer(text: str) -> None:
    """Whatever is no token of the issuer's is refused as such: 401, never a fault of ours."""
    with (
        mock.patch.object(jwt.PyJWKClient, "fetch_data", return_value=test_identity._jwks()),
        pytest.raises(UnauthenticatedError),
    ):
        identity.verify(identity.bearer_token({"Authorization": f"Bearer {text}"}) or "", SETTINGS)


def _score(output: bytes) -> None:
    if acceptance.verdict(output, agent=acceptance.SCORE_RULES, task=None).accepted:
        acceptance.read_score(output)


def _tokens(text: str) -> None:
    for read in (
        lambda: receipt.verify(text, JWKS),
        lambda: log.verify_checkpoint(text, JWKS),
        lambda: webhook.verify(b"", text, url="https://a.example", jwks=JWKS, now_ms=None),
    ):
        with pytest.raises(ProofError):
            read()


def _tickets(text: str) -> None:
    """A ticket and a closing order are read before their channel is, whoever sent them."""
    for read in (ticket.read, ticket.read_close):
        with pytest.raises(ProofError):
            read(text)


def _channel_key(text: str) -> None:
    with suppress(ValueError):
        ticket.key_of({"kty": "OKP", "crv": "Ed25519", "x": text})


def _key_set(text: bytes) -> None:
    receipt.verify("a.a.a", statement.read_json(text, "key set"))


def _report(data: bytes) -> None:
    content = wire.receive(BytesIO(wire.encode(data[: 16 * KIB])).read)
    wire.decode_run(content, mock.Mock(stdout=lambda _: b"", stderr=lambda: b""), BODY)


def _receiver(data: bytes) -> None:
    connected = mock.Mock(makefile=lambda *_, **__: BytesIO(data))
    with suppress(outbound.UndeliveredError):
        outbound._exchange(connected, "/", b"", {})


TASK_SHAPES: Final = hostile.JSON | hostile.TASKS
_IN_CONTRACT = '{"name":"a","tariff":{"type":"flat","price":"1"},"contract":'
CONTRACTS = (
    hostile.within(hostile.JSON, _IN_CONTRACT + '{"examples":[{"name":"a","input":', "}]}}")
    | hostile.within(hostile.JSON, _IN_CONTRACT + '{"examples":[', "]}}")
    | hostile.within(hostile.JSON, _IN_CONTRACT + '{"source":', "}}")
    | hostile.within(hostile.JSON, _IN_CONTRACT + '{"examples":[{"name":"a","input_base64":', "}]}}")
)
PARSERS: Final = {
    "body of a task": Parser(lambda text: _answer(event("POST", "/tasks", text)), BODY, TASK_SHAPES),
    "body in base64": Parser(
        lambda text: _answer(event("POST", "/tasks", text, isBase64Encoded=True)), PART, hostile.BASE64
    ),
    "payload of a direct task": Parser(_direct, PART, TASK_SHAPES),
    "message of the queue": Parser(
        messages.read, PART, TASK_SHAPES | hostile.within(TASK_SHAPES, '{"detail-type":"a","detail":', "}")
    ),
    "body of an agent": Parser(_body_of(AgentRequest, VersionRequest), PART, hostile.AGENTS),
    "body with a contract": Parser(_body_of(AgentRequest, VersionRequest), PART, CONTRACTS),
    "body of a movement": Parser(_body_of(DepositRequest, WithdrawalRequest), PART, hostile.JSON),
    "body of a channel": Parser(
        _body_of(ChannelRequest, TopUpRequest, SignedClose),
        PART,
        hostile.JSON
        | hostile.within(hostile.JSON, '{"key":{"kty":"OKP","crv":"Ed25519","x":', "}}")
        | hostile.within(hostile.JSON, '{"agents":[', "]}"),
    ),
    "payload of a run": Parser(_body_of(RunRequest), PART, hostile.RUNS),
    "notice of an event": Parser(Notice.model_validate_json, PART, hostile.JSON),
    "schema": Parser(lambda schema: acceptance.Rules(json_schema=schema), SCHEMA_BYTES_MAX, hostile.SCHEMAS),
    "pattern": Parser(compile_pattern, SCHEMA_BYTES_MAX, hostile.PATTERNS),
    "output under a schema": Parser(_accept, PART, hostile.VERDICTS),
    "output": Parser(_accept_json, BODY, hostile.as_bytes(hostile.JSON | hostile.WORDS)),
    "score of a judge": Parser(_score, KIB, hostile.as_bytes(hostile.JSON)),
    "Prefer": Parser(lambda text: wants_async([text]), HEADER, hostile.PREFERENCES | hostile.WORDS),
    "Authorization": Parser(_bearer, HEADER, hostile.TOKENS),
    "Content-Type": Parser(
        lambda text: _answer(event("POST", "/tasks", "{}", headers={"Content-Type": text})), HEADER, hostile.WORDS
    ),
    "X-Amzn-Trace-Id": Parser(
        lambda text: tracing._from_environment({"_X_AMZN_TRACE_ID": text}), HEADER, hostile.WORDS
    ),
    "path": Parser(lambda text: _answer(event("GET", f"/agents/{text}")), HEADER, hostile.WORDS),
    "query": Parser(_query, HEADER, hostile.WORDS),
    "cursor of agents": Parser(agents._CURSOR.read, HEADER, hostile.WORDS),
    "cursor of a statement": Parser(accounts._LINES.read, HEADER, hostile.WORDS),
    "cursor of payouts": Parser(accounts._read_payout_cursor, HEADER, hostile.WORDS),
    "id of a payout": Parser(parse_payout_id, HEADER, hostile.WORDS),
    "cursor of operations": Parser(operations._CURSOR.read, HEADER, hostile.WORDS),
    "amount": Parser(parse_credits, BODY, hostile.NUMBERS),
    "least reputation": Parser(models._tenths, BODY, hostile.NUMBERS),
    "URL of a webhook": Parser(targets.why_refused, 4 * WEBHOOK_URL_CHARS_MAX, hostile.URLS | hostile.WORDS),
    "answer of a webhook": Parser(_receiver, BODY, hostile.RECEIVERS),
    "tokens": Parser(_tokens, TOKEN_CHARS_MAX, hostile.TOKENS),
    "ticket": Parser(_tickets, 4 * TICKET_CHARS_MAX, hostile.TOKENS | hostile.TICKETS),
    "key of a channel": Parser(_channel_key, PART, hostile.WORDS),
    "payload of a channel": Parser(_body_of(ChannelRequest, TopUpRequest, SignedClose), PART, hostile.JSON),
    "id of a ticket's task": Parser(parse_task_id, PART, hostile.WORDS | hostile.TASK_IDS),
    "key set": Parser(_key_set, BODY, hostile.as_bytes(hostile.JSON | hostile.within(hostile.JSON, '{"keys":', "}"))),
    "proof": Parser(
        lambda text: statement.read(log.Proof, statement.read_json(text, "proof"), "proof"),
        PART,
        hostile.as_bytes(hostile.JSON | hostile.within(hostile.JSON, '{"path":', "}")),
    ),
    "file of a tariff": Parser(
        pricing.parse_tariff, PART, hostile.JSON | hostile.within(hostile.JSON, '{"type":"flat","price":', "}")
    ),
    "file of rules": Parser(
        acceptance.parse_rules, PART, hostile.JSON | hostile.within(hostile.JSON, '{"sha256":', "}")
    ),
    "module": Parser(validate_module, BODY, hostile.MODULES),
    "report of a worker": Parser(_report, BODY, hostile.as_bytes(hostile.WORDS)),
}


# Growth.


def _cost_s(read: Read, data: Any) -> float:
    began = time.thread_time()
    with suppress(*REFUSALS):
        read(data)
    return time.thread_time() - began


def _least_s(read: Read, data: Any) -> float:
    return min(_cost_s(read, data) for _ in range(TRIES))


def _costs(read: Read, shape: Shape, most: int) -> Iterator[tuple[int, float, float]]:
    """Each size, what the one before it costs, and what it costs itself; measured again only where it matters."""
    sizes = [most]
    while sizes[0] > SMALLEST:
        sizes.insert(0, sizes[0] // GROWTH)
    smaller = shape(sizes[0])
    before = _cost_s(read, smaller)
    for size in sizes[1:]:
        larger = shape(size)
        cost = _cost_s(read, larger)
        if cost > max(FLOOR_S, COST_GROWTH_MAX * before):
            before, cost = _least_s(read, smaller), _least_s(read, larger)
        yield size, before, cost
        smaller, before = larger, cost


def superlinear(read: Read, shape: Shape, most: int) -> str | None:
    """At which size a parser's work grew more than the input did, and by how much; None if it never did."""
    gc.disable()  # its own work depends on all that other tests have left
    try:
        for size, before, cost in _costs(read, shape, most):
            if cost > max(FLOOR_S, COST_GROWTH_MAX * before):
                return f"{size // GROWTH} → {size}: {before * 1e3:.1f} → {cost * 1e3:.1f} ms"
    finally:
        gc.enable()
    return None


@pytest.mark.parametrize("name", PARSERS)
def test_work_grows_no_faster_than_the_input(name: str) -> None:
    parser = PARSERS[name]
    found = {shape: superlinear(parser.read, make, parser.most) for shape, make in parser.shapes.items()}
    assert not {shape: growth for shape, growth in found.items() if growth}


def test_the_measure_finds_quadratic_work() -> None:
    spaces: Shape = lambda n: " " * n  # noqa: E731 - as the table has it
    assert superlinear(lambda text: [text.count("x", at) for at in range(len(text))], spaces, BODY)
    assert superlinear(lambda text: [text.count("x") for _ in range(100)], spaces, BODY) is None


# Completeness: what parses in the source.

SOURCES: Final = [*(ROOT / "layers/runtime/quittance").rglob("*.py"), *(ROOT / "functions").rglob("*.py")]
READERS: Final = {
    *("int", "float", "Decimal", "Fraction", "fromhex", "from_bytes", "unpack", "unpack_from", "literal_eval"),
    *("loads", "raw_decode", "model_validate", "model_validate_json", "validate_json", "validate_python", "from_jwk"),
    *("b64decode", "urlsafe_b64decode", "decode_complete", "get_unverified_header", "fromisoformat", "strptime"),
    *("unquote", "urlsplit", "urlparse", "parse_qs", "parse_qsl", "ip_address"),
}


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in the source: where, of what, and itself."""
    for path in SOURCES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[3:] if parts[0] == "layers" else parts[:2])
        for node in ast.parse(path.read_text()).body:
            yield from _calls_in(node, module)


def _calls_in(node: ast.AST, place: str) -> Iterator[tuple[str, str, ast.Call]]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        place = f"{place}.{node.name}"
    if isinstance(node, ast.AnnAssign | ast.Assign):
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        place = f"{place}.{target.id}" if isinstance(target, ast.Name) and target.id.isupper() else place
    if isinstance(node, ast.Call):
        yield place, ast.unparse(node.func), node
    for child in ast.iter_child_nodes(node):
        yield from _calls_in(child, place)


def _patterns() -> set[str]:
    return {place if of == "re.compile" else f"{place}: {of}" for place, of, _ in _calls() if of.startswith("re.")}


def _reads() -> set[str]:
    return {f"{place}: {of.rpartition('.')[2]}" for place, of, _ in _calls() if of.rpartition(".")[2] in READERS}


OURS: Final = "ours: what we or AWS have written"
FORM: Final = "bounded: the pattern before it allows few digits"
FIXED: Final = "bounded: a structure of fixed size"
SIGNED: Final = "ours: the configured issuer has signed it"

PATTERNS: Final = {
    "store.clients._endpoint: re.match": OURS,
    "api.requests.Cursor.__init__": "cursor of a statement",
    "acceptance.rules._NO_TEXT": "output",
    "store.blobs._POSTED": OURS,
    "proof.statement._COMPACT": "tokens",
    "api.documentation._hashes: re.findall": OURS,
    "store.dynamo._NAMED": OURS,
    "canonical_json._SURROGATE": "output",
    "canonical_json._SPACE": "body of a task",
    "canonical_json._PIECE": "body of a task",
    "api.identity._ACCOUNT_ID": "Authorization",
    "api.identity._SCOPE": SIGNED,
    "api.messages._BEYOND_ASCII": OURS,
    "api.messages._SHA256": "message of the queue",
    "ledger.credits._DECIMAL": "amount",
    "acceptance.regex._CONTROL": "pattern",
    "acceptance.regex._COUNT": "pattern",
    "acceptance.regex._GROUP_NAME": "pattern",
    "acceptance.regex._HEX": "pattern",
    "acceptance.regex._LOW_HALF": "pattern",
    "api.requests._ESCAPED": "Prefer",
    "api.requests._MEMBER": "Prefer",
    "api.requests._PREFERENCE": "Prefer",
    "api.outbound._STATUS_LINE": "answer of a webhook",
    "api.requests._BROKEN_ESCAPE": "path",
    "api.requests._CONTROL": "path",
    "api.requests._SHOULD": OURS,
    "acceptance.json_schema._ANCHOR": "schema",
    "acceptance.json_schema._INDEX": "schema",
    "api.targets._HOST": "URL of a webhook",
    "api.targets._URL": "URL of a webhook",
    "ledger.channels._TASK_ID": "id of a ticket's task",
}
"""Every regular expression of the source, and the row that feeds it."""

READS: Final = {
    "store.dynamo_client._Connections.__init__: urlsplit": OURS,
    "store.dynamo_client._decoded: loads": OURS,
    "store.dynamo_client._with_bytes: b64decode": OURS,
    "api.requests.Cursor.read: int": "cursor of a statement",
    "api.http._rendered: int": OURS,
    "api.http.Api.serve: int": OURS,
    "acceptance.rules.parse_rules: model_validate": "file of rules",
    "acceptance.rules.read_score: Fraction": "score of a judge",
    "acceptance.rules.read_score: int": "score of a judge",
    "api.batches.each_message.process_message: int": OURS,
    "store.blobs.Posted.of: int": FORM,
    "proof.statement._decode: b64decode": "tokens",
    "proof.statement._root: from_jwk": "key set",
    "proof.statement.read: model_validate": "proof",
    "config.settings: model_validate": OURS,
    "proof.invariants._check_receipt: int": FORM,
    "proof.invariants._agents: loads": OURS,
    "proof.invariants._check_signed: loads": OURS,
    "proof.invariants._drawn_micro: int": FORM,
    "proof.invariants._judges: loads": OURS,
    "proof.invariants._numbers: loads": OURS,
    "proof.invariants._returned_micro: int": OURS,
    "proof.invariants.used_micro: int": FORM,
    "proof.parts._read_nodes: fromhex": OURS,
    "proof.parts._section_name: int": OURS,
    "proof.parts.load_json: loads": OURS,
    "usecases.audit._Auditor._check_firsts: int": OURS,
    "usecases.webhook.deliver: model_validate_json": "notice of an event",
    "api.documentation.openapi_json: loads": OURS,
    "store.dynamo.from_item: int": OURS,
    "store.dynamo.plain: int": OURS,
    "errors.problem: int": OURS,
    "ledger.escrow.seed: fromhex": OURS,
    "canonical_json._number_text: Decimal": "message of the queue",
    "canonical_json._number_text: int": "message of the queue",
    "canonical_json._read_decimal: Decimal": "output",
    "canonical_json._read_int: int": "output",
    "canonical_json._whole: int": "body of a task",
    "canonical_json.read: loads": "output",
    "canonical_json._without_space: raw_decode": "body of a task",
    "canonical_json.read_members: raw_decode": "body of a task",
    "usecases.health._IDLE_MODULE: fromhex": OURS,
    "api.http._plain: b64decode": "body in base64",
    "api.http._proxy: int": OURS,
    "api.http.responses: int": OURS,
    "api.identity.verify: get_unverified_header": "Authorization",
    "store.log.Log.place: int": OURS,
    "store.ledger._charged_micro: int": OURS,
    "store.ledger._available_micro: int": OURS,
    "store.ledger.read_escrow: loads": OURS,
    "store.archive.read: loads": OURS,
    "store.archive._item: loads": OURS,
    "store.archive._item: b64decode": OURS,
    "usecases.archive._swept_ms: int": OURS,
    "store.ledger._judge_holds: loads": OURS,
    "proof.log.verify_checkpoint: fromhex": FORM,
    "api.messages.write: Decimal": OURS,
    "api.models._read_time: fromisoformat": OURS,
    "api.models: loads": "body of an agent",
    "api.models._as_doubles: loads": "body of an agent",
    "api.models._moment_ms: fromisoformat": FIXED,  # at most 40 characters
    "api.models._decode_base64: b64decode": "body of a task",
    "ledger.credits._plain: Decimal": "amount",
    "ledger.credits.parse_credits: int": "amount",
    "usecases.notify.emit_change: int": OURS,
    "api.outbound._checked_address: ip_address": OURS,
    "api.outbound._final_status: int": FORM,
    "ledger.journal.parse_payout_id: b64decode": "id of a payout",
    "store.operations.Operations._change: int": OURS,
    "acceptance.regex._Parser._code_point: int": "pattern",
    "acceptance.regex._Parser._most: int": "pattern",
    "ledger.pricing.parse_tariff: validate_json": "file of a tariff",
    "usecases.publish.give_up_all: loads": OURS,
    "api.requests.validated: model_validate": "payload of a direct task",
    "ledger.channels.parse_task_id: int": "id of a ticket's task",
    "proof.receipt._check_asked: int": FORM,
    "proof.receipt._check_header: loads": OURS,
    "proof.receipt._segment: urlsafe_b64decode": OURS,
    "proof.receipt.read_claims: loads": OURS,
    "proof.ticket.check_claim: int": FORM,
    "proof.ticket.key_of: b64decode": "key of a channel",
    "proof.ticket.key_of: from_bytes": FIXED,  # 32 bytes
    "proof.verify._check_held.all_held: int": FORM,
    "proof.verify._ticket_lines: int": FORM,
    "store.channels.Channels.is_contesting: int": OURS,
    "store.channels._topped_up_ms: int": OURS,
    "store.channels.read: loads": OURS,
    "store.ledger._taken: int": OURS,
    "store.ledger._ticket: loads": OURS,
    "proof.replay._run: fromhex": FORM,
    "proof.replay._run: int": FORM,
    "proof.receipt._check_amounts: int": FORM,
    "proof.receipt._compute_due: int": FORM,
    "proof.receipt._prices: int": FORM,
    "store.listings.Listings.add_run: int": OURS,
    "store.listings.Listings.search: int": OURS,
    "store.listings._place: int": OURS,
    "store.listings._search_place: int": OURS,
    "acceptance.contract: loads": "body with a contract",
    "acceptance.contract.Contract._check_whole: loads": "body with a contract",
    "acceptance.contract._decoded: b64decode": "body with a contract",
    "acceptance.contract._source: urlsplit": "body with a contract",
    "acceptance.contract.with_output_schema: model_validate": "schema",
    "acceptance.contract.without_output_schema: model_validate": OURS,
    "proof.card.jcs: int": FORM,
    "store.registry.Registry.described: loads": OURS,
    "store.registry.Registry.set_bond_short: int": OURS,
    "store.registry.Registry.dues: int": OURS,
    "store.registry._terms: int": OURS,
    "store.registry._version_record: int": OURS,
    "store.registry.Registry.page: int": OURS,
    "ledger.reputation.Standing.distinct_payers: int": OURS,
    "ledger.reputation.rating: int": OURS,
    "ledger.reputation.parse: int": OURS,
    "ledger.reputation.parse: loads": OURS,
    "acceptance.json_schema._Compiler._look_up: int": "schema",
    "acceptance.json_schema._Compiler._resolve: unquote": "schema",
    "acceptance.json_schema._count: int": "schema",
    "acceptance.json_schema._multiple_of: Decimal": "output under a schema",
    "sandbox.supervisor._spawn: int": OURS,
    "usecases.sweep.sweep: int": OURS,
    "tracing._from_environment: int": "X-Amzn-Trace-Id",
    "proof.verify._check_judge: int": FORM,
    "proof.verify._check_price: int": FORM,
    "proof.verify._hashes: fromhex": FORM,
    "proof.verify._summary: int": FORM,
    "sandbox.wasi.Guest._poll: unpack_from": FIXED,
    "api.targets.is_public: int": FIXED,
    "api.targets.parse_url: urlsplit": "URL of a webhook",
    "api.targets.why_refused: ip_address": "URL of a webhook",
    "sandbox.wire.SharedMemory.began: unpack_from": FIXED,
    "sandbox.wire.SharedMemory.stderr: unpack_from": FIXED,
    "sandbox.wire.decode_greeting: unpack": FIXED,
    "sandbox.wire.decode_job: unpack_from": FIXED,
    "sandbox.wire.decode_run: unpack_from": "report of a worker",
    "sandbox.wire._content_bytes: unpack_from": "report of a worker",
    "sandbox.worker.Worker._resident_bytes: int": OURS,
}
"""Every call of a reader, and the row that feeds it or what bounds it."""


def test_every_regular_expression_is_in_the_table() -> None:
    """One that is not a constant of its module is none that can be listed."""
    assert _patterns() == PATTERNS.keys()


def test_no_model_uses_an_engine_that_backtracks() -> None:
    """Pydantic's own patterns are matched by an automaton, unless a model asks for Python's engine."""
    assert not [path for path in SOURCES if "python-re" in path.read_text()]


def test_every_call_of_a_reader_is_in_the_table() -> None:
    assert _reads() == READS.keys()


def test_what_is_listed_names_a_row_or_a_bound() -> None:
    assert {*PATTERNS.values(), *READS.values()} <= {*PARSERS, OURS, FORM, FIXED, SIGNED}
