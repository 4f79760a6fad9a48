"""What an evaluation found, as tables of text and as sentences: for the run's report, card and terminal."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from meditron.core.statistics import FEWEST
from meditron.report import number_format
from meditron.store.results import Accuracy, Baseline, Comparison, EvaluationResult, TaskScore

__all__ = [
    "Table",
    "asked",
    "differences",
    "fidelity",
    "measures",
    "origins",
    "overview",
    "rules",
    "sentence",
    "steps",
    "truncated",
    "verdict",
]

_LEVEL = 0.05
"""A verdict needs an adjusted p below this."""
_TOO_FEW = "too few to compare"
_OF_TASK = ("is right more often than", "is right less often than")
_OF_TEXT = ("predicts better than", "predicts worse than")


@dataclass(frozen=True, slots=True)
class Table:
    """A table before it is put on a page, into a card or on a terminal."""

    caption: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def overview(result: EvaluationResult, domains: Mapping[str, str]) -> Table:
    """A row a model, then what needs none; a column a source and a task. `domains`: sources' subjects."""
    sources, tasks = _sources(result), _tasks(result)
    headers = [f"{source}{_about(domains, source)}: perplexity" for source in sources]
    headers += [f"{task}: accuracy, n = {number_format.count(_questions(result, task))}" for task in tasks]
    rows = []
    for name in _rows(result):
        texts = [result.perplexity.get(name, {}).get(source) for source in sources]
        cells = [
            number_format.estimate(t.perplexity, t.interval, number_format.perplexity) if t else ""
            for t in texts
        ]
        rows.append((name, *cells, *(_share(_accuracy(result, name, task)) for task in tasks)))
    return Table(f"Values with 95 % intervals (none below n = {FEWEST})", ("model", *headers), rows)


def measures(result: EvaluationResult, domains: Mapping[str, str]) -> Table:
    """Held-out text in full: a row a source and model."""
    rows = [
        (
            source,
            domains.get(source, ""),
            model,
            _n(found.documents, found.truncated),
            number_format.count(found.tokens),
            number_format.perplexity(found.perplexity),
            number_format.interval(found.interval, number_format.perplexity),
            number_format.decimal(found.bits_per_byte),
        )
        for source in _sources(result)
        for model, scores in result.perplexity.items()
        for found in [scores.get(source)]
        if found
    ]
    headers = ("source", "domain", "model", "documents", "tokens", "perplexity", "95 % interval")
    return Table("Held-out text", (*headers, "bits per byte"), rows)


def rules(result: EvaluationResult) -> Table:
    """The tasks in full: a row a task, model and rule of choosing an option, then what needs no model."""
    rows = [
        (
            task,
            model,
            f"{rule}{' (asked for)' if rule == score.rule else ''}",
            _n(score.n, score.truncated),
            number_format.percent(found.accuracy),
            number_format.interval(found.interval, number_format.percent),
            number_format.percent(found.macro_f1),
            number_format.percent(score.option_probability_mass),
        )
        for task in _tasks(result)
        for model, scores in result.tasks.items()
        for score in [scores.get(task)]
        if score
        for rule, found in _answers(score).items()
    ]
    rows += [
        (
            task,
            name,
            "" if found.trained_on is None else f"trained on {number_format.count(found.trained_on)}",
            number_format.count(found.n),
            number_format.percent(found.accuracy),
            number_format.interval(found.interval, number_format.percent),
            "",
            "",
        )
        for task, baselines in result.baselines.items()
        for name, found in baselines.items()
    ]
    headers = ("task", "model", "rule", "n", "accuracy", "95 % interval", "macro-F1", "answer mass")
    return Table("Tasks, by every rule of choosing an option", headers, rows)


def asked(result: EvaluationResult) -> str:
    """How each task was put to the models, in words."""
    ways: dict[tuple[str, str], list[str]] = {}
    for model, scores in result.tasks.items():
        for score in scores.values():
            data = score.data if score.split is None else f"{score.data}, split {score.split}"
            form = (
                "plain text"
                if score.prompt_form == "raw"
                else f"turns of its chat template {score.prompt_form}"
            )
            way = (
                f"in template {score.template}, as {form}, {_shots(score.shots)}, by {score.method} in "
                f"{score.dtype}: {score.method_description}. Data: {data}."
            )
            ways.setdefault((score.task, way), []).append(model)
    return " ".join(f"{task} was asked of {', '.join(models)} {way}" for (task, way), models in ways.items())


def truncated(result: EvaluationResult) -> str:
    """Return a sentence on prompts and documents of which only a part was read; empty if there are none."""
    found: dict[str, list[str]] = {}
    for model, scores in result.tasks.items():
        for score in scores.values():
            what = f"prompts of {score.task} lost their beginning"
            _add_truncated(found, model, what, score.truncated, score.n)
    for model, texts in result.perplexity.items():
        for source, text in texts.items():
            what = f"documents of {source} were scored at their beginning only"
            _add_truncated(found, model, what, text.truncated, text.documents)
    for one in result.fidelity:
        what = f"documents of {one.source} were compared at their beginning only"
        _add_truncated(found, f"{one.model} against {one.against}", what, one.truncated, one.documents)
    told = "; ".join(f"{what} ({', '.join(models)})" for what, models in found.items())
    return f"Truncated: {told}." if told else ""


def _add_truncated(found: dict[str, list[str]], model: str, what: str, truncated: int, n: int) -> None:
    if truncated:
        key = f"{number_format.count(truncated)} of {number_format.count(n)} {what}"
        found.setdefault(key, []).append(model)


def _n(count: int, truncated: int) -> str:
    """Return a number of documents or questions, with how many of them were truncated."""
    return (
        f"{number_format.count(count)} ({number_format.count(truncated)} truncated)"
        if truncated
        else number_format.count(count)
    )


def _shots(count: int) -> str:
    return f"{number_format.count(count) if count else 'no'} solved questions before each"


def differences(found: Sequence[Comparison]) -> Table:
    """Every paired difference with its verdict on b."""
    rows = [
        (
            one.what,
            f"{one.b} − {one.a}",
            number_format.count(one.n),
            number_format.estimate(one.difference, one.interval, _form(one)),
            number_format.probability(one.p),
            number_format.probability(one.p_adjusted) if one.p_adjusted is not None else "",
            _size(one, one.detectable) if one.detectable else "",
            verdict(one),
        )
        for one in found
    ]
    headers = ("measure", "b − a", "n", "difference, 95 % interval", "p", "adjusted p")
    caption = "Paired differences: log-loss in nats by document, accuracy in percentage points by question"
    if (family := max((one.family for one in found), default=0)) > 1:
        caption += f"; verdicts by p adjusted for {family} comparisons (Holm)"
    return Table(caption, (*headers, "smallest detectable", "verdict on b"), rows)


def origins(result: EvaluationResult, inputs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Model → the evaluated model that its stage began with; `inputs`: stage → input → reference."""
    models = dict.fromkeys([*result.perplexity, *result.tasks])
    found = {}
    for model in models:
        given = inputs.get(model.partition(":")[0], {})
        references = [given[key] for key in ("model", "base") if key in given]
        parent = next((text if text.partition(":")[0] in inputs else "base" for text in references), None)
        if parent in models:
            found[model] = str(parent)
    return found


def steps(result: EvaluationResult, parents: Mapping[str, str]) -> Table:
    """What each step did to every measure, good or bad; `parents`: model → the model it was made from."""
    compared = {(one.a, one.b, one.task or one.source): one for one in result.differences}
    rows = []
    for model, parent in parents.items():
        for measure, name, before, after in _moves(result, parent, model):
            one = compared.get((parent, model, name))
            told = number_format.estimate(one.difference, one.interval, _form(one)) if one else "not compared"
            of = f"{name}: {measure.lower()}"
            rows.append((f"{parent} → {model}", of, before, after, told, verdict(one) if one else ""))
    headers = ("step", "measure", "before", "after", "difference, 95 % interval", "verdict")
    return Table("What each step did, good or bad", headers, rows)


def fidelity(result: EvaluationResult) -> Table:
    """How far models' predictions lie from those of the models they are held against."""
    rows = [
        (
            f"{one.model} against {one.against}",
            one.source,
            _n(one.documents, one.truncated),
            number_format.count(one.n_tokens),
            number_format.estimate(
                one.perplexity_ratio, one.intervals.get("perplexity_ratio"), number_format.ratio
            ),
            number_format.estimate(one.kl_mean, one.intervals.get("kl_mean"), number_format.decimal),
            number_format.decimal(one.kl_99),
            number_format.estimate(
                one.top_agreement, one.intervals.get("top_agreement"), number_format.percent
            ),
        )
        for one in result.fidelity
    ]
    ways = dict.fromkeys(result.engines[one.model] for one in result.fidelity if one.model in result.engines)
    caption = "; ".join(("Fidelity on held-out text in single precision, with 95 % intervals", *ways))
    headers = ("model", "source", "documents", "tokens", "perplexity ratio", "mean KL, nats")
    return Table(caption, (*headers, "99th percentile of KL", "same top token"), rows)


def verdict(one: Comparison) -> str:
    """Judge the second model of a comparison.

    Returns:
        `better` or `worse` if the adjusted p is below 5 % and the interval, if there is one, excludes zero;
        `identical` if no document differs; `too few to compare` below 6; else `undecided`.
    """
    if one.n < FEWEST:
        return _TOO_FEW
    if one.interval is None and one.difference == 0:
        return "identical"
    low, high = one.interval or (one.difference, one.difference)
    if low <= 0 <= high or _adjusted(one) >= _LEVEL:
        return "undecided"
    return "better" if (one.difference > 0) == (one.task is not None) else "worse"


def sentence(one: Comparison, result: EvaluationResult, domains: Mapping[str, str]) -> str:
    """Describe one difference, claiming no more than it shows."""
    if one.task:
        where, unit, verbs = (
            f"On {number_format.count(one.n)} questions of {one.task}",
            "percentage points",
            _OF_TASK,
        )
    else:
        text = f"{one.source or one.what}{_about(domains, one.source or '')}"
        where = f"On {number_format.count(one.n)} held-out documents of {text}"
        unit, verbs = "nats", _OF_TEXT
    # How the two were measured differently, as the measure's name says it; a's value stands first.
    if unlike := one.what.partition(" [")[2].removesuffix("]"):
        where += f", measured differently ({unlike}; {one.a} / {one.b})"
    measure = "accuracy" if one.task else "log-loss"
    found, value = verdict(one), f"{_form(one)(one.difference)} {unit}"
    if found == _TOO_FEW:
        return f"{where}, the {measure} of {one.b} differs from {one.a} by {value}: too few for a verdict."
    if found == "identical":
        return f"{where}, {one.b} and {one.a} are identical: no document differs."
    value = f"{value}{_evidence(one)}"
    if found == "undecided":
        seen = f"; a difference of {_size(one, one.detectable or 0)} would be detected four times in five"
        told = seen if one.detectable else ""
        return f"{where}, no difference between {one.b} and {one.a} is shown: {value}{told}."
    verb = verbs[found == "worse"]
    return f"{where}, {one.b} {verb} {one.a}: {measure} differs by {value}.{_change(one, result)}"


def _evidence(one: Comparison) -> str:
    """The interval and p: `, 95 % interval −0.3 to −0.1, p = 0.012 (adjusted for 8 comparisons)`."""
    ends = [_form(one)(end) for end in one.interval or ()]
    interval = f", 95 % interval {' to '.join(ends)}" if ends else ""
    p = number_format.probability(_adjusted(one))
    family = f" (adjusted for {one.family} comparisons)" if one.family > 1 else ""
    return f"{interval}, p {p if p.startswith('<') else f'= {p}'}{family}"


def _adjusted(one: Comparison) -> float:
    return one.p if one.p_adjusted is None else one.p_adjusted


def _change(one: Comparison, result: EvaluationResult) -> str:
    of = ("Accuracy", one.task) if one.task else ("Perplexity", one.source)
    return next(
        (
            f" {measure} goes from {before} to {after}."
            for measure, name, before, after in _moves(result, one.a, one.b)
            if (measure, name) == of
        ),
        "",
    )


def _moves(result: EvaluationResult, old: str, new: str) -> Iterator[tuple[str, str, str, str]]:
    """(measure, source or task, the figure of `old`, that of `new`), of all that both have a figure of."""
    for source in _sources(result):
        texts = [result.perplexity.get(model, {}).get(source) for model in (old, new)]
        before, after = (number_format.perplexity(text.perplexity) if text else "" for text in texts)
        if before and after:
            yield "Perplexity", source, before, after
    for task in _tasks(result):
        scores = [_accuracy(result, model, task) for model in (old, new)]
        before, after = (number_format.percent(score.accuracy) if score else "" for score in scores)
        if before and after:
            yield "Accuracy", task, before, after


def _rows(result: EvaluationResult) -> list[str]:
    """The models, each with those of its rules that were compared by name, then the baselines."""
    compared = {name for one in result.differences for name in (one.a, one.b)}
    models = dict.fromkeys([*result.perplexity, *result.tasks])
    names = []
    for model in models:
        found = {rule for score in result.tasks.get(model, {}).values() for rule in score.rules}
        names += [model, *(n for rule in sorted(found) if (n := f"{model} ({rule})") in compared)]
    return [*names, *dict.fromkeys(name for found in result.baselines.values() for name in found)]


def _accuracy(result: EvaluationResult, name: str, task: str) -> Accuracy | Baseline | None:
    """The score of a model, of a model by a rule (`base (calibrated)`), or of a baseline."""
    if name in result.baselines.get(task, {}):
        return result.baselines[task][name]
    model, _, rule = name.removesuffix(")").partition(" (")
    score = result.tasks.get(name, result.tasks.get(model, {})).get(task)
    if score is None or not rule:
        return score
    return next((found for known, found in score.rules.items() if known == rule), None)


def _share(score: Accuracy | Baseline | None) -> str:
    if score is None:
        return ""
    return number_format.estimate(score.accuracy, score.interval, number_format.percent)


def _answers(score: TaskScore) -> dict[str, Accuracy]:
    """What each rule answered; the one score there is where no options were compared."""
    return {str(rule): found for rule, found in score.rules.items()} or {score.method: score}


def _sources(result: EvaluationResult) -> list[str]:
    return list(dict.fromkeys(source for scores in result.perplexity.values() for source in scores))


def _tasks(result: EvaluationResult) -> list[str]:
    asked = (task for scores in result.tasks.values() for task in scores)
    return list(dict.fromkeys([*asked, *result.baselines]))


def _questions(result: EvaluationResult, task: str) -> int:
    scores = [scores[task].n for scores in result.tasks.values() if task in scores]
    return max([*scores, *(found.n for found in result.baselines.get(task, {}).values())])


def _about(domains: Mapping[str, str], source: str) -> str:
    return f" ({domains[source]})" if domains.get(source) else ""


def _form(one: Comparison) -> Callable[[float], str]:
    return number_format.points if one.task else number_format.nats


def _size(one: Comparison, value: float) -> str:
    return number_format.points(value).removeprefix("+") if one.task else number_format.decimal(value)
