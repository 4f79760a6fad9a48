"""The ASGI application of the server: every part's routes around the shared state."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from meditron.serve import api, chat_routes, log_routes, login, pages, prompt_routes
from meditron.serve.guard import Guard
from meditron.serve.replies import EXCEPTION_HANDLERS
from meditron.serve.review import routes as review
from meditron.serve.state import ServeState

__all__ = ["build_app"]

# Each part of the server is a module with a list `routes`.
_PARTS = (pages, login, api, chat_routes, prompt_routes, log_routes, review)


def build_app(state: ServeState, further_routes: Sequence[BaseRoute] = ()) -> Starlette:
    """Return the application of a server, behind its guard."""
    app = Starlette(
        routes=[*(route for part in _PARTS for route in part.routes), *further_routes],
        middleware=[Middleware(Guard, state=state)],
        exception_handlers=EXCEPTION_HANDLERS,
    )
    app.state.serve = state
    # What the chat page offers as system prompts.
    app.state.prompts = state.records.prompts if state.records else None
    return app
