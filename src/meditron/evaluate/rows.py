"""Row types of the files behind every score: one line per model and document, question or pair of models."""

from abc import abstractmethod
from typing import Annotated, ClassVar

from pydantic import Field

from meditron.core.config import Config

__all__ = ["FIDELITY", "PERPLEXITY", "DocumentRow", "EvalRow", "FidelityRow", "LogProbability", "QuestionRow"]

# Names of the rows files; those of tasks are named after the task.
PERPLEXITY, FIDELITY = "perplexity.jsonl", "fidelity.jsonl"
# NaN and infinity are not JSON, and a damaged model must not become a row.
Nats = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LogProbability = Annotated[float, Field(le=0, allow_inf_nan=False)]


class EvalRow(Config):
    """The fields that all rows share: the model, the measured item, and the settings' cache key."""

    contents: ClassVar[str]
    """Plural name of such rows, for errors."""

    # The first field of every row: a rows file is recognized by it after a kill (`rows_file`).
    model: str
    """Reference of the model in the recipe."""

    model_digest: str
    """SHA-256 of the model's files; of a remote model, of its URL and name."""

    engine: str
    """Engine of the model: `torch`, or `torch on dequantized weights`."""

    dtype: str
    """Number format of weights and activations."""

    id: str
    """Id of the document or question."""

    cache_key: str
    """SHA-256 of everything that decides this row: model, data, number format, batches."""

    @abstractmethod
    def item(self) -> tuple[str, ...]:
        """Return the document's or question's id and content hash, unique among the rows of a cache key."""

    def key(self) -> tuple[str, ...]:
        """Return the row's identity in a file that holds several models and settings."""
        return self.model, self.cache_key, *self.item()


class DocumentRow(EvalRow):
    """The loss of one model on one document."""

    contents = "perplexities"

    source: str
    """Source of the document."""

    tokens: int = Field(ge=0)
    """Scored tokens: all but the first, which has no context; 0 for a document of one token."""

    nll: Nats
    """Sum of their negative log-likelihoods, in nats."""

    bytes: int = Field(ge=0)
    """UTF-8 bytes of the scored tokens' text."""

    ids_sha256: str
    """SHA-256 of the token ids. Losses per token compare only between models that read the same ids."""

    truncated: bool = False
    """True if only the document's first `max_tokens` tokens were scored."""

    text_sha256: str
    """SHA-256 of the document's whole text."""

    def item(self) -> tuple[str, ...]:
        """Return the source, the id and the text's hash."""
        # The text's hash as well: the same id may stand for a revised text in a rebuilt corpus.
        return self.source, self.id, self.text_sha256


class QuestionRow(EvalRow):
    """The answer of one model to one question. Each evaluation method has a subclass.

    The subclasses form a discriminated union: a subclass narrows `method` to a literal, its method's name.
    """

    contents = "answers"

    task: str
    version: int
    data_sha256: str
    """SHA-256 over all questions of the split, of which `--questions` may take fewer."""
    template: str
    prompt_form: str
    """`raw`, or the name of the chat template of the prompt."""
    method: str
    """Name of the evaluation method; decides the row's type."""
    shots: int = Field(ge=0)
    """Solved examples in the prompt."""
    shot_ids: tuple[str, ...] = ()
    """Their ids, in the prompt's order."""
    shots_sha256: str | None = None
    """SHA-256 of the file of examples; None if they are from the task's training split."""

    question_sha256: str
    """SHA-256 of the question with its context, options and gold answer."""

    prompt_sha256: str
    """SHA-256 of the prompt with its examples and continuations."""

    gold: int = Field(ge=0)
    """Index of the right option."""

    prediction: int | None
    """Index of the chosen option; None if the answer names no option."""

    correct: bool

    truncated: bool = False
    """True if the beginning of the prompt was left out because it does not fit in the context."""

    @property
    def scoring(self) -> str:
        """The method's name, or the name of its rule; answers of different scorings do not compare."""
        return self.method

    def item(self) -> tuple[str, ...]:
        """Return the id and the content's hash."""
        return self.id, self.question_sha256


class FidelityRow(EvalRow):
    """The distance of one model's predictions of one document from another model's."""

    contents = "fidelity"

    against: str
    """Reference of the other model."""

    source: str
    nll: Nats
    nll_against: Nats

    # Every token's value: quantiles over a source cannot be computed from means of documents.
    kl: tuple[float, ...]
    """KL(against ‖ model) of each predicted token's distribution, in nats."""

    agree: int = Field(ge=0)
    """Tokens for which both models have the same most likely prediction."""

    truncated: bool = False
    """True if only the document's first `max_tokens` tokens were predicted."""

    text_sha256: str
    """SHA-256 of the document's whole text."""

    def item(self) -> tuple[str, ...]:
        """Return the source, the id and the text's hash."""
        return self.source, self.id, self.text_sha256

    def key(self) -> tuple[str, ...]:
        """Return the row's identity, with both models."""
        return self.model, self.against, self.cache_key, *self.item()
