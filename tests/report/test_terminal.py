"""Tables on narrow terminals: no number and no name is broken."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from meditron.core import console
from meditron.report.terminal import print_table
from terminal_output import terminal_output

PREFIX = "runs/quickstart/finetune"
MODELS = [f"{PREFIX}.sections", f"{PREFIX}.questions", "base", "quantize:Q4_K_M"]
SCORES = {
    model: [f"{n}7.{n}1 [{n}6.0{n}, {n}8.2{n}]", f"{n}1.8 % [{n}0.3, {n}3.{n}]", f"{n}99,136"]
    for n, model in enumerate(MODELS, start=1)
}


def on_terminal(code: str, width: int, **environment: str) -> str:
    """What a program shows on a terminal of this width, stdout and stderr alike."""
    settings = {"TERM": "xterm", "COLUMNS": str(width), "NO_COLOR": "1"}
    program = f"from meditron.core.console import *\nfrom meditron.report.terminal import print_table\n{code}"
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal_output(program, settings | environment))


def shown(headers: list[str], rows: list[list[str]], width: int, *, answer: bool = True) -> str:
    return on_terminal(f"print_table({headers!r}, {rows!r}, title='A caption', answer={answer})", width)


HEADERS = ["model", "pubmed (medical): perplexity", "pubmed-sections: accuracy, n = 600", "tokens"]


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_no_number_and_no_name_is_broken(width: int, answer: bool) -> None:
    text = shown(HEADERS, [[model, *cells] for model, cells in SCORES.items()], width, answer=answer)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    for model, cells in SCORES.items():
        assert sum(model in line for line in lines) == 1, model
        for cell in cells:
            assert sum(cell in line for line in lines) == 1


@pytest.mark.parametrize("width", [80, 60, 40])
def test_a_table_that_is_too_wide_has_a_block_per_row(width: int) -> None:
    text = shown(HEADERS, [[model, *cells] for model, cells in SCORES.items()], width)
    places = [text.index(model) for model in SCORES]
    assert places == sorted(places)
    for model, start, end in zip(SCORES, places, [*places[1:], len(text)], strict=True):
        block = text[start:end]
        assert all(cell in block for cell in SCORES[model])
        assert all(header.split()[0] in block for header in HEADERS[1:])
        # The name leads its block, and the values are indented below it.
        first, *rest = block.splitlines()
        assert first.strip() == model
        assert all(line.startswith("  ") for line in rest if line.strip() and "A caption" not in line)


def test_empty_cells_have_no_line_in_a_block() -> None:
    text = shown(["model", *"abcdef"], [["base", *["12,345 [12,000, 12,999]"] * 3, "", "", ""]], 60)
    assert [line.split()[0] for line in text.splitlines()[1:] if line.strip()] == ["base", "a", "b", "c"]


def test_sentences_wrap_between_words() -> None:
    sentence = "finetune.sections predicts better than base on held-out text of both sources"
    text = shown(["model", "verdict"], [["finetune.sections", sentence]], 60)
    assert max(map(len, text.splitlines())) <= 60
    assert "finetune.sections" in text
    assert all(word in text for word in sentence.split())


def test_long_headers_fold_in_blocks() -> None:
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
    code = (
        f"from meditron.report.terminal import print_table\nprint_table({headers!r}, {rows!r}, answer=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def _loud() -> Iterator[None]:
    yield
    console.configure(quiet=False)


@pytest.mark.usefixtures("_loud")
def test_quiet_leaves_answers_only(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(quiet=True)
    print_table(["a"], [[1]])
    print_table(["b"], [[2]], answer=True)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "2" in captured.out
    assert "a" not in captured.out


def test_a_table_in_a_log_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "word " * 60 + "end"
    print_table(["model", "perplexity"], [[long, "15.85"], ["base [a]", "9.1"]], title="Held-out [text]")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Held-out [text]"
    assert any(long in line for line in lines)
    assert lines[-1].startswith("  base [a]")
    assert len(lines[-1]) == len(lines[-2])  # numbers are aligned right
    assert all(line == line.rstrip() for line in lines)


def test_escape_sequences_in_cells_are_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["x"], [["\x1b[31mred"]], title="\x1b]0;title\x07")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", capsys.readouterr().err)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_stream_without_unicode_gets_substitutes(encoding: str) -> None:
    code = """
from meditron.core.console import *
substitute_unencodable()
info("base → pretrain: −0.19 … é")
warn("0 ≤ x")
from meditron.report.terminal import print_table
print_table(["a → b"], [["−1.5"], ["心"]], answer=True)
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
    headers = ["model → b", "p", "a", "t"]
    code = f"substitute_unencodable()\nprint_table({headers!r}, {rows!r}, answer=True); warn('− …')"
    text = on_terminal(code, width, PYTHONIOENCODING="ascii")
    assert text.isascii()
    assert "27.21 [26.02, 28.22]" in text


def test_messages_do_not_go_to_stdout_if_stderr_is_closed() -> None:
    code = """
from meditron.core.console import *
from meditron.report.terminal import print_table
info("hidden"); warn("hidden"); print_table(["a"], [["1"]])
"""
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
