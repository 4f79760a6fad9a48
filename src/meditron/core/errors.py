"""The error tree. A user's mistake is one line and a hint; nothing else reaches them.

MeditronError                exit 1: something failed
├── UsageError               exit 2: what was asked for cannot be meant
│   ├── RecipeError          a key, type or value of a recipe
│   ├── SourceError          a source or MODEL that names nothing
│   └── MissingExtra         a library of an extra that is not installed
├── InputError               a file that is not what it should be: names the file and the place
│   └── DigestError          … whose bytes are not the promised ones
├── FetchError               the outside did not answer
├── StorageError             the disk is full, or will not take the bytes
├── EngineError              the process that runs a model died, or fell silent
├── DriftError               an artifact was made from something else than asked for now
└── TrainingError            the loss is not a number, or ran away
"""

import errno
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from meditron.core.redaction import redact

__all__ = [
    "DigestError",
    "DriftError",
    "EngineError",
    "FetchError",
    "InputError",
    "MeditronError",
    "MissingExtra",
    "RecipeError",
    "SourceError",
    "StorageError",
    "TrainingError",
    "UsageError",
    "is_out_of_memory",
]

_NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|out of memory|alloc_cpu", re.IGNORECASE
)


class MeditronError(Exception):
    """Something failed. `message` is one line; `hint`, where there is one, says what to do about it.

    Addresses in both lose credentials and query: an error may be recorded, printed and sent to others.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # A file's name may be no UTF-8: Python holds it as lone surrogates, which cannot be written.
        message = redact(message.encode("utf-8", "backslashreplace").decode())
        super().__init__(message)
        self.message = message
        self.hint = hint and redact(hint)

    def __reduce__(self) -> "tuple[Callable[..., Any], tuple[Any, ...]]":
        """Pickle by what the error says, for workers hand their errors to the parent process."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[MeditronError], args: tuple[Any, ...], said: dict[str, Any]) -> MeditronError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(said)
    return error


class UsageError(MeditronError):
    """What was asked for cannot be meant: a flag, a name, a combination."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe's key, type or value is not one that exists."""

    others: "tuple[RecipeError, ...]" = ()
    """Further mistakes of the same recipe, so that all are corrected in one pass."""

    @classmethod
    def of_all(cls, errors: "Sequence[RecipeError]") -> "RecipeError":
        """Return the first of several errors, with all further ones as its `others`."""
        flat = [one for error in errors for one in (error, *error.others)]
        flat[0].others = tuple(flat[1:])
        return flat[0]


class SourceError(UsageError):
    """A source or MODEL that names nothing: no such file, no such scheme, nothing to load in it."""


class MissingExtra(UsageError):
    """A library that belongs to an extra is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f"{library} is not installed; it belongs to the extra '{extra}'",
            hint=f"pip install 'meditron[{extra}]'",
        )


class InputError(MeditronError):
    """A file is damaged, hostile or of another kind than it should be.

    `path` is the file, `problem` what is wrong, `place` where (a byte offset, a line, a tensor's name).
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
    """A file's bytes are not the ones that were promised."""


class FetchError(MeditronError):
    """A registry or a server did not give what was asked for."""


class StorageError(MeditronError):
    """The disk is full, or the file system refused the bytes."""


class EngineError(MeditronError):
    """The process that runs a model died, fell silent, or refused what it was asked."""


class DriftError(MeditronError):
    """An artifact was made from something else than is asked for now."""


class TrainingError(MeditronError):
    """Training cannot go on: the loss is not a number, or ran away."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out: Python's, the system's, or torch's RuntimeError."""
    if isinstance(error, MeditronError):
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    )
