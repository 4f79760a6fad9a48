"""Upload of a folder to a model repository of the hub, in one commit with only the changed files.

Large files are uploaded first, one after the other; the hub keeps each that is complete, so that an
interrupted push continues with the others. The commit that makes them visible is the last step.
"""

import hashlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from meditron.core.console import info, is_quiet, warn
from meditron.core.errors import FetchError, InputError, SourceError, UsageError
from meditron.core.units import format_bytes, format_count
from meditron.store.files import atomic_write
from meditron.store.hub.client import (
    LOGIN_HINT,
    HubClient,
    HubFile,
    ModelListing,
    git_blob_id,
    hub_errors,
    retry_hub,
)
from meditron.store.hub.upload_files import (
    CARD,
    SUMS,
    FolderFiles,
    LocalFile,
    check_sums,
    read_card,
    scan_folder,
    sums_text,
)

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

__all__ = ["PlannedFile", "Push", "PushResult", "plan_push"]

_UPLOAD_THREADS = 4


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of the folder, compared with the repository."""

    file: LocalFile
    sha256: str
    state: Literal["new", "changed", "unchanged"]


@dataclass(frozen=True, slots=True)
class PushResult:
    """A finished push."""

    url: str
    commit: str
    uploaded: int
    """Number of new and changed files."""


class Push:
    """A planned upload: nothing has been changed on the hub yet."""

    def __init__(
        self,
        client: HubClient,
        repository: str,
        folder: FolderFiles,
        files: Sequence[PlannedFile],
        remote: ModelListing | None,
        sums: str,
    ) -> None:
        self.repository, self.files, self.remote = repository, tuple(files), remote
        self.excluded = folder.excluded
        self._client, self._sums = client, sums

    @property
    def changed(self) -> list[PlannedFile]:
        """The files to upload."""
        return [file for file in self.files if file.state != "unchanged"]

    def upload(self, *, public: bool, message: str) -> PushResult:
        """Upload the changed files in one commit, and compare the result with the folder.

        `SHA256SUMS` is written into the folder, and the repository is created if there is none.

        Args:
            public: Create a public repository, or allow that an existing one is public.
            message: Message of the commit.

        Raises:
            UsageError: no access token; the repository is public, and `public` is false.
            FetchError: the hub cannot be reached, or refuses the upload.
        """
        shown, api = f"hf:{self.repository}", self._client.api
        url = f"{self._client.endpoint}/{self.repository}"
        if not self._client.headers:
            raise UsageError(f"{shown}: uploading needs an access token", hint=LOGIN_HINT)
        if self.remote is not None and not self.remote.private and not public:
            raise UsageError(
                f"{shown}: the repository is public", hint="add --public to publish the files there"
            )
        if self.remote is not None and self.remote.private and public:
            warn(f"{shown}: the repository is private and stays so; its settings on the hub change that")
        for planned in self.changed:
            if planned.file.name == SUMS:
                with atomic_write(planned.file.path, "w") as file:
                    file.write(self._sums)
        with hub_errors(shown, "model"), _quiet_library():
            if self.remote is None:
                retry_hub(shown, lambda: api.create_repo(self.repository, private=not public, exist_ok=True))
            if not self.changed and self.remote is not None:
                return PushResult(url, self.remote.commit, 0)
            self._upload_and_commit(shown, message)
        listing = self._client.list_model(self.repository)
        self._require_uploaded(shown, listing)
        return PushResult(url, listing.commit, len(self.changed))

    def _upload_and_commit(self, shown: str, message: str) -> None:
        from huggingface_hub import CommitOperationAdd

        api, parent = self._client.api, self.remote.commit if self.remote else None
        operations: list[CommitOperationAdd] = []
        for planned in self.changed:
            file = planned.file
            info(f"upload {file.name} ({format_bytes(file.bytes)})")
            operation = CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file.path)
            self._preupload(operation)
            operations.append(operation)
        retry_hub(
            shown,
            lambda: api.create_commit(
                self.repository, operations, commit_message=message, parent_commit=parent
            ),
        )

    def _preupload(self, operation: "CommitOperationAdd") -> None:
        """Upload a file that goes to large file storage; a small one is part of the commit itself."""
        try:  # the library repeats the requests itself
            self._client.api.preupload_lfs_files(
                self.repository, [operation], num_threads=_UPLOAD_THREADS, free_memory=False
            )
        except RuntimeError as error:  # in which the library wraps the HTTP error
            if isinstance(error.__cause__, Exception):
                raise error.__cause__ from error
            raise

    def _require_uploaded(self, shown: str, listing: ModelListing) -> None:
        """Raise FetchError if the hub lists other content than the folder's, or ignored a file."""
        listed = {file.name: file for file in listing.files}
        wrong = [
            planned.file.name
            for planned in self.files
            if _state(planned.file, planned.sha256, listed) != "unchanged"
        ]
        if wrong:
            raise FetchError(
                f"{shown}: {format_count(len(wrong), 'files')} are not in the commit: {', '.join(wrong[:5])}",
                hint="the repository's .gitignore may exclude them; else run the same command again",
            )


def plan_push(folder: Path, repository: str) -> Push:
    """Check a folder and compare it with the repository; nothing is written, here or on the hub.

    The card is validated by the hub, and the files are compared with the folder's `SHA256SUMS`.

    Args:
        folder: The folder.
        repository: `org/name`, also with `hf:` before it.

    Raises:
        UsageError: a file is above the hub's limit, or the repository's name is not valid.
        InputError: the card is not valid, a file contains a secret, or a sum differs.
        FetchError: the hub cannot be reached.
    """
    name = repository.removeprefix("hf:")
    if name.count("/") != 1:
        raise UsageError(f"{repository}: not the name of a repository", hint="the form is org/name")
    scanned = scan_folder(folder)
    card = read_card(folder / CARD)
    client = HubClient()
    remote = _remote_listing(client, name)
    _validate_card(client, folder / CARD, card)
    digests = check_sums(folder, scanned.files)
    listed = {file.name: file for file in remote.files} if remote else {}
    planned = [
        PlannedFile(file, digests[file.name], _state(file, digests[file.name], listed))
        for file in scanned.files
        if file.name != SUMS
    ]
    sums = sums_text({file.file.name: file.sha256 for file in planned})
    planned.append(_planned_sums(folder, sums, digests, listed))
    planned.sort(key=lambda file: file.file.name)
    return Push(client, name, scanned, planned, remote, sums)


def _remote_listing(client: HubClient, name: str) -> ModelListing | None:
    """Return the files of the repository; None if there is none that the user may see."""
    try:
        return client.list_model(name)
    except SourceError:
        return None


def _planned_sums(
    folder: Path, text: str, digests: Mapping[str, str], listed: Mapping[str, HubFile]
) -> PlannedFile:
    """Return the entry of `SHA256SUMS`, which may have to be written first."""
    content = text.encode()
    file, digest = LocalFile(SUMS, folder / SUMS, len(content)), hashlib.sha256(content).hexdigest()
    if digests.get(SUMS) == digest:
        return PlannedFile(file, digest, _state(file, digest, listed))
    return PlannedFile(file, digest, "changed" if SUMS in listed else "new")


def _state(
    file: LocalFile, sha256: str, listed: Mapping[str, HubFile]
) -> Literal["new", "changed", "unchanged"]:
    remote = listed.get(file.name)
    if remote is None:
        return "new"
    if remote.bytes != file.bytes:
        return "changed"
    same = remote.sha256 == sha256 if remote.sha256 else remote.git_id == git_blob_id(file.path)
    return "unchanged" if same else "changed"


def _validate_card(client: HubClient, path: Path, card: str) -> None:
    """Let the hub check the card's metadata; its warnings are printed.

    Raises:
        InputError: the hub rejects the metadata.
    """
    from huggingface_hub.utils._http import get_session, hf_raise_for_status

    def post() -> tuple[int, Any]:
        response = get_session().post(
            f"{client.endpoint}/api/validate-yaml",
            json={"content": card, "repoType": "model"},
            headers=dict(client.headers),
        )
        if response.status_code != 400:  # 400: an answer about the card
            hf_raise_for_status(response)
        return response.status_code, response.json()

    with hub_errors(str(path), "page of the hub"):
        try:
            status, answer = retry_hub(str(path), post)
        except ValueError as error:  # not JSON
            raise FetchError(f"{path}: the hub's answer about the card is not JSON") from error
    messages = {
        kind: [str(item.get("message", "")) for item in answer.get(kind) or () if isinstance(item, dict)]
        for kind in ("warnings", "errors")
    }
    for text in messages["warnings"]:
        warn(f"{path}: {' '.join(text.split())}")
    if status == 400 or messages["errors"]:
        problem = "; ".join(" ".join(text.split()) for text in messages["errors"]) or "not accepted"
        raise InputError(path, f"the hub rejects the metadata: {problem}", place="front matter")


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Show the library's progress bars on a terminal only, and none of its Python warnings."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    hide = not are_progress_bars_disabled() and (is_quiet() or not sys.stderr or not sys.stderr.isatty())
    if hide:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repeat what `_validate_card` printed
            yield
    finally:
        if hide:
            enable_progress_bars()
