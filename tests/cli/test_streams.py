"""Standard streams that are not UTF-8, or whose reader closes them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LINE = {"id": "1", "text": "café − 心 🫀 in a text that is long enough"}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps(LINE) + "\n", encoding="utf-8")
    return path


def shell(script: str, *words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c", script, sys.executable, *map(str, words)],
        capture_output=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_help_and_json_are_complete_in_any_encoding(texts: Path, environment: dict[str, str]) -> None:
    help_page = shell('"$0" -m meditron --help', **environment)
    assert (help_page.returncode, help_page.stderr) == (0, b"")
    read = shell('"$0" -m meditron parse "$1"', texts, **environment)
    assert read.returncode == 0, read.stderr
    assert b"Traceback" not in read.stderr
    assert json.loads(read.stdout.decode())["sections"][0]["text"] == LINE["text"]
    missing = shell('"$0" -m meditron parse "é − 心.xml"', **environment)
    assert missing.returncode == 2
    assert b"Traceback" not in missing.stderr
    assert b"defect" not in missing.stderr


def test_a_reader_that_closes_the_pipe_gives_the_exit_code_of_sigpipe(tmp_path: Path) -> None:
    many = tmp_path / "many.jsonl"
    lines = (json.dumps(LINE | {"id": str(number)}) + "\n" for number in range(20_000))
    many.write_text("".join(lines), encoding="utf-8")
    done = shell('"$0" -m meditron parse "$1" | head -n 1', many)
    assert done.returncode == 141
    assert done.stdout.count(b"\n") == 1
    assert b"Traceback" not in done.stderr
    assert b"ignored" not in done.stderr
    both = shell('"$0" -m meditron parse "$1" 2>&1 | head -n 1', many)
    assert both.returncode in (0, 141)
    assert (both.stderr, both.stdout.count(b"\n")) == (b"", 1)
    # A reader that closes stderr only.
    assert shell('"$0" -m meditron parse "$1" 2> >(true) >/dev/null', many).stderr == b""
