"""Export and import: equal scores and answers, and files that the formats' own definitions accept."""

import json
import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results

from api_server import running_server
from meditron.core.errors import InputError, UsageError
from meditron.evaluate.compare import compare_results
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.exchange import every_eval_ever_import, lm_eval_import
from meditron.evaluate.exchange.every_eval_ever_export import export_every_eval_ever
from meditron.evaluate.exchange.exported import select_tasks
from meditron.evaluate.exchange.hub_export import export_hub
from meditron.evaluate.exchange.imported import write_imported
from meditron.evaluate.exchange.lm_eval_export import export_lm_eval
from meditron.evaluate.explain_results import explain_results
from meditron.evaluate.result_rows import open_result
from meditron.evaluate.rows import QuestionRow
from meditron.evaluate.standalone import evaluate_on_task
from meditron.store.results import EvaluationResult, read_results
from meditron.tasks.registry import open_task

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
SCHEMAS = Path(__file__).with_name("every_eval_ever_schemas")
LOG = Path(__file__).with_name("lm_eval_log")


def rows_of(result: Path) -> dict[str, QuestionRow]:
    [settings] = open_result(str(result)).tasks["drugs"]
    return {row.id: row for row in settings.values()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def lm_eval_round_trip(evaluated: Path, questions: Path, folder: Path) -> tuple[EvaluationResult, Path]:
    tasks = select_tasks(str(evaluated), tasks=[str(questions)])
    export_lm_eval(tasks, folder / "logs", NOW)
    imported, record, read = lm_eval_import.import_lm_eval(lm_eval_import.find_logs(folder / "logs"))
    result, _ = write_imported(imported, record, read, folder / "imported")
    return result, folder / "imported"


def test_lm_eval_logs_give_equal_scores_answers_and_prompts(
    evaluated: Path, questions: Path, tmp_path: Path
) -> None:
    result, folder = lm_eval_round_trip(evaluated, questions, tmp_path)
    before, after = rows_of(evaluated), rows_of(folder)
    assert len(before) == 12
    for id_, row in before.items():
        same = ("question_sha256", "prompt_sha256", "gold", "prediction", "correct", "cluster", "dtype")
        assert [getattr(row, name) for name in same] == [getattr(after[id_], name) for name in same]
        mine, theirs = row.model_dump()["scores"], after[id_].model_dump()["scores"]
        assert theirs["sum"] == mine["sum"]
        assert theirs["bytes"] == mine["bytes"]
        assert "calibrated" not in theirs
    [score] = result.tasks[row.model].values()
    assert score.accuracy == sum(row.correct for row in before.values()) / 12
    assert (score.template, score.version, score.option_probability_mass) == (None, None, None)
    assert score.shots == 1
    assert read_results(folder) == result
    # Equal hashes show that the prompts are equal, so that the two are compared without a reservation
    # about the settings that the log does not have.
    [difference] = compare_results(str(evaluated), str(folder))
    assert (difference.n, difference.difference) == (12, 0)
    assert [text.partition(":")[0] for text in difference.unlike] == ["engine", "truncated prompts"]


@pytest.mark.parametrize(
    ("target", "best", "acc", "definition", "doc", "gold"),
    [
        ("2", 1, 1.0, None, {}, 1),  # the best option is right, so the target is its text
        ("2", 2, 1.0, None, {}, 2),
        ("2", 1, 0.0, None, {}, 2),
        ("2", 2, 0.0, None, {}, 1),
        ("2", 3, 0.0, None, {}, None),  # the best option is wrong in both readings
        ("2", 3, None, None, {}, None),
        ("2", 3, 0.0, "answer", {"answer": "2"}, 1),  # as in lm-eval, a field's text is an option
        ("2", 3, 0.0, "answer", {"answer": 2}, 2),
        ("2", 3, 0.0, "{{answer}}", {"answer": "2"}, 2),  # a template's digits are an index
        ("2", 3, 0.0, None, {"answer": "2"}, None),
        ("2", 3, 0.0, None, {"answer": 2}, 2),
        ("2", 3, 0.0, None, {"answerKey": "B"}, 1),
        ("4", 3, 1.0, None, {}, 3),  # no index
        ("0", 3, 0.0, None, {}, 0),  # no option
        (2, 3, 0.0, None, {}, 2),
    ],
)
def test_digits_as_target_are_an_index_or_an_option(
    target: object,
    best: int,
    acc: float | None,
    definition: str | None,
    doc: dict[str, object],
    gold: int | None,
    tmp_path: Path,
) -> None:
    sample = {
        "doc_id": 0,
        "doc": {"q": "How many?"} | doc,
        "target": target,
        "arguments": {f"gen_args_{n}": {"arg_0": "How many?", "arg_1": f" {n + 1}"} for n in range(4)},
        "filtered_resps": [[str(-1.0 - (n != best)), "False"] for n in range(4)],
    }
    time = "2026-11-29T12-00-00.000000"
    log = tmp_path / f"samples_counts_{time}.jsonl"
    log.write_text(json.dumps(sample if acc is None else sample | {"acc": acc}) + "\n", encoding="utf-8")
    settings = {"model_name": "tiny", "configs": {"counts": {"doc_to_target": definition}}}
    (tmp_path / f"results_{time}.json").write_text(json.dumps(settings), encoding="utf-8")
    if gold is None:
        readings = "it is the index of option 3 ('3') and the text of option 2"
        problem = f"{log.name} (line 1): the target '2' is ambiguous: {readings}"
        with pytest.raises(InputError, match=re.escape(problem)):
            lm_eval_import.import_lm_eval([log])
    else:
        [task], _, _ = lm_eval_import.import_lm_eval([log])
        assert (task.rows[0].gold, task.rows[0].prediction) == (gold, best)


def test_an_imported_result_is_explained(evaluated: Path, questions: Path, tmp_path: Path) -> None:
    _, folder = lm_eval_round_trip(evaluated, questions, tmp_path)
    [explanation] = explain_results(str(evaluated), str(folder))
    assert explanation.difference == 0
    assert "template" in explanation.factors


def test_the_exported_log_has_the_fields_of_lm_evals_own(
    evaluated: Path, questions: Path, tmp_path: Path
) -> None:
    files = export_lm_eval(select_tasks(str(evaluated), tasks=[str(questions)]), tmp_path, NOW)
    assert [file.name for file in files] == [
        "samples_drugs_2026-11-29T12-00-00.000000.jsonl",
        "results_2026-11-29T12-00-00.000000.json",
    ]
    theirs = lines(next(LOG.glob("samples*")))[0]
    mine = lines(files[0])[0]
    assert set(theirs) - set(mine) == {"acc_norm"}  # divided by characters, which we do not score
    for name in set(theirs) - {"doc", "metrics", "acc", "acc_norm"}:
        assert type(mine[name]) is type(theirs[name]), name
    assert mine["arguments"].keys() == theirs["arguments"].keys()
    assert mine["arguments"]["gen_args_0"].keys() == theirs["arguments"]["gen_args_0"].keys()
    own = json.loads(files[1].read_text(encoding="utf-8"))
    reference = json.loads(next(LOG.glob("results*")).read_text(encoding="utf-8"))
    needed = {"results", "configs", "versions", "n-shot", "n-samples", "config", "task_hashes", "model_name"}
    assert needed <= own.keys() & reference.keys()
    accuracies = [line["acc"] for line in lines(files[0])]
    mean = sum(accuracies) / 12
    assert own["results"]["drugs"]["acc,none"] == mean
    variance = sum((value - mean) ** 2 for value in accuracies) / 11
    assert own["results"]["drugs"]["acc_stderr,none"] == pytest.approx(math.sqrt(variance / 12))


def test_an_export_needs_the_texts_of_the_questions(evaluated: Path, tmp_path: Path) -> None:
    tasks = select_tasks(str(evaluated))
    with pytest.raises(UsageError, match="hashes of the questions, not their texts"):
        export_lm_eval(tasks, tmp_path, NOW)
    with pytest.raises(UsageError, match="hashes of the questions, not their texts"):
        export_every_eval_ever(tasks, tmp_path, NOW, model_id="lab/tiny", organization="lab")
    assert not list(tmp_path.rglob("*.json*"))


def test_every_eval_evers_schema_accepts_the_export_and_it_comes_back(
    evaluated: Path, questions: Path, tmp_path: Path
) -> None:
    tasks = select_tasks(str(evaluated), tasks=[str(questions)])
    aggregate, log = export_every_eval_ever(
        tasks, tmp_path / "out", NOW, model_id="lab/tiny", organization="The lab"
    )
    names = ("eval.schema.json", "instance_level_eval.schema.json")
    schemas = [json.loads((SCHEMAS / name).read_text(encoding="utf-8")) for name in names]
    record = json.loads(aggregate.read_text(encoding="utf-8"))
    jsonschema.validate(record, schemas[0])
    for line in lines(log):
        jsonschema.validate(line, schemas[1])
        assert line["evaluation_id"] == record["evaluation_id"]
    assert (tmp_path / "out" / record["detailed_evaluation_results"]["file_path"]) == log
    assert record["detailed_evaluation_results"]["total_rows"] == 12
    imported, origin, read = every_eval_ever_import.import_every_eval_ever(
        every_eval_ever_import.find_logs(tmp_path / "out")
    )
    result, _ = write_imported(imported, origin, read, tmp_path / "imported")
    before, after = rows_of(evaluated), rows_of(tmp_path / "imported")
    for id_, row in before.items():
        same = ("question_sha256", "prompt_sha256", "gold", "prediction", "correct", "cluster")
        assert [getattr(row, name) for name in same] == [getattr(after[id_], name) for name in same]
        assert (after[id_].model_digest, after[id_].template, after[id_].dtype) == (None, None, None)
    [score] = result.tasks["lab/tiny"].values()
    assert score.accuracy == record["evaluation_results"][0]["score_details"]["score"]
    assert origin.program is not None
    assert origin.program.startswith("meditron ")
    assert [file.rows for file in origin.files] == [12, None]
    [difference] = compare_results(str(evaluated), str(tmp_path / "imported"))
    assert difference.difference == 0


def test_a_model_behind_a_server_is_not_exported_as_ones_own(questions: Path, tmp_path: Path) -> None:
    options = EvalOptions(methods=("cot",), questions=3, max_tokens=8)
    with running_server() as server:
        _, rows = evaluate_on_task(f"api:{server.url}#toy", str(questions), options, out=tmp_path / "rows")
    tasks = select_tasks(str(rows), tasks=[str(questions)])
    files = export_every_eval_ever(tasks, tmp_path, NOW, model_id="lab/toy", organization="lab")
    details = json.loads(files[0].read_text(encoding="utf-8"))["model_info"]["additional_details"]
    assert details["deployment_type"] == "externally_managed"


def test_the_hub_reads_the_exported_metadata(evaluated: Path, questions: Path, tmp_path: Path) -> None:
    tasks = select_tasks(str(evaluated), tasks=[str(questions)])
    files = export_hub(tasks, tmp_path, name="tiny", benchmarks={"drugs": "lab/drugs#default"})
    index, entries = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in files)
    name, [result] = model_index_to_eval_results(index["model-index"])
    accuracy = sum(row.correct for row in rows_of(evaluated).values()) / 12
    assert str(result.metric_name).count("95 % interval") == 1
    assert str(result.metric_name).endswith("] %")
    assert (name, result.metric_value, result.dataset_name) == ("tiny", accuracy, tasks[0].task.title)
    assert "date" not in entries[0]  # rows do not record when the model answered
    [entry] = parse_eval_result_entries(entries)
    assert (entry.dataset_id, entry.task_id) == ("lab/drugs", "default")
    assert entry.value == round(100 * accuracy, 2)
    assert "12 questions" in str(entry.notes)
    assert files[1].parent.name == ".eval_results"
    unwritten = tmp_path / "unwritten"
    with pytest.raises(UsageError, match="not exported"):
        export_hub(tasks, unwritten, benchmarks={"other": "lab/drugs#default"})
    for name in ("lab/drugs", "lab/drugs#", "drugs#default", "/drugs#default", "a/b/c#default"):
        with pytest.raises(UsageError, match="not a dataset"):
            export_hub(tasks, unwritten, benchmarks={"drugs": name})
    assert not unwritten.exists()


def test_an_export_that_fails_leaves_no_file(evaluated: Path, questions: Path, tmp_path: Path) -> None:
    # The first task has its questions, the second has hashes only.
    tasks = [*select_tasks(str(evaluated), tasks=[str(questions)]), *select_tasks(str(evaluated))]
    with pytest.raises(UsageError, match="have hashes of the questions"):
        export_lm_eval(tasks, tmp_path, NOW)
    with pytest.raises(UsageError, match="have hashes of the questions"):
        export_every_eval_ever(tasks, tmp_path, NOW, model_id="lab/tiny", organization="lab")
    assert not list(tmp_path.iterdir())


def test_other_orders_are_not_exported_and_named(
    tiny: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = EvalOptions(permutations=3, questions=4, resamples=100)
    evaluate_on_task(str(tiny), str(questions), options, out=tmp_path / "rows")
    [task] = select_tasks(str(tmp_path / "rows"), tasks=[str(questions)])
    assert len(task.items) == 4
    assert all(not item.row.option_order for item in task.items)
    assert "drugs: 8 answers in other orders" in " ".join(capsys.readouterr().err.split())


def test_a_question_with_more_options_than_letters_makes_the_round_trip(tiny: Path, tmp_path: Path) -> None:
    rows = [
        {
            "id": str(n),
            "q": f"Which of these is {n}?",
            "choices": [f"drug {m}" for m in range(30)],
            "gold": 29 - n,
        }
        for n in range(3)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    definition = {
        "task": "drugs",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{q}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
    }
    spec = tmp_path / "drugs.yaml"
    spec.write_text(json.dumps(definition))
    evaluate_on_task(str(tiny), str(spec), EvalOptions(resamples=100), out=tmp_path / "rows")
    tasks = select_tasks(str(tmp_path / "rows"), tasks=[str(spec)])
    _, log = export_every_eval_ever(tasks, tmp_path / "eee", NOW, model_id="lab/tiny", organization="lab")
    assert {line["metadata"]["gold"] for line in lines(log)} == {"28", "29", "30"}
    imported, _, _ = every_eval_ever_import.import_every_eval_ever([log])
    before = {id_: (row.gold, row.prediction) for id_, row in rows_of(tmp_path / "rows").items()}
    assert {row.id: (row.gold, row.prediction) for row in imported[0].rows} == before
    result, _ = lm_eval_round_trip(tmp_path / "rows", spec, tmp_path)
    [scores] = result.tasks.values()
    assert [score.n for score in scores.values()] == [3]


def test_lm_evals_own_log_is_read(tmp_path: Path) -> None:
    tasks, record, read = lm_eval_import.import_lm_eval(lm_eval_import.find_logs(LOG))
    result, _ = write_imported(tasks, record, read, tmp_path)
    reference = json.loads(next(LOG.glob("results*")).read_text(encoding="utf-8"))
    [score] = result.tasks["tiny"].values()
    assert score.rules["sum"].accuracy == reference["results"]["drugs"]["acc,none"]
    assert (score.engine, score.dtype, score.prompt_form, score.shots) == ("lm-eval hf", "float32", "raw", 0)
    assert record.program == "lm-eval 0.4.13"
    # The data's form is known, so that the question has its own text and options.
    question = tasks[0].questions[0]
    assert question.options == ("aspirin", "metformin", "an antibiotic", "no drug 0")
    assert question.text.startswith("Case 0. Aspirin inhibits")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "not known" in page
    assert "lm-eval 0.4.13" in page
    assert 'href="questions-drugs.html"' in page
    assert (tmp_path / "questions-drugs.html").read_text(encoding="utf-8").count("<article") == 12


def test_an_imported_result_is_exported_without_claiming_to_have_measured_it(tmp_path: Path) -> None:
    tasks, record, read = lm_eval_import.import_lm_eval(lm_eval_import.find_logs(LOG))
    questions = tmp_path / "drugs.jsonl"
    rows = [
        {"id": q.id, "question": q.text, "options": q.options, "gold": q.gold} for q in tasks[0].questions
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_imported(tasks, record, read, tmp_path / "imported")
    selected = select_tasks(str(tmp_path / "imported"), tasks=[str(questions)])
    aggregate, _ = export_every_eval_ever(selected, tmp_path, NOW, model_id="lab/tiny", organization="lab")
    library = json.loads(aggregate.read_text(encoding="utf-8"))["eval_library"]
    assert (library["name"], library["version"]) == ("unknown", "unknown")


def test_samples_get_the_ids_of_a_task(tmp_path: Path) -> None:
    [log] = lm_eval_import.find_logs(LOG)
    questions = tmp_path / "mine.jsonl"
    docs = [line["doc"] for line in lines(log)]
    rows = [
        {
            "id": f"mine-{n}",
            "question": doc["sent1"],
            "options": [doc[f"ending{k}"] for k in range(4)],
            "gold": doc["label"],
        }
        for n, doc in enumerate(docs)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)), encoding="utf-8")
    [task], _, _ = lm_eval_import.import_lm_eval([log], task=open_task(str(questions)))
    assert task.name == "mine"
    assert [row.id for row in task.rows] == [f"mine-{n}" for n in range(12)]
    rows[3]["gold"] = 0
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(InputError, match=r"\(line 4\): the question is not in the task"):
        lm_eval_import.import_lm_eval([log], task=open_task(str(questions)))


def test_lm_eval_and_our_evaluation_agree_on_every_question(tiny: Path, tmp_path: Path) -> None:
    """The log is of the model `tiny`: the same prompts, and log-probabilities up to the last digits."""
    [log] = lm_eval_import.find_logs(LOG)
    questions = tmp_path / "drugs.jsonl"
    rows = [
        {
            "id": f"mine-{line['doc_id']}",
            "question": line["doc"]["sent1"],
            "options": [line["doc"][f"ending{k}"] for k in range(4)],
            "gold": line["doc"]["label"],
        }
        for line in lines(log)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = EvalOptions(dtype="float32", resamples=100)
    evaluate_on_task(str(tiny), str(questions), options, template="lm-eval-medqa", out=tmp_path / "ours")
    imported = lm_eval_import.import_lm_eval([log], task=open_task(str(questions)))
    write_imported(*imported, tmp_path / "theirs")
    ours, theirs = rows_of(tmp_path / "ours"), rows_of(tmp_path / "theirs")
    for id_, row in ours.items():
        assert row.prompt_sha256 == theirs[id_].prompt_sha256
        assert row.prediction == theirs[id_].prediction
        mine, reference = (each.model_dump()["scores"]["sum"] for each in (row, theirs[id_]))
        assert mine == pytest.approx(reference, abs=1e-3)
    [difference] = compare_results(str(tmp_path / "ours"), str(tmp_path / "theirs"))
    assert (difference.n, difference.difference) == (12, 0)
