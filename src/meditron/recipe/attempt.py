"""What a stage's folder says while it is not finished: what it was begun for, and how it failed."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from meditron.core.errors import InputError, MeditronError, StorageError
from meditron.core.redaction import redact
from meditron.store.files import make_folder, read_json, write_json

__all__ = ["BEGUN", "BESIDE", "Attempt", "Begun", "read_begun", "read_failure"]

BEGUN, FAILED = "begun.json", "failed.json"
BESIDE = (BEGUN, FAILED)
"""Files of an unfinished stage; they go when the manifest comes."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What a half-built folder was begun for."""

    payload: dict[str, Any]
    started: str
    """When the first attempt began, ISO 8601."""
    attempts: int
    """How many runs have worked on it."""


def read_begun(folder: Path) -> Begun | None:
    """What the folder was begun for; None where nothing was; InputError where the file is damaged."""
    path = folder / BEGUN
    if not path.is_file():
        return None
    value = read_json(path, strict=True)
    try:
        begun = Begun(**value)
        datetime.fromisoformat(begun.started)
    except (TypeError, ValueError) as error:
        raise InputError(path, f"not the record of a begun stage: {error}") from error
    if not isinstance(begun.payload, dict) or not isinstance(begun.attempts, int):
        raise InputError(path, "not the record of a begun stage")
    return begun


def read_failure(folder: Path) -> str | None:
    """The one line with which the last attempt ended, where it failed."""
    path = folder / FAILED
    if not path.is_file():
        return None
    try:
        value = read_json(path)
    except InputError as error:
        return error.message
    return str(value.get("message")) if isinstance(value, dict) else str(value)


class Attempt:
    """Working on a stage: records what for when it begins, and its failure when it ends in one.

    A kill or an interruption leaves no failure: the stage is half-built, and goes on.
    """

    def __init__(self, folder: Path, payload: dict[str, Any]) -> None:
        self.folder, self._payload = folder, payload
        self.begun: Begun

    def __enter__(self) -> Self:
        make_folder(self.folder)
        earlier = self._earlier()
        started = earlier.started if earlier else datetime.now(UTC).isoformat()
        self.begun = Begun(self._payload, started, earlier.attempts + 1 if earlier else 1)
        write_json(self.folder / BEGUN, asdict(self.begun))
        (self.folder / FAILED).unlink(missing_ok=True)
        return self

    def _earlier(self) -> Begun | None:
        """Return the attempt that this one goes on with, if it was for the same."""
        try:
            begun = read_begun(self.folder)
        except InputError:
            return None
        return begun if begun and begun.payload == self._payload else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            message = (
                error.message
                if isinstance(error, MeditronError)
                else redact(f"{type(error).__name__}: {error}")
            )
            # On a full disk this cannot be written either; what is raised is what counts.
            with suppress(StorageError):
                write_json(self.folder / FAILED, {"message": message, "at": datetime.now(UTC).isoformat()})

    def done(self) -> None:
        """Remove what an unfinished stage has beside its files; called when the manifest is written."""
        for name in BESIDE:
            (self.folder / name).unlink(missing_ok=True)
