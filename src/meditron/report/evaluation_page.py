"""The report page of an evaluate stage."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from meditron.report import evaluation_tables, methods
from meditron.report.charts import interval_chart, reliability_chart
from meditron.report.contamination import CONTAMINATION, contamination_table
from meditron.report.evaluation_tables import ResultTable
from meditron.report.number_format import known, percent
from meditron.report.pages import Link, Page
from meditron.report.robustness import all_scores, robustness_tables
from meditron.report.rubrics import add_rubrics
from meditron.store.results import Comparison, EvaluationResult, Perplexity, TaskScore

__all__ = ["write_evaluation_page"]


def write_evaluation_page(
    path: Path, result: EvaluationResult, question_pages: Mapping[str, str] | None = None
) -> None:
    """Write the page: scores, charts of their intervals, paired differences, methods and data.

    Args:
        path: The page.
        result: The results.
        question_pages: Rows file of a task → the page of its questions, in the same folder.
    """
    page = Page("Evaluation", "Held-out text, tasks and fidelity, with 95 % intervals")
    _add_perplexity(page, result)
    _add_tasks(page, result, question_pages or {})
    add_rubrics(page, result)
    _add_fidelity(page, result)
    _add_differences(page, result)
    _add_methods(page, result)
    page.write(path)


def _add_perplexity(page: Page, result: EvaluationResult) -> None:
    page.section("Perplexity")
    table = evaluation_tables.held_out_table(result, {})
    # The stage's results have no domains, so the column would be empty.
    places = [place for place, header in enumerate(table.headers) if header != "domain"]
    page.table(
        [table.headers[place] for place in places], [[row[place] for place in places] for row in table.rows]
    )
    for source, scores in _perplexity_by_source(result).items():
        rows = [(score.model, score.perplexity, score.interval) for score in scores]
        page.figure(interval_chart(rows, "perplexity"), f"{source}: perplexity with its 95 % interval")


def _add_tasks(page: Page, result: EvaluationResult, question_pages: Mapping[str, str]) -> None:
    if not result.tasks:
        return
    for task in result.baselines:
        scores = [by_task[task] for by_task in result.tasks.values() if task in by_task]
        page.section(f"Task {task}")
        table = evaluation_tables.task_score_table(scores, result)
        page.table(table.headers, table.rows)
        if questions := question_pages.get(scores[0].rows):
            page.links([Link("Every question with its answers", questions)])
        _add_accuracy_chart(page, scores, result)
        for score in scores:
            # The counts show whether a model prefers one option whatever the question is.
            if score.classes:
                headers = (f"{score.model}: gold", *score.classes, "none")
                counts = [(name, *row) for name, row in zip(score.classes, score.confusion, strict=True)]
                page.table(headers, counts, "Questions by gold class (row) and answer (column)")
        page.text(methods.answer_choice_sentence(scores[0]))
        page.key_values(_task_settings(scores[0]))
    _add_calibration(page, result)
    contamination = contamination_table(result)
    if contamination.rows:
        page.section("Questions in the training corpus")
        _add_table(page, contamination)
        page.text(CONTAMINATION)
    if tables := robustness_tables(result):
        page.section("Option order and known errors")
        for table in tables:
            _add_table(page, table)
        sources = {source for score in all_scores(result) if score.errata for source in score.errata.sources}
        page.text(" ".join(f"Known errors: {source}." for source in sorted(sources)))
    page.section("Every rule")
    _add_table(page, evaluation_tables.rule_table(result))


def _add_calibration(page: Page, result: EvaluationResult) -> None:
    table = evaluation_tables.calibration_table(result)
    if not table.rows:
        return
    page.section("Calibration")
    _add_table(page, table)
    for task in dict.fromkeys(task for by_task in result.tasks.values() for task in by_task):
        series = {
            model: [(each.confidence, each.accuracy, each.interval) for each in calibration.bins]
            for model, by_task in result.tasks.items()
            if task in by_task and (calibration := by_task[task].calibration)
        }
        if series:
            caption = f"{task}: accuracy of answers by their probability, with 95 % intervals"
            page.figure(reliability_chart(series), caption)
    page.text(methods.CALIBRATION)


def _add_accuracy_chart(page: Page, scores: Sequence[TaskScore], result: EvaluationResult) -> None:
    baselines = result.baselines[scores[0].task]
    rows = [(score.model, score.accuracy, score.interval) for score in scores]
    # Only trained baselines are drawn: the others give a constant answer, which the line represents.
    rows += [(b.name, b.accuracy, b.interval) for b in baselines.values() if b.trained_on]
    # The best fixed position is the accuracy that needs no knowledge at all.
    best_position = baselines["position"].accuracy
    caption = f"Accuracy with its 95 % interval; the line is the best position, {percent(best_position)}"
    rows = [(name, 100 * value, ends and (100 * ends[0], 100 * ends[1])) for name, value, ends in rows]
    page.figure(interval_chart(rows, "accuracy, %", reference=100 * best_position), caption)


def _task_settings(score: TaskScore) -> dict[str, object]:
    return {
        "task version": known(score.version),
        "template": known(score.template),
        "method": score.method,
        "prompt form": known(score.prompt_form),
        "shots": f"{known(score.shots)} {' '.join(score.shot_ids)}",
        "prompts truncated": f"{known(score.truncated)} of {score.n}",
        "repeated questions": score.repeated,
        "ties": score.ties,
        "data": score.data if score.split is None else f"{score.data}, split {score.split}",
        "SHA-256 of the prompts": known(score.prompt_sha256),
        "SHA-256 of the questions": score.data_sha256,
        "rows": score.rows,
    }


def _add_fidelity(page: Page, result: EvaluationResult) -> None:
    if not result.fidelity:
        return
    page.section("Fidelity")
    _add_table(page, evaluation_tables.fidelity_table(result))
    rows = [
        (f"{f.model} against {f.against}, {f.source}", f.perplexity_ratio, f.intervals["perplexity_ratio"])
        for f in result.fidelity
    ]
    caption = "Perplexity ratio; at 1 both models predict the text equally well"
    page.figure(interval_chart(rows, "perplexity ratio", reference=1), caption)


def _add_differences(page: Page, result: EvaluationResult) -> None:
    if not result.differences:
        return
    page.section("Paired differences")
    _add_table(page, evaluation_tables.difference_table(result.differences))
    if note := methods.tuning_sentence(result, dict.fromkeys([*result.perplexity, *result.tasks])):
        page.text(note)
    # Log-loss and accuracy have separate charts, because better is on opposite sides of zero.
    _add_difference_chart(page, [d for d in result.differences if not d.task], "nats of log-loss", "below")
    _add_difference_chart(page, [d for d in result.differences if d.task], "percentage points", "above")


def _add_difference_chart(page: Page, comparisons: Sequence[Comparison], unit: str, better: str) -> None:
    if comparisons:
        factor = 100 if comparisons[0].task else 1  # accuracies are printed in percentage points
        rows = [
            (
                f"{d.b} − {d.a}, {d.source or d.task}",
                factor * d.difference,
                d.interval and (factor * d.interval[0], factor * d.interval[1]),
            )
            for d in comparisons
        ]
        chart = interval_chart(rows, f"difference, {unit}", reference=0)
        page.figure(chart, f"Paired differences b − a; {better} zero b is better")


def _add_methods(page: Page, result: EvaluationResult) -> None:
    page.section("Methods")
    page.text(methods.PERPLEXITY)
    if result.tasks:
        page.text(
            f"{methods.ACCURACY} {methods.PROMPTS} {methods.OPTION_PROBABILITY_MASS} {methods.BASELINES}"
        )
    if any(score.clusters for by_task in result.tasks.values() for score in by_task.values()):
        page.text(methods.CLUSTERS)
    if result.fidelity:
        page.text(methods.FIDELITY)
    if result.differences:
        page.text(f"{methods.DIFFERENCE} {methods.DETECTABLE}")
    page.text(f"{methods.VERDICT} {methods.INTERVALS}")
    page.text(
        f"{methods.evaluation_settings_sentence(result)} Scores of every document are in {result.rows}."
    )
    if truncated := methods.truncation_sentence(result):
        page.text(truncated)
    page.table(("model", "engine"), list(result.engines.items()))
    page.table(("model", "training data"), [(name, data.statement) for name, data in result.ancestry.items()])
    page.table(
        ("source", "SHA-256 of the documents' ids and texts", "documents truncated"),
        [
            (s, scores[0].data_sha256, scores[0].truncated)
            for s, scores in _perplexity_by_source(result).items()
        ],
    )


def _add_table(page: Page, table: ResultTable) -> None:
    page.table(table.headers, table.rows, table.caption)


def _perplexity_by_source(result: EvaluationResult) -> dict[str, list[Perplexity]]:
    sources = sorted({source for scores in result.perplexity.values() for source in scores})
    return {s: [scores[s] for scores in result.perplexity.values() if s in scores] for s in sources}
