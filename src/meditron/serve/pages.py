"""Pages of the server: one layout, one stylesheet, no reference to anything outside the server.

Templates escape everything. A page changes data only by requests with a JSON body, which another site's form
cannot send.
"""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from meditron.core.disclaimer import DISCLAIMER
from meditron.serve.state import ServeState
from meditron.store.people import Person
from meditron.version import __version__

__all__ = ["NAVIGATION", "person_of", "render_page", "routes", "state_of"]

NAVIGATION = (("/", "Chat"), ("/prompts", "Prompts"), ("/logs", "Log"), ("/review", "Review"))
"""Address and name of each page that every page links to."""


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("meditron.serve"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def state_of(request: Request) -> ServeState:
    """Return what the parts of the server share."""
    state = request.app.state.serve
    assert isinstance(state, ServeState)  # noqa: S101  # set by `build_app`
    return state


def person_of(request: Request) -> Person:
    """Return who sent a request: the person whose key was checked, or the local user."""
    person = request.scope.get("state", {}).get("person")
    return person if isinstance(person, Person) else state_of(request).people.local


def render_page(
    request: Request, template: str, *, title: str, status: int = 200, **context: object
) -> Response:
    """Return a page.

    Args:
        request: The request that it answers.
        template: File in `templates`, which extends `base.html`.
        title: Name of the page.
        status: HTTP status.
        context: Variables of the template.
    """
    text = (
        _environment()
        .get_template(template)
        .render(
            title=title,
            advisory=DISCLAIMER,
            version=__version__,
            navigation=NAVIGATION,
            here=request.url.path,
            person=person_of(request).name,
            **context,
        )
    )
    return HTMLResponse(text, status)


routes: list[Route | Mount] = [
    Mount("/static", StaticFiles(packages=[("meditron.serve", "static"), ("meditron.report", "static")])),
]
