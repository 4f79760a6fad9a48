"""The client of downloads: trusted certificates, logins in addresses, and redirects that are followed."""

import base64
import http.client
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any

from meditron.core.errors import FetchError, SourceError
from meditron.core.redaction import public_address
from meditron.store.address import normalize_address

__all__ = ["create_opener", "split_login"]

# Environment variables in which OpenSSL, requests, curl and pip look for further trusted certificates.
_CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")


def split_login(url: str) -> tuple[str, str | None]:
    """Return an address without its credentials, and the Authorization header that contains them."""
    parts = urllib.parse.urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    encoded = base64.b64encode(urllib.parse.unquote_to_bytes(login)).decode()
    return parts._replace(netloc=host).geturl(), f"Basic {encoded}"


@cache
def _tls_context(bundles: tuple[str, ...]) -> ssl.SSLContext:
    """Return a TLS context that trusts these certificates; cached, because loading certificates is slow."""
    context = ssl.create_default_context()
    for place in map(Path, bundles):
        if place.is_file():
            context.load_verify_locations(cafile=place)
        elif place.is_dir():
            context.load_verify_locations(capath=place)
    return context


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    """Redirect handler for http and https; refuses https to http, where a response could be forged."""

    def __init__(self, before_request: Callable[[str], None] | None) -> None:
        self._before_request = before_request

    def http_error_302(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
    ) -> Any:  # noqa: ANN401  # the type of the overridden method
        """Follow a redirect; FetchError if its address cannot be parsed."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError as error:  # such as "Invalid IPv6 URL"
            fp.close()
            problem = "redirects to an address that is not valid"
            raise FetchError(f"{public_address(req.full_url)}: {problem}") from error

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the request for the new address; FetchError if the redirect is not allowed."""
        prefix = f"{public_address(req.full_url)}: redirects"
        try:
            target = normalize_address(urllib.parse.urldefrag(newurl).url)
        except SourceError as error:
            fp.close()
            raise FetchError(f"{prefix} to {error.message}") from error
        if req.type == "https" and not target.startswith("https:"):
            fp.close()
            raise FetchError(f"{prefix} from https to {public_address(target)}, which is not followed")
        if self._before_request:
            self._before_request(target)
        return super().redirect_request(req, fp, code, msg, headers, split_login(target)[0])


def create_opener(before_request: Callable[[str], None] | None) -> urllib.request.OpenerDirector:
    """Return an opener for HTTP and HTTPS only: a redirect must not lead to `file:` or `ftp:`."""
    bundles = {os.environ[name] for name in _CERTIFICATE_VARIABLES if os.environ.get(name)}
    context = _tls_context(tuple(sorted(bundles)))
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        _RedirectHandler(before_request),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
