"""HTTP connections whose requests must arrive in time.

uvicorn limits only the time between two requests: a client that sends a byte of a header now and then keeps
its connection, and with many of them the server has no file descriptors left.
"""

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["DeadlineProtocol"]


class DeadlineProtocol(H11Protocol):
    """A connection that is closed if the head or the body of a request takes too long.

    The time of a response is not limited here.
    """

    head_seconds: ClassVar[float] = 15.0
    body_seconds: ClassVar[float] = 150.0  # longer than the guard's, which does not read every body
    _timer: asyncio.TimerHandle | None = None
    _timed_state: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Start the time of the first request's head."""
        super().connection_made(transport)
        self._limit_state()

    def data_received(self, data: bytes) -> None:
        """Process what a client sent."""
        super().data_received(data)
        self._limit_state()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def _limit_state(self) -> None:
        """Start a timer when the client begins to send a head or a body, and stop it when it is complete."""
        state = self.conn.their_state
        if state is self._timed_state:
            return
        self._stop_timer()
        seconds = {h11.IDLE: self.head_seconds, h11.SEND_BODY: self.body_seconds}.get(state)
        if seconds is not None:
            self._timed_state = state
            self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._timed_state = None
