"""An agent's project: its folder with `quittance.toml`, read and checked by the models of the API.

Paths in the file are relative to the project's folder and stay within it: a project that somebody sent must not make
`quittance` read another file of the user.
"""

import base64
import binascii
import re
import tomllib
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from quittance import limits
from quittance.acceptance.contract import Contract, with_output_schema
from quittance.acceptance.rules import Rules
from quittance.api.models import AgentId, AgentLimits, PublishedRules, TaskJudges
from quittance.canonical_json import JsonError, read
from quittance.cli.exits import UsageError
from quittance.cli.files import read_file, replace_file
from quittance.ledger.pricing import Tariff, tariff_json

FILE_NAME: Final = "quittance.toml"
_FILE_BYTES_MAX: Final = limits.MIB
_AGENTS: Final = re.compile(r"\s*\[\s*agents\s*\]\s*(?:#.*)?")

_Text = Annotated[str, StringConstraints(min_length=1)]


def _check_json(value: object) -> object:
    """TOML has dates and infinity, which JSON has not."""
    if isinstance(value, dict):
        for member in value.values():
            _check_json(member)
    elif isinstance(value, list):
        for member in value:
            _check_json(member)
    elif not isinstance(value, str | int | bool | Decimal | None):
        msg = f"must be a value that JSON has: quote the {type(value).__name__} {value}"
        raise ValueError(msg)  # noqa: TRY004 - pydantic turns ValueError, not TypeError, into a named field
    return value


_Json = Annotated[Any, AfterValidator(_check_json)]
Command = Annotated[list[_Text], Field(min_length=1)]


class _Table(BaseModel):
    """A table of the file: an unknown name is a fault, because it is most likely a misspelt one."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AgentTable(_Table):
    """`[agent]`: what the agent is called."""

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=limits.AGENT_NAME_CHARS_MAX)]
    description: Annotated[str, StringConstraints(max_length=limits.AGENT_DESCRIPTION_CHARS_MAX)] = ""


class BuildTable(_Table):
    """`[build]`: one command, or several; the module that they make; what `--watch` watches beside this file.

    `tools` are compilers that `quittance build` installs for the user (toolchains.py), `env` is for the commands.
    """

    command: Command | Annotated[list[Command], Field(min_length=1)] | None = None
    module: _Text
    watch: list[_Text] = ["."]
    tools: list[_Text] = []
    env: dict[_Text, str] = {}

    @property
    def commands(self) -> list[list[str]]:
        """The commands in their order; none if the module is built by other means."""
        if not self.command:
            return []
        if isinstance(self.command[0], str):
            return [[str(word) for word in self.command]]
        return [list(words) for words in self.command]


class ExampleTable(_Table):
    """`[[contract.examples]]`: one input and what the agent must do with it."""

    name: _Text
    input: _Json = None
    input_file: _Text | None = None
    input_base64: str | None = None
    output: _Json = None
    output_file: _Text | None = None
    output_base64: str | None = None
    output_schema: dict[str, Any] | _Text | None = None
    exit_code: Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)] | None = None
    fuel_max: Annotated[int, Field(strict=True, ge=1, le=limits.FUEL_MAX)] | None = None

    @model_validator(mode="after")
    def _check_one_each(self) -> Self:
        given = [name for name in ("input", "input_file", "input_base64") if name in self.model_fields_set]
        if len(given) != 1:
            msg = "must have exactly one of input, input_file and input_base64"
            raise ValueError(msg)
        wanted = [name for name in ("output", "output_file", "output_base64") if name in self.model_fields_set]
        if len(wanted) > 1:
            msg = "must have at most one of output, output_file and output_base64"
            raise ValueError(msg)
        return self


class ContractTable(_Table):
    """`[contract]`: what the agent takes and gives. A schema is a table, or the path of a JSON file."""

    input_schema: dict[str, Any] | _Text | None = None
    output_schema: dict[str, Any] | _Text | None = None
    examples: list[ExampleTable] = []
    tags: list[str] = []
    licence: str | None = None
    source: str | None = None


class ProjectFile(_Table):
    """The whole of `quittance.toml`."""

    agent: AgentTable
    build: BuildTable
    tariff: Tariff
    limits: AgentLimits = AgentLimits()
    acceptance: PublishedRules | None = None
    task_judges: TaskJudges | None = None
    contract: ContractTable = ContractTable()
    agents: dict[str, AgentId] = {}
    """The agent's id on each platform, by the name of its profile; written by `quittance publish`."""


NO_RULES_SET: Final = Rules()
_CONTRACT_MEND: Final = "docs/contract.md says what a contract may have."


class Project:
    """A project: its folder and the content of its file."""

    def __init__(self, folder: Path, file: ProjectFile) -> None:
        self.folder = folder
        self.file = file

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the project of a folder. Raises UsageError, which names the fault and its place."""
        path = folder / FILE_NAME
        if not path.is_file():
            mend = "Make one with `quittance new`, or name a module: quittance run agent.wasm."
            raise UsageError(f"There is no {FILE_NAME} in {folder}.", mend)
        text = read_file(path, bytes_max=_FILE_BYTES_MAX)
        try:
            content = tomllib.loads(text.decode(), parse_float=_decimal)
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 at byte {error.start}.", "Save it as UTF-8.") from error
        except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
            raise UsageError(f"{path} is not TOML: {error}.", "Correct the line that it names.") from error
        try:
            return cls(folder, ProjectFile.model_validate(content))
        except ValidationError as error:
            raise UsageError(f"{path}: {faults(error)}.", "docs/howto/command-line.md has a whole file.") from error

    @classmethod
    def find(cls, folder: Path | None = None) -> Self:
        """Read the project of a folder, by default of the current one or the nearest above it that has one."""
        if folder is not None:
            return cls.read(folder)
        here = Path.cwd()
        return cls.read(next((above for above in (here, *here.parents) if (above / FILE_NAME).is_file()), here))

    @property
    def module_path(self) -> Path:
        """Where the build leaves the module."""
        return self.inside("build.module", self.file.build.module)

    @property
    def tariff(self) -> str:
        """The tariff in canonical JSON."""
        return tariff_json(self.file.tariff)

    @cached_property
    def contract(self) -> Contract:
        """The contract, checked as the API checks it. Raises UsageError."""
        try:
            return Contract.model_validate(self.contract_body)
        except ValidationError as error:
            raise UsageError(f"contract in {self.folder / FILE_NAME}: {faults(error)}.", _CONTRACT_MEND) from error

    @cached_property
    def rules(self) -> Rules:
        """The agent's rules for its outputs, with the contract's output_schema. Raises UsageError."""
        try:
            return with_output_schema(self.file.acceptance or NO_RULES_SET, self.contract)
        except ValueError as error:
            raise UsageError(f"acceptance in {self.folder / FILE_NAME} {error}.", _CONTRACT_MEND) from error

    @property
    def rules_alone(self) -> Rules:
        """The agent's rules as the file has them, without the contract's output_schema."""
        return self.file.acceptance or NO_RULES_SET

    def remember(self, profile: str, agent_id: str) -> None:
        """Write the agent's id on a platform into the file; the rest of it stays as it is. Raises UsageError."""
        path = self.folder / FILE_NAME
        text = read_file(path, bytes_max=_FILE_BYTES_MAX).decode(errors="replace")
        changed = _with_agent(text, profile, agent_id)
        before = ProjectFile.model_validate(tomllib.loads(text, parse_float=_decimal))
        try:
            after = ProjectFile.model_validate(tomllib.loads(changed, parse_float=_decimal))
        except ValueError:
            after = before
        wanted = before.model_copy(update={"agents": {**before.agents, profile: agent_id}})
        mend = f'write {profile} = "{agent_id}" into [agents] of {path}.'
        if after != wanted:
            raise UsageError(f"{path} has another form than quittance can change.", mend)
        try:
            replace_file(path, changed)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}.", mend) from error
        self.file = after

    @cached_property
    def contract_body(self) -> dict[str, Any]:
        """The contract as the API takes it, with the content of every file that the project's file names."""
        table = self.file.contract
        body = {
            "input_schema": self._schema("contract.input_schema", table.input_schema),
            "output_schema": self._schema("contract.output_schema", table.output_schema),
            "examples": [self._example(number, example) for number, example in enumerate(table.examples)] or None,
            "tags": table.tags or None,
            "licence": table.licence,
            "source": table.source,
        }
        return {name: value for name, value in body.items() if value is not None}

    def inside(self, field: str, name: str) -> Path:
        """The path of a file that the project's file names. Raises UsageError if it lies outside the project."""
        folder = self.folder.resolve()
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):
            raise UsageError(f"{field} in {FILE_NAME} names {name!r}, outside the project.", "Name a file inside it.")
        return self.folder / name

    def _schema(self, field: str, given: dict[str, Any] | str | None) -> Any:  # noqa: ANN401 - any JSON value
        if not isinstance(given, str):
            return given
        path = self.inside(field, given)
        try:
            return read(read_file(path, bytes_max=limits.MIB))
        except JsonError as error:
            raise UsageError(f"{path} ({field}): the file {error}.", "Write a JSON Schema in it.") from error

    def _example(self, number: int, example: ExampleTable) -> dict[str, Any]:
        field = f"contract.examples.{number}"
        body: dict[str, Any] = {"name": example.name}
        for kind in ("input", "output"):
            if kind in example.model_fields_set:
                body[kind] = getattr(example, kind)
            elif (encoded := getattr(example, f"{kind}_base64")) is not None:
                body[f"{kind}_base64"] = _base64(f"{field}.{kind}_base64", encoded)
            elif name := getattr(example, f"{kind}_file"):
                field_name = f"{field}.{kind}_file"
                body |= as_text_or_base64(kind, read_file(self.inside(field_name, name), bytes_max=limits.MIB))
        if example.output_schema is not None:
            body["output_schema"] = self._schema(f"{field}.output_schema", example.output_schema)
        for name in ("exit_code", "fuel_max"):
            if (value := getattr(example, name)) is not None:
                body[name] = value
        return body


def _with_agent(text: str, profile: str, agent_id: str) -> str:
    """The text of a project's file with an agent's id in its table `[agents]`."""
    line = f'{profile} = "{agent_id}"'
    lines = text.splitlines()
    header = next((number for number, found in enumerate(lines) if _AGENTS.fullmatch(found)), None)
    if header is None:
        return "\n".join([*lines, "", "[agents] # the agent's id on each platform, by profile", line]) + "\n"
    key = re.compile(rf"\s*(?:{re.escape(profile)}|\"{re.escape(profile)}\")\s*=")
    for number in range(header + 1, len(lines)):
        if key.match(lines[number]):
            lines[number] = line
            break
        if lines[number].lstrip().startswith("["):
            lines.insert(header + 1, line)
            break
    else:
        lines.insert(header + 1, line)
    return "\n".join(lines) + "\n"


def as_text_or_base64(name: str, content: bytes) -> dict[str, str]:
    """Bytes as the API takes them: as the text of `name` if they are UTF-8, else as `name_base64`."""
    try:
        return {name: content.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(content).decode()}


def _base64(field: str, text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(
            f"{field} in {FILE_NAME} is not base64: {error}.", "Encode the bytes with `base64`."
        ) from error
    return text


def _decimal(text: str) -> Decimal:
    number = Decimal(text)
    if not number.is_finite():
        msg = f"the number {text} is not finite"
        raise ValueError(msg)
    return number


_TARIFF: Final[TypeAdapter[Any]] = TypeAdapter(Tariff)


def parse_tariff(source: str) -> str:
    """The canonical JSON of a tariff that `source` spells or that is in the file `source`. Raises UsageError."""
    inline = source.lstrip().startswith("{")
    where = "--tariff" if inline else source
    try:
        text = source.encode() if inline else read_file(Path(source), bytes_max=limits.MIB)
        return tariff_json(_TARIFF.validate_python(read(text)))
    except JsonError as error:
        raise UsageError(f"{where}: the tariff {error}.", _TARIFF_MEND) from error
    except ValidationError as error:
        raise UsageError(f"{where}: {faults(error)}.", _TARIFF_MEND) from error


_TARIFF_MEND: Final = """A tariff is JSON such as {"type": "flat", "price": "0.01"}."""


def faults(error: ValidationError) -> str:
    """The faults of a value, each with its place, in one line."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    named = [f"{'.'.join(map(str, fault['loc'])) or 'it'} {_sentence(fault['msg'])}" for fault in found[:5]]
    more = [f"and {len(found) - 5} more faults"] if len(found) > 5 else []
    return "; ".join(named + more)


def _sentence(message: str) -> str:
    text = message.removeprefix("Value error, ").rstrip(".")
    return text if text.startswith("must") else f"is not valid: {text[:1].lower()}{text[1:]}"
