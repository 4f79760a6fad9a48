"""A toy evaluation method: generate answers, extract an option letter from each, and vote."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from meditron.evaluate.methods.base import EvalMethod
from meditron.evaluate.model import EvalModel
from meditron.evaluate.prompts import EvalPrompt
from meditron.evaluate.rows import QuestionRow

SAMPLES = 3


class ToyVoteRow(QuestionRow):
    method: Literal["toy-vote"]
    outputs: tuple[str, ...]
    votes: tuple[int | None, ...]


class ToyVote(EvalMethod[ToyVoteRow]):
    name: ClassVar[str] = "toy-vote"
    description: ClassVar[str] = "the letter that most generated answers name is the answer"
    row_type = ToyVoteRow

    def cache_key(self) -> Mapping[str, object]:
        return {"samples": SAMPLES}

    def answer_prompts(
        self, model: EvalModel, prompts: Sequence[EvalPrompt], fields: Sequence[Mapping[str, Any]]
    ) -> list[ToyVoteRow]:
        rows = []
        for prompt, known in zip(prompts, fields, strict=True):
            texts = [prompt.rendered.prompt] * SAMPLES
            generated = model.generator.generate_batch(texts, max_tokens=8, temperature=1.0, seed=1)
            outputs = tuple(generation.text for generation in generated)
            votes = tuple(vote(text, len(prompt.question.options)) for text in outputs)
            counts = Counter(vote for vote in votes if vote is not None)
            prediction = counts.most_common(1)[0][0] if counts else None
            correct = prediction == prompt.question.gold
            rows.append(
                ToyVoteRow(**known, prediction=prediction, correct=correct, outputs=outputs, votes=votes)
            )
        return rows


def vote(text: str, options: int) -> int | None:
    letter = re.search(r"\b([A-Z])\b", text)
    option = ord(letter[1]) - ord("A") if letter else None
    return option if option is not None and option < options else None
