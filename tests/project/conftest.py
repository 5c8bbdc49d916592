"""Fixtures: a platform in one thread over simulated AWS services, for every test of this folder."""

from tests.fixtures import aws, cloud, context, platform, sandbox, template

__all__ = ["aws", "cloud", "context", "platform", "sandbox", "template"]
