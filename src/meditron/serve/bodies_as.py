"""Bodies of requests as settings classes."""

import json
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TypeVar

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from meditron.core.config import first_problem
from meditron.core.errors import UsageError

__all__ = ["read_body_as", "with_body"]

_T = TypeVar("_T")
_Work = Callable[[Request, _T], Response]


def with_body(kind: Callable[..., _T]) -> Callable[[_Work[_T]], Callable[[Request], Awaitable[Response]]]:
    """Return a decorator that makes a route's function of one of a request and its JSON body.

    The function runs in a thread, so it may read and write files. `kind` is the body's settings class, or
    `dict` for any JSON object; errors are those of `read_body_as`.
    """

    def decorate(work: _Work[_T]) -> Callable[[Request], Awaitable[Response]]:
        @wraps(work)
        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(work, request, await read_body_as(request, kind))

        return endpoint

    return decorate


async def read_body_as(request: Request, kind: Callable[..., _T]) -> _T:
    """Return the JSON body of a request.

    Raises:
        UsageError: it is not JSON, or has other fields.
    """
    try:
        fields = json.loads(await request.body())
        if not isinstance(fields, dict):
            raise UsageError("the body must be a JSON object")
        return kind(**fields)
    except ValidationError as error:
        place, problem = first_problem(error, root="body")
        raise UsageError(f"{place}: {problem.removeprefix('Value error, ')}") from error
    except (ValueError, RecursionError, TypeError) as error:
        raise UsageError("the body is not JSON") from error
