"""The rows behind every score: one line a model and document, question or pair of models.

While models are scored, rows are appended batch by batch, so that a kill costs at most one batch; at the end
the file is rewritten in one canonical order, so that it does not tell how often it was interrupted.
"""

import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, ClassVar, Generic, Self, TypeVar

from pydantic import Field, ValidationError

from meditron.core.config import Config
from meditron.core.console import progress
from meditron.core.errors import InputError, StorageError
from meditron.store.files import atomic, make_folder, translate_read_errors, translate_write_errors
from meditron.store.jsonl import read_jsonl
from meditron.store.lock import exclusive_lock
from meditron.store.results import Method, Rule

__all__ = [
    "FIDELITY",
    "PERPLEXITY",
    "DocumentRow",
    "FidelityRow",
    "QuestionRow",
    "Row",
    "RowsFile",
    "exclusive",
    "read_rows",
    "run_resumable",
]

PERPLEXITY, FIDELITY = "perplexity.jsonl", "fidelity.jsonl"
Nats = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LogProbability = Annotated[float, Field(le=0, allow_inf_nan=False)]


class Row(Config):
    """What every row says: which model did something with what."""

    of: ClassVar[str]
    """What such rows are rows of."""

    model: str
    """The model's reference in the recipe."""

    model_digest: str
    """SHA-256 of the model's files."""

    engine: str
    """What ran the model: `torch`, or `torch on dequantized weights`."""

    dtype: str
    """Number format of weights and activations."""

    id: str
    """The document's or question's id."""

    cache_key: str
    """SHA-256 of all that decides this row: model, data, number format, batches."""

    @abstractmethod
    def item(self) -> tuple[str, ...]:
        """Identify the document or question by id and content: no two rows of one cache_key share it."""

    def key(self) -> tuple[str, ...]:
        """Identify the row in a file that holds several models and settings."""
        return self.model, self.cache_key, *self.item()


class DocumentRow(Row):
    """How well one model predicts one document."""

    of = "perplexities"

    source: str
    """The document's source."""

    tokens: int = Field(ge=0)
    """Tokens scored: all but the first, which nothing precedes; 0 for a document of one token."""

    nll: Nats
    """Sum of their negative log-likelihoods, in nats."""

    bytes: int = Field(ge=0)
    """UTF-8 bytes of the text they stand for."""

    ids_sha256: str
    """SHA-256 of the token ids: losses per token compare between models that read the same ids."""

    truncated: bool = False
    """Whether only the document's first `max_tokens` tokens were scored."""

    text_sha256: str
    """SHA-256 of the document's whole text."""

    def item(self) -> tuple[str, ...]:
        """Return the source, the id and the text's hash."""
        return self.source, self.id, self.text_sha256


class QuestionRow(Row):
    """How one model answered one question."""

    of = "answers"

    task: str
    version: int
    data_sha256: str
    """SHA-256 over all questions of the split, of which `--questions` may ask fewer."""
    template: str
    prompt_form: str
    """`raw`, or the name of the chat template whose turns the prompt was put in."""
    method: Method
    shots: int = Field(ge=0)
    """Solved questions in the prompt."""
    shot_ids: tuple[str, ...] = ()
    """Their ids, in the prompt's order."""

    question_sha256: str
    """SHA-256 of the question with its context, options and gold answer."""

    prompt_sha256: str
    """SHA-256 of the prompt with its shots and continuations."""

    gold: int = Field(ge=0)
    """Index of the right option."""

    rule: Rule | None
    """The rule that chose; None by next token."""

    prediction: int | None
    """Index of the chosen option; None where the likeliest next token names none."""

    correct: bool

    scores: dict[Rule, tuple[float, ...]]
    """Each rule's figure of each option, in nats (by bytes: nats a byte); empty by next token."""

    option_probability_mass: float = Field(ge=0, le=1.0001)
    """Probability that the next token begins one of the options."""

    token: str | None = None
    """By next token: the likeliest token of the whole vocabulary."""

    truncated: bool = False
    """Whether the prompt's beginning was left out, as all of it does not fit in the context."""

    def by(self, rule: Rule) -> int:
        """Index of the option that this rule chooses: the first of equals."""
        scores = self.scores[rule]
        return scores.index(max(scores))

    def item(self) -> tuple[str, ...]:
        """Return the id and the content's hash."""
        return self.id, self.question_sha256

    def key(self) -> tuple[str, ...]:
        """Identify the row by the rule as well: one cache_key's scores serve every rule."""
        return self.model, self.cache_key, self.rule or "", *self.item()


class FidelityRow(Row):
    """How far one model's predictions of one document lie from another's."""

    of = "fidelity"

    against: str
    """The other model's reference."""

    source: str
    nll: Nats
    nll_against: Nats

    kl: tuple[float, ...]
    """KL(against ‖ model) of each predicted token's distribution, in nats."""

    agree: int = Field(ge=0)
    """Tokens where both models' likeliest prediction is the same."""

    truncated: bool = False
    """Whether only the document's first `max_tokens` tokens were predicted."""

    text_sha256: str
    """SHA-256 of the document's whole text."""

    def item(self) -> tuple[str, ...]:
        """Return the source, the id and the text's hash."""
        return self.source, self.id, self.text_sha256

    def key(self) -> tuple[str, ...]:
        """Identify the row by both models."""
        return self.model, self.against, self.cache_key, *self.item()


_BEGINS = b'{"model":"'  # of every row
R = TypeVar("R", bound=Row)
T = TypeVar("T")


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """The rows of a finished file.

    Raises:
        InputError: a line is no such row, or two rows are of the same model and item.
    """
    rows = [_row(path, number, line, kind) for number, line in enumerate(read_jsonl(path), start=1)]
    keys = {row.key() for row in rows}
    if len(keys) != len(rows):
        raise InputError(path, f"two rows of the same model, settings and {_item(kind)}")
    return rows


def _item(kind: type[Row]) -> str:
    return "question" if issubclass(kind, QuestionRow) else "document"


def _row(path: Path, number: int, line: dict[str, object] | bytes, kind: type[R]) -> R:
    try:
        return kind.model_validate_json(line) if isinstance(line, bytes) else kind.model_validate(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "line"
        raise InputError(
            path,
            f"not a row of {kind.of}: {where}: {first['msg']}",
            place=f"row {number}",
            hint="rows of another version cannot be read; choose another folder with --out",
        ) from error


def exclusive(path: Path) -> AbstractContextManager[None]:
    """Hold a rows file for this process; wait as long as another evaluation writes it.

    The lock is on a file beside the rows, since the rows themselves may be replaced.
    """
    waiting = f"waiting: another evaluation is writing {path}"
    return exclusive_lock(path.with_name(f".{path.name}.lock"), waiting)


class RowsFile(Generic[R]):
    """A file of rows while it grows: rows of earlier runs are found again, new ones are appended.

    Opening it changes nothing on the disk. A file that is not one of such rows is refused untouched, and a
    link is never written through.

    Raises:
        InputError: the file holds something else than such rows.
        StorageError: the path is a symbolic link.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        make_folder(path.parent)
        self.path = path
        if path.is_symlink():
            raise StorageError(f"{path}: is a symbolic link", hint="rows need a file of their own: --out")
        content = b""
        if path.exists():
            with translate_read_errors(path):
                content = path.read_bytes()
        whole, torn = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
        lines = enumerate(whole.split(b"\n")[:-1], start=1)
        self.rows = [_row(path, number, line, kind) for number, line in lines]
        if not torn.startswith(_BEGINS[: len(torn)]):
            raise InputError(path, f"not a file of {kind.of}", hint="choose another folder with --out")
        # A kill can tear the last line. Another name of the same file (a hard link) keeps what it has.
        self._rewrite = bool(torn) or (path.exists() and path.stat().st_nlink > 1)
        self._whole = whole
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def known(self, cache_key: str) -> dict[tuple[str, ...], R]:
        """Item → the row that an earlier run left for this cache_key."""
        return {row.item(): row for row in self.rows if row.cache_key == cache_key}

    def append(self, rows: Sequence[R]) -> None:
        """Add rows; they are on the disk when this returns."""
        with translate_write_errors(self.path):
            if self._file is None:
                if self._rewrite:
                    with atomic(self.path) as file:
                        file.write(self._whole)
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                self._file = os.fdopen(os.open(self.path, flags, 0o644), "ab")
            self._file.write(b"".join(map(_line, rows)))
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self, rows: Iterable[R]) -> None:
        """Replace the file by these rows alone, in the order of their keys, each key once."""
        ordered = {row.key(): row for row in rows}
        with atomic(self.path) as file:
            file.writelines(_line(ordered[key]) for key in sorted(ordered))


def _line(row: Row) -> bytes:
    text = json.dumps(row.model_dump(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def run_resumable(
    file: RowsFile[R],
    name: str,
    cache_key: str,
    groups: Sequence[Sequence[T]],
    item: Callable[[T], tuple[str, ...]],
    work: Callable[[Sequence[T]], Sequence[R]],
    *,
    unit: str,
    about: str = "",
) -> dict[tuple[str, ...], R]:
    """Item → row, for every thing of every group: from the file where it stands there, else made now.

    A group is what is made between two writes: what a kill costs. It is made whole or not at all, for what
    meets in a batch moves the last bits of a sum.
    """
    found = {key: row.model_copy(update={"model": name}) for key, row in file.known(cache_key).items()}
    todo = [group for group in groups if any(item(each) not in found for each in group)]
    if todo:
        total = sum(map(len, groups))
        start = total - sum(map(len, todo))
        with progress(f"evaluate {name}{about}", total, unit, start=start) as bar:
            for group in todo:
                made = work(group)
                file.append(made)
                found |= {row.item(): row for row in made}
                bar.advance(len(group))
    return found
