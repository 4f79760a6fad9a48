"""Published benchmarks by name: which files, which questions of them, which split, how many there must be.

A benchmark is read from the hub, from a folder or from a file: `mmlu-medical`, `mmlu-medical:FOLDER`,
`pubmedqa:ori_pqal.json`, `medqa-4:hf:datasets/ORG/NAME`. Its questions are those of the files' own formats
(`formats`). A number of questions other than the published one is reported.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from meditron.core.console import warn
from meditron.core.errors import InputError, SourceError
from meditron.store.identity import hash_order_key
from meditron.tasks.file_task import open_file_task
from meditron.tasks.question import Question
from meditron.tasks.task import Split, SplitQuestions, Task

__all__ = ["BENCHMARKS", "Benchmark", "find_files", "iterate_questions", "open_benchmark"]

_SIX = (
    *("anatomy", "clinical_knowledge", "college_biology"),
    *("college_medicine", "medical_genetics", "professional_medicine"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A published benchmark: a selection of the questions of its files."""

    name: str
    hub: str | None = None
    """Where on the hub it is read from by default; None if the hub has no copy in a readable form."""
    files: tuple[str, ...]
    """Globs of the question files below a folder; the first that matches a file is used."""
    split: str
    """Name of the evaluated split, which is part of the task's name."""
    questions: int
    """Published number of questions."""
    options: tuple[int, ...] = ()
    """Numbers of options that the questions can have; empty if any number is allowed."""
    groups: tuple[str, ...] = ()
    """Subjects or categories that are kept; empty if all are."""
    examples: tuple[str, ...] = ()
    """Globs of the files that few-shot examples are drawn from; empty: they are from the question files."""
    needs_test_ids: bool = False
    """Whether the files have other questions too, so that a file of the test split's ids is needed."""
    version: int = 1
    """Version, increased whenever the same files give other questions."""

    @property
    def task_name(self) -> str:
        """Name of the task in results: `pubmedqa-test`."""
        return f"{self.name}-{self.split}"


def _mmlu(name: str, subjects: tuple[str, ...], questions: int) -> Benchmark:
    return Benchmark(
        name=name,
        hub="hf:datasets/cais/mmlu#all/[td]e[sv]*.parquet",
        files=("**/*_test.csv*", "**/all/test*.parquet"),
        split="test",
        questions=questions,
        options=(4,),
        groups=subjects,
        examples=("**/*_dev.csv*", "**/all/dev*.parquet"),
    )


def _medqa(options: int, files: tuple[str, ...], examples: tuple[str, ...], hub: str | None) -> Benchmark:
    return Benchmark(
        name=f"medqa-{options}",
        hub=hub,
        files=files,
        split="test",
        questions=1273,
        options=(options,),
        examples=examples,
    )


def _medbullets(options: int) -> Benchmark:
    return Benchmark(
        name=f"medbullets-{options}",
        files=(f"**/medbullets_op{options}*.csv*", f"**/medbullets_op{options}*"),
        split="test",
        questions=308,
        options=(options,),
    )


_ALL = (
    _medqa(
        4,
        ("**/*test_4options*.jsonl*", "**/4_options/*test.jsonl", "**/*test*.jsonl*"),
        ("**/*train*.json*",),
        "hf:datasets/GBaker/MedQA-USMLE-4-options",
    ),
    _medqa(
        5,
        ("**/*test_5options*.jsonl*", "**/US/test.jsonl"),
        ("**/US/train.jsonl", "**/*train_5options*.json*"),
        None,
    ),
    Benchmark(
        name="medmcqa",
        hub="hf:datasets/openlifescienceai/medmcqa",
        files=("**/dev*.json*", "**/validation*.parquet"),
        split="validation",
        questions=4183,
        options=(4,),
        examples=("**/train*.json*", "**/train*.parquet"),
    ),
    Benchmark(
        name="pubmedqa",
        files=("**/ori_pqal*.json*",),
        split="test",
        questions=500,
        options=(3,),
        needs_test_ids=True,
    ),
    _mmlu("mmlu-medical", (*_SIX, "high_school_biology", "nutrition", "virology"), 1871),
    _mmlu("mmlu-multimedqa", _SIX, 1089),
    Benchmark(
        name="truthfulqa-medical",
        hub="hf:datasets/truthfulqa/truthful_qa",
        files=("v1/TruthfulQA*.csv*", "**/TruthfulQA*.csv*", "generation/*.parquet"),
        split="validation",
        questions=99,
        groups=("Health", "Nutrition", "Psychology", "Science"),
    ),
    Benchmark(
        name="medxpertqa",
        hub="hf:datasets/TsinghuaC3I/MedXpertQA#Text/*.jsonl",
        files=("Text/test*", "**/*test*.jsonl*"),
        split="test",
        questions=2450,
        options=(10,),
        examples=("Text/dev*", "**/*dev*.jsonl*"),
        version=2,
    ),
    _medbullets(4),
    _medbullets(5),
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
"""Name of a benchmark → its definition."""


def open_benchmark(benchmark: Benchmark, place: Path) -> Task:
    """Open a benchmark as a task.

    Args:
        benchmark: The benchmark.
        place: The folder or file with its questions.

    Raises:
        SourceError: the folder has none of the benchmark's files.
        InputError: a file is damaged, or its questions are not those of the benchmark.
    """
    files = [place] if place.is_file() else find_files(place, benchmark.files)
    if not files:
        raise SourceError(
            f"{place}: none of the files of {benchmark.name}", hint=f"looked for {', '.join(benchmark.files)}"
        )
    tasks = [open_file_task(file) for file in files]
    if benchmark.needs_test_ids and tasks[0].test_split_name is None:
        problem = "no list of the test split's ids beside it"
        raise InputError(files[0], problem, hint="put test_ground_truth.json into the same folder")
    test = _select(benchmark, place, iterate_questions(tasks, "test"))
    if len(test) != benchmark.questions:
        warn(f"{benchmark.task_name}: {len(test):,} of the {benchmark.questions:,} published questions")
    skipped: Counter[str] = Counter()
    for task in tasks:
        skipped.update(task.skipped("test"))
    splits: dict[Split, SplitQuestions] = {
        "test": SplitQuestions(rows=test, skipped=dict(sorted(skipped.items()))),
        "train": SplitQuestions(rows=_examples(benchmark, place, tasks)),
    }
    return replace(
        tasks[0],
        name=benchmark.task_name,
        version=benchmark.version,
        read_split=splits.__getitem__,
        data_file=", ".join(sorted({task.data_file for task in tasks})),
        test_split_name=benchmark.split,
    )


def _examples(benchmark: Benchmark, place: Path, tasks: list[Task]) -> tuple[Question, ...]:
    """Return the questions to draw examples from; none if their files are missing."""
    if not benchmark.examples:
        return _select(benchmark, place, iterate_questions(tasks, "train"))
    files = [] if place.is_file() else find_files(place, benchmark.examples)
    rows = iterate_questions([open_file_task(file) for file in files], "train")
    return _select(benchmark, place, rows) if files else ()


def find_files(folder: Path, globs: Iterable[str]) -> list[Path]:
    """Return the files that match the first glob that matches any."""
    return next((files for glob in globs if (files := sorted(folder.glob(glob)))), [])


def iterate_questions(tasks: list[Task], split: Split) -> Iterator[Question]:
    """Yield the questions of the tasks of several files, with ids that are unique among them."""
    for task in tasks:
        for question in task.rows(split):
            # In files without ids an id is a row's number, which is unique within one file only.
            name = f"{task.name}/{question.id}" if len(tasks) > 1 else question.id
            yield replace(question, id=name)


def _select(benchmark: Benchmark, place: Path, questions: Iterable[Question]) -> tuple[Question, ...]:
    """Return the questions of the benchmark's groups, sorted by the SHA-256 of their ids."""
    kept = [q for q in questions if not benchmark.groups or q.group in benchmark.groups]
    if not kept:
        groups = ", ".join(benchmark.groups)
        raise InputError(place, f"no question of {benchmark.name}: its subjects or categories are {groups}")
    for question in kept:
        if benchmark.options and len(question.options) not in benchmark.options:
            expected = " or ".join(map(str, benchmark.options))
            problem = f"{benchmark.name} has {expected} options, got {len(question.options)}"
            raise InputError(place, problem, place=f"question {question.id}")
    return tuple(sorted(kept, key=lambda question: hash_order_key(question.id)))
