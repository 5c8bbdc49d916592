"""Fixtures: a whole platform in one thread."""

from tests.fixtures import aws, cloud, context, platform, sandbox, template

__all__ = ["aws", "cloud", "context", "platform", "sandbox", "template"]
