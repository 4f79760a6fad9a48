"""Repetition of failed requests: the error that allows it, and the pause before it."""

import email.utils
import time

__all__ = ["RetryableError", "next_pause", "retry_after"]

_MAX_PAUSE = 120.0  # seconds; a server may ask for hours


class RetryableError(Exception):
    """A failure after which the request is made again.

    `pause` is the number of seconds that the server asks clients to wait, if it names one.
    """

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


def retry_after(text: str) -> float | None:
    """Return the seconds of a `Retry-After` header, which is a number or a date; None without one."""
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def next_pause(pauses: list[float], failure: RetryableError) -> float:
    """Take the next of the remaining pauses; return the seconds to wait, which may be more.

    Every attempt takes one, so that a server that always answers `Retry-After` is not asked for ever. Its `0`
    does not shorten the pause.
    """
    return min(max(pauses.pop(0), failure.pause or 0.0), _MAX_PAUSE)
