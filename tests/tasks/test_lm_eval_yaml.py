"""lm-eval's own definitions over local data: the same prompts; everything else is refused by name."""

import json
from pathlib import Path

import jinja2
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
        {"doc_to_choice": "{{choices}}", "doc_to_target": "answer"},
        {"doc_to_choice": ["1", "2", "3", "4"], "doc_to_target": "{{answer}}"},
        {"doc_to_target": "{{'ABCD'[answer]}}"},
    ):
        rows = open_task(write(tmp_path, **changes)).rows("test")
        options = ("A", "B", "C", "D") if "doc_to_choice" not in changes else ("1", "2", "3", "4")
        assert {q.options for q in rows} == {options}
        assert {q.id: q.gold for q in rows} == {str(n + 1): n % 4 for n in range(6)}


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


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"doc_to_text": "Q: {{question}} A:"}, r'a line of its own: doc_to_text: "Q: {{question}}\nA:"'),
        ({"num_fewshot": 3}, "evaluate with --shots N"),
    ],
)
def test_a_refused_value_has_a_hint(changes: dict[str, object], hint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        open_task(write(tmp_path, **changes))
    assert hint in str(error.value.hint)


def test_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text("task: t\ndoc_to_text: !function utils.doc_to_text\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"task\.yaml \(line 2\): runs Python code"):
        open_task(str(file))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("? [a]\n: b", "while constructing a mapping: found unhashable key"),
        ("a: !other b", "could not determine a constructor for the tag '!other'"),
        ("a: !!python/name:os.system", "could not determine a constructor for the tag '.*os.system'"),
        ("<<: a", "while constructing a mapping: expected a mapping or list of mappings for merging"),
        ("a: !!int [b]", "expected a scalar node"),
        ("a: 2024-99-99", "'2024-99-99' is no timestamp"),
        ("a: !!bool b", "'b' is no bool"),
        ("a: !!map b", "expected a mapping node"),
        ("task: b", "the key 'task' is given twice"),
        ("a: b: c", "not YAML: mapping values are not allowed here"),
    ],
)
def test_other_errors_of_yaml_are_named_with_their_line(line: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(f"task: t\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"task\.yaml \(line 2\): {problem}") as error:
        open_task(str(file))
    assert "Python code" not in str(error.value)


NUMERIC = ["4", "2", "6", "8"]


@pytest.mark.parametrize(
    ("target", "gold"),
    [
        ("{{label}}", 2),  # a template's digits are an index
        ("{{text}}", 2),
        ("label", 2),
        (2, 2),
        ("text", 1),  # a field's text is an option
        ("four", 0),
        ("{{four}}", None),
        ("{{label}}\n", None),
        ("0{{label}}", None),
        ("[{{label}}]", None),
    ],
)
def test_digits_as_target_are_what_lm_eval_takes_them_for(
    target: str | int, gold: int | None, tmp_path: Path
) -> None:
    """The golds are those of lm-eval 0.4.13's `ConfigurableTask`; None if it has no right option."""
    spec = write(tmp_path, doc_to_choice=NUMERIC, doc_to_target=target)
    row = {"question": "a", "choices": ["x", "y"], "label": 2, "text": "2", "four": "4"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    if gold is None:
        with pytest.raises(InputError):
            open_task(spec)
    else:
        assert [question.gold for question in open_task(spec).rows("test")] == [gold]


@pytest.mark.parametrize(("second", "golds"), [("3", [2, 3]), ("four", None)])
def test_a_column_of_integers_in_csv_is_one_of_indices(
    second: str, golds: list[int] | None, tmp_path: Path
) -> None:
    files = {"data_files": {"test": "rows.csv"}}
    (tmp_path / "rows.csv").write_text(f"q,label\na,2\nb,{second}\n", encoding="utf-8")
    changes = {"dataset_path": "csv", "dataset_kwargs": files, "fewshot_split": "test", "description": ""}
    spec = write(
        tmp_path, **changes, doc_to_text="{{q}}\nAnswer:", doc_to_choice=NUMERIC, doc_to_target="label"
    )
    if golds is None:  # the texts "2" and "four", of which the latter is no option
        with pytest.raises(InputError, match="doc_to_target gives 'four'"):
            open_task(spec)
    else:
        assert sorted(question.gold for question in open_task(spec).rows("test")) == golds


def test_braces_in_cue_and_description_are_lm_evals_to_the_character(tmp_path: Path) -> None:
    changes = {
        "doc_to_text": "{{question}}\nAnswer {x} {{ '{{y}}' }} {subject}:",
        "description": "{subject}: ",
    }
    task = open_task(write(tmp_path, **changes))
    rendered = task.template.render(next(q for q in task.rows("test") if q.id == "1"))
    assert rendered.prompt == "{subject}:  Number {0}? \nAnswer {x} {{y}} {subject}:"
    assert rendered.unconditional_prompt == "{subject}: Answer {x} {{y}} {subject}:"


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


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"task": None}, "task.*must be text, got None"),
        ({"test_split": ["test"]}, r"test_split.*must be text, got \['test'\]"),
        ({"fewshot_split": {"dev": 1}}, "fewshot_split.*must be text"),
        ({"description": ["a"]}, "description.*must be text"),
        (
            {"dataset_kwargs": {"data_files": {"test": 1}}},
            r"data_files\.test.*a file or a list of files, got 1",
        ),
        ({"dataset_kwargs": {"data_files": {"test": [["rows.jsonl"]]}}}, r"data_files\.test.*list of files"),
        ({"dataset_kwargs": {"data_files": 5}}, r"data_files\.train.*a file or a list of files, got 5"),
        ({"dataset_kwargs": {"data_files": {"test": "a\0"}}}, "NUL"),
        ({"dataset_kwargs": ["rows.jsonl"]}, "no file of the split 'test'"),
        ({"include": "a\0"}, "NUL"),
        ({"doc_to_choice": [True, False]}, "doc_to_choice.*must be a text or a list of texts, got .True"),
        ({"doc_to_choice": "{{ '(' * 500 }}"}, "does not give a list of options"),
        ({"doc_to_choice": "{{ '-' * 100000 }}1"}, "does not give a list of options"),
        ({"doc_to_choice": "{{answer}}"}, "gives 0, which is not a list of options"),
    ],
)
def test_values_of_other_types_are_errors(changes: dict[str, object], problem: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=problem):
        open_task(write(tmp_path, **changes))


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ [1] * 10**9 }}",
        "{{ question.__class__.__mro__ }}",
    ],
)
@pytest.mark.parametrize("key", ["doc_to_text", "doc_to_choice", "doc_to_target", "description"])
def test_a_template_cannot_use_up_time_or_memory(key: str, template: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be rendered"):
        open_task(write(tmp_path, **{key: template}))


def test_a_description_is_a_template_of_the_row_as_in_lm_eval(tmp_path: Path) -> None:
    source = "Questions about {{ 'numbers' if choices }} and {x}.\n\n"
    task = open_task(write(tmp_path, description=source))
    expected = jinja2.Template(source, keep_trailing_newline=True).render(ROWS[0])
    assert task.template.render(task.rows("test")[0]).prompt.startswith(f"{expected}Number {{")
    with pytest.raises(InputError, match=r"description.*must be the same for every row"):
        open_task(write(tmp_path, description="Question {{question}}"))


def test_files_without_a_split_are_the_training_split_as_in_datasets(tmp_path: Path) -> None:
    for files in ("rows.jsonl", ["rows.jsonl"]):
        spec = write(
            tmp_path, dataset_kwargs={"data_files": files}, test_split="train", fewshot_split="train"
        )
        assert len(open_task(spec).rows("test")) == len(ROWS)
        assert files_of_definition(Path(spec)) == [Path(spec), tmp_path / "rows.jsonl"]
    with pytest.raises(InputError, match=r"no file of the split 'test' \(splits with files: train\)"):
        open_task(write(tmp_path, dataset_kwargs={"data_files": "rows.jsonl"}))


def test_a_key_that_is_given_twice_is_an_error(tmp_path: Path) -> None:
    spec = Path(write(tmp_path))
    spec.write_text("task: a\ndataset_kwargs: {}\ndataset_kwargs: {}\n")
    with pytest.raises(InputError, match="the key 'dataset_kwargs' is given twice"):
        open_task(str(spec))


def test_an_error_about_a_value_of_billions_of_parts_is_short(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    spec = tmp_path / "bomb.yaml"
    spec.write_text("\n".join([*levels, "task: a", "description: *a9"]))
    with pytest.raises(InputError, match=r"description.*must be text") as error:
        open_task(str(spec))
    assert len(str(error.value)) < 1000
