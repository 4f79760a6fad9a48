"""The stage with tasks and fidelity: its files, its page, what a kill leaves, what the baseline learns."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from meditron.core.errors import InputError, UsageError
from meditron.evaluate.compare import compare_results
from meditron.evaluate.config import EvaluateConfig, ModelPair
from meditron.evaluate.rows import FIDELITY, PERPLEXITY, FidelityRow, QuestionRow
from meditron.evaluate.rows_file import read_rows
from meditron.evaluate.stage import bayes_training_rows, run
from meditron.release.quantize import quantize
from meditron.store.jsonl import JsonlWriter
from meditron.store.manifest import Artifact, Manifest
from meditron.store.results import EvaluationResult, read_results
from meditron.tasks.question import Question
from meditron.tasks.registry import open_task
from meditron.tasks.task import SplitQuestions

Evaluate = Callable[..., EvaluationResult]


@pytest.fixture
def evaluate(corpus: Path, tiny: Path, other_tiny: Path, task_file: Path) -> Evaluate:
    """Evaluate two models on the small task and against each other, into a folder."""

    def evaluated(out: Path, models: dict[str, Path] | None = None, **settings: Any) -> EvaluationResult:
        models = models or {"base": tiny, "finetune": other_tiny}
        words = {"models": tuple(models), "tasks": (str(task_file),), "seed": 1, "resamples": 500}
        config = EvaluateConfig.model_validate(
            {"fidelity": (ModelPair(model=list(models)[-1], against="base"),), **words, **settings}
        )
        paths = models | {"corpus": corpus, str(task_file): task_file}
        run(config, {name: Artifact(name, path, f"{name}'s digest") for name, path in paths.items()}, out)
        return read_results(out)

    return evaluated


def test_the_stage_writes_every_measure_of_every_model(evaluate: Evaluate, tmp_path: Path) -> None:
    result = evaluate(tmp_path / "out")
    assert list(result.tasks) == list(result.perplexity) == ["base", "finetune"]
    rows = read_rows(tmp_path / "out" / "drugs.jsonl", QuestionRow)
    for name, scores in result.tasks.items():
        model_rows = [row for row in rows if row.model == name]
        assert (scores["drugs"].n, scores["drugs"].rows) == (30, "drugs.jsonl")
        assert scores["drugs"].accuracy == sum(row.correct for row in model_rows) / 30
    assert list(result.baselines["drugs"]) == ["majority", "position"]
    assert [(f.model, f.against, f.source) for f in result.fidelity] == [
        ("finetune", "base", source) for source in ("pubmed", "wiki")
    ]
    assert result.engines == {"base": "torch", "finetune": "torch"}
    of_tasks = [d for d in result.differences if d.task]
    assert [(d.a, d.b) for d in of_tasks] == [("base", "finetune"), ("base (calibrated)", "finetune")]
    again = compare_results(f"{tmp_path}/out:base", f"{tmp_path}/out:finetune", seed=1, resamples=500)
    assert [d.model_dump(exclude={"a", "b", "p_adjusted", "family"}) for d in again if d.task] == [
        of_tasks[0].model_dump(exclude={"a", "b", "p_adjusted", "family"})
    ]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    every_figure_is_on_the_page(result, page)
    assert 'href="questions-drugs.html"' in page
    questions = (tmp_path / "out" / "questions-drugs.html").read_text(encoding="utf-8")
    assert questions.count("<article") == 30
    assert all(f"<legend>{model}</legend>" in questions for model in ("base", "finetune"))


def test_a_task_is_answered_by_the_models_it_lists_alone(
    evaluate: Evaluate, tiny: Path, other_tiny: Path, task_file: Path, tmp_path: Path
) -> None:
    models = {"base": tiny, "finetune.a": other_tiny, "finetune.b": other_tiny}
    listed = ("finetune.b", "base")
    result = evaluate(tmp_path / "out", models, fidelity=(), task_models={str(task_file): listed})
    # Held-out text is scored with all models, in the order of `models`; the task is not.
    assert list(result.perplexity) == list(models)
    assert list(result.tasks) == ["base", "finetune.b"]
    rows = read_rows(tmp_path / "out" / "drugs.jsonl", QuestionRow)
    assert {row.model for row in rows} == set(listed)
    of_tasks = [(d.a, d.b) for d in result.differences if d.task]
    assert of_tasks == [("base", "finetune.b"), ("base (calibrated)", "finetune.b")]
    page = (tmp_path / "out" / "questions-drugs.html").read_text(encoding="utf-8")
    assert "<legend>finetune.b</legend>" in page
    assert "<legend>finetune.a</legend>" not in page
    # Scored by itself, the model has the same rows.
    alone = evaluate(tmp_path / "all", models, fidelity=())
    assert alone.tasks["finetune.b"]["drugs"].accuracy == result.tasks["finetune.b"]["drugs"].accuracy


def every_figure_is_on_the_page(result: EvaluationResult, page: str) -> None:
    for scores in result.tasks.values():
        score = scores["drugs"]
        assert f"{100 * score.accuracy:.1f} %" in page
        assert score.prompt_sha256 in page
        for line in score.confusion:
            assert all(f">{count}<" in page for count in line)
    for item in result.fidelity:
        assert f"{100 * item.top_agreement:.1f} %" in page
    assert "option probability mass" in page
    assert "naive Bayes" not in page.replace("Naive Bayes", "")
    # perplexities, the task, its calibration, fidelity, differences of both kinds
    assert page.count("<svg") == 2 + 1 + 1 + 1 + 2


def test_next_token_has_no_rule(evaluate: Evaluate, tmp_path: Path) -> None:
    result = evaluate(tmp_path / "out", methods=("next-token",), fidelity=())
    score = result.tasks["base"]["drugs"]
    assert (score.method, score.rule, score.rules) == ("next-token", None, {})
    assert [(d.a, d.b) for d in result.differences if d.task] == [("base", "finetune")]
    assert not (tmp_path / "out" / FIDELITY).exists()


def test_quantized_weights_are_labelled(evaluate: Evaluate, tiny: Path, tmp_path: Path) -> None:
    [created] = quantize(str(tiny), ["Q8_0"], tmp_path)["files"]
    path = Path(created["path"])
    result = evaluate(tmp_path / "out", {"base": tiny, "quantize:Q8_0": path})
    how = "torch on dequantized weights"
    assert result.engines == {"base": "torch", "quantize:Q8_0": how}
    assert {row.engine for row in read_rows(tmp_path / "out" / FIDELITY, FidelityRow)} == {how}
    assert how in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert all(f.kl_mean < 0.01 and f.top_agreement > 0.9 for f in result.fidelity)


def test_two_tasks_of_one_name_are_refused(
    evaluate: Evaluate, corpus: Path, tiny: Path, task_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / task_file.name
    twin.write_bytes(task_file.read_bytes())
    with pytest.raises(ValidationError, match="would both be named 'drugs'; rename one file"):
        EvaluateConfig(models=("base",), tasks=(str(task_file), str(twin)))
    other = "https://h/download?id=3"  # an address need not contain the file's name
    config = EvaluateConfig(models=("base",), tasks=(str(task_file), other))
    paths = {"base": tiny, "corpus": corpus, str(task_file): task_file, other: twin}
    inputs = {name: Artifact(name, path, "d") for name, path in paths.items()}
    with pytest.raises(UsageError, match=r"both write drugs\.jsonl"):
        run(config, inputs, tmp_path / "out")


def test_a_tasks_file_is_an_input_of_the_stage() -> None:
    config = EvaluateConfig(models=("base",), tasks=("pubmed-sections", "rows/exam.jsonl"))
    assert config.inputs() == {"base": "base", "rows/exam.jsonl": "rows/exam.jsonl", "corpus": "corpus"}


def a_manifest(config: dict[str, Any]) -> Manifest:
    now = datetime.now(UTC)
    return Manifest(
        kind="finetune",
        name="finetune",
        fingerprint="f" * 64,
        payload={},
        config=config,
        started=now,
        ended=now,
    )


def test_naive_bayes_learns_from_what_the_finetune_learned_from(tmp_path: Path, task_file: Path) -> None:
    questions = tuple(
        Question(id=f"t{n}", text=f"word {n}", options=("a", "b"), gold=n % 2) for n in range(9)
    )
    task = open_task(str(task_file))
    task = replace(task, read_split=lambda _: SplitQuestions(rows=questions))
    with JsonlWriter(tmp_path / "rows.jsonl.zst") as writer:
        for n, question in enumerate(questions):
            split = "train" if n in (3, 4) else "heldout"
            writer.write({"id": question.id, "split": split, "content": question.content_sha256})
        # A row of the finetune's other task: ids are those of each task.
        writer.write({"id": "t7", "split": "train", "content": "0" * 64})

    config = EvaluateConfig(models=("finetune",))
    inputs = {"finetune": Artifact("finetune", tmp_path, "d", a_manifest({"task": "drugs"}))}
    assert bayes_training_rows(config, inputs, "drugs", task) == list(questions[3:5])
    several = {
        "finetune": Artifact("finetune", tmp_path, "d", a_manifest({"task": ["drugs", "other.jsonl"]}))
    }
    assert bayes_training_rows(config, several, "drugs", task) == list(questions[3:5])
    limited = config.model_copy(update={"train_baseline": 4})
    assert bayes_training_rows(limited, inputs, "drugs", task) == questions[:4]
    assert bayes_training_rows(config, {}, "drugs", task) == questions


CHILD = """
import sys, json
from pathlib import Path
from meditron.evaluate.config import EvaluateConfig
from meditron.evaluate.stage import run
from meditron.store.manifest import Artifact
out, told = Path(sys.argv[1]), json.loads(sys.argv[2])
inputs = {name: Artifact(name, Path(path), f"{name}'s digest") for name, path in told["paths"].items()}
run(EvaluateConfig.model_validate(told["config"]), inputs, out)
"""


def test_a_kill_while_answering_ends_with_the_same_files(
    evaluate: Evaluate, corpus: Path, tiny: Path, other_tiny: Path, task_file: Path, tmp_path: Path
) -> None:
    evaluate(tmp_path / "whole")
    out = tmp_path / "killed"
    pair = {"model": "finetune", "against": "base"}
    words = {"models": ["base", "finetune"], "tasks": [str(task_file)], "seed": 1, "resamples": 500}
    paths = {"base": tiny, "finetune": other_tiny, "corpus": corpus, str(task_file): task_file}
    arguments = {
        "config": words | {"fidelity": [pair]},
        "paths": {name: str(path) for name, path in paths.items()},
    }
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(out), json.dumps(arguments)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    answers = out / "drugs.jsonl"
    while child.poll() is None and not (answers.exists() and answers.stat().st_size):
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = answers.read_bytes()
    assert b"\n" in kept
    with answers.open("ab") as file:
        file.write(kept[:40])
    evaluate(out)
    for name in (PERPLEXITY, "drugs.jsonl", FIDELITY, "results.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_only_equal_questions_and_settings_compare(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate(tmp_path / "a", fidelity=())
    evaluate(tmp_path / "b", fidelity=(), shots=2)
    specs = (f"{tmp_path}/a/drugs.jsonl:base", f"{tmp_path}/b/drugs.jsonl:finetune")
    with pytest.raises(UsageError, match=r"are not comparable: they differ in shots: 0 / 2"):
        compare_results(*specs)
    for field, other, error, message in (
        ("version", 2, UsageError, "task version: 1 / 2"),
        ("prompt_sha256", "f" * 64, UsageError, r"prompt \(template or shots\)"),
        ("question_sha256", "f" * 64, InputError, "30 of 30 questions have other words, options or gold"),
    ):
        changed = [
            json.loads(line) | {field: other}
            for line in (tmp_path / "a/drugs.jsonl").read_text().splitlines()
        ]
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
        with pytest.raises(error, match=message):
            compare_results(specs[0], f"{tmp_path}/c.jsonl:finetune")
    [result] = compare_results(specs[0], f"{tmp_path}/a/drugs.jsonl:finetune")
    assert (result.task, result.n) == ("drugs", 30)
    assert result.mcnemar is not None
