"""Errors of requests, in the form of OpenAI's API."""

import re
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

from meditron.core.console import warn
from meditron.core.errors import EngineError, MeditronError, UsageError, status_of

__all__ = ["CLIENT_CLOSED_REQUEST", "RequestError", "TimeLimitError", "error_body", "error_response"]

CLIENT_CLOSED_REQUEST = 499
"""Status of a request whose client went away before its answer was complete; nobody receives it."""
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_SERVER = 500
_FIELD = re.compile(r"(?!str$|int$)\w+")  # not a type of a union, such as `str` or `list[TextPart]`


class RequestError(UsageError):
    """An invalid request."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status, self.param, self.code = status, param, code

    @classmethod
    def from_validation(cls, error: ValidationError) -> "RequestError":
        """Return a problem of a request's body: of a field with several types, that of the closest one."""
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        problem = max(problems, key=lambda each: len(each["loc"]))
        place = ".".join(str(part) for part in problem["loc"] if _FIELD.fullmatch(str(part))) or None
        text = problem["msg"].removeprefix("Value error, ")
        return cls(f"{place}: {text}" if place else text, param=place)


class TimeLimitError(EngineError):
    """A request that took longer than the server allows."""

    status = 504


def error_body(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the body for an error."""
    status = getattr(error, "status", None) or status_of(error).http_status
    if isinstance(error, MeditronError):
        message = f"{error.message} ({error.hint})" if error.hint else error.message
    else:  # its text may contain paths or content of this process
        warn(f"a request failed: {type(error).__name__}: {error}")
        message = "the server failed; its log has the reason"
    kind = _TYPES.get(status, "invalid_request_error" if status < _SERVER else "server_error")
    fields = {"param": getattr(error, "param", None), "code": getattr(error, "code", None)}
    return status, {"error": {"message": message, "type": kind, **fields}}


def error_response(error: Exception) -> JSONResponse:
    """Return the response for an error. An error may have the attribute `retry_after`, in seconds."""
    status, body = error_body(error)
    seconds = getattr(error, "retry_after", None)
    headers = None if seconds is None else {"Retry-After": str(max(1, round(seconds)))}
    return JSONResponse(body, status, headers)
