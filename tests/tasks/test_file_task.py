"""Files of questions: every real set comes through whole, and no broken row does."""

import csv
import gzip
import io
import json
import os
import re
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from meditron.core.errors import InputError
from meditron.tasks.drafts import REPEATED
from meditron.tasks.file_rows import read_source_rows
from meditron.tasks.registry import open_task
from meditron.tasks.task import Task

# What the READMEs beside the files count, and the rows among them with the same option twice.
NO_OPTION = "the gold answer is not one of the options"
SETS = {
    "medqa-usmle/test_4options.first1000.jsonl.gz": (1_000, 4, "letters", 0),
    "medqa-usmle/test_5options.first1000.jsonl.gz": (1_000, 5, "letters", 0),
    "medqa-usmle/dev_5options.json.gz": (1_272, 5, "letters", 0),
    "medqa-usmle/train_4options.focused1030.json.gz": (1_030, 4, "letters", 0),
    "medmcqa/dev.first3683.json.gz": (3_683, 4, "letters", 19),
    "truthfulqa/v0/mc_task.less117.json.gz": (700, None, "texts", 0),
    "truthfulqa/v0/TruthfulQA.less117.csv.gz": (700, None, "texts", 0),
    "truthfulqa/v1/mc_task.less117.json.gz": (700, None, "texts", 0),
    "truthfulqa/v1/TruthfulQA.less117.csv.gz": (700, None, "texts", 0),
}
MMLU_TEST = {
    "anatomy": 108,
    "clinical_knowledge": 212,
    "college_biology": 115,
    "college_medicine": 138,
    "high_school_biology": 248,
    "medical_genetics": 80,
    "nutrition": 244,
    "professional_medicine": 217,
    "virology": 132,
}


def counted(task: Task) -> tuple[int, int]:
    return len(task.rows("test")), sum(task.skipped("test").values())


@pytest.mark.shared
@pytest.mark.parametrize("name", SETS)
def test_real_sets(shared: Path, name: str) -> None:
    rows, options, template, flawed = SETS[name]
    task = open_task(str(shared / "data" / name))
    assert counted(task) == (rows - flawed, flawed)
    assert task.template.name == template
    assert task.rows("train") == task.rows("test")
    assert task.licence in ("MIT", "Apache-2.0")
    assert "arXiv" in task.origin
    questions = task.rows("test")
    assert len({question.id for question in questions}) == len(questions)
    assert options is None or {len(question.options) for question in questions} == {options}
    # No place gives the answer away: in TruthfulQA's own order the true answer always comes first.
    assert Counter(question.gold for question in questions).most_common(1)[0][1] < 0.4 * rows


@pytest.mark.shared
def test_gold_answers_are_the_published_ones(shared: Path) -> None:
    def golds(name: str) -> dict[str, str]:
        task = open_task(str(shared / "data" / name))
        return {question.id: question.options[question.gold] for question in task.rows("test")}

    def text(name: str) -> io.TextIOWrapper:
        return gzip.open(shared / "data" / name, "rt", encoding="utf-8-sig", newline="")

    medqa = "medqa-usmle/test_5options.first1000.jsonl.gz"
    with text(medqa) as file:
        assert golds(medqa) == {str(n): json.loads(row)["answer"] for n, row in enumerate(file, start=1)}
    medmcqa = "medmcqa/dev.first3683.json.gz"
    with text(medmcqa) as file:
        rows = [json.loads(row) for row in file]
    assert golds(medmcqa).items() <= {row["id"]: row[f"op{'abcd'[row['cop'] - 1]}"] for row in rows}.items()
    truthful = "truthfulqa/v1/TruthfulQA.less117.csv.gz"
    with text(truthful) as file:
        expected = {str(n): row["Best Answer"] for n, row in enumerate(csv.DictReader(file), start=1)}
    assert golds(truthful) == expected


@pytest.mark.shared
def test_mmlu(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/mmlu"
    for subject, count in MMLU_TEST.items():
        task = open_task(str(folder / f"test/{subject}_test.csv"))
        assert counted(task) == (count, 0)
        assert {question.group for question in task.rows("test")} == {subject}
    small = {
        split: [open_task(str(file)) for file in (folder / split).glob("*.csv")] for split in ("dev", "val")
    }
    assert {split: sum(sum(counted(task)) for task in tasks) for split, tasks in small.items()} == {
        "dev": 45,
        "val": 208,
    }
    with tarfile.open(folder / "other_48_subjects.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    others = [counted(open_task(str(file))) for file in sorted(tmp_path.rglob("*.csv"))]
    assert len(others) == 144
    assert [sum(column) for column in zip(*others, strict=True)] == [13_760, 12]


@pytest.mark.shared
def test_pubmedqa_has_its_own_split(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/pubmedqa"
    file, truths = folder / "ori_pqal.less100.json.gz", folder / "test_ground_truth.first400.json"
    task = open_task(str(file))
    labels = json.loads(truths.read_text(encoding="utf-8"))
    golds_by_id = {question.id: question.options[question.gold] for question in task.rows("test")}
    assert golds_by_id == labels
    assert len(golds_by_id) == 400
    train = {question.id for question in task.rows("train")}
    assert len(train) == 500
    assert not train & golds_by_id.keys()
    (tmp_path / file.name).write_bytes(file.read_bytes())
    assert len(open_task(str(tmp_path / file.name)).rows("test")) == 900
    first = next(iter(labels))
    for changed in ({first: "maybe"}, {"1": "yes"}):
        (tmp_path / truths.name).write_text(json.dumps(labels | changed), encoding="utf-8")
        with pytest.raises(InputError, match=rf"{truths.name} \({next(iter(changed))}\)"):
            open_task(str(tmp_path / file.name))


PLAIN = {"question": "Why?", "options": ["a", "b", "c"], "gold": 1}
MEDQA = {"question": "Why?", "options": {"A": "a", "B": "b"}, "answer": "b", "answer_idx": "B"}
LISTED = {"question": "Why?", "options": ["A. a", "B. b"], "answer": "b"}
MEDMCQA = {
    "id": "x",
    "question": "Why?",
    "opa": "a",
    "opb": "b",
    "opc": "c",
    "opd": "d",
    "cop": 4,
    "exp": None,
}
PUBMEDQA = {
    "QUESTION": "Is it?",
    "CONTEXTS": ["One.", "Two."],
    "final_decision": "no",
    "LONG_ANSWER": "It is not.",
}
TRUTHFUL = {"question": "Why?", "mc1_targets": {"a": 1, "b": 0, "c": 0}}


def lines(path: Path, *rows: Any) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def test_plain_rows(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "own.jsonl",
        PLAIN | {"id": "first", "context": "Read.", "group": "hard", "explanation": "So."},
        PLAIN | {"id": 7, "gold": "C", "more": [1]},
        PLAIN | {"gold": "A", "context": None, "id": None},
    )
    task = open_task(file)
    result = {question.id: question for question in task.rows("test")}
    assert result.keys() == {"first", "7", "3"}
    assert [result[key].gold for key in ("first", "7", "3")] == [1, 2, 0]
    first = result["first"]
    assert (first.context, first.group, first.explanation) == ("Read.", "hard", "So.")
    assert (task.name, task.template.name, task.licence) == ("own", "letters", "not stated")


@pytest.mark.parametrize(
    ("good", "change", "message"),
    [
        (PLAIN, {"question": " \n"}, "the question is empty"),
        (PLAIN, {"question": None}, "the question is not a text: null"),
        (PLAIN, {"question": "\ud800"}, "contains half of a surrogate pair"),
        (PLAIN, {"options": ["a", "b", "a"]}, "two options are the same: 'a'"),
        (PLAIN, {"options": ["a", " ", "b"]}, "an option is empty"),
        (PLAIN, {"options": ["a", 5]}, "the option is not a text: 5 (a number)"),
        (PLAIN, {"options": ["a"]}, "1 options; a question needs 2 to 26"),
        (PLAIN, {"options": [str(n) for n in range(27)]}, "27 options"),
        (PLAIN, {"options": "ab"}, "the options are neither a list nor an object"),
        (PLAIN, {"gold": 3}, f"{NO_OPTION}: 3 (an index counts from 0, to 2"),
        (PLAIN, {"gold": -1}, "no answer is given"),
        (PLAIN, {"gold": ""}, "no answer is given"),
        (PLAIN, {"gold": ...}, "no answer is given"),
        (PLAIN, {"gold": -2}, NO_OPTION),
        (PLAIN, {"gold": "D"}, f"{NO_OPTION}: 'D'"),
        (PLAIN, {"gold": "bb"}, NO_OPTION),
        (PLAIN, {"gold": True}, f"{NO_OPTION}: true (a boolean, not a text)"),
        (PLAIN, {"gold": 1.0}, NO_OPTION),
        (PLAIN, {"gold": None}, "no answer is given"),
        (PLAIN, {"id": True}, "the id is neither text nor number"),
        (PLAIN, {"id": "1"}, "a second question with the id '1'"),
        (PLAIN, {"context": 5}, "the context is not a text"),
        (PLAIN, {"options": ...}, "no options"),
        (PLAIN, {"options": {}}, "no options"),
        (MEDQA, {"options": {"A": "a", "C": "b"}}, "the options are not lettered A, B, C"),
        (MEDQA, {"options": {"A": "a", "B": "a"}, "answer": "a"}, "two options are the same"),
        (MEDQA, {"answer_idx": "A"}, "answer_idx (A) and answer (b) name different options"),
        (MEDQA, {"answer_idx": "C"}, f"{NO_OPTION}: 'C'"),
        (MEDQA, {"answer": "The second, as it is older."}, f"{NO_OPTION}: 'The second"),
        (MEDQA, {"options": 5}, "the options are neither a list nor an object"),
        (LISTED, {"answer": "A. b"}, f"{NO_OPTION}: 'A. b'"),
        (LISTED, {"answer": ["a", "b"]}, NO_OPTION),
        (MEDMCQA, {"id": "y", "cop": 5}, f"{NO_OPTION}: 5"),
        (MEDMCQA, {"id": "y", "cop": "1,3"}, NO_OPTION),
        (MEDMCQA, {"id": "y", "opb": ""}, "an option is empty"),
        (MEDMCQA, {"id": True}, "the id is neither text nor number"),
        (MEDMCQA, {}, "a second question with the id 'x'"),
        (PUBMEDQA, {"final_decision": "perhaps"}, f"{NO_OPTION}: 'perhaps'"),
        (PUBMEDQA, {"CONTEXTS": "One."}, "the contexts are not a list of texts"),
        (PUBMEDQA, {"CONTEXTS": [5]}, "the context is not a text"),
        (TRUTHFUL, {"mc1_targets": {"a": 1, "b": 1}}, "`mc1_targets` needs exactly one right answer"),
        (TRUTHFUL, {"mc1_targets": {"a": 0, "b": 0}}, "`mc1_targets` needs exactly one right answer"),
        (TRUTHFUL, {"mc1_targets": {"a": 1, "b": "x"}}, "`mc1_targets` needs exactly one right answer"),
        (TRUTHFUL, {"mc1_targets": ["a"]}, "`mc1_targets` needs exactly one right answer"),
        (TRUTHFUL, {"mc1_targets": {"a": 1}}, "1 options"),
    ],
)  # fmt: skip
def test_a_row_that_is_not_a_question_is_reported_with_its_line(
    tmp_path: Path, good: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    bad = {key: value for key, value in (good | change).items() if value is not ...}
    file = lines(tmp_path / "set.jsonl", good, bad)
    with pytest.raises(InputError) as caught:
        open_task(file)
    assert caught.value.message.startswith(f"{file} (line 2): {message}")


def test_unusable_rows_of_published_sets_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = [MEDMCQA | {"id": str(n), "cop": cop} for n, cop in enumerate((None, -1))]
    file = lines(tmp_path / "dev.json", MEDMCQA, *unknown, MEDMCQA | {"id": "y", "opb": "a"})
    task = open_task(file)
    assert task.skipped("test") == {"no answer is given": 2, REPEATED: 1}
    assert [question.id for question in task.rows("test")] == ["x"]
    assert "2 of 4 rows left out: no answer is given" in capsys.readouterr().err
    with pytest.raises(InputError, match="no row of the file is a question"):
        open_task(lines(tmp_path / "none.json", *unknown))


def test_medmcqa_counts_from_one_or_from_nought(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def golds(*cops: Any) -> list[int]:
        file = lines(tmp_path / "dev.json", *(MEDMCQA | {"id": str(n), "cop": c} for n, c in enumerate(cops)))
        return [question.gold for question in sorted(open_task(file).rows("test"), key=lambda q: q.id)]

    assert golds(1, 2, 4) == [0, 1, 3]
    assert golds(0, 1, 3) == [0, 1, 3]
    assert golds(0, -1, 3) == [0, 3]
    assert "counted from 1" not in capsys.readouterr().err
    assert golds(1, 3) == [0, 2]
    assert "read as counted from 1" in capsys.readouterr().err
    with pytest.raises(
        InputError,
        match=r"line 2\): the gold answer is not one of the options: 4 \(an index counts from 0, to 3\)",
    ):
        golds(0, 4)


def test_letters_are_taken_off_only_where_every_option_has_its_own(tmp_path: Path) -> None:
    def options(*texts: str) -> tuple[str, ...]:
        row = {"question": "Which?", "options": texts, "answer": texts[0].removeprefix("A. ")}
        (question,) = open_task(lines(tmp_path / "a.jsonl", row)).rows("test")
        return question.options

    assert options("A. fumigatus", "B. cereus") == ("fumigatus", "cereus")
    row = {"question": "Which?", "options": ["A. fumigatus", "C. albicans"], "answer": "C. albicans"}
    (question,) = open_task(lines(tmp_path / "b.jsonl", row)).rows("test")
    assert question.options == ("A. fumigatus", "C. albicans")


@pytest.mark.parametrize("key", ["question", "prompt", "query", "problem", "Question"])
@pytest.mark.parametrize(
    "options",
    [["Liver", "Heart"], {"A": "Liver", "B": "Heart"}, "A. Liver\nB. Heart", "(A) Liver\n(B) Heart\n"],
)
@pytest.mark.parametrize("answer", ["B", "Heart", "B. Heart"])
def test_questions_in_the_forms_people_write(tmp_path: Path, key: str, options: object, answer: str) -> None:
    row = {key: "Which organ pumps?", "options": options, "answer": answer}
    (question,) = open_task(lines(tmp_path / "a.jsonl", row)).rows("test")
    assert (question.text, question.options, question.gold) == ("Which organ pumps?", ("Liver", "Heart"), 1)


def test_an_unknown_format_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(line 1\): the fields are not those .*: text, label") as error:
        open_task(lines(tmp_path / "a.jsonl", {"text": "x", "label": 1}))
    model_rows = json.loads(re.findall(r"\{.*\}", str(error.value.hint))[0])
    assert open_task(lines(tmp_path / "own.jsonl", model_rows)).rows("test")[0].gold == 1
    with pytest.raises(InputError, match="a question without options or without an answer, in the fields"):
        open_task(lines(tmp_path / "b.jsonl", {"question": "Which organ?", "answer": "Liver"}))
    with pytest.raises(InputError, match="holds no questions"):
        open_task(lines(tmp_path / "a.json", []))


def test_csv_with_and_without_a_header(tmp_path: Path) -> None:
    rows = [["Why, then?", "a", 'b "c"', "d\ne", "f", "C"], ["How?", "a", "b", "c", "d", "A"]]
    for name, head in (("virology_test.csv", []), ("b.csv", [["question", "A", "B", "C", "D", "answer"]])):
        file = io.StringIO(newline="")
        csv.writer(file).writerows(head + rows)
        (tmp_path / name).write_text(file.getvalue(), encoding="utf-8", newline="")
        task = open_task(str(tmp_path / name))
        result = {question.id: question for question in task.rows("test")}
        assert result["1"].options == ("a", 'b "c"', "d\ne", "f")
        assert (result["1"].gold, result["2"].gold) == (2, 0)
        assert result["1"].group == name.removesuffix(".csv").removesuffix("_test")
    (tmp_path / "b.csv").write_text("Why?,a,b,c,d,A\nWhy?,a,b,c,d,E\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"b\.csv \(line 2\): the gold answer is not one of the options: 'E'"
    ):
        open_task(str(tmp_path / "b.csv"))


def test_a_list_as_pandas_writes_it_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,options,answer\nWhy?,\"['w', 'x']\",x\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        open_task(str(tmp_path / "a.csv"))
    assert "neither a list nor an object: \"['w', 'x']\"" in caught.value.message
    assert '(write them as JSON, ["w", "x"], or one column per option)' in caught.value.message


def test_a_refused_file_gives_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"question": "How many?", "options": [10, 20, 30], "answer": 20}
    with pytest.raises(InputError, match=r"the option is not a text: 10 \(a number\)"):
        open_task(lines(tmp_path / "a.jsonl", row))
    assert not capsys.readouterr().err


def test_truthfulqas_repeated_wrong_answers_are_one_option(tmp_path: Path) -> None:
    text = "Question,Best Answer,Incorrect Answers,Category\nWhy?,a,{},Law\n"
    file = tmp_path / "TruthfulQA.csv"
    file.write_text(text.format("b; c; b; "), encoding="utf-8")
    (question,) = open_task(str(file)).rows("test")
    assert sorted(question.options) == ["a", "b", "c"]
    assert (question.options[question.gold], question.group) == ("a", "Law")
    file.write_text(text.format("b; a"), encoding="utf-8")
    with pytest.raises(InputError, match=r"\(line 2\): the best answer is among the incorrect ones: 'a'"):
        open_task(str(file))


def test_texts_are_kept_as_they_are(tmp_path: Path) -> None:
    row = {"question": "Why?  \n", "options": [" a ", "b\t"], "gold": 0, "context": " c"}
    (question,) = open_task(lines(tmp_path / "a.jsonl", row)).rows("test")
    assert (question.text, question.options, question.context) == ("Why?  \n", (" a ", "b\t"), " c")
    assert [row.fields["question"] for row in read_source_rows(tmp_path / "a.jsonl")] == ["Why?  \n"]


def test_a_file_name_that_is_not_utf8_gives_a_printable_task_name(tmp_path: Path) -> None:
    row = {"question": "q", "options": ["x", "y"], "gold": 1}
    path = tmp_path / os.fsdecode(b"a\xff\n\x1b[31m.jsonl")
    path.write_text(json.dumps(row))
    task = open_task(str(path))
    assert (task.name, task.data_file.encode()) == ("a\\xff??[31m", b"a\\xff\n\x1b[31m.jsonl")
