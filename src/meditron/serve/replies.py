"""Responses to failed requests: JSON in OpenAI's shape, or a page for a browser."""

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ExceptionHandler, Scope

from meditron.core.errors import MeditronError
from meditron.serve.errors import RequestError, error_body, error_response
from meditron.serve.pages import render_page

__all__ = ["EXCEPTION_HANDLERS", "error_reply", "wants_page"]

_CODES = {401: "invalid_api_key", 413: "request_too_large", 429: "rate_limit_exceeded"}
_API_PATHS = frozenset({"/v1", "/metrics", "/health", "/ready", "/openapi.json"})


def wants_page(scope: Scope) -> bool:
    """Return whether a browser navigates, so that the answer is a page instead of JSON."""
    accepted = b",".join(value for name, value in scope["headers"] if name == b"accept")
    is_api = scope["path"].startswith(("/v1/", "/static/")) or scope["path"] in _API_PATHS
    return scope["method"] in ("GET", "HEAD") and b"text/html" in accepted and not is_api


async def error_reply(request: Request, error: Exception) -> Response:
    """Return the response to a request that failed. Texts of unexpected exceptions are not part of it."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        code = _CODES.get(error.status_code)
        error = RequestError(error.detail, status=error.status_code, code=code)
    if wants_page(request.scope):
        status, body = error_body(error)
        response: Response = render_page(
            request,
            "error.html",
            title=HTTPStatus(status).phrase,
            status=status,
            message=body["error"]["message"],
        )
    else:
        response = error_response(error)
    response.headers.update(headers)
    return response


EXCEPTION_HANDLERS: dict[type[Exception], ExceptionHandler] = {
    HTTPException: error_reply,
    MeditronError: error_reply,
}
"""For Starlette's `exception_handlers`. The guard answers all other exceptions."""
