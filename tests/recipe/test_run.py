"""Runs of a recipe: stages built, kept, refused or continued; kills; the lock on the run's folder."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from meditron.core.errors import DriftError, InputError, MeditronError, RecipeError, SourceError, UsageError
from meditron.parallel.launch import LocalRanks
from meditron.parallel.task import ONE_PROCESS
from meditron.recipe import load_recipe, run_recipe, status
from meditron.recipe.run import exclusive_run
from meditron.store.manifest import read_manifest
from toy_stages import STAGES, ToyRun, states

ALL = ["words", "total", "rank.short", "rank.long"]


def modification_times(toy: ToyRun) -> dict[str, int]:
    """Return the modification time of each file of the stages."""
    files = sorted(file for file in toy.run_folder.glob("*/**/*") if file.is_file())
    return {str(file): file.stat().st_mtime_ns for file in files}


def run_in_child(toy: ToyRun, *, wait: bool = True, **environment: str) -> subprocess.Popen[bytes]:
    """Run the recipe in a child process."""
    code = (
        "from toy_stages import ToyRun; from pathlib import Path; import sys; ToyRun(Path(sys.argv[1])).run()"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(toy.folder)],
        env={**os.environ, **environment, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
    )
    if wait:
        child.communicate(timeout=60)
    return child


def test_stages_are_built_in_order_and_a_second_run_is_a_no_op(toy: ToyRun) -> None:
    result = toy.run()
    assert states(result) == dict.fromkeys(ALL, "built")
    assert json.loads((toy.run_folder / "rank.long/rank.json").read_text()) == {"the": 3, "heart": 2}
    before = modification_times(toy)
    again = toy.run()
    assert states(again) == dict.fromkeys(ALL, "fresh")
    assert again.built_stages == []
    assert modification_times(toy) == before


def test_a_manifest_records_config_and_inputs_and_digests_chain(toy: ToyRun) -> None:
    toy.run("words.threads=3")
    words = read_manifest(toy.run_folder / "words")
    total = read_manifest(toy.run_folder / "total")
    assert words is not None
    assert total is not None
    assert (words.kind, words.name, words.seed, words.licences) == ("words", "words", 7, {"text": "CC0"})
    assert words.beside == {"threads": 3}
    assert "threads" not in words.payload["config"]
    assert {file.path for file in words.files} == {"000.json", "001.json", "002.json"}
    assert words.inputs["text"].reference == "file:text.txt"
    assert words.metrics["lines"] == 3
    assert words.metrics["seconds"] >= 0
    assert total.inputs["words"].digest == words.digest
    assert total.licences == {"text": "CC0"}
    assert words.started <= words.ended


def test_a_nonsemantic_field_is_no_drift(toy: ToyRun) -> None:
    toy.run()
    assert toy.run("words.threads=9").built_stages == []


def test_drift_stops_the_run_with_the_changed_fields_and_changes_nothing(toy: ToyRun) -> None:
    toy.run()
    before = modification_times(toy)
    with pytest.raises(DriftError) as caught:
        toy.run("words.upper=true", "words.ratio=0.25")
    assert "words is out of date" in caught.value.message
    assert "upper: false → true" in caught.value.message
    assert "ratio: 0.5 → 0.25" in caught.value.message
    assert "--rebuild words" in str(caught.value.hint)
    assert "total, rank.short, rank.long" in str(caught.value.hint)
    assert "--accept-drift" in str(caught.value.hint)
    assert modification_times(toy) == before


def test_status_lists_changed_fields_also_of_dependents(toy: ToyRun) -> None:
    toy.run()
    current = status(toy.load("words.upper=true"), out=toy.out)
    assert states(current) == dict.fromkeys(ALL, "stale")
    stages = current.to_json()["stages"]
    assert stages["words"]["drift"] == [{"field": "upper", "was": False, "now": True}]
    assert stages["total"]["drift"][0]["field"] == "inputs.words"
    assert stages["total"]["drift"][0]["now"] == "words is out of date"
    assert {stage.state_text for stage in current.stages.values()} == {"out of date"}
    assert not current.none_stale_or_failed
    assert status(toy.load(), out=toy.out).none_stale_or_failed


def test_a_changed_input_is_drift(toy: ToyRun) -> None:
    toy.run()
    toy.text.write_text("other words\n", encoding="utf-8")
    with pytest.raises(DriftError, match=r"words .*inputs\.text"):
        toy.run()


def test_a_raised_stage_version_is_drift(toy: ToyRun) -> None:
    toy.run()
    toy.stages = (STAGES[0], replace(STAGES[1], version=2), STAGES[2])
    with pytest.raises(DriftError, match=r"total .*version: 1 → 2"):
        toy.run()


def test_rebuild_builds_the_stage_and_its_dependents_only(toy: ToyRun) -> None:
    toy.run()
    before = modification_times(toy)
    result = toy.run("rank.long.keep=1", rebuild=["rank.long"])
    assert result.built_stages == ["rank.long"]
    assert {f for f, t in modification_times(toy).items() if before.get(f) != t} == {
        str(toy.run_folder / "rank.long" / name) for name in ("rank.json", "manifest.json")
    }
    assert toy.run("rank.long.keep=1", rebuild=["total"]).built_stages == ["total", "rank.short", "rank.long"]


def test_accept_drift_keeps_a_stage_and_its_manifest_as_they_are(toy: ToyRun) -> None:
    toy.run(until="total")
    result = toy.run("words.upper=true", accept_drift=True)
    assert result.built_stages == ["rank.short", "rank.long"]
    words = read_manifest(toy.run_folder / "words")
    assert words is not None
    assert words.payload["config"]["upper"] is False
    with pytest.raises(DriftError):
        toy.run("words.upper=true")


def test_accept_drift_continues_after_an_interruption(toy: ToyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run(until="words")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("toy_stages.total", interrupted)
        with pytest.raises(KeyboardInterrupt):
            toy.run("words.upper=true", accept_drift=True)
    with pytest.raises(DriftError, match="words is out of date"):
        toy.run("words.upper=true")
    planned = toy.run("words.upper=true", accept_drift=True, dry_run=True)
    assert [planned.decisions[name].action for name in ("words", "total")] == ["keep", "continue"]
    result = toy.run("words.upper=true", accept_drift=True)
    assert "total" in result.built_stages


def test_only_and_until_select_stages(toy: ToyRun) -> None:
    assert toy.run(until="total").built_stages == ["words", "total"]
    assert toy.run(only="rank.long").built_stages == ["rank.long"]
    with pytest.raises(UsageError, match="exclude each other"):
        toy.run(only="total", until="total")
    with pytest.raises(UsageError, match="did you mean 'total'"):
        toy.run(only="totl")
    with pytest.raises(UsageError, match="did you mean 'total'"):
        toy.run(rebuild=["totl"])
    with pytest.raises(UsageError, match="left out by"):
        toy.run(only="total", rebuild=["words"])


def test_only_needs_finished_dependencies(toy: ToyRun) -> None:
    with pytest.raises(UsageError, match="total depends on words, which is missing") as caught:
        toy.run(only="total")
    assert "--until words" in str(caught.value.hint)


def test_a_dry_run_gives_actions_inputs_and_reasons_and_writes_nothing(toy: ToyRun) -> None:
    plan = toy.run(dry_run=True).to_json()
    assert not toy.out.exists()
    assert plan["run"] == "counts"
    assert plan["stages"]["words"] == {
        "state": "missing",
        "seconds": None,
        "metrics": {},
        "drift": [],
        "action": "build",
        "why": "not built yet",
        "inputs": {"text": "file:text.txt"},
    }
    toy.run(until="total")
    actions = toy.run("rank.long.on=words", dry_run=True, rebuild=["total"]).to_json()["stages"]
    assert {name: stage["action"] for name, stage in actions.items()} == {
        "words": "keep",
        "total": "rebuild",
        "rank.short": "build",
        "rank.long": "build",
    }
    drifted = toy.run("words.upper=true", dry_run=True)
    assert drifted.refused_stages == ["words", "total"]


def test_a_dry_run_downloads_nothing(toy: ToyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = toy.folder / "cache"
    monkeypatch.setenv("MEDITRON_CACHE", str(cache))
    # No host has this name (RFC 6761): a fetch would fail.
    assert toy.run('words.text="https://nowhere.invalid/x.txt"', dry_run=True).to_json()
    assert not cache.exists()


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_killed_run_continues_and_ends_with_the_same_bytes(toy: ToyRun, line: int) -> None:
    killed = run_in_child(toy, TEST_KILL_AT=str(line))
    assert killed.returncode == -signal.SIGKILL
    assert states(status(toy.load(), out=toy.out))["words"] == "partial"
    result = toy.run()
    assert states(result) == dict.fromkeys(ALL, "built")
    assert result.stages["words"].metrics["counted"] == 3 - line
    assert result.stages["words"].metrics["attempts"] == 2
    whole = ToyRun(toy.folder / "whole")
    whole.folder.mkdir()
    recipe = load_recipe(toy.path, stages=STAGES)
    run_recipe(recipe, out=whole.out)
    for name in ALL:
        resumed, straight = read_manifest(toy.run_folder / name), read_manifest(whole.run_folder / name)
        assert resumed is not None
        assert straight is not None
        assert resumed.digest == straight.digest
    assert {p.name for p in (toy.run_folder / "words").iterdir()} == {
        "000.json", "001.json", "002.json", "manifest.json",
    }  # fmt: skip


def test_an_unfinished_stage_is_not_continued_with_another_config(toy: ToyRun) -> None:
    run_in_child(toy, TEST_KILL_AT="1")
    with pytest.raises(DriftError, match=r"words is unfinished, and its config .*upper") as caught:
        toy.run("words.upper=true")
    assert "--accept-drift" not in str(caught.value.hint)
    with pytest.raises(DriftError):
        toy.run("words.upper=true", accept_drift=True)
    result = toy.run("words.upper=true", rebuild=["words"])
    assert result.stages["words"].metrics["counted"] == 3


def test_a_second_run_in_the_same_folder_is_refused(toy: ToyRun) -> None:
    child = run_in_child(toy, wait=False, TEST_WAIT_AT="1")
    try:
        until = time.monotonic() + 30
        while not (toy.run_folder / "words/waiting.txt").exists():
            assert time.monotonic() < until
            assert child.poll() is None
            time.sleep(0.02)
        with pytest.raises(MeditronError, match=f"another run is writing here, process {child.pid}"):
            toy.run()
        assert toy.run(dry_run=True).refused_stages == []
    finally:
        child.kill()
        child.communicate()
    with exclusive_run(toy.run_folder):
        pass


def test_a_failure_is_recorded_and_the_stage_continues_after_a_fix(toy: ToyRun) -> None:
    toy.text.write_text("the heart\npoison\n", encoding="utf-8")
    with pytest.raises(InputError, match="a poisoned line"):
        toy.run()
    current = status(toy.load(), out=toy.out)
    assert states(current)["words"] == "failed"
    assert "a poisoned line" in current.to_json()["stages"]["words"]["message"]
    assert not current.none_stale_or_failed
    with pytest.raises(InputError, match="a poisoned line"):
        toy.run()
    toy.text.write_text("the heart\nbug\n", encoding="utf-8")
    with pytest.raises(DriftError):
        toy.run()
    with pytest.raises(ZeroDivisionError):
        toy.run(rebuild=["words"])
    assert status(toy.load(), out=toy.out).stages["words"].failure == "ZeroDivisionError: a defect"


def test_an_interruption_is_not_a_failure(toy: ToyRun) -> None:
    toy.text.write_text("the heart\ninterrupt\n", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        toy.run()
    assert states(status(toy.load(), out=toy.out))["words"] == "partial"


def test_a_full_disk_passes_through_and_is_recorded(toy: ToyRun) -> None:
    toy.text.write_text("the heart\nfull\n", encoding="utf-8")
    with pytest.raises(OSError, match="No space left"):
        toy.run()
    assert "No space left" in str(status(toy.load(), out=toy.out).stages["words"].failure)


def test_a_stage_without_files_is_an_error(toy: ToyRun) -> None:
    toy.stages = (STAGES[0], replace(STAGES[1], work="toy_stages:no_files"), STAGES[2])
    with pytest.raises(MeditronError, match="total ended without leaving a file"):
        toy.run()


def test_damaged_artifacts_can_only_be_rebuilt(toy: ToyRun) -> None:
    toy.run()
    lost = toy.run_folder / "words/001.json"
    lost.unlink()
    with pytest.raises(DriftError, match=r"words is damaged: files\.001\.json: whole → is missing") as caught:
        toy.run(accept_drift=True)
    assert "--accept-drift" not in str(caught.value.hint)
    assert toy.run(rebuild=["words"]).built_stages == ALL


@pytest.mark.parametrize("bytes_", [b"", b"{", b'{"kind": 3}', b"\xff"])
def test_a_damaged_manifest_is_reported_and_rebuilt(toy: ToyRun, bytes_: bytes) -> None:
    toy.run()
    (toy.run_folder / "total/manifest.json").write_bytes(bytes_)
    current = status(toy.load(), out=toy.out)
    assert states(current)["total"] == "stale"
    assert current.stages["total"].drift[0].field == "files.manifest.json"
    with pytest.raises(DriftError, match="total is damaged"):
        toy.run()
    assert "total" in toy.run(rebuild=["total"]).built_stages


def test_files_without_a_manifest_are_not_an_unfinished_stage(toy: ToyRun) -> None:
    toy.run()
    (toy.run_folder / "words/manifest.json").unlink()
    with pytest.raises(DriftError, match="words is damaged"):
        toy.run()


def test_verify_finds_changed_bytes_of_the_same_size(toy: ToyRun) -> None:
    toy.run()
    file = toy.run_folder / "total/total.json"
    written = file.stat()
    file.write_bytes(file.read_bytes().replace(b"heart", b"haert"))
    assert states(status(toy.load(), out=toy.out))["total"] == "stale"  # newer than its manifest
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert status(toy.load(), out=toy.out).none_stale_or_failed
    current = status(toy.load(), out=toy.out, verify=True)
    assert states(current)["total"] == "stale"
    assert current.stages["total"].drift[0].field == "files.total.json"


def test_dependents_are_kept_if_a_rebuilt_stage_is_unchanged(
    toy: ToyRun,
) -> None:
    toy.run()
    for file in (toy.run_folder / "total").iterdir():
        file.unlink()
    assert toy.run(dry_run=True).decisions["rank.long"].why == "up to date if total is unchanged"
    assert toy.run().built_stages == ["total"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["total.on=base"], ["--set total.on=base", "total refers to 'base', which is not set"]),
        (
            ["total.on=wrods"],
            ["'wrods'", "neither a stage of this recipe nor a file", "did you mean 'words'"],
        ),
        (["total.on=rank"], ["'rank'", "neither a stage"]),
        (["total.on=rank.long"], ["cycle", "total → rank.long → total"]),
    ],
)
def test_references_that_name_nothing_are_refused(
    toy: ToyRun, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        toy.run(*overrides)
    for word in words:
        assert word in caught.value.message


def test_an_unknown_preset_is_refused_before_anything_is_built(toy: ToyRun) -> None:
    with pytest.raises(SourceError, match="tinny names no preset"):
        toy.run("total.on=base", "base=init:tinny")
    assert not (toy.run_folder / "words").exists()


def test_a_missing_local_input_is_a_source_error(toy: ToyRun) -> None:
    toy.text.unlink()
    with pytest.raises(SourceError, match="no such file"):
        toy.run()


def test_a_reference_selects_a_file_of_a_stage(toy: ToyRun) -> None:
    result = toy.run("rank.long.on=total:best")
    reference = result.stages["rank.long"].inputs["total"]
    assert (reference.stage, reference.selector) == ("total", "best")


def test_a_path_with_a_selector_may_begin_with_a_tilde(toy: ToyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run(until="words")
    monkeypatch.setenv("HOME", str(toy.folder))
    toy.write('[total]\non = "~/runs/counts/words:best"\n')
    result = toy.run()
    assert result.built_stages == ["total"]
    assert str(result.stages["total"].digests["words"]).endswith(":best")


def test_another_runs_stage_is_an_input_by_its_digest(toy: ToyRun) -> None:
    toy.run()
    words = read_manifest(toy.run_folder / "words")
    assert words is not None
    other = ToyRun(toy.folder / "other")
    other.folder.mkdir()
    other.write(f'[total]\non = "{toy.run_folder / "words"}"\n')
    result = other.run()
    assert result.stages["total"].digests["words"] == f"sha256:{words.digest}"
    assert json.loads((other.run_folder / "total/total.json").read_text())["the"] == 3


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_layout_that_cannot_divide_the_model_is_refused_before_anything_is_built(
    tmp_path: Path, dry_run: bool
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f"""base = "init:tiny"
[[finetune]]
on = "base"
rows = "{rows}"
sequence_length = 1_000_000
batch_size = 2
learning_rate = 1e-5
parallel = {{ tp = 7 }}
""",
        encoding="utf-8",
    )
    ranks = ONE_PROCESS if dry_run else LocalRanks(7)
    with pytest.raises(RecipeError) as caught:
        run_recipe(load_recipe(recipe), out=tmp_path / "runs", dry_run=dry_run, ranks=ranks)
    first, second = (caught.value, *caught.value.further_errors)
    assert first.message.startswith("finetune: sequence_length 1000000 is longer than the model's context")
    assert second.message.startswith("finetune: tp 7 does not divide the model's intermediate_size")
    assert caught.value.stage == "finetune"
