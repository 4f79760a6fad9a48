"""Requests to the Hugging Face hub through its own library, with one-line errors and retries.

`$HF_ENDPOINT` is the address of the hub and `$HF_TOKEN` the access token, as for the library itself. The
token is sent to the hub only, never to the server that a redirect leads to, and is never printed.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from meditron.core.console import info
from meditron.core.errors import DigestError, FetchError, InputError, MissingExtra, SourceError, UsageError
from meditron.store.files import require_digest, sha256_file, translate_read_errors
from meditron.store.retries import RetryableError, next_pause, retry_after

__all__ = ["HubClient", "HubFile", "ModelListing", "git_blob_id", "hub_errors", "retry_hub"]

Result = TypeVar("Result")

_PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds between attempts of a request
_TEMPORARY_FAILURES = {408, 425, 429, 500, 502, 503, 504}
_TOKEN = re.compile(r"\bhf_\w+")
_LONGEST_ANSWER = 200  # characters of the hub's own explanation that an error repeats
LOGIN_HINT = "set HF_TOKEN to an access token of an account that may read it, or run `hf auth login`"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository, as the hub lists it."""

    name: str
    """Path in the repository, with `/`."""
    bytes: int
    sha256: str | None = None
    """SHA-256 of a file in large file storage; None for a file in Git itself."""
    git_id: str | None = None
    """Git's id of the content of a file in Git itself."""

    def require_content(self, path: Path, shown: str) -> None:
        """Raise InputError or DigestError if the file at `path` differs from the one listed."""
        with translate_read_errors(path):
            size = path.stat().st_size
        if size != self.bytes:
            raise InputError(shown, f"has {size:,} bytes; the hub lists {self.bytes:,}")
        if self.sha256:
            require_digest(shown, sha256_file(path), self.sha256)
        elif self.git_id and (digest := git_blob_id(path)) != self.git_id:
            raise DigestError(shown, f"the Git id is {digest}, expected {self.git_id}")


@dataclass(frozen=True, slots=True)
class ModelListing:
    """The files of one revision of a model repository."""

    repository: str
    """`org/name`."""
    commit: str
    gated: bool
    """True if the hub sends the files only to accounts that accepted the terms."""
    private: bool
    files: tuple[HubFile, ...]


class HubClient:
    """Access to one hub with the user's token.

    Raises:
        MissingExtra: huggingface_hub is not installed.
    """

    def __init__(self) -> None:
        try:
            from huggingface_hub import HfApi
            from huggingface_hub.utils._headers import build_hf_headers
        except ImportError as error:
            raise MissingExtra("huggingface_hub", "release") from error
        # The library reads HF_ENDPOINT when it is imported; a later change must count too.
        self.api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        self.headers: Mapping[str, str] = {
            name: value for name, value in build_hf_headers().items() if name == "authorization"
        }
        """Headers of a request for a file: the authorization, if there is a token."""

    @property
    def endpoint(self) -> str:
        """Address of the hub."""
        return str(self.api.endpoint)

    def list_model(self, repository: str, revision: str | None = None) -> ModelListing:
        """Return the commit and the files of a model's revision.

        Args:
            repository: `org/name`.
            revision: Branch, tag or commit; the main branch by default.

        Raises:
            SourceError: there is no such repository or revision.
            FetchError: the hub cannot be reached, or refuses the request.
        """
        shown = f"hf:{repository}" + (f"@{revision}" if revision else "")
        with hub_errors(shown, "model"):
            model = retry_hub(
                shown, lambda: self.api.model_info(repository, revision=revision, files_metadata=True)
            )
        files = [
            HubFile(
                file.rfilename,
                file.size or 0,
                file.lfs.sha256 if file.lfs else None,
                None if file.lfs else file.blob_id,
            )
            for file in model.siblings or ()
        ]
        files.sort(key=lambda file: file.name)
        commit = str(model.sha)
        return ModelListing(repository, commit, bool(model.gated), bool(model.private), tuple(files))

    def address(self, listing: ModelListing, name: str) -> str:
        """Return the address of a file."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(listing.repository, name, revision=listing.commit, endpoint=self.endpoint)

    def access_hint(self, listing: ModelListing) -> str:
        """Return what to do if the hub refuses a file of a repository that it lists."""
        if listing.gated:
            terms = f"{self.endpoint}/{listing.repository}"
            return f"the model is gated: accept its terms at {terms}, then {LOGIN_HINT}"
        return LOGIN_HINT


def git_blob_id(path: Path) -> str:
    """Return the id that Git gives a file's content."""
    with translate_read_errors(path), path.open("rb") as file:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def retry_hub(shown: str, request: Callable[[], Result]) -> Result:
    """Make a request to the hub; repeat it after a lost connection or a temporary failure of the hub.

    The pause is at least the one that the hub asks for (`Retry-After`). The error of the last attempt is
    raised unchanged.
    """
    from httpx import TransportError
    from huggingface_hub.errors import HfHubHTTPError

    pauses = list(_PAUSES)
    while True:
        try:
            return request()
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in _TEMPORARY_FAILURES or not pauses:
                raise
            pause = retry_after(error.response.headers.get("Retry-After", ""))
            failure = RetryableError(f"the hub answered {status}", pause)
        except TransportError as error:
            if not pauses:
                raise
            failure = RetryableError(f"cannot reach the hub ({type(error).__name__})")
        wait = next_pause(pauses, failure)
        info(f"{shown}: {failure}; retrying in {wait:g} s")
        time.sleep(wait)


@contextmanager
def hub_errors(shown: str, noun: str) -> Iterator[None]:
    """Convert the errors of huggingface_hub into one-line errors without the token.

    Args:
        shown: Name of the source or the repository in the message.
        noun: What it is: `model`, `dataset`.
    """
    from httpx import HTTPError
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        message = f"{shown}: the {noun} is gated"
        raise FetchError(message, hint=f"accept its terms on its page, then {LOGIN_HINT}") from error
    except errors.RepositoryNotFoundError as error:
        hint = f"check the name; for a private or gated {noun} {LOGIN_HINT}"
        raise SourceError(f"{shown}: no such {noun} on the hub", hint=hint) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"{shown}: no such revision") from error
    except errors.OfflineModeIsEnabled as error:
        hint = "unset HF_HUB_OFFLINE, or use a machine with network access"
        raise FetchError(f"{shown}: the hub's library is offline", hint=hint) from error
    except errors.LocalTokenNotFoundError as error:
        raise UsageError(f"{shown}: no access token", hint=LOGIN_HINT) from error
    except errors.HFValidationError as error:
        raise UsageError(f"{shown}: {_public_text(str(error))}", hint="the form is org/name") from error
    except errors.HfHubHTTPError as error:
        raise _status_error(shown, noun, error) from error
    except (HTTPError, OSError) as error:
        # The library reports a hub without Xet storage, such as a mirror, as a lost connection.
        xet_hint = "for a hub without Xet storage set HF_HUB_DISABLE_XET=1" if "xet" in str(error) else None
        raise FetchError(
            f"{shown}: cannot reach the hub ({_public_text(str(error))})", hint=xet_hint
        ) from error


def _status_error(shown: str, noun: str, error: "Exception") -> FetchError | SourceError:
    from huggingface_hub.errors import HfHubHTTPError

    assert isinstance(error, HfHubHTTPError)  # noqa: S101  # for the type checker
    status, explanation = error.response.status_code, _public_text(error.server_message or "")
    if status == 404:
        return SourceError(
            f"{shown}: no such {noun} or revision on the hub", hint="check the name and the revision"
        )
    message = f"{shown}: the hub answered {status}" + (f" ({explanation})" if explanation else "")
    hint = {
        401: LOGIN_HINT,
        403: "the token lacks the permission, or the account's storage is full; see the hub's explanation",
        429: "the hub limits requests per account; wait some minutes, or set HF_TOKEN for a higher limit",
    }.get(status, "the hub has a problem; try again later" if status >= 500 else None)
    return FetchError(message, hint=hint)


def _public_text(text: str) -> str:
    """Return a text of the hub or its library on one line, shortened, without access tokens."""
    return _TOKEN.sub("hf_…", " ".join(text.split()))[:_LONGEST_ANSWER]
