"""A whole platform in one thread, for every test of this folder."""

from tests.fixtures import aws, cloud, context, platform, sandbox, template

__all__ = ["aws", "cloud", "context", "platform", "sandbox", "template"]
