"""Task definitions of lm-eval (YAML) over local data, for the keys that multiple-choice tasks use.

The prompts are lm-eval's to the character: `doc_to_text` in jinja2 or as a field's name, `doc_to_choice`,
`doc_to_target`, `description`, and `include`. A definition that needs more (Python code, filters, other
delimiters, a dataset of the hub) is refused, because another prompt would give another score under the same
name. Data files and included definitions are relative to the file that names them.
"""

import ast
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml  # type: ignore[import-untyped]  # gguf depends on it
from jinja2.sandbox import ImmutableSandboxedEnvironment

from meditron.core.errors import InputError
from meditron.store.files import translate_read_errors
from meditron.store.identity import hash_order_key
from meditron.tasks.file_rows import SourceRow, read_source_rows
from meditron.tasks.prompt_template import PromptTemplate
from meditron.tasks.question import Question
from meditron.tasks.task import Split, SplitQuestions, Task

__all__ = ["files_of_definition", "open_lm_eval_task"]

_USED = {
    *("task", "dataset_path", "dataset_kwargs", "output_type", "description", "metadata"),
    *("doc_to_text", "doc_to_choice", "doc_to_target"),
    *("test_split", "validation_split", "training_split", "fewshot_split"),
}
# Keys that change neither the prompt nor the chosen option.
_IGNORED = {
    *("tag", "group", "task_alias", "metric_list", "should_decontaminate", "doc_to_decontamination_query"),
}
# Keys that are accepted with lm-eval's default value only.
_FIXED = {
    "dataset_name": None,
    "target_delimiter": " ",
    "fewshot_delimiter": "\n\n",
    "num_fewshot": 0,
    "repeats": 1,
}
_FORMATS = ("json", "csv", "parquet")
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
_Render = Callable[[Mapping[str, Any]], Any]


def open_lm_eval_task(path: Path) -> Task:
    """Open a definition of lm-eval as a task.

    Raises:
        InputError: the definition is damaged or has a key or value that is not supported; or a row of its
            data cannot be rendered.
        SourceError: a data file is missing.
    """
    definition = _read_definition(path)
    fields = definition.fields
    test = fields.get("test_split") or fields.get("validation_split")
    if not test:
        raise InputError(path, "neither test_split nor validation_split is given")
    train = fields.get("fewshot_split") or fields.get("training_split") or test
    rendered = {name: list(_render_rows(path, fields, name)) for name in dict.fromkeys((test, train))}
    cues = {text.rpartition("\n")[2] for rows in rendered.values() for text, _ in rows}
    if len(cues) != 1 or any("\n" not in text for rows in rendered.values() for text, _ in rows):
        raise InputError(
            path, "must end with the same line for every row, such as 'Answer:'", place="doc_to_text"
        )
    template = PromptTemplate(
        name=path.stem,
        sha256=definition.sha256,
        version=1,
        source=f"{path.name}, a definition of lm-eval",
        introduction=_escape(str(fields.get("description") or "")),
        question="{question}",
        cue=_escape(cues.pop()),
        answer="text",
    )
    splits: dict[Split, SplitQuestions] = {
        "test": SplitQuestions(rows=_ordered(rendered[test])),
        "train": SplitQuestions(rows=_ordered(rendered[train])),
    }
    return Task(
        name=str(fields["task"]),
        version=1,
        title=f"The task {fields['task']} of lm-eval",
        licence="not stated",
        origin=path.name,
        template=template,
        read_split=splits.__getitem__,
        data_file=path.name,
        test_split_name=test,
    )


def files_of_definition(path: Path) -> list[Path]:
    """Return the files that a task is made from: the definition, those that it includes, and its data.

    Raises:
        InputError: a definition is damaged.
        SourceError: a definition is missing.
    """
    definition = _load_definition(path)
    named = _data_files(definition.fields).values()
    data = [file for files in named for file in ([files] if isinstance(files, str) else files)]
    return [*definition.files, *map(Path, dict.fromkeys(data))]


@dataclass(frozen=True, slots=True)
class _Definition:
    """The keys of a definition, with those of the definitions that it includes."""

    fields: Mapping[str, Any]
    """Paths of data files are resolved."""
    files: tuple[Path, ...]
    """The definition's file, then those that it includes."""
    sha256: str
    """Digest of the content of all these files."""


def _load_definition(path: Path, including: tuple[Path, ...] = ()) -> _Definition:
    """Read a definition and those that it includes.

    As in lm-eval, a definition's own keys replace those of definitions that it includes, and keys of the
    first of these replace those of the others.
    """
    if path.resolve() in including:
        raise InputError(path, "includes itself", place="include")
    with translate_read_errors(path):
        content = path.read_bytes()
    try:
        own = yaml.safe_load(content)
    except yaml.constructor.ConstructorError as error:
        problem = "runs Python code (!function), which is not supported"
        raise InputError(path, problem, hint="write doc_to_text in jinja2") from error
    except yaml.YAMLError as error:
        raise InputError(path, f"not YAML: {error}") from error
    if not isinstance(own, dict):
        raise InputError(path, "not a definition of a task of lm-eval: no keys")
    names = own.pop("include", ())
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InputError(path, f"must be a file or a list of files, got {names!r}", place="include")
    included = [_load_definition(path.parent / name, (*including, path.resolve())) for name in names]
    fields: dict[str, Any] = {}
    for each in reversed(included):
        fields |= each.fields
    fields |= _with_resolved_files(path, own)
    digests = [hashlib.sha256(content).hexdigest(), *(each.sha256 for each in included)]
    return _Definition(
        fields,
        (path, *(file for each in included for file in each.files)),
        digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest(),
    )


def _with_resolved_files(path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a definition with data files relative to its own folder."""
    files = {
        split: str(path.parent / names) if isinstance(names, str) else [str(path.parent / n) for n in names]
        for split, names in _data_files(fields).items()
    }
    return (
        {**fields, "dataset_kwargs": {**fields["dataset_kwargs"], "data_files": files}}
        if files
        else {**fields}
    )


def _data_files(fields: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Return split → data files; empty if the definition names none in this form."""
    keywords = fields.get("dataset_kwargs")
    files = keywords.get("data_files") if isinstance(keywords, dict) else None
    return files if isinstance(files, dict) else {}


def _read_definition(path: Path) -> _Definition:
    """Read a definition and check its keys.

    Raises:
        InputError: a key is missing, or it or its value is not supported.
    """
    definition = _load_definition(path)
    fields = definition.fields
    if "task" not in fields:
        raise InputError(path, "not a definition of a task of lm-eval: no key 'task'")
    for key, value in fields.items():
        if key in _FIXED and value != _FIXED[key]:
            raise InputError(path, f"only {_FIXED[key]!r} is supported, got {value!r}", place=str(key))
        if key not in {*_USED, *_IGNORED, *_FIXED}:
            raise InputError(path, "this key is not supported", place=str(key))
    if fields.get("output_type") != "multiple_choice":
        problem = f"only multiple_choice is supported, got {fields.get('output_type')!r}"
        raise InputError(path, problem, place="output_type")
    if fields.get("dataset_path") not in _FORMATS:
        problem = f"only local data ({', '.join(_FORMATS)}) are supported, got {fields.get('dataset_path')!r}"
        raise InputError(path, problem, place="dataset_path", hint="name files in dataset_kwargs.data_files")
    for key in ("doc_to_text", "doc_to_choice", "doc_to_target"):
        if fields.get(key) is None:
            raise InputError(path, "this key is required", place=key)
    return definition


def _render_rows(path: Path, fields: Mapping[str, Any], split: str) -> Iterator[tuple[str, Question]]:
    """Yield the rendered text of each row of a split, with its question."""
    named = _data_files(fields).get(split)
    if not named:
        raise InputError(path, f"no file of the split '{split}'", place="dataset_kwargs.data_files")
    rows = [
        row for name in ([named] if isinstance(named, str) else named) for row in read_source_rows(Path(name))
    ]
    text, choices, target = (
        _renderer(path, fields[key], key, rows[0])
        for key in ("doc_to_text", "doc_to_choice", "doc_to_target")
    )
    for number, row in enumerate(rows, start=1):
        place = f"{split}, {row.place}"
        try:
            prompt, options, gold = str(text(row.fields)), choices(row.fields), target(row.fields)
            # As in lm-eval, a rendered list is read back as a Python literal.
            options = list(map(str, ast.literal_eval(options) if isinstance(options, str) else options))
        except (jinja2.TemplateError, KeyError, TypeError, ValueError, SyntaxError) as error:
            raise InputError(path, f"a row cannot be rendered: {error!r}", place=place) from error
        yield prompt, _question(path, row, number, prompt, options, gold, place)


def _renderer(path: Path, definition: object, key: str, first: SourceRow) -> _Render:
    """Return a function that renders a value of the definition: a field, a jinja2 template, or a constant."""
    if not isinstance(definition, str):
        return lambda fields: definition
    if definition in first.fields:
        return lambda fields: fields[definition]
    try:
        template = _ENVIRONMENT.from_string(definition)
    except jinja2.TemplateError as error:
        raise InputError(path, f"not jinja2: {error}", place=key) from error
    return template.render


def _question(
    path: Path, row: SourceRow, number: int, prompt: str, options: list[str], gold: object, place: str
) -> Question:
    # As in lm-eval, digits are an index and any other text is one of the options.
    if isinstance(gold, str) and gold.strip().isdecimal() and gold not in options:
        gold = int(gold)
    if isinstance(gold, str) and gold in options:
        gold = options.index(gold)
    if type(gold) is not int or not 0 <= gold < len(options):
        raise InputError(path, f"doc_to_target gives {gold!r}, which is none of {options}", place=place)
    identity = row.fields.get("id")
    return Question(
        id=str(number if identity is None else identity),
        text=prompt.rpartition("\n")[0],
        options=tuple(options),
        gold=gold,
    )


def _ordered(rendered: list[tuple[str, Question]]) -> tuple[Question, ...]:
    return tuple(sorted((q for _, q in rendered), key=lambda question: hash_order_key(question.id)))


def _escape(text: str) -> str:
    """Escape braces, which are placeholders in a prompt template."""
    return text.replace("{", "{{").replace("}", "}}")
