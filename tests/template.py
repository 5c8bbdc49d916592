"""`template.yaml` as the tests read it, with CloudFormation's short forms (`!Ref`, `!Sub`, …) expanded."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

PATH = Path(__file__).parents[1] / "template.yaml"


class _Loader(yaml.CSafeLoader):
    """Uses the C parser, because the template is long and every test process reads it."""


def _expand(loader: yaml.CSafeLoader, name: str, node: yaml.Node) -> dict[str, Any]:
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


_Loader.add_multi_constructor("!", _expand)


@cache
def template() -> dict[str, Any]:
    """The whole document. It is shared: copy it before you change it."""
    document: dict[str, Any] = yaml.load(PATH.read_text(encoding="utf-8"), _Loader)
    return document
