"""Admission of requests to models: a number of slots, and a bounded queue in order of arrival."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from meditron.core.errors import EngineError

__all__ = ["AdmissionError", "Limits"]

_RECENT = 32  # finished requests from which the wait is estimated
_FIRST_GUESS = 5.0  # seconds of a request, before any has finished
_LONGEST_RETRY = 60.0


class AdmissionError(EngineError):
    """A request that the server does not take now; the client may try again."""

    def __init__(self, message: str, *, status: int, retry_after: float) -> None:
        super().__init__(message, hint=None)
        self.status = status
        """HTTP status: 429 if the queue is full; 503 after a long wait, or if the server shuts down."""
        self.retry_after = max(1, min(math.ceil(retry_after), int(_LONGEST_RETRY)))
        """Seconds after which another attempt makes sense."""


@dataclass(slots=True)
class _Lane:
    """The slots and the queue of a model."""

    running: int = 0
    waiting: deque[asyncio.Future[bool]] = field(default_factory=deque)
    """Each becomes True when it is given a slot, or False when the server shuts down."""
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))


class Limits:
    """Slots and queues, one of each per model. For one event loop; nothing here is thread-safe."""

    def __init__(self, slots: int, queue: int, queue_seconds: float) -> None:
        """Set the limits of every model.

        Args:
            slots: Requests that run at the same time.
            queue: Requests that wait; further ones are refused.
            queue_seconds: Longest wait.
        """
        self._slots, self._queue, self._queue_seconds = slots, queue, queue_seconds
        self._lanes: dict[str, _Lane] = {}
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def running(self, model: str) -> int:
        """Return the number of requests of a model that have a slot."""
        return self._lanes[model].running if model in self._lanes else 0

    def waiting(self, model: str) -> int:
        """Return the number of requests of a model that wait for a slot."""
        return len(self._lanes[model].waiting) if model in self._lanes else 0

    @asynccontextmanager
    async def admit(self, model: str) -> AsyncIterator[None]:
        """Wait for a slot of a model, and free it at the end. Cancelling the task leaves the queue at once.

        Raises:
            AdmissionError: the queue is full, the wait was too long, or the server shuts down.
        """
        lane = self._lanes.setdefault(model, _Lane())
        await self._enter(model, lane)
        started = time.monotonic()
        try:
            yield
        finally:
            lane.seconds.append(time.monotonic() - started)
            self._release(lane)

    async def _enter(self, model: str, lane: _Lane) -> None:
        if self._draining:
            raise _shutting_down()
        if lane.running < self._slots:
            lane.running += 1
            self._idle.clear()
            return
        if len(lane.waiting) >= self._queue:
            raise AdmissionError(
                f"the queue of {model} is full", status=429, retry_after=self._expected_wait(lane)
            )
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        lane.waiting.append(turn)
        try:
            async with asyncio.timeout(self._queue_seconds):
                admitted = await turn
        except BaseException as error:
            if turn in lane.waiting:
                lane.waiting.remove(turn)
            elif turn.done() and not turn.cancelled() and turn.result():
                self._release(lane)  # the slot arrived together with the cancellation
            if isinstance(error, TimeoutError):
                raise AdmissionError(
                    f"no slot of {model} became free within {self._queue_seconds:g} s",
                    status=503,
                    retry_after=self._expected_wait(lane),
                ) from None
            raise
        if not admitted:
            raise _shutting_down()

    def _release(self, lane: _Lane) -> None:
        """Give a slot to the first request that still waits."""
        while lane.waiting:
            turn = lane.waiting.popleft()
            if not turn.done():  # cancelled in this turn of the event loop
                turn.set_result(True)
                return
        lane.running -= 1
        if not any(each.running for each in self._lanes.values()):
            self._idle.set()

    def _expected_wait(self, lane: _Lane) -> float:
        mean = sum(lane.seconds) / len(lane.seconds) if lane.seconds else _FIRST_GUESS
        return mean * (len(lane.waiting) + 1) / self._slots

    def drain(self) -> None:
        """Refuse new and waiting requests with status 503; running ones continue."""
        self._draining = True
        for lane in self._lanes.values():
            while lane.waiting:
                turn = lane.waiting.popleft()
                if not turn.done():
                    turn.set_result(False)

    async def drained(self, seconds: float) -> bool:
        """Wait until no request runs. Return False if some still do after that many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


def _shutting_down() -> AdmissionError:
    return AdmissionError("the server is shutting down", status=503, retry_after=_FIRST_GUESS)
