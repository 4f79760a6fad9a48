"""Published training sets: the questions that they select from the published files."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from meditron.core.errors import InputError, SourceError
from meditron.tasks.training_sets import TRAINING_SETS, open_training_questions, parse_training_set


def test_an_entry_names_a_set_with_or_without_its_place() -> None:
    medmcqa = TRAINING_SETS["medmcqa"]
    assert parse_training_set("medmcqa", "task") == (medmcqa, medmcqa.hub)
    assert parse_training_set("medmcqa:data/medmcqa", "task") == (medmcqa, "data/medmcqa")
    for text in ("pubmed-sections", "data/medmcqa.json", "hf:datasets/a/b"):
        assert parse_training_set(text, "task") == (None, text)


def test_medqa_is_the_training_part_with_as_many_options(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shared / "data/medqa-usmle"
    task = open_training_questions(TRAINING_SETS["medqa-4"], folder)
    with gzip.open(folder / "train_4options.focused1030.json.gz") as file:
        given = {row["question"]: row["answer"] for row in json.load(file)}
    assert {question.text: question.options[question.gold] for question in task.rows("train")} == given
    assert "medqa-4: 1,030 of the 10,178 published training questions" in capsys.readouterr().err
    with pytest.raises(InputError, match="medqa-5 has 5 options, got 4"):
        open_training_questions(TRAINING_SETS["medqa-5"], folder / "train_4options.focused1030.json.gz")
    with pytest.raises(SourceError, match="none of the files of medqa-5"):
        open_training_questions(TRAINING_SETS["medqa-5"], folder)


def test_medmcqa_can_be_restricted_to_explained_questions(shared: Path) -> None:
    file = shared / "data/medmcqa/dev.first3683.json.gz"
    every, explained = (
        open_training_questions(TRAINING_SETS[name], file).rows("train")
        for name in ("medmcqa", "medmcqa-explained")
    )
    with gzip.open(file, "rt") as lines:
        explanations = {row["id"]: row["exp"] for row in map(json.loads, lines)}
    assert {q.id for q in explained} == {q.id for q in every if explanations[q.id]}
    assert all(question.explanation for question in explained)
    assert 0 < len(explained) < len(every)


def test_pubmedqa_leaves_out_the_test_split(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/pubmedqa"
    test_ids = json.loads((folder / "test_ground_truth.first400.json").read_text())
    task = open_training_questions(TRAINING_SETS["pubmedqa"], folder)
    assert len(task.rows("train")) == 500
    assert not {question.id for question in task.rows("train")} & test_ids.keys()
    assert {question.id for question in task.rows("test")} == test_ids.keys()
    shutil.copy(folder / "ori_pqal.less100.json.gz", tmp_path)
    with pytest.raises(InputError, match="no list of the test split's ids"):
        open_training_questions(TRAINING_SETS["pubmedqa"], tmp_path)


def test_pubmedqa_artificial_has_the_rows_of_the_published_form(tmp_path: Path) -> None:
    row = {
        "QUESTION": "Does aspirin reduce fever?",
        "CONTEXTS": ["Patients were treated."],
        "final_decision": "yes",
        "LONG_ANSWER": "Aspirin reduces fever.",
    }
    (tmp_path / "ori_pqaa.json").write_text(json.dumps({"7": row}))
    [question] = open_training_questions(TRAINING_SETS["pubmedqa-a"], tmp_path).rows("train")
    assert (question.id, question.options[question.gold]) == ("7", "yes")
    assert question.explanation == "Aspirin reduces fever."
