"""A stage registered from outside the package: config, work, recipe table, status, report and drift."""

import json
from pathlib import Path
from typing import Any

import pytest

from meditron.core.errors import RecipeError
from meditron.recipe import STAGES, RunResult, load_recipe, run_recipe, status
from meditron.store.manifest import read_manifest
from toy_stages import TOY

STAGES_WITH_TOY = (*STAGES, TOY)
RECIPE = """\
seed = 3

[corpus.sources.notes]
from = "{folder}/notes.jsonl"
domain = "medical"

[toy]
letter = "e"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    lines = [{"id": str(n), "text": f"Note {n}: aspirin was given after the meal. " * 5} for n in range(30)]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = tmp_path / "notes.toml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def run(recipe: Path, *overrides: str, **options: Any) -> RunResult:
    loaded = load_recipe(recipe, overrides, stages=STAGES_WITH_TOY)
    return run_recipe(loaded, out=recipe.parent / "runs", **options)


def test_a_registered_stage_runs_after_a_real_one(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(recipe)
    assert result.built_stages == ["corpus", "toy"]
    assert "stage 2 of 2: toy\n" in capsys.readouterr().err
    manifest = read_manifest(result.folder / "toy")
    assert manifest is not None
    assert (manifest.kind, manifest.seed, manifest.config["letter"]) == ("toy", 3, "e")
    assert manifest.metrics["documents"] == result.stages["corpus"].metrics["sources"]["notes"]["train"]
    assert json.loads((result.folder / "toy/count.json").read_text()) == {"e": manifest.metrics["letters"]}
    assert run(recipe).built_stages == []


def test_a_registered_stage_has_status_drift_and_rebuild(recipe: Path) -> None:
    run(recipe)
    changed = load_recipe(recipe, ["toy.letter=a"], stages=STAGES_WITH_TOY)
    stages = status(changed, out=recipe.parent / "runs").to_json()["stages"]
    assert stages["corpus"]["state"] == "fresh"
    assert stages["toy"]["state"] == "stale"
    assert stages["toy"]["drift"] == [{"field": "letter", "was": "e", "now": "a"}]
    assert run(recipe, "toy.letter=a", rebuild=["toy"]).built_stages == ["toy"]


def test_a_registered_stage_is_in_the_report(recipe: Path) -> None:
    folder = run(recipe).folder
    report = json.loads((folder / "report.json").read_text())
    assert report["stages"]["toy"]["state"] == "complete"
    assert report["stages"]["toy"]["metrics"]["letters"] > 0
    assert "toy" in (folder / "report.html").read_text()


def test_keys_of_a_registered_stage_are_validated(recipe: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"--set toy.leter=a: toy has no key 'leter': did you mean 'letter'"
    ):
        run(recipe, "toy.leter=a")
    with pytest.raises(RecipeError, match=r"toy\.letter: string should have at most 1 character"):
        run(recipe, "toy.letter=ab")
