"""The paired difference of two results: the same documents or questions, two models, how sure the sign is.

Of documents the figure is the mean of (b's log-loss per token − a's log-loss per token), in nats: every
document counts once, however long it is, and below zero means that b is better. Pairing removes what both
models find hard alike. Where the models read a text as different tokens, losses per token do not compare;
the difference is then taken per byte of text, over the documents that both scored whole, and says so.

Of questions it is b's accuracy − a's: above zero b is better.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from meditron.evaluate.rows import PERPLEXITY, DocumentRow, QuestionRow, Row, read_rows
from meditron.ground.errors import InputError, SourceError, UsageError
from meditron.ground.statistics import paired_bootstrap, paired_proportions
from meditron.store.jsonl import read_jsonl
from meditron.store.results import Comparison, adjusted

__all__ = ["Result", "accuracy_difference", "compare", "differences", "open_result"]

Key = tuple[str, ...]
"""(source, id) or (id,): what names a document or a question."""


@dataclass(frozen=True, slots=True)
class Result:
    """One model's rows, by document, and by task and question."""

    name: str
    rows: Mapping[Key, DocumentRow]
    tasks: Mapping[str, Mapping[Key, QuestionRow]] = field(default_factory=dict)


def compare(a: str, b: str, *, seed: int = 1, resamples: int = 10_000) -> list[Comparison]:
    """The differences b − a of two results, one a source or task that both hold.

    A result is a rows file or the folder of an evaluation, with `:model` behind it where it holds the rows of
    several models: `runs/quickstart/evaluate:pretrain`.

    Raises:
        SourceError: no such file.
        UsageError: it is not said which model, or fewer than two documents or questions stand in both.
        InputError: a document's text, a question, the task's version or a prompt is not the same in both.
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
    model = _model(path, model, [*documents, *questions])
    tasks: dict[str, dict[Key, QuestionRow]] = {}
    for row in questions:
        if row.model == model:
            tasks.setdefault(row.task, {})[row.item()] = row
    return Result(spec, {row.item(): row for row in documents if row.model == model}, tasks)


def _asks(file: Path) -> bool:
    """Whether a rows file is of questions."""
    return "task" in next(read_jsonl(file), {})


def _model(path: Path, model: str | None, rows: Iterable[Row]) -> str:
    models = sorted({row.model for row in rows})
    if model is None and len(models) == 1:
        return models[0]
    if model is None or model not in models:
        problem = "several models' rows" if model is None else f"no rows of '{model}'"
        known = ", ".join(models) or "none"
        raise UsageError(f"{path} holds {problem} (it has: {known})", hint=f"write {path}:MODEL")
    return model


def differences(a: Result, b: Result, *, seed: int, resamples: int) -> list[Comparison]:
    """The paired difference b − a of each source and task that both hold (see `compare` for the errors)."""
    found = [*_of_documents(a, b, seed, resamples), *_of_questions(a, b)]
    if not found:
        common = sum(len(of_a.keys() & of_b.keys()) for of_a, of_b in _sides(a, b))
        counts = " and ".join(str(sum(map(len, [r.rows, *r.tasks.values()]))) for r in (a, b))
        raise UsageError(
            f"{a.name} and {b.name}: too few documents or questions in both ({common} of {counts}) for a "
            "paired difference",
            hint="evaluate both on the same corpus and tasks",
        )
    return found


def _sides(a: Result, b: Result) -> list[tuple[Mapping[Key, Row], Mapping[Key, Row]]]:
    tasks = [(a.tasks[task], b.tasks[task]) for task in a.tasks if task in b.tasks]
    return [(a.rows, b.rows), *tasks]


def _of_documents(a: Result, b: Result, seed: int, resamples: int) -> list[Comparison]:
    joined = [(row, b.rows[key]) for key, row in sorted(a.rows.items()) if key in b.rows]
    _refuse_others(a, b, "documents", "another text", [(x, x.text_sha256, y.text_sha256) for x, y in joined])
    by_source: dict[str, list[tuple[DocumentRow, DocumentRow]]] = {}
    for pair in joined:
        by_source.setdefault(pair[0].source, []).append(pair)
    comparable = {source: _comparable(pairs) for source, pairs in by_source.items()}
    return [
        Comparison(
            a=a.name,
            b=b.name,
            what=f"nll per {unit}, {source}",
            source=source,
            **_difference(losses, seed=seed, resamples=resamples),
        )
        for source, (unit, losses) in comparable.items()
        if len(losses) >= 2
    ]


def _comparable(pairs: Sequence[tuple[DocumentRow, DocumentRow]]) -> tuple[str, list[tuple[float, float]]]:
    """The unit in which the losses of these pairs compare, and the losses of those pairs that do."""
    if all(a.ids_sha256 == b.ids_sha256 for a, b in pairs):
        return "token", [(a.nll / a.tokens, b.nll / b.tokens) for a, b in pairs if a.tokens and b.tokens]
    whole = [(a, b) for a, b in pairs if a.bytes and b.bytes and not (a.cut or b.cut)]
    return "byte", [(a.nll / a.bytes, b.nll / b.bytes) for a, b in whole]


def _of_questions(a: Result, b: Result) -> list[Comparison]:
    found = []
    for task in a.tasks:
        theirs = b.tasks.get(task, {})
        joined = [(row, theirs[key]) for key, row in sorted(a.tasks[task].items()) if key in theirs]
        _refuse_other_questions(a, b, joined)
        if len(joined) >= 2:
            of_a, of_b = ({pair[side].id: pair[side].correct for pair in joined} for side in (0, 1))
            found.append(accuracy_difference(task, a.name, of_a, b.name, of_b))
    return found


def accuracy_difference(
    task: str, a: str, of_a: Mapping[str, bool], b: str, of_b: Mapping[str, bool]
) -> Comparison:
    """Subtract the accuracy of a from that of b on the same questions (id → whether right)."""
    right = [(of_a[id_], of_b[id_]) for id_ in sorted(of_a)]
    found = paired_proportions(right.count((False, True)), right.count((True, False)), len(right))
    return Comparison(a=a, b=b, what=f"accuracy, {task}", task=task, mcnemar=found.p, **asdict(found))


def _difference(values: Sequence[tuple[float, float]], *, seed: int, resamples: int) -> dict[str, Any]:
    """Compare b − a by the paired bootstrap; return the fields of a Comparison."""
    of_a, of_b = zip(*values, strict=True)
    return asdict(paired_bootstrap(of_b, of_a, seed=seed, resamples=resamples))


def _refuse_other_questions(a: Result, b: Result, joined: Sequence[tuple[QuestionRow, QuestionRow]]) -> None:
    """Only the same questions, put in the same words, compare."""
    for what, values in (
        (
            "another task version",
            [(x, f"version {x.version}", f"version {y.version}") for x, y in joined],
        ),
        ("other words, options or gold", [(x, x.question_sha256, y.question_sha256) for x, y in joined]),
        ("another prompt (layout or shots)", [(x, x.prompt_sha256, y.prompt_sha256) for x, y in joined]),
    ):
        _refuse_others(a, b, "questions", what, values)


def _refuse_others(a: Result, b: Result, of: str, what: str, values: Sequence[tuple[Row, str, str]]) -> None:
    other = [row.id for row, mine, theirs in values if mine != theirs]
    if other:
        raise InputError(
            b.name,
            f"{len(other)} of {len(values)} {of} have {what} than in {a.name}",
            place=other[0],
            hint=f"only results on the same {of}, asked alike, compare"
            if of == "questions"
            else "only results on the same data compare",
        )


def _split(spec: str) -> tuple[Path, str | None]:
    """`folder:model` in two, at the first colon that a file or folder stands before."""
    if Path(spec).exists():
        return Path(spec), None
    for index, character in enumerate(spec):
        if character == ":" and Path(spec[:index]).exists():
            return Path(spec[:index]), spec[index + 1 :]
    raise SourceError(f"{spec}: no such file or folder")
