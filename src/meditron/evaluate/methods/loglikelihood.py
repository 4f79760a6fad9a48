"""Log-likelihood: the option with the highest log-probability after the prompt is the answer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from meditron.engine.base import ScoresTokens
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.methods.base import EvalMethod, count_accuracy
from meditron.evaluate.model import EvalModel
from meditron.evaluate.prompts import EncodedPrompt, EvalPrompt, encode_prompt
from meditron.evaluate.rows import QuestionRow
from meditron.store.results import RULES, Rule

__all__ = ["Loglikelihood", "LoglikelihoodRow"]

# Raised whenever the engine packs the tokens differently: the order of a sum moves a score's last bits.
_PACKING = 3
OptionScores = Sequence[npt.NDArray[np.float32]]
"""For each option, the log-probabilities of its tokens."""


class LoglikelihoodRow(QuestionRow):
    """The options' scores of one question."""

    method: Literal["loglikelihood"]

    rule: Rule
    """Rule that chose the prediction."""

    scores: dict[Rule, tuple[float, ...]]
    """Each option's score by each rule, in nats (by bytes: nats per byte)."""

    option_probability_mass: float = Field(ge=0, le=1.0001)
    """Probability that the next token begins one of the options."""

    # Two rules on the same scores are two measurements: rows of both may be in one file.
    @property
    def scoring(self) -> str:
        """The rule's name."""
        return self.rule

    def choice(self, rule: Rule) -> int:
        """Return the option with the best score by this rule, the first of equals."""
        scores = self.scores[rule]
        return scores.index(max(scores))

    def is_tied(self) -> bool:
        """Return True if several options share the best score."""
        scores = self.scores[self.rule]
        return scores.count(max(scores)) > 1

    def key(self) -> tuple[str, ...]:
        """Return the row's identity, with the rule: one cache key's scores serve every rule."""
        return self.model, self.cache_key, self.rule, *self.item()


class Loglikelihood(EvalMethod[LoglikelihoodRow]):
    """Comparison of the options' log-probabilities, as in lm-eval."""

    name: ClassVar[str] = "loglikelihood"
    description: ClassVar[str] = "the option with the best log-probability after the prompt is the answer"
    row_type = LoglikelihoodRow

    def __init__(self, rule: Rule = "sum") -> None:
        self.rule = rule

    @classmethod
    def from_options(cls, options: EvalOptions) -> Self:
        """Create the method with the rule of the options."""
        return cls(options.rule)

    def cache_key(self) -> Mapping[str, object]:
        """Return the batches. The rule is not part of it: every row has the scores of all rules."""
        return {"batches": [self.group_size, _PACKING]}

    def answer(
        self, model: EvalModel, prompts: Sequence[EvalPrompt], fields: Sequence[Mapping[str, Any]]
    ) -> list[LoglikelihoodRow]:
        """Score every option after its prompt, and after the prompt without the question."""
        engine = model.scorer
        with_question = [encode_prompt(model, engine, prompt) for prompt in prompts]
        without = [encode_prompt(model, engine, prompt, unconditional=True) for prompt in prompts]
        if any(prompt.shot_ids for prompt in prompts):
            # Both kinds of prompts begin with the same examples: in one call the engine reads them once.
            scores = _score(engine, [*with_question, *without])
            conditional, unconditional = scores[: len(prompts)], scores[len(prompts) :]
        else:
            conditional, unconditional = _score(engine, with_question), _score(engine, without)
        return [
            self._row(model, *one_question)
            for one_question in zip(prompts, with_question, conditional, unconditional, fields, strict=True)
        ]

    def _row(
        self,
        model: EvalModel,
        prompt: EvalPrompt,
        encoded: EncodedPrompt,
        conditional: OptionScores,
        unconditional: OptionScores,
        fields: Mapping[str, Any],
    ) -> LoglikelihoodRow:
        # float64 sums: options of many tokens would otherwise lose digits that decide near ties.
        sums = [float(logp.sum(dtype=np.float64)) for logp in conditional]
        priors = [float(logp.sum(dtype=np.float64)) for logp in unconditional]
        # lm-eval's acc_norm divides by characters, its acc_bytes by bytes; at least 1 for an empty option.
        lengths = [max(1, len(text.strip().encode())) for text in prompt.rendered.continuations]
        # Options that begin with the same token share its probability: count it once.
        first = {ids[0]: float(logp[0]) for ids, logp in zip(encoded.continuations, conditional, strict=True)}
        scores: dict[Rule, tuple[float, ...]] = {
            "sum": tuple(sums),
            "bytes": tuple(total / length for total, length in zip(sums, lengths, strict=True)),
            "calibrated": tuple(total - prior for total, prior in zip(sums, priors, strict=True)),
        }
        mass = math.fsum(map(math.exp, first.values()))
        model.require_finite(f"a score on {prompt.question.id}", mass, *sums, *priors)
        row = LoglikelihoodRow(
            **fields,
            rule=self.rule,
            prediction=None,
            correct=False,
            scores=scores,
            option_probability_mass=mass,
            truncated=encoded.truncated,
        )
        # A killed run leaves rows as they are here: they must already hold answers.
        return self.choose(row)

    def choose(self, row: LoglikelihoodRow) -> LoglikelihoodRow:
        """Choose the option by the rule."""
        prediction = row.choice(self.rule)
        changes = {"rule": self.rule, "prediction": prediction, "correct": prediction == row.gold}
        return row.model_copy(update=changes)

    def summarize(self, rows: Sequence[LoglikelihoodRow]) -> dict[str, Any]:
        """Return the accuracy by every rule, the ties and the mean probability of the options."""
        gold = [row.gold for row in rows]
        return {
            "rule": self.rule,
            "rules": {rule: count_accuracy(gold, [row.choice(rule) for row in rows]) for rule in RULES},
            "ties": sum(row.is_tied() for row in rows),
            # Rounding can lift the sum of probabilities slightly above 1.
            "option_probability_mass": min(1.0, sum(row.option_probability_mass for row in rows) / len(rows)),
        }

    def alternatives(self, rows: Sequence[LoglikelihoodRow]) -> Mapping[str, Sequence[int | None]]:
        """Return the calibrated predictions, unless they are the chosen ones."""
        if self.rule == "calibrated":
            return {}
        return {"calibrated": [row.choice("calibrated") for row in rows]}


def _score(engine: ScoresTokens, encoded: Sequence[EncodedPrompt]) -> list[OptionScores]:
    """Score each prompt's continuations in one call, so that the engine reads shared prefixes once."""
    scores = iter(engine.score([request for prompt in encoded for request in prompt.requests()]))
    return [[next(scores) for _ in prompt.continuations] for prompt in encoded]
