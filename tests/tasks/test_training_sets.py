"""Published training sets: the questions that they select from the published files."""

import gzip
import json
import shutil
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

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


def test_the_hubs_layouts_of_the_training_sets(tmp_path: Path) -> None:
    # Names of files and fields as in the dataset cards of the hub.
    contexts = {"contexts": ["Patients."], "labels": ["METHODS"], "meshes": ["Fever"]}
    pubmedqa = {
        "pubid": 25429730,
        "question": "Does aspirin reduce fever?",
        "context": contexts,
        "long_answer": "It reduces fever.",
        "final_decision": "yes",
    }
    options = {"opa": "Liver", "opb": "Pancreas", "opc": "Spleen", "opd": "Lung"}
    medmcqa = [
        {"id": f"m{cop}", "question": f"Organ {cop}?", **options, "cop": cop}
        | {"choice_type": "single", "exp": None, "subject_name": "Anatomy", "topic_name": None}
        for cop in (0, 1, 3)
    ]
    medqa = {
        "question": "Organ?",
        "answer": "Pancreas",
        "options": dict(zip("ABCD", options.values(), strict=True)),
        "meta_info": "step1",
        "answer_idx": "B",
        "metamap_phrases": ["organ"],
    }
    for name, rows in {"pubmedqa/pqa_artificial": [pubmedqa], "medmcqa/data": medmcqa}.items():
        (tmp_path / name).mkdir(parents=True)
        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, tmp_path / name / "train-00000-of-00001.parquet")
    (tmp_path / "medqa").mkdir()
    (tmp_path / "medqa/phrases_no_exclude_train.jsonl").write_text(json.dumps(medqa) + "\n")
    pubmedqa_a, medmcqa_train, medqa_4 = (
        {q.id: q for q in open_training_questions(TRAINING_SETS[name], tmp_path / folder).rows("train")}
        for name, folder in (("pubmedqa-a", "pubmedqa"), ("medmcqa", "medmcqa"), ("medqa-4", "medqa"))
    )
    assert (pubmedqa_a["25429730"].context, pubmedqa_a["25429730"].gold) == ("Patients.", 0)
    assert {name: question.gold for name, question in medmcqa_train.items()} == {"m0": 0, "m1": 1, "m3": 3}
    [question] = medqa_4.values()
    assert question.options[question.gold] == "Pancreas"


def test_a_file_of_the_size_of_pubmedqas_artificial_questions_is_read(tmp_path: Path) -> None:
    # The file of the hub has 444 MB when it is decompressed. The bulk is in a field that no question has.
    context = {"contexts": ["Patients."], "labels": ["x" * (1 << 23)]}
    row = {"context": context, "final_decision": "yes"}
    rows = [row | {"question": f"Is it {number}?"} for number in range(33)]
    folder = tmp_path / "pqa_artificial"
    folder.mkdir()
    parquet.write_table(
        pyarrow.Table.from_pylist(rows), folder / "train.parquet", compression="zstd", use_dictionary=False
    )
    assert len(open_training_questions(TRAINING_SETS["pubmedqa-a"], tmp_path).rows("train")) == 33
