"""Progress, messages and warnings on stderr; stdout is for data and for a command's answer.

On a terminal, the library rich draws progress bars. In a log or pipe, a bar is printed as plain lines with
the same text: one at the start, one about every ten seconds, and one at the end. rich is imported at its
first use on a terminal, because the import is slow. The environment variable NO_COLOR is respected.
"""

import codecs
import io
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from meditron.core.units import format_count, format_duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = [
    "Bar",
    "configure",
    "error",
    "info",
    "is_quiet",
    "print_styled",
    "progress",
    "sanitize_terminal",
    "substitute_unencodable",
    "warn",
]

_LINE_INTERVAL = 10.0  # seconds between the plain lines of a bar
_RATE_WINDOW = 30.0  # seconds over which a rate is measured
# Text from files may contain escape sequences, which a terminal would execute.
_CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")


class _ConsoleState:
    """Console state of the process."""

    quiet = False
    console: "Console | None" = None
    live_display: "Progress | None" = None
    active_bars = 0
    forked = False


_state = _ConsoleState()


def _reset_after_fork() -> None:
    """Reset the console's state in a forked worker, which has no drawing thread and so prints plain lines."""
    _state.console = _state.live_display = None
    _state.active_bars, _state.forked = 0, True


os.register_at_fork(after_in_child=_reset_after_fork)


# Substitutes for characters in meditron's messages that ASCII or Latin-1 lacks. Each character is replaced by
# one character, so that tables stay aligned.
_ASCII = str.maketrans("−–—‘’“”…→×·≥≤│┃━─‖⁻", "---''\"\".>x.><||--|-")


def _substitute_characters(error: UnicodeError) -> tuple[str, int]:
    """Replace a character that the stream's encoding lacks by a similar ASCII character, or by `?`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_ASCII)
    return "".join(character if character.isascii() else "?" for character in text), error.end


codecs.register_error("meditron.substitute", _substitute_characters)


def substitute_unencodable() -> None:
    """Make stdout and stderr print a substitute for each character that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="meditron.substitute")


def configure(*, quiet: bool) -> None:
    """Set the console's options; `quiet` suppresses everything except warnings."""
    _state.quiet = quiet


def is_quiet() -> bool:
    """Return whether everything except warnings is suppressed."""
    return _state.quiet


def info(text: str) -> None:
    """Print a message, unless quiet."""
    if not _state.quiet:
        _print_to_stderr(text)


def warn(text: str) -> None:
    """Print a warning, even if quiet."""
    _print_to_stderr(text, prefix="warning: ", style="yellow")


def error(text: str, hint: str | None = None) -> None:
    """Print an error and on a second line its hint, even if quiet."""
    _print_to_stderr(text, prefix="error: ", style="red")
    if hint:
        _print_to_stderr(hint, prefix="hint: ")


def print_styled(pieces: Sequence[tuple[str, str]]) -> bool:
    """Print one line of (text, rich style) pairs on stdout.

    Returns:
        False, without printing, if stdout shows no colours; the caller then marks the parts with characters.
    """
    if not sys.stdout.isatty():
        return False
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    if console.no_color or console.color_system is None:
        return False
    console.print(
        Text.assemble(*((sanitize_terminal(text), style) for text, style in pieces)), soft_wrap=True
    )
    return True


@contextmanager
def progress(label: str, total: int | None = None, unit: str = "", *, start: int = 0) -> "Iterator[Bar]":
    """Show the progress of a piece of work. Bars may be nested.

    Args:
        label: Name of the work.
        total: Number of units, if it is known.
        unit: Plural of the unit, or `B` for bytes.
        start: Number of units done by an earlier run, which count in the finished share but not in the rate.
    """
    live = not _state.quiet and _can_redraw()
    bar = Bar(label, total, unit, start, interval=None if live or _state.quiet else _LINE_INTERVAL)
    if live:
        with _draw_bar(bar):
            yield from _yield_and_end_bar(bar)
    else:
        bar.print_start()
        yield from _yield_and_end_bar(bar)


def _yield_and_end_bar(bar: "Bar") -> "Iterator[Bar]":
    try:
        yield bar
    except BaseException:
        bar.print_end(complete=False)
        raise
    bar.print_end(complete=True)


class Bar:
    """A progress counter, which rich's thread draws on a terminal; elsewhere it prints plain lines."""

    def __init__(self, label: str, total: int | None, unit: str, start: int, interval: float | None) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, start
        self._start, self._interval = start, interval
        self._started = self._last_line = time.monotonic()
        self._samples = deque([(self._started, start)])
        self._fields: dict[str, str] = {}

    def advance(self, count: int = 1) -> None:
        """Add `count` finished units."""
        self.done += count
        now = time.monotonic()
        if now - self._samples[-1][0] >= 0.5:
            self._samples.append((now, self.done))
            while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_WINDOW:
                self._samples.popleft()
        if self._interval is not None and now - self._last_line >= self._interval and self.done != self.total:
            self._last_line = now
            info(f"{self.label}: {self.status_text()}")

    def set_fields(self, **values: str) -> None:
        """Set values to show at the end: `set_fields(loss="2.9", tok_s="5")` gives `loss 2.9, tok/s 5`."""
        self._fields.update(values)

    def status_text(self, *, share: bool = True) -> str:
        """Return a text such as `5,120 of 20,788 citations (25 %), 512/s, 30 s left, loss 2.91`.

        Without `share` the percentage is left out.
        """
        parts = [self._format_done(share=share)]
        rate = self._units_per_second()
        if rate > 0:
            parts.append(self._format_rate(rate))
            if self.total is not None and self.done < self.total:
                parts.append(f"{format_duration((self.total - self.done) / rate)} left")
        return ", ".join([*parts, *self._extra_fields()])

    def print_start(self) -> None:
        """Print the first plain line: the label and the total."""
        if self._interval is not None:
            start = f"{format_count(self._start, self.unit)} done before, of " if self._start else ""
            size = "" if self.total is None else f": {start}{format_count(self.total, self.unit)}"
            info(f"{self.label}{size}")

    def print_end(self, *, complete: bool) -> None:
        """Print the final line: the count and the time taken, or the count at which the work stopped."""
        seconds = time.monotonic() - self._started
        worked = self.done - self._start
        if not complete:
            info(f"{self.label}: stopped at {self._format_done()} after {format_duration(seconds)}")
            return
        rate = f" ({self._format_rate(worked / seconds)})" if worked > 0 < seconds else ""
        count = f"{format_count(self.done, self.unit)} in " if self.done else ""
        info(", ".join([f"{self.label}: {count}{format_duration(seconds)}{rate}", *self._extra_fields()]))

    def _format_done(self, *, share: bool = True) -> str:
        if not self.total:
            return format_count(self.done, self.unit)
        done = format_count(self.done, "B" if self.unit == "B" else "")
        count = f"{done} of {format_count(self.total, self.unit)}"
        return f"{count} ({100 * self.done // self.total} %)" if share else count

    def _format_rate(self, rate: float) -> str:
        return f"{format_count(rate, 'B' if self.unit == 'B' else '')}/s"

    def _units_per_second(self) -> float:
        """Return units per second over the last `_RATE_WINDOW` seconds."""
        time_before, done_before = self._samples[0]
        elapsed = time.monotonic() - time_before
        return (self.done - done_before) / elapsed if elapsed > 0 else 0.0

    def _extra_fields(self) -> list[str]:
        return [f"{_field_label(name)} {value}" for name, value in self._fields.items()]


def _field_label(name: str) -> str:
    name = f"{name[:-2]}/s" if name.endswith("_s") else name
    return name.replace("_", " ")


def sanitize_terminal(text: str) -> str:
    """Return an untrusted text without control characters; half of a surrogate pair becomes `?`."""
    return text.translate(_CONTROL).encode(errors="replace").decode()


def _print_to_stderr(text: str, prefix: str = "", style: str = "") -> None:
    if sys.stderr is None:  # closed; print(file=None) would write to stdout
        return
    if not _stderr_is_terminal():
        print(f"{prefix}{sanitize_terminal(text)}", file=sys.stderr, flush=True)  # noqa: T201
        return
    from rich.text import Text

    _stderr_console().print(Text.assemble((prefix, style), sanitize_terminal(text)), soft_wrap=True)


def _stderr_is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _can_redraw() -> bool:
    """Return whether bars can be redrawn in place."""
    return (
        _stderr_is_terminal()
        and not _state.forked
        and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    )


def _stderr_console() -> "Console":
    """Return the rich console; it looks up sys.stderr at every use, so redirection works."""
    if _state.console is None:
        from rich.console import Console

        _state.console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    return _state.console


@contextmanager
def _draw_bar(bar: Bar) -> Iterator[None]:
    """Draw `bar` below the other active bars. All bars share one display, because rich allows only one."""
    if _state.live_display is None:
        _state.live_display = _create_progress_display()
        _state.live_display.start()
    live = _state.live_display
    task = live.add_task(sanitize_terminal(bar.label), total=None, bar=bar)
    _state.active_bars += 1
    try:
        yield
    finally:
        live.remove_task(task)
        _state.active_bars -= 1
        if _state.active_bars == 0:
            live.stop()
            _state.live_display = None


def _create_progress_display() -> "Progress":
    from rich.progress import Progress, ProgressColumn, Task, TextColumn
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    class ShareColumn(ProgressColumn):
        """A column that draws the finished share as a bar."""

        def render(self, task: Task) -> ProgressBar:
            bar: Bar = task.fields["bar"]
            return ProgressBar(total=bar.total, completed=bar.done, width=16, pulse=bar.total is None)

    class StatusColumn(ProgressColumn):
        """A column with the status text that plain lines show too."""

        def render(self, task: Task) -> Text:
            return Text(
                sanitize_terminal(task.fields["bar"].status_text(share=False)),
                no_wrap=True,
                overflow="ellipsis",
            )

    columns = (TextColumn("{task.description}", markup=False), ShareColumn(), StatusColumn())
    # With redirect_stdout rich prints the text written to stdout above the bars. If stdout is a file or a
    # pipe, its text must not appear on the terminal.
    redirect = sys.stdout is not None and sys.stdout.isatty()
    return Progress(
        *columns, console=_stderr_console(), transient=True, refresh_per_second=8, redirect_stdout=redirect
    )
