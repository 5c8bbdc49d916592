"""The rights that `template.yaml` grants to each function, compared with the AWS calls that the functions made.

The local cloud enforces the template too, but is lenient in places. So this module evaluates the template independently
and checks the calls that the local cloud recorded (`launch.py`). A new function needs no change here.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

Template = dict[str, Any]

FUNCTION = "AWS::Serverless::Function"
SOURCE = "AWS::Lambda::EventSourceMapping"
_ARNS = {
    "AWS::DynamoDB::Table": "arn:{AWS::Partition}:dynamodb:{AWS::Region}:{AWS::AccountId}:table/{id}",
    "AWS::Events::EventBus": "arn:{AWS::Partition}:events:{AWS::Region}:{AWS::AccountId}:event-bus/{id}",
    "AWS::KMS::Key": "arn:{AWS::Partition}:kms:{AWS::Region}:{AWS::AccountId}:key/{id}",
    "AWS::S3::Bucket": "arn:{AWS::Partition}:s3:::{id}",
    "AWS::SQS::Queue": "arn:{AWS::Partition}:sqs:{AWS::Region}:{AWS::AccountId}:{id}",
    "AWS::StepFunctions::StateMachine": "arn:{AWS::Partition}:states:{AWS::Region}:{AWS::AccountId}:stateMachine:{id}",
    "AWS::Serverless::StateMachine": "arn:{AWS::Partition}:states:{AWS::Region}:{AWS::AccountId}:stateMachine:{id}",
    FUNCTION: "arn:{AWS::Partition}:lambda:{AWS::Region}:{AWS::AccountId}:function:{id}",
}
# The actions that Lambda itself performs with a function's role, to read the function's event sources.
_EVENT_SOURCE_ACTIONS = {
    *("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ChangeMessageVisibility"),
    *("dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator", "dynamodb:ListStreams"),
}


_NONE = {"Ref": "AWS::NoValue"}


class Call(NamedTuple):
    """One AWS call of a function, and whether the local cloud allowed it."""

    function: str
    action: str
    resource: str
    allowed: bool


@dataclass(frozen=True, order=True)
class Right:
    """One action on one resource that a function's role allows: `resource` is a pattern, `written` its template source.

    Conditions are not evaluated here: the local cloud enforces them, and other tests cover them.
    """

    function: str
    action: str
    written: str
    resource: str

    def covers(self, call: Call) -> bool:
        """Whether this right allows the call."""
        return (self.function, self.action) == (call.function, call.action) and _matches(self.resource, call.resource)


DENIED_ON_PURPOSE: set[str] = set()
"""Prefixes of resources that a test denies to every function for a while."""


def violations(rights: Iterable[Right], calls: Iterable[Call]) -> list[Call]:
    """Calls that no role in the template allows, and calls that the cloud denied although no test arranged it."""
    held = list(rights)
    return [
        call
        for call in calls
        if not (call.allowed or call.resource.startswith(tuple(DENIED_ON_PURPOSE)))
        or not any(right.covers(call) for right in held)
    ]


def unused_rights(rights: Iterable[Right], calls: Iterable[Call]) -> list[Right]:
    """Rights that no call used."""
    made = list(calls)
    return sorted(right for right in rights if not any(right.covers(call) for call in made))


def read_calls(path: Path, functions: Mapping[str, str]) -> list[Call]:
    """The calls of the functions, as the local cloud recorded them; `functions` maps logical names to physical ones.

    A function's role session has the function's name. Sessions of other callers, such as tests, are left out.
    """
    names = {physical[:64]: logical for logical, physical in functions.items()}
    recorded = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    sessions = [(call["caller"].rpartition("/")[2], call) for call in recorded]
    return [
        Call(names[session], call["action"], call["resource"], call["allowed"])
        for session, call in sessions
        if session in names
    ]


def statements(template: Template) -> Iterator[tuple[str, dict[str, Any]]]:
    """All policy statements of all functions' roles, each with the function's logical name."""
    for name, function in template["Resources"].items():
        if function["Type"] == FUNCTION:
            for policy in function["Properties"].get("Policies", []):
                if not isinstance(policy, dict) or "Statement" not in policy:
                    msg = f"{name}: write its rights as policy statements, not as a named policy: {policy}"
                    raise ValueError(msg)
                for statement in policy["Statement"]:
                    yield name, statement


@dataclass(frozen=True)
class Deployed:
    """A deployed template: the values of its parameters, and the physical ids of its resources."""

    template: Template
    parameters: Mapping[str, str]
    ids: Mapping[str, str]

    @property
    def functions(self) -> dict[str, str]:
        """The physical name of each function, by logical name."""
        return {name: self.ids[name] for name, kind in self._kinds() if kind == FUNCTION and name in self.ids}

    def rights(self) -> list[Right]:
        """All rights that the functions' roles grant."""
        found = []
        for function, statement in statements(self.template):
            if statement["Effect"] != "Allow" or not {"Action", "Resource"} <= statement.keys():
                msg = f"{function}: tests/roles.py does not support this statement: {statement}"
                raise ValueError(msg)
            for written in _list(statement["Resource"]):
                chosen = self._chosen(written)
                found += [
                    Right(function, action, _source(chosen), pattern)
                    for action in _list(statement["Action"])
                    for pattern in _list(self.value(chosen))
                ]
        return found

    def used_by_lambda(self, right: Right) -> bool:
        """Whether Lambda itself needs this right, to read an event source or to send failures to their destination.

        The local cloud does both without the role, so no such call is recorded.
        """
        for resource in self.template["Resources"].values():
            source = resource.get("Properties", {})
            if resource["Type"] != SOURCE or source["FunctionName"]["Ref"].partition(".")[0] != right.function:
                continue
            if right.action in _EVENT_SOURCE_ACTIONS and right.resource in (self.value(source["EventSourceArn"]), "*"):
                return True
            aside = source.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination")
            if aside and (right.action, right.resource) == ("sqs:SendMessage", self.value(aside)):
                return True
        return False

    def value(self, written: Any) -> Any:
        """What CloudFormation resolves a value of the template to."""
        if isinstance(written, list):
            return [self.value(part) for part in written]
        if not isinstance(written, dict):
            return written
        ((function, argument),) = written.items()
        read = {
            "Ref": self._named,
            "Fn::GetAtt": lambda name: self._named(name if isinstance(name, str) else ".".join(name)),
            "Fn::Sub": lambda text: re.sub(r"\$\{([^}]+)\}", lambda found: self._named(found[1]), text),
            "Fn::Split": lambda both: self.value(both[1]).split(both[0]),
            "Fn::Join": lambda both: both[0].join(
                self.value([part for part in map(self._chosen, both[1]) if part != _NONE])
            ),
            "Fn::If": lambda _: self.value(self._chosen(written)),
        }
        if function not in read:
            msg = f"tests/roles.py does not support {function}: {written}"
            raise ValueError(msg)
        return read[function](argument)

    def _named(self, name: str) -> str:
        """A parameter's value, a resource's id (`Name`) or one of its attributes (`Name.Arn`)."""
        if name in self.parameters:
            return self.parameters[name]
        resource, _, attribute = name.partition(".")
        return self._attribute(resource, attribute) if attribute else self.ids[name]

    def _attribute(self, name: str, attribute: str) -> str:
        kind, found = dict(self._kinds())[name], self.ids[name]
        if (kind, attribute) == (FUNCTION, "Alias"):
            shared = self.template.get("Globals", {}).get("Function", {})
            properties = {**shared, **self.template["Resources"][name]["Properties"]}
            return self.ids[f"{name}Alias{properties['AutoPublishAlias']}"]
        if (kind, attribute) == ("AWS::DynamoDB::Table", "StreamArn"):
            return f"{self._attribute(name, 'Arn')}/stream/*"
        if attribute != "Arn" or kind not in _ARNS:
            msg = f"tests/roles.py does not support {kind}.{attribute}: add it there"
            raise ValueError(msg)
        # The id of a queue is its URL, and the id of a state machine is its ARN.
        return found if found.startswith("arn:") else self._arn(_ARNS[kind], found.rpartition("/")[2])

    def _arn(self, form: str, resource_id: str) -> str:
        return re.sub(r"\{([^}]+)\}", lambda found: {"id": resource_id, **self.parameters}[found[1]], form)

    def _chosen(self, written: Any) -> Any:
        if not isinstance(written, dict) or "Fn::If" not in written:
            return written
        condition, then, otherwise = written["Fn::If"]
        return self._chosen(then if self._holds(self.template["Conditions"][condition]) else otherwise)

    def _holds(self, condition: Mapping[str, Any]) -> bool:
        ((function, argument),) = condition.items()
        if function == "Fn::Equals":
            one, other = argument
            return str(self.value(one)) == str(self.value(other))
        if function == "Fn::Not":
            return not self._holds(argument[0])
        if function == "Condition":
            return self._holds(self.template["Conditions"][argument])
        if function in ("Fn::And", "Fn::Or"):
            return (all if function == "Fn::And" else any)(self._holds(part) for part in argument)
        msg = f"tests/roles.py does not support {function}: {condition}"
        raise ValueError(msg)

    def _kinds(self) -> Iterator[tuple[str, str]]:
        return ((name, resource["Type"]) for name, resource in self.template["Resources"].items())


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _source(written: Any) -> str:
    """A resource as the template writes it: `LedgerTable.Arn`, `${LogBucket.Arn}/*`."""
    if isinstance(written, dict):
        ((function, argument),) = written.items()
        if function == "Fn::GetAtt":
            return argument if isinstance(argument, str) else ".".join(argument)
        if function in ("Ref", "Fn::Sub") and isinstance(argument, str):
            return argument
        return json.dumps(written)
    return str(written)


def _matches(pattern: str, value: str) -> bool:
    """Match a value against IAM's wildcards: `*` for any characters, `?` for one character."""
    parts = (".*" if part == "*" else "." if part == "?" else re.escape(part) for part in re.split(r"([*?])", pattern))
    return re.fullmatch("".join(parts), value, re.DOTALL) is not None
