"""Records of the benchmark questions that were found in a corpus.

A corpus that was searched has `decontamination.json`, the benchmarks that were searched for, and
`contaminated.jsonl`, a row per question and document. Training copies the questions' hashes into the model's
ancestry record, from which an evaluation splits its scores.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from meditron.core.config import Record, first_problem
from meditron.core.errors import InputError
from meditron.store.files import read_json
from meditron.store.identity import short_hash
from meditron.store.jsonl import read_jsonl

__all__ = [
    "HITS_FILE",
    "QUARANTINE_FILE",
    "SEARCH_FILE",
    "BenchmarkHit",
    "ContaminatedQuestion",
    "CorpusContamination",
    "HitKind",
    "SearchedBenchmark",
    "ShortHash",
    "read_contamination",
    "read_hits",
]

HITS_FILE, QUARANTINE_FILE, SEARCH_FILE = (
    "contaminated.jsonl",
    "quarantine.jsonl.zst",
    "decontamination.json",
)
ShortHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
HitKind = Literal["question", "edited question", "part of the question", "context"]
"""What a document contains of a question: its text word for word (`question`), its text with up to a fifth of
the words changed (`edited question`), 13-word runs that cover 30 % of it and occur in no other question
(`part of the question`), or half of the 5-word runs of the text that it is about (`context`)."""


@dataclass(frozen=True, slots=True)
class BenchmarkHit:
    """A benchmark question that a document contains."""

    benchmark: str
    """Name of the benchmark: that of its file, without suffixes."""
    question: str
    """Id of the question."""
    question_sha256: str
    """`Question.content_sha256`, which identifies the question in other files of the benchmark."""
    kind: HitKind

    def to_json(self) -> dict[str, Any]:
        """Return the hit as fields of a JSON row."""
        return asdict(self)


class ContaminatedQuestion(Record):
    """One row of `contaminated.jsonl`: a question and a document that contains it."""

    benchmark: str
    question: str
    question_sha256: str
    kind: HitKind
    document: str
    """Id of the document."""
    source: str
    """Source of the document."""
    split: Literal["removed", "train", "heldout"]
    """Split of the document; `removed` if it was dropped for the question, and is in the quarantine file."""


class SearchedBenchmark(Record):
    """A benchmark whose questions were searched for in a corpus."""

    name: str
    data_sha256: str
    """`Task.data_sha256` of the test split: an evaluation with the same digest has the same questions."""
    questions: int = Field(ge=1)


class CorpusContamination(Record):
    """The benchmarks searched for in a corpus, and the questions found in it."""

    benchmarks: tuple[SearchedBenchmark, ...]
    trained: tuple[ShortHash, ...]
    """Sorted short hashes (`Question.content_sha256`) of the questions in documents of the training split."""
    removed: tuple[ShortHash, ...]
    """Those of the other questions that were found: in documents that were dropped or held out."""


_BENCHMARKS = TypeAdapter(list[SearchedBenchmark])


def read_hits(corpus: Path) -> Iterator[ContaminatedQuestion]:
    """Yield the rows of a corpus's `contaminated.jsonl`; none if there is no such file.

    Raises:
        InputError: the file is damaged; names the line.
    """
    path = corpus / HITS_FILE
    for number, row in enumerate(read_jsonl(path) if path.is_file() else (), start=1):
        try:
            yield ContaminatedQuestion.model_validate(row)
        except ValidationError as error:
            place, problem = first_problem(error)
            raise InputError(path, problem, place=f"line {number}, {place}") from error


def read_contamination(corpus: Path) -> CorpusContamination | None:
    """Read the questions found in a corpus; None if it was not searched.

    Raises:
        InputError: a file is damaged.
    """
    path = corpus / SEARCH_FILE
    if not path.is_file():
        return None
    try:
        benchmarks = _BENCHMARKS.validate_python(read_json(path))
    except ValidationError as error:
        place, problem = first_problem(error)
        raise InputError(path, problem, place=place) from error
    trained: set[str] = set()
    found: set[str] = set()
    for hit in read_hits(corpus):
        found.add(short_hash(hit.question_sha256))
        if hit.split == "train":
            trained.add(short_hash(hit.question_sha256))
    return CorpusContamination(
        benchmarks=tuple(benchmarks),
        trained=tuple(sorted(trained)),
        removed=tuple(sorted(found - trained)),
    )
