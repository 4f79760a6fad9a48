"""Experiment trackers: the lines of `metrics.jsonl` written to TensorBoard and trackio as well.

Both write to local files only. trackio runs in a child process: it looks up the account of a stored Hugging
Face token, prints to stdout, and sends its data where environment variables tell it to; the child has neither
the token nor those variables. A tracker that fails is left out for the rest of the training, with a warning.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from meditron.core.console import info, warn
from meditron.core.errors import MissingExtra, UsageError
from meditron.core.units import format_count

__all__ = ["TRACKERS", "Tracker", "Trackers", "flatten_row"]

_EXTRA = "track"
_CLOSE_SECONDS = 120.0
"""Time in which trackio must have written the last rows: more than its own limit of 30 seconds."""
_DROPPED = ("TRACKIO_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_TOKEN", "SPACE_", "SYSTEM")
"""Beginnings of the names of variables that would let trackio send data or log in."""

# The child reads a line per row and ends when the training closes the pipe, also if the training is killed.
_TRACKIO_CHILD = """
import contextlib, json, sys
project, name = sys.argv[1:]
with contextlib.redirect_stdout(sys.stderr):
    import trackio
    quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    trackio.init(project, name=name, resume="allow", **quiet)
    for line in sys.stdin:
        row = json.loads(line)
        trackio.log(row["values"], step=row["step"])
    trackio.finish()
"""


class Tracker(Protocol):
    """A writer of metrics. `log` may raise anything: `Trackers` then leaves the tracker out."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step."""

    def close(self) -> None:
        """Write pending values and end."""


class _TensorBoard:
    """Event files in `FOLDER/tensorboard`, for `tensorboard --logdir`."""

    def __init__(self, folder: Path, run_name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = SummaryWriter
        self._folder = folder / "tensorboard" / run_name
        self._writer: Any = None
        info(f"TensorBoard: tensorboard --logdir {folder / 'tensorboard'}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            # Steps after the checkpoint that a resumed run starts from are trained again: TensorBoard hides
            # the earlier ones.
            self._writer = self._open(str(self._folder), purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Trackio:
    """A local trackio database in `FOLDER/trackio`, written by a child process without network settings."""

    def __init__(self, folder: Path, run_name: str) -> None:
        database = (folder / "trackio").absolute()
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
        environment |= {
            "TRACKIO_DIR": str(database),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            # A stored token is looked for in HF_HOME, which the database's folder does not have.
            "HF_HOME": str(database / "hub"),
        }
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the tracker
        self._child = subprocess.Popen(
            [sys.executable, "-c", _TRACKIO_CHILD, "meditron", run_name],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            # A file and not a pipe: nobody reads it meanwhile, and a full pipe would stop the child.
            stderr=self._messages,
            # A signal to the training's process group must not end it before the last rows are written.
            start_new_session=True,
        )
        info(f"trackio: TRACKIO_DIR={database} trackio show --project meditron")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._child.stdin is None or self._child.poll() is not None:
            raise ChildProcessError(self._last_message())
        self._child.stdin.write((json.dumps({"step": step, "values": dict(values)}) + "\n").encode())
        self._child.stdin.flush()

    def close(self) -> None:
        try:
            self._child.communicate(timeout=_CLOSE_SECONDS)
            if self._child.returncode:
                raise ChildProcessError(self._last_message())
        finally:
            if self._child.poll() is None:
                self._child.kill()
                self._child.wait()
            self._messages.close()

    def _last_message(self) -> str:
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._child.returncode}"


TRACKERS: Mapping[str, Callable[[Path, str], Tracker]] = {"tensorboard": _TensorBoard, "trackio": _Trackio}
"""Name of a tracker, which is also its package → the tracker for a folder and a run's name."""


class Trackers:
    """Context manager that writes rows to the named trackers.

    Raises:
        MissingExtra: A tracker's package is not installed; raised before any training.
        UsageError: There is no tracker of that name.
    """

    def __init__(self, names: Sequence[str], folder: Path, run_name: str) -> None:
        for name in names:
            if name not in TRACKERS:
                raise UsageError(f"unknown tracker {name!r}", hint=f"trackers: {', '.join(TRACKERS)}")
            if find_spec(name) is None:
                raise MissingExtra(name, _EXTRA)
        self._names, self._folder, self._run_name = tuple(dict.fromkeys(names)), folder, run_name
        self._trackers: dict[str, Tracker] = {}
        self._rows = 0

    def __enter__(self) -> Self:
        """Start the trackers; one that does not start is left out with a warning."""
        for name in self._names:
            with self._leaving_out(name):
                self._trackers[name] = TRACKERS[name](self._folder, self._run_name)
        return self

    def log(self, row: Mapping[str, Any]) -> None:
        """Write a line of `metrics.jsonl`; its numbers are named by their keys (`heldout/pubmed`)."""
        self._rows += 1
        values = flatten_row(row)
        for name, tracker in list(self._trackers.items()):
            with self._leaving_out(name):
                tracker.log(int(row["step"]), values)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write pending values."""
        for name, tracker in list(self._trackers.items()):
            with self._leaving_out(name):
                tracker.close()
        self._trackers.clear()

    def _leaving_out(self, name: str) -> "ExitStack":
        """Return a context in which an exception leaves the tracker out, with one warning."""
        stack = ExitStack()

        def leave_out(
            kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> bool:
            # A tracker is a convenience: whatever it raises, the training goes on. An interruption is none of
            # these.
            if not isinstance(error, Exception):
                return False
            tracker = self._trackers.pop(name, None)
            rows = format_count(self._rows, "rows")
            warn(f"{name} stopped after {rows}; the training goes on: {type(error).__name__}: {error}")
            if tracker is not None:
                with suppress(Exception):
                    tracker.close()
            return True

        stack.push(leave_out)
        return stack


def flatten_row(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a row by name: nested keys are joined by `/`, `step` is left out.

    An event is the number 1 under its kind (`event/spike`).
    """
    return {name: value for name, value in _numbers(row, "") if name != "step" and math.isfinite(value)}


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name == "event" and isinstance(value, Mapping):
            yield f"event/{value.get('kind', 'other')}", 1.0
        elif isinstance(value, Mapping):
            yield from _numbers(value, f"{name}/")
        elif isinstance(value, int | float):
            yield name, float(value)
