"""`run` and `status` as they are typed."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command import Command
from meditron.cli.app import app
from toy_stages import ToyRun


def test_a_run_is_told_and_a_second_one_has_nothing_to_do(meditron: Command, toy: ToyRun) -> None:
    said = meditron("run", toy.path, "--out", toy.out)
    assert said.code == 0
    assert "words: done" in said.err
    assert "words: done" not in said.out
    again = meditron("run", toy.path, "--out", toy.out)
    assert again.code == 0
    assert "Nothing to do: all stages are up to date." in again.err


def test_json_is_one_object_with_the_stable_fields(meditron: Command, toy: ToyRun) -> None:
    told = json.loads(meditron("run", toy.path, "--out", toy.out, "--json").out)
    assert told["run"] == "counts"
    assert set(told["stages"]) == {"words", "total", "rank.short", "rank.long"}
    for stage in told["stages"].values():
        assert {"state", "seconds", "metrics", "drift"} <= set(stage)
        assert stage["state"] == "built"
        assert stage["seconds"] >= 0
    looked = json.loads(meditron("status", toy.path, "--out", toy.out, "--json").out)
    assert {stage["state"] for stage in looked["stages"].values()} == {"fresh"}
    assert looked["stages"]["total"]["metrics"]["words"] == 7


def test_a_dry_run_is_told_and_told_in_json(meditron: Command, toy: ToyRun) -> None:
    said = meditron("run", toy.path, "--out", toy.out, "--dry-run", "--json")
    assert said.code == 0
    assert json.loads(said.out)["stages"]["total"]["action"] == "build"
    assert "not there yet" in said.err
    assert not toy.out.exists()


def test_drift_is_shown_field_by_field_and_ends_with_1(meditron: Command, toy: ToyRun) -> None:
    meditron("run", toy.path, "--out", toy.out)
    typed = ("run", toy.path, "--out", toy.out, "--set", "words.upper=true")
    said = meditron(*typed, "--json")
    assert said.code == 1
    assert json.loads(said.out)["stages"]["words"]["drift"] == [{"field": "upper", "was": False, "now": True}]
    *table, error, hint = said.err.splitlines()
    assert any(line.split() == ["words", "upper", "false", "true"] for line in table)
    assert error.startswith("meditron: error: words was made from something else")
    assert "--rebuild words" in hint
    assert "--accept-drift" in hint
    assert meditron(*typed, "--dry-run").code == 1
    assert meditron("status", toy.path, "--out", toy.out, "--set", "words.upper=true").code == 1
    assert meditron(*typed, "--accept-drift").code == 0
    assert meditron(*typed, "--rebuild", "words").code == 0
    assert meditron(*typed).code == 0


def test_status_verifies(meditron: Command, toy: ToyRun) -> None:
    meditron("run", toy.path, "--out", toy.out)
    file = toy.run_folder / "total/total.json"
    written = file.stat()
    file.write_bytes(file.read_bytes().replace(b"heart", b"haert"))
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert meditron("status", toy.path, "--out", toy.out).code == 0
    said = meditron("status", toy.path, "--out", toy.out, "--verify")
    assert said.code == 1
    assert "files.total.json" in said.out


def test_a_typo_in_a_key_names_the_nearest(meditron: Command, toy: ToyRun) -> None:
    said = meditron("run", toy.path, "--set", "words.upepr=true", "--dry-run")
    assert said.code == 2
    assert "did you mean 'upper'" in said.err.splitlines()[0]
    assert "Traceback" not in said.err


def test_a_failed_stage_is_one_line_and_status_remembers(meditron: Command, toy: ToyRun) -> None:
    toy.text.write_text("the heart\npoison\n", encoding="utf-8")
    said = meditron("run", toy.path, "--out", toy.out)
    assert said.code == 1
    assert "a poisoned line" in said.err
    looked = meditron("status", toy.path, "--out", toy.out)
    assert looked.code == 1
    assert "a poisoned line" in looked.out


def test_a_full_disk_in_a_stage_is_one_line(meditron: Command, toy: ToyRun) -> None:
    toy.text.write_text("full\n", encoding="utf-8")
    said = meditron("run", toy.path, "--out", toy.out)
    assert said.code == 1
    assert "no space left on device" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("rebuild", [False, True])
def test_an_interruption_says_how_to_go_on(meditron: Command, toy: ToyRun, rebuild: bool) -> None:
    meditron("run", toy.path, "--out", toy.out, "--until", "words")
    if rebuild:
        toy.text.write_text("interrupt\n", encoding="utf-8")
        said = meditron("run", toy.path, "--out", toy.out, "--rebuild", "words")
        assert "without --rebuild" in said.err
    else:
        toy.text.write_text("interrupt\n", encoding="utf-8")
        said = meditron("run", toy.path, "--out", toy.folder / "elsewhere")
        assert "the same command goes on" in said.err
    assert said.code == 130
    assert "Traceback" not in said.err


def test_the_next_command_can_be_typed(meditron: Command, toy: ToyRun) -> None:
    said = meditron("run", toy.path, "--out", toy.out)
    assert "next:" not in said.err, "these stages leave no model to talk with"
    (toy.run_folder / "total/config.json").write_text("{}", encoding="utf-8")
    said = meditron("run", toy.path, "--out", toy.out)
    (offered,) = [line.partition(":")[2] for line in said.err.splitlines() if line.startswith("next:")]
    command, bound, _ = app.parse_args(shlex.split(offered)[1:], exit_on_error=False, print_error=False)
    assert command.__name__ == "generate"
    assert bound.arguments["model"] == str(toy.run_folder / "total")


def test_quiet_answers_and_says_nothing_else(meditron: Command, toy: ToyRun) -> None:
    said = meditron("run", toy.path, "--out", toy.out, "--quiet")
    assert (said.code, said.err) == (0, "")
    assert "rank.long" in said.out
    assert (toy.run_folder / "rank.long/manifest.json").is_file()


def test_a_real_interruption_ends_with_130_and_the_same_command_goes_on(
    meditron: Command, toy: ToyRun
) -> None:
    code = (
        "import sys; from toy_stages import STAGES; from meditron.cli import main\n"
        "from meditron.recipe import load_recipe\n"
        "load_recipe.__kwdefaults__['stages'] = STAGES; main(sys.argv[1:])"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    child = subprocess.Popen(
        [sys.executable, "-c", code, "run", str(toy.path), "--out", str(toy.out)],
        env={**os.environ, "PYTHONPATH": paths, "TEST_WAIT_AT": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not (toy.run_folder / "words/waiting.txt").exists():
        assert time.monotonic() < until
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert err.splitlines()[-2:] == [
        "what is done is kept: the same command goes on from there",
        "meditron: interrupted",
    ]
    assert meditron("run", toy.path, "--out", toy.out).code == 0
