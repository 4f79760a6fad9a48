"""Attribution of the difference between two results of one model to the settings that differ.

The results are those of one task under two settings, a and b. Every setting in which they differ is a factor.
Further evaluations of the task, in which some factors have a's value and the others b's, separate the
factors: the longest chain of evaluations from a to b that changes factors one after the other is taken, in
the order of `Setting.factors` if there are several. A step in which several factors change attributes its
difference to them together. Answers by another rule need no evaluation: the rows hold the scores of all
rules.

Each step compares two evaluations on the same questions: questions that become right and wrong, and McNemar's
exact test. The questions that only one of the results has, or that differ in content, form the factor `data`.
Its effect is what remains: each result's accuracy on all of its questions, minus that on the common ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from meditron.core.errors import UsageError
from meditron.core.statistics import MIN_SAMPLE_SIZE, holm, paired_proportions
from meditron.evaluate.methods.loglikelihood import LoglikelihoodRow
from meditron.evaluate.result_rows import ItemKey, ResultRows
from meditron.evaluate.rows import NOT_KNOWN, QuestionRow
from meditron.evaluate.settings import METHOD, PROMPT_FACTORS, Setting
from meditron.store.explanations import Explanation, FactorEffect, Flip

__all__ = ["COMPUTATION", "DATA", "PROMPT", "SettingPair", "explain", "select_setting", "settings_of"]

DATA, PROMPT, COMPUTATION = "data", "prompt text", "computation"
Changed = frozenset[str]
"""Factors that have b's value; all others have a's."""


def settings_of(result: ResultRows, task: str) -> list[Setting]:
    """Return the evaluations of a task in a result."""
    return [Setting(rows, result.name) for rows in result.tasks.get(task, ()) if rows]


def select_setting(
    result: ResultRows, task: str, wanted: Mapping[str, str], flag: str = "--a or --b"
) -> Setting:
    """Return the only evaluation of a task in a result whose settings are the wanted ones.

    Raises:
        UsageError: there is none or are several; the error lists the settings that differ.
    """
    known = settings_of(result, task)
    fitting = [setting for setting in known if setting.matches(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    names = dict.fromkeys(name for setting in known for name in setting.factors)
    values = {name: dict.fromkeys(setting.shown(name) for setting in known) for name in names}
    values["data"] = dict.fromkeys((setting.first.data_sha256 or NOT_KNOWN)[:8] for setting in known)
    choices = [
        f"{name.replace(' ', '-')} {' or '.join(sorted(shown))}"
        for name, shown in values.items()
        if len(shown) > 1
    ]
    count = "no evaluation" if not fitting else f"{len(fitting)} evaluations"
    raise UsageError(
        f"{result.name} has {count} of {task} with these settings",
        hint=f"choose with {flag} NAME=VALUE: {'; '.join(choices)}" if choices else None,
    )


@dataclass(frozen=True)
class SettingPair:
    """Two settings of one task, and the factors in which they differ."""

    a: Setting
    b: Setting

    @cached_property
    def common(self) -> tuple[ItemKey, ...]:
        """The questions that both have with the same content, sorted."""
        return tuple(sorted(key for key in self.a.rows if key in self.b.rows))

    @cached_property
    def factors(self) -> tuple[str, ...]:
        """Names of the factors, without `data`."""
        a, b = self.a.factors, self.b.factors
        # A setting that only one of two methods has is part of the factor `method`.
        names = [name for name in a if name in b and a[name] != b[name]]
        if not self._prompt_factors & {*names} and self.a.prompts(self.common) != self.b.prompts(self.common):
            names.insert(0, PROMPT)
        # With other questions there are other batches, but mostly the same answers.
        if not names and any(_flip(self.a.rows[key], self.b.rows[key]) for key in self.common):
            names = [COMPUTATION]
        return tuple(names)

    @property
    def _prompt_factors(self) -> frozenset[str]:
        """Factors that change the text of the prompts, including the method if only one side's reasons."""
        return PROMPT_FACTORS | ({METHOD} if self.a.reasons != self.b.reasons else set())

    def place(self, setting: Setting) -> Changed | None:
        """Return the factors that have b's value in a setting; None if it is not between a and b."""
        if not all(key in setting.rows for key in self.common):
            return None
        changed: set[str] = set()
        names = {*self.factors} - {PROMPT, COMPUTATION}
        for name in {*setting.factors, *names}:
            value, a, b = (each.factors.get(name, ...) for each in (setting, self.a, self.b))
            if name in names and value == b:
                changed.add(name)
            # Outside of the factors, a and b are equal, or only the one with this method has the setting.
            elif value != a and (name in names or value != b):
                return None
        return self._place_prompts(setting, changed)

    def _place_prompts(self, setting: Setting, changed: set[str]) -> Changed | None:
        """Check the prompts: with all settings that decide them from one side, they must be that side's."""
        prompts, a, b = (each.prompts(self.common) for each in (setting, self.a, self.b))
        if self.factors == (COMPUTATION,):
            keys = (setting.first.cache_key, self.a.first.cache_key, self.b.first.cache_key)
            return None if keys[0] not in keys[1:] else frozenset(self.factors if keys[0] == keys[2] else ())
        if PROMPT in self.factors:
            if prompts not in (a, b):
                return None
            return frozenset({*changed, PROMPT} if prompts == b else changed)
        deciding = self._prompt_factors & {*self.factors}
        wrong = (not deciding & changed and prompts != a) or (deciding <= changed and prompts != b)
        return None if wrong else frozenset(changed)


def explain(pair: SettingPair, others: Iterable[Setting] = (), *, name_a: str, name_b: str) -> Explanation:
    """Attribute the difference of two settings' accuracies to the factors in which they differ.

    Args:
        pair: The two settings.
        others: Further evaluations of the task, by any settings; those between a and b separate the factors.
        name_a: Name of the first result.
        name_b: Name of the second result.

    Raises:
        UsageError: the results have no question in common.
    """
    a, b, common = pair.a, pair.b, pair.common
    if not common:
        raise UsageError(
            f"{name_a} and {name_b} have no question of {a.first.task} in common",
            hint="evaluate both on the same questions",
        )
    chain = _longest_chain(pair.factors, _nodes(pair, others))
    effects = [_effect(pair, before, after, chain[before], chain[after]) for before, after in pairwise(chain)]
    data = _data_effect(pair)
    return Explanation(
        a=name_a,
        b=name_b,
        task=a.first.task,
        n_a=len(a.rows),
        n_b=len(b.rows),
        n=len(common),
        accuracy_a=a.accuracy(a.rows),
        accuracy_b=b.accuracy(b.rows),
        difference=b.accuracy(b.rows) - a.accuracy(a.rows),
        factors=(*([DATA] if data else []), *pair.factors),
        effects=(*_adjusted(effects), *([data] if data else [])),
        missing=tuple(_missing(pair, effect) for effect in effects if len(effect.factors) > 1),
    )


def _nodes(pair: SettingPair, others: Iterable[Setting]) -> dict[Changed, Setting]:
    """Return the evaluations between a and b, by the factors that have b's value."""
    settings = [pair.a, pair.b, *others]
    # The same answers by the other side's rule.
    rules = [s.first.rule for s in (pair.a, pair.b) if isinstance(s.first, LoglikelihoodRow)]
    settings += [
        setting.by_rule(rule)
        for setting in settings
        if isinstance(setting.first, LoglikelihoodRow)
        for rule in dict.fromkeys(rules)
        # An imported result may have the scores of one rule only.
        if rule in setting.first.scores
    ]
    nodes: dict[Changed, Setting] = {frozenset(): pair.a, frozenset(pair.factors): pair.b}
    for setting in settings:
        place = pair.place(setting)
        if place is not None:
            nodes.setdefault(place, setting)
    return nodes


def _longest_chain(factors: Sequence[str], nodes: Mapping[Changed, Setting]) -> dict[Changed, Setting]:
    """Return the chain of most evaluations from a to b, each of which changes further factors."""
    order = {name: place for place, name in enumerate(factors)}
    best: dict[Changed, tuple[Changed, ...]] = {}
    for place in sorted(nodes, key=lambda node: (len(node), sorted(order[name] for name in node))):
        # Of several longest chains, the one whose steps come first in the order of the factors.
        chains = [(*best[before], place) for before in best if before < place]
        best[place] = max(
            chains,
            key=lambda chain: (len(chain), *(-sum(order[f] for f in node) for node in chain)),
            default=(place,),
        )
    return {place: nodes[place] for place in best[frozenset(factors)]}


def _effect(pair: SettingPair, before: Changed, after: Changed, x: Setting, y: Setting) -> FactorEffect:
    names = tuple(name for name in pair.factors if name in after - before)
    flips = [_flip(x.rows[key], y.rows[key]) for key in pair.common]
    changed = tuple(flip for flip in flips if flip is not None)
    gained, lost = (sum(flip.effect == effect for flip in changed) for effect in ("gained", "lost"))
    n = len(pair.common)
    difference = paired_proportions(gained, lost, n)
    return FactorEffect(
        factors=names,
        changes=tuple(_change(pair, name) for name in names),
        n=n,
        before=x.accuracy(pair.common),
        after=y.accuracy(pair.common),
        difference=difference.difference,
        interval=difference.interval,
        p=difference.p,
        p_adjusted=None,
        gained=gained,
        lost=lost,
        flips=changed,
    )


def _flip(before: QuestionRow, after: QuestionRow) -> Flip | None:
    if (before.prediction, before.correct) == (after.prediction, after.correct):
        return None
    effect: Literal["gained", "lost", "both wrong"] = "both wrong"
    if before.correct != after.correct:
        effect = "gained" if after.correct else "lost"
    return Flip(id=after.id, gold=after.gold, before=before.prediction, after=after.prediction, effect=effect)


def _change(pair: SettingPair, factor: str) -> str:
    if factor in (PROMPT, COMPUTATION):
        reasons = {
            PROMPT: "other prompts under the same settings, such as another chat template of the tokenizer",
            COMPUTATION: "other batches or another version of the program",
        }
        return f"{factor}: {reasons[factor]}"
    text = f"{factor}: {pair.a.shown(factor)} / {pair.b.shown(factor)}"
    if factor == METHOD:
        own = [
            f"{name} {side.shown(name)}"
            for side, other in ((pair.a, pair.b), (pair.b, pair.a))
            for name in side.factors
            if name not in other.factors
        ]
        text += f" ({', '.join(own)})" if own else ""
    return text


def _adjusted(effects: Sequence[FactorEffect]) -> list[FactorEffect]:
    p = holm([effect.p for effect in effects if effect.p is not None])
    return [
        effect.model_copy(update={"p_adjusted": value if effect.n >= MIN_SAMPLE_SIZE else None})
        for effect, value in zip(effects, p, strict=True)
    ]


def _data_effect(pair: SettingPair) -> FactorEffect | None:
    """Return the effect of questions that are not common; None if all are."""
    a, b, common = pair.a, pair.b, pair.common
    if len(common) == len(a.rows) == len(b.rows):
        return None
    by_id = {key[0]: row for key, row in b.rows.items() if key not in a.rows}
    pairs = [(row, by_id[key[0]]) for key, row in a.rows.items() if key not in b.rows and key[0] in by_id]
    counts = {
        f"in {side} only": len(each.rows) - len(common) - len(pairs) for side, each in (("a", a), ("b", b))
    } | {"with other words, options or gold": len(pairs)}
    flips = [flip for flip in (_flip(*rows) for rows in pairs) if flip is not None]
    # What the common questions leave of the difference.
    rest = b.accuracy(b.rows) - b.accuracy(common) - (a.accuracy(a.rows) - a.accuracy(common))
    return FactorEffect(
        factors=(DATA,),
        changes=tuple(f"{count} questions {what}" for what, count in counts.items() if count),
        n=sum(counts.values()),
        before=a.accuracy(a.rows),
        after=a.accuracy(a.rows) + rest,
        difference=rest,
        interval=None,
        p=None,
        p_adjusted=None,
        gained=sum(flip.effect == "gained" for flip in flips),
        lost=sum(flip.effect == "lost" for flip in flips),
        flips=tuple(flips),
    )


def _missing(pair: SettingPair, effect: FactorEffect) -> str:
    """Return the evaluation that would separate the first of several factors."""
    first, *others = effect.factors
    changed = f"{first} as in b" if first in (PROMPT, COMPUTATION) else f"{first} {pair.b.shown(first)}"
    return f"{changed}, with {', '.join(others)} as in a"
