"""The method `next-token`: the most likely next token after the prompt is the answer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from meditron.evaluate.config import EvalOptions
from meditron.evaluate.methods.base import EvalMethod
from meditron.evaluate.model import EvalModel
from meditron.evaluate.prompts import EvalPrompt, encode_prompt
from meditron.evaluate.rows import LogProbability, QuestionRow
from meditron.text.tokenizer import Tokenizer

__all__ = ["NextToken", "NextTokenRow"]

# Version of the engine's batching, part of the cache key: other batches change the last bits of a score.
_PACKING = 4


class NextTokenRow(QuestionRow):
    """The most likely next token after one question's prompt."""

    method: Literal["next-token"]

    constrained: bool
    """True if the answer was chosen among the options' first tokens."""

    token: str
    """The most likely token of the whole vocabulary."""

    free_prediction: int | None
    """Index of the option that this token names; None if it names none."""

    scores: dict[Literal["first-token"], tuple[LogProbability, ...]]
    """Log-probability of the first token of each option, in nats."""

    option_probability_mass: float = Field(ge=0, le=1.0001)
    """Probability that the next token begins one of the options."""

    @property
    def scoring_name(self) -> str:
        """Name of the method, and whether it is constrained."""
        return f"{self.method} (constrained)" if self.constrained else self.method

    def row_key(self) -> tuple[str, ...]:
        """Return the key of the row in its file. It includes the setting, because the cache key does not."""
        return self.model, self.cache_key, str(self.constrained), *self.item_key()


class NextToken(EvalMethod[NextTokenRow]):
    """The method that takes the most likely next token: of the vocabulary, or of the options' first tokens.

    If the choice is free, a token that names no option counts as wrong.
    """

    name: ClassVar[str] = "next-token"
    description: ClassVar[str] = (
        "the most likely next token is the answer: of the vocabulary, where one that names no option is "
        "wrong, or (constrained) of the options' first tokens"
    )
    row_type = NextTokenRow

    def __init__(self, *, constrained: bool = False) -> None:
        self.constrained = constrained

    @classmethod
    def from_options(cls, options: EvalOptions, seed: int) -> Self:
        """Create the method, constrained if the options say so."""
        del seed
        return cls(constrained=options.constrained)

    def cache_key(self) -> Mapping[str, object]:
        """Return the batch settings. `constrained` is left out, because every row has the answers of both."""
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
            scores = tuple(min(0.0, float(logp_V[token])) for token in first)
            model.require_finite(f"a score on {prompt.question.id}", mass, *scores)
            # Of equally likely tokens argmax takes the first, like greedy decoding.
            token = int(logp_V.argmax())
            row = NextTokenRow(
                **known,
                constrained=self.constrained,
                prediction=None,
                correct=False,
                free_prediction=_option_of_token(engine.tokenizer, token, first),
                scores={"first-token": scores},
                option_probability_mass=mass,
                token=engine.tokenizer.decode([token]),
                truncated=prompt_ids.truncated,
            )
            rows.append(self.choose_answer(row))
        return rows

    def choose_answer(self, row: NextTokenRow) -> NextTokenRow:
        """Return the row with the answer of this method's setting."""
        prediction, scores = row.free_prediction, row.scores["first-token"]
        if self.constrained:
            # Options that begin with the same token cannot be told apart: then there is no answer.
            prediction = scores.index(max(scores)) if scores.count(max(scores)) == 1 else None
        changes = {
            "constrained": self.constrained,
            "prediction": prediction,
            "correct": prediction == row.gold,
        }
        return row.model_copy(update=changes)

    def score_fields(self, rows: Sequence[NextTokenRow]) -> dict[str, Any]:
        """Return the setting, and the mean probability of the options."""
        # Rounding can make the mean slightly larger than 1.
        mass = sum(row.option_probability_mass for row in rows) / len(rows)
        return {"constrained": self.constrained, "option_probability_mass": min(1.0, mass)}


def _option_of_token(tokenizer: Tokenizer, token: int, first: Sequence[int]) -> int | None:
    """Return the option that begins with a token, ignoring white space; None if there is none or several.

    ` A` and `A` both name option A; `a` does not.
    """
    word = tokenizer.decode([token]).strip()
    options = [
        option for option, other in enumerate(first) if word and tokenizer.decode([other]).strip() == word
    ]
    return options[0] if len(options) == 1 else None
