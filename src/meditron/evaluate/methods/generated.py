"""Base class of the methods that generate text: sampling, extraction of the answers, and the vote.

Every sample has a seed of its own, derived from the run's seed, the question's id and the sample's number.
The result of a question therefore does not depend on which other questions are evaluated, or when.

The vote: every sample votes for the option that its text names; a text that names none abstains. The option
with the most votes is the answer; of several, the one that got its first vote earliest. Samples are generated
in rounds: first as many as a majority needs, then one at a time. With early stopping, a question leaves the
rounds as soon as no further vote could change its winner, so the winner is the same as without.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

from pydantic import Field

from meditron.engine.base import Generation
from meditron.evaluate.config import EvalOptions, Extraction
from meditron.evaluate.methods.base import EvalMethod
from meditron.evaluate.methods.forced_choice import force_choices
from meditron.evaluate.model import EvalModel
from meditron.evaluate.prompts import EvalPrompt
from meditron.evaluate.rows import QuestionRow
from meditron.store.results import GenerationRecord
from meditron.tasks.answer_extraction import PARSER_VERSION, extract_answer
from meditron.tasks.prompt_template import PromptTemplate
from meditron.tasks.reasoning import first_solution, reasoning_template

__all__ = ["GeneratedMethod", "GeneratedRow", "count_votes", "is_decided", "sample_seed"]


class GeneratedRow(QuestionRow):
    """The generated answers to one question, and the options that they name."""

    outputs: tuple[str, ...]
    """The generated texts, in the order of the samples."""

    votes: tuple[int | None, ...]
    """Index of the option that each text names; None for a text that names none."""

    samples: int = Field(ge=1)
    """Maximum number of samples; fewer were generated if the vote was decided earlier."""

    temperature: float = Field(ge=0)
    max_tokens: int = Field(ge=1)
    """Maximum number of tokens of a sample."""

    unfinished: int = Field(ge=0)
    """Number of texts that reached that length."""

    extraction: Extraction
    """How a text's answer was found."""

    parser: int
    """Version of the parser."""

    seed: int
    """Seed of the run."""


G = TypeVar("G", bound=GeneratedRow)


def sample_seed(seed: int, question_id: str, sample: int) -> int:
    """Return the seed of one sample: 31 bits, the range that every engine and server accepts."""
    text = f"{seed}\0{question_id}\0{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def count_votes(votes: Sequence[int | None]) -> int | None:
    """Return the option with the most votes, of several the one voted for first; None without votes."""
    # A Counter keeps the order of first votes, and `max` returns the first of several maxima.
    counts = Counter(vote for vote in votes if vote is not None)
    return max(counts, key=counts.__getitem__) if counts else None


def is_decided(votes: Sequence[int | None], remaining: int) -> bool:
    """Return True if no outcome of the remaining votes could change the winner."""
    if not remaining:
        return True
    winner = count_votes(votes)
    counts = Counter(vote for vote in votes if vote is not None)
    if winner is None:
        return False
    first_vote = {option: place for place, option in enumerate(counts)}
    # An option without votes could get all the remaining ones; in a tie the winner was voted for earlier.
    return counts[winner] >= remaining and all(
        counts[winner] > count + remaining
        or (counts[winner] == count + remaining and first_vote[winner] < first_vote[option])
        for option, count in counts.items()
        if option != winner
    )


class GeneratedMethod(EvalMethod[G]):
    """A method that lets the model reason, and takes the option that its text names as the answer."""

    generates: ClassVar[bool] = True
    # A killed run loses at most one group; a group of generated answers takes minutes.
    group_size: ClassVar[int] = 16
    votes: ClassVar[bool] = False
    """True if several samples of a question vote; else there is one."""
    default_temperature: ClassVar[float] = 0.0
    """Sampling temperature unless the options give one; 0 = greedy decoding."""

    def __init__(
        self,
        *,
        samples: int,
        temperature: float,
        max_tokens: int,
        extraction: Extraction = "explicit",
        early_stop: bool = True,
        seed: int = 0,
    ) -> None:
        self.samples, self.temperature, self.max_tokens = samples, temperature, max_tokens
        self.extraction: Extraction = extraction
        self.early_stop, self.seed = early_stop, seed

    @classmethod
    def from_options(cls, options: EvalOptions, seed: int) -> Self:
        """Create the method with the number of samples and the temperature of its kind."""
        return cls(
            samples=options.samples if cls.votes else 1,
            temperature=cls.default_temperature if options.temperature is None else options.temperature,
            max_tokens=options.max_tokens,
            extraction=options.extraction,
            early_stop=options.early_stop,
            seed=seed,
        )

    @property
    def is_sampled(self) -> bool:
        """True unless decoding is greedy."""
        return self.temperature > 0

    def adapt_template(self, template: PromptTemplate) -> PromptTemplate:
        """Return the template with the instruction to reason first."""
        return reasoning_template(template)

    def cache_key(self) -> Mapping[str, object]:
        """Return the sampling settings, the parser and the group size.

        The seed is left out if nothing is drawn, and the group size is part of the batches' rounding.
        """
        drawn = {"seed": self.seed} if self.is_sampled else {}
        return {
            **drawn,
            "samples": self.samples,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "extraction": [self.extraction, PARSER_VERSION],
            "early_stop": self.early_stop,
            "group": self.group_size,
        }

    def answer_prompts(
        self, model: EvalModel, prompts: Sequence[EvalPrompt], fields: Sequence[Mapping[str, Any]]
    ) -> list[G]:
        """Generate the samples in rounds, and count the votes."""
        samples: list[list[Generation]] = [[] for _ in prompts]
        votes: list[list[int | None]] = [[] for _ in prompts]
        pending = list(range(len(prompts)))
        done = 0
        while done < self.samples and pending:
            # Fewer votes than a majority cannot decide.
            end = max(done + 1, self.samples // 2 + 1)
            chosen = [prompts[index] for index in pending]
            new = self._generate(model, chosen, range(done, end))
            new_votes = self._extract(model, chosen, new)
            for index, generations, texts_votes in zip(pending, new, new_votes, strict=True):
                samples[index] += generations
                votes[index] += texts_votes
            done = end
            if self.early_stop:
                pending = [i for i in pending if not is_decided(votes[i], self.samples - done)]
        return [self._make_row(*one) for one in zip(prompts, samples, votes, fields, strict=True)]

    def _generate(
        self, model: EvalModel, prompts: Sequence[EvalPrompt], samples: range
    ) -> list[list[Generation]]:
        return model.generator.generate_samples(
            [
                (
                    prompt.messages or prompt.rendered.prompt,
                    [sample_seed(self.seed, prompt.question.id, number) for number in samples],
                )
                for prompt in prompts
            ],
            raw=not prompts[0].messages,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            nonempty=True,
        )

    def _extract(
        self, model: EvalModel, prompts: Sequence[EvalPrompt], generations: Sequence[Sequence[Generation]]
    ) -> list[list[int | None]]:
        texts = [[first_solution(generation.text) for generation in group] for group in generations]
        if self.extraction == "forced":
            return force_choices(model, prompts, texts)
        return [
            [extract_answer(text, options=prompt.question.options, answers=prompt.answers) for text in group]
            for prompt, group in zip(prompts, texts, strict=True)
        ]

    def _make_row(
        self,
        prompt: EvalPrompt,
        samples: Sequence[Generation],
        votes: Sequence[int | None],
        fields: Mapping[str, Any],
    ) -> G:
        prediction = count_votes(votes)
        return self.row_type(
            **fields,
            prediction=prediction,
            correct=prediction == prompt.question.gold,
            outputs=tuple(sample.text for sample in samples),
            votes=tuple(votes),
            samples=self.samples,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            unfinished=sum(sample.stop in ("length", "context") for sample in samples),
            extraction=self.extraction,
            parser=PARSER_VERSION,
            seed=self.seed,
        )

    def score_fields(self, rows: Sequence[G]) -> dict[str, Any]:
        """Return the record of the generation: settings, and how many texts were generated and parsed."""
        texts = sum(len(row.outputs) for row in rows)
        return {
            "generation": GenerationRecord(
                samples=self.samples,
                temperature=self.temperature,
                max_tokens=self.max_tokens,
                extraction=self.extraction,
                early_stop=self.early_stop,
                seed=self.seed,
                outputs=texts,
                parsed=sum(vote is not None for row in rows for vote in row.votes) / texts,
                unfinished=sum(row.unfinished for row in rows) / texts,
            )
        }
