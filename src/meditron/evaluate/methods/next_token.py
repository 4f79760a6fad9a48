"""The method `next-token`: the most likely token of the whole vocabulary is the answer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from meditron.evaluate.methods.base import EvalMethod
from meditron.evaluate.model import EvalModel
from meditron.evaluate.prompts import EvalPrompt, encode_prompt
from meditron.evaluate.rows import QuestionRow
from meditron.text.tokenizer import Tokenizer

__all__ = ["NextToken", "NextTokenRow"]

# Version of the engine's batching, part of the cache key: other batches change the last bits of a score.
_PACKING = 3


class NextTokenRow(QuestionRow):
    """The most likely next token after one question's prompt."""

    method: Literal["next-token"]

    token: str
    """The most likely token of the whole vocabulary."""

    option_probability_mass: float = Field(ge=0, le=1.0001)
    """Probability that the next token begins one of the options."""


class NextToken(EvalMethod[NextTokenRow]):
    """The method that takes the most likely next token. A token that names no option counts as wrong."""

    name: ClassVar[str] = "next-token"
    description: ClassVar[str] = (
        "the most likely token of the vocabulary is the answer; one that names no option is wrong"
    )
    row_type = NextTokenRow

    def cache_key(self) -> Mapping[str, object]:
        """Return the batch settings."""
        return {"batches": [self.group_size, _PACKING]}

    def answer_prompts(
        self, model: EvalModel, prompts: Sequence[EvalPrompt], fields: Sequence[Mapping[str, Any]]
    ) -> list[NextTokenRow]:
        """Take the most likely token after each prompt as the answer."""
        engine = model.logits_engine
        encoded = [encode_prompt(model, engine, prompt) for prompt in prompts]
        rows = []
        predictions = engine.next_token([prompt.prefix for prompt in encoded])
        for prompt, prompt_ids, logp_V, known in zip(prompts, encoded, predictions, fields, strict=True):
            # Only the options' first tokens are compared, so the method suits letters and not long options.
            first = [continuation[0] for continuation in prompt_ids.continuations]
            mass = math.fsum(math.exp(logp_V[token]) for token in set(first))
            model.require_finite(f"a score on {prompt.question.id}", mass)
            # Of equally likely tokens argmax takes the first, like greedy decoding.
            token = int(logp_V.argmax())
            prediction = _option_of_token(engine.tokenizer, token, first)
            rows.append(
                NextTokenRow(
                    **known,
                    prediction=prediction,
                    correct=prediction == prompt.question.gold,
                    option_probability_mass=mass,
                    token=engine.tokenizer.decode([token]),
                    truncated=prompt_ids.truncated,
                )
            )
        return rows

    def score_fields(self, rows: Sequence[NextTokenRow]) -> dict[str, Any]:
        """Return the mean probability of the options."""
        # Rounding can make the mean slightly larger than 1.
        mass = sum(row.option_probability_mass for row in rows) / len(rows)
        return {"option_probability_mass": min(1.0, mass)}


def _option_of_token(tokenizer: Tokenizer, token: int, first: Sequence[int]) -> int | None:
    """Return the option that begins with a token, ignoring white space; None if there is none or several.

    ` A` and `A` both name option A; `a` does not.
    """
    word = tokenizer.decode([token]).strip()
    options = [
        option for option, other in enumerate(first) if word and tokenizer.decode([other]).strip() == word
    ]
    return options[0] if len(options) == 1 else None
