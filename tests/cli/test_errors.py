"""Error reporting of the command."""

import errno
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from command import Command
from meditron.cli.errors import PEER_FLAGS, explain_error, run_guarded
from meditron.cli.options import print_json
from meditron.core.errors import InputError, MissingExtra, RecipeError
from toy_stages import ToyRun


def raising(error: BaseException) -> int:
    raise error


def test_an_error_is_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_guarded(lambda: raising(InputError("x.gz", "cut off", place="byte 3", hint="get it again"))) == 1
    )
    assert capsys.readouterr().err == "meditron: error: x.gz (byte 3): cut off\nhint: get it again\n"


def test_with_json_an_error_is_one_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    error = RecipeError.combine([RecipeError("x:1: one", hint="a"), RecipeError("x:2: two")])
    assert run_guarded(lambda: raising(error), as_json=True) == 2
    output = capsys.readouterr()
    assert json.loads(output.out)["error"] == {
        "message": "x:1: one",
        "hint": "a",
        "stage": None,
        "exit_code": 2,
        "further_errors": [{"message": "x:2: two", "hint": None}],
    }
    assert output.err == "meditron: error: x:1: one\nhint: a\nmeditron: error: x:2: two\n"
    assert run_guarded(lambda: raising(KeyboardInterrupt()), as_json=True) == 130
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "interrupted"

    def fail_after_output() -> int:
        print_json({"state": "stale"})
        raise InputError("x", "damaged")

    assert run_guarded(fail_after_output, as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == {"state": "stale"}


@pytest.mark.parametrize(("text", "stage"), [("poison\n", "words"), ("bug\n", "words"), (None, "words")])
def test_with_json_a_failed_run_prints_the_stage(
    meditron: Command, toy: ToyRun, text: str | None, stage: str
) -> None:
    if text is None:
        toy.text.unlink()
    else:
        toy.text.write_text(text)
    result = meditron("run", toy.path, "--out", toy.out, "--json")
    error = json.loads(result.out)["error"]
    assert error["exit_code"] == result.code
    assert error["stage"] == stage
    assert f"error: {error['message']}\n" in result.err
    assert f"hint: {error['hint']}\n" in result.err or error["hint"] is None


def test_with_json_a_full_stdout_is_one_line(tmp_path: Path) -> None:
    script = 'exec "$0" -m meditron status nothing.toml --json > /dev/full'
    done = subprocess.run(
        ["/bin/sh", "-c", script, sys.executable], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "nothing.toml" in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("flag", PEER_FLAGS)
def test_flags_of_lm_eval_are_translated(meditron: Command, flag: str) -> None:
    result = meditron("evaluate", "x.gguf", flag, "5")
    assert result.code == 2
    assert f"hint: lm-eval's {flag} is {PEER_FLAGS[flag]} here; meditron evaluate --help" in result.err
    if PEER_FLAGS[flag].startswith("--"):
        assert f"{PEER_FLAGS[flag]} " in meditron("evaluate", "--help").out


def test_a_message_of_several_lines_becomes_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    run_guarded(lambda: raising(InputError("x", "one\n  two")))
    assert capsys.readouterr().err == "meditron: error: x: one two\n"


def test_escape_sequences_are_removed(capsys: pytest.CaptureFixture[str]) -> None:
    run_guarded(lambda: raising(InputError("x", "no such tensor", place="\x1b]0;title\x07", hint="\x9b2J")))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", capsys.readouterr().err)


def test_each_error_of_a_recipe_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    errors = [RecipeError("x:1: one", hint="a"), RecipeError("x:2: two"), RecipeError("x:3: three")]
    assert run_guarded(lambda: raising(RecipeError.combine(errors))) == 2
    assert capsys.readouterr().err == (
        "meditron: error: x:1: one\nhint: a\nmeditron: error: x:2: two\nmeditron: error: x:3: three\n"
    )


@pytest.mark.parametrize(("module", "extra"), [("torch", "train"), ("lxml.etree", "corpus")])
def test_a_missing_library_of_an_extra_names_the_command_that_installs_it(module: str, extra: str) -> None:
    message, hint, code = explain_error(ModuleNotFoundError(f"No module named '{module}'", name=module))
    assert "is not installed" in message
    assert hint == f"pip install 'meditron[{extra}]'"
    assert code == explain_error(MissingExtra(module, extra))[2] == 2


def test_a_missing_library_is_reported_by_the_command(process: Command) -> None:
    code = "import sys; sys.modules['torch'] = None; from meditron.cli import main; main()"
    result = process("-c", code, "convert", "init:tiny", "x.gguf")
    assert result.code == 2
    assert result.err.splitlines() == [
        "meditron: error: torch is not installed; it belongs to the extra 'train'",
        "hint: pip install 'meditron[train]'",
    ]


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(lambda: raising(OSError(errno.ENOSPC, "No space left on device", "/data/x"))) == 1
    assert capsys.readouterr().err.startswith("meditron: error: /data/x: no space left on device\nhint: ")


def test_a_full_stdout_is_one_line() -> None:
    script = 'exec "$0" -m meditron --help > /dev/full'
    done = subprocess.run(
        ["/bin/sh", "-c", script, sys.executable], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "no space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_other_refusals_of_the_system_name_the_file() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/etc/shadow")
    assert explain_error(error) == ("/etc/shadow: permission denied", None, 1)


def test_a_defect_is_called_one_and_shows_its_place_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(lambda: raising(ZeroDivisionError("by zero"))) == 1
    output = capsys.readouterr().err
    assert output.splitlines()[0] == "meditron: error: ZeroDivisionError: by zero"
    assert "--debug" in output
    assert "Traceback" not in output
    run_guarded(lambda: raising(ZeroDivisionError("by zero")), debug=True)
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_debug_shows_the_traceback(
    meditron: Command, monkeypatch: pytest.MonkeyPatch, toy: ToyRun, how: str
) -> None:
    assert "Traceback" not in meditron("run", toy.folder / "x.toml").err
    if how == "environment":
        monkeypatch.setenv("MEDITRON_DEBUG", "1")
    result = meditron("run", toy.folder / "x.toml", *(["--debug"] if how == "flag" else []))
    assert "Traceback" in result.err
    assert result.code == 2


def test_an_interruption_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(lambda: raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "meditron: interrupted\n"


def test_a_reader_that_closes_the_pipe_is_no_error(tmp_path: Path) -> None:
    script = '"$0" -m meditron parse "$1" 2>errors.txt | head -n 1'
    lines = tmp_path / "many.jsonl"
    lines.write_text('{"id": "1", "text": "word word word word word"}\n' * 20_000, encoding="utf-8")
    words = ["/bin/sh", "-c", script, sys.executable, str(lines)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, timeout=60, check=True)
    assert done.stdout.count(b"\n") == 1
    errors = (tmp_path / "errors.txt").read_text(encoding="utf-8")
    assert "Broken" not in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("closed", "code", "message"),
    [
        (">&-", 1, "error: stdout is closed"),
        ("<&-", 0, ""),
        ("2>&-", 0, ""),
        (">&- 2>&-", 1, ""),
    ],
)
def test_a_closed_standard_stream_is_one_line_and_never_written_into_a_file(
    tmp_path: Path, closed: str, code: int, message: str
) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "Aspirin thins the blood."}\n')
    command = f"{shlex.quote(sys.executable)} -m meditron parse a.jsonl {closed}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
    assert ("Aspirin" in done.stdout) is (code == 0)
    assert (tmp_path / "a.jsonl").read_text() == '{"id": "1", "text": "Aspirin thins the blood."}\n'


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")], ids=repr
)
def test_out_of_memory_is_an_expected_error(error: Exception) -> None:
    message, hint, code = explain_error(error)
    assert message.startswith("out of memory: ")
    assert "defect" not in str(hint)
    assert code == 1


def test_an_unexpected_error_shows_no_secret() -> None:
    assert explain_error(KeyError("https://me:SECRET@h/x?sig=SECRET"))[0] == "KeyError: 'https://h/x'"
