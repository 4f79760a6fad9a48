"""Opening of the data of a finetune: the entries of its `task` and `rows`. Does not import torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meditron.tasks.registry import open_task
from meditron.tasks.task import Task
from meditron.tasks.training_sets import open_training_questions
from meditron.text.tokenizer import Tokenizer
from meditron.train.examples import (
    ConversationRow,
    Example,
    read_conversations,
    select_examples,
    task_conversations,
)
from meditron.train.finetune_config import CORPUS, FinetuneConfig, FinetuneData

if TYPE_CHECKING:
    from meditron.train.overlap import OverlapFilter

__all__ = ["DataSource", "open_data", "tokenize_source"]


@dataclass(frozen=True, slots=True)
class DataSource:
    """Opened data of one entry of `task` or `rows`."""

    name: str
    """Name of the file, the task or the training set; unique in the stage."""
    conversations: Iterable[ConversationRow]
    task: Task | None
    """The task whose questions these are; None for conversations."""


def open_data(config: FinetuneConfig, paths: Mapping[str, Path]) -> list[DataSource]:
    """Open the entries of `task` and `rows`. Conversations are read when they are iterated over.

    Args:
        config: The stage's config.
        paths: Input name → its file or folder, for all inputs of `config.data()`.

    Raises:
        InputError: A file is damaged, or is no file of questions.
        SourceError: A folder has none of the files of its training set.
    """
    sources: list[DataSource] = []
    for entry in config.data():
        path = paths[entry.input]
        if entry.kind == "rows":
            name = entry.known.name if entry.known else path.name.partition(".")[0]
            rows, task = read_conversations(path, entry.known.name if entry.known else None), None
        else:
            task = _open_task(entry, path)
            name = task.name
            rows = task_conversations(task, config.template, path, reasoning=config.reasoning)
        if count := sum(source.name.partition("#")[0] == name for source in sources):
            name = f"{name}#{count + 1}"  # two files of one name in different folders
        sources.append(DataSource(name, rows, task))
    return sources


def _open_task(entry: FinetuneData, path: Path) -> Task:
    if entry.known:
        return open_training_questions(entry.known, path)
    return open_task(entry.text if entry.input == CORPUS else str(path), corpus=path)


def tokenize_source(
    config: FinetuneConfig, source: DataSource, tokenizer: Tokenizer, overlap: "OverlapFilter | None" = None
) -> list[Example]:
    """Tokenize the rows of one entry, without those that `overlap` removes. Raises as `select_examples`."""
    conversations = source.conversations
    if overlap:
        conversations = (
            row for row in conversations if not overlap.removes(source.name, row.id, row.question, row.turns)
        )
    return select_examples(
        conversations,
        tokenizer,
        source=source.name,
        template=config.template,
        length=config.sequence_length,
        heldout=config.heldout,
        limit=config.limit,
    )
