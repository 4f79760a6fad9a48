"""Which web pages may send requests to the server."""

import re

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from meditron.serve.config import ServeConfig

__all__ = ["OriginRule"]

_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]+(, ?[A-Za-z0-9-]+)*")
_MAX_HEADER_NAMES = 1024  # characters


class OriginRule:
    """Pages of the server itself may do everything; pages of the configured origins may use `/v1` only."""

    def __init__(self, config: ServeConfig) -> None:
        self._allowed = frozenset(origin.lower() for origin in config.origins)

    def check(self, scope: Scope, headers: Headers, host: str) -> str | None:
        """Return the foreign origin that may read the response, or None.

        Browsers add `Origin` and `Sec-Fetch-Site` themselves; other programs need neither.

        Raises:
            HTTPException: 403 if another site's page sends the request.
        """
        values = headers.getlist("origin")
        if len(values) > 1:
            raise HTTPException(400, "more than one Origin header")
        is_api = scope["path"].startswith("/v1/")
        if values and values[0].lower() not in (f"http://{host}", f"https://{host}"):
            if not is_api or values[0].lower() not in self._allowed:
                raise HTTPException(403, "pages of this origin may not use the server")
            return values[0]
        site = headers.get("sec-fetch-site", "none")
        is_navigation = scope["method"] in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        if site in ("cross-site", "same-site") and not is_navigation:
            raise HTTPException(403, "pages of other sites may not use the server")
        return None

    def preflight(self, headers: Headers) -> Response:
        """Return the answer to a browser's question whether an allowed origin may send a request."""
        asked = headers.get("access-control-request-headers", "")
        names = asked if len(asked) <= _MAX_HEADER_NAMES and _HEADER_NAMES.fullmatch(asked) else ""
        return Response(
            status_code=204,
            headers={
                "access-control-allow-methods": "GET, POST, DELETE",
                "access-control-allow-headers": names or "authorization, content-type",
                "access-control-max-age": "600",
            },
        )
