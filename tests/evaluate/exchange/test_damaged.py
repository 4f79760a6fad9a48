"""Damaged logs: one error that names the file and the line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meditron.core.errors import InputError, SourceError, UsageError
from meditron.evaluate.exchange.every_eval_ever_import import import_every_eval_ever
from meditron.evaluate.exchange.imported import write_imported
from meditron.evaluate.exchange.lm_eval_import import find_logs, import_lm_eval

LOG = Path(__file__).with_name("lm_eval_log")
SAMPLE = {
    "schema_version": "0.3.0",
    "evaluation_id": "drugs/lab/tiny/1",
    "model_id": "lab/tiny",
    "evaluation_name": "drugs",
    "sample_id": "q0",
    "interaction_type": "single_turn",
    "input": {"raw": "Which?", "reference": ["B"], "choices": ["aspirin", "metformin"]},
    "output": {"raw": ["I think it is metformin."]},
    "answer_attribution": [
        {
            "turn_idx": 0,
            "source": "output.raw",
            "extracted_value": "metformin",
            "extraction_method": "regex",
            "is_terminal": True,
        }
    ],
    "evaluation": {"score": 1.0, "is_correct": True},
}


def log_with(change: Callable[[list[dict[str, Any]]], None], folder: Path) -> Path:
    """Lm-eval's log with a change of its samples."""
    [original] = find_logs(LOG)
    samples = [json.loads(line) for line in original.read_text(encoding="utf-8").splitlines()]
    change(samples)
    path = folder / original.name
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
    return path


def set_logp(samples: list[dict[str, Any]], value: object) -> None:
    samples[4]["filtered_resps"][1][0] = value


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: set_logp(s, "nan"), r"\(line 5\): a log-probability must be a finite number, got 'nan'"),
        (lambda s: set_logp(s, float("-inf")), r"\(line 5\): a log-probability must be a finite"),
        (lambda s: set_logp(s, None), r"\(line 5\): a log-probability must be a finite"),
        (lambda s: s[7].update(doc_id=2), r'\(line 8\): a second sample "2"; the first is in line 3'),
        (lambda s: s[2]["doc"].update(sent1="\ud800"), r"\(line 3\): a text contains a lone surrogate"),
        (lambda s: s[2].pop("target"), r"\(line 3\): target is missing"),
        (lambda s: s[2].update(target="9"), r"\(line 3\): the target '9' is none of the 4 options"),
        (lambda s: s[0].update(acc=1.0), r"\(line 1\): acc is 1.0, but the option"),
        (lambda s: s[0].update(filtered_resps=["A"]), r"\(line 1\): not the log-probabilities of options"),
        (lambda s: s[0]["filtered_resps"].pop(), r"\(line 1\): 4 requests but 3 responses"),
    ],
)
def test_a_damaged_lm_eval_sample(change: Any, problem: str, tmp_path: Path) -> None:
    path = log_with(change, tmp_path)
    with pytest.raises(InputError, match=rf"{path.name} {problem}"):
        import_lm_eval([path], model="tiny")


def test_a_truncated_log_and_a_web_page(tmp_path: Path) -> None:
    [original] = find_logs(LOG)
    path = tmp_path / "samples.jsonl"
    path.write_bytes(original.read_bytes()[:-40])
    for read in (import_lm_eval, import_every_eval_ever):
        path.write_bytes(original.read_bytes()[:900])
        with pytest.raises(InputError, match=r"samples.jsonl \(line 1, column \d+\): not JSON"):
            read([path], model="tiny")
        path.write_text("<!DOCTYPE html>\n<html><body>Sign in</body></html>")
        with pytest.raises(InputError, match=r"samples.jsonl \(line 1\): a web page, not JSON lines"):
            read([path], model="tiny")
        path.write_text("\n")
        with pytest.raises(InputError, match="the file has no samples"):
            read([path], model="tiny")
        with pytest.raises(SourceError, match="no such file"):
            read([tmp_path / "none.jsonl"], model="tiny")


@pytest.mark.parametrize("date", [None, "soon", 1e300, float("nan")])
def test_settings_with_a_time_that_is_none(date: object, tmp_path: Path) -> None:
    path = log_with(lambda samples: None, tmp_path)
    settings = path.with_name(path.name.replace("samples_drugs", "results").removesuffix("l"))
    settings.write_text(json.dumps({"model_name": "tiny", "date": date}))
    _, record, read = import_lm_eval([path])
    assert record.time is None
    assert record.program is None
    assert settings in read
    settings.write_text("<html>")
    with pytest.raises(InputError, match=r"results_.*\.json.*line 1"):
        import_lm_eval([path])


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "blank_samples.jsonl"
    path.write_text(f"{json.dumps(SAMPLE)}\n\n{json.dumps(SAMPLE)}\n")
    with pytest.raises(InputError, match=r'\(line 3\): a second sample "q0"; the first is in line 1'):
        import_every_eval_ever([path])


def test_a_model_must_be_named(tmp_path: Path) -> None:
    path = log_with(lambda samples: None, tmp_path)
    with pytest.raises(UsageError, match="do not name the model"):
        import_lm_eval([path])


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ("schema_version", "9.1", "schema_version '9.1' is not supported"),
        ("interaction_type", "agentic", "only single-turn samples"),
        ("input.choices", None, "input.choices is missing"),
        ("input.reference", ["C"], "the reference 'C' is none of the choices"),
        ("evaluation.score", float("nan"), "evaluation.score must be a finite number"),
        ("evaluation.is_correct", 1, "evaluation.is_correct must be bool"),
        ("evaluation.is_correct", False, "is_correct is False, but the answer is 'metformin'"),
        ("output.raw", [1], "output.raw must be a list of texts"),
    ],
)
def test_a_damaged_every_eval_ever_sample(place: str, value: object, problem: str, tmp_path: Path) -> None:
    sample = json.loads(json.dumps(SAMPLE))
    *parents, last = place.split(".")
    inner = sample
    for name in parents:
        inner = inner[name]
    inner[last] = value
    path = tmp_path / "x_samples.jsonl"
    path.write_text(f"{json.dumps(SAMPLE | {'sample_id': 'other'})}\n{json.dumps(sample)}\n")
    with pytest.raises(InputError, match=rf"x_samples.jsonl \(line 2\): {problem}"):
        import_every_eval_ever([path])


def test_the_reference_of_converted_lm_eval_logs_is_an_index(tmp_path: Path) -> None:
    """As `every_eval_ever convert lm_eval --include_samples` 0.3.0 writes it."""
    sample = json.loads(json.dumps(SAMPLE))
    sample["input"] |= {"reference": ["1"], "choices": ["A", "B"]}
    sample["answer_attribution"][0]["extracted_value"] = "B"
    path = tmp_path / "x_samples.jsonl"
    path.write_text(json.dumps(sample | {"metadata": {"lm_eval_metrics": '{"acc": 1.0}'}}) + "\n")
    [task], _, _ = import_every_eval_ever([path])
    assert (task.rows[0].gold, task.rows[0].prediction) == (1, 1)
    path.write_text(json.dumps(sample) + "\n")
    with pytest.raises(InputError, match="the reference '1' is none of the choices"):
        import_every_eval_ever([path])


def test_an_answer_that_names_no_option_is_unparsed(tmp_path: Path) -> None:
    sample = json.loads(json.dumps(SAMPLE))
    sample["answer_attribution"][0]["extracted_value"] = "neither"
    sample["evaluation"] = {"score": 0, "is_correct": False}
    path = tmp_path / "x_samples.jsonl"
    path.write_text(json.dumps(sample) + "\n")
    [task], _, _ = import_every_eval_ever([path])
    assert (task.rows[0].prediction, task.rows[0].correct) == (None, False)


def test_logs_of_several_models_and_scorings(tmp_path: Path) -> None:
    path = tmp_path / "x_samples.jsonl"
    other = SAMPLE | {"model_id": "lab/other", "sample_id": "q1"}
    path.write_text("".join(json.dumps(sample) + "\n" for sample in (SAMPLE, other)))
    with pytest.raises(UsageError, match="several models: lab/tiny, lab/other"):
        import_every_eval_ever([path])
    # Two results of a sample are two scorings of the task, which may not have the same samples.
    results = [SAMPLE | {"evaluation_result_id": name} for name in ("acc", "acc_norm")]
    results.append(SAMPLE | {"evaluation_result_id": "acc", "sample_id": "q1"})
    path.write_text("".join(json.dumps(sample) + "\n" for sample in results))
    tasks, record, read = import_every_eval_ever([path])
    result, _ = write_imported(tasks, record, read, tmp_path / "out")
    scores = result.tasks["lab/tiny"]
    assert {label: score.n for label, score in scores.items()} == {
        "drugs (imported (acc))": 2,
        "drugs (imported (acc_norm))": 1,
    }
