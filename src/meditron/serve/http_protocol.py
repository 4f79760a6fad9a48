"""HTTP connections whose requests must arrive in time, and whose responses must be read in time.

uvicorn limits only the time between two requests. A client that sends a byte of a header now and then, or
that never reads its response, would keep its connection, and with many of them the server has no file
descriptors left. Closing such a connection is not enough: it stays open until its last byte is sent.
"""

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["DeadlineProtocol"]

_READ_BYTES = 1 << 16


class DeadlineProtocol(H11Protocol):
    """A connection that ends if a request's head or body takes too long, or if the client does not read.

    The time until a response begins is not limited here.
    """

    head_seconds: ClassVar[float] = 15.0
    body_seconds: ClassVar[float] = 150.0  # longer than the guard's, which does not read every body
    send_seconds: ClassVar[float] = 60.0  # in which a client must read `_READ_BYTES`, or all there is
    _timer: asyncio.TimerHandle | None = None
    _timed_state: object = None
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Start the time of the first request's head."""
        super().connection_made(transport)
        # Writing is paused as soon as the system takes no more bytes, and so until the client reads.
        transport.set_write_buffer_limits(high=0)
        self._limit_state()

    def data_received(self, data: bytes) -> None:
        """Process what a client sent."""
        super().data_received(data)
        self._limit_state()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        self._stop_unread_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the time in which the client has to read."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """Go on with the response."""
        self._stop_unread_timer()
        super().resume_writing()

    def _wait_for_reader(self) -> None:
        most = self.transport.get_write_buffer_size() - _READ_BYTES

        def check() -> None:
            if self.transport.get_write_buffer_size() > max(0, most):
                self.transport.abort()
            else:
                self._wait_for_reader()

        self._unread_timer = self.loop.call_later(self.send_seconds, check)

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

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        self._unread_timer = None
