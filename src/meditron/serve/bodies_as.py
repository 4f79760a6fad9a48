"""Bodies of requests as settings classes."""

import json
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from meditron.core.config import Config, first_problem
from meditron.core.errors import UsageError

__all__ = ["read_body_as"]

_T = TypeVar("_T", bound=Config)


async def read_body_as(request: Request, kind: type[_T]) -> _T:
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
