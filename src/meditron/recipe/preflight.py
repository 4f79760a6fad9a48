"""Checks of a recipe's inputs before any work: every local file is opened, all problems are listed at once.

Nothing is downloaded: an input from the network is opened only if it is in the cache.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from meditron.core.config import Config, InputKind
from meditron.core.errors import InputError, MeditronError
from meditron.corpus.config import SourceConfig
from meditron.model.presets import model_tokenizer, preset
from meditron.recipe.external_inputs import input_identity, local_input
from meditron.recipe.graph import resolve_reference
from meditron.recipe.schema import Recipe, StageSpec
from meditron.sources.registry import open_source
from meditron.store.models import resolve_model

__all__ = ["Problem", "check_inputs", "check_references"]

_MAX_FILES = 1_000
"""Files of a source whose first document is read; of further files only the format is checked."""
_MAX_ROWS = 10_000
"""Rows of a file of conversations that are read; the rest is read when the stage uses it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One input of a stage that a run would fail on."""

    stage: str
    input: str
    where: str
    """File and line of the recipe that name the input."""
    error: MeditronError

    def to_json(self) -> dict[str, Any]:
        """Return the form of --json."""
        message, hint = self.error.message, self.error.hint
        return {
            "stage": self.stage,
            "input": self.input,
            "where": self.where,
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
                problems.append(_problem(recipe, spec, key, error))
    return _distinct(problems)


def check_inputs(recipe: Recipe, specs: Iterable[StageSpec]) -> list[Problem]:
    """Open the external inputs of these stages, and list their problems.

    Reads a model's config and tokenizer, the first document of each of a source's first 1,000 files, all
    questions of a file of questions, and the first 10,000 rows of a file of conversations.
    """
    problems = []
    checked: list[tuple[str, InputKind]] = []  # several stages use the same base
    for spec in specs:
        kinds = spec.config.input_kinds()
        for key, text in spec.config.inputs().items():
            reference = resolve_reference(recipe, spec, text)
            kind = kinds.get(key)
            if reference.source is None or kind is None or (reference.source, kind) in checked:
                continue
            checked.append((reference.source, kind))
            try:
                _check(reference.source, kind)
            except MeditronError as error:
                problems.append(_problem(recipe, spec, key, error))
    return _distinct(problems)


def _problem(recipe: Recipe, spec: StageSpec, key: str, error: MeditronError) -> Problem:
    text = spec.config.inputs()[key]
    return Problem(spec.name, key, recipe.text.where_value(spec.place, text), error)


def _check(source: str, kind: InputKind) -> None:
    if source.startswith("init:"):
        preset(source)
        return
    path = local_input(source)
    if path is not None:
        _CHECKS[kind.name](path, kind.table)


def _check_model(path: Path, table: Config | None) -> None:
    model_tokenizer(resolve_model(str(path)))


def _check_documents(path: Path, table: Config | None) -> None:
    # Imported here, as in the checks below, because a no-op run needs none of these modules.
    from meditron.corpus.files import list_source_files, member_skip_rule

    assert isinstance(table, SourceConfig)  # noqa: S101
    files = list_source_files(path.name, table, path, Counter())
    # Each file is opened, also if an earlier one has documents; a MEDLINE file of deletions alone has none.
    opened = files[:_MAX_FILES]
    documents = [
        next(
            iter(open_source(file.path, table.format, None, file.name, member_skip_rule(table, file.name))),
            None,
        )
        for file in opened
    ]
    if not any(documents) and opened == files:
        raise InputError(path, "contains no documents")


def _check_questions(path: Path, table: Config | None) -> None:
    from meditron.tasks.registry import open_task

    open_task(str(path)).rows("test")


def _check_conversations(path: Path, table: Config | None) -> None:
    from meditron.train.examples import read_conversations

    for _ in islice(read_conversations(path), _MAX_ROWS):
        pass


_CHECKS: dict[str, Callable[[Path, Config | None], None]] = {
    "model": _check_model,
    "documents": _check_documents,
    "questions": _check_questions,
    "conversations": _check_conversations,
}


def _distinct(problems: list[Problem]) -> list[Problem]:
    """Drop repeats: a base that several stages use is reported for the first of them."""
    return list({problem.error.message: problem for problem in reversed(problems)}.values())[::-1]
