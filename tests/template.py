"""`template.yaml` as the tests read it: CloudFormation's short forms (`!Ref`, `!Sub`, …) written out."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

PATH = Path(__file__).parents[1] / "template.yaml"


class _Loader(yaml.CSafeLoader):
    """Reads in C: the template is long, and each process of tests reads it."""


def _written_out(loader: yaml.CSafeLoader, name: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if name == "GetAtt":
        value = value.split(".", 1)
    return {name if name in {"Ref", "Condition"} else f"Fn::{name}": value}


_Loader.add_multi_constructor("!", _written_out)


@cache
def template() -> dict[str, Any]:
    """The whole document. It is shared: whoever changes it, copies it first."""
    document: dict[str, Any] = yaml.load(PATH.read_text(encoding="utf-8"), _Loader)
    return document
