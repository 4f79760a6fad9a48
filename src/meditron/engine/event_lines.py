"""Lines of server-sent events."""

from collections.abc import Iterable, Iterator

__all__ = ["split_lines"]


def split_lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a stream of server-sent events, without their newlines.

    Not httpx's `iter_lines`, which also ends a line at characters such as U+2028 or U+0085 inside of a text.
    """
    pending = b""
    for part in parts:
        *lines, pending = (pending + part).split(b"\n")
        yield from lines
    if pending:
        yield pending
