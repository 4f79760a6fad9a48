"""The ASGI application of the server: every part's routes around the shared state."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from meditron.core.errors import MeditronError
from meditron.serve import api, log_routes, pages, prompt_routes
from meditron.serve.errors import error_response
from meditron.serve.state import ServeState

__all__ = ["build_app"]

# Each part of the server is a module with a list `routes`.
_PARTS = (pages, api, prompt_routes, log_routes)


def build_app(state: ServeState) -> Starlette:
    """Return the application of a server."""
    app = Starlette(
        routes=[route for part in _PARTS for route in part.routes],
        exception_handlers={MeditronError: _answer_error},
    )
    app.state.serve = state
    # What the chat page offers as system prompts.
    app.state.prompts = state.records.prompts if state.records else None
    return app


async def _answer_error(_: Request, error: Exception) -> Response:
    return error_response(error)
