"""The three questions of a reader: did it learn, did it forget, and what did quantization cost?

Each answer is a verdict, one sentence with the evidence, and a chart. All comparisons are those of the
evaluation: paired on the same documents and questions, with p adjusted for all of them. The answers never
claim more than the verdicts do.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from meditron.core.statistics import MAX_EXPONENT, MIN_SAMPLE_SIZE
from meditron.core.units import format_bytes
from meditron.report import number_format
from meditron.report.charts import IntervalPanel, IntervalRow, Tone, interval_panel_chart
from meditron.report.figures import ReportFigure, figure_name
from meditron.report.verdicts import (
    TOO_FEW,
    before_and_after,
    source_label,
    verdict,
)
from meditron.store.results import Comparison, EvaluationResult, Fidelity

__all__ = ["Answer", "RunFacts", "answer_questions", "overview_figure"]

GENERAL = "general"
"""Domain of the sources that show forgetting."""
_CSV = ("model", "against", "measure", "n", "unit", "difference", "low", "high", "verdict")
_LOG_LOSS = "log-loss, nats per token (below 0 is better)"
_ACCURACY = "accuracy, percentage points (above 0 is better)"
_LONGEST_REFERENCE = 24  # characters of a reference in a title
_TONES: dict[str, Tone] = {"better": "better", "worse": "worse"}
_DECIDED = ("better", "worse")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Facts of a run that its evaluation does not record."""

    stage_kinds: Mapping[str, str]
    """Stage → kind."""
    parent_models: Mapping[str, str]
    """Evaluated model → the evaluated model that its stage started from."""
    domains: Mapping[str, str]
    """Source → domain."""
    file_sizes: Mapping[str, int] = field(default_factory=dict)
    """Quantized model (`quantize:Q4_K_M`) → bytes of its file."""

    def root_model(self, model: str) -> str:
        """Return the first model of the chain that `model` belongs to."""
        while model in self.parent_models:
            model = self.parent_models[model]
        return model

    def is_from_stage_kind(self, model: str, *kinds: str) -> bool:
        """Return True if `model` comes from a stage of one of these kinds."""
        return self.stage_kinds.get(model.partition(":")[0]) in kinds


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to one question."""

    name: str
    """Name of its figure."""
    question: str
    verdict: str
    sentence: str
    """The evidence in full: every model and measure."""
    headline: str = ""
    """A short sentence instead of a long `sentence`, which a page then folds away; empty if it is short."""
    panels: Sequence[IntervalPanel] = ()
    csv_rows: Sequence[tuple[object, ...]] = ()
    """Rows of its CSV file."""

    def figure(self, suffix: str = "") -> ReportFigure | None:
        """Return the answer's chart; None if no change was measured."""
        if not self.panels:
            return None
        caption = (
            "Paired differences with 95 % intervals. Green is better, orange is worse; an open circle is "
            "undecided, or too few to compare."
        )
        name = figure_name(self.name, *([suffix] if suffix else []))
        return ReportFigure(name, interval_panel_chart(self.panels), caption, _CSV, self.csv_rows)


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of one measure with its verdict, from a paired comparison or a fidelity record."""

    model: str
    reference_model: str
    measure: str
    n: int
    unit: str
    """`nats` or `points`."""
    value: float
    interval: tuple[float, float] | None
    verdict: str
    before_and_after: str = ""
    """The values of both sides: `21.13 → 19.70`."""

    @property
    def sample_size_text(self) -> str:
        """The number of documents or questions."""
        return f"n = {number_format.count(self.n)}"

    @property
    def label(self) -> str:
        """The measure with its n."""
        return f"{self.measure}, {self.sample_size_text}"

    @property
    def in_unit(self) -> tuple[float, float, float]:
        """The value and both ends of its interval in `unit`; the ends are NaN without an interval."""
        factor = 100 if self.unit == "points" else 1
        low, high = self.interval or (math.nan, math.nan)
        return factor * self.value, factor * low, factor * high

    @property
    def difference(self) -> str:
        """The formatted difference with its interval."""
        form = number_format.points if self.unit == "points" else number_format.nats
        return number_format.estimate(self.value, self.interval, form)


def answer_questions(result: EvaluationResult, facts: RunFacts) -> list[Answer]:
    """Answer the questions that apply to the run: without training there is no question about learning."""
    models = list(dict.fromkeys([*result.perplexity, *result.tasks]))
    trained = [model for model in models if facts.is_from_stage_kind(model, "pretrain", "finetune")]
    answers = []
    if "pretrain" in facts.stage_kinds.values() or "finetune" in facts.stage_kinds.values():
        answers += [_answer_learned(result, facts, trained), _answer_forgot(result, facts, trained)]
    if "quantize" in facts.stage_kinds.values():
        answers.append(_answer_quantized(result, facts))
    return answers


def overview_figure(answers: Sequence[Answer], suffix: str = "") -> ReportFigure | None:
    """Return one chart of all answers; None if no change was measured."""
    panel_columns: list[list[IntervalPanel]] = [[], []]
    for answer in answers:
        # Two columns fit the shape of a screen: training on the left, quantization on the right.
        column = panel_columns[answer.name == "quantized"]
        for place, panel in enumerate(answer.panels):
            heading = f"{answer.question}\n{answer.verdict}" if place == 0 else ""
            column.append(replace(panel, heading=heading))
    if not any(panel_columns):
        return None
    chart = interval_panel_chart(*filter(None, panel_columns))
    table = [(answer.name, *row) for answer in answers for row in answer.csv_rows]
    name = figure_name("overview", *([suffix] if suffix else []))
    return ReportFigure(name, chart, "The answers in one chart.", ("question", *_CSV), table)


def _answer_learned(result: EvaluationResult, facts: RunFacts, trained: Sequence[str]) -> Answer:
    question = "Did it learn?"
    changes = [
        change
        for change in _changes_against_root(result, facts, trained)
        # Text of the general domain answers the question about forgetting, not this one.
        if change.unit == "points" or facts.domains.get(change.measure) != GENERAL
    ]
    # The verdict is on the last trained model, which is the result of the run; earlier models are in the
    # chart only.
    last = [change for change in changes if trained and change.model == trained[-1]]
    if not last:
        return Answer("learned", question, "Not measured.", "No trained model was compared with its base.")
    verdicts = {change.verdict for change in last}
    if "better" in verdicts:
        answer = "In part." if "worse" in verdicts else "Yes."
    else:
        answer = "No." if verdicts & {"worse", "identical"} else _undecided_text(verdicts)
    return _build_answer("learned", question, answer, last, changes, facts)


def _answer_forgot(result: EvaluationResult, facts: RunFacts, trained: Sequence[str]) -> Answer:
    question = "Did it forget?"
    changes = [
        change
        for change in _changes_against_root(result, facts, trained)
        if change.unit == "nats" and facts.domains.get(change.measure) == GENERAL
    ]
    last = [change for change in changes if change.model == trained[-1]]
    if not last:
        missing = f'No held-out text of another domain was measured (a source with domain = "{GENERAL}").'
        return Answer("forgot", question, "Not measured.", missing)
    verdicts = {change.verdict for change in last}
    if "worse" in verdicts:
        answer = "Yes."
    else:
        # An undecided measure is no evidence that nothing was forgotten.
        answer = "No." if verdicts <= {"better", "identical"} else _undecided_text(verdicts)
    return _build_answer("forgot", question, answer, last, changes, facts)


def _answer_quantized(result: EvaluationResult, facts: RunFacts) -> Answer:
    question = "What did quantization cost?"
    pairs = {
        model: parent
        for model, parent in facts.parent_models.items()
        if facts.is_from_stage_kind(model, "quantize")
    }
    changes = [
        _change_from_comparison(comparison, result)
        for comparison in result.differences
        if pairs.get(comparison.b) == comparison.a
    ]
    compared = {change.model for change in changes}
    # A quantized file may have a fidelity record but no paired difference; then its perplexity ratio is used.
    changes += [
        _change_from_fidelity(pair)
        for pair in result.fidelity
        if pair.model not in compared and facts.is_from_stage_kind(pair.model, "quantize")
    ]
    if not changes:
        missing = "No quantized file was evaluated; the table of files has typical values."
        return Answer("quantized", question, "Not measured.", missing)
    verdicts = {change.verdict for change in changes}
    if worse := [change for change in changes if change.verdict == "worse"]:
        answer = f"A measurable loss: {_largest_loss(worse)}."
    else:
        decided = verdicts & {"better", "identical"}
        answer = "No measurable loss." if decided else _undecided_text(verdicts)
    full = _build_answer("quantized", question, answer, changes, changes, facts)
    return replace(full, headline=_quantization_headline(changes, facts)) if len(changes) > 1 else full


def _quantization_headline(changes: Sequence[_Change], facts: RunFacts) -> str:
    """Return a sentence on the largest loss, or on the number of comparisons without one."""
    worse = [change for change in changes if change.verdict == "worse"]
    if not worse:
        too_few = all(change.verdict == TOO_FEW for change in changes)
        return "" if too_few else f"None of {len(changes)} comparisons shows a loss."
    # Points are listed only if no perplexity rose: the verdict states the loss in the same unit.
    largest = max(worse, key=lambda change: (change.unit == "nats", abs(change.value)))
    size = f" ({format_bytes(facts.file_sizes[largest.model])})" if largest.model in facts.file_sizes else ""
    values = largest.before_and_after or largest.difference
    source = source_label(facts.domains, largest.measure)
    return f"{largest.model}{size} on {source}: {values} ({largest.sample_size_text})."


def _largest_loss(worse: Sequence[_Change]) -> str:
    texts = [change.value for change in worse if change.unit == "nats"]
    if texts:
        return f"up to {number_format.percent(math.expm1(min(max(texts), MAX_EXPONENT)))} in perplexity"
    return f"up to {number_format.points(-min(change.value for change in worse))} points of accuracy"


def _undecided_text(verdicts: set[str]) -> str:
    return "Unknown: too few to compare." if verdicts == {TOO_FEW} else "Undecided."


def _build_answer(
    name: str,
    question: str,
    answer: str,
    evidence: Sequence[_Change],
    changes: Sequence[_Change],
    facts: RunFacts,
) -> Answer:
    """Build an answer: `evidence` goes into the sentence, `changes` into the chart."""
    return Answer(
        name,
        question,
        answer,
        f"{'; '.join(_sentence_clauses(evidence, facts))}.",
        panels=list(_change_panels(changes)),
        csv_rows=[
            (
                change.model,
                change.reference_model,
                change.measure,
                change.n,
                change.unit,
                *change.in_unit,
                change.verdict,
            )
            for change in changes
        ],
    )


def _sentence_clauses(changes: Sequence[_Change], facts: RunFacts) -> Iterator[str]:
    """Yield one clause of the answer's sentence per pair of models, each with its decided measures first."""
    pairs = dict.fromkeys((change.model, change.reference_model) for change in changes)
    for model, against in pairs:
        file = f" ({format_bytes(facts.file_sizes[model])})" if model in facts.file_sizes else ""
        group = [change for change in changes if (change.model, change.reference_model) == (model, against)]
        group.sort(key=lambda change: change.unit != "points")  # the order of the panels
        clauses = [_change_clause(change, facts) for change in group if change.verdict in _DECIDED]
        clauses += [
            _change_clause(change, facts) for change in group if change.verdict not in (*_DECIDED, TOO_FEW)
        ]
        if few := [change for change in group if change.verdict == TOO_FEW]:
            labels = ", ".join(f"{change.measure} (n = {change.n})" for change in few)
            clauses.append(f"too few to compare on {labels}")
        yield f"{model}{file} against {against}: {', '.join(clauses)}"


def _change_clause(change: _Change, facts: RunFacts) -> str:
    if change.unit == "points":
        label, unit = f"accuracy on {change.measure}", "points"
    else:
        label, unit = f"log-loss on {source_label(facts.domains, change.measure)}", "nats"
    if change.verdict == "identical":
        return f"{label} is identical ({change.sample_size_text})"
    # The verb follows the sign of the tested difference, not that of the rounded values beside it.
    verb = "is undecided,"
    if change.verdict in _DECIDED:
        verb = "rises," if change.value > 0 else "falls,"
    values = f"{change.before_and_after}, " if change.before_and_after else ""
    return f"{label} {verb} {change.difference} {unit} ({values}{change.sample_size_text})"


def _change_panels(changes: Sequence[_Change]) -> Iterator[IntervalPanel]:
    references = list(dict.fromkeys(change.reference_model for change in changes))
    # A long reference, or one of several, is named in each row's label instead of the title.
    in_title = len(references) == 1 and len(references[0]) <= _LONGEST_REFERENCE
    against = f": change against {references[0]}" if in_title else ": paired differences"
    for unit, title, x in (("points", "Questions", _ACCURACY), ("nats", "Held-out text", _LOG_LOSS)):
        rows = [
            IntervalRow(
                f"{change.model}{'' if in_title else f' − {change.reference_model}'}: {change.label}",
                change.in_unit[0],
                change.interval and (change.in_unit[1], change.in_unit[2]),
                f"{change.difference} {change.verdict}",
                _TONES.get(change.verdict, "neutral"),
            )
            for change in changes
            if change.unit == unit
        ]
        if rows:
            yield IntervalPanel(f"{title}{against}", rows, x)


def _changes_against_root(result: EvaluationResult, facts: RunFacts, models: Sequence[str]) -> list[_Change]:
    """Return the comparisons of trained models with the first model of their chain."""
    return [
        _change_from_comparison(comparison, result)
        for model in models
        for comparison in result.differences
        if comparison.b == model and comparison.a == facts.root_model(model)
    ]


def _change_from_comparison(comparison: Comparison, result: EvaluationResult) -> _Change:
    measure = comparison.task or comparison.source or comparison.what
    values = next(
        (
            f"{before} → {after}" if comparison.task else f"perplexity {before} → {after}"
            for kind, name, before, after in before_and_after(result, comparison.a, comparison.b)
            if name == measure and (kind == "Accuracy") == (comparison.task is not None)
        ),
        "",
    )
    return _Change(
        comparison.b,
        comparison.a,
        measure,
        comparison.n,
        "points" if comparison.task else "nats",
        comparison.difference,
        comparison.interval,
        verdict(comparison),
        values,
    )


def _change_from_fidelity(pair: Fidelity) -> _Change:
    """Return a fidelity record as a change: the log of its perplexity ratio, in nats per token."""
    # A small sample has no interval and no verdict, as in paired comparisons.
    ends = pair.intervals.get("perplexity_ratio") if pair.documents >= MIN_SAMPLE_SIZE else None
    logs = None if ends is None else (math.log(ends[0]), math.log(ends[1]))
    value = math.log(pair.perplexity_ratio)
    if pair.documents < MIN_SAMPLE_SIZE:
        judged = TOO_FEW
    elif logs is None or logs[0] <= 0 <= logs[1]:
        judged = "identical" if pair.kl_mean == 0 else "undecided"
    else:
        judged = "worse" if value > 0 else "better"
    before, after = map(number_format.perplexity, (pair.perplexity_against, pair.perplexity))
    values = f"perplexity {before} → {after}"
    return _Change(pair.model, pair.against, pair.source, pair.documents, "nats", value, logs, judged, values)
