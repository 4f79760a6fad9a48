"""Tables on narrow terminals: every number whole, every row to be told apart."""

import os
import pty
import re
import subprocess
import sys

import pytest

PREFIX = "runs/quickstart/finetune"
MODELS = [f"{PREFIX}.sections", f"{PREFIX}.questions", "base", "quantize:Q4_K_M"]
SCORES = {
    model: [f"{n}7.{n}1 [{n}6.0{n}, {n}8.2{n}]", f"{n}1.8 % [{n}0.3, {n}3.{n}]", f"{n}99,136"]
    for n, model in enumerate(MODELS, start=1)
}


def on_terminal(code: str, width: int, **environment: str) -> str:
    """What a program shows on a terminal of this width, stdout and stderr alike."""
    ours, theirs = pty.openpty()
    settings = {"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": str(width), "NO_COLOR": "1"}
    program = f"from meditron.core.console import *\n{code}"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=theirs, stderr=theirs, env=settings | environment
    ) as process:
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(ours, 65536):
                written += piece
        except OSError:  # how Linux tells that the other end is closed
            pass
        finally:
            os.close(ours)
    assert process.returncode == 0, written
    return re.sub(r"\x1b\[[0-9;]*m", "", written.decode()).replace("\r\n", "\n")


def shown(headers: list[str], rows: list[list[str]], width: int, *, answer: bool = True) -> str:
    return on_terminal(f"table({headers!r}, {rows!r}, title='A caption', answer={answer})", width)


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_no_number_is_cut_and_every_row_is_told_apart(width: int, answer: bool) -> None:
    headers = ["model", "pubmed (medical): perplexity", "pubmed-sections: accuracy, n = 600", "tokens"]
    text = shown(headers, [[model, *cells] for model, cells in SCORES.items()], width, answer=answer)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    for cells in SCORES.values():
        for cell in cells:
            assert sum(cell in line for line in lines) == 1
    numbers = [cell for cells in SCORES.values() for cell in cells]
    for model in MODELS[:2] if width >= 60 else ():
        for cell in SCORES[model]:
            # The name begins in the number's line and ends before the next number's.
            at = next(place for place, line in enumerate(lines) if cell in line)
            rest = [
                place for place, line in enumerate(lines) if any(n in line for n in numbers) and place > at
            ]
            name = "".join(line.split("  ")[1] for line in lines[at : min(rest, default=None)])
            assert name.startswith(model), (cell, name)


def test_rows_that_two_columns_name_are_led_by_both() -> None:
    rows = [
        [task, model, "22.5 % [18.1, 27.4]", "11.2 % [10.1, 12.4]"]
        for task in ("a-task", "b-task")
        for model in MODELS
    ]
    text = shown(["task", "model", "accuracy", "macro-F1 of the same answers"], rows, 60)
    blocks = [line for line in text.splitlines() if "task " in line and "model" in line]
    assert len(blocks) == 2


def test_one_column_too_many_makes_lists() -> None:
    names = [f"{'long-name-of-a-column-'}{n}" for n in range(4)]
    rows = [["a" * 30, "b" * 30, f"{n}2,345,678 [1,234,567, 9,876,543]", "x"] for n in range(2)]
    text = shown(names, rows, 40)
    assert max(map(len, text.splitlines())) <= 40
    for n in range(2):
        assert f"{n}2,345,678" in text


def test_a_wide_terminal_and_a_pipe_get_one_table() -> None:
    rows = [[model, *cells] for model, cells in SCORES.items()]
    for text in (shown(["model", "p", "a", "t"], rows, 160), piped(["model", "p", "a", "t"], rows)):
        assert sum(set(line.strip()) == {"─"} for line in text.splitlines()) == 1
        for model, cells in SCORES.items():
            assert any(model in line and all(c in line for c in cells) for line in text.splitlines())


def piped(headers: list[str], rows: list[list[str]]) -> str:
    code = f"from meditron.core.console import *\ntable({headers!r}, {rows!r}, answer=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_stream_without_unicode_gets_substitutes(encoding: str) -> None:
    code = """
from meditron.core.console import *
substitute_unencodable()
say("base → pretrain: −0.19 … é")
warn("0 ≤ x")
table(["a → b"], [["−1.5"], ["心"]], answer=True)
with progress("rows", total=2) as bar: bar.advance(2)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"-1.5" in done.stdout
    assert b"?" in done.stdout
    assert b"-0.19" in done.stderr


@pytest.mark.parametrize("width", [80, 60])
def test_a_terminal_that_is_not_utf8_gets_tables_in_ascii(width: int) -> None:
    rows = [[model, *cells] for model, cells in SCORES.items()]
    code = (
        f"substitute_unencodable()\ntable(['model → b', 'p', 'a', 't'], {rows!r}, answer=True); warn('− …')"
    )
    text = on_terminal(code, width, PYTHONIOENCODING="ascii")
    assert text.isascii()
    assert "27.21 [26.02, 28.22]" in text


def test_messages_do_not_go_to_stdout_if_stderr_is_closed() -> None:
    code = "from meditron.core.console import *; say('hidden'); warn('hidden'); table(['a'], [['1']])"
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
