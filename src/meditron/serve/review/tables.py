"""Tables of a review's results, the same on the page and in the terminal."""

from collections.abc import Mapping, Sequence

from meditron.core.statistics import MIN_SAMPLE_SIZE
from meditron.report.evaluation_tables import ResultTable
from meditron.report.number_format import count, decimal, estimate, percent, points, probability
from meditron.serve.review.ratings import HARMFUL, PREFERENCE
from meditron.serve.review.rubric import HIGHEST, LOWEST, Rubric
from meditron.serve.review.statistics import (
    Agreement,
    Difference,
    Estimate,
    ModelScores,
    Preferences,
    RaterSummary,
    ReviewResult,
)

__all__ = ["METHOD", "headline", "result_tables"]

METHOD = (
    "Ratings of one question by several raters are averaged. The interval of a mean or share is a "
    "bootstrap-t over questions, 95 %. A tie and `both bad` count half a win for each model. p is the exact "
    "sign-flip test for up to 20 questions, else the bootstrap's, adjusted for all differences of this "
    "review (Holm). Agreement is Krippendorff's alpha, ordinal for scales and nominal otherwise: 1 is "
    "perfect agreement, 0 that of chance; its interval is a percentile bootstrap over questions. Below "
    f"{MIN_SAMPLE_SIZE} questions there is no interval and no verdict."
)


def headline(result: ReviewResult) -> list[str]:
    """Return a sentence on each pair of models, which claims no more than its verdict."""
    sentences = []
    for pair in result.preferences:
        share = pair.share.get(pair.b)
        if share is None:
            sentences.append(f"Nobody has compared {pair.a} and {pair.b}.")
            continue
        [difference] = [
            each
            for each in result.differences
            if (each.measure, each.a, each.b) == (PREFERENCE, pair.a, pair.b)
        ]
        value = estimate(share.value, share.interval, percent)
        claims = {
            "better": f"Raters prefer {pair.b} to {pair.a}",
            "worse": f"Raters prefer {pair.a} to {pair.b}",
            "identical": f"Every question is a tie of {pair.a} and {pair.b}",
            "undecided": f"No preference between {pair.a} and {pair.b} is shown",
        }
        claim = claims.get(
            difference.verdict,
            f"{count(share.questions)} questions are too few to compare {pair.a} and {pair.b}",
        )
        sentences.append(f"{claim}: {pair.b} wins {value} of the comparisons, ties counted half.")
    return sentences


def result_tables(result: ReviewResult, rubric: Rubric) -> list[ResultTable]:
    """Return all tables of a review."""
    tables = [
        _preference_table("Preferences", {"": result.preferences}),
        _score_table(result.models, rubric),
        _difference_table(result.differences, rubric),
        _agreement_table(result.agreement, rubric),
        _kind_table(result.models, rubric),
    ]
    if result.categories:
        tables.append(_preference_table("Preferences by category", result.category_preferences))
        tables.append(_category_table(result.categories, rubric))
    tables.append(_rater_table(result.raters, list(result.models), rubric))
    if result.disagreements:
        tables.append(_disagreement_table(result, rubric))
    return tables


def _preference_table(title: str, groups: Mapping[str, Sequence[Preferences]]) -> ResultTable:
    rows = [
        (
            *([group] if group else []),
            f"{pair.b} : {pair.a}",
            *(count(value) for value in (pair.wins[pair.b], pair.wins[pair.a], pair.ties, pair.both_bad)),
            _share(pair.share.get(pair.b)),
        )
        for group, pairs in groups.items()
        for pair in pairs
    ]
    head = ("category",) if "" not in groups else ()
    headers = (*head, "b : a", "b better", "a better", "equal", "both bad", "share of b")
    return ResultTable(title, headers, rows)


def _score_table(models: Mapping[str, ModelScores], rubric: Rubric) -> ResultTable:
    names = list(models)
    rows = [
        (
            f"{scale.label} ({scale.better} is better)",
            *(_mean(models[name].scales.get(scale.key)) for name in names),
        )
        for scale in rubric.scales
    ]
    rows.append(("Called harmful", *(_share(models[name].harmful) for name in names)))
    return ResultTable(f"Mean ratings, {LOWEST} to {HIGHEST}", ("scale", *names), rows)


def _difference_table(differences: Sequence[Difference], rubric: Rubric) -> ResultTable:
    rows = [
        (
            _label(each.measure, rubric),
            f"{each.b} − {each.a}",
            count(each.n),
            estimate(
                each.difference, each.interval, points if each.measure in (HARMFUL, PREFERENCE) else _signed
            ),
            probability(each.p),
            probability(each.p_adjusted),
            each.verdict,
        )
        for each in differences
    ]
    headers = ("measure", "b − a", "questions", "difference", "p", "adjusted p", "verdict on b")
    return ResultTable("Paired differences; shares in percentage points", headers, rows)


def _agreement_table(agreement: Sequence[Agreement], rubric: Rubric) -> ResultTable:
    rows = [
        (
            _label(each.measure, rubric),
            each.level,
            count(each.units),
            "not defined" if each.alpha is None else estimate(each.alpha, each.interval, _coefficient),
        )
        for each in agreement
    ]
    return ResultTable("Agreement of the raters", ("measure", "level", "rated twice or more", "alpha"), rows)


def _kind_table(models: Mapping[str, ModelScores], rubric: Rubric) -> ResultTable:
    kinds = [("harm", kind, "harm_kinds") for kind in rubric.harmful.kinds]
    kinds += [("bias", kind, "bias_kinds") for kind in rubric.bias_kinds]
    rows = []
    for name, kind, field in kinds:
        numbers = [getattr(scores, field).get(kind.key, 0) for scores in models.values()]
        if any(numbers):
            rows.append((name, kind.label, *map(count, numbers)))
    return ResultTable("Kinds of harm and bias, numbers of ratings", ("harm or bias", "kind", *models), rows)


def _category_table(categories: Mapping[str, Mapping[str, ModelScores]], rubric: Rubric) -> ResultTable:
    rows = [
        (
            category,
            model,
            *(_mean(scores.scales.get(scale.key)) for scale in rubric.scales),
            _share(scores.harmful),
        )
        for category, models in categories.items()
        for model, scores in models.items()
    ]
    headers = ("category", "model", *(scale.label for scale in rubric.scales), "called harmful")
    return ResultTable("Mean ratings by category", headers, rows)


def _rater_table(raters: Sequence[RaterSummary], models: Sequence[str], rubric: Rubric) -> ResultTable:
    rows = [
        (
            each.rater,
            f"{each.rated} of {each.assigned}",
            *(count(each.preferred.get(choice, 0)) for choice in (*models, "tie", "both-bad")),
            count(each.left),
            *(
                " : ".join(f"{means[model]:.2f}" if model in means else "–" for model in models)
                for means in (each.means.get(scale.key, {}) for scale in rubric.scales)
            ),
        )
        for each in raters
    ]
    scales = (scale.label for scale in rubric.scales)
    headers = ("rater", "compared", *models, "equal", "both bad", "left preferred", *scales)
    return ResultTable(f"Raters; mean ratings of {' : '.join(models)}", headers, rows)


def _disagreement_table(result: ReviewResult, rubric: Rubric) -> ResultTable:
    rows = [
        (
            each.question,
            _label(each.measure, rubric),
            each.model or "",
            ", ".join(f"{rater} {value}" for rater, value in each.ratings.items()),
        )
        for each in result.disagreements
    ]
    return ResultTable("Disagreements of the raters", ("question", "measure", "model", "ratings"), rows)


def _label(measure: str, rubric: Rubric) -> str:
    labels = {scale.key: scale.label for scale in rubric.scales}
    return labels.get(measure, {HARMFUL: "Called harmful", PREFERENCE: "Preference"}.get(measure, measure))


def _mean(value: Estimate | None) -> str:
    return "" if value is None else estimate(value.value, value.interval, "{:.2f}".format)


def _share(value: Estimate | None) -> str:
    return "" if value is None else estimate(value.value, value.interval, percent)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _coefficient(value: float) -> str:
    return decimal(round(value, 3))
