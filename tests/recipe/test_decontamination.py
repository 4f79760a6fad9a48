"""A planted leak from the source to the score: corpus, training and evaluation of one recipe."""

import json
import random
from pathlib import Path

import pytest

from meditron.core.errors import MeditronError
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.standalone import evaluate_on_task
from meditron.recipe import load_recipe, run_recipe
from meditron.store.ancestry import Ancestry
from meditron.store.results import read_results
from tiny import TEXTS, tiny_hf

RECIPE = """
base = "./model"
seed = 1
[corpus]
heldout = 0.3
min_characters = 20
[corpus.sources.notes]
from = "./notes.jsonl"
[tokenize]
[pretrain]
tokens = 512
sequence_length = 64
batch_size = 2
learning_rate = 1e-3
dtype = "float32"
compile = false
heldout_documents = 4
[evaluate]
models = ["base", "pretrain"]
tasks = ["./exam.jsonl"]
documents = 8
document_tokens = 128
resamples = 200
"""
LEAKED = 7


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_hf(tmp_path / "model")
    chance, words = random.Random(1), " ".join(TEXTS[:5]).split()
    questions = [
        {
            "id": f"q{n}",
            "question": f"Case {n}: {' '.join(chance.sample(words, 14))}. Which drug is it?",
            "options": ["aspirin", "metformin"],
            "gold": n % 2,
        }
        for n in range(20)
    ]
    notes = [f"Note {n} of {n * n}. {TEXTS[n % 6]} {TEXTS[(n + 1) % 6]}" for n in range(60)]
    notes += [f"Discussed on day {n}. {questions[n]['question']} Nobody knew." for n in range(LEAKED)]
    rows = [{"id": str(n), "text": text} for n, text in enumerate(notes)]
    for name, lines in (("exam", questions), ("notes", rows)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "leak.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_default_benchmarks_are_the_evaluations_and_a_list_overrides_them(folder: Path) -> None:
    assert load_recipe("leak.toml").resolved()["corpus"]["decontaminate"] == ["./exam.jsonl"]
    for value, files in (("[]", []), ('["./other.jsonl"]', ["./other.jsonl"])):
        recipe = load_recipe("leak.toml", [f"corpus.decontaminate={value}"])
        assert recipe.resolved()["corpus"]["decontaminate"] == files


def test_a_missing_benchmark_is_reported_where_the_recipe_names_it(folder: Path) -> None:
    (folder / "exam.jsonl").unlink()
    result = run_recipe(load_recipe("leak.toml"), dry_run=True)
    line = RECIPE.splitlines().index('tasks = ["./exam.jsonl"]') + 1
    assert [(each.stage, each.recipe_location) for each in result.problems] == [
        ("evaluate", f"leak.toml:{line}")
    ]


def test_a_changed_benchmark_makes_the_corpus_out_of_date(folder: Path) -> None:
    recipe = load_recipe("leak.toml")
    run_recipe(recipe, until="corpus", out=folder / "runs")
    with (folder / "exam.jsonl").open("a") as file:
        file.write(json.dumps({"id": "new", "question": "Which?", "options": ["a", "b"], "gold": 0}) + "\n")
    with pytest.raises(MeditronError, match="corpus is out of date"):
        run_recipe(recipe, until="corpus", out=folder / "runs")


@pytest.mark.slow
@pytest.mark.parametrize(("action", "group"), [("drop", "removed"), ("keep", "trained")])
def test_a_planted_leak_splits_the_scores(
    folder: Path, action: str, group: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run_recipe(load_recipe("leak.toml", [f"corpus.contaminated={action}"]), out=folder / "runs")
    out = folder / "runs/leak"
    hits = [json.loads(line) for line in (out / "corpus/contaminated.jsonl").read_text().splitlines()]
    assert {hit["question"] for hit in hits} == {f"q{n}" for n in range(LEAKED)}
    record = Ancestry.model_validate_json((out / "pretrain/ancestry.json").read_text()).trainings[0]
    assert record.contamination is not None
    found = (*record.contamination.trained, *record.contamination.removed)
    assert len(found) == LEAKED
    results = read_results(out / "evaluate")
    answers = [json.loads(line) for line in (out / "evaluate/exam.jsonl").read_text().splitlines()]
    for model in ("base", "pretrain"):
        parts = results.tasks[model]["exam"].contamination
        in_group = sum(part.n for name, part in parts.items() if name != "not found")
        assert in_group == LEAKED
        assert parts["not found"].n == 20 - LEAKED
        right = [row["correct"] for row in answers if row["model"] == model]
        assert sum(part.n * part.accuracy for part in parts.values()) == pytest.approx(sum(right))
    assert group in parts
    alone, _ = evaluate_on_task(
        str(out / "pretrain"), "exam.jsonl", EvalOptions(resamples=200), out=folder / "alone"
    )
    (score,) = (score for scores in alone.tasks.values() for score in scores.values())
    assert score.contamination == results.tasks["pretrain"]["exam"].contamination
    for page in (out / "evaluate/report.html", out / "report.html"):
        assert "Accuracy by whether the documents of the training corpus" in page.read_text(encoding="utf-8")
    warned = "questions are in training documents" in capfd.readouterr().err
    assert warned == (action == "keep")
