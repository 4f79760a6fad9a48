"""The index of benchmark questions: which word sequences occur in which question.

It is built once per corpus and stored in the work folder, from which every worker reads it.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.search.scan import GRAM, RUN, fill_table, gram_hashes, scan_words, word_hashes
from meditron.search.words import character_tables, split_words, weighted_count
from meditron.store.files import atomic_write
from meditron.tasks.question import Question

__all__ = ["SHORT", "IndexedQuestion", "QuestionIndex", "hash_words", "needed_context_grams", "word_runs"]

SHORT = RUN
"""Questions of a smaller `IndexedQuestion.length` count as contained only verbatim, or with their options."""
_BITS_PER_GRAM = 16
_LABELS = ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", [str(number) for number in range(1, 27)])


@dataclass(frozen=True, slots=True)
class IndexedQuestion:
    """A question as the search uses it: its origin, and the normalized words of its texts."""

    benchmark: str
    id: str
    content_sha256: str
    text: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]
    context: tuple[str, ...]

    @classmethod
    def from_question(cls, benchmark: str, question: Question) -> "IndexedQuestion":
        """Normalize a question's words."""
        return cls(
            benchmark,
            question.id,
            question.content_sha256,
            tuple(split_words(question.text)),
            tuple(tuple(split_words(option)) for option in question.options),
            tuple(split_words(question.context)),
        )

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "IndexedQuestion":
        """Return the question of a row of `asdict`, in which JSON turned tuples into lists."""
        words = {"text": tuple(row["text"]), "context": tuple(row["context"])}
        return cls(**{**row, **words, "options": tuple(map(tuple, row["options"]))})

    @property
    def is_short(self) -> bool:
        """True if the text alone does not identify the question."""
        return self.length < SHORT

    @property
    def length(self) -> float:
        """Number of words of the text; characters of scripts without blanks count half."""
        return weighted_count(self.text)

    @property
    def has_long_context(self) -> bool:
        """True if the context is long enough to identify the question."""
        return len(self.context) >= 2 * RUN

    @property
    def is_searched_by_text(self) -> bool:
        """False for a short text, such as the title of an abstract, with a context that identifies it."""
        return bool(self.text) and not (self.is_short and self.has_long_context)


def hash_words(text: str) -> npt.NDArray[np.uint64]:
    """Return the hashes of a text's normalized words, uint64 (n)."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    tables = character_tables()
    out = np.empty(len(codes) + 1, np.uint64)
    return out[: word_hashes(codes, tables.kinds, tables.factors, tables.terms, out)]


class QuestionIndex:
    """Benchmark questions, and compiled tables of the word sequences in them.

    A question has up to two *units*, which are searched for separately: its text (unit 2 i for question i)
    and its context (unit 2 i + 1).
    """

    def __init__(
        self,
        questions: Iterable[IndexedQuestion],
        common_runs: Iterable[Sequence[str]],
        arrays: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        self.questions = tuple(questions)
        self.common_runs = frozenset(map(tuple, common_runs))
        """Runs of 13 words in several questions ("… is the most appropriate next step in the …")."""
        self._arrays = tuple(arrays[name] for name in _ARRAYS)
        grams, units = len(arrays["offsets"]) - 1, 2 * len(self.questions)
        # Numbers of the last document in which a sequence or a unit was seen: nothing is cleared in between.
        self._scratch = tuple(np.zeros(size, np.int64) for size in (grams, units, units, units))
        self._found = np.empty(units, np.int32)
        self._stamp = 0

    @classmethod
    def build(cls, questions: Sequence[IndexedQuestion]) -> "QuestionIndex":
        """Compute the tables for a list of questions."""
        common_runs = _runs_of_several_texts(questions)
        return cls(questions, common_runs, _build_arrays(questions, common_runs))

    def candidates(self, text: str) -> npt.NDArray[np.int32]:
        """Return the units that a text may contain, in ascending order: those that it contains, and more."""
        self._stamp += 1
        count = scan_words(hash_words(text), self._arrays, self._scratch, self._stamp, self._found)
        return np.sort(self._found[:count])

    def save(self, path: Path) -> None:
        """Write the index to one `.npz` file, atomically."""
        texts = {"questions": list(map(asdict, self.questions)), "common_runs": sorted(self.common_runs)}
        stored = np.frombuffer(json.dumps(texts).encode(), np.uint8)
        with atomic_write(path) as file:
            np.savez(file, allow_pickle=False, texts=stored, **dict(zip(_ARRAYS, self._arrays, strict=True)))

    @classmethod
    def load(cls, path: Path) -> "QuestionIndex":
        """Read an index that `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            texts = json.loads(file["texts"].tobytes())
            arrays = {name: file[name] for name in _ARRAYS}
        return cls(map(IndexedQuestion.from_json, texts["questions"]), texts["common_runs"], arrays)


_ARRAYS = (
    *("filter_bits", "gram_keys", "gram_rows", "offsets", "units", "weights", "needed"),
    *("run_keys", "run_rows", "run_offsets", "run_units"),
)
"""Names of the arrays that `scan_words` takes, in its order."""


def word_runs(words: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Yield every run of `size` consecutive words."""
    return (tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def _runs_of_several_texts(questions: Sequence[IndexedQuestion]) -> set[tuple[str, ...]]:
    # By text: MedQA is published with four and with five options, so a recipe may list a question twice.
    counts: Counter[tuple[str, ...]] = Counter()
    for text in {question.text for question in questions}:
        counts.update(set(word_runs(text, RUN)))
    return {run for run, count in counts.items() if count > 1}


def _build_arrays(
    questions: Sequence[IndexedQuestion], common_runs: Collection[tuple[str, ...]]
) -> dict[str, npt.NDArray[Any]]:
    needed = np.zeros(2 * len(questions), np.int64)
    grams, runs = _Postings(GRAM), _Postings(RUN)
    for number, question in enumerate(questions):
        text, context = 2 * number, 2 * number + 1
        if question.is_searched_by_text:
            needed[text] = _needed_grams(len(question.text))
            for words in [question.text] if len(question.text) >= GRAM else _with_options(question):
                grams.add(text, words[: len(question.text) + GRAM - 1])
        if not question.is_short:
            rare = [run not in common_runs for run in word_runs(question.text, RUN)]
            runs.add(text, question.text, np.array(rare))
        if question.has_long_context:
            needed[context] = needed_context_grams(len(question.context))
            grams.add(context, question.context)
    offsets, units, weights, gram_hashes_ = grams.tables()
    run_offsets, run_units, _, run_hashes = runs.tables()
    filter_bits = np.zeros(_power_of_two(_BITS_PER_GRAM * len(gram_hashes_)) // 8, np.uint8)
    gram_keys, gram_rows = _hash_table(gram_hashes_, filter_bits)
    run_keys, run_rows = _hash_table(run_hashes, np.zeros(1, np.uint8))
    return {
        **{"filter_bits": filter_bits, "gram_keys": gram_keys, "gram_rows": gram_rows, "offsets": offsets},
        **{"units": units, "weights": weights, "needed": needed, "run_keys": run_keys, "run_rows": run_rows},
        **{"run_offsets": run_offsets, "run_units": run_units},
    }


class _Postings:
    """Hashes of word sequences with the units that contain them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._hashes: list[npt.NDArray[np.uint64]] = []
        self._units: list[npt.NDArray[np.int32]] = []

    def add(self, unit: int, words: Sequence[str], kept: npt.NDArray[np.bool_] | None = None) -> None:
        """Add the runs of a unit's words; with `kept` only those for which it is True."""
        hashes = gram_hashes(hash_words(" ".join(words)), self._size)
        hashes = hashes if kept is None else hashes[kept]
        self._hashes.append(hashes)
        self._units.append(np.full(len(hashes), unit, np.int32))

    def tables(
        self,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """Return the postings by sequence.

        Returns:
            Offsets (n + 1): sequence i is in the units `units[offsets[i]:offsets[i + 1]]`, so often as
            `weights` says; and the sequences' hashes (n).
        """
        hashes = np.concatenate([np.empty(0, np.uint64), *self._hashes])
        units = np.concatenate([np.empty(0, np.int32), *self._units])
        rows = np.empty(len(hashes), [("hash", np.uint64), ("unit", np.int32)])
        rows["hash"], rows["unit"] = hashes, units
        pairs, weights = np.unique(rows, return_counts=True)
        distinct, starts = np.unique(pairs["hash"], return_index=True)
        return np.append(starts, len(pairs)), pairs["unit"].copy(), weights, distinct


def _power_of_two(least: int) -> int:
    return 1 << max(3, (least - 1).bit_length())


def _hash_table(
    hashes: npt.NDArray[np.uint64], filter_bits: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]:
    # At most half full, so that a key is found after one or two rows.
    size = _power_of_two(2 * len(hashes) + 1)
    keys, rows = np.zeros(size, np.uint64), np.zeros(size, np.int32)
    fill_table(hashes, keys, rows, filter_bits)
    return keys, rows


def _with_options(question: IndexedQuestion) -> list[list[str]]:
    """Return a very short question followed by its options, as they are usually listed."""
    # Texts of fewer words than a sequence have none of their own.
    lists = [[word for option in question.options for word in option]]
    for labels in _LABELS:
        labelled = zip(labels, question.options, strict=False)
        lists.append([word for label, option in labelled for word in (label.lower(), *option)])
    return [[*question.text, *words] for words in lists]


def _needed_grams(words: int) -> int:
    """Return how many sequences of a text with that many words a document must contain to be compared.

    An edit of one word changes at most 5 of the `words - 4` sequences. With an edit in every tenth word, at
    least `words - 4 - 5 * (words // 10)` are left, which is never less than the number returned.
    """
    if words < 10:
        return max(1, words - GRAM + 1)
    return max(1, min(words - 2 * GRAM + 1, (words - GRAM + 1) // 3))


def needed_context_grams(words: int) -> int:
    """Return the number of a context's sequences of 5 words that count as the context: half of them."""
    return -(-(words - GRAM + 1) // 2)
