"""The console as people meet it: in a log, and on a real (pseudo-)terminal."""

import re
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from meditron.core import console
from terminal_output import terminal_output

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    yield
    console.configure(quiet=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The console's clock, to be moved by hand."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def on_terminal(code: str, *, data: bytes = b"", **environment: str) -> str:
    """What a program writes to a terminal of 100 columns on its stderr; its stdout must get `data` alone."""
    settings = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    return terminal_output(f"from meditron.core.console import *\n{code}", settings | environment, data=data)


def test_a_log_gets_a_line_at_the_start_every_ten_seconds_and_at_the_end(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress("parse", total=20_788, unit="citations") as bar:
        for _ in range(20):
            clock.now += 2
            bar.advance(1000)
        bar.set_fields(loss="2.91", tok_s="512")
        bar.advance(788)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "parse: 20,788 citations",
        "parse: 5,000 of 20,788 citations (24 %), 500/s, 32 s left",
        "parse: 10,000 of 20,788 citations (48 %), 500/s, 22 s left",
        "parse: 15,000 of 20,788 citations (72 %), 500/s, 12 s left",
        "parse: 20,000 of 20,788 citations (96 %), 500/s, 1.6 s left",
        "parse: 20,788 citations in 40 s (520/s), loss 2.91, tok/s 512",
    ]


def test_the_rate_follows_the_last_half_minute(clock: SimpleNamespace) -> None:
    with console.progress("train", total=10_000, unit="tokens") as bar:
        for speed in [100] * 10 + [10] * 40:
            clock.now += 1
            bar.advance(speed)
        assert "10/s" in bar.status_text()


def test_what_an_earlier_run_had_done_is_no_speed(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress("download", total=10_000_000, unit="B", start=9_000_000) as bar:
        clock.now += 2
        bar.advance(500_000)
        assert bar.status_text() == "9.50 MB of 10.0 MB (95 %), 250 kB/s, 2.0 s left"
        bar.advance(500_000)
    assert capsys.readouterr().err.splitlines() == [
        "download: 9.00 MB done before, of 10.0 MB",
        "download: 10.0 MB in 2.0 s (500 kB/s)",
    ]


def test_an_unknown_total_is_counted(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("read", unit="pages") as bar:
        clock.now += 1
        bar.advance(206)
        assert bar.status_text() == "206 pages, 206/s"
    assert capsys.readouterr().err.splitlines() == ["read", "read: 206 pages in 1.0 s (206/s)"]


def test_a_failure_says_where_it_stopped(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        with console.progress("parse", total=100, unit="files") as bar:
            clock.now += 3
            bar.advance(40)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().err.splitlines()[-1] == "parse: stopped at 40 of 100 files (40 %) after 3.0 s"


def test_quiet_leaves_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(quiet=True)
    console.info("said")
    with console.progress("parse", total=3) as bar:
        bar.advance(3)
    console.warn("mind")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: mind\n")


def test_escape_sequences_in_texts_are_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    console.info("a \x1b]0;title\x07 \x9b31m\nb\tc")
    error = capsys.readouterr().err
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", error)
    assert "b\tc" in error


def test_a_terminal_gets_a_live_bar_and_one_line_that_stays() -> None:
    code = """
import time
with progress("parse", total=100, unit="citations") as bar:
    bar.advance(40)
    time.sleep(0.3)
    info("between")
    bar.advance(60)
"""
    written = on_terminal(code)
    assert "\x1b[" in written
    assert "40 of 100 citations" in ESCAPE.sub("", written)
    assert "between" in written
    assert re.search(r"parse: 100 citations in [\d.]+ s", written)
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h")  # the cursor comes back


def test_bars_may_be_nested_and_follow_each_other_on_a_terminal() -> None:
    code = """
with progress("outer", total=2) as outer:
    for name in ("first", "second"):
        with progress(name, total=5, unit="B") as inner:
            inner.advance(5)
        outer.advance()
with progress("after", total=1) as bar:
    bar.advance()
"""
    written = ESCAPE.sub("", on_terminal(code))
    for line in ("first: 5 B in", "second: 5 B in", "outer: 2 in", "after: 1 in"):
        assert line in written


def test_no_color_takes_the_colours_away() -> None:
    code = "warn('mind')"
    assert "\x1b[33m" in on_terminal(code)
    assert "\x1b[33m" not in on_terminal(code, NO_COLOR="1")


def test_a_dumb_terminal_gets_plain_lines() -> None:
    written = on_terminal("with progress('parse', total=3) as bar: bar.advance(3)", TERM="dumb")
    assert "\x1b" not in written
    assert written.startswith("parse: 3\n")


def test_a_forked_worker_speaks_while_a_bar_is_alive() -> None:
    code = """
import os, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
with progress("parse", total=3) as bar:
    for _ in range(3):
        child = os.fork()
        if child == 0:
            info("from the worker")
            with progress("inner", total=1) as inner:
                inner.advance()
            os._exit(0)
        os.waitpid(child, 0)
        bar.advance()
"""
    written = on_terminal(code)
    assert written.count("from the worker") == 3
    assert "parse: 3 in" in written


def test_rich_is_imported_on_a_terminal_only() -> None:
    code = "import sys; from meditron.core import console; console.info('x')\n"
    code += "with console.progress('p'): pass\nprint('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_data_goes_to_stdout_while_a_bar_is_drawn() -> None:
    code = "with progress('work', total=3) as bar:\n print('a line'); bar.advance(); print('and one')"
    shown = on_terminal(code, data=b"a line\nand one\n")
    assert "work" in shown
    assert "a line" not in shown
