"""Checks of a recipe's inputs before any work: each local file is opened, all problems are listed at once.

Nothing is downloaded: an input from the network is opened only if it is in the cache.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from meditron.core.config import Config
from meditron.core.errors import InputError, MeditronError
from meditron.core.stage import InputKind
from meditron.model.config import preset
from meditron.model.tokenizer import model_tokenizer
from meditron.recipe.graph import resolve_reference
from meditron.recipe.outside import identity, local_file
from meditron.recipe.schema import Recipe, Step
from meditron.sources.registry import open_source
from meditron.store.models import resolve

__all__ = ["Problem", "check_inputs", "check_references"]

_MAX_FILES = 1_000
"""Files of a source whose first document is read before the run; of the others only the format is checked."""
_MAX_ROWS = 10_000
"""Rows of a file of conversations that are read before the run; the rest is read when it is used."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One input of a stage that a run would fail on."""

    stage: str
    input: str
    error: MeditronError

    def to_json(self) -> dict[str, Any]:
        """Return the form of --json."""
        said = {"message": self.error.message, "hint": self.error.hint}
        return {"stage": self.stage, "input": self.input, **said}


def check_references(recipe: Recipe) -> list[Problem]:
    """List the references that name neither a stage of the recipe nor a file that exists."""
    problems = []
    for name, step in recipe.steps.items():
        for key, text in step.config.inputs().items():
            try:
                reference = resolve_reference(recipe, step, text)
                if reference.source is not None:
                    identity(reference.source)
            except MeditronError as error:
                problems.append(Problem(name, key, error))
    return _distinct(problems)


def check_inputs(recipe: Recipe, steps: Iterable[Step]) -> list[Problem]:
    """Open the inputs from outside of these stages, and list what is wrong with each.

    A model's config and tokenizer are read, the first document of each of a source's first 1,000 files, all
    questions of a file of questions, and the first 10,000 rows of a file of conversations.
    """
    problems = []
    checked: list[tuple[str, InputKind]] = []  # stages share the base
    for step in steps:
        kinds = step.config.input_kinds()
        for key, text in step.config.inputs().items():
            reference = resolve_reference(recipe, step, text)
            kind = kinds.get(key)
            if reference.source is None or kind is None or (reference.source, kind) in checked:
                continue
            checked.append((reference.source, kind))
            try:
                _check(reference.source, kind)
            except MeditronError as error:
                problems.append(Problem(step.name, key, error))
    return _distinct(problems)


def _check(source: str, kind: InputKind) -> None:
    if source.startswith("init:"):
        preset(source)
        return
    path = local_file(source)
    if path is not None:
        _CHECKS[kind.name](path, kind.table)


def _check_model(path: Path, table: Config | None) -> None:
    model_tokenizer(resolve(str(path)))


def _check_documents(path: Path, table: Config | None) -> None:
    from meditron.corpus.config import SourceConfig
    from meditron.corpus.files import files_of, skip_rule

    assert isinstance(table, SourceConfig)  # noqa: S101
    files = files_of(path.name, table, path, Counter())
    # Each file is opened, also if an earlier one has documents; one of deletions only has none.
    opened = files[:_MAX_FILES]
    firsts = [
        next(iter(open_source(file.path, table.format, None, file.name, skip_rule(table, file.name))), None)
        for file in opened
    ]
    if not any(firsts) and opened == files:
        raise InputError(path, "holds no documents")


def _check_questions(path: Path, table: Config | None) -> None:
    from meditron.tasks.registry import open_task

    open_task(str(path)).rows("test")


def _check_conversations(path: Path, table: Config | None) -> None:
    from meditron.train.examples import of_file

    for _ in islice(of_file(path), _MAX_ROWS):
        pass


_CHECKS: dict[str, Callable[[Path, Config | None], None]] = {
    "model": _check_model,
    "documents": _check_documents,
    "questions": _check_questions,
    "conversations": _check_conversations,
}


def _distinct(problems: list[Problem]) -> list[Problem]:
    """Drop repeats: a base that several stages share is reported for the first of them."""
    return list({problem.error.message: problem for problem in reversed(problems)}.values())[::-1]
