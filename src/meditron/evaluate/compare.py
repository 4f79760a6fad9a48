"""Paired differences of two results: the same documents or questions, two models.

For documents the figure is the mean of (b's log-loss per token − a's log-loss per token), in nats: every
document counts once, however long it is, and below zero means that b is better. Pairing removes what is hard
for both models. If the models read a text as different tokens, losses per token do not compare: the
difference is then per byte of text, over the documents that both scored whole, and its name says so.

For questions it is b's accuracy − a's: above zero b is better.

Rows that differ in rule, method, template, number of shots or prompt are refused. Another prompt form, number
format or engine cannot always be avoided: such rows are paired, and the difference is named in
`Comparison.unlike` and in the measure's name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from meditron.core.errors import InputError, UsageError
from meditron.core.statistics import paired_bootstrap, paired_proportions
from meditron.evaluate.result_rows import ItemKey, ResultRows, open_result
from meditron.evaluate.rows import DocumentRow, EvalRow, QuestionRow
from meditron.store.results import Comparison, adjust_p_values

__all__ = ["Correctness", "accuracy_difference", "compare", "differences", "unlike"]

Correctness = Mapping[ItemKey, bool]
"""Question → True if the answer is right."""
R = TypeVar("R", bound=EvalRow)

_MUST_MATCH = ("version", "template", "method", "rule", "shots")
"""Settings of a question's row that must be equal."""
_NAMED_IF_DIFFERENT = ("prompt_form", "dtype", "engine")
"""Settings of any row that may differ, and are then named."""
_SHOWN_AS = {"version": "task version", "prompt_form": "prompt form"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairing(Generic[R]):
    """The rows that two sides have in common, in one setting of each."""

    rows: Sequence[tuple[R, R]]
    conflicts: tuple[str, ...]
    """Differences that forbid the comparison."""
    unlike: tuple[str, ...]
    """Differences that are named."""
    changed_ids: Sequence[str]
    """Ids that both sides have, with different content."""

    @property
    def settings(self) -> tuple[object, ...]:
        """Settings that are equal for two pairings of the same measurement on more or fewer items."""
        fields = (*_MUST_MATCH, *_NAMED_IF_DIFFERENT, "prompt_sha256", "data_sha256")
        return tuple(getattr(row, field, None) for row in self.rows[0] for field in fields)


def compare(a: str, b: str, *, seed: int = 1, resamples: int = 10_000) -> list[Comparison]:
    """Compute the differences b − a of two results, one for each source or task of both.

    Args:
        a: A rows file or the folder of an evaluation, with `:model` after it if it has the rows of several
            models: `runs/quickstart/evaluate:pretrain`.
        b: The other result.
        seed: Seed of the bootstrap.
        resamples: Bootstrap resamples.

    Raises:
        SourceError: no such file.
        UsageError: no model is selected, fewer than two documents or questions are in both, or all that are
            in both were measured in ways that do not compare.
        InputError: a document's text, a question, or a prompt is not the same in both.
    """
    return adjust_p_values(differences(open_result(a), open_result(b), seed=seed, resamples=resamples))


def differences(a: ResultRows, b: ResultRows, *, seed: int, resamples: int) -> list[Comparison]:
    """Compute the differences b − a of opened results; see `compare` for the errors."""
    comparisons = [*_document_differences(a, b, seed, resamples), *_question_differences(a, b)]
    if not comparisons:
        common = sum(len(pairing.rows) for pairing in _all_pairings(a, b))
        raise UsageError(
            f"{a.name} and {b.name}: too few documents or questions in both ({common} of {a.size} and "
            f"{b.size}) for a paired difference",
            hint="evaluate both on the same corpus and tasks",
        )
    return comparisons


def _all_pairings(a: ResultRows, b: ResultRows) -> Iterator[_Pairing[Any]]:
    yield from _pairings(a.documents, b.documents)
    for task in a.tasks:
        yield from _pairings(a.tasks[task], b.tasks.get(task, ()))


def _pairings(
    a_settings: Sequence[Mapping[ItemKey, R]], b_settings: Sequence[Mapping[ItemKey, R]]
) -> Iterator[_Pairing[R]]:
    """Pair every setting of one side with every setting of the other."""
    for a_rows in a_settings:
        for b_rows in b_settings:
            rows = [(row, b_rows[key]) for key, row in sorted(a_rows.items()) if key in b_rows]
            b_ids = {key[:-1] for key in b_rows}
            changed = [
                row.id for key, row in sorted(a_rows.items()) if key not in b_rows and key[:-1] in b_ids
            ]
            # All rows of a setting share the settings' fields, so the first stands for all.
            a_first, b_first = (next(iter(side.values())) for side in (a_rows, b_rows))
            conflicts = _differing(a_first, b_first, _MUST_MATCH)
            # Another prompt form means other prompts by design; only equal forms must have equal prompts.
            same_form = getattr(a_first, "prompt_form", None) == getattr(b_first, "prompt_form", None)
            if not conflicts and same_form and any(_prompt(x) != _prompt(y) for x, y in rows):
                conflicts = ("prompt (template or shots)",)
            yield _Pairing(
                rows=rows,
                conflicts=conflicts,
                unlike=unlike([x for x, _ in rows], [y for _, y in rows]),
                changed_ids=changed,
            )


def _prompt(row: EvalRow) -> str:
    return row.prompt_sha256 if isinstance(row, QuestionRow) else ""


def _usable_pairings(
    a: ResultRows, b: ResultRows, changed_content: str, pairings: Sequence[_Pairing[R]]
) -> list[_Pairing[R]]:
    """Return the pairings of equal settings, else those whose differences may be named, else refuse.

    Of one measurement on several numbers of items the largest stands for all.
    """
    same_data = [pairing for pairing in pairings if pairing.rows and not pairing.changed_ids]
    changed = next((pairing for pairing in pairings if pairing.changed_ids), None)
    # Rows of earlier data may be in the same file as rows that compare: refuse only if there are no others.
    if changed and not same_data:
        count = len(changed.changed_ids)
        raise InputError(
            b.name,
            f"{count} of {count + len(changed.rows)} {changed_content} than in {a.name}",
            place=changed.changed_ids[0],
            hint="only results on the same data compare",
        )
    common = sorted(same_data, key=lambda pairing: -len(pairing.rows))
    allowed = [pairing for pairing in common if not pairing.conflicts]
    if common and not allowed:
        conflicts = common[0].conflicts
        only_rule = all(text.startswith("rule:") for text in conflicts)
        raise UsageError(
            f"{a.name} and {b.name} do not compare, they differ in {', '.join(conflicts)}",
            hint="evaluate both with the same settings"
            + (" (--rule); the scores are there, so no model is run again" if only_rule else ""),
        )
    # If the files allow a comparison of equals, pairs with named differences are dropped.
    equal = [pairing for pairing in allowed if not pairing.unlike] or allowed
    return list({pairing.settings: pairing for pairing in reversed(equal)}.values())[::-1]


def _document_differences(a: ResultRows, b: ResultRows, seed: int, resamples: int) -> Iterator[Comparison]:
    pairings = list(_pairings(a.documents, b.documents))
    for pairing in _usable_pairings(a, b, "documents have another text", pairings):
        by_source: dict[str, list[tuple[DocumentRow, DocumentRow]]] = {}
        for pair in pairing.rows:
            by_source.setdefault(pair[0].source, []).append(pair)
        for source, pairs in by_source.items():
            unit, losses, left_out = _comparable_losses(pairs)
            named = pairing.unlike
            if left_out:
                named += (f"{left_out} truncated documents left out",)
            if len(losses) >= 2:
                # A paired difference needs at least two documents.
                a_losses, b_losses = zip(*losses, strict=True)
                yield Comparison(
                    a=a.name,
                    b=b.name,
                    what=_measure(f"nll per {unit}, {source}", named),
                    source=source,
                    unlike=named,
                    **asdict(paired_bootstrap(b_losses, a_losses, seed=seed, resamples=resamples)),
                )


def _comparable_losses(
    pairs: Sequence[tuple[DocumentRow, DocumentRow]],
) -> tuple[str, list[tuple[float, float]], int]:
    """Return the unit in which the losses compare, the losses, and the number of documents left out."""
    # Equal token ids: the loss per token is the finer measure, and truncation is the same on both sides.
    if all(a.ids_sha256 == b.ids_sha256 for a, b in pairs):
        return "token", [(a.nll / a.tokens, b.nll / b.tokens) for a, b in pairs if a.tokens and b.tokens], 0
    # Two tokenizers cut a truncated document at different characters, so only whole documents compare.
    whole = [(a, b) for a, b in pairs if not (a.truncated or b.truncated)]
    losses = [(a.nll / a.bytes, b.nll / b.bytes) for a, b in whole if a.bytes and b.bytes]
    return "byte", losses, len(pairs) - len(whole)


def _question_differences(a: ResultRows, b: ResultRows) -> Iterator[Comparison]:
    for task in a.tasks:
        pairings = list(_pairings(a.tasks[task], b.tasks.get(task, ())))
        usable = _usable_pairings(a, b, "questions have other words, options or gold", pairings)
        settings = {tuple(_setting(pairing.rows[0][0])) for pairing in pairings if pairing.rows}
        for pairing in usable:
            if len(pairing.rows) >= 2:
                a_correct, b_correct = (
                    {pair[side].item(): pair[side].correct for pair in pairing.rows} for side in (0, 1)
                )
                # The setting is named only if there was a choice: most files have one.
                ambiguous = len(settings) > 1 or len(usable) > 1
                label = f"{task}{_setting_label(pairing.rows[0][0], usable) if ambiguous else ''}"
                yield accuracy_difference(
                    label, a.name, a_correct, b.name, b_correct, unlike=pairing.unlike, task=task
                )


def _setting_label(row: QuestionRow, usable: Sequence[_Pairing[QuestionRow]]) -> str:
    """Name one of several settings in which both sides were measured."""
    shown = _setting(row)
    if len({pairing.rows[0][0].data_sha256 for pairing in usable}) > 1:
        shown.append(f"data {row.data_sha256[:8]}")
    return f" ({', '.join(shown)})"


def _setting(row: QuestionRow) -> list[str]:
    return [row.template, row.prompt_form, row.scoring, f"{row.shots} shots", row.dtype]


def unlike(a: Sequence[EvalRow], b: Sequence[EvalRow]) -> tuple[str, ...]:
    """Return how two models' rows of the same items were measured differently, as `dtype: a's / b's`."""
    if not a or not b:
        return ()
    named = _differing(a[0], b[0], _NAMED_IF_DIFFERENT)
    if isinstance(a[0], QuestionRow):
        counts = [sum(row.truncated for row in rows if isinstance(row, QuestionRow)) for rows in (a, b)]
        if counts[0] != counts[1]:
            named += (f"truncated prompts: {counts[0]} / {counts[1]}",)
    return named


def _differing(a: EvalRow, b: EvalRow, fields: Sequence[str]) -> tuple[str, ...]:
    # Rows of documents and of some methods lack fields such as the rule: absent on both sides is equal.
    values = ((field, getattr(a, field, None), getattr(b, field, None)) for field in fields)
    return tuple(f"{_SHOWN_AS.get(name, name)}: {x} / {y}" for name, x, y in values if x != y)


def accuracy_difference(
    label: str,
    a: str,
    a_correct: Correctness,
    b: str,
    b_correct: Correctness,
    *,
    unlike: tuple[str, ...] = (),
    task: str | None = None,
) -> Comparison:
    """Subtract the accuracy of a from that of b on the same questions.

    Args:
        label: Name of the task in the measure's name, with the setting if there are several.
        a: Name of the first side.
        a_correct: Its answers.
        b: Name of the second side.
        b_correct: Its answers.
        unlike: Differences between the two measurements.
        task: The task's own name, if `label` says more.
    """
    # Only discordant pairs carry information (McNemar).
    pairs = [(a_correct[item], b_correct[item]) for item in sorted(a_correct)]
    difference = paired_proportions(pairs.count((False, True)), pairs.count((True, False)), len(pairs))
    return Comparison(
        a=a,
        b=b,
        what=_measure(f"accuracy, {label}", unlike),
        task=task or label,
        mcnemar=difference.p,
        unlike=unlike,
        **asdict(difference),
    )


def _measure(name: str, unlike: Sequence[str]) -> str:
    """Name a measure with its differences in brackets."""
    # Dequantized weights are the models' own difference, not one of the measurement.
    shown = [text for text in unlike if text.count("torch") < 2]
    return f"{name} [{'; '.join(shown)}]" if shown else name
