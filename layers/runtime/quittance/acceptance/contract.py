"""The contract of an agent: what it takes, what it gives, and examples of both. Pure. See docs/contract.md.

A contract is named by the digest of its canonical JSON. It belongs to a version of an agent and never changes.

`input_schema` is checked before any money moves, with the evaluator of the rules for outputs but with fewer steps,
because nobody pays for a task that is refused. `output_schema` is part of the agent's rules (`with_output_schema`).
"""

import base64
import hashlib
import json
from itertools import combinations
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from quittance import canonical_json
from quittance.acceptance.json_schema import Schema, Steps, TooCostlyError, shorten
from quittance.acceptance.rules import Rules, rules_json
from quittance.limits import (
    CONTRACT_BYTES_MAX,
    EXAMPLE_NAME_CHARS_MAX,
    EXAMPLES_MAX,
    EXIT_CODE_MAX,
    FIELD_NAME_CHARS_MAX,
    FUEL_MAX,
    INPUT_BYTES_PER_STEP,
    INPUT_STEPS_MIN,
    LICENCE_CHARS_MAX,
    SCHEMA_BYTES_MAX,
    SOURCE_URL_CHARS_MAX,
    TAG_CHARS_MAX,
    TAGS_MAX,
)

NO_CONTRACT: Final = "{}"
_INPUT: Final = "input"
_EXPECTATIONS: Final = ("output", "output_base64", "exit_code", "output_schema")
ABSENT: Final = object()
"""A JSON value that was not sent. It is not None, because a client may send null."""


def _json_value(value: object) -> object:
    return value if value is ABSENT else canonical_json.exact(value)


def _schema(value: object) -> object:
    if value is None:
        return None
    too_long = canonical_json.is_surely_longer(value, SCHEMA_BYTES_MAX)
    value = None if too_long else canonical_json.exact(value)
    if too_long or len(canonical_json.canonical(value).encode()) > SCHEMA_BYTES_MAX:
        msg = f"must have at most {SCHEMA_BYTES_MAX} bytes"
        raise ValueError(msg)
    Schema(value)
    return value


def _licence(text: str) -> str:
    """Checks the form of an SPDX expression (SPDX 2.3 annex D): ids joined by AND, OR and WITH, in parentheses."""
    words = text.replace("(", " ( ").replace(")", " ) ").split(" ")
    words = [word for word in words if word]
    depth, wants_id = 0, True
    for word in words:
        if word == "(":
            fits, depth = wants_id, depth + 1
        elif word == ")":
            fits, depth = not wants_id and depth > 0, depth - 1
        elif word in {"AND", "OR", "WITH"}:
            fits, wants_id = not wants_id, True
        else:
            fits, wants_id = wants_id, False
        if not fits:
            break
    else:
        if not wants_id and depth == 0:
            return text
    msg = 'must be an SPDX licence expression, such as "Apache-2.0" or "MIT OR Apache-2.0"'
    raise ValueError(msg)


def _source(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "https" and bool(parts.hostname) and parts.username is None
        usable = usable and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        msg = "must be an absolute URL with https and without a user name, such as https://example.com/agent"
        raise ValueError(msg)
    return url


_AnySchema = Annotated[
    Any, BeforeValidator(_schema), WithJsonSchema({"anyOf": [{"type": name} for name in ("object", "boolean", "null")]})
]
_AnyJson = Annotated[Any, BeforeValidator(_json_value), WithJsonSchema({})]
Tag = Annotated[str, StringConstraints(pattern=rf"^[a-z0-9][a-z0-9-]{{0,{TAG_CHARS_MAX - 1}}}$")]
_Licence = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9.+:() -]+$", min_length=1, max_length=LICENCE_CHARS_MAX),
    AfterValidator(_licence),
]
_Source = Annotated[
    str,
    StringConstraints(pattern=r"^https://[!#-;=?-\[\]_a-z~%]+$", max_length=SOURCE_URL_CHARS_MAX),
    AfterValidator(_source),
]
ExitCode = Annotated[int, Field(strict=True, ge=0, le=EXIT_CODE_MAX), canonical_json.WHOLE]
_Fuel = Annotated[int, Field(strict=True, ge=1, le=FUEL_MAX), canonical_json.WHOLE]
_ExampleName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=EXAMPLE_NAME_CHARS_MAX)]


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as exc:
        msg = "must be valid base64 (RFC 4648 §4, with padding)"
        raise ValueError(msg) from exc


def as_bytes(value: object) -> bytes:
    """The bytes of a string in UTF-8, or the canonical JSON of any other value. Raises ValueError."""
    try:
        return (value if isinstance(value, str) else canonical_json.canonical(value)).encode()
    except UnicodeEncodeError as exc:
        msg = "must not hold half of a surrogate pair, which UTF-8 cannot carry"
        raise ValueError(msg) from exc


class Example(canonical_json.Sent):
    """An input, and what the agent must do with it. Without an expectation, the agent must succeed."""

    name: _ExampleName = Field(description="Unique among the examples.")
    input_base64: str | None = Field(default=None, description="Instead of `input`: the bytes for stdin.")
    input: _AnyJson = Field(
        default_factory=lambda: ABSENT,
        description="A string (stdin gets its UTF-8 bytes) or any other JSON value (stdin gets it as canonical JSON).",
    )
    output_base64: str | None = Field(default=None, description="The bytes that the agent must write.")
    output: _AnyJson = Field(
        default_factory=lambda: ABSENT,
        description="A string: the text that the agent must write, byte for byte. Any other JSON value: the agent must"
        " write JSON with this value.",
    )
    exit_code: ExitCode | None = Field(default=None, description="The exit code with which the agent must end.")
    output_schema: _AnySchema = Field(default=None, description="A JSON Schema that the output must meet.")
    fuel_max: _Fuel | None = Field(default=None, description="The most fuel that the run may use.")

    @field_validator("input_base64", "output_base64")
    @classmethod
    def _check_base64(cls, value: str | None) -> str | None:
        if value is not None:
            _decoded(value)
        return value

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        if (self.input is ABSENT) == (self.input_base64 is None):
            msg = "send exactly one of input and input_base64"
            raise ValueError(msg)
        for one, other in combinations(_EXPECTATIONS, 2):
            if self._expects(one) and self._expects(other):
                msg = f"send at most one of {', '.join(_EXPECTATIONS)}: this has {one} and {other}"
                raise ValueError(msg)
        return self

    def _expects(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not ABSENT if name == "output" else value is not None

    @property
    def stdin(self) -> bytes:
        """What the agent reads."""
        return as_bytes(self.input) if self.input_base64 is None else _decoded(self.input_base64)

    @property
    def stdout(self) -> bytes | None:
        """What the agent must write; None if the example states no bytes."""
        if self.output_base64 is not None:
            return _decoded(self.output_base64)
        return as_bytes(self.output) if isinstance(self.output, str) else None

    def plain(self) -> dict[str, Any]:
        """The members that were sent."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            name: value
            for name, value in found.items()
            if value is not ABSENT and (value is not None or name in {"input", "output"})
        }


class Contract(canonical_json.Sent):
    """What an agent takes and gives. An instance is well-formed: its schemas compile and its examples' inputs fit."""

    input_schema: _AnySchema = Field(
        default=None,
        description="JSON Schema 2020-12 for the input of each task, without references to other documents. An input"
        " that does not meet it is refused before any money moves.",
    )
    output_schema: _AnySchema = Field(
        default=None, description="JSON Schema for each output: becomes `json_schema` of the agent's own rules."
    )
    examples: Annotated[list[Example], Field(max_length=EXAMPLES_MAX)] = Field(
        default=[], description="Run when the version is published. One that fails rejects the version."
    )
    tags: Annotated[list[Tag], Field(max_length=TAGS_MAX)] = Field(default=[], description="What to find it by.")
    licence: _Licence | None = Field(default=None, description="An SPDX expression: the licence of the module.")
    source: _Source | None = Field(default=None, description="Where the source is, an https URL.")

    @model_validator(mode="before")
    @classmethod
    def _check_length(cls, value: object) -> object:
        if canonical_json.is_surely_longer(value, CONTRACT_BYTES_MAX):
            raise ValueError(_TOO_LONG)
        return value

    @field_validator("examples")
    @classmethod
    def _check_names(cls, examples: list[Example]) -> list[Example]:
        names = [example.name for example in examples]
        for index, name in enumerate(names):
            if name in names[:index]:
                msg = f"must have unique names: {shorten(name)} is there twice"
                raise ValueError(msg)
        return examples

    @field_validator("tags")
    @classmethod
    def _check_tags(cls, tags: list[str]) -> list[str]:
        if len({*tags}) < len(tags):
            msg = "must not name a tag twice"
            raise ValueError(msg)
        return tags

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        text = contract_json(self)
        if len(text.encode()) > CONTRACT_BYTES_MAX:
            raise ValueError(_TOO_LONG)
        if canonical_json.canonical(json.loads(text)) != text:
            msg = "must have only numbers that a double represents exactly as written, because anyone may read them"
            raise ValueError(msg)
        check = self.input_check
        for example in self.examples:
            if refusal := refused(check, example.stdin):
                place, sentence = refusal
                msg = f"has the example {shorten(example.name)}, whose input is not accepted: {place} {sentence}"
                raise ValueError(msg)
        return self

    @property
    def input_check(self) -> Schema | None:
        """The compiled schema of inputs; None if the agent takes any bytes."""
        return None if self.input_schema is None else Schema(self.input_schema)


_TOO_LONG: Final = f"must have at most {CONTRACT_BYTES_MAX} bytes"
# The serializer has no return type, because the schema of an answer would be that of the type.
PublishedContract = Annotated[Contract, PlainSerializer(lambda contract: json.loads(contract_json(contract)))]
"""A contract that anyone may read: returned as it was sent, also for parsers that read numbers as doubles."""


def contract_json(contract: Contract) -> str:
    """The canonical JSON of a contract: equal contracts have equal texts, however they were written."""
    plain = {name: getattr(contract, name) for name in type(contract).model_fields}
    plain["examples"] = [example.plain() for example in contract.examples]
    return canonical_json.canonical({name: value for name, value in plain.items() if value is not None and value != []})


def contract_sha256(text: str) -> str | None:
    """The digest that names a contract, computed from its canonical JSON; None if it says nothing."""
    return None if text == NO_CONTRACT else hashlib.sha256(text.encode()).hexdigest()


def stored_contract(text: str) -> Contract:
    """The contract of its canonical JSON, which was checked before it was stored: nothing is compiled or checked."""
    members = canonical_json.read(text, depth_max=None)
    examples = [
        Example.model_construct(**{"input": ABSENT, "output": ABSENT, **example})
        for example in members.get("examples", [])
    ]
    return Contract.model_construct(**{**members, "examples": examples})


def stored_input_schema(text: str) -> Schema | None:
    """The compiled schema for inputs of a stored contract; None if the agent takes any bytes."""
    return stored_contract(text).input_check


def with_output_schema(rules: Rules, contract: Contract) -> Rules:
    """The rules of an agent with this contract. Raises ValueError if they state another schema than the contract."""
    if contract.output_schema is None:
        return rules
    stated = canonical_json.canonical(rules.json_schema)
    if rules.json_schema is not None and stated != canonical_json.canonical(contract.output_schema):
        msg = "states another schema than the contract's output_schema: send only one of them"
        raise ValueError(msg)
    plain = canonical_json.read(rules_json(rules)) | {"json_schema": contract.output_schema}
    try:
        return Rules.model_validate(plain)
    except ValidationError as exc:  # a schema for a picture
        sentence = exc.errors(include_url=False, include_context=False, include_input=False)[0]["msg"]
        raise ValueError(sentence.removeprefix("Value error, ")) from exc


def without_output_schema(rules: Rules, contract: Contract) -> Rules:
    """The rules without the schema that they have from this contract."""
    if contract.output_schema is None:
        return rules
    plain = canonical_json.read(rules_json(rules))
    if canonical_json.canonical(plain.get("json_schema")) == canonical_json.canonical(contract.output_schema):
        del plain["json_schema"]
    return Rules.model_validate(plain)


def refused(schema: Schema | None, stdin: bytes) -> tuple[str, str] | None:
    """The place in an input that its schema does not accept, such as `input/items/3/price`, and why; None if it does.

    The steps of the check grow with the input, as the cost of reading it does.
    """
    if schema is None:
        return None
    try:
        value = canonical_json.read(stdin)
        mismatch = schema.mismatch(value, Steps(INPUT_STEPS_MIN + len(stdin) // INPUT_BYTES_PER_STEP))
    except canonical_json.JsonError as exc:
        return _INPUT, f"must be one JSON document: it {exc}"
    except TooCostlyError as exc:
        return _INPUT, f"cannot be checked: the schema and this input {exc}"
    if mismatch is None:
        return None
    return shorten(f"{_INPUT}{mismatch.pointer}", FIELD_NAME_CHARS_MAX), mismatch.sentence
