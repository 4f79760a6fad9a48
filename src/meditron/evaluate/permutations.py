"""Option-order permutations: the same questions with their options in other orders.

A model that chooses by position and not by content changes its answer with the order. The orders of a
question depend on the seed and its id only, are all different, and the published order is the first. Rows of
permuted questions have cache keys of their own and the order in `option_order`.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from math import factorial

from meditron.core.errors import UsageError
from meditron.core.statistics import bootstrap_ratio, wilson_interval
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.rows import QuestionRow
from meditron.store.results import PermutationScore
from meditron.tasks.question import Question

__all__ = ["permute_options", "permuted_sets", "score_orders"]


def permuted_sets(eval_set: EvalSet, permutations: int, seed: int) -> tuple[EvalSet, ...]:
    """Return the evaluation set in `permutations` − 1 further orders of each question's options.

    Raises:
        UsageError: the template does not show the options, or a question has too few orders.
    """
    if permutations == 1:
        return ()
    template = eval_set.task.template
    if "{options}" not in template.question:
        raise UsageError(
            f"permutations = {permutations}: the template '{template.name}' does not show the options, so "
            "their order has no effect",
            hint="choose a template that shows them: letters",
        )
    orders = [permute_options(question, permutations - 1, seed) for question in eval_set.questions]
    return tuple(
        replace(eval_set, questions=tuple(questions), label=f"{eval_set.label} (order {number})")
        for number, questions in enumerate(zip(*orders, strict=True), start=2)
    )


def permute_options(question: Question, count: int, seed: int) -> list[Question]:
    """Return a question with its options in `count` other orders, all different.

    The first orders are the same for a larger count.

    Raises:
        UsageError: the question has fewer orders.
    """
    size = len(question.options)
    if count >= factorial(size):
        raise UsageError(
            f"question {question.id} has {size} options, so {factorial(size)} orders; permutations asks for "
            f"{count + 1}"
        )
    generator = random.Random(f"{seed} {question.id}")  # noqa: S311 (reproducible, not secret)
    identity = tuple(range(size))
    orders = dict.fromkeys([identity])
    while len(orders) <= count:
        orders[tuple(generator.sample(identity, size))] = None
    return [
        replace(
            question,
            options=tuple(question.options[index] for index in order),
            gold=order.index(question.gold),
            option_order=order,
        )
        for order in list(orders)[1:]
    ]


def score_orders(orders: Sequence[Sequence[QuestionRow]], *, seed: int, resamples: int) -> PermutationScore:
    """Compute the scores over all orders.

    Args:
        orders: For each order the rows of one model, the published order first, all in the questions' order.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.
    """
    questions = list(zip(*orders, strict=True))
    n = len(questions)
    right = [sum(row.correct for row in rows) for rows in questions]
    every = sum(count == len(orders) for count in right)
    # Several orders of a question are not independent: questions are resampled, each with all its orders.
    fractions = [count / len(orders) for count in right]
    mean, spread = bootstrap_ratio(fractions, [1.0] * n, seed=seed, resamples=resamples, bounds=(0.0, 1.0))
    return PermutationScore(
        orders=len(orders),
        accuracy=mean,
        interval=spread,
        accuracies=tuple(sum(row.correct for row in rows) / n for rows in orders),
        every_order=every / n,
        every_order_interval=wilson_interval(every, n),
        same_option=sum(len({row.chosen_option for row in rows}) == 1 for rows in questions) / n,
    )
