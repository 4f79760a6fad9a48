"""The settings of an evaluation as factors, by which two results of one model can differ."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from meditron.evaluate.methods.generated import GeneratedRow
from meditron.evaluate.methods.loglikelihood import Loglikelihood, LoglikelihoodRow
from meditron.evaluate.result_rows import ItemKey
from meditron.evaluate.rows import NOT_KNOWN, QuestionRow
from meditron.store.results import Rule
from meditron.tasks.reasoning import plain_template_id

__all__ = ["METHOD", "PROMPT_FACTORS", "SHOTS", "Setting", "base_template"]

METHOD, SHOTS = "method", "shots"
_FACTORS = {
    "model_digest": "model",
    "version": "task version",
    "template": "template",
    "prompt_form": "prompt form",
    "method": METHOD,
    "engine": "engine",
    "dtype": "dtype",
}
"""Field of every row → its factor. The factor of any other setting is the field's name in words."""
_FIRST = ("model", "task version", "template", SHOTS, "prompt form", METHOD)
_LAST = ("engine", "dtype")
# The fields of items and answers; all other fields of a row are settings.
_NOT_SETTINGS = frozenset(
    {
        *("model", "id", "cache_key", "task", "data_sha256", "question_sha256", "prompt_sha256", "cluster"),
        "seed_offset",
        *("shots", "shot_ids", "shots_sha256"),  # one factor together
        *("gold", "prediction", "correct", "truncated"),
        "extraction_method",
        *("scores", "token", "option_probability_mass", "outputs", "votes", "unfinished"),
    }
)
PROMPT_FACTORS = frozenset({"task version", "template", SHOTS, "prompt form", "system prompt"})
"""Factors that change the text of the prompts."""


def base_template(row: QuestionRow) -> str | None:
    """Return the id of the template that a method adapted: letters/1 for letters-cot/1.

    The instruction to reason is part of the method: no other method has the adapted template.
    """
    if row.template is None or not isinstance(row, GeneratedRow):
        return row.template
    return plain_template_id(row.template)


@dataclass(frozen=True)
class Setting:
    """The rows of one evaluation of a task, all with the same settings."""

    rows: Mapping[ItemKey, QuestionRow]
    """Question → row; at least one."""
    source: str = ""
    """Name of the result that the rows are from."""

    @cached_property
    def first(self) -> QuestionRow:
        """One of the rows."""
        return next(iter(self.rows.values()))

    @cached_property
    def factors(self) -> dict[str, object]:
        """Factor → value, in the order in which `explain` changes them.

        First the model and what the prompt is made of, then the method and its settings, then the engine.
        """
        values: dict[str, object] = {name: getattr(self.first, key) for key, name in _FACTORS.items()}
        values["template"] = base_template(self.first)
        # A question that is among the examples has another one in its place, so the commonest ids are taken.
        [(examples, _)] = Counter(row.shot_ids for row in self.rows.values()).most_common(1)
        shots = [row.shots for row in self.rows.values() if row.shots is not None]
        values[SHOTS] = (max(shots, default=None), self.first.shots_sha256, examples)
        for key in type(self.first).model_fields:
            value = getattr(self.first, key)
            constant = all(getattr(row, key) == value for row in self.rows.values())
            if constant and key not in _FACTORS and key not in _NOT_SETTINGS:
                values[key.replace("_", " ")] = value
        middle = [name for name in values if name not in (*_FIRST, *_LAST)]
        return {name: values[name] for name in (*_FIRST, *middle, *_LAST)}

    def shown(self, factor: str) -> str:
        """Return the value of a factor as text."""
        value = self.factors.get(factor)
        if factor == "model":
            digest = self.first.model_digest
            return f"{self.first.model}@{digest[:8]}" if digest else self.first.model
        if isinstance(value, tuple) and factor == SHOTS:
            examples = f" ({', '.join(value[2])})" if value[2] else ""
            return f"{NOT_KNOWN if value[0] is None else value[0]}{examples}"
        # The program that wrote an imported result did not record it; other settings are off.
        absent = NOT_KNOWN if factor in _FACTORS.values() else "none"
        return absent if value is None else str(value)

    def matches(self, wanted: Mapping[str, str]) -> bool:
        """Return True if every named factor has this value: `{"template": "letters/1", "shots": "3"}`.

        Spaces in names may be written as underscores or dashes; a template's version and the ids of examples
        may be left out.
        """
        shown = {name: self.shown(name) for name in self.factors}
        shown["data"] = (self.first.data_sha256 or NOT_KNOWN)[:8]
        for name, text in wanted.items():
            value = shown.get(name.replace("_", " ").replace("-", " "), "")
            names = [value]
            if name == "template":
                adapted = self.first.template or ""  # as reports show it
                names += [value.partition("/")[0], adapted, adapted.partition("/")[0]]
            elif name == SHOTS:
                names.append(value.partition(" ")[0])
            if text not in names:
                return False
        return True

    @property
    def reasons(self) -> bool:
        """True if the method adds the instruction to reason to the prompts."""
        return isinstance(self.first, GeneratedRow)

    def prompts(self, keys: Iterable[ItemKey]) -> tuple[str | None, ...]:
        """Return the hashes of these questions' prompts; None for a prompt that is not known."""
        return tuple(self.rows[key].prompt_sha256 for key in keys)

    def accuracy(self, keys: Iterable[ItemKey]) -> float:
        """Return the share of correct answers to these questions."""
        right = [self.rows[key].correct for key in keys]
        return sum(right) / len(right)

    def by_rule(self, rule: Rule) -> "Setting":
        """Return the same answers chosen by another rule from their stored scores."""
        method = Loglikelihood(rule)
        answers = {k: row for k, row in self.rows.items() if isinstance(row, LoglikelihoodRow)}
        return Setting({k: method.choose_answer(row) for k, row in answers.items()}, self.source)
