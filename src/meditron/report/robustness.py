"""Tables of scores over several option orders or seeds, and of scores without a benchmark's known errors."""

from collections.abc import Iterator

from meditron.core.statistics import MIN_SAMPLE_SIZE
from meditron.report.evaluation_tables import ResultTable
from meditron.report.number_format import count, interval, percent, points
from meditron.store.results import EvaluationResult, TaskScore

__all__ = ["all_scores", "errata_table", "order_table", "robustness_tables", "seed_table"]


def robustness_tables(result: EvaluationResult) -> list[ResultTable]:
    """Return the tables of this module that have rows."""
    tables = (order_table(result), seed_table(result), errata_table(result))
    return [table for table in tables if table.rows]


def order_table(result: EvaluationResult) -> ResultTable:
    """Return the scores over several orders of the options; without rows if there was one order only."""
    rows = [
        (
            score.task,
            score.model,
            str(orders.orders),
            percent(orders.accuracy),
            interval(orders.interval, percent),
            f"{percent(min(orders.accuracies))} to {percent(max(orders.accuracies))}",
            percent(orders.every_order),
            interval(orders.every_order_interval, percent),
            percent(orders.same_option),
        )
        for score in all_scores(result)
        if (orders := score.permutations)
    ]
    caption = "Accuracy over several orders of the options; the published order is one of them"
    headers = (
        *("task", "model", "orders", "mean accuracy", "95 % interval", "by order"),
        *("right in every order", "95 % interval", "same option in every order"),
    )
    return ResultTable(caption, headers, rows)


def seed_table(result: EvaluationResult) -> ResultTable:
    """Return the scores over several seeds; without rows if there was one seed only."""
    rows = [
        (
            score.task,
            score.model,
            str(len(seeds.seeds)),
            percent(seeds.accuracy),
            points(seeds.deviation),
            interval(seeds.interval, percent),
            interval(seeds.question_interval, percent),
            f"{percent(min(seeds.accuracies))} to {percent(max(seeds.accuracies))}",
            percent(seeds.same_option),
        )
        for score in all_scores(result)
        if (seeds := score.seeds)
    ]
    caption = (
        "Accuracy over several seeds of the examples and of sampled answers. The spread between seeds is for "
        f"these questions (interval from {MIN_SAMPLE_SIZE} seeds); the interval within resamples questions"
    )
    headers = (
        *("task", "model", "seeds", "mean accuracy", "standard deviation, points"),
        *("95 % interval between seeds", "95 % interval within", "by seed", "same option with every seed"),
    )
    return ResultTable(caption, headers, rows)


def errata_table(result: EvaluationResult) -> ResultTable:
    """Return the scores without questions that are known to be wrong or unclear.

    Without rows if no evaluated question is known to be.
    """
    rows = [
        (
            score.task,
            score.model,
            percent(score.accuracy),
            count(sum(errata.questions.values())),
            ", ".join(f"{kind} {count(number)}" for kind, number in errata.questions.items()),
            count(errata.without.n),
            percent(errata.without.accuracy),
            interval(errata.without.interval, percent),
        )
        for score in all_scores(result)
        if (errata := score.errata) and errata.without
    ]
    caption = "Accuracy without questions that are known to be wrong or unclear"
    headers = ("task", "model", "accuracy", "left out", "reasons", "n", "accuracy without", "95 % interval")
    return ResultTable(caption, headers, rows)


def all_scores(result: EvaluationResult) -> Iterator[TaskScore]:
    """Iterate over the scores of all models and tasks."""
    return (score for scores in result.tasks.values() for score in scores.values())
