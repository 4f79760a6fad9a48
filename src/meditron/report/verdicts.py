"""Paired differences as verdicts and sentences."""

from collections.abc import Callable, Iterator, Mapping

from meditron.core.statistics import MIN_SAMPLE_SIZE
from meditron.core.units import format_count
from meditron.report import number_format
from meditron.report.methods import LEVEL
from meditron.store.manifest import Manifest
from meditron.store.results import Accuracy, Baseline, Comparison, EvaluationResult

__all__ = [
    "TOO_FEW",
    "before_and_after",
    "describe_comparison",
    "difference_format",
    "difference_size",
    "find_accuracy",
    "interval_and_p",
    "source_domains",
    "source_label",
    "verdict",
]

TOO_FEW = "too few to compare"
_TASK_VERBS = {
    "better": "answers more questions correctly than",
    "worse": "answers fewer questions correctly than",
}
_TEXT_VERBS = {"better": "predicts better than", "worse": "predicts worse than"}


def verdict(comparison: Comparison) -> str:
    """Return the verdict on the second model of a comparison.

    Returns:
        `better` or `worse` if the adjusted p is below 5 % and the intervals that there are exclude zero;
        `identical` if no document differs; `too few to compare` below 6; else `undecided`.
    """
    if comparison.n < MIN_SAMPLE_SIZE:
        return TOO_FEW
    if comparison.interval is None and comparison.difference == 0:
        return "identical"
    low, high = comparison.interval or (comparison.difference, comparison.difference)
    # Both conditions are required, because the interval and the test are different methods and may disagree
    # near the threshold.
    if low <= 0 <= high or _adjusted_p(comparison) >= LEVEL:
        return "undecided"
    # Questions on one passage are not independent, so the interval over passages must agree.
    if (
        comparison.clustered_interval
        and comparison.clustered_interval[0] <= 0 <= comparison.clustered_interval[1]
    ):
        return "undecided"
    return "better" if (comparison.difference > 0) == (comparison.task is not None) else "worse"


def describe_comparison(comparison: Comparison, result: EvaluationResult, domains: Mapping[str, str]) -> str:
    """Describe a paired difference in a sentence that claims no more than its verdict."""
    a, b, judged = comparison.a, comparison.b, verdict(comparison)
    if comparison.task:
        scope = f"On {format_count(comparison.n, 'questions')} of {comparison.task}"
        measure, unit, verbs = "accuracy", "percentage points", _TASK_VERBS
    else:
        label = source_label(domains, comparison.source) if comparison.source else comparison.what
        scope = f"On {format_count(comparison.n, 'held-out documents')} of {label}"
        measure, unit, verbs = "log-loss", "nats", _TEXT_VERBS
    # The name of the measure lists in brackets the settings that differ between the models, first a's value.
    if unlike := comparison.what.partition(" [")[2].removesuffix("]"):
        scope += f", measured differently ({unlike}; {a} / {b})"
    value = f"{difference_format(comparison)(comparison.difference)} {unit}"
    if judged == TOO_FEW:
        return f"{scope}, the {measure} of {b} differs from {a} by {value}: too few for a verdict."
    if judged == "identical":
        return f"{scope}, {b} and {a} are identical: no document differs."
    value += interval_and_p(comparison)
    if judged == "undecided":
        detectable = (
            f"; a difference of {difference_size(comparison, comparison.detectable)} would be detected with "
            "80 % power"
            if comparison.detectable
            else ""
        )
        return f"{scope}, no difference between {b} and {a} is shown: {value}{detectable}."
    values = _before_and_after_sentence(comparison, result)
    return f"{scope}, {b} {verbs[judged]} {a}: {measure} differs by {value}.{values}"


def interval_and_p(comparison: Comparison) -> str:
    """Return the interval and p: `, 95 % interval −0.3 to −0.1, p = 0.012 (adjusted for 8 comparisons)`."""
    ends = [difference_format(comparison)(end) for end in comparison.interval or ()]
    interval = f", 95 % interval {' to '.join(ends)}" if ends else ""
    p = number_format.probability(_adjusted_p(comparison))
    family = f" (adjusted for {comparison.family} comparisons)" if comparison.family > 1 else ""
    return f"{interval}, p {p if p.startswith('<') else f'= {p}'}{family}"


def before_and_after(result: EvaluationResult, a: str, b: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield (measure, source or task, value of `a`, value of `b`) for each measure that both have."""
    for source in dict.fromkeys(source for scores in result.perplexity.values() for source in scores):
        texts = [result.perplexity.get(model, {}).get(source) for model in (a, b)]
        if all(texts):
            before, after = (number_format.perplexity(text.perplexity) for text in texts if text)
            yield "Perplexity", source, before, after
    tasks = (task for scores in result.tasks.values() for task in scores)
    for task in dict.fromkeys([*tasks, *result.baselines]):
        accuracies = [find_accuracy(result, model, task) for model in (a, b)]
        if all(accuracies):
            before, after = (number_format.percent(score.accuracy) for score in accuracies if score)
            yield "Accuracy", task, before, after


def find_accuracy(result: EvaluationResult, name: str, task: str) -> Accuracy | Baseline | None:
    """Return the score of a model, of a model by a rule (`base (calibrated)`), or of a baseline."""
    if name in result.baselines.get(task, {}):
        return result.baselines[task][name]
    # A name that is neither a model nor a baseline is `MODEL (RULE)`.
    model, _, rule = name.removesuffix(")").partition(" (")
    score = result.tasks.get(name, result.tasks.get(model, {})).get(task)
    if score is None or not rule:
        return score
    return next((accuracy for known, accuracy in score.rules.items() if known == rule), None)


def source_domains(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield each source with its domain, from the recipe's source tables."""
    sources = manifest.config.get("sources")
    for name, source in sources.items() if isinstance(sources, dict) else ():
        if isinstance(source, dict) and "domain" in source:
            yield name, str(source["domain"])


def source_label(domains: Mapping[str, str], source: str) -> str:
    """Return a source with its domain: `pubmed (medical)`."""
    return f"{source} ({domains[source]})" if domains.get(source) else source


def difference_format(comparison: Comparison) -> Callable[[float], str]:
    """Return the number format of a difference: percentage points of accuracy, or nats."""
    return number_format.points if comparison.task else number_format.nats


def difference_size(comparison: Comparison, value: float) -> str:
    """Format the size of a difference, without a sign."""
    if comparison.task:
        return number_format.points(value).removeprefix("+")
    return number_format.decimal(value)


def _adjusted_p(comparison: Comparison) -> float:
    return comparison.p if comparison.p_adjusted is None else comparison.p_adjusted


def _before_and_after_sentence(comparison: Comparison, result: EvaluationResult) -> str:
    kind = ("Accuracy", comparison.task) if comparison.task else ("Perplexity", comparison.source)
    return next(
        (
            f" {measure} goes from {before} to {after}."
            for measure, name, before, after in before_and_after(result, comparison.a, comparison.b)
            if (measure, name) == kind
        ),
        "",
    )
