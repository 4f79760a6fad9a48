"""The door to tasks: names, near names, files, templates; and that it stays light."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from meditron.core.errors import SourceError, UsageError
from meditron.tasks.formats import FORMATS
from meditron.tasks.registry import TASKS, open_task, parse_task, parse_tasks
from meditron.tasks.task import Question, prompts_sha256, questions_sha256

ROWS = [{"question": f"Number {n}?", "options": ["yes", "no"], "gold": n % 2} for n in range(9)]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.v2.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return str(path)


def test_unknown_tasks_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no task 'pubmed-section'") as caught:
        open_task("pubmed-section")
    assert caught.value.hint == "did you mean pubmed-sections?"
    with pytest.raises(UsageError, match="no task 'xyz'") as caught:
        open_task("xyz")
    assert "pubmed-sections" in (caught.value.hint or "")
    for published in FORMATS:
        assert all(f"{published.dataset} (" in (caught.value.hint or "") for _ in published.published_files)
    for missing in ("medqa.jsonl", "data/medqa"):
        with pytest.raises(SourceError, match=f"{missing}: no such file, and no task of that name"):
            open_task(missing)
    with pytest.raises(UsageError, match="pubmed-sections is made from a corpus, but no corpus is given"):
        open_task("pubmed-sections")
    with pytest.raises(SourceError, match="no such file"):
        open_task(str(tmp_path))


def test_another_template_changes_prompts_only(file: str) -> None:
    assert open_task(file).template.name == "letters"
    task = open_task(file, template="texts")
    assert task.template.render(task.rows("test")[0]).continuations == (" yes", " no")
    assert task.prompt_sha256("test") != open_task(file).prompt_sha256("test")
    assert task.data_sha256("test") == open_task(file).data_sha256("test")
    with pytest.raises(UsageError, match="no template 'letter'"):
        open_task(file, template="letter")


def test_a_limit_takes_the_beginning_of_an_order_that_does_not_change(file: str, tmp_path: Path) -> None:
    task = open_task(file)
    assert task.name == "mine.v2"
    rows = task.rows("test")
    assert task.rows("test", 4) == rows[:4]
    assert task.rows("train", 99) == rows
    assert [question.id for question in rows] != sorted(question.id for question in rows)
    longer = tmp_path / "longer.jsonl"
    more = [*ROWS, {"question": "Another?", "options": ["yes", "no"], "gold": 0}]
    longer.write_text("\n".join(map(json.dumps, more)), encoding="utf-8")
    assert [q for q in open_task(str(longer)).rows("test") if q.id != "10"] == list(rows)


def test_hashes_cover_questions_and_prompts(file: str) -> None:
    task = open_task(file)
    rows = task.rows("test")
    assert task.data_sha256("test") == questions_sha256(rows)
    assert task.prompt_sha256("test") == prompts_sha256(task.template.render(row) for row in rows)
    first = Question(id="1", text="Why?", options=("a", "b"), gold=0)
    hashes = {
        questions_sha256([item])
        for item in (
            first,
            Question(id="2", text="Why?", options=("a", "b"), gold=0),
            Question(id="1", text="How?", options=("a", "b"), gold=0),
            Question(id="1", text="Why?", options=("a", "c"), gold=0),
            Question(id="1", text="Why?", options=("a", "b"), gold=1),
            Question(id="1", text="Why?", options=("a", "b"), gold=0, context="Read."),
        )
    }
    assert len(hashes) == 6
    assert questions_sha256([first]) == questions_sha256(
        [Question(id="1", text="Why?", options=("a", "b"), gold=0, group="x")]
    )
    assert questions_sha256([first, first]) != questions_sha256([first])


def test_every_registered_task_has_title_licence_and_origin(tmp_path: Path) -> None:
    for name in TASKS:
        task = open_task(name, corpus=tmp_path)
        assert task.name == name
        assert task.version >= 1
        assert all((task.title, task.licence, task.origin))


def test_tasks_are_light() -> None:
    code = "import sys, meditron.tasks.registry; print({'torch', 'numpy', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_texts_of_tasks_are_read_without_their_files() -> None:
    assert parse_task("pubmed-sections").source is None
    medical = parse_task("mmlu-medical")
    assert (medical.name, str(medical.source)[:24]) == ("mmlu-medical-test", "hf:datasets/cais/mmlu#al")
    assert parse_task("pubmedqa:data/pubmedqa").source == "data/pubmedqa"
    assert parse_task("https://example.org/exam.jsonl.gz").name == "exam"
    assert parse_task("folder/mmlu.yaml").name is None
    both = parse_tasks(["medqa-4:a", "medqa-5:a", "mmlu-medical", "a/x.yaml", "b/x.yaml"])
    assert [task.name for task in both.values()] == [
        *("medqa-4-test", "medqa-5-test", "mmlu-medical-test", None, None)
    ]
    for specs, problem in {
        ("medqa-4:a", "medqa-4:b"): "'medqa-4:a' and 'medqa-4:b' would both be named 'medqa-4-test'",
        ("a/exam.jsonl", "b/exam.csv"): "would both be named 'exam'",
        ("mmlu-medical", "mmlu-medical"): "'mmlu-medical' is listed twice",
        ("mmlu-medica",): "no task 'mmlu-medica'",
        ("pubmedqa",): "pubmedqa: the hub has no copy that can be read",
    }.items():
        with pytest.raises(UsageError, match=problem):
            parse_tasks(specs)
