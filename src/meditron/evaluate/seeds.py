"""Spread over seeds: the same questions with other drawn examples, and other sampled answers.

The seeds are the run's own and those that follow it. Rows of a further seed have a `seed_offset` and cache
keys of their own.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import stdev

from meditron.core.statistics import bootstrap_ratio
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.eval_set import EvalSet, draw_examples
from meditron.evaluate.methods.base import find_method
from meditron.evaluate.rows import QuestionRow
from meditron.store.results import SeedScore

__all__ = ["score_seeds", "seeded_sets"]


def seeded_sets(
    eval_set: EvalSet, options: EvalOptions, seed: int, shots_from: Path | None = None
) -> tuple[EvalSet, ...]:
    """Return the evaluation set with each of `options.seeds` − 1 further seeds.

    Args:
        eval_set: The evaluation set with the first seed.
        options: The options that it was made with.
        seed: The first seed.
        shots_from: File of questions to draw examples from; default: the task's training split.

    Returns:
        The sets; none if nothing is drawn: no examples, and no sampled answers.
    """
    if not (options.shots or eval_set.method.is_sampled):
        return ()
    method = find_method(eval_set.method.name)
    return tuple(
        replace(
            eval_set,
            method=method.from_options(options, seed + offset),
            examples=draw_examples(
                eval_set.task, eval_set.questions, options.shots, seed + offset, shots_from
            ),
            label=f"{eval_set.label} (seed {seed + offset})",
            seed_offset=offset,
        )
        for offset in range(1, options.seeds)
    )


def score_seeds(by_seed: Sequence[Sequence[QuestionRow]], *, seed: int, resamples: int) -> SeedScore:
    """Compute the scores over all seeds.

    Args:
        by_seed: For each seed the rows of one model, all in the questions' order; at least two.
        seed: The first of the seeds, and that of the bootstrap.
        resamples: Number of bootstrap resamples.
    """
    questions = list(zip(*by_seed, strict=True))
    n, seeds = len(questions), len(by_seed)
    accuracies = [sum(row.correct for row in rows) / n for rows in by_seed]
    bounds = (0.0, 1.0)
    mean, between = bootstrap_ratio(accuracies, [1.0] * seeds, seed=seed, resamples=resamples, bounds=bounds)
    # The answers to one question are not independent: questions are resampled, each with all its seeds.
    fractions = [sum(row.correct for row in rows) / seeds for rows in questions]
    _, within = bootstrap_ratio(fractions, [1.0] * n, seed=seed, resamples=resamples, bounds=bounds)
    return SeedScore(
        seeds=tuple(range(seed, seed + seeds)),
        accuracy=mean,
        accuracies=tuple(accuracies),
        deviation=stdev(accuracies),
        interval=between,
        question_interval=within,
        same_option=sum(len({row.chosen_option for row in rows}) == 1 for rows in questions) / n,
    )
