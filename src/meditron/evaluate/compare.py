"""The paired difference of two results: the same documents or questions, two models, how sure the sign is.

Of documents the figure is the mean of (b's log-loss per token − a's log-loss per token), in nats: every
document counts once, however long it is, and below zero means that b is better. Pairing removes what both
models find hard alike. Where the models read a text as different tokens, losses per token do not compare;
the difference is then taken per byte of text, over the documents that both scored whole, and says so.

Of questions it is b's accuracy − a's: above zero b is better.

Only like is paired with like. Another rule, method, template, number of shots or prompt is refused. Another
prompt form, number format or engine cannot always be avoided: it is paired, and named in `Comparison.unlike`
and in the measure's name.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from meditron.core.errors import InputError, SourceError, UsageError
from meditron.core.statistics import paired_bootstrap, paired_proportions
from meditron.evaluate.rows import PERPLEXITY, DocumentRow, QuestionRow, Row, read_rows
from meditron.store.jsonl import read_jsonl
from meditron.store.results import Comparison, adjusted

__all__ = ["Result", "Right", "accuracy_difference", "compare", "differences", "open_result", "unlike"]

Key = tuple[str, ...]
"""A document's or question's `Row.item`: id and content."""
Right = Mapping[Key, bool]
"""Question → whether the answer was right."""
R = TypeVar("R", bound=Row)

_REFUSED = ("version", "template", "method", "rule", "shots")
"""Settings of a question's row that must be equal."""
_NAMED = ("prompt_form", "dtype", "engine")
"""Settings of any row that may differ, and are named then."""
_WORDS = {"version": "task version", "prompt_form": "prompt form"}


@dataclass(frozen=True, slots=True)
class Result:
    """One model's rows by document, and by task and question; a mapping for each setting."""

    name: str
    documents: Sequence[Mapping[Key, DocumentRow]]
    tasks: Mapping[str, Sequence[Mapping[Key, QuestionRow]]]


@dataclass(frozen=True, slots=True)
class _Paired(Generic[R]):
    """The rows that two sides have in common, in one setting of each."""

    rows: Sequence[tuple[R, R]]
    conflicts: tuple[str, ...]
    """Differences that forbid the comparison."""
    unlike: tuple[str, ...]
    """Differences that are named."""
    other: Sequence[str]
    """Ids that both sides have, with different content."""

    @property
    def settings(self) -> tuple[object, ...]:
        """Equal for two pairings of the same measurement on more or fewer items."""
        fields = (*_REFUSED, *_NAMED, "prompt_sha256", "data_sha256")
        return tuple(getattr(row, field, None) for row in self.rows[0] for field in fields)


def compare(a: str, b: str, *, seed: int = 1, resamples: int = 10_000) -> list[Comparison]:
    """The differences b − a of two results, one a source or task that both hold.

    A result is a rows file or the folder of an evaluation, with `:model` behind it where it holds the rows of
    several models: `runs/quickstart/evaluate:pretrain`.

    Raises:
        SourceError: no such file.
        UsageError: it is not said which model, or fewer than two documents or questions stand in both, or all
            that stand in both were measured in ways that do not compare.
        InputError: a document's text, a question, or a prompt is not the same in both.
    """
    return adjusted(differences(open_result(a), open_result(b), seed=seed, resamples=resamples))


def open_result(spec: str) -> Result:
    """The rows that `spec` names (see `compare`)."""
    path, model = _split(spec)
    inside = [file for file in sorted(path.glob("*.jsonl")) if file.name == PERPLEXITY or _asks(file)]
    files = inside if path.is_dir() else [path]
    if not files:
        raise SourceError(
            f"{path}: no rows of an evaluation in it", hint="name a rows file or an evaluation's folder"
        )
    documents: list[DocumentRow] = []
    questions: list[QuestionRow] = []
    for file in files:
        if _asks(file):
            questions += read_rows(file, QuestionRow)
        else:
            documents += read_rows(file, DocumentRow)
    chosen = _model(path, model, [*documents, *questions])
    tasks: dict[str, list[QuestionRow]] = {}
    for row in questions:
        if _names(row) & {chosen}:
            tasks.setdefault(row.task, []).append(row)
    of_text = _by_setting(row for row in documents if _names(row) & {chosen})
    return Result(spec, of_text, {task: _by_setting(rows) for task, rows in tasks.items()})


def _by_setting(rows: Iterable[R]) -> list[Mapping[Key, R]]:
    found: dict[Key, dict[Key, R]] = {}
    for row in rows:
        found.setdefault((row.cache_key, getattr(row, "rule", None) or ""), {})[row.item()] = row
    return list(found.values())


def _asks(file: Path) -> bool:
    """Whether a rows file is of questions."""
    return "task" in next(read_jsonl(file), {})


def _names(row: Row) -> set[str]:
    """The names that mean this row's model: its own, and with the beginning of its weights' digest."""
    return {row.model, f"{row.model}@{row.model_digest[:8]}"}


def _model(path: Path, model: str | None, rows: Sequence[Row]) -> str:
    names = sorted({row.model for row in rows})
    if model is None and len(names) == 1:
        model = names[0]
    known = set[str]().union(*map(_names, rows))
    if model is None or model not in known:
        problem = "several models' rows" if model is None else f"no rows of '{model}'"
        raise UsageError(
            f"{path} holds {problem} (it has: {', '.join(names) or 'none'})", hint=f"write {path}:MODEL"
        )
    digests = sorted({row.model_digest for row in rows if model in _names(row)})
    if len(digests) > 1:
        choice = " or ".join(f"{path}:{model}@{digest[:8]}" for digest in digests)
        raise UsageError(
            f"{path} holds rows of {len(digests)} different weights under the name {model}",
            hint=f"write {choice}",
        )
    return model


def differences(a: Result, b: Result, *, seed: int, resamples: int) -> list[Comparison]:
    """The paired difference b − a of each source and task that both hold (see `compare` for the errors)."""
    found = [*_of_documents(a, b, seed, resamples), *_of_questions(a, b)]
    if not found:
        common = sum(len(pair.rows) for pair in _every_pair(a, b))
        counts = " and ".join(
            str(sum(map(len, [*r.documents, *(one for some in r.tasks.values() for one in some)])))
            for r in (a, b)
        )
        raise UsageError(
            f"{a.name} and {b.name}: too few documents or questions in both ({common} of {counts}) for a "
            "paired difference",
            hint="evaluate both on the same corpus and tasks",
        )
    return found


def _every_pair(a: Result, b: Result) -> Iterator[_Paired[Any]]:
    yield from _pairings(a.documents, b.documents)
    for task in a.tasks:
        yield from _pairings(a.tasks[task], b.tasks.get(task, ()))


def _pairings(of_a: Sequence[Mapping[Key, R]], of_b: Sequence[Mapping[Key, R]]) -> Iterator[_Paired[R]]:
    """Pair every setting of one side with every setting of the other."""
    for one in of_a:
        for other in of_b:
            rows = [(row, other[key]) for key, row in sorted(one.items()) if key in other]
            ids = {key[:-1] for key in other}
            content = [row.id for key, row in sorted(one.items()) if key not in other and key[:-1] in ids]
            mine, theirs = (next(iter(side.values())) for side in (one, other))
            conflicts = _differing(mine, theirs, _REFUSED)
            same_form = getattr(mine, "prompt_form", None) == getattr(theirs, "prompt_form", None)
            if not conflicts and same_form and any(_prompt(x) != _prompt(y) for x, y in rows):
                conflicts = ("prompt (template or shots)",)
            yield _Paired(rows, conflicts, unlike([x for x, _ in rows], [y for _, y in rows]), content)


def _prompt(row: Row) -> str:
    return row.prompt_sha256 if isinstance(row, QuestionRow) else ""


def _chosen(a: Result, b: Result, of: str, pairings: Sequence[_Paired[R]]) -> list[_Paired[R]]:
    """Return the pairings of like with like; else those whose differences may be named; else refuse.

    Of one measurement on several numbers of items the largest stands for all.
    """
    same_data = [pair for pair in pairings if pair.rows and not pair.other]
    changed = next((pair for pair in pairings if pair.other), None)
    if changed and not same_data:  # rows of earlier data may stand beside those that compare
        raise InputError(
            b.name,
            f"{len(changed.other)} of {len(changed.other) + len(changed.rows)} {of} than in {a.name}",
            place=changed.other[0],
            hint="only results on the same data compare",
        )
    common = sorted(same_data, key=lambda pair: -len(pair.rows))
    allowed = [pair for pair in common if not pair.conflicts]
    if common and not allowed:
        conflicts = common[0].conflicts
        only_rule = all(text.startswith("rule:") for text in conflicts)
        raise UsageError(
            f"{a.name} and {b.name} do not compare, they differ in {', '.join(conflicts)}",
            hint="evaluate both with the same settings"
            + (" (--rule); the scores are there, so no model is run again" if only_rule else ""),
        )
    like = [pair for pair in allowed if not pair.unlike] or allowed
    return list({pair.settings: pair for pair in reversed(like)}.values())[::-1]


def _of_documents(a: Result, b: Result, seed: int, resamples: int) -> Iterator[Comparison]:
    pairings = list(_pairings(a.documents, b.documents))
    for paired in _chosen(a, b, "documents have another text", pairings):
        by_source: dict[str, list[tuple[DocumentRow, DocumentRow]]] = {}
        for pair in paired.rows:
            by_source.setdefault(pair[0].source, []).append(pair)
        for source, pairs in by_source.items():
            unit, losses, left_out = _comparable(pairs)
            differing = paired.unlike
            if left_out:
                differing += (f"{left_out} truncated documents left out",)
            if len(losses) >= 2:
                yield Comparison(
                    a=a.name,
                    b=b.name,
                    what=_what(f"nll per {unit}, {source}", differing),
                    source=source,
                    unlike=differing,
                    **_difference(losses, seed=seed, resamples=resamples),
                )


def _comparable(
    pairs: Sequence[tuple[DocumentRow, DocumentRow]],
) -> tuple[str, list[tuple[float, float]], int]:
    """The unit in which the losses of these pairs compare, the losses that do, and how many were cut."""
    if all(a.ids_sha256 == b.ids_sha256 for a, b in pairs):
        return "token", [(a.nll / a.tokens, b.nll / b.tokens) for a, b in pairs if a.tokens and b.tokens], 0
    whole = [(a, b) for a, b in pairs if not (a.truncated or b.truncated)]
    losses = [(a.nll / a.bytes, b.nll / b.bytes) for a, b in whole if a.bytes and b.bytes]
    return "byte", losses, len(pairs) - len(whole)


def _of_questions(a: Result, b: Result) -> Iterator[Comparison]:
    for task in a.tasks:
        pairings = list(_pairings(a.tasks[task], b.tasks.get(task, ())))
        chosen = _chosen(a, b, "questions have other words, options or gold", pairings)
        settings = {tuple(_setting(pair.rows[0][0])) for pair in pairings if pair.rows}
        for paired in chosen:
            if len(paired.rows) >= 2:
                of_a, of_b = (
                    {pair[side].item(): pair[side].correct for pair in paired.rows} for side in (0, 1)
                )
                several = _several(paired.rows[0][0], chosen) if len(settings) > 1 or len(chosen) > 1 else ""
                named = f"{task}{several}"
                yield accuracy_difference(named, a.name, of_a, b.name, of_b, unlike=paired.unlike, of=task)


def _several(row: QuestionRow, chosen: Sequence[_Paired[QuestionRow]]) -> str:
    """Name one of several settings in which both sides were measured."""
    shown = _setting(row)
    if len({pair.rows[0][0].data_sha256 for pair in chosen}) > 1:
        shown.append(f"data {row.data_sha256[:8]}")
    return f" ({', '.join(shown)})"


def _setting(row: QuestionRow) -> list[str]:
    return [row.template, row.prompt_form, row.rule or row.method, f"{row.shots} shots", row.dtype]


def unlike(a: Sequence[Row], b: Sequence[Row]) -> tuple[str, ...]:
    """Return how two models' rows of the same items were measured differently, as `dtype: a's / b's`."""
    if not a or not b:
        return ()
    found = _differing(a[0], b[0], _NAMED)
    if isinstance(a[0], QuestionRow):
        cut = [sum(row.truncated for row in rows if isinstance(row, QuestionRow)) for rows in (a, b)]
        if cut[0] != cut[1]:
            found += (f"truncated prompts: {cut[0]} / {cut[1]}",)
    return found


def _differing(a: Row, b: Row, fields: Sequence[str]) -> tuple[str, ...]:
    pairs = ((field, getattr(a, field, None), getattr(b, field, None)) for field in fields)
    return tuple(f"{_WORDS.get(name, name)}: {x} / {y}" for name, x, y in pairs if x != y)


def accuracy_difference(
    task: str,
    a: str,
    of_a: Right,
    b: str,
    of_b: Right,
    *,
    unlike: tuple[str, ...] = (),
    of: str | None = None,
) -> Comparison:
    """Subtract the accuracy of a from that of b on the same questions.

    `unlike` are differences of the two measurements, which the measure's name says; `of` is the task's own
    name, if `task` says more than that.
    """
    right = [(of_a[item], of_b[item]) for item in sorted(of_a)]
    found = paired_proportions(right.count((False, True)), right.count((True, False)), len(right))
    return Comparison(
        a=a,
        b=b,
        what=_what(f"accuracy, {task}", unlike),
        task=of or task,
        mcnemar=found.p,
        unlike=unlike,
        **asdict(found),
    )


def _what(measure: str, differing: Sequence[str]) -> str:
    """Name a measure with its differences. Dequantized weights go without: that is the models' difference."""
    named = [text for text in differing if text.count("torch") < 2]
    return f"{measure} [{'; '.join(named)}]" if named else measure


def _difference(values: Sequence[tuple[float, float]], *, seed: int, resamples: int) -> dict[str, Any]:
    """Compare b − a by the paired bootstrap; return the fields of a Comparison."""
    of_a, of_b = zip(*values, strict=True)
    return asdict(paired_bootstrap(of_b, of_a, seed=seed, resamples=resamples))


def _split(spec: str) -> tuple[Path, str | None]:
    """`folder:model` in two, at the first colon that a file or folder stands before."""
    if Path(spec).exists():
        return Path(spec), None
    for index, character in enumerate(spec):
        if character == ":" and Path(spec[:index]).exists():
            return Path(spec[:index]), spec[index + 1 :]
    raise SourceError(f"{spec}: no such file or folder")
