"""The ASGI application of the server: every part's routes around the shared state."""

from starlette.applications import Starlette

from meditron.serve import api, chat_routes, pages
from meditron.serve.state import ServeState

__all__ = ["build_app"]

# Each part of the server is a module with a list `routes`.
_PARTS = (pages, api, chat_routes)


def build_app(state: ServeState) -> Starlette:
    """Return the application of a server."""
    app = Starlette(routes=[route for part in _PARTS for route in part.routes])
    app.state.serve = state
    return app
