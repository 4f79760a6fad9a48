"""The paired difference of two results: the same documents, two models, how sure the sign is.

The figure is the mean over documents of (b's log-loss per token − a's log-loss per token), in nats: every
document counts once, however long it is, and below zero means that b is better. Pairing removes what both
models find hard alike. Where the models read a text as different tokens, losses per token do not compare;
the difference is then taken per byte of text, over the documents that both scored whole, and says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meditron.evaluate.rows import FILE_NAME, Row, read_rows
from meditron.ground.errors import InputError, SourceError, UsageError
from meditron.ground.statistics import paired_bootstrap
from meditron.store.results import Comparison

__all__ = ["Result", "compare", "differences", "open_result"]

Key = tuple[str, str]
"""(source, id): what names a document."""


@dataclass(frozen=True, slots=True)
class Result:
    """One model's rows, by document."""

    name: str
    rows: Mapping[Key, Row]


def compare(a: str, b: str, *, seed: int = 1, resamples: int = 10_000) -> list[Comparison]:
    """The differences b − a of two results, one a source that both hold.

    A result is a rows file or the folder of an evaluate stage, with `:model` behind it where it holds the
    rows of several models: `runs/quickstart/evaluate:pretrain`.

    Raises:
        SourceError: no such file.
        UsageError: it is not said which model, or fewer than two documents stand in both.
        InputError: a document's text is not the same in both.
    """
    return differences(open_result(a), open_result(b), seed=seed, resamples=resamples)


def open_result(spec: str) -> Result:
    """The rows that `spec` names (see `compare`)."""
    path, model = _split(spec)
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise SourceError(
            f"{path}: no {FILE_NAME} in it", hint="name a rows file or an evaluate stage's folder"
        )
    rows = read_rows(file)
    models = sorted({row.model for row in rows})
    if model is None and len(models) == 1:
        model = models[0]
    if model not in models:
        problem = "several models' rows" if model is None else f"no rows of '{model}'"
        known = ", ".join(models) or "none"
        raise UsageError(f"{file} holds {problem} (it has: {known})", hint=f"write {path}:MODEL")
    return Result(spec, {(row.source, row.id): row for row in rows if row.model == model})


def differences(a: Result, b: Result, *, seed: int, resamples: int) -> list[Comparison]:
    """The paired difference b − a of each source that both hold (see `compare` for the errors)."""
    joined = [(row, b.rows[key]) for key, row in sorted(a.rows.items()) if key in b.rows]
    _refuse_other_texts(a, b, joined)
    by_source: dict[str, list[tuple[Row, Row]]] = {}
    for pair in joined:
        by_source.setdefault(pair[0].source, []).append(pair)
    comparable = {source: _comparable(pairs) for source, pairs in by_source.items()}
    comparable = {source: found for source, found in comparable.items() if len(found[1]) >= 2}
    if not comparable:
        counts = f"{len(joined)} of {len(a.rows)} and {len(b.rows)}"
        raise UsageError(
            f"{a.name} and {b.name}: too few documents in both ({counts}) for a paired difference",
            hint="evaluate both on the same corpus",
        )
    return [
        Comparison(
            a=a.name,
            b=b.name,
            what=f"nll per {unit}, {source}",
            source=source,
            **_difference(losses, seed=seed, resamples=resamples),
        )
        for source, (unit, losses) in comparable.items()
    ]


def _comparable(pairs: Sequence[tuple[Row, Row]]) -> tuple[str, list[tuple[float, float]]]:
    """The unit in which the losses of these pairs compare, and the losses of those pairs that do."""
    if all(a.ids_sha256 == b.ids_sha256 for a, b in pairs):
        return "token", [(a.nll / a.tokens, b.nll / b.tokens) for a, b in pairs if a.tokens and b.tokens]
    whole = [(a, b) for a, b in pairs if a.bytes and b.bytes and not (a.cut or b.cut)]
    return "byte", [(a.nll / a.bytes, b.nll / b.bytes) for a, b in whole]


def _difference(losses: Sequence[tuple[float, float]], *, seed: int, resamples: int) -> dict[str, Any]:
    """The paired bootstrap of b − a, as the fields of a Comparison."""
    of_a, of_b = zip(*losses, strict=True)
    found = paired_bootstrap(of_b, of_a, seed=seed, resamples=resamples)
    return asdict(found) | {"interval": tuple(found.interval)}


def _refuse_other_texts(a: Result, b: Result, joined: Sequence[tuple[Row, Row]]) -> None:
    other = [row.id for row, partner in joined if row.text_sha256 != partner.text_sha256]
    if other:
        raise InputError(
            b.name,
            f"{len(other)} of {len(joined)} documents have another text than in {a.name}",
            place=other[0],
            hint="only results on the same data compare",
        )


def _split(spec: str) -> tuple[Path, str | None]:
    """`folder:model` in two, at the first colon that a file or folder stands before."""
    if Path(spec).exists():
        return Path(spec), None
    for index, character in enumerate(spec):
        if character == ":" and Path(spec[:index]).exists():
            return Path(spec[:index]), spec[index + 1 :]
    raise SourceError(f"{spec}: no such file or folder")
