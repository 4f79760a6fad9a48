"""lm-eval's own definitions over local data: the same prompts; everything else is refused by name."""

import json
from pathlib import Path

import pytest

from meditron.core.errors import InputError
from meditron.tasks.lm_eval_yaml import files_of_definition
from meditron.tasks.registry import open_task

ROWS = [
    {"question": f" Number {{{n}}}? ", "choices": ["1", "2", "3", "4"], "answer": n % 4} for n in range(6)
]
DEFINITION = {
    "task": "numbers",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl", "dev": ["rows.jsonl"]}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "dev",
    "description": "Questions about {numbers}.\n\n",
    "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nAnswer:",
    "doc_to_choice": ["A", "B", "C", "D"],
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}],
    "metadata": {"version": 1.0},
}


def write(folder: Path, **changes: object) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    file = folder / "numbers.yaml"
    # JSON is YAML.
    file.write_text(json.dumps(DEFINITION | changes), encoding="utf-8")
    return str(file)


def test_a_definition_in_the_form_of_mmlus(tmp_path: Path) -> None:
    task = open_task(write(tmp_path))
    assert (task.name, task.test_split_name, len(task.rows("test"))) == ("numbers", "test", 6)
    by_id = {question.id: question for question in task.rows("test")}
    rendered = task.template.render(by_id["1"], [by_id["2"]])
    assert rendered.prompt == (
        "Questions about {numbers}.\n\nNumber {1}?\nA. 1\nB. 2\nAnswer: B\n\nNumber {0}?\nA. 1\nB. 2\nAnswer:"
    )
    assert rendered.continuations == (" A", " B", " C", " D")
    assert by_id["4"].gold == 3


def test_choices_and_targets_in_every_form(tmp_path: Path) -> None:
    for changes in (
        {"doc_to_choice": "choices", "doc_to_target": "{{answer}}"},
        {"doc_to_choice": "{{choices}}", "doc_to_target": "{{choices[answer]}}"},
    ):
        rows = open_task(write(tmp_path, **changes)).rows("test")
        assert {q.options for q in rows} == {("1", "2", "3", "4")}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"output_type": "generate_until"}, "only multiple_choice is supported"),
        ({"dataset_path": "cais/mmlu"}, "only local data"),
        ({"process_docs": "x"}, "process_docs.*not supported"),
        ({"num_fewshot": 5}, "num_fewshot.*only 0 is supported, got 5"),
        ({"target_delimiter": ""}, "target_delimiter.*only ' ' is supported"),
        ({"doc_to_text": "{{stem}}\nAnswer:"}, "a row cannot be rendered.*stem"),
        ({"doc_to_text": "{{question"}, "doc_to_text.*not jinja2"),
        ({"doc_to_text": "{{question}}"}, "doc_to_text.*must end with the same line"),
        ({"doc_to_target": "E"}, "doc_to_target gives 'E'"),
        ({"test_split": "other"}, "no file of the split 'other'"),
        ({"doc_to_choice": None}, "doc_to_choice.*required"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    changes: dict[str, object], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=problem):
        open_task(write(tmp_path, **changes))


def test_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text("task: t\ndoc_to_text: !function utils.doc_to_text\n", encoding="utf-8")
    with pytest.raises(InputError, match="runs Python code"):
        open_task(str(file))


def test_a_definition_includes_others_as_in_lm_eval(tmp_path: Path) -> None:
    """Own keys replace included ones, and the first file's those of the second; paths are of each file."""
    whole = open_task(write(tmp_path))
    shared_folder = tmp_path / "shared"
    shared_folder.mkdir()
    (tmp_path / "rows.jsonl").rename(shared_folder / "rows.jsonl")
    middle = {"description": "Middle.\n\n", "task": "middle"}
    parts = {
        "shared/base.yaml": DEFINITION | {"description": "Base.\n\n"},
        "shared/middle.yaml": {**middle, "include": "base.yaml"},
        "other.yaml": {"description": "Other.\n\n", "doc_to_target": "E"},
        "top.yaml": {
            "task": "numbers",
            "include": ["shared/middle.yaml", "other.yaml"],
            "doc_to_choice": ["1", "2", "3", "4"],
        },
    }
    for name, part in parts.items():
        (tmp_path / name).write_text(json.dumps(part), encoding="utf-8")
    task = open_task(str(tmp_path / "top.yaml"))
    assert (task.name, task.data_sha256("test") == whole.data_sha256("test")) == ("numbers", False)
    [first, *_] = task.rows("test")
    rendered = task.template.render(first)
    assert rendered.prompt.startswith("Middle.\n\nNumber {")
    assert rendered.continuations == (" 1", " 2", " 3", " 4")
    assert [file.name for file in files_of_definition(tmp_path / "top.yaml")] == [
        *("top.yaml", "middle.yaml", "base.yaml", "other.yaml", "rows.jsonl")
    ]
    before = task.template.sha256
    (tmp_path / "other.yaml").write_text(json.dumps({"tag": "x"}), encoding="utf-8")
    assert open_task(str(tmp_path / "top.yaml")).template.sha256 != before
    for name, content, problem in (
        ("shared/base.yaml", "include: [middle.yaml]", r"middle.yaml \(include\): includes itself"),
        ("top.yaml", "include: 3", r"\(include\): must be a file or a list of files, got 3"),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=problem):
            open_task(str(tmp_path / "top.yaml"))
