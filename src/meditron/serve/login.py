"""The page on which a browser gives its key, and receives a session instead."""

import json

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from meditron.serve.access import Access
from meditron.serve.guard import session_cookie
from meditron.serve.pages import render_page, state_of

__all__ = ["routes"]

_MAX_KEY = 1024  # characters


async def show_login(request: Request) -> Response:
    """Return the page."""
    person = request.scope["state"].get("person")
    return render_page(
        request,
        "login.html",
        title="Log in",
        person_name=person.name if person else "",
        need_keys=_access(request).people.need_keys,
        next_page=_local_path(request.query_params.get("next", "/")),
    )


async def log_in(request: Request) -> Response:
    """Open a session for a key."""
    try:
        given = json.loads(await request.body())
        key, next_page = given["key"], _local_path(given.get("next", "/"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HTTPException(400, 'expected {"key": "…", "next": "/…"}') from error
    if not isinstance(key, str) or len(key) > _MAX_KEY:
        raise HTTPException(400, f"a key has at most {_MAX_KEY:,} characters")
    access = _access(request)
    if not access.people.need_keys:
        return JSONResponse({"next": next_page})
    address = request.client.host if request.client else "unknown"
    try:
        person = access.check_key(key.strip(), address)
    except HTTPException:
        _audit(request, "login refused", address=address)
        raise
    _audit(request, "login", person=person.name, address=address)
    response = JSONResponse({"next": next_page})
    response.set_cookie(
        session_cookie(request.scope),
        access.open_session(person),
        httponly=True,
        samesite="strict",
        # Behind a proxy with TLS only the browser knows the scheme; it names it in the origin.
        secure="https" in (request.url.scheme, request.headers.get("origin", "").partition(":")[0]),
    )
    return response


async def log_out(request: Request) -> Response:
    """End the session of the browser."""
    name = session_cookie(request.scope)
    _access(request).close_session(request.cookies.get(name, ""))
    response = JSONResponse({"next": "/login"})
    response.delete_cookie(name, httponly=True, samesite="strict")
    return response


def _audit(request: Request, event: str, **fields: str) -> None:
    records = state_of(request).records
    if records is not None:
        records.audit_event(event, **fields)


def _access(request: Request) -> Access:
    access = request.scope["state"]["access"]
    assert isinstance(access, Access)  # noqa: S101  # set by the guard
    return access


def _local_path(path: object) -> str:
    """Return a path of this server; `/` for the address of another one."""
    is_local = isinstance(path, str) and path.isprintable() and path[:1] == "/"
    return path if isinstance(path, str) and is_local and path[1:2] not in ("/", "\\") else "/"


routes: list[BaseRoute] = [
    Route("/login", show_login),
    Route("/login", log_in, methods=["POST"]),
    Route("/logout", log_out, methods=["POST"]),
]
