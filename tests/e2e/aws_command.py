"""The part of the AWS CLI that the documents use: `aws SERVICE OPERATION --name value … --query … [OUTFILE]`.

Names, types and responses come from botocore's service models, as in the real AWS CLI.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import jmespath
from boto3.session import Session
from botocore.model import Shape, StructureShape

_VALUES: Final = {"integer": int, "long": int, "boolean": lambda text: text == "true"}


def main(words: list[str]) -> str:
    """Run the command and return what it prints."""
    service, operation, *rest = words
    outfile = rest.pop() if operation == "invoke" else ""
    client: Any = Session().client(service)  # type: ignore[call-overload]  # any service
    method = operation.replace("-", "_")
    model = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[method])
    given = _given(rest)
    given.pop("cli-binary-format", None)  # blobs are sent as they are
    query, output = (given.pop(name, [default])[0] for name, default in (("query", "@"), ("output", "json")))
    shapes = {_option(name): (name, shape) for name, shape in model.input_shape.members.items()}
    arguments = {shapes[name][0]: _value(shapes[name][1], values) for name, values in given.items()}
    answer = getattr(client, method)(**arguments)
    answer.pop("ResponseMetadata")
    if outfile:
        Path(outfile).write_bytes(answer.pop("Payload").read())
    found = jmespath.search(query, answer)
    if output == "text":
        return "\t".join(map(str, found)) if isinstance(found, list) else str(found)
    return json.dumps(found, default=str)


def _given(words: list[str]) -> dict[str, list[str]]:
    given: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            given[name := word.removeprefix("--")] = []
        else:
            given[name].append(word)
    return given


def _option(name: str) -> str:
    return "".join(f"-{char.lower()}" if char.isupper() else char for char in name).removeprefix("-")


def _value(shape: Shape, words: list[str]) -> Any:
    if shape.type_name == "boolean" and not words:
        return True
    if words[0].startswith("file://"):
        words = [Path(words[0].removeprefix("file://")).read_text()]
    if shape.type_name == "list":
        if words[0].startswith("["):
            return json.loads(words[0])
        return [_short(shape.member, word) if isinstance(shape.member, StructureShape) else word for word in words]  # type: ignore[attr-defined]
    return _VALUES.get(shape.type_name, str)(words[0])


def _short(shape: StructureShape, word: str) -> dict[str, str]:
    """The short form of a structure: `Name=email,Value=alice@example.com`."""
    pairs = dict(part.split("=", 1) for part in word.split(","))
    assert pairs.keys() <= shape.members.keys(), word
    return pairs


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")
