"""Published finetuning data by name: which files, which rows of them, how many there must be.

A recipe names a set in `finetune.task` (questions) or `finetune.rows` (conversations), read from the hub
(`medmcqa`), or from a folder or file (`medmcqa:data/medmcqa`). Questions are those of the training split in
the files' own formats (`formats`); a number of rows other than the published one is reported.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from meditron.core.console import warn
from meditron.core.errors import InputError, SourceError
from meditron.tasks.benchmarks import BENCHMARKS, find_files, iterate_questions
from meditron.tasks.file_task import open_file_task
from meditron.tasks.question import Question
from meditron.tasks.task import Split, SplitQuestions, Task

__all__ = [
    "TRAINING_SETS",
    "TrainingSet",
    "open_training_questions",
    "parse_training_set",
    "training_set_files",
]

RowKind = Literal["questions", "conversations", "medquad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """A published set of finetuning rows: a selection of the rows of its files."""

    name: str
    kind: RowKind
    """`questions`: multiple-choice questions; `conversations`: rows of a conversation format; `medquad`: the
    XML of MedQuAD."""
    files: tuple[str, ...]
    """Globs of the files below a folder; the first that matches a file is used."""
    licence: str
    origin: str
    """Publication."""
    hub: str | None = None
    """Where on the hub it is read from by default; None if the hub has no copy in a readable form."""
    count: int | None = None
    """Published number of rows; None if it is not stated."""
    options: tuple[int, ...] = ()
    """Numbers of options that the questions can have; empty if any number is allowed."""
    explained_only: bool = False
    """Whether questions without an explanation of the answer are left out."""
    needs_test_ids: bool = False
    """Whether the files have the test split's questions too, so that a file of their ids is needed."""


_MEDMCQA = TrainingSet(
    name="medmcqa",
    kind="questions",
    hub="hf:datasets/openlifescienceai/medmcqa",
    files=("**/train*.json*", "**/train*.parquet"),
    count=182_822,
    options=(4,),
    licence="MIT",
    origin="Pal et al. 2022, arXiv 2203.14371",
)
_PUBMEDQA = "Jin et al. 2019, arXiv 1909.06146"
_MEDQA = TrainingSet(
    name="medqa-5",
    kind="questions",
    files=("**/US/train.jsonl", "**/*train_5options*.json*"),
    count=10_178,
    options=(5,),
    licence="MIT",
    origin="Jin et al. 2020, arXiv 2009.13081",
)
_ALL = (
    _MEDQA,
    replace(
        _MEDQA,
        name="medqa-4",
        hub="hf:datasets/GBaker/MedQA-USMLE-4-options",
        files=("**/*train*.json*",),
        options=(4,),
    ),
    _MEDMCQA,
    # The questions of the published finetune on MedMCQA (Chen et al. 2023, arXiv 2311.16079, table 3).
    replace(_MEDMCQA, name="medmcqa-explained", explained_only=True, count=159_669),
    TrainingSet(
        name="pubmedqa",
        kind="questions",
        files=("**/ori_pqal*.json*",),
        count=500,
        needs_test_ids=True,
        licence="MIT",
        origin=_PUBMEDQA,
    ),
    # The authors' PQA-A; the task `pubmedqa-artificial` makes such questions from a corpus.
    TrainingSet(
        name="pubmedqa-a",
        kind="questions",
        hub="hf:datasets/qiaojin/PubMedQA#pqa_artificial/*.parquet",
        files=("**/ori_pqaa*.json*", "**/pqa_artificial/*.parquet"),
        count=211_269,
        licence="MIT",
        origin=_PUBMEDQA,
    ),
    TrainingSet(
        name="medquad",
        kind="medquad",
        files=("**/*.xml",),
        licence="CC BY 4.0",
        origin="Ben Abacha & Demner-Fushman 2019, BMC Bioinformatics 20:511",
    ),
    TrainingSet(
        name="wikidoc-patient",
        kind="conversations",
        hub="hf:datasets/medalpaca/medical_meadow_wikidoc_patient_information",
        files=("**/medical_meadow_*.json*",),
        count=5_942,
        licence="CC BY-SA (text of WikiDoc)",
        origin="Han et al. 2023, MedAlpaca, arXiv 2304.08247",
    ),
)
TRAINING_SETS: dict[str, TrainingSet] = {known.name: known for known in _ALL}
"""Name of a set → its definition."""


def parse_training_set(text: str, key: Literal["task", "rows"]) -> tuple[TrainingSet | None, str]:
    """Return the set that an entry of `task` or `rows` names, and the reference of its files.

    An entry without the name of a set is a reference itself.

    Raises:
        ValueError: The set belongs to the other key, it needs a folder or file and none is given, or the
            entry names a benchmark without a training set.
    """
    name, colon, reference = text.partition(":")
    known = TRAINING_SETS.get(name)
    if known is None:
        if name in BENCHMARKS:
            raise ValueError(
                f"'{name}' is a benchmark, on which models are evaluated; training sets: "
                f"{', '.join(each.name for each in _ALL if (each.kind == 'questions') == (key == 'task'))}"
            )
        return None, text
    right_key = "task" if known.kind == "questions" else "rows"
    if right_key != key:
        rows = "questions" if right_key == "task" else "conversations"
        raise ValueError(f"'{name}' is a set of {rows}: write {right_key} = \"{text}\"")
    if colon and reference:
        return known, reference
    if known.hub is None:
        raise ValueError(
            f"the hub has no copy of {name} that can be read: write {name}:FOLDER or {name}:FILE"
        )
    return known, known.hub


def training_set_files(known: TrainingSet, path: Path) -> list[Path]:
    """Return the files of a set: the path itself if it is a file.

    Raises:
        SourceError: The folder has none of the set's files.
    """
    files = [path] if path.is_file() else find_files(path, known.files)
    if not files:
        raise SourceError(
            f"{path}: none of the files of {known.name}", hint=f"looked for {', '.join(known.files)}"
        )
    return files


def open_training_questions(known: TrainingSet, path: Path) -> Task:
    """Open a set of questions as a task whose training split has the set's questions.

    Its test split has the questions of the files' own test split, if they have one.

    Raises:
        SourceError: The folder has none of the set's files.
        InputError: A file is damaged, has a row that is not a question, or questions of another set.
    """
    tasks = [open_file_task(file) for file in training_set_files(known, path)]
    first = tasks[0]
    if known.needs_test_ids and first.test_split_name is None:
        problem = "no list of the test split's ids beside it"
        raise InputError(path, problem, hint="put test_ground_truth.json into the same folder")
    train = _select(known, path, list(iterate_questions(tasks, "train")))
    if known.count and len(train) != known.count:
        warn(f"{known.name}: {len(train):,} of the {known.count:,} published training questions")
    test = first.rows("test") if known.needs_test_ids else train
    splits: dict[Split, SplitQuestions] = {
        "train": SplitQuestions(rows=train),
        "test": SplitQuestions(rows=test),
    }
    return replace(first, name=known.name, read_split=splits.__getitem__, licence=known.licence)


def _select(known: TrainingSet, path: Path, questions: list[Question]) -> tuple[Question, ...]:
    for question in questions:
        if known.options and len(question.options) not in known.options:
            expected = " or ".join(map(str, known.options))
            problem = f"{known.name} has {expected} options, got {len(question.options)}"
            raise InputError(path, problem, place=f"question {question.id}")
    kept = tuple(question for question in questions if question.explanation or not known.explained_only)
    if not kept:
        raise InputError(path, f"no question of {known.name}: none has an explanation of its answer")
    return kept
