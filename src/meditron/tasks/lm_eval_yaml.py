"""Task definitions of lm-eval (YAML) over local data, for the keys that multiple-choice tasks use.

The prompts are lm-eval's to the character: `doc_to_text` in jinja2 or as a field's name, `doc_to_choice`,
`doc_to_target`, `description`, and `include`. A definition that needs more (Python code, filters, other
delimiters, a dataset of the hub) is refused, because another prompt would give another score under the same
name. Data files and included definitions are relative to the file that names them.

A definition is untrusted: its templates run in the sandbox of `text.sandbox`, with limits on time and memory.
"""

import ast
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from reprlib import Repr
from typing import Any

import jinja2
import yaml  # type: ignore[import-untyped]  # gguf depends on it

from meditron.core.errors import InputError
from meditron.store.files import translate_read_errors
from meditron.store.identity import hash_order_key
from meditron.tasks.file_rows import SourceRow, read_source_rows
from meditron.tasks.prompt_template import PromptTemplate
from meditron.tasks.question import Question
from meditron.tasks.task import Split, SplitQuestions, Task
from meditron.text.sandbox import TEMPLATE_FAULTS, Environment, render_within_budget

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
_SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")
# lm-eval's own settings.
_ENVIRONMENT = Environment(settings={"undefined": jinja2.StrictUndefined, "keep_trailing_newline": True})
_REPR = Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict = 2, 6, 3
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
        problem = "must end with the same line for every row, such as 'Answer:'"
        hint = r'the cue must be a line of its own: doc_to_text: "Q: {{question}}\nA:"'
        raise InputError(path, problem, place="doc_to_text", hint=hint)
    template = PromptTemplate(
        name=path.stem,
        sha256=definition.sha256,
        version=1,
        source=f"{path.name}, a definition of lm-eval",
        introduction=_escape(_description(path, fields, test)),
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
    data = [file for files in _data_files(definition.fields).values() for file in files]
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
        own = yaml.load(content, _Loader)  # noqa: S506  # a SafeLoader
    except _PythonCode as error:
        problem = "runs Python code (!function), which is not supported"
        raise InputError(path, problem, place=_line(error), hint="write doc_to_text in jinja2") from error
    except yaml.MarkedYAMLError as error:
        problem = ": ".join(filter(None, (error.context, error.problem)))
        damaged = "" if isinstance(error, yaml.constructor.ConstructorError) else "not YAML: "
        raise InputError(path, f"{damaged}{problem}", place=_line(error)) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(path, f"not YAML: {error}") from error
    if not isinstance(own, dict):
        raise InputError(path, "not a definition of a task of lm-eval: no keys")
    names = _file_names(path, own.pop("include", []), "include")
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


class _PythonCode(yaml.constructor.ConstructorError):  # type: ignore[misc]  # PyYAML has no types
    """A value of the definition is a function of a Python file."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Loader that refuses a key that is given twice, of which PyYAML takes the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: ANN401  # yaml's node
        """Return the mapping of a node; see `yaml.SafeLoader`."""
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        problem = f"the key '{key.value}' is given twice"
                        raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                    seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_object(self, node: Any, deep: bool = False) -> Any:  # noqa: ANN401  # yaml's node
        """Return the value of a node; see `yaml.SafeLoader`."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            # PyYAML's own errors about a date such as 2024-99-99, or `!!bool text`, have no line.
            problem = f"{_shown(node.value)} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def refuse_function(self, node: Any) -> None:  # noqa: ANN401  # yaml's node
        """Raise an error of its own for lm-eval's tag `!function`."""
        raise _PythonCode(None, None, "!function", node.start_mark)


_Loader.add_constructor("!function", _Loader.refuse_function)


def _line(error: yaml.MarkedYAMLError) -> str | None:
    mark = error.problem_mark or error.context_mark
    return mark and f"line {mark.line + 1}"


def _file_names(path: Path, names: object, place: str) -> list[str]:
    """Return one file or several as a list; InputError if they are none."""
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, list) or not all(isinstance(name, str) and name for name in listed):
        raise InputError(path, f"must be a file or a list of files, got {_shown(names)}", place=place)
    if any("\0" in name for name in listed):
        raise InputError(path, "a name of a file contains a NUL character", place=place)
    return listed


def _with_resolved_files(path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a definition with data files as lists by split, relative to its own folder.

    Raises:
        InputError: the data files are neither a file, a list of files, nor these by split.
    """
    keywords = fields.get("dataset_kwargs")
    if not isinstance(keywords, dict) or keywords.get("data_files") is None:
        return {**fields}
    files, place = keywords["data_files"], "dataset_kwargs.data_files"
    # As in datasets, files without a split are the split `train`.
    by_split = files if isinstance(files, dict) else {"train": files}
    resolved = {
        str(split): [str(path.parent / name) for name in _file_names(path, names, f"{place}.{split}"[:80])]
        for split, names in by_split.items()
    }
    return {**fields, "dataset_kwargs": {**keywords, "data_files": resolved}}


def _data_files(fields: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return split → data files; empty if the definition names none."""
    keywords = fields.get("dataset_kwargs")
    files = keywords.get("data_files") if isinstance(keywords, dict) else None
    return files or {}


def _read_definition(path: Path) -> _Definition:
    """Read a definition and check its keys.

    Raises:
        InputError: a key is missing, or it or its value is not supported.
    """
    definition = _load_definition(path)
    fields = definition.fields
    if "task" not in fields:
        raise InputError(path, "not a definition of a task of lm-eval: no key 'task'")
    _check_types(path, fields)
    for key, value in fields.items():
        if key in _FIXED and value != _FIXED[key]:
            problem = f"only {_FIXED[key]!r} is supported, got {_shown(value)}"
            hint = "leave it out, and evaluate with --shots N" if key == "num_fewshot" else None
            raise InputError(path, problem, place=str(key), hint=hint)
        if key not in {*_USED, *_IGNORED, *_FIXED}:
            raise InputError(path, "this key is not supported", place=str(key))
    if fields.get("output_type") != "multiple_choice":
        problem = f"only multiple_choice is supported, got {_shown(fields.get('output_type'))}"
        raise InputError(path, problem, place="output_type")
    if fields.get("dataset_path") not in _FORMATS:
        given = _shown(fields.get("dataset_path"))
        problem = f"only local data ({', '.join(_FORMATS)}) are supported, got {given}"
        raise InputError(path, problem, place="dataset_path", hint="name files in dataset_kwargs.data_files")
    for key in ("doc_to_text", "doc_to_choice", "doc_to_target"):
        if fields.get(key) is None:
            raise InputError(path, "this key is required", place=key)
    return definition


def _check_types(path: Path, fields: Mapping[str, Any]) -> None:
    """Check the keys whose values are texts; InputError names the key."""
    if not isinstance(fields["task"], str) or not fields["task"].strip():
        raise InputError(path, f"must be text, got {_shown(fields['task'])}", place="task")
    for key in ("description", *_SPLITS):
        if not isinstance(fields.get(key), str | None):
            raise InputError(path, f"must be text, got {_shown(fields[key])}", place=key)
    # YAML reads `yes`, `no`, `on` and `off` as true and false.
    choices = fields.get("doc_to_choice")
    if isinstance(choices, list) and not all(type(choice) in (str, int, float) for choice in choices):
        problem = f"must be a text or a list of texts, got {_shown(choices)}"
        raise InputError(path, problem, place="doc_to_choice", hint='write texts in quotes: ["yes", "no"]')


def _shown(value: object) -> str:
    """Return a value of a definition for an error message."""
    # With aliases, a few lines of YAML can be a value of billions of characters.
    return _REPR.repr(value)


def _description(path: Path, fields: Mapping[str, Any], split: str) -> str:
    """Return the text before the prompts. As in lm-eval, it is a template of the row.

    Raises:
        InputError: it cannot be rendered, or rows have different ones.
    """
    description = fields.get("description")
    if not description:
        return ""
    rows = _source_rows(path, fields, split)
    render = _template(path, description, "description")
    rendered = {_rendered(path, render, row.fields, f"{split}, {row.place}") for row in rows}
    if len(rendered) > 1:
        problem = "must be the same for every row: a task has one description"
        raise InputError(path, problem, place="description", hint="write one definition for each subject")
    return str(rendered.pop())


def _rendered(path: Path, render: _Render, fields: Mapping[str, Any], place: str) -> Any:  # noqa: ANN401
    try:
        return render(fields)
    except TEMPLATE_FAULTS as error:
        # Of a missing field, the text of Python's error is only the name.
        problem = f"a row cannot be rendered: {type(error).__name__}: {str(error)[:200]}"
        raise InputError(path, problem, place=place) from error


def _render_rows(path: Path, fields: Mapping[str, Any], split: str) -> Iterator[tuple[str, Question]]:
    """Yield the rendered text of each row of a split, with its question."""
    rows = _source_rows(path, fields, split)
    text, choices = (_renderer(path, fields[key], key, rows[0]) for key in ("doc_to_text", "doc_to_choice"))
    target = _target_renderer(path, fields, rows)
    for number, row in enumerate(rows, start=1):
        place = f"{split}, {row.place}"
        prompt, options, gold = (
            _rendered(path, render, row.fields, place) for render in (text, choices, target)
        )
        listed = _options(path, options, place)
        yield str(prompt), _question(path, row, number, str(prompt), listed, gold, place)


def _source_rows(path: Path, fields: Mapping[str, Any], split: str) -> list[SourceRow]:
    files = _data_files(fields).get(split)
    if not files:
        known = ", ".join(_data_files(fields)) or "none"
        raise InputError(
            path,
            f"no file of the split '{split}' (splits with files: {known})",
            place="dataset_kwargs.data_files",
            hint="write data_files as SPLIT: FILE; files without a split are those of `train`",
        )
    rows = [row for name in files for row in read_source_rows(Path(name))]
    if not rows:
        raise InputError(path, f"the split '{split}' has no rows", place="dataset_kwargs.data_files")
    return rows


def _options(path: Path, rendered: object, place: str) -> list[str]:
    """Return the options of a row. As in lm-eval, a rendered list is read back as a Python literal."""
    try:
        options = ast.literal_eval(rendered) if isinstance(rendered, str) else rendered
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(path, "doc_to_choice does not give a list of options", place=place) from error
    if not isinstance(options, list | tuple) or not options:
        raise InputError(
            path, f"doc_to_choice gives {_shown(options)}, which is not a list of options", place=place
        )
    return list(map(str, options))


def _renderer(path: Path, definition: object, key: str, first: SourceRow) -> _Render:
    """Return a function that renders a value of the definition: a field, a jinja2 template, or a constant."""
    if not isinstance(definition, str):
        return lambda fields: definition
    if definition in first.fields:
        return lambda fields: fields[definition]
    return _template(path, definition, key)


def _target_renderer(path: Path, fields: Mapping[str, Any], rows: list[SourceRow]) -> _Render:
    """Return a function that renders `doc_to_target`: an integer is an index, a text one of the options.

    As in lm-eval, a template that gives digits alone gives an index, also if an option has the same digits,
    and one that gives a list in brackets gives a list. A field's value is what it is: the text "2" of a field
    is an option.
    """
    definition = fields["doc_to_target"]
    render = _renderer(path, definition, "doc_to_target", rows[0])
    if not isinstance(definition, str):
        return render
    if definition not in rows[0].fields:
        return lambda row: _literal_target(render(row))
    if fields["dataset_path"] == "csv" and all(_is_integer(row.fields.get(definition)) for row in rows):
        # datasets reads such a column as integers.
        return lambda row: int(row[definition])
    return render


def _is_integer(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]+\s*", value) is not None


def _literal_target(rendered: str) -> object:
    if rendered.isdigit():
        return ast.literal_eval(rendered)
    if len(rendered) >= 2 and rendered[0] == "[" and rendered[-1] == "]":
        try:
            return ast.literal_eval(rendered)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return rendered
    return rendered


def _template(path: Path, source: str, key: str) -> _Render:
    try:
        template = _ENVIRONMENT.from_string(source)
    except TEMPLATE_FAULTS as error:
        raise InputError(path, f"not jinja2: {error}", place=key) from error
    return partial(render_within_budget, template)


def _question(
    path: Path, row: SourceRow, number: int, prompt: str, options: list[str], gold: object, place: str
) -> Question:
    if isinstance(gold, str) and gold in options:
        gold = options.index(gold)
    if type(gold) is not int or not 0 <= gold < len(options):
        problem = f"doc_to_target gives {_shown(gold)}, which is none of {_shown(options)}"
        raise InputError(path, problem, place=place)
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
