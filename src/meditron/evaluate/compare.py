"""Paired differences between two results a and b on the same documents or questions.

For documents the difference is the mean of (b's log-loss per token − a's log-loss per token), in nats. Every
document has the same weight, and a negative difference means that b is better. Pairing removes the variance
between easy and hard documents. If the models split the text into different tokens, losses per token are not
comparable: the difference is then per byte of text, over the documents that neither model truncated, and the
name of the measure says so.

For questions the difference is b's accuracy − a's accuracy: a positive difference means that b is better.

Rows that differ in rule, method, template, number of shots or prompt are not compared; this is an error. A
difference in prompt form, number format or engine cannot always be avoided: such rows are compared, and the
difference is named in `Comparison.unlike` and in the name of the measure. With other prompt forms, other
system prompts and examples are named too; with equal ones they forbid the comparison. Named is also a setting
that one of them does not know because another program answered the questions, unless equal hashes show that
the prompts are equal.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from meditron.core.console import warn
from meditron.core.errors import InputError, UsageError
from meditron.core.statistics import clustered_mean, paired_bootstrap, paired_proportions
from meditron.core.units import format_count
from meditron.evaluate.result_rows import ItemKey, ResultRows, open_result
from meditron.evaluate.rows import NOT_KNOWN, DocumentRow, EvalRow, ImportedRow, QuestionRow
from meditron.store.results import Comparison, adjust_p_values

__all__ = [
    "Correctness",
    "accuracy_difference",
    "compare_results",
    "count_truncated",
    "no_differences_error",
    "result_differences",
    "setting_differences",
]

Correctness = Mapping[ItemKey, bool]
"""Question (`EvalRow.item_key`) → True if the answer is right."""
R = TypeVar("R", bound=EvalRow)

_MUST_MATCH = ("version", "template", "method", "rule", "constrained", "metric", "shots")
"""Fields of a question's row that must be equal in a comparison."""
_NAMED_IF_DIFFERENT = (
    *("prompt_form", "dtype", "engine"),
    *("samples", "temperature", "max_tokens", "extraction", "parser"),
)
"""Fields of any row that may differ in a comparison, which then names the difference."""
_SHOWN_AS = {"version": "task version", "prompt_form": "prompt form", "max_tokens": "tokens per answer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _PairedRows(Generic[R]):
    """The rows of two results on the same items, for one combination of their settings."""

    rows: Sequence[tuple[R, R]]
    """For each item that both results have, the row of a and the row of b."""
    conflicts: tuple[str, ...]
    """Differences in the settings that forbid the comparison."""
    named_differences: tuple[str, ...]
    """Differences in the settings that are allowed and named."""
    changed_ids: Sequence[str]
    """Ids that both results have, but with different content."""

    @property
    def settings(self) -> tuple[object, ...]:
        """Settings of both results. Pairings with equal settings differ only in their number of items."""
        fields = (*_MUST_MATCH, *_NAMED_IF_DIFFERENT, "prompt_sha256", "data_sha256")
        return tuple(getattr(row, field, None) for row in self.rows[0] for field in fields)


def compare_results(a: str, b: str, *, seed: int = 1, resamples: int = 10_000) -> list[Comparison]:
    """Compute the differences b − a of two results, one for each source or task that both have.

    Args:
        a: A rows file or the folder of an evaluation. If it has rows of several models, `:model` after it
            selects one: `runs/quickstart/evaluate:pretrain`.
        b: The other result, in the same form.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.

    Raises:
        SourceError: no such file.
        UsageError: no model is selected, the results have fewer than two documents or questions in common, or
            the common ones were measured with different settings.
        InputError: a document's text, a question, or a prompt differs between the results.
    """
    a_rows, b_rows = open_result(a), open_result(b)
    differences = result_differences(a_rows, b_rows, seed=seed, resamples=resamples)
    if not differences:
        raise no_differences_error(a_rows, b_rows)
    return adjust_p_values(differences)


def result_differences(a: ResultRows, b: ResultRows, *, seed: int, resamples: int) -> list[Comparison]:
    """Compute the differences b − a of opened results: none if too few documents and questions are in both.

    See `compare_results` for the other errors.
    """
    return [
        *_document_differences(a, b, seed, resamples),
        *_question_differences(a, b, seed, resamples),
    ]


def no_differences_error(a: ResultRows, b: ResultRows) -> UsageError:
    """Return the error that says why two results have no differences."""
    if cut := _count_cut_differently(a, b):
        return UsageError(
            f"{a.name} and {b.name}: {format_count(cut, 'documents')} in both cannot be compared, because "
            "the tokenizers differ, so that documents are truncated at different places; too few are left "
            "for a paired difference",
            hint="evaluate both with a document_tokens that truncates fewer documents",
        )
    if a.tasks and b.tasks and not a.tasks.keys() & b.tasks.keys():
        return UsageError(
            f"no task in common: {a.name} has {', '.join(a.tasks)}, {b.name} has {', '.join(b.tasks)}",
            hint="evaluate both on the same tasks; that of your own file has the file's name",
        )
    common = sum(len(pairing.rows) for pairing in _pair_all_settings(a, b))
    return UsageError(
        f"{a.name} and {b.name}: too few documents or questions in both ({common} of {a.row_count} and "
        f"{b.row_count}) for a paired difference",
        hint="evaluate both on the same corpus and tasks",
    )


def _count_cut_differently(a: ResultRows, b: ResultRows) -> int:
    """Count the truncated documents that are left out because the tokenizers differ."""
    return max(
        (
            sum(_comparable_losses(pairs)[2] for pairs in _by_source(pairing).values())
            for pairing in _pair_settings(a.documents, b.documents)
        ),
        default=0,
    )


def _pair_all_settings(a: ResultRows, b: ResultRows) -> Iterator[_PairedRows[Any]]:
    yield from _pair_settings(a.documents, b.documents)
    for task in a.tasks:
        yield from _pair_settings(a.tasks[task], b.tasks.get(task, ()))


def _pair_settings(
    a_settings: Sequence[Mapping[ItemKey, R]], b_settings: Sequence[Mapping[ItemKey, R]]
) -> Iterator[_PairedRows[R]]:
    """Pair the rows of every setting of one result with those of every setting of the other."""
    for a_rows in a_settings:
        for b_rows in b_settings:
            rows = [(row, b_rows[key]) for key, row in sorted(a_rows.items()) if key in b_rows]
            b_ids = {key[:-1] for key in b_rows}
            changed = [
                row.id for key, row in sorted(a_rows.items()) if key not in b_rows and key[:-1] in b_ids
            ]
            # All rows of a setting have equal values in these fields, so the first row is enough.
            a_first, b_first = (next(iter(side.values())) for side in (a_rows, b_rows))
            conflicts = _differing_fields(a_first, b_first, _MUST_MATCH)
            # Different prompt forms give different prompts by design; equal forms must give equal prompts.
            same_form = getattr(a_first, "prompt_form", None) == getattr(b_first, "prompt_form", None)
            if not conflicts and same_form and any(_prompts_differ(x, y) for x, y in rows):
                conflicts = _prompt_causes(rows) or ("prompt (template or shots)",)
            yield _PairedRows(
                rows=rows,
                conflicts=conflicts,
                named_differences=setting_differences([x for x, _ in rows], [y for _, y in rows]),
                changed_ids=changed,
            )


def _prompts_differ(a: EvalRow, b: EvalRow) -> bool:
    hashes = {getattr(row, "prompt_sha256", None) for row in (a, b)}
    return len(hashes) == 2 and None not in hashes


def _usable_pairings(
    a: ResultRows, b: ResultRows, changed_content: str, pairings: Sequence[_PairedRows[R]]
) -> list[_PairedRows[R]]:
    """Return the pairings to compare: those of equal settings, or else those whose differences may be named.

    Of several pairings with the same settings, the one with the most items is returned.

    Raises:
        InputError: the items of all pairings differ in content.
        UsageError: all pairings differ in a setting that must be equal.
    """
    same_data = [pairing for pairing in pairings if pairing.rows and not pairing.changed_ids]
    changed = next((pairing for pairing in pairings if pairing.changed_ids), None)
    # A file may also contain rows of earlier data, so differing content is an error only if nothing else is
    # left.
    if changed and not same_data:
        count = len(changed.changed_ids)
        raise InputError(
            b.name,
            f"{count} of {count + len(changed.rows)} {changed_content} than in {a.name}",
            place=changed.changed_ids[0],
            hint="only results on the same data are comparable",
        )
    if changed:
        warn(
            f"{a.name} and {b.name}: one also has rows of {changed.changed_ids[0]} with another content, "
            "which are not compared"
        )
    common = sorted(same_data, key=lambda pairing: -len(pairing.rows))
    allowed = [pairing for pairing in common if not pairing.conflicts]
    if common and not allowed:
        conflicts = common[0].conflicts
        only_rule = all(text.startswith("rule:") for text in conflicts)
        raise UsageError(
            f"{a.name} and {b.name} are not comparable: they differ in {', '.join(conflicts)}",
            hint="evaluate both with the same settings"
            + (" (--rule); all scores are stored, so no model is run again" if only_rule else ""),
        )
    # Pairings of equal settings take precedence over those with named differences.
    equal = [pairing for pairing in allowed if not pairing.named_differences] or allowed
    return list({pairing.settings: pairing for pairing in reversed(equal)}.values())[::-1]


def _document_differences(a: ResultRows, b: ResultRows, seed: int, resamples: int) -> Iterator[Comparison]:
    pairings = list(_pair_settings(a.documents, b.documents))
    for pairing in _usable_pairings(a, b, "documents have another text", pairings):
        for source, pairs in _by_source(pairing).items():
            unit, losses, left_out = _comparable_losses(pairs)
            named = pairing.named_differences
            if left_out:
                named += (f"{format_count(left_out, 'truncated documents')} left out",)
            if len(losses) >= 2:
                a_losses, b_losses = zip(*losses, strict=True)
                yield Comparison(
                    a=a.name,
                    b=b.name,
                    what=_measure_name(f"nll per {unit}, {source}", named),
                    source=source,
                    unlike=named,
                    **asdict(paired_bootstrap(b_losses, a_losses, seed=seed, resamples=resamples)),
                )


def _by_source(pairing: _PairedRows[DocumentRow]) -> dict[str, list[tuple[DocumentRow, DocumentRow]]]:
    by_source: dict[str, list[tuple[DocumentRow, DocumentRow]]] = {}
    for pair in pairing.rows:
        by_source.setdefault(pair[0].source, []).append(pair)
    return by_source


def _comparable_losses(
    pairs: Sequence[tuple[DocumentRow, DocumentRow]],
) -> tuple[str, list[tuple[float, float]], int]:
    """Return the losses of both results per token or per byte of text.

    Returns:
        The unit (`token` or `byte`), the pairs of losses, and the number of truncated documents left out.
    """
    # With equal token ids the loss per token is comparable, and both results truncate at the same token.
    if all(a.ids_sha256 == b.ids_sha256 for a, b in pairs):
        return "token", [(a.nll / a.tokens, b.nll / b.tokens) for a, b in pairs if a.tokens and b.tokens], 0
    # Two tokenizers truncate a document at different characters, so only untruncated documents are
    # comparable.
    whole = [(a, b) for a, b in pairs if not (a.truncated or b.truncated)]
    losses = [(a.nll / a.bytes, b.nll / b.bytes) for a, b in whole if a.bytes and b.bytes]
    return "byte", losses, len(pairs) - len(whole)


def _question_differences(a: ResultRows, b: ResultRows, seed: int, resamples: int) -> Iterator[Comparison]:
    for task in a.tasks:
        pairings = list(_pair_settings(a.tasks[task], b.tasks.get(task, ())))
        usable = _usable_pairings(a, b, "questions have other words, options or gold", pairings)
        settings = {tuple(_setting_fields(pairing.rows[0][0])) for pairing in pairings if pairing.rows}
        for pairing in usable:
            if len(pairing.rows) >= 2:
                a_correct, b_correct = (
                    {pair[side].item_key(): pair[side].correct for pair in pairing.rows} for side in (0, 1)
                )
                # Most files have one setting; the label names it only if there are several.
                ambiguous = len(settings) > 1 or len(usable) > 1
                label = f"{task}{_setting_label(pairing.rows[0][0], usable) if ambiguous else ''}"
                yield accuracy_difference(
                    label,
                    a.name,
                    a_correct,
                    b.name,
                    b_correct,
                    unlike=pairing.named_differences,
                    task=task,
                    clusters={row.item_key(): row.cluster for row, _ in pairing.rows},
                    seed=seed,
                    resamples=resamples,
                )


def _setting_label(row: QuestionRow, usable: Sequence[_PairedRows[QuestionRow]]) -> str:
    """Return the settings of a row in brackets, to tell several comparisons on one task apart."""
    shown = _setting_fields(row)
    if len({pairing.rows[0][0].data_sha256 for pairing in usable}) > 1:
        shown.append(f"data {(row.data_sha256 or NOT_KNOWN)[:8]}")
    return f" ({', '.join(shown)})"


def _setting_fields(row: QuestionRow) -> list[str]:
    shots = None if row.shots is None else f"{row.shots} shots"
    known = (row.template, row.prompt_form, row.scoring_name, shots, row.dtype)
    return [value for value in known if value is not None]


def setting_differences(a: Sequence[EvalRow], b: Sequence[EvalRow]) -> tuple[str, ...]:
    """Return the differences in the settings of two models' rows, such as `dtype: float32 / bfloat16`."""
    if not a or not b:
        return ()
    named = _differing_fields(a[0], b[0], _NAMED_IF_DIFFERENT)
    if isinstance(a[0], QuestionRow):
        b_rows = {row.item_key(): row for row in b}
        named += _prompt_causes([(row, b_rows[row.item_key()]) for row in a if row.item_key() in b_rows])
        if not all(getattr(row, "prompt_sha256", None) for row in (*a, *b)):
            named += ("prompts: not known",)
        counts = [count_truncated([row for row in rows if isinstance(row, QuestionRow)]) for rows in (a, b)]
        if counts[0] != counts[1]:
            shown = [NOT_KNOWN if count is None else count for count in counts]
            named += (f"truncated prompts: {shown[0]} / {shown[1]}",)
    return named


def _prompt_causes(rows: Sequence[tuple[EvalRow, EvalRow]]) -> tuple[str, ...]:
    """Name the system prompts and examples that differ between rows on the same items.

    Nothing is named if equal hashes show that the prompts are equal, nor a value that an imported result
    does not record.
    """
    pairs = [(a, b) for a, b in rows if isinstance(a, QuestionRow) and isinstance(b, QuestionRow)]
    unequal = [(a, b) for a, b in pairs if a.prompt_sha256 is None or a.prompt_sha256 != b.prompt_sha256]
    causes: dict[str, str] = {}
    for a, b in unequal:
        imported = isinstance(a, ImportedRow) or isinstance(b, ImportedRow)
        systems = (a.system_prompt, b.system_prompt)
        if systems[0] != systems[1] and not (imported and None in systems):
            causes.setdefault("system prompt", " / ".join(system or "none" for system in systems))
        # Without examples in both, neither their ids nor their file are part of the prompts.
        if a.shot_ids and b.shot_ids:
            if a.shot_ids != b.shot_ids:
                causes.setdefault("examples", f"{', '.join(a.shot_ids)} / {', '.join(b.shot_ids)}")
            if a.shots_sha256 != b.shots_sha256 and not imported:
                files = ((side.shots_sha256 or "training split")[:14] for side in (a, b))
                causes.setdefault("file of examples", " / ".join(files))
    order = ("system prompt", "examples", "file of examples")
    return tuple(f"{name}: {causes[name]}" for name in order if name in causes)


def count_truncated(rows: Sequence[QuestionRow]) -> int | None:
    """Return the number of truncated prompts; None if another program did not record them."""
    known = [row.truncated for row in rows if row.truncated is not None]
    return sum(known) if len(known) == len(rows) else None


def _differing_fields(a: EvalRow, b: EvalRow, fields: Sequence[str]) -> tuple[str, ...]:
    # Some rows lack fields such as the rule, which counts as a setting that is off.
    values = ((field, _setting_value(a, field), _setting_value(b, field)) for field in fields)
    return tuple(
        f"{_SHOWN_AS.get(name, name)}: {x} / {y}"
        for name, x, y in values
        if (x or None) != (y or None) and (NOT_KNOWN not in (x, y) or fields is _NAMED_IF_DIFFERENT)
    )


def _setting_value(row: EvalRow, field: str) -> object:
    """Return a setting of a row; NOT_KNOWN if the program that answered the question did not record it."""
    value = getattr(row, field, None)
    # The settings that only one of the two kinds of rows has cannot be compared.
    if field in (("method", "rule", "constrained") if isinstance(row, ImportedRow) else ("metric",)):
        return NOT_KNOWN
    return NOT_KNOWN if value is None and field in type(row).model_fields else value


def accuracy_difference(
    label: str,
    a: str,
    a_correct: Correctness,
    b: str,
    b_correct: Correctness,
    *,
    unlike: tuple[str, ...] = (),
    task: str | None = None,
    clusters: Mapping[ItemKey, str] | None = None,
    seed: int = 1,
    resamples: int = 10_000,
) -> Comparison:
    """Subtract the accuracy of a from that of b on the same questions.

    Args:
        label: Name of the task in the name of the measure, with the setting if there are several.
        a: Name of the first model.
        a_correct: Which of its answers are right.
        b: Name of the second model.
        b_correct: Which of its answers are right.
        unlike: Differences between the settings of the two measurements.
        task: Name of the task without setting; default: `label`.
        clusters: Cluster of each question, empty for questions without one; default: none.
        seed: Seed of the bootstrap over clusters.
        resamples: Number of bootstrap resamples.
    """
    # McNemar's test: only the questions that exactly one model answers right carry information.
    items = sorted(a_correct)
    pairs = [(a_correct[item], b_correct[item]) for item in items]
    difference = paired_proportions(pairs.count((False, True)), pairs.count((True, False)), len(pairs))
    return Comparison(
        a=a,
        b=b,
        what=_measure_name(f"accuracy, {label}", unlike),
        task=task or label,
        mcnemar=difference.p,
        unlike=unlike,
        **asdict(difference),
        **_clustered_fields(pairs, [(clusters or {}).get(item, "") for item in items], seed, resamples),
    )


def _clustered_fields(
    pairs: Sequence[tuple[bool, bool]], clusters: Sequence[str], seed: int, resamples: int
) -> dict[str, Any]:
    if not all(clusters):
        return {}
    differences = [float(b) - float(a) for a, b in pairs]
    interval = clustered_mean(differences, clusters, seed=seed, resamples=resamples)
    return {"clusters": len({*clusters}), "clustered_interval": interval}


def _measure_name(name: str, unlike: Sequence[str]) -> str:
    """Return the name of a measure, with the differences in settings in brackets."""
    # "torch" and "torch on dequantized weights" are left out: the models differ there, not the measurements.
    shown = [text for text in unlike if text.count("torch") < 2]
    return f"{name} [{'; '.join(shown)}]" if shown else name
