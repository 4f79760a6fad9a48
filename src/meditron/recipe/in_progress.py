"""The two records in an unfinished stage's folder: of its payload, and of the error that ended it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meditron.core.errors import InputError, MeditronError, StorageError
from meditron.core.redaction import redact
from meditron.store.files import make_folder, read_json, write_json

__all__ = [
    "IN_PROGRESS",
    "RECORDS",
    "InProgress",
    "begin_attempt",
    "read_failure",
    "read_in_progress",
    "record_failure",
]

IN_PROGRESS, _FAILED = "in_progress.json", "failed.json"
RECORDS = (IN_PROGRESS, _FAILED)
"""Files that record the state of an unfinished stage; they are removed when its manifest is written."""


@dataclass(frozen=True, slots=True)
class InProgress:
    """Record of the attempts at an unfinished stage."""

    payload: dict[str, Any]
    """Kind, version, config and inputs with which the first attempt began."""
    started: str
    """Time at which the first attempt began, in ISO 8601."""
    attempts: int
    """Number of runs that have worked on the stage."""


def read_in_progress(folder: Path) -> InProgress | None:
    """Read the record of a stage's attempts; None if there is none; InputError if the record is damaged."""
    path = folder / IN_PROGRESS
    if not path.is_file():
        return None
    value = read_json(path, strict=True)
    try:
        record = InProgress(**value)
        datetime.fromisoformat(record.started)
    except (TypeError, ValueError) as error:
        raise InputError(path, f"not the record of an unfinished stage: {error}") from error
    if not isinstance(record.payload, dict) or not isinstance(record.attempts, int):
        raise InputError(path, "not the record of an unfinished stage")
    return record


def begin_attempt(folder: Path, payload: Mapping[str, Any]) -> InProgress:
    """Record a new attempt at a stage; an existing record with the same payload is continued."""
    make_folder(folder)
    earlier = None
    with suppress(InputError):  # a damaged record is replaced
        earlier = read_in_progress(folder)
    # Work that began with another payload is not continued, so its attempts do not count.
    if earlier is None or earlier.payload != payload:
        earlier = InProgress(dict(payload), datetime.now(UTC).isoformat(), 0)
    record = InProgress(earlier.payload, earlier.started, earlier.attempts + 1)
    write_json(folder / IN_PROGRESS, asdict(record))
    (folder / _FAILED).unlink(missing_ok=True)
    return record


def read_failure(folder: Path) -> str | None:
    """Return the one-line error that ended the last attempt; None if it did not fail."""
    path = folder / _FAILED
    if not path.is_file():
        return None
    try:
        value = read_json(path)
    except InputError as error:
        return error.message
    return str(value.get("message")) if isinstance(value, dict) else str(value)


def record_failure(folder: Path, error: Exception) -> None:
    """Record the error that ended an attempt."""
    if isinstance(error, MeditronError):
        message = error.message
    else:
        message = redact(f"{type(error).__name__}: {error}")
    if (rank := getattr(error, "rank", None)) is not None:
        message = f"rank {rank}: {message}"
    # If the disk is full, this record cannot be written either; the original error is reported then.
    with suppress(StorageError):
        write_json(folder / _FAILED, {"message": message, "at": datetime.now(UTC).isoformat()})
