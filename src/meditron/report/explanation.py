"""Explanations of a difference between two results of one model, as tables and sentences."""

from meditron.report import number_format
from meditron.report.evaluation_tables import ResultTable
from meditron.report.number_format import count, percent, points
from meditron.store.explanations import Explanation, FactorEffect

__all__ = ["effect_table", "explanation_sentence", "flip_table"]

_SHOWN = 20  # questions in the table of flips


def explanation_sentence(explanation: Explanation) -> str:
    """Return the difference and the factor with the largest effect in one sentence."""
    a, b = percent(explanation.accuracy_a), percent(explanation.accuracy_b)
    start = (
        f"{explanation.task}: {a} on {count(explanation.n_a)} questions and {b} on {count(explanation.n_b)}, "
        f"a difference of {points(explanation.difference)} points"
    )
    if not explanation.effects:
        return f"{start}. No setting differs."
    largest = max(explanation.effects, key=lambda effect: abs(effect.difference))
    if not largest.difference:
        if any(effect.gained or effect.lost for effect in explanation.effects):
            return f"{start}: as many answers became right as wrong; see the table for the settings."
        return f"{start}. Settings that differ without an effect: {', '.join(explanation.factors)}."
    if len(explanation.effects) == 1:
        return f"{start}, all of it from {' and '.join(largest.factors)}."
    return (
        f"{start}; the largest part, {points(largest.difference)}, is from {' and '.join(largest.factors)}."
    )


def effect_table(explanation: Explanation) -> ResultTable:
    """Return a row per factor: what changes, the questions that flip, the difference and its test."""
    rows = [
        (
            " + ".join(effect.factors),
            "; ".join(effect.changes),
            count(effect.n),
            f"{percent(effect.before)} → {percent(effect.after)}",
            str(effect.gained),
            str(effect.lost),
            _difference(effect),
            "" if effect.p is None else number_format.probability(effect.p),
            "" if effect.p_adjusted is None else number_format.probability(effect.p_adjusted),
        )
        for effect in explanation.effects
    ]
    headers = ("factor", "a / b", "questions", "accuracy", "gained", "lost")
    return ResultTable(
        f"Why {explanation.b} differs from {explanation.a} on {explanation.task}: one factor after the "
        "other, in "
        "percentage points",
        (*headers, "difference, 95 % interval", "p", "adjusted p"),
        rows,
    )


def _difference(effect: FactorEffect) -> str:
    if effect.interval is None:
        return points(effect.difference)
    return number_format.estimate(effect.difference, effect.interval, points)


def flip_table(explanation: Explanation) -> ResultTable:
    """Return the questions that are right in only one of the two results, with the factor that flips each."""
    flips = [
        (" + ".join(effect.factors), flip)
        for effect in explanation.effects
        for flip in effect.flips
        if flip.effect != "both wrong"
    ]
    rows = [
        (flip.id, factor, flip.effect, *map(_option, (flip.gold, flip.before, flip.after)))
        for factor, flip in flips[:_SHOWN]
    ]
    caption = "Questions that a factor makes right (gained) or wrong (lost); options are numbered from 0"
    if len(flips) > _SHOWN:
        caption += f"; the first {_SHOWN} of {count(len(flips))} (all: --json)"
    return ResultTable(caption, ("question", "factor", "effect", "gold", "before", "after"), rows)


def _option(option: int | None) -> str:
    return "none" if option is None else str(option)
