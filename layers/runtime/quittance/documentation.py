"""The API's description and its page. The description is generated from the code and committed (`make openapi`)."""

from importlib.resources import files
from typing import Final

_OPENAPI: Final = "openapi.json"


def openapi_json() -> str:
    """The OpenAPI 3.1 description."""
    return files("quittance").joinpath(_OPENAPI).read_text()


def page() -> str:
    """A page that shows the description with Powertools' copy of Swagger UI; it loads nothing from elsewhere."""
    from aws_lambda_powertools.event_handler.openapi import swagger_ui

    ui = files(swagger_ui)
    return swagger_ui.generate_swagger_html(
        spec=openapi_json(),
        swagger_js=ui.joinpath("swagger-ui-bundle.min.js").read_text(),
        swagger_css=ui.joinpath("swagger-ui.min.css").read_text(),
        swagger_base_url="",
        oauth2_config=None,
    )
