"""The commands `run` and `status`."""

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


def test_a_run_prints_its_stages_and_a_second_one_has_nothing_to_do(meditron: Command, toy: ToyRun) -> None:
    result = meditron("run", toy.path, "--out", toy.out)
    assert result.code == 0
    assert "stage 1 of 4: words\n" in result.err
    assert "stage 1 of 4: words finished in" in result.err
    assert "stage 1" not in result.out
    again = meditron("run", toy.path, "--out", toy.out)
    assert again.code == 0
    assert "Nothing to do: all stages are up to date." in again.err


def test_json_is_one_object_with_the_stable_fields(meditron: Command, toy: ToyRun) -> None:
    output = json.loads(meditron("run", toy.path, "--out", toy.out, "--json").out)
    assert output["run"] == "counts"
    assert set(output["stages"]) == {"words", "total", "rank.short", "rank.long"}
    for stage in output["stages"].values():
        assert {"state", "seconds", "metrics", "drift"} <= set(stage)
        assert stage["state"] == "built"
        assert stage["seconds"] >= 0
    current = json.loads(meditron("status", toy.path, "--out", toy.out, "--json").out)
    assert {stage["state"] for stage in current["stages"].values()} == {"fresh"}
    assert current["stages"]["total"]["metrics"]["words"] == 7


def test_a_dry_run_prints_actions_as_a_table_and_as_json(meditron: Command, toy: ToyRun) -> None:
    result = meditron("run", toy.path, "--out", toy.out, "--dry-run", "--json")
    assert result.code == 0
    assert json.loads(result.out)["stages"]["total"]["action"] == "build"
    assert "not built yet" in result.err
    assert not toy.out.exists()


def test_problems_of_a_dry_run_are_errors_with_their_hints(meditron: Command, tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers/a.jsonl").write_text('{"text": "Aspirin thins the blood."}\n')
    (tmp_path / "papers/about.txt").write_text("These are papers.\n")
    (tmp_path / "x.toml").write_text(f"[corpus.sources.a]\nfrom = '{tmp_path}/papers'\n")
    result = meditron("run", tmp_path / "x.toml", "--dry-run", "--out", tmp_path / "runs")
    assert result.code == 1
    problem = "plain text in a folder of jsonl files (such as a.jsonl)\n"
    assert f"error: corpus.a: {tmp_path}/papers/about.txt: {problem}hint: leave it out with" in result.err
    assert "warning:" not in result.err


def test_drift_is_shown_field_by_field_and_ends_with_1(meditron: Command, toy: ToyRun) -> None:
    meditron("run", toy.path, "--out", toy.out)
    typed = ("run", toy.path, "--out", toy.out, "--set", "words.upper=true")
    result = meditron(*typed, "--json")
    assert result.code == 1
    assert json.loads(result.out)["stages"]["words"]["drift"] == [
        {"field": "upper", "was": False, "now": True}
    ]
    *table, error, hint = result.err.splitlines()
    assert any(line.split() == ["words", "upper", "false", "true"] for line in table)
    assert error.startswith("meditron: error: words is out of date")
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
    result = meditron("status", toy.path, "--out", toy.out, "--verify")
    assert result.code == 1
    assert "files.total.json" in result.out


def test_a_typo_in_a_key_names_the_nearest(meditron: Command, toy: ToyRun) -> None:
    result = meditron("run", toy.path, "--set", "words.upepr=true", "--dry-run")
    assert result.code == 2
    assert "did you mean 'upper'" in result.err.splitlines()[0]
    assert "Traceback" not in result.err


def test_a_failed_stage_is_one_line_and_status_remembers(meditron: Command, toy: ToyRun) -> None:
    toy.text.write_text("the heart\npoison\n", encoding="utf-8")
    result = meditron("run", toy.path, "--out", toy.out)
    assert result.code == 1
    assert "a poisoned line" in result.err
    current = meditron("status", toy.path, "--out", toy.out)
    assert current.code == 1
    assert "a poisoned line" in current.out


def test_a_full_disk_in_a_stage_is_one_line(meditron: Command, toy: ToyRun) -> None:
    toy.text.write_text("full\n", encoding="utf-8")
    result = meditron("run", toy.path, "--out", toy.out)
    assert result.code == 1
    assert "no space left on device" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("rebuild", [False, True])
def test_an_interruption_prints_how_to_continue(meditron: Command, toy: ToyRun, rebuild: bool) -> None:
    meditron("run", toy.path, "--out", toy.out, "--until", "words")
    if rebuild:
        toy.text.write_text("interrupt\n", encoding="utf-8")
        result = meditron("run", toy.path, "--out", toy.out, "--rebuild", "words")
        assert "without --rebuild" in result.err
    else:
        toy.text.write_text("interrupt\n", encoding="utf-8")
        result = meditron("run", toy.path, "--out", toy.folder / "elsewhere")
        assert "the same command continues" in result.err
    assert result.code == 130
    assert "Traceback" not in result.err


def test_the_offered_next_command_is_valid(meditron: Command, toy: ToyRun) -> None:
    result = meditron("run", toy.path, "--out", toy.out)
    assert "next:" not in result.err, "these stages leave no model"
    (toy.run_folder / "total/config.json").write_text("{}", encoding="utf-8")
    result = meditron("run", toy.path, "--out", toy.out)
    (offered,) = [line.partition(":")[2] for line in result.err.splitlines() if line.startswith("next:")]
    command, bound, _ = app.parse_args(shlex.split(offered)[1:], exit_on_error=False, print_error=False)
    assert command.__name__ == "generate"
    assert bound.arguments["model"] == str(toy.run_folder / "total")


def test_quiet_prints_the_result_only(meditron: Command, toy: ToyRun) -> None:
    result = meditron("run", toy.path, "--out", toy.out, "--quiet")
    assert (result.code, result.err) == (0, "")
    assert "rank.long" in result.out
    assert (toy.run_folder / "rank.long/manifest.json").is_file()


def test_sigint_ends_with_130_and_the_same_command_continues(meditron: Command, toy: ToyRun) -> None:
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
        "finished work is kept: the same command continues",
        "meditron: interrupted",
    ]
    assert meditron("run", toy.path, "--out", toy.out).code == 0
