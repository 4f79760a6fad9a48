"""The error hierarchy: exit codes, HTTP statuses, pickling."""

import errno
import pickle

import pytest

from meditron.core import errors
from meditron.core.errors import (
    DigestError,
    ErrorStatus,
    InputError,
    MeditronError,
    RecipeError,
    RoleError,
    SourceError,
    UsageError,
    status_of,
)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("x"), ErrorStatus(2, 400)),
        (RoleError("x"), ErrorStatus(2, 403)),
        (SourceError("x"), ErrorStatus(2, 404)),
        (InputError("file", "x"), ErrorStatus(1, 422)),
        (MeditronError("x"), ErrorStatus(1, 500)),
        (KeyboardInterrupt(), ErrorStatus(130, 503)),
    ],
)
def test_each_class_has_its_exit_code_and_http_status(error: BaseException, status: ErrorStatus) -> None:
    assert status_of(error) == status


def test_a_subclass_without_an_entry_has_the_status_of_its_base() -> None:
    class ServerError(SourceError):
        pass

    assert status_of(RecipeError("x")) == status_of(UsageError("x"))
    assert status_of(DigestError("file", "x")) == status_of(InputError("file", "x"))
    assert status_of(ServerError("x")) == status_of(SourceError("x"))


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.EACCES, "denied")])
def test_an_unexpected_error_is_a_failure(error: Exception) -> None:
    assert status_of(error) == ErrorStatus(1, 500)


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ENOMEM, "x"), RuntimeError("CUDA out of memory. Tried to …")]
)
def test_exhausted_memory_is_a_temporary_failure(error: Exception) -> None:
    assert status_of(error) == ErrorStatus(1, 503)


def test_every_class_of_the_hierarchy_is_in_the_drawing_and_has_a_4xx_or_5xx_status() -> None:
    classes = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MeditronError)
    ]
    assert len(classes) == 14
    for kind in classes:
        assert kind.__name__ in (errors.__doc__ or "")
        error = kind.__new__(kind)
        assert 400 <= status_of(error).http_status <= 599
        assert status_of(error).exit_code == (2 if issubclass(kind, UsageError) else 1)


def test_an_error_survives_pickling_with_all_of_its_attributes() -> None:
    error = pickle.loads(pickle.dumps(InputError("file", "cut off", place="byte 3", hint="again")))  # noqa: S301
    assert (type(error), error.message, error.place, error.hint) == (
        InputError,
        "file (byte 3): cut off",
        "byte 3",
        "again",
    )
