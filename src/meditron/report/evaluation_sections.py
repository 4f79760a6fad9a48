"""The report's sections on tasks and on fidelity."""

from meditron.report import evaluation_tables, number_format
from meditron.report.charts import intervals
from meditron.report.pages import Page
from meditron.store.results import EvaluationResult, TaskScore

__all__ = ["add_fidelity", "add_tasks"]

_RULES = {
    "sum": "the log-probability of its tokens is highest",
    "bytes": "the log-probability of its tokens, by the bytes of its text, is highest",
    "calibrated": "its log-probability gains most over what it has without the question",
}
_HOW = (
    "Prompt and option meet in tokens as in lm-eval, and the softmax is float32. An accuracy's interval is "
    "Wilson's; macro-F1 is the mean over the options. Answer mass is the mean probability that the next "
    "token begins one of the options: where it is small, the model was asked about a small part of what it "
    "would say. Majority and position know the test's own answers: always the commonest, always the best "
    "place. Naive Bayes counts words of the training rows. A difference is over the same questions."
)
_FIDELITY = (
    "Both models predict every token of the same held-out documents, in float32. The perplexity ratio is the "
    "model's by the other's; KL is KL(other ‖ model) of each token's distribution, in nats; the same top "
    "token is the share of tokens where both find the same one likeliest. Intervals are bootstrap-t "
    "over documents."
)


def add_tasks(page: Page, result: EvaluationResult) -> None:
    """A section a task: table, intervals with the baselines, confusion, and how it was asked."""
    if not result.tasks:
        return
    for task in result.baselines:
        scores = [found[task] for found in result.tasks.values() if task in found]
        page.section(f"Task {task}")
        page.table(*_table(scores, result))
        _draw(page, scores, result)
        for score in scores:
            _confusion(page, score)
        _asked(page, scores[0])
    page.section("Every rule")
    table = evaluation_tables.rules(result)
    page.table(table.headers, table.rows, caption=table.caption)
    page.text(_HOW)


def _table(
    scores: list[TaskScore], result: EvaluationResult
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows: list[tuple[str, ...]] = [
        (
            score.model,
            result.engines.get(score.model, ""),
            number_format.count(score.n),
            number_format.percent(score.accuracy),
            number_format.interval(score.interval, number_format.percent),
            number_format.percent(score.macro_f1),
            number_format.percent(score.parse_rate),
            number_format.percent(score.option_probability_mass),
        )
        for score in scores
    ]
    for baseline in result.baselines[scores[0].task].values():
        accuracy = number_format.percent(baseline.accuracy)
        around = number_format.interval(baseline.interval, number_format.percent)
        learned = (
            "" if baseline.trained_on is None else f"{number_format.count(baseline.trained_on)} training rows"
        )
        rows.append((baseline.name, learned, number_format.count(baseline.n), accuracy, around, "", "", ""))
    headers = ("model", "run by", "n", "accuracy", "95 % interval", "macro-F1", "parse rate", "answer mass")
    return headers, rows


def _draw(page: Page, scores: list[TaskScore], result: EvaluationResult) -> None:
    baselines = result.baselines[scores[0].task]
    rows = [(score.model, score.accuracy, score.interval) for score in scores]
    rows += [(b.name, b.accuracy, b.interval) for b in baselines.values() if b.trained_on]
    always = baselines["position"].accuracy
    caption = (
        f"accuracy with its 95 % interval; the line is the best position, {number_format.percent(always)}"
    )
    page.figure(intervals(rows, "accuracy", reference=always), caption)


def _confusion(page: Page, score: TaskScore) -> None:
    if not score.classes:
        return
    headers = (f"{score.model}: gold", *score.classes, "none")
    rows = [(name, *row) for name, row in zip(score.classes, score.confusion, strict=True)]
    page.table(headers, rows, caption="questions by gold class (row) and answer (column)")


def _asked(page: Page, score: TaskScore) -> None:
    """How the task was asked, in one place."""
    chosen = (
        "The likeliest token of the whole vocabulary is the answer; one that names no option is wrong."
        if score.rule is None
        else f"The option is chosen of which {_RULES[score.rule]}."
    )
    page.text(chosen)
    facts = {
        "task version": score.version,
        "template": score.template,
        "method": score.method,
        "prompt form": score.prompt_form,
        "shots": f"{score.shots} {' '.join(score.shot_ids)}",
        "prompts truncated": f"{score.truncated} of {score.n}",
        "repeated questions": score.repeated,
        "ties": score.ties,
        "data": score.data if score.split is None else f"{score.data}, split {score.split}",
        "SHA-256 of the prompts": score.prompt_sha256,
        "SHA-256 of the questions": score.data_sha256,
        "rows": score.rows,
    }
    page.key_values(facts)


def add_fidelity(page: Page, result: EvaluationResult) -> None:
    """One model against another, source by source."""
    if not result.fidelity:
        return
    page.section("Fidelity")
    table = evaluation_tables.fidelity(result)
    page.table(table.headers, table.rows, caption=table.caption)
    rows = [
        (f"{f.model} against {f.against}, {f.source}", f.perplexity_ratio, f.intervals["perplexity_ratio"])
        for f in result.fidelity
    ]
    page.figure(intervals(rows, "perplexity ratio", reference=1), "one: both predict the text equally well")
    page.text(_FIDELITY)
