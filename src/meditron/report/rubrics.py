"""Tables of rubric scores, and the page of a set of rubrics with its answers and the verdicts on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meditron.report.charts import interval_chart
from meditron.report.evaluation_tables import ResultTable
from meditron.report.methods import INTERVALS
from meditron.report.number_format import count, decimal, estimate, interval, percent, points, probability
from meditron.report.pages import Page
from meditron.report.verdicts import verdict
from meditron.store.results import Comparison, EvaluationResult
from meditron.store.rubric_results import HumanAgreement, RubricScore

__all__ = [
    "JUDGES",
    "METHOD",
    "MOST_ANSWERS",
    "AnswerView",
    "CriterionView",
    "add_rubrics",
    "rubric_difference_table",
    "rubric_tables",
    "rubric_tables_by_set",
    "write_rubric_page",
]

MOST_ANSWERS = 100
"""Number of conversations whose answers a page shows; a browser opens a page of thousands slowly."""
_LONGEST_REASON = 600  # characters
METHOD = (
    "An answer's score is its achieved points divided by the possible positive points; the score is "
    "the mean over conversations, limited to the range 0 to 1 (HealthBench, arXiv 2505.08775). Intervals are "
    "bootstraps over "
    "conversations. A criterion without a verdict is in neither sum; the bounds are the lowest and "
    "highest score "
    "that any verdicts in place of the missing ones would give. The score of a tag of criteria counts "
    "only these criteria in each conversation."
)
JUDGES = (
    "A judge is a language model and makes errors: compare scores only if the judges, their prompts "
    "and their "
    "settings are equal. Kappa (Cohen) and alpha (Krippendorff) are 1 for equal verdicts and 0 for the "
    "agreement of chance."
)
HUMANS = (
    "The rate of criteria met is corrected for the judge's errors on the labelled criteria: by its "
    "sensitivity and specificity (Rogan and Gladen 1978), and by its mean difference from the labels "
    "(prediction-powered inference, "
    "arXiv 2301.09633). Both assume that the labelled criteria are a random sample."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CriterionView:
    """A criterion of an answer, as a page shows it."""

    text: str
    points: float
    tags: Sequence[str]
    credit: float | None
    """Share of the points that the answer gets; None without a verdict."""
    verdicts: Mapping[str, bool | None]
    """Judge → its verdict."""
    reasons: Mapping[str, str]
    """Judge → its last text."""
    human: bool | None = None
    """The human verdict, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerView:
    """An answer with its conversation and criteria, as a page shows it."""

    id: str
    model: str
    messages: Sequence[Mapping[str, str]]
    answer: str
    score: float | None
    tags: Sequence[str]
    criteria: Sequence[CriterionView]


def rubric_tables(scores: Sequence[RubricScore]) -> list[ResultTable]:
    """Return the tables of scores of one set of rubrics that have rows: scores, tags, judges, agreement."""
    tables = (
        _score_table(scores),
        _group_table(scores),
        _judge_table(scores),
        _pair_table(scores),
        *_human_tables(scores),
    )
    return [table for table in tables if table.rows]


def _score_table(scores: Sequence[RubricScore]) -> ResultTable:
    rows = [
        (
            score.model,
            count(score.n),
            _estimate(score.score, score.interval),
            f"{percent(score.bounds[0])} to {percent(score.bounds[1])}",
            count(score.criteria),
            percent(score.met_rate),
            f"{count(score.missing)} ({count(score.tied)} tied)" if score.tied else count(score.missing),
            count(score.unfinished),
        )
        for score in scores
    ]
    headers = (
        "model",
        "n",
        "score, 95 % interval",
        "bounds",
        "criteria",
        "met",
        "no verdict",
        "answers cut off",
    )
    return ResultTable(f"Rubric scores: {scores[0].rubrics}", headers, rows)


def _group_table(scores: Sequence[RubricScore]) -> ResultTable:
    """Return a row per tag, and a column per model."""
    groups = [{(group.of, group.tag): group for group in score.groups} for score in scores]
    rows = [
        (
            tag,
            of,
            count(max(by_tag[of, tag].n for by_tag in groups)),
            *(_estimate(by_tag[of, tag].score, by_tag[of, tag].interval) for by_tag in groups),
        )
        for of, tag in groups[0]
    ]
    headers = ("tag", "of", "n", *(score.model for score in scores))
    return ResultTable(
        "Scores by theme and axis, with 95 % intervals; n is the number of conversations", headers, rows
    )


def _judge_table(scores: Sequence[RubricScore]) -> ResultTable:
    rows = [
        (
            score.model,
            f"{judge.judge} (its own answers)" if judge.own_answers else judge.judge,
            _estimate(judge.score, judge.interval),
            percent(judge.met_rate),
            count(judge.judgements),
            count(judge.missing),
            count(judge.retried),
        )
        for score in scores
        for judge in score.judge_scores
    ]
    headers = ("model", "judge", "score by this judge", "met", "judgements", "no verdict", "asked again")
    return ResultTable("Judges", headers, rows)


def _pair_table(scores: Sequence[RubricScore]) -> ResultTable:
    rows = []
    for score in scores:
        if (agreement := score.judge_agreement) is None:
            continue
        rows.append(
            (
                score.model,
                "all",
                count(agreement.n),
                "",
                _coefficient(agreement.alpha, agreement.interval, "α"),
            )
        )
        rows += [
            (
                score.model,
                f"{pair.a}, {pair.b}",
                count(pair.n),
                percent(pair.agreement),
                _coefficient(pair.kappa, pair.interval, "κ"),
            )
            for pair in agreement.pairs
        ]
    headers = ("model", "judges", "criteria", "equal verdicts", "agreement, 95 % interval")
    return ResultTable("Agreement of the judges: Krippendorff's α of all, Cohen's κ of two", headers, rows)


def _human_tables(scores: Sequence[RubricScore]) -> list[ResultTable]:
    compared = [(score.model, score.human_agreement) for score in scores if score.human_agreement]
    rows = [
        (
            model,
            each.judge,
            count(each.n),
            percent(each.agreement),
            _coefficient(each.kappa, each.kappa_interval, "κ"),
            _estimate(each.sensitivity, each.sensitivity_interval),
            _estimate(each.specificity, each.specificity_interval),
        )
        for model, human in compared
        for each in human.comparisons
    ]
    headers = ("model", "judge", "labelled", "equal", "agreement", "sensitivity", "specificity")
    agreement = ResultTable("Agreement with human labels, with 95 % intervals", headers, rows)
    rates = [
        (
            model,
            each.judge,
            _estimate(each.met_rate, each.met_rate_interval),
            _estimate(each.rogan_gladen, each.rogan_gladen_interval),
            _estimate(each.prediction_powered, each.prediction_powered_interval),
            _corrected_score(human) if each.judge == "combined" else "",
        )
        for model, human in compared
        for each in human.comparisons
    ]
    caption = "Rate of criteria met and score, corrected for the judge's errors, with 95 % intervals"
    names = ("model", "judge", "judged rate", "Rogan-Gladen", "prediction-powered", "corrected score")
    return [agreement, ResultTable(caption, names, rates)]


def _corrected_score(human: HumanAgreement) -> str:
    if human.corrected_score is None:
        return ""
    value = _estimate(human.corrected_score, human.corrected_interval)
    return f"{value}, {count(human.labelled_conversations)} conversations"


def rubric_difference_table(differences: Sequence[Comparison]) -> ResultTable:
    """Return the paired differences of rubric scores."""
    rows = [
        (
            str(each.task),
            f"{each.b} − {each.a}",
            count(each.n),
            estimate(each.difference, each.interval, points),
            probability(each.p),
            "" if each.p_adjusted is None else probability(each.p_adjusted),
            verdict(each),
        )
        for each in differences
    ]
    headers = ("rubrics", "b − a", "n", "difference, points", "p", "adjusted p", "verdict on b")
    return ResultTable(
        "Paired differences of rubric scores by conversation, with 95 % intervals", headers, rows
    )


def _estimate(value: float | None, ends: Sequence[float] | None) -> str:
    return "" if value is None else estimate(value, ends, percent)


def _coefficient(value: float | None, ends: Sequence[float] | None, sign: str) -> str:
    return "not defined" if value is None else f"{sign} {decimal(value)} {interval(ends, decimal)}"


def scores_by_set(result: EvaluationResult) -> dict[str, list[RubricScore]]:
    """Return set of rubrics → the scores of all models."""
    by_set: dict[str, list[RubricScore]] = {}
    for scores in result.rubrics.values():
        for name, score in scores.items():
            by_set.setdefault(name, []).append(score)
    return by_set


def rubric_tables_by_set(result: EvaluationResult) -> dict[str, list[ResultTable]]:
    """Return set of rubrics → its tables, the table of scores first."""
    return {name: rubric_tables(scores) for name, scores in scores_by_set(result).items()}


def add_rubrics(page: Page, result: EvaluationResult) -> None:
    """Add a section for each set of rubrics: chart, tables and the name of its page."""
    for name, scores in scores_by_set(result).items():
        page.section(f"Rubrics {name}")
        add_rubric_scores(page, scores)
        page.text(f"The answers and the verdicts on them are in {scores[0].page}.")
    if result.rubric_differences:
        page.section("Paired differences of rubric scores")
        table = rubric_difference_table(result.rubric_differences)
        page.table(table.headers, table.rows, table.caption)


def add_rubric_scores(page: Page, scores: Sequence[RubricScore]) -> None:
    """Add the chart, the tables, the methods and the settings of one set of rubrics."""
    rows = [
        (
            score.model,
            100 * score.score,
            score.interval and (100 * score.interval[0], 100 * score.interval[1]),
        )
        for score in scores
        if score.score is not None
    ]
    if rows:
        page.figure(interval_chart(rows, "score, %"), "Rubric score with its 95 % interval")
    for table in rubric_tables(scores):
        page.table(table.headers, table.rows, table.caption)
    several = scores[0].judge_agreement or scores[0].human_agreement
    page.text(f"{METHOD} {JUDGES if several else JUDGES.partition(' Kappa')[0]} {INTERVALS}")
    if scores[0].human_agreement:
        page.text(HUMANS)
    with page.folded("Settings"):
        page.key_values(_settings(scores[0]))
        for judge in scores[0].judges:
            page.key_values({f"judge {name}": value for name, value in judge.model_dump().items()})


def _settings(score: RubricScore) -> dict[str, object]:
    names = ("prompt_form", "temperature", "max_tokens", "seed", "aggregate", "answers", "judgements")
    hashes = {
        f"SHA-256 of the file {score.data}": score.rubrics_sha256,
        "SHA-256 of the evaluated rows": score.rows_sha256,
        "SHA-256 of the prompts": score.prompt_sha256,
    }
    return {name.replace("_", " "): getattr(score, name) for name in names} | hashes


def write_rubric_page(path: Path, scores: Sequence[RubricScore], answers: Sequence[AnswerView]) -> None:
    """Write the page of one set of rubrics: its scores, and answers with the verdict on each criterion.

    Args:
        path: The page.
        scores: The scores of every model.
        answers: The answers to show, those to one conversation after one another.
    """
    page = Page(f"Rubrics {scores[0].rubrics}", "Open answers, judged by their rubrics")
    page.section("Scores")
    add_rubric_scores(page, scores)
    page.section("Answers")
    shown, all_ = len({answer.id for answer in answers}), scores[0].n + scores[0].unscored
    page.text(
        f"The answers to {count(shown)} of {count(all_)} conversations. Every answer is in "
        f"{scores[0].answers}, every judgement in {scores[0].judgements}."
    )
    for answer in answers:
        score = "no score" if answer.score is None else f"score {percent(answer.score)}"
        with page.folded(f"{answer.id} · {answer.model} · {score} · {', '.join(answer.tags)}"):
            _add_answer(page, answer)
    page.write(path)


def _add_answer(page: Page, answer: AnswerView) -> None:
    turns = [(f"{each['content']}\n\n", each["role"], False) for each in answer.messages]
    page.passage([*turns, (answer.answer or "(an empty answer)", answer.model, False)])
    labelled = any(criterion.human is not None for criterion in answer.criteria)
    judges = list(answer.criteria[0].verdicts)
    rows = [
        (
            criterion.text,
            decimal(criterion.points),
            ", ".join(criterion.tags),
            *(_verdict_text(criterion.verdicts[judge]) for judge in judges),
            *([_verdict_text(criterion.human)] if labelled else []),
            *(["" if criterion.credit is None else decimal(criterion.points * criterion.credit)]),
        )
        for criterion in answer.criteria
    ]
    headers = ("criterion", "points", "tags", *judges, *(["human"] if labelled else []), "achieved")
    page.table(headers, rows)
    with page.folded("The judges' texts"):
        for criterion in answer.criteria:
            for judge, reason in criterion.reasons.items():
                page.details(f"{judge}: {criterion.text[:80]}", reason[:_LONGEST_REASON])


def _verdict_text(met: bool | None) -> str:
    return "no verdict" if met is None else "met" if met else "not met"
