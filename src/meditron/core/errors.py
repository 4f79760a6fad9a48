"""The exception hierarchy, and the exit code and HTTP status of each class.

MeditronError                exit 1, HTTP 500
├── UsageError               exit 2, HTTP 400: invalid flag, name or combination
│   ├── RecipeError          invalid key, type or value in a recipe
│   ├── RoleError            HTTP 403: the person lacks the role that an action needs
│   ├── SourceError          HTTP 404: no such source, file or MODEL
│   └── MissingExtra         HTTP 501: the library of an extra is not installed
├── InputError               HTTP 422: damaged file, or a file of the wrong kind
│   └── DigestError          the SHA-256 is not the expected one
├── FetchError               HTTP 502: a download failed
├── StorageError             HTTP 507: the disk is full, or writing failed
├── EngineError              HTTP 503: the model's process died or does not answer
│   └── LostRankError        another process of the job has ended, whose error is the cause
├── DriftError               HTTP 409: an artifact is out of date
└── TrainingError            the loss is not finite, or it spiked

Raise the most specific class that applies. The message is one line; the hint says what the user can do.
"""

import errno
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditron.core.redaction import redact

__all__ = [
    "DigestError",
    "DriftError",
    "EngineError",
    "ErrorStatus",
    "FetchError",
    "InputError",
    "LostRankError",
    "MeditronError",
    "MissingExtra",
    "RecipeError",
    "RoleError",
    "SourceError",
    "StorageError",
    "TrainingError",
    "UsageError",
    "is_out_of_memory",
    "status_of",
]

_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|out of memory|alloc_cpu", re.IGNORECASE
)


class MeditronError(Exception):
    """An expected failure: a one-line `message`, and a `hint` that says what to do about it.

    Credentials and query strings are removed from URLs in both texts, because errors are printed and
    recorded, and users send them to others.
    """

    stage: str | None = None
    """Name of the recipe's stage that failed."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # A file name need not be UTF-8; Python keeps such bytes as lone surrogates, which cannot be printed.
        message = redact(message.encode("utf-8", "backslashreplace").decode())
        super().__init__(message)
        self.message = message
        self.hint = hint and redact(hint)

    def __reduce__(self) -> "tuple[Callable[..., Any], tuple[Any, ...]]":
        """Pickle the attributes, because worker processes send their errors to the parent process.

        Exception's default would call the subclass's `__init__` with the message as the only argument, and a
        subclass may require others.
        """
        return _unpickle_error, (type(self), self.args, self.__dict__)


def _unpickle_error(
    kind: type[MeditronError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> MeditronError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class UsageError(MeditronError):
    """Invalid usage: a flag, a name or a combination of them."""


class RecipeError(UsageError):
    """An unknown key, or a wrong type or value, in a recipe."""

    further_errors: "tuple[RecipeError, ...]" = ()
    """Further errors of the same recipe; printing all of them lets the user fix them in one pass."""

    @classmethod
    def combine(cls, errors: "Sequence[RecipeError]") -> "RecipeError":
        """Return the first of several errors, with the remaining ones in its `further_errors`."""
        flat = [nested for error in errors for nested in (error, *error.further_errors)]
        flat[0].further_errors = tuple(flat[1:])
        return flat[0]


class RoleError(UsageError):
    """An action that needs a role which the person does not have."""


class SourceError(UsageError):
    """A source or MODEL that does not exist: no such file, unknown scheme, or no model in it."""


class MissingExtra(UsageError):
    """The library of an extra is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f"{library} is not installed; it belongs to the extra '{extra}'",
            hint=f"pip install 'meditron[{extra}]'",
        )


class InputError(MeditronError):
    """A damaged or hostile file, or one of the wrong kind.

    `path` is the file, `problem` the defect, `place` its position (a byte offset, a line, a tensor's name).
    """

    def __init__(
        self, path: object, problem: str, *, place: str | None = None, hint: str | None = None
    ) -> None:
        where = f"{path} ({place})" if place else f"{path}"
        super().__init__(f"{where}: {problem}", hint=hint)
        self.path = path if isinstance(path, Path) else str(path)  # a member of an archive, for example
        self.problem = problem
        self.place = place


class DigestError(InputError):
    """A file whose SHA-256 is not the expected one."""


class FetchError(MeditronError):
    """A failed request to a package registry or a server."""


class StorageError(MeditronError):
    """A full disk, or a write that the file system refused."""


class EngineError(MeditronError):
    """The process that runs a model died, stopped answering, or rejected a request."""


class LostRankError(EngineError):
    """Another rank of a distributed job has ended: a consequence of that rank's error, never the cause."""


class DriftError(MeditronError):
    """An artifact that is out of date: its config or inputs changed after it was built."""


class TrainingError(MeditronError):
    """Training that cannot continue: the loss is not finite, or it spiked."""


@dataclass(frozen=True, slots=True)
class ErrorStatus:
    """The exit code of a command and the HTTP status of a request that fails with a certain error."""

    exit_code: int
    http_status: int


_FAILURE = ErrorStatus(1, 500)
_STATUS: dict[type[BaseException], ErrorStatus] = {
    MeditronError: _FAILURE,
    UsageError: ErrorStatus(2, 400),
    RoleError: ErrorStatus(2, 403),
    SourceError: ErrorStatus(2, 404),
    MissingExtra: ErrorStatus(2, 501),
    InputError: ErrorStatus(1, 422),
    FetchError: ErrorStatus(1, 502),
    StorageError: ErrorStatus(1, 507),
    EngineError: ErrorStatus(1, 503),
    DriftError: ErrorStatus(1, 409),
    KeyboardInterrupt: ErrorStatus(130, 503),
}
"""Error class → status; a class that is missing here has the status of its nearest base class."""


def status_of(error: BaseException) -> ErrorStatus:
    """Return the exit code and HTTP status of an error; 1 and 500 for an exception of another library."""
    if is_out_of_memory(error):
        return ErrorStatus(1, 503)
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), _FAILURE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports exhausted memory: Python's, the system's, or torch's RuntimeError."""
    if isinstance(error, MeditronError):
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )
