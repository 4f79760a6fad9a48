"""Tasks of a recipe are named as in `meditron evaluate`: benchmarks, definitions of lm-eval, files."""

import csv
import json
from pathlib import Path

import pytest

from meditron.core.errors import DriftError, RecipeError
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.standalone import evaluate_on_task
from meditron.recipe import load_recipe, run_recipe
from meditron.store.manifest import read_manifest
from meditron.store.results import read_results
from meditron.tasks.benchmarks import BENCHMARKS
from tiny import TEXTS, tiny_hf

RECIPE = """
base = "./model"
seed = 1
[corpus]
heldout = 0.3
min_characters = 20
[corpus.sources.notes]
from = "./notes.jsonl"
[evaluate]
models = ["base"]
tasks = ["mmlu-medical:FOLDER/mmlu", "FOLDER/numbers.yaml", "./exam.jsonl"]
documents = 2
document_tokens = 16
resamples = 100
questions = 8
"""
DEFINITION = """
include: base.yaml
task: numbers
dataset_kwargs: {data_files: {test: exam.jsonl}}
"""
BASE = """
dataset_path: json
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: options
doc_to_target: gold
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_hf(tmp_path / "model")
    (tmp_path / "mmlu").mkdir()
    question = "Which organ of {} fails first when a patient with sepsis gets no fluid for two days?"
    for subject in BENCHMARKS["mmlu-medical"].groups:
        with (tmp_path / f"mmlu/{subject}_test.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow([question.format(subject), "1", "2", "3", "4", "B"])
    exam = [{"question": f"Is {n} odd?", "options": ["no", "yes"], "gold": n % 2} for n in (1, 2)]
    notes = [{"id": str(n), "text": f"Note {n} of {n * n}. {TEXTS[n % 6]}"} for n in range(30)]
    notes += [{"id": "leak", "text": f"A note. {question.format('anatomy')} It was asked again and again."}]
    for name, lines in (("exam", exam), ("notes", notes)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "numbers.yaml").write_text(DEFINITION)
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "names.toml").write_text(RECIPE.replace("FOLDER", str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_and_the_command_give_the_same_scores(folder: Path) -> None:
    recipe = load_recipe("names.toml")
    run_recipe(recipe, out=folder / "runs")
    out = folder / "runs/names"
    scores = read_results(out / "evaluate").tasks["base"]
    assert list(scores) == ["mmlu-medical-test", "numbers", "exam"]
    for spec, score in zip(recipe.resolved()["evaluate"]["tasks"], scores.values(), strict=True):
        alone, _ = evaluate_on_task(
            "./model", spec, EvalOptions(resamples=100, questions=8), out=folder / "alone"
        )
        [same] = alone.tasks["./model"].values()
        assert same.model_copy(update={"model": "base"}) == score.model_copy(update={"contamination": {}})
    manifest = read_manifest(out / "evaluate")
    assert manifest is not None
    assert str(folder) not in manifest.model_dump_json()
    assert "mmlu-medical:file:mmlu" in manifest.inputs
    hits = (out / "corpus/contaminated.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(hit)["benchmark"] for hit in hits} == {"mmlu-medical-test"}
    exam = (folder / "exam.jsonl").read_text(encoding="utf-8")
    for file, text in (("base.yaml", BASE + "tag: x"), ("exam.jsonl", exam.replace("odd", "even"))):
        before = (folder / file).read_text()
        (folder / file).write_text(text)
        with pytest.raises(DriftError, match="out of date"):
            run_recipe(recipe, out=folder / "runs")
        (folder / file).write_text(before)


def test_errors_name_the_line_of_the_task(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"evaluate.tasks: no task 'medqa-6'; did you mean"):
        load_recipe("names.toml", ['evaluate.tasks=["medqa-6"]'])
    (folder / "names.toml").write_text(RECIPE.replace("FOLDER/mmlu", "elsewhere/mmlu").replace("FOLDER", "."))
    [problem] = run_recipe(load_recipe("names.toml"), dry_run=True).problems
    assert (problem.stage, problem.recipe_location) == ("evaluate", "names.toml:11")
    (folder / "names.toml").write_text(RECIPE.replace("FOLDER", "."))
    (folder / "exam.jsonl").unlink()
    problems = run_recipe(load_recipe("names.toml"), dry_run=True).problems
    assert {problem.recipe_location for problem in problems} == {"names.toml:11"}
