"""Options and gold answers in every published form: the same question comes out, or the row is refused."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from meditron.core.errors import InputError
from meditron.tasks.question import Question
from meditron.tasks.registry import open_task
from meditron.tasks.task import Task

NO_OPTION = "the gold answer is not one of the options"
Q = "Which organ makes insulin?"
ORGANS = ("Liver", "Pancreas", "Spleen", "Kidney", "Heart")
BY_LETTER = dict(zip("ABCDE", ORGANS, strict=True))
ASKED = {"question": Q}
OPA = {f"op{letter}": organ for letter, organ in zip("abcde", ORGANS, strict=True)}
KEYED = [{"key": letter, "value": organ} for letter, organ in BY_LETTER.items()]
LETTERED = [f"{letter}. {organ}" for letter, organ in BY_LETTER.items()]
CHOICES = {"text": list(ORGANS), "label": list("ABCDE")}
NUMBERED = {"text": list(ORGANS), "label": list("12345")}
TEXT, LETTER = {"answer": "Pancreas"}, {"answer": "B"}
MEDXPERT = {"id": "Text-0", "label": "B", "medical_task": "Basic Science", "body_system": "Endocrine"}


def questions(folder: Path, *rows: Any) -> dict[str, Question]:
    path = folder / "set.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return {question.id: question for question in open_task(str(path)).rows("test")}


@pytest.mark.parametrize(
    "row",
    [
        ASKED | {"options": BY_LETTER} | TEXT | {"answer_idx": "B", "meta_info": "step1"},  # MedQA
        ASKED | {"options": KEYED} | TEXT | {"answer_idx": "B"},  # MedQA, bigbio
        ASKED | {"options": BY_LETTER} | LETTER,
        ASKED | {"options": BY_LETTER, "answer_idx": "B"},
        ASKED | {"options": BY_LETTER | {"F": None}, "answer_idx": "B"},  # the hub fills up
        ASKED | {"options": LETTERED} | TEXT,
        ASKED | {"options": LETTERED} | LETTER,
        ASKED | {"options": LETTERED, "answer": "B. Pancreas"},
        ASKED | {"options": [f"({x[0]}) {x[3:]}" for x in LETTERED], "answer": "(B)"},
        ASKED | {"options": [f"{x[0]}) {x[3:]}" for x in LETTERED], "answer": "B) Pancreas"},
        {"data": {"Question": Q, "Options": BY_LETTER, "Correct Option": "B", "Correct Answer": "Pancreas"}},
        ASKED | {"choices": list(ORGANS), "answer": ["Pancreas"], "context": ""},  # bigbio's own schema
        ASKED | OPA | {"cop": 2},  # MedMCQA
        ASKED | OPA | {"cop": "1", "id": "x", "subject_name": "Physiology", "exp": ""},
        ASKED | OPA | {"answer_idx": "B", "answer": "Pancreas"},  # MedBullets
        ASKED | BY_LETTER | LETTER,  # MMLU
        ASKED | BY_LETTER | {"answer": "b"},
        {"input": Q, "target": "B"} | BY_LETTER,
        ASKED | {"subject": "anatomy", "choices": list(ORGANS), "answer": 1},
        ASKED
        | {"options": list(ORGANS), "answer": "B", "answer_index": 1, "category": "biology"},  # MMLU-Pro
        ASKED | MEDXPERT | {"options": BY_LETTER},
        ASKED | MEDXPERT | {"options": [{"letter": x, "content": y} for x, y in BY_LETTER.items()]},
        ASKED | {"choices": CHOICES, "answerKey": "B"},  # ARC
        ASKED | {"choices": NUMBERED, "answerKey": "2"},
        ASKED | {"choices": NUMBERED, "answerKey": 2},
        {"question": {"stem": Q, "choices": [{"text": y, "label": x} for x, y in BY_LETTER.items()]}}
        | {"answerKey": "B"},
        {"question_stem": Q, "choices": CHOICES, "answerKey": "B"},  # OpenBookQA
        {"sent1": Q, "label": 1} | {f"ending{n}": organ for n, organ in enumerate(ORGANS)},  # lm-eval's MedQA
        ASKED | {f"option{n}": organ for n, organ in enumerate(ORGANS, 1)} | {"answer": "Pancreas"},
        ASKED | {f"Option {x}": y for x, y in BY_LETTER.items()} | {"Correct Answer": "B"},
        {
            "qtext": Q,
            "ra": 2,
            "answers": [{"aid": n, "atext": x} for n, x in enumerate(ORGANS, 1)],
        },  # HEAD-QA
        {"QUESTION": Q, "Options": json.dumps(ORGANS), "ANSWER": "Pancreas"},
        ASKED | {"options": list(ORGANS), "gold": 1},
        ASKED | {"options": list(ORGANS), "gold": "B"},
        ASKED | {"options": list(ORGANS), "gold": "Pancreas"},
        ASKED | {"options": list(ORGANS), "gold": "pancreas "},
    ],
    ids=lambda row: ",".join(row)[:60],
)
def test_published_forms_give_the_same_question(tmp_path: Path, row: dict[str, Any]) -> None:
    (question,) = questions(tmp_path, row).values()
    assert (question.text, question.options, question.gold) == (Q, ORGANS, 1)
    task = open_task(str(tmp_path / "set.jsonl"))
    assert task.template.render(question).continuations == (" A", " B", " C", " D", " E")
    assert "\nE. Heart\n" in task.template.render(question).prompt


def table(folder: Path, *rows: list[str], name: str = "set.csv") -> Task:
    file = io.StringIO(newline="")
    csv.writer(file).writerows(rows)
    (folder / name).write_text(file.getvalue(), encoding="utf-8", newline="")
    return open_task(str(folder / name))


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        ([], "B"),
        (["question", *"ABCDE", "answer"], "B"),
        (["Question", *"abcde", "Answer"], "Pancreas"),
        (["QUESTION", *OPA, "COP"], "1"),
        (["question", *(f"Option_{x}" for x in "ABCDE"), "Correct Answer"], "b"),
    ],
)
def test_tables_with_five_columns_of_options(tmp_path: Path, head: list[str], tail: str) -> None:
    (question,) = table(tmp_path, *([head] if head else []), [Q, *ORGANS, tail]).rows("test")
    assert (question.options, question.gold) == (ORGANS, 1)


def test_tables_whose_last_options_are_empty_have_fewer(tmp_path: Path) -> None:
    task = table(
        tmp_path, ["question", *"ABC", "answer"], ["x?", "a", "b", "", "B"], ["y?", "a", "b", "c", "C"]
    )
    assert [len(question.options) for question in sorted(task.rows("test"), key=lambda q: q.text)] == [2, 3]


def test_ten_options_and_more(tmp_path: Path) -> None:
    many = [f"option number {n}" for n in range(14)]
    (question,) = questions(tmp_path, ASKED | {"options": many, "answer": "N", "answer_index": 13}).values()
    assert question.gold == 13
    (question,) = table(tmp_path, [Q, *many[:10], "J"]).rows("test")
    assert (len(question.options), question.gold) == (10, 9)


def test_truthfulqa_on_the_hub(tmp_path: Path) -> None:
    targets = {"choices": ["Pancreas", "Liver", "Spleen"], "labels": [1, 0, 0]}
    best = {
        "type": "x",
        "category": "Law",
        "best_answer": "Pancreas",
        "incorrect_answers": ["Liver", "Spleen"],
    }
    for row in (ASKED | {"mc1_targets": targets, "mc2_targets": targets}, ASKED | best):
        (question,) = questions(tmp_path, row).values()
        assert sorted(question.options) == ["Liver", "Pancreas", "Spleen"]
        assert question.options[question.gold] == "Pancreas"
        assert open_task(str(tmp_path / "set.jsonl")).licence == "Apache-2.0"


def test_pubmedqa_on_the_hub(tmp_path: Path) -> None:
    context = {"contexts": ["One.", "Two."], "labels": ["A", "B"], "meshes": []}
    row = {
        "pubid": 17,
        "question": "Is it?",
        "context": context,
        "long_answer": "No.",
        "final_decision": "no",
    }
    (question,) = questions(tmp_path, row).values()
    assert question == Question(
        id="17",
        text="Is it?",
        options=("yes", "no", "maybe"),
        gold=1,
        context="One.\nTwo.",
        group=None,
        explanation="No.",
    )


def golds(folder: Path, options: list[str], *answers: Any, key: str = "answer") -> list[int]:
    rows = [{"id": n, "question": f"{n}?", "options": options, key: a} for n, a in enumerate(answers)]
    result = questions(folder, *rows)
    return [result[str(n)].gold for n in range(len(answers)) if str(n) in result]


def test_other_rows_decide_an_ambiguous_answer(tmp_path: Path) -> None:
    vitamins = ["D", "A", "B", "K"]  # each letter but K is also another option's text
    assert golds(tmp_path, vitamins, "A", "K") == [1, 3]
    assert golds(tmp_path, vitamins, "A", "C") == [0, 2]
    with pytest.raises(
        InputError, match=r"line 1\): the gold answer is ambiguous: it is the text of option 2 and the"
    ):
        golds(tmp_path, vitamins, "A", "B")
    assert golds(tmp_path, vitamins, "A", "B", key="gold") == [0, 1], "a letter, as documented"
    numbers = ["4", "3", "2", "1"]
    assert golds(tmp_path, numbers, "4", "1") == [0, 3]


def test_the_file_decides_where_indexes_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    organs = list(ORGANS)
    assert golds(tmp_path, organs, 1, 2, 5) == [0, 1, 4]
    assert golds(tmp_path, organs, 0, 2) == [0, 2]
    assert "count from" not in capsys.readouterr().err
    assert golds(tmp_path, organs, 1, 2) == [1, 2]
    assert (
        "the answers (answer) do not show whether they count from 0 or 1; they are read as counted from 0"
        in (capsys.readouterr().err)
    )
    assert golds(tmp_path, organs, 1, 2, key="gold") == [1, 2]
    assert not capsys.readouterr().err
    assert golds(tmp_path, organs, *[1, 2, 3, 4] * 3, key="gold")[:4] == [1, 2, 3, 4]
    assert "(gold) do not show whether they count from 0 or 1" in capsys.readouterr().err
    with pytest.raises(
        InputError, match=r"line 3\).*: 5 \(an index counts from 0, to 4; no answer .* is 0\)"
    ):
        golds(tmp_path, organs, 1, 2, 5, key="gold")


@pytest.mark.parametrize("withheld", [None, "", -1, "-1"])
def test_withheld_answers_are_counted_or_an_error(tmp_path: Path, withheld: Any) -> None:
    assert golds(tmp_path, list(ORGANS), "B", withheld) == [1]
    assert open_task(str(tmp_path / "set.jsonl")).skipped("test") == {"no answer is given": 1}
    with pytest.raises(InputError, match=r"no row of the file is a question: no answer is given \(2 rows\)"):
        golds(tmp_path, list(ORGANS), withheld, withheld)
    with pytest.raises(InputError, match=r"\(line 2\): no answer is given"):
        golds(tmp_path, list(ORGANS), "B", withheld, key="gold")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ASKED | {"opa": "a", "opb": "b", "opd": "d", "cop": 1}, "the options are not lettered A, B, C …"),
        (ASKED | {"options": {"A": "a", "C": "c"}} | LETTER, "the options are not lettered A, B, C …"),
        (ASKED | {"choices": {"text": ["a", "b"], "label": ["A", "A"]}} | LETTER, "the options are not"),
        (ASKED | {"options": ["A. Liver", "B. Heart"], "answer": "A. Heart"}, NO_OPTION),
        (ASKED | {"options": list(ORGANS), "answer": "A,C"}, f"{NO_OPTION}: 'A,C'"),
        (ASKED | {"options": list(ORGANS), "answer": ["A", "B"]}, NO_OPTION),
        (ASKED | {"options": list(ORGANS), "answer_index": 0, "answer": "B"}, "answer_index (0) and"),
        (ASKED | {"Question": "x?", "options": list(ORGANS)} | LETTER, "two fields have the same name"),
    ],
)  # fmt: skip
def test_unreadable_options_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        questions(tmp_path, row)
    assert f"set.jsonl (line 1): {message}" in caught.value.message


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"set\.csv \(line 1\): two columns are called 'B'"):
        table(tmp_path, ["question", "A", "B", "B", "answer"], ["x?", "a", "b", "c", "A"])


def test_the_content_of_a_question_is_its_text_context_and_options() -> None:
    item = Question(id="1", text="Which organ?", options=("Liver", "Heart"), gold=0, context="Read this.")
    same = Question(
        id="x",
        text=" which  ORGAN?",
        options=("heart", "liver"),
        gold=1,
        context="read THIS.",
        group="group",
        explanation="because",
    )
    inline = Question(id="2", text="Read this.\nWhich organ?", options=("Liver", "Heart"), gold=0)
    assert item.content_sha256 == same.content_sha256 == inline.content_sha256
    for other in (
        Question(id="1", text="Which organ?", options=("Liver", "Heart"), gold=0, context="Read that."),
        Question(id="1", text="Which organ?", options=("Liver", "Lung"), gold=0, context="Read this."),
    ):
        assert other.content_sha256 != item.content_sha256


def test_repeated_questions_give_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = ASKED | {"options": list(ORGANS)} | TEXT
    questions(tmp_path, row, row | {"question": Q.upper()}, row | {"question": "Another?"})
    assert "1 of 3 questions repeat another's text and options" in capsys.readouterr().err


@pytest.mark.shared
def test_the_cases_files_are_read(shared: Path) -> None:
    counts = {
        "medmcqa_kaggle.csv": 4,
        "medqa_letter_only.jsonl": 4,
        "medqa_list_letterdot_full.jsonl": 4,
        "mmlu_5.csv": 5,
        "truthfulqa_hub.jsonl": 2,
    }
    for name, count in counts.items():
        task = open_task(str(shared / "cases/questions" / name))
        first = min(task.rows("test"), key=lambda question: question.text)
        assert len(first.options) == count, name
        assert first.options[first.gold] == "Pancreas"
    for name in ("five.csv", "five.jsonl"):
        task = open_task(str(shared / "cases/training/03-five-options" / name))
        assert {len(question.options) for question in task.rows("test")} == {5}
