"""Writing in the background: a queue and a thread, so that no request waits for a disk."""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from meditron.core.console import info, warn
from meditron.core.errors import StorageError

__all__ = ["BackgroundWriter"]

_Item = TypeVar("_Item")
_BATCH = 256


class BackgroundWriter(Generic[_Item]):
    """A thread that writes items in batches.

    A failed write never reaches the caller: its items are counted as lost, and a warning says so once, until
    a write works again.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[list[_Item]], object],
        *,
        size: int = 2000,
        every: tuple[float, Callable[[], None]] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            name: What is written, for warnings: `request log`.
            write: Writes a batch, in the thread.
            size: Items that may wait; further ones are lost.
            every: Seconds, and a function that the thread calls at that interval.
        """
        self.lost = 0
        """Items that were not written."""
        self.problem: str | None = None
        """Why the last write failed; None if it worked."""
        self._name, self._write, self._every = name, write, every
        self._queue: queue.Queue[_Item | None] = queue.Queue(size)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: _Item) -> None:
        """Hand over an item; returns at once."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._lose(1, "the queue is full")

    def flush(self, seconds: float = 5.0) -> bool:
        """Wait until everything handed over so far is written; return whether it is."""
        # `Queue.join` has no time limit.
        deadline = time.monotonic() + seconds
        with self._queue.all_tasks_done:
            while self._queue.unfinished_tasks:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._queue.all_tasks_done.wait(left)
        return True

    def close(self, seconds: float = 10.0) -> None:
        """Write what is left, and end the thread."""
        if not self._thread.is_alive():
            return
        deadline = time.monotonic() + seconds
        with suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        due = time.monotonic() + (self._every[0] if self._every else 0)
        while True:
            batch, ended = self._next_batch(max(0.0, due - time.monotonic()) if self._every else None)
            if batch:
                self._write_batch(batch)
            for _ in range(len(batch) + ended):
                self._queue.task_done()
            if ended:
                return
            if self._every and time.monotonic() >= due:
                due = time.monotonic() + self._every[0]
                self._call(self._every[1])

    def _call(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # the thread must go on, whatever fails
            self._lose(0, str(error))

    def _next_batch(self, timeout: float | None) -> tuple[list[_Item], bool]:
        """Return the waiting items, at most one batch, and whether the queue ended."""
        batch: list[_Item] = []
        try:
            item = self._queue.get(timeout=timeout)
            while item is not None:
                batch.append(item)
                if len(batch) == _BATCH:
                    return batch, False
                item = self._queue.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _write_batch(self, batch: list[_Item]) -> None:
        error = self._try(batch)
        if error is None:
            return
        if isinstance(error, StorageError) or len(batch) == 1:
            self._lose(len(batch), str(error))
            return
        for item in batch:  # one bad item must not take the others with it
            if single := self._try([item]):
                self._lose(1, str(single))

    def _try(self, batch: list[_Item]) -> Exception | None:
        try:
            self._write(batch)
        except Exception as error:  # the thread must go on, whatever fails
            return error
        with self._lock:
            recovered, self.problem = self.problem is not None, None
        if recovered:
            info(f"{self._name}: entries are recorded again; {self.lost} were lost")
        return None

    def _lose(self, count: int, reason: str) -> None:
        with self._lock:
            self.lost += count
            first, self.problem = self.problem is None, reason
        if first:
            warn(f"{self._name}: entries are not recorded: {reason}")
