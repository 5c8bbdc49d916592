"""Structured logs and metrics. Never in them: input, output, tokens, keys."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.logging import correlation_paths

logger = Logger(service="quittance")
metrics = Metrics(namespace="Quittance", service="quittance")

Handler = Callable[[Any, Any], Any]


def entry(handler: Handler) -> Handler:
    """A Lambda handler whose logs carry the request's ids, and which writes one line for each answer."""

    @logger.inject_lambda_context(clear_state=True, correlation_id_path=correlation_paths.API_GATEWAY_REST)
    @wraps(handler)
    def handle(event: Any, context: Any) -> Any:  # noqa: ANN401 - Lambda hands over any JSON
        answer = handler(event, context)
        logger.info("answered", status=answer.get("statusCode") if isinstance(answer, dict) else None)
        return answer

    return handle
