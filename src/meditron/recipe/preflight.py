"""Checks of a recipe's inputs before any stage is built: local files are opened, and all problems are listed.

Nothing is downloaded: an input from the network is checked only if it is in the cache.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from meditron.core.config import InputKind
from meditron.core.errors import InputError, MeditronError
from meditron.corpus.config import SourceConfig
from meditron.model.presets import find_preset, model_tokenizer
from meditron.recipe.external_inputs import input_identity, local_input, preview_input
from meditron.recipe.graph import place_of_reference, resolve_reference
from meditron.recipe.schema import Recipe, StageSpec
from meditron.sources.document import Document
from meditron.sources.registry import open_source
from meditron.store.collections.records import FetchPreview
from meditron.store.models import resolve_model

__all__ = ["Problem", "check_dependents", "check_inputs", "check_references", "preview_fetches"]

_MAX_FILES = 1_000
"""Maximum number of a source's files whose first documents are read; of further files only the format is
checked."""
_ROW_FORMATS = ("jsonl", "json", "csv", "parquet", "s2orc", "guidelines")
"""Formats with a document per row: in these, rows after the first may lack a key or be cut off."""
_MAX_DOCUMENTS = 100
"""Maximum number of documents that are read from the beginning of a file with a document per row."""
_MAX_SOURCE_DOCUMENTS = 10_000
"""Approximate maximum for all files of a source, so that a dry run of many files takes seconds."""
_MAX_ROWS = 10_000
"""Maximum number of rows of a file of conversations that are checked; the stage checks the rest."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An input of a stage that cannot be used, so that a run would fail."""

    stage: str
    input: str
    recipe_location: str
    """File and line of the recipe, or the `--set` option, in which the input is named."""
    error: MeditronError

    def to_json(self) -> dict[str, Any]:
        """Return the problem as --json prints it."""
        message, hint = self.error.message, self.error.hint
        return {
            "stage": self.stage,
            "input": self.input,
            "where": self.recipe_location,
            "message": message,
            "hint": hint,
        }


def check_references(recipe: Recipe) -> list[Problem]:
    """List the references that name neither a stage of the recipe nor an existing file."""
    problems = []
    for spec in recipe.stages.values():
        for key, text in spec.config.inputs().items():
            try:
                reference = resolve_reference(recipe, spec, text)
                if reference.source is not None:
                    input_identity(reference.source)
            except MeditronError as error:
                problems.append(_input_problem(recipe, spec, key, error))
    return _distinct_problems(recipe, problems)


def check_inputs(recipe: Recipe, specs: Iterable[StageSpec]) -> list[Problem]:
    """Open the external inputs of these stages, and list their problems.

    Reads a model's config and tokenizer, the first document of each of a source's first 1,000 files (the
    first 100 of JSON lines, JSON and CSV), all questions of a file of questions, and the first 10,000 rows of
    a file of conversations.
    """
    problems = []
    checked_inputs: list[tuple[str, InputKind]] = []  # several stages use the same base
    for spec in specs:
        kinds = spec.config.input_kinds()
        for key, text in spec.config.inputs().items():
            reference = resolve_reference(recipe, spec, text)
            kind = kinds.get(key)
            if reference.source is None or kind is None or (reference.source, kind) in checked_inputs:
                continue
            checked_inputs.append((reference.source, kind))
            try:
                _check_input(reference.source, kind)
            except MeditronError as error:
                problems.append(_input_problem(recipe, spec, key, error))
    return _distinct_problems(recipe, problems)


def preview_fetches(
    recipe: Recipe, specs: Iterable[StageSpec]
) -> tuple[dict[str, FetchPreview], list[Problem]]:
    """Ask the servers of these stages' collections what would be fetched.

    Returns:
        `STAGE.INPUT` → what would be fetched, for the collections that are not in the cache; and the problems
        of servers that do not answer.
    """
    previews, problems = {}, []
    for spec in specs:
        for key, text in spec.config.inputs().items():
            reference = resolve_reference(recipe, spec, text)
            if reference.source is None:
                continue
            try:
                if (preview := preview_input(reference.source)) is not None:
                    previews[f"{spec.name}.{key}"] = preview
            except MeditronError as error:
                problems.append(_input_problem(recipe, spec, key, error))
    return previews, _distinct_problems(recipe, problems)


def check_dependents(
    recipe: Recipe, specs: Iterable[StageSpec], name: str, metrics: Mapping[str, Any]
) -> list[Problem]:
    """List the problems that these stages would have with a finished stage, by its metrics."""
    problems = []
    for spec in specs:
        for key, text in spec.config.inputs().items():
            if resolve_reference(recipe, spec, text).stage != name:
                continue
            try:
                spec.config.check_dependency(key, metrics)
            except MeditronError as error:
                problems.append(_input_problem(recipe, spec, key, error))
    return _distinct_problems(recipe, problems)


def _input_problem(recipe: Recipe, spec: StageSpec, key: str, error: MeditronError) -> Problem:
    naming, place = place_of_reference(recipe, spec, spec.config.inputs()[key])
    return Problem(naming.name, key, place, error)


def _check_input(source: str, kind: InputKind) -> None:
    if source.startswith("init:"):
        find_preset(source)
        return
    path = local_input(source)
    if path is not None:
        _CHECKS_BY_KIND[kind.name](path, kind)


def _check_model(path: Path, kind: InputKind) -> None:
    model_tokenizer(resolve_model(str(path)))


def _check_documents(path: Path, kind: InputKind) -> None:
    # The modules are imported here, as in the next two functions, because a no-op run needs none of them.
    from meditron.corpus.files import list_source_files, member_skip_rule

    table = kind.table
    assert isinstance(table, SourceConfig)  # noqa: S101
    files = list_source_files(path.name, table, path, Counter())
    # Every file is opened, even if an earlier one contains documents. A file without documents is no problem
    # while others have some: a MEDLINE file may list deletions only.
    opened = files[:_MAX_FILES]
    count = min(_MAX_DOCUMENTS, max(1, _MAX_SOURCE_DOCUMENTS // len(opened)))
    counts = [
        _read_beginning(
            open_source(
                file.path,
                table.format,
                None,
                file.name,
                member_skip_rule(table, file.name),
                table.reader_options(),
            ),
            count,
        )
        for file in opened
    ]
    if not any(counts) and opened == files:
        raise InputError(path, "contains no documents")


def _read_beginning(documents: Iterator[Document], count: int) -> int:
    """Read the first document, or the first `count` if each row is one; return the number of documents."""
    read = 0
    for read, document in enumerate(documents, start=1):
        if read == count or document.source not in _ROW_FORMATS:
            break
    return read


def _check_questions(path: Path, kind: InputKind) -> None:
    from meditron.tasks.registry import open_task
    from meditron.tasks.training_sets import TRAINING_SETS, open_training_questions

    if kind.training_set:
        open_training_questions(TRAINING_SETS[kind.training_set], path)
    else:
        open_task(kind.task or str(path), files=path).rows("test")


def _check_conversations(path: Path, kind: InputKind) -> None:
    from meditron.train.examples import read_conversations

    for _ in islice(read_conversations(path, kind.training_set), _MAX_ROWS):
        pass


def _check_preferences(path: Path, kind: InputKind) -> None:
    from meditron.train.preference import read_preferences

    for _ in islice(read_preferences(path), _MAX_ROWS):
        pass


def _check_rubrics(path: Path, kind: InputKind) -> None:
    from meditron.tasks.rubrics import open_rubrics

    open_rubrics(path)


def _check_labels(path: Path, kind: InputKind) -> None:
    from meditron.evaluate.rubric.labels import read_labels

    read_labels(path)


def _check_judge_prompt(path: Path, kind: InputKind) -> None:
    from meditron.evaluate.rubric.judge_prompt import read_judge_prompt

    read_judge_prompt(path)


_CHECKS_BY_KIND: dict[str, Callable[[Path, InputKind], None]] = {
    "model": _check_model,
    "documents": _check_documents,
    "questions": _check_questions,
    "conversations": _check_conversations,
    "preferences": _check_preferences,
    "rubrics": _check_rubrics,
    "labels": _check_labels,
    "judge prompt": _check_judge_prompt,
}


def _distinct_problems(recipe: Recipe, problems: list[Problem]) -> list[Problem]:
    """Drop problems with equal messages except the first, and sort the others by stage."""
    # Several stages may use the same base. A problem is that of the stage that names the input, which may be
    # another stage than the one whose inputs were checked.
    distinct = list({problem.error.message: problem for problem in reversed(problems)}.values())[::-1]
    return sorted(distinct, key=lambda problem: [*recipe.stages].index(problem.stage))
