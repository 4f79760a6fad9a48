"""Removal of the finetuning rows that overlap with the questions on which models are evaluated.

Two rules, each of which removes a row:

- `search`: the row's text contains a question, by the rules of the corpus stage (`search.verify`).
- `8-grams`: at least 80 % of the 8-word sequences of what the row asks are in the questions of one benchmark
  (Chen et al. 2023, arXiv 2311.16079, appendix B.5).

`overlap.jsonl` in the artifact lists the removed rows, `overlap.json` has their numbers.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.report.pages import Page
from meditron.search.question_index import IndexedQuestion, QuestionIndex, hash_words
from meditron.search.scan import gram_hashes
from meditron.search.verify import find_questions
from meditron.store.files import write_json
from meditron.store.jsonl import JsonlWriter
from meditron.tasks.registry import open_task
from meditron.text.messages import Turn
from meditron.train.finetune_config import OverlapRule

__all__ = ["LIST_FILE", "REPORT_FILE", "OverlapFilter"]

LIST_FILE, REPORT_FILE = "overlap.jsonl", "overlap.json"
_GRAM = 8
_SHARE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Overlap:
    """A row of `overlap.jsonl`: one rule by which a row was removed."""

    id: str
    source: str
    rule: OverlapRule
    benchmark: str
    question: str | None = None
    """Id of the benchmark's question, by `search`."""
    kind: str | None = None
    """What the row has of the question, by `search`: a `HitKind`."""
    share: float | None = None
    """Fraction of the row's 8-word sequences that are in the benchmark, by `8-grams`."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields that the rule has."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if value is not None}


@dataclass
class _Counts:
    """Numbers of the rows of one source."""

    read: int = 0
    removed: int = 0
    by_rule: Counter[str] = field(default_factory=Counter)
    by_benchmark: Counter[str] = field(default_factory=Counter)


class OverlapFilter:
    """Filter of rows by their overlap with benchmark questions, which keeps the record of what it removed.

    Args:
        benchmarks: Task as a recipe names it → its file or folder. Their questions are those of the test
            split.
        rules: The rules to apply.

    Raises:
        InputError: A file is damaged, of unknown format, or has a row that is not a question.
    """

    def __init__(self, benchmarks: Mapping[str, Path], rules: Sequence[OverlapRule]) -> None:
        self._rules = tuple(rules)
        questions: list[IndexedQuestion] = []
        self._grams: dict[str, npt.NDArray[np.uint64]] = {}
        self._questions: Counter[str] = Counter()
        for spec, files in benchmarks.items():
            task = open_task(spec, files=files)
            rows = task.rows("test")
            self._questions[task.name] += len(rows)
            questions += [IndexedQuestion.from_question(task.name, question) for question in rows]
            texts = [text for question in rows for text in (question.text, question.context)]
            # Two definitions of lm-eval may have one name: their questions count together.
            known = self._grams.get(task.name, np.zeros(1, np.uint64))
            self._grams[task.name] = np.unique(np.concatenate([known, *map(_grams, texts)]))
        self._index = QuestionIndex.build(questions) if "search" in self._rules else None
        self._counts: dict[str, _Counts] = {}
        self._overlaps: list[_Overlap] = []

    def removes(self, source: str, name: str, question: str, turns: Iterable[Turn]) -> bool:
        """Return True if a row overlaps, and record it.

        Args:
            source: Name of the data that the row is from.
            name: Id of the row.
            question: What the row asks, for `8-grams`.
            turns: The whole row, for `search`.
        """
        overlaps = [*self._find_by_grams(source, name, question), *self._search(source, name, turns)]
        counts = self._counts.setdefault(source, _Counts())
        counts.read += 1
        counts.removed += bool(overlaps)
        counts.by_rule.update({overlap.rule for overlap in overlaps})
        counts.by_benchmark.update({overlap.benchmark for overlap in overlaps})
        self._overlaps += overlaps
        return bool(overlaps)

    def _search(self, source: str, name: str, turns: Iterable[Turn]) -> Iterator[_Overlap]:
        if self._index is None:
            return
        for hit in find_questions(self._index, "\n".join(turn.content for turn in turns)):
            yield _Overlap(
                id=name,
                source=source,
                rule="search",
                benchmark=hit.benchmark,
                question=hit.question,
                kind=hit.kind,
            )

    def _find_by_grams(self, source: str, name: str, question: str) -> Iterator[_Overlap]:
        grams = _grams(question) if "8-grams" in self._rules else np.empty(0, np.uint64)
        # A question of fewer than eight words has no sequence, so the rule says nothing about it.
        for benchmark, known in self._grams.items() if len(grams) else ():
            # `known` is sorted, and not empty: it has at least the hash 0.
            share = float((known[np.searchsorted(known, grams, side="right") - 1] == grams).mean())
            if share >= _SHARE:
                yield _Overlap(
                    id=name, source=source, rule="8-grams", benchmark=benchmark, share=round(share, 4)
                )

    @property
    def removed(self) -> int:
        """Number of rows that were removed."""
        return sum(counts.removed for counts in self._counts.values())

    def summary(self) -> str:
        """Return the number of rows that were removed as a sentence."""
        read = sum(counts.read for counts in self._counts.values())
        return f"{self.removed:,} of {read:,} rows overlap with evaluation questions and are left out"

    def metrics(self) -> dict[str, Any]:
        """Return the numbers of rows read and removed: by source, rule and benchmark."""
        return {
            "rules": list(self._rules),
            "benchmarks": dict(self._questions),
            "sources": {
                source: {
                    "read": counts.read,
                    "removed": counts.removed,
                    "by_rule": dict(sorted(counts.by_rule.items())),
                    "by_benchmark": dict(sorted(counts.by_benchmark.items())),
                }
                for source, counts in self._counts.items()
            },
        }

    def write(self, out: Path) -> None:
        """Write the list and the numbers of the removed rows to a stage's folder."""
        with JsonlWriter(out / LIST_FILE) as writer:
            for overlap in self._overlaps:
                writer.write(overlap.to_json())
        write_json(out / REPORT_FILE, self.metrics())

    def add_to_report(self, page: Page) -> None:
        """Add the numbers of the removed rows to the report of a training."""
        questions = ", ".join(f"{name} ({count:,})" for name, count in self._questions.items())
        page.section("Overlap with evaluation questions")
        page.text(
            f"Rows that overlap with the questions of {questions} are left out; {LIST_FILE} lists them. Rule "
            "search: a row contains a question, also with edits or in part. Rule 8-grams: at least 80 % of "
            "the 8-word sequences of a row's question are in the questions of one benchmark."
        )
        page.table(
            ("source", "rows read", "left out", "by rule", "by benchmark"),
            [
                (source, counts.read, counts.removed, _listed(counts.by_rule), _listed(counts.by_benchmark))
                for source, counts in self._counts.items()
            ],
            "Rows left out",
        )


def _grams(text: str) -> npt.NDArray[np.uint64]:
    """Return the hashes of a text's sequences of 8 normalized words."""
    hashes: npt.NDArray[np.uint64] = gram_hashes(hash_words(text), _GRAM)
    return hashes


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
