"""Reservation of a model's slots and of its KV cache, first come, first served."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["Reservations"]


class Reservations:
    """Slots and tokens that requests share.

    llama.cpp ends every request if the KV cache overflows, so a request waits until there is space for its
    prompt and its longest answer.
    """

    def __init__(self, slots: int, tokens: int) -> None:
        self.slots, self.tokens = slots, tokens
        self._free_slots, self._free_tokens = slots, tokens
        self._waiting: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def reserve(self, slots: int, tokens: int) -> AsyncIterator[None]:
        """Wait for slots and tokens, at most all of them, and give them back at the end."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((slots, tokens, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled() or not turn.done():
                self._waiting = deque(entry for entry in self._waiting if entry[2] is not turn)
                self._serve()
            else:
                self._give_back(slots, tokens)
            raise
        try:
            yield
        finally:
            self._give_back(slots, tokens)

    def _give_back(self, slots: int, tokens: int) -> None:
        self._free_slots += slots
        self._free_tokens += tokens
        self._serve()

    def _serve(self) -> None:
        """Wake those who wait, in order, while there is space for the first."""
        while self._waiting:
            slots, tokens, turn = self._waiting[0]
            if slots > self._free_slots or tokens > self._free_tokens:
                return
            self._waiting.popleft()
            if not turn.cancelled():
                self._free_slots -= slots
                self._free_tokens -= tokens
                turn.set_result(None)
