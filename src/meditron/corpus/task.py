"""Tasks of a pass over the corpus: numbered, independent, and rebuilt in another process from a JSON file.

A worker process, a node of a Ray cluster and an element of a Slurm array get the path of that file, the
description, and numbers of tasks. Nothing is pickled. The existence of a task's result file means that the
task is finished, so a resumed run and every executor use the same record of what is left.

`python -m meditron.corpus.task DESCRIPTION PART PARTS` runs one of PARTS equal shares of the tasks.
"""

import pkgutil
import socket
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import msgspec
from pydantic import BaseModel

from meditron.core.console import error as print_error
from meditron.core.errors import InputError, MeditronError, StorageError, UsageError
from meditron.store.files import path_exists, read_json, write_json

__all__ = ["Task", "load_numbers", "load_task", "main", "run_described_task", "write_description"]


class Task(Protocol):
    """A dataclass whose call does one of many independent pieces of work.

    Its fields have JSON forms: plain values, paths, dataclasses, configs, and objects that have the methods
    `to_json` and `from_json`. A task that was killed is called again, so it writes its files atomically.
    """

    def __call__(self, number: int, /) -> None:
        """Do piece `number` of the work."""

    def result_file(self, number: int, /) -> Path:
        """Return the file that the call with this number writes last."""
        ...


def write_description(path: Path, task: Task, numbers: Sequence[int]) -> None:
    """Write the JSON file from which another process rebuilds `task`.

    Args:
        path: The file.
        task: The task.
        numbers: The numbers to run; those that an earlier run finished are left out.

    Raises:
        UsageError: A class, such as that of a corpus pass, cannot be imported by its name.
    """
    fields = msgspec.to_builtins(task, enc_hook=_encode)
    write_json(path, {"task": importable_name(type(task)), "fields": fields, "numbers": list(numbers)})


def load_task(path: Path) -> Task:
    """Rebuild the task that `write_description` described; InputError if the file is damaged."""
    value = read_json(path)
    try:
        task: Task = msgspec.convert(value["fields"], pkgutil.resolve_name(value["task"]), dec_hook=_decode)
    except (KeyError, TypeError, ValueError, ImportError, AttributeError) as error:
        raise InputError(path, f"not a description of tasks: {error}") from error
    return task


def load_numbers(path: Path) -> list[int]:
    """Return the numbers of the tasks to run, from a description."""
    return [int(number) for number in read_json(path)["numbers"]]


def run_described_task(path: Path, number: int) -> None:
    """Run one task of a description on this machine.

    Raises:
        StorageError: This machine does not see the description's folder.
    """
    _require_visible(path)
    # A worker process runs many tasks of one pass, and a later pass may have a description of the same name.
    _load_cached_task(path, path.stat().st_mtime_ns)(number)


def _require_visible(path: Path) -> None:
    if not path_exists(path):
        raise StorageError(
            f"{path}: not found on {socket.gethostname()}",
            hint="all machines must share the folder of the runs; choose a shared one with --out",
        )


@lru_cache(maxsize=1)
def _load_cached_task(path: Path, modified_ns: int) -> Task:
    return load_task(path)


def importable_name(value: type | Callable[..., Any]) -> str:
    """Return `module:name` of a class or function; UsageError if it cannot be imported by that name."""
    name = f"{value.__module__}:{value.__qualname__}"
    try:
        if pkgutil.resolve_name(name) is value:
            return name
    except (ImportError, AttributeError, ValueError):
        pass
    raise UsageError(
        f"{name} cannot be imported by its name, which another process needs",
        hint="define it at the top of an importable module, or use executor = 'local' with workers = 1",
    )


def _encode(value: object) -> object:
    if isinstance(value, Path):
        return str(value.absolute())  # another machine has another working folder
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if hasattr(value, "to_json"):
        return value.to_json()
    # The exception by which msgspec's hook says that it cannot encode a value.
    raise NotImplementedError(f"a task has a field of type {type(value).__name__}, which has no JSON form")


def _decode(kind: Any, value: Any) -> object:  # noqa: ANN401  # any class, any JSON value
    if issubclass(kind, Path):
        return Path(value)
    if issubclass(kind, BaseModel):
        return kind.model_validate(value)
    return kind.from_json(value)


def main(arguments: Sequence[str]) -> int:
    """Run one share of the described tasks, except those that are finished, and return the exit code."""
    path, part, parts = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    try:
        _require_visible(path)
        task = load_task(path)
        for number in load_numbers(path)[part::parts]:
            # Slurm starts a preempted element again, which may have finished some of its tasks.
            if not task.result_file(number).exists():
                task(number)
    except MeditronError as error:
        print_error(error.message, error.hint)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
