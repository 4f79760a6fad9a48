"""Variants of an evaluation set: other orders of the options, and other seeds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from meditron.evaluate.answers import answer_questions
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.model import EvalModel
from meditron.evaluate.permutations import permuted_sets, score_orders
from meditron.evaluate.rows import QuestionRow
from meditron.evaluate.rows_file import RowsFile
from meditron.evaluate.seeds import score_seeds, seeded_sets
from meditron.store.results import TaskScore

__all__ = ["EvalVariants", "VariantRows"]


@dataclass(frozen=True, kw_only=True)
class VariantRows:
    """One model's answers to an evaluation set and to its variants, each in the questions' order."""

    published: Sequence[QuestionRow]
    """In the published order of the options and with the first seed: the rows of the score."""
    orders: Sequence[Sequence[QuestionRow]]
    """In each further order."""
    seeds: Sequence[Sequence[QuestionRow]]
    """With each further seed."""

    def all_rows(self) -> Iterator[QuestionRow]:
        """Iterate over all rows, the published ones first."""
        return (row for rows in (self.published, *self.orders, *self.seeds) for row in rows)

    def add_scores(self, score: TaskScore, *, seed: int, resamples: int) -> TaskScore:
        """Return a score of the published rows with the scores over all orders and over all seeds.

        Args:
            score: The score.
            seed: The first seed, and that of the bootstrap.
            resamples: Number of bootstrap resamples.
        """
        further: dict[str, Any] = {}
        if self.orders:
            rows = [self.published, *self.orders]
            further["permutations"] = score_orders(rows, seed=seed, resamples=resamples)
        if self.seeds:
            rows = [self.published, *self.seeds]
            further["seeds"] = score_seeds(rows, seed=seed, resamples=resamples)
        return score.model_copy(update=further) if further else score


@dataclass(frozen=True, kw_only=True)
class EvalVariants:
    """An evaluation set with its variants."""

    published: EvalSet
    orders: tuple[EvalSet, ...]
    seeds: tuple[EvalSet, ...]

    @classmethod
    def of(cls, eval_set: EvalSet, options: EvalOptions, seed: int, shots_from: Path | None = None) -> Self:
        """Create the variants of an evaluation set that the options ask for.

        Args:
            eval_set: The evaluation set.
            options: The options that it was made with.
            seed: The first seed.
            shots_from: File of questions to draw examples from; default: the task's training split.

        Raises:
            UsageError: the template does not show the options, or a question has too few orders.
        """
        orders = permuted_sets(eval_set, options.permutations, seed)
        return cls(published=eval_set, orders=orders, seeds=seeded_sets(eval_set, options, seed, shots_from))

    def answer(self, model: EvalModel, file: RowsFile[QuestionRow]) -> VariantRows:
        """Let a model answer the questions of all variants; errors are those of `answer_questions`."""
        return VariantRows(
            published=answer_questions(model, self.published, file),
            orders=[answer_questions(model, each, file) for each in self.orders],
            seeds=[answer_questions(model, each, file) for each in self.seeds],
        )
