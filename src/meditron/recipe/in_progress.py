"""Records in the folder of an unfinished stage: its payload, and the error that ended its last attempt."""

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
"""Files of an unfinished stage, removed once its manifest is written."""


@dataclass(frozen=True, slots=True)
class InProgress:
    """Record of an unfinished stage."""

    payload: dict[str, Any]
    """Kind, version, config and inputs that the work began with."""
    started: str
    """Start of the first attempt, ISO 8601."""
    attempts: int
    """Number of runs that have worked on it."""


def read_in_progress(folder: Path) -> InProgress | None:
    """Read a stage's record; None if there is none; InputError if it is damaged."""
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
    """Record an attempt at a stage before its work begins; continues the record of the same payload."""
    make_folder(folder)
    earlier = None
    with suppress(InputError):  # a damaged record is replaced
        earlier = read_in_progress(folder)
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
    # On a full disk this cannot be written either; the original error is the one to report.
    with suppress(StorageError):
        write_json(folder / _FAILED, {"message": message, "at": datetime.now(UTC).isoformat()})
