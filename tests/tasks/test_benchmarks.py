"""Named benchmarks: the selection of their questions, their numbers, and where their examples are from."""

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from meditron.core.errors import InputError, SourceError, UsageError
from meditron.tasks.benchmarks import BENCHMARKS
from meditron.tasks.registry import open_task

SUBJECTS = BENCHMARKS["mmlu-medical"].groups


@pytest.mark.shared
def test_questions_of_the_real_files(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {
        "medqa-4:medqa-usmle": (1000, 1030),
        "medqa-5:medqa-usmle": (1000, 0),
        "medmcqa:medmcqa": (3664, 0),
        "pubmedqa:pubmedqa": (400, 500),
        "mmlu-medical:mmlu": (1494, 44),
        "mmlu-multimedqa:mmlu": (870, 30),
        "truthfulqa-medical:truthfulqa": (81, 81),
    }
    for spec, (test, train) in counts.items():
        name, _, folder = spec.partition(":")
        task = open_task(f"{name}:{shared / 'data' / folder}")
        assert (len(task.rows("test")), len(task.rows("train"))) == (test, train), spec
        assert task.name.startswith(f"{name}-")
        published = BENCHMARKS[name].questions
        assert f"{task.name}: {test:,} of the {published:,} published questions" in capsys.readouterr().err
    medical = Counter(question.group for question in task.rows("test"))
    assert set(medical) == {"Health", "Nutrition", "Psychology", "Science"}


def write_mmlu(folder: Path, subject: str, split: str, count: int) -> None:
    path = folder / split / f"{subject}_{split}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([f"{subject} {split} {n}?", "1", "2", "3", "4", "A"] for n in range(count))


def test_only_the_subjects_of_the_benchmark_and_ids_of_their_own(tmp_path: Path) -> None:
    for subject in (*SUBJECTS, "astronomy"):
        write_mmlu(tmp_path, subject, "test", 3)
        write_mmlu(tmp_path, subject, "dev", 2)
    task = open_task(f"mmlu-medical:{tmp_path}")
    assert Counter(question.group for question in task.rows("test")) == dict.fromkeys(SUBJECTS, 3)
    assert len({question.id for question in task.rows("test")}) == 27
    assert all(" dev " in question.text for question in task.rows("train"))
    assert Counter(q.group for q in open_task(f"mmlu-multimedqa:{tmp_path}").rows("test")).total() == 18


def test_the_hubs_parquet_files(tmp_path: Path) -> None:
    rows = [
        {"question": f"{subject}?", "subject": subject, "choices": ["1", "2", "3", "4"], "answer": 2}
        for subject in (*SUBJECTS, "astronomy")
    ] + [{"question": "zero?", "subject": "virology", "choices": ["1", "2", "3", "4"], "answer": 0}]
    (tmp_path / "all").mkdir()
    for split in ("test", "dev"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "all" / f"{split}-00000.parquet")
    task = open_task(f"mmlu-medical:{tmp_path}")
    assert Counter(q.gold for q in task.rows("test")) == {2: 9, 0: 1}
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 no table")
    with pytest.raises(InputError, match="not Parquet"):
        open_task(str(damaged))


def test_the_wrong_data_are_refused(tmp_path: Path) -> None:
    row = {"question": "Why?", "options": {"A": "1", "B": "2"}, "answer_idx": "A", "meta_info": "step1"}
    file = tmp_path / "test_4options.jsonl"
    file.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(InputError, match="medqa-4 has 4 options, got 2"):
        open_task(f"medqa-4:{file}")
    with pytest.raises(SourceError, match="none of the files of medmcqa"):
        open_task(f"medmcqa:{tmp_path}")
    with pytest.raises(UsageError, match="pubmedqa: the hub has no copy that can be read"):
        open_task("pubmedqa")
    pubmedqa = {"1": {"QUESTION": "Why?", "CONTEXTS": ["So."], "final_decision": "yes"}}
    (tmp_path / "ori_pqal.json").write_text(json.dumps(pubmedqa), encoding="utf-8")
    with pytest.raises(InputError, match="no list of the test split's ids beside it"):
        open_task(f"pubmedqa:{tmp_path}")


ORGANS = ("Liver", "Pancreas", "Spleen", "Kidney", "Heart", "Lung", "Brain", "Skin", "Bone", "Thyroid gland")


def medxpertqa_row(number: int) -> dict[str, object]:
    """A row in MedXpertQA's published form: the question's text lists the options, too."""
    stem = f"Patient {number}, aged {30 + number}, has polyuria. Which organ makes too little of its hormone?"
    options = dict(zip("ABCDEFGHIJ", ORGANS, strict=True))
    listed = " ".join(f"({letter}) {organ}" for letter, organ in options.items())
    return {
        "id": f"Text-{number}",
        "question": f"{stem}\nAnswer Choices: {listed}",
        "options": options,
        "label": "BJ"[number % 2],
        "medical_task": "Diagnosis",
        "body_system": "Endocrine",
        "question_type": "Reasoning",
    }


def test_medxpertqa_as_published(tmp_path: Path) -> None:
    for subset, split, numbers in (
        ("Text", "test", range(4)),
        ("Text", "dev", range(5, 7)),
        ("MM", "test", range(9)),
    ):
        (tmp_path / subset).mkdir(exist_ok=True)
        lines = [json.dumps(medxpertqa_row(number)) for number in numbers]
        (tmp_path / subset / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    task = open_task(f"medxpertqa:{tmp_path}")
    questions = {question.id: question for question in task.rows("test")}
    assert sorted(questions) == ["Text-0", "Text-1", "Text-2", "Text-3"]
    assert {question.id for question in task.rows("train")} == {"Text-5", "Text-6"}
    question = questions["Text-1"]
    assert (question.options, question.gold, question.group) == (ORGANS, 9, "Endocrine")
    assert question.text.endswith("of its hormone?")
    assert task.template.render(question).prompt.count("Thyroid gland") == 1
    assert task.licence == "MIT"
    five = medxpertqa_row(0) | {"options": dict(zip("ABCDE", ORGANS[:5], strict=True)), "label": "A"}
    (tmp_path / "MM" / "test.jsonl").write_text(json.dumps(five), encoding="utf-8")
    with pytest.raises(InputError, match="medxpertqa has 10 options, got 5"):
        open_task(f"medxpertqa:{tmp_path / 'MM' / 'test.jsonl'}")


def test_medbullets_as_published(tmp_path: Path) -> None:
    """The authors publish a CSV file, and the same table as an object of columns."""
    header = ["link", "question", "opa", "opb", "opc", "opd", "ope", "answer_idx", "answer", "explanation"]
    rows = [
        [
            f"https://bit.ly/{n}",
            f'Case {n}: which organ, "if any"?\n\nNa+: 1{n}',
            *ORGANS[:5],
            "ABCDE"[n],
            ORGANS[n],
            f"It is so.\n\nIncorrect Answers:\nAnswer {n}: no.",
        ]
        for n in range(5)
    ]
    folder = tmp_path / "medbullets"
    folder.mkdir()
    with (folder / "medbullets_op5.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    columns = {name: {str(n): row[place] for n, row in enumerate(rows)} for place, name in enumerate(header)}
    (folder / "medbullets_op5.json").write_text(json.dumps(columns), encoding="utf-8")
    tasks = [
        open_task(f"medbullets-5:{tmp_path}"),
        open_task(f"medbullets-5:{folder / 'medbullets_op5.json'}"),
    ]
    read = [{q.text: (q.options, q.gold, q.explanation) for q in task.rows("test")} for task in tasks]
    assert read[0] == read[1]
    assert {row[1]: (ORGANS[:5], n, row[9]) for n, row in enumerate(rows)} == read[0]
    assert [task.origin for task in tasks] == ["Chen et al. 2024, arXiv 2402.18060"] * 2
    with pytest.raises(InputError, match="medbullets-4 has 4 options, got 5"):
        open_task(f"medbullets-4:{folder / 'medbullets_op5.csv'}")
