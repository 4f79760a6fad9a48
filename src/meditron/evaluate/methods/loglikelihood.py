"""The method `loglikelihood`: the option with the highest log-probability after the prompt is the answer."""

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

# Version of the engine's batching, part of the cache key: other batches change the last bits of a score.
_PACKING = 4
OptionScores = Sequence[npt.NDArray[np.float32]]
"""For each option, the log-probabilities of its tokens."""


class LoglikelihoodRow(QuestionRow):
    """The scores of one question's options."""

    method: Literal["loglikelihood"]

    rule: Rule
    """Rule that chose the prediction."""

    scores: dict[Rule, tuple[float, ...]]
    """Rule → score of each option, in nats; for the rule `bytes` in nats per byte."""

    option_probability_mass: float | None = Field(ge=0, le=1.0001)
    """Probability that the next token begins one of the options; None in imported rows, which may also lack
    rules."""

    # One file may contain rows of the same answers by two rules, which are two measurements.
    @property
    def scoring_name(self) -> str:
        """Name of the rule."""
        return self.rule

    @property
    def confidence(self) -> float | None:
        """Probability of the answer among the options: the softmax of their log-probabilities."""
        sums = self.scores.get("sum")
        if self.prediction is None or not sums:
            return None
        largest = max(sums)
        weights = [math.exp(score - largest) for score in sums]
        return weights[self.prediction] / math.fsum(weights)

    def best_option(self, rule: Rule) -> int:
        """Return the index of the option with the best score by a rule; of several the first."""
        scores = self.scores[rule]
        return scores.index(max(scores))

    def is_tied(self) -> bool:
        """Return True if several options share the best score."""
        scores = self.scores[self.rule]
        return scores.count(max(scores)) > 1

    def row_key(self) -> tuple[str, ...]:
        """Return the key of the row in its file. It includes the rule, because the cache key does not."""
        return self.model, self.cache_key, self.rule, *self.item_key()


class Loglikelihood(EvalMethod[LoglikelihoodRow]):
    """The method that compares the options' log-probabilities, like lm-eval."""

    name: ClassVar[str] = "loglikelihood"
    description: ClassVar[str] = "the option with the best log-probability after the prompt is the answer"
    row_type = LoglikelihoodRow

    def __init__(self, rule: Rule = "sum") -> None:
        self.rule = rule

    @classmethod
    def from_options(cls, options: EvalOptions, seed: int) -> Self:
        """Create the method with the rule that the options name."""
        del seed
        return cls(options.rule)

    def cache_key(self) -> Mapping[str, object]:
        """Return the batch settings. The rule is left out, because every row has the scores of all rules."""
        return {"batches": [self.group_size, _PACKING]}

    def answer_prompts(
        self, model: EvalModel, prompts: Sequence[EvalPrompt], fields: Sequence[Mapping[str, Any]]
    ) -> list[LoglikelihoodRow]:
        """Score every option after the prompt, and after the prompt without the question."""
        engine = model.scorer
        with_question = [encode_prompt(model, engine, prompt) for prompt in prompts]
        without = [encode_prompt(model, engine, prompt, unconditional=True) for prompt in prompts]
        if any(prompt.shot_ids for prompt in prompts):
            # Both kinds of prompts begin with the same examples, which the engine reads once within one call.
            scores = _score_options(engine, [*with_question, *without])
            conditional, unconditional = scores[: len(prompts)], scores[len(prompts) :]
        else:
            conditional, unconditional = (
                _score_options(engine, with_question),
                _score_options(engine, without),
            )
        return [
            self._make_row(model, *one_question)
            for one_question in zip(prompts, with_question, conditional, unconditional, fields, strict=True)
        ]

    def _make_row(
        self,
        model: EvalModel,
        prompt: EvalPrompt,
        encoded: EncodedPrompt,
        conditional: OptionScores,
        unconditional: OptionScores,
        fields: Mapping[str, Any],
    ) -> LoglikelihoodRow:
        # Summed in float64: for options of many tokens a float32 sum loses digits that decide near ties.
        sums = [float(logp.sum(dtype=np.float64)) for logp in conditional]
        priors = [float(logp.sum(dtype=np.float64)) for logp in unconditional]
        # Divided by bytes, like lm-eval's acc_bytes (acc_norm divides by characters); by 1 for an empty
        # option.
        lengths = [max(1, len(text.strip().encode())) for text in prompt.rendered.continuations]
        # A dict, so that the probability of a token that begins several options is counted once.
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
        # The rows are written to the file as they are here, so they must already have an answer.
        return self.choose_answer(row)

    def choose_answer(self, row: LoglikelihoodRow) -> LoglikelihoodRow:
        """Return the row with the answer that the rule chooses."""
        prediction = row.best_option(self.rule)
        changes = {"rule": self.rule, "prediction": prediction, "correct": prediction == row.gold}
        return row.model_copy(update=changes)

    def score_fields(self, rows: Sequence[LoglikelihoodRow]) -> dict[str, Any]:
        """Return the accuracy by every rule, the number of ties, and the mean probability of the options."""
        gold = [row.gold for row in rows]
        rules = [rule for rule in RULES if all(rule in row.scores for row in rows)]
        masses = [row.option_probability_mass for row in rows if row.option_probability_mass is not None]
        return {
            "rule": self.rule,
            "rules": {rule: count_accuracy(gold, [row.best_option(rule) for row in rows]) for rule in rules},
            "ties": sum(row.is_tied() for row in rows),
            # Rounding can make the mean slightly larger than 1.
            "option_probability_mass": min(1.0, sum(masses) / len(rows))
            if len(masses) == len(rows)
            else None,
        }

    def alternative_predictions(self, rows: Sequence[LoglikelihoodRow]) -> Mapping[str, Sequence[int | None]]:
        """Return the predictions by the rule `calibrated`, unless it is the rule of this method."""
        if self.rule == "calibrated":
            return {}
        return {"calibrated": [row.best_option("calibrated") for row in rows]}


def _score_options(engine: ScoresTokens, encoded: Sequence[EncodedPrompt]) -> list[OptionScores]:
    """Score the continuations of all prompts in one call, so that the engine reads shared prefixes once."""
    scores = iter(engine.score([request for prompt in encoded for request in prompt.scoring_requests()]))
    return [[next(scores) for _ in prompt.continuations] for prompt in encoded]
