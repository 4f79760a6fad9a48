"""The ASGI application of the server: every part's routes around the shared state."""

from starlette.applications import Starlette

from meditron.serve import api, pages
from meditron.serve.review import routes as review
from meditron.serve.state import ServeState

__all__ = ["build_app"]

# Each part of the server is a module with a list `routes`.
_PARTS = (pages, api, review)


def build_app(state: ServeState) -> Starlette:
    """Return the application of a server."""
    app = Starlette(routes=[route for part in _PARTS for route in part.routes])
    app.state.serve = state
    return app
