"""Progress, messages and warnings on stderr; stdout is for data and for a command's answer.

On a terminal, bars are alive (rich draws them); elsewhere each bar is a plain line at its start, about one
every ten seconds, and one at its end, so that a log stays readable. Both say the same words. rich is imported
at the first use on a terminal, never before. NO_COLOR is honoured.
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

from meditron.core.units import amount, duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = [
    "Bar",
    "configure",
    "info",
    "print_styled",
    "progress",
    "sanitize_terminal",
    "substitute_unencodable",
    "warn",
]

_EVERY = 10.0  # seconds between the plain lines of a bar
_WINDOW = 30.0  # seconds over which a rate is measured
# Text from files may hold escape sequences; a terminal must not obey them.
_CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")


class _State:
    """The one console of this process."""

    quiet = False
    console: "Console | None" = None
    live: "Progress | None" = None
    bars = 0
    forked = False


_state = _State()


def _forget() -> None:
    """A forked worker has no thread that draws: its own console starts afresh, with plain words only."""
    _state.console = _state.live = None
    _state.bars, _state.forked = 0, True


os.register_at_fork(after_in_child=_forget)


# Signs in our texts that ASCII and Latin-1 lack, as one character each, so that tables stay aligned.
_ASCII = str.maketrans("−–—‘’“”…→×·≥≤│┃━─‖⁻", "---''\"\".>x.><||--|-")


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """Write a similar ASCII character, or `?`, for one that the stream's encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_ASCII)
    return "".join(character if character.isascii() else "?" for character in text), error.end


codecs.register_error("meditron.substitute", _substitute)


def substitute_unencodable() -> None:
    """Let stdout and stderr write a substitute for a character that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="meditron.substitute")


def configure(*, quiet: bool) -> None:
    """`quiet` silences everything but warnings."""
    _state.quiet = quiet


def info(text: str) -> None:
    """One line (or more) for people."""
    if not _state.quiet:
        _print(text)


def warn(text: str) -> None:
    """A warning: shown even when quiet."""
    _print(text, prefix="warning: ", style="yellow")


def print_styled(pieces: Sequence[tuple[str, str]]) -> bool:
    """Print one line of texts, each in a style of rich's, on stdout as a verb's answer.

    False, and nothing is printed, where stdout shows no colours: then the caller has to say it in characters.
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
    """Show how far a piece of work has come.

    `total` may be unknown; `start` is what an earlier run had already done, which counts for the share but
    not for the rate; `unit` is the plural of what is counted, or `B` for bytes. Bars may be nested.
    """
    live = not _state.quiet and _alive()
    bar = Bar(label, total, unit, start, every=None if live or _state.quiet else _EVERY)
    if live:
        with _drawn(bar):
            yield from _run(bar)
    else:
        bar.begin()
        yield from _run(bar)


def _run(bar: "Bar") -> "Iterator[Bar]":
    try:
        yield bar
    except BaseException:
        bar.end(whole=False)
        raise
    bar.end(whole=True)


class Bar:
    """A piece of work under way. It only counts: the terminal's thread, or a line now and then, shows it."""

    def __init__(self, label: str, total: int | None, unit: str, start: int, every: float | None) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, start
        self._start, self._every = start, every
        self._began = self._spoke = time.monotonic()
        self._marks = deque([(self._began, start)])
        self._fields: dict[str, str] = {}

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        now = time.monotonic()
        if now - self._marks[-1][0] >= 0.5:
            self._marks.append((now, self.done))
            while len(self._marks) > 2 and now - self._marks[0][0] > _WINDOW:
                self._marks.popleft()
        if self._every is not None and now - self._spoke >= self._every and self.done != self.total:
            self._spoke = now
            info(f"{self.label}: {self.status()}")

    def fields(self, **values: str) -> None:
        """Further figures to show: `fields(loss="2.91", tok_s="512")` is read as `loss 2.91, tok/s 512`."""
        self._fields.update(values)

    def status(self, *, share: bool = True) -> str:
        """`5,120 of 20,788 citations (25 %), 512/s, 30 s left, loss 2.91`, with or without the share."""
        parts = [self._count(share=share)]
        rate = self._rate()
        if rate > 0:
            parts.append(self._pace(rate))
            if self.total is not None and self.done < self.total:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        return ", ".join([*parts, *self._further()])

    def begin(self) -> None:
        """The plain line at the start."""
        if self._every is not None:
            start = f"{amount(self._start, self.unit)} done before, of " if self._start else ""
            what = "" if self.total is None else f": {start}{amount(self.total, self.unit)}"
            info(f"{self.label}{what}")

    def end(self, *, whole: bool) -> None:
        """The line that stays: what was done and how long it took, or where it stopped."""
        seconds = time.monotonic() - self._began
        worked = self.done - self._start
        if not whole:
            info(f"{self.label}: stopped at {self._count()} after {duration(seconds)}")
            return
        rate = f" ({self._pace(worked / seconds)})" if worked > 0 < seconds else ""
        count = f"{amount(self.done, self.unit)} in " if self.done else ""
        info(", ".join([f"{self.label}: {count}{duration(seconds)}{rate}", *self._further()]))

    def _count(self, *, share: bool = True) -> str:
        if not self.total:
            return amount(self.done, self.unit)
        done = amount(self.done, "B" if self.unit == "B" else "")
        whole = f"{done} of {amount(self.total, self.unit)}"
        return f"{whole} ({100 * self.done // self.total} %)" if share else whole

    def _pace(self, rate: float) -> str:
        return f"{amount(rate, 'B' if self.unit == 'B' else '')}/s"

    def _rate(self) -> float:
        """A second, over the last half minute."""
        then, before = self._marks[0]
        elapsed = time.monotonic() - then
        return (self.done - before) / elapsed if elapsed > 0 else 0.0

    def _further(self) -> list[str]:
        return [f"{_spoken(name)} {value}" for name, value in self._fields.items()]


def _spoken(name: str) -> str:
    name = f"{name[:-2]}/s" if name.endswith("_s") else name
    return name.replace("_", " ")


def sanitize_terminal(text: str) -> str:
    """A text from a file or a model without what a terminal would obey; half a surrogate pair becomes `?`."""
    return text.translate(_CONTROL).encode(errors="replace").decode()


def _print(text: str, prefix: str = "", style: str = "") -> None:
    if sys.stderr is None:  # closed: print would write to stdout instead
        return
    if not _terminal():
        print(f"{prefix}{sanitize_terminal(text)}", file=sys.stderr, flush=True)  # noqa: T201
        return
    from rich.text import Text

    _console().print(Text.assemble((prefix, style), sanitize_terminal(text)), soft_wrap=True)


def _terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _alive() -> bool:
    """Whether bars can be redrawn in place."""
    return _terminal() and not _state.forked and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def _console() -> "Console":
    """The rich console; it looks up sys.stderr at every use, so a redirected stderr is respected."""
    if _state.console is None:
        from rich.console import Console

        _state.console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    return _state.console


@contextmanager
def _drawn(bar: Bar) -> Iterator[None]:
    """Show `bar` with the others that are alive: one display for all, as a terminal has one bottom."""
    if _state.live is None:
        _state.live = _display()
        _state.live.start()
    live = _state.live
    task = live.add_task(sanitize_terminal(bar.label), total=None, bar=bar)
    _state.bars += 1
    try:
        yield
    finally:
        live.remove_task(task)
        _state.bars -= 1
        if _state.bars == 0:
            live.stop()
            _state.live = None


def _display() -> "Progress":
    from rich.progress import Progress, ProgressColumn, Task, TextColumn
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    class Share(ProgressColumn):
        """How much of the whole is done, asked of the bar at each refresh."""

        def render(self, task: Task) -> ProgressBar:
            bar: Bar = task.fields["bar"]
            return ProgressBar(total=bar.total, completed=bar.done, width=16, pulse=bar.total is None)

    class Status(ProgressColumn):
        """The same words that the plain lines use."""

        def render(self, task: Task) -> Text:
            return Text(
                sanitize_terminal(task.fields["bar"].status(share=False)), no_wrap=True, overflow="ellipsis"
            )

    columns = (TextColumn("{task.description}", markup=False), Share(), Status())
    # rich would show what goes to stdout above the bars, also where stdout is a file and must get it.
    shown = sys.stdout is not None and sys.stdout.isatty()
    return Progress(*columns, console=_console(), transient=True, refresh_per_second=8, redirect_stdout=shown)
