"""Evaluation results as tables of text, for the run's report, the model card and the terminal."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from meditron.core.statistics import MIN_SAMPLE_SIZE, paired_proportions
from meditron.report import number_format
from meditron.report.methods import tuning_sentence
from meditron.report.number_format import (
    count,
    decimal,
    estimate,
    interval,
    known,
    percent,
    perplexity,
    points,
)
from meditron.report.verdicts import (
    before_and_after,
    difference_format,
    difference_size,
    find_accuracy,
    source_label,
    verdict,
)
from meditron.store.results import Accuracy, Baseline, Comparison, EvaluationResult, TaskScore

__all__ = [
    "ResultTable",
    "calibration_table",
    "difference_table",
    "fidelity_table",
    "held_out_table",
    "overview_table",
    "parent_models",
    "rule_table",
    "score_table",
    "stage_change_table",
    "task_score_table",
]


@dataclass(frozen=True, slots=True)
class ResultTable:
    """A table of texts, to be put on a page, into a model card or on a terminal."""

    caption: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def overview_table(result: EvaluationResult, domains: Mapping[str, str]) -> ResultTable:
    """Return a row per model and baseline and a column per source and task.

    `domains` maps a source to its domain.
    """
    # One column per measure, so that models are compared downward.
    sources, tasks = _source_names(result), _task_names(result)
    headers = [f"{source_label(domains, source)}: perplexity" for source in sources]
    headers += [f"{task}: accuracy, n = {count(_question_count(result, task))}" for task in tasks]
    rows = []
    for name in _row_names(result):
        texts = [result.perplexity.get(name, {}).get(source) for source in sources]
        cells = [estimate(text.perplexity, text.interval, perplexity) if text else "" for text in texts]
        cells += [_accuracy_cell(find_accuracy(result, name, task)) for task in tasks]
        rows.append((name, *cells))
    caption = f"Scores with 95 % intervals (none below n = {MIN_SAMPLE_SIZE})"
    return ResultTable(_with_tuning(caption, result, result.tasks), ("model", *headers), rows)


def held_out_table(result: EvaluationResult, domains: Mapping[str, str]) -> ResultTable:
    """Return every measure of held-out text: a row per source and model."""
    rows = [
        (
            source,
            domains.get(source, ""),
            model,
            _count_with_truncated(text.documents, text.truncated),
            count(text.tokens),
            perplexity(text.perplexity),
            interval(text.interval, perplexity),
            decimal(text.bits_per_byte),
        )
        for source in _source_names(result)
        for model, texts in result.perplexity.items()
        if (text := texts.get(source))
    ]
    headers = ("source", "domain", "model", "documents", "tokens", "perplexity", "95 % interval")
    return ResultTable("Held-out text", (*headers, "bits per byte"), rows)


def rule_table(result: EvaluationResult) -> ResultTable:
    """Return a row per task, model and rule of choosing an option, then the baselines."""
    rows = [
        (
            task,
            model,
            f"{rule}{' (configured)' if rule == score.rule else ''}",
            _count_with_truncated(score.n, score.truncated),
            percent(accuracy.accuracy),
            interval(accuracy.interval, percent),
            percent(accuracy.macro_f1),
            percent(score.option_probability_mass),
        )
        # Every rule is listed and not only the configured one: to pick the best rule afterwards would be
        # biased.
        for task in _task_names(result)
        for model, scores in result.tasks.items()
        if (score := scores.get(task))
        for rule, accuracy in _accuracy_by_rule(score).items()
    ]
    rows += [
        (
            task,
            name,
            "" if baseline.trained_on is None else f"trained on {count(baseline.trained_on)}",
            count(baseline.n),
            percent(baseline.accuracy),
            interval(baseline.interval, percent),
            "",
            "",
        )
        for task, baselines in result.baselines.items()
        for name, baseline in baselines.items()
    ]
    headers = (
        "task",
        "model",
        "rule",
        "n",
        "accuracy",
        "95 % interval",
        "macro-F1",
        "option probability mass",
    )
    caption = _with_tuning("Tasks, by every rule of choosing an option", result, result.tasks)
    return ResultTable(caption, headers, rows)


def task_score_table(task_scores: Sequence[TaskScore], result: EvaluationResult) -> ResultTable:
    """Return the scores of models and baselines on one task."""
    clustered = any(score.clusters for score in task_scores)
    rows = [
        (
            score.model,
            result.engines.get(score.model, ""),
            count(score.n),
            percent(score.accuracy),
            interval(score.interval, percent),
            *_cluster_cell(score, clustered),
            percent(score.macro_f1),
            percent(score.parse_rate),
            percent(score.option_probability_mass),
        )
        for score in task_scores
    ]
    task = task_scores[0].task
    rows += [
        (
            baseline.name,
            "" if baseline.trained_on is None else f"{count(baseline.trained_on)} training rows",
            count(baseline.n),
            percent(baseline.accuracy),
            interval(baseline.interval, percent),
            # A baseline has no clustered interval, macro-F1, parse rate or option probability mass.
            *("",) * (3 + clustered),
        )
        for baseline in result.baselines[task].values()
    ]
    headers = (
        "model",
        "engine",
        "n",
        "accuracy",
        "95 % interval",
        *(["95 % interval, clustered"] if clustered else []),
        "macro-F1",
        "parse rate",
        "option probability mass",
    )
    return ResultTable(_with_tuning("Accuracy", result, [s.model for s in task_scores]), headers, rows)


def calibration_table(result: EvaluationResult) -> ResultTable:
    """Return the calibration of every model on every task; without rows for methods without probabilities."""
    rows = [
        (
            score.task,
            score.model,
            count(score.n),
            estimate(score.calibration.error, score.calibration.error_interval, percent),
            estimate(score.calibration.overconfidence, score.calibration.overconfidence_interval, points),
            percent(score.option_probability_mass),
        )
        for by_task in result.tasks.values()
        for score in by_task.values()
        if score.calibration
    ]
    headers = ("task", "model", "n", "calibration error", "overconfidence, points", "option probability mass")
    caption = _with_tuning("Calibration, with 95 % intervals", result, result.tasks)
    return ResultTable(caption, headers, rows)


def _cluster_cell(score: TaskScore, shown: bool) -> tuple[str, ...]:
    if not shown:
        return ()
    return (f"{interval(score.clustered_interval, percent)} ({count(score.clusters)} clusters)",)


def _with_tuning(caption: str, result: EvaluationResult, models: Iterable[str]) -> str:
    """Return a caption that says if the table has finetuned models beside others."""
    note = tuning_sentence(result, models)
    return f"{caption}. {note.removesuffix('.')}" if note else caption


def score_table(result: EvaluationResult) -> ResultTable:
    """Return the scores of every task with the settings that they were measured with."""
    rows = [
        (
            score.task,
            score.model,
            known(result.engines.get(score.model)),
            score.method,
            known(score.template),
            known(score.prompt_form),
            known(score.shots),
            known(None) if score.truncated is None else f"{score.truncated} of {score.n}",
            percent(score.accuracy),
            interval(score.interval, percent),
            percent(score.parse_rate),
            percent(score.option_probability_mass),
        )
        for by_task in result.tasks.values()
        for score in by_task.values()
    ]
    settings = ("task", "model", "engine", "method", "template", "prompt form", "shots", "truncated")
    headers = (*settings, "accuracy", "95 % interval", "parse rate", "option probability mass")
    return ResultTable(_with_tuning("Scores", result, result.tasks), headers, rows)


def difference_table(comparisons: Sequence[Comparison]) -> ResultTable:
    """Return a row per paired difference, with the verdict on b.

    If all rows compare the same two models, the caption names them instead of a column.
    """
    pairs = dict.fromkeys((comparison.a, comparison.b) for comparison in comparisons)
    rows = [
        (
            comparison.what,
            *((f"{comparison.b} − {comparison.a}",) if len(pairs) > 1 else ()),
            count(comparison.n),
            estimate(comparison.difference, comparison.interval, difference_format(comparison)),
            number_format.probability(comparison.p),
            "" if comparison.p_adjusted is None else number_format.probability(comparison.p_adjusted),
            difference_size(comparison, comparison.detectable) if comparison.detectable else "",
            "identical" if _all_answers_equal(comparison) else verdict(comparison),
        )
        for comparison in comparisons
    ]
    columns = ("b − a",) if len(pairs) > 1 else ()
    headers = ("measure", *columns, "n", "difference, 95 % interval", "p", "adjusted p")
    names = "".join(f" (a: {a}, b: {b})" for a, b in pairs) if len(pairs) == 1 else ""
    caption = (
        f"Paired differences b − a{names}: log-loss in nats by document, accuracy in percentage points by "
        "question"
    )
    if (family := max((comparison.family for comparison in comparisons), default=0)) > 1:
        caption += f"; verdicts by p adjusted for {family} comparisons (Holm)"
    return ResultTable(caption, (*headers, "smallest detectable", "verdict on b"), rows)


def parent_models(result: EvaluationResult, inputs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Map each evaluated model to the evaluated model that its stage started from.

    Args:
        result: The evaluation.
        inputs: Stage name → input name → the reference that the recipe gives for the input.
    """
    models = dict.fromkeys([*result.perplexity, *result.tasks])
    parents = {}
    for model in models:
        stage_inputs = inputs.get(model.partition(":")[0], {})
        references = [stage_inputs[key] for key in ("model", "base") if key in stage_inputs]
        # A reference that names no stage is the recipe's base model, which evaluations call `base`.
        parent = next((text if text.partition(":")[0] in inputs else "base" for text in references), None)
        if parent in models:
            parents[model] = str(parent)
    return parents


def stage_change_table(result: EvaluationResult, parents: Mapping[str, str]) -> ResultTable:
    """Return each measure before and after each stage, with the difference.

    `parents` is the result of `parent_models`.
    """
    compared = {(d.a, d.b, d.task or d.source): d for d in result.differences}
    rows = []
    for model, parent in parents.items():
        # The values are shown even if the pair was not compared; only the difference needs a paired test.
        for measure, name, before, after in before_and_after(result, parent, model):
            comparison = compared.get((parent, model, name))
            difference, judged = "not compared", ""
            if comparison:
                form = difference_format(comparison)
                difference = estimate(comparison.difference, comparison.interval, form)
                judged = verdict(comparison)
            rows.append(
                (f"{parent} → {model}", f"{name}: {measure.lower()}", before, after, difference, judged)
            )
    headers = ("stage", "measure", "before", "after", "difference, 95 % interval", "verdict")
    return ResultTable("Change made by each stage", headers, rows)


def fidelity_table(result: EvaluationResult) -> ResultTable:
    """Return the distance of models' predictions from those of their references."""
    rows = [
        (
            f"{pair.model} against {pair.against}",
            pair.source,
            _count_with_truncated(pair.documents, pair.truncated),
            count(pair.n_tokens),
            estimate(pair.perplexity_ratio, pair.intervals.get("perplexity_ratio"), number_format.ratio),
            estimate(pair.kl_mean, pair.intervals.get("kl_mean"), decimal),
            decimal(pair.kl_99),
            estimate(pair.top_agreement, pair.intervals.get("top_agreement"), percent),
        )
        for pair in result.fidelity
    ]
    # The caption names the engines, because fidelity depends on the arithmetic that ran the files.
    engines = dict.fromkeys(
        result.engines[pair.model] for pair in result.fidelity if pair.model in result.engines
    )
    caption = "; ".join(("Fidelity on held-out text in float32, with 95 % intervals", *engines))
    headers = ("model", "source", "documents", "tokens", "perplexity ratio", "mean KL, nats")
    return ResultTable(caption, (*headers, "99th percentile of KL", "same top token"), rows)


def _row_names(result: EvaluationResult) -> list[str]:
    """Return the names of the rows: models, each with its other scoring rules if compared, then baselines."""
    # `base (calibrated)` is base, scored by another rule than the configured one.
    compared = {name for comparison in result.differences for name in (comparison.a, comparison.b)}
    names = []
    for model in dict.fromkeys([*result.perplexity, *result.tasks]):
        rule_names = {rule for score in result.tasks.get(model, {}).values() for rule in score.rules}
        names += [model, *(n for rule in sorted(rule_names) if (n := f"{model} ({rule})") in compared)]
    return [*names, *dict.fromkeys(name for baselines in result.baselines.values() for name in baselines)]


def _all_answers_equal(comparison: Comparison) -> bool:
    """Return True if no question was answered correctly by one model only.

    The discordant questions are not recorded, but only without any is the interval the narrowest one for n.
    """
    if not comparison.task or comparison.difference or comparison.interval is None:
        return False
    narrowest = paired_proportions(0, 0, comparison.n).interval
    return narrowest is not None and math.isclose(comparison.interval[1], narrowest[1], rel_tol=1e-9)


def _accuracy_cell(score: Accuracy | Baseline | None) -> str:
    return "" if score is None else estimate(score.accuracy, score.interval, percent)


def _accuracy_by_rule(score: TaskScore) -> dict[str, Accuracy]:
    """Return the accuracy by rule; a method that compares no options has one entry under its own name."""
    return {str(rule): accuracy for rule, accuracy in score.rules.items()} or {score.method: score}


def _count_with_truncated(n: int, truncated: int | None) -> str:
    return f"{count(n)} ({count(truncated)} truncated)" if truncated else count(n)


def _source_names(result: EvaluationResult) -> list[str]:
    return list(dict.fromkeys(source for texts in result.perplexity.values() for source in texts))


def _task_names(result: EvaluationResult) -> list[str]:
    # A task can have baselines although no model was scored on it.
    scored = (task for by_task in result.tasks.values() for task in by_task)
    return list(dict.fromkeys([*scored, *result.baselines]))


def _question_count(result: EvaluationResult, task: str) -> int:
    counts = [by_task[task].n for by_task in result.tasks.values() if task in by_task]
    return max([*counts, *(baseline.n for baseline in result.baselines.get(task, {}).values())])
