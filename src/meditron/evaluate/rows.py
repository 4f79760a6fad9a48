"""Types of the rows from which all scores are computed: one row per model and document or question."""

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from meditron.core.config import Config

__all__ = [
    "FIDELITY",
    "NOT_KNOWN",
    "PERPLEXITY",
    "DocumentRow",
    "EvalRow",
    "FidelityRow",
    "ImportedRow",
    "LogProbability",
    "QuestionRow",
]

# Names of the rows files of documents and of fidelity; the rows file of a task is named after the task.
PERPLEXITY, FIDELITY = "perplexity.jsonl", "fidelity.jsonl"
NOT_KNOWN = "not known"
"""Text for a setting that the program which wrote an imported result did not record."""
# Without NaN and infinity, which JSON cannot represent and which only damaged models produce.
Nats = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LogProbability = Annotated[float, Field(le=0, allow_inf_nan=False)]


class EvalRow(Config):
    """Base class of rows, with the fields that all rows have.

    In rows imported from another program, fields that it did not record are None.
    """

    rows_name: ClassVar[str]
    """Plural name of the rows of this type, for errors."""

    # The first field of every row: `rows_file` recognizes an incomplete last row by it.
    model: str
    """Name of the model in the recipe."""

    model_digest: str | None
    """SHA-256 of the model's files; for a model behind an API, of its URL and name."""

    engine: str | None
    """Engine of the model: `torch`, or `torch on dequantized weights`."""

    dtype: str | None
    """Number format of weights and activations."""

    id: str
    """Id of the document or question."""

    cache_key: str
    """SHA-256 of everything that the row depends on: model, data, number format, batches."""

    @abstractmethod
    def item_key(self) -> tuple[str, ...]:
        """Return the key of the document or question, unique among the rows with one cache key."""

    def row_key(self) -> tuple[str, ...]:
        """Return the key of the row, unique in a file with several models and settings."""
        return self.model, self.cache_key, *self.item_key()


class DocumentRow(EvalRow):
    """The loss of one model on one document."""

    rows_name = "perplexities"

    source: str
    """Source of the document."""

    tokens: int = Field(ge=0)
    """Number of scored tokens: all except the first, which has no context; 0 for a document of one token."""

    nll: Nats
    """Sum of the negative log-likelihoods of the scored tokens, in nats."""

    bytes: int = Field(ge=0)
    """Number of UTF-8 bytes of the text of the scored tokens."""

    ids_sha256: str
    """SHA-256 of the token ids. Losses per token are comparable only if these hashes are equal."""

    truncated: bool = False
    """True if only the document's first `document_tokens` tokens were scored."""

    text_sha256: str
    """SHA-256 of the document's whole text."""

    def item_key(self) -> tuple[str, ...]:
        """Return the document's source, id and text hash."""
        # The hash is included, because the text under an id may change when the corpus is rebuilt.
        return self.source, self.id, self.text_sha256


class QuestionRow(EvalRow):
    """The answer of one model to one question. Each evaluation method has a subclass for its rows.

    The subclasses form a discriminated union: in each, the type of `method` is a Literal of the method's
    name.
    """

    rows_name = "answers"

    task: str
    version: int | None
    data_sha256: str | None
    """SHA-256 of all questions of the split, including those that were not evaluated."""
    template: str | None
    prompt_form: str | None
    """Form of the prompt: `raw`, or the name of a chat template."""
    method: str
    """Name of the evaluation method, which decides the type of the row."""
    system_prompt: str | None = None
    """Name and hash of the stored prompt before the question, `NAME@HASH`; None without one."""
    shots: int | None = Field(ge=0)
    """Number of solved examples in the prompt."""
    shot_ids: tuple[str, ...] = ()
    """Ids of the solved examples, in the order of the prompt."""
    shots_sha256: str | None = None
    """SHA-256 of the file of solved examples; None if they are from the task's training split."""

    question_sha256: str
    """SHA-256 of the question with its context, options and gold answer."""

    prompt_sha256: str | None
    """SHA-256 of the prompt with its examples and continuations."""

    option_order: tuple[int, ...] = ()
    """For permuted options: the index in the source of each option, in the order of the prompt; else empty.
    `gold` and `prediction` are indices in the prompt."""
    seed_offset: int = Field(default=0, ge=0)
    """0 for the run's seed, 1 for the seed after it, and so on."""
    cluster: str = ""
    """Short hash of the document or passage that the question is about, or name of its group, such as a
    subject; empty if every question has its own."""

    gold: int = Field(ge=0)
    """Index of the right option."""

    @property
    def confidence(self) -> float | None:
        """Probability that the model gives to its answer; None for methods without probabilities."""
        return None

    prediction: int | None
    """Index of the chosen option; None if the answer names no option."""

    correct: bool

    truncated: bool | None = False
    """True if the beginning of the prompt was cut off because the prompt did not fit in the context; None if
    another program answered and did not record it."""

    @property
    def chosen_option(self) -> int | None:
        """Index of the chosen option in the source; None if the answer names no option."""
        if self.prediction is None or not self.option_order:
            return self.prediction
        return self.option_order[self.prediction]

    @property
    def scoring_name(self) -> str:
        """Name of the method, or of the method's rule; answers by different ones are not comparable."""
        return self.method

    def item_key(self) -> tuple[str, ...]:
        """Return the question's id and the hash of its content."""
        return self.id, self.question_sha256


class ImportedRow(QuestionRow):
    """The answer to one question as another program recorded it, by a method that it did not record."""

    method: Literal["imported"]

    metric: str | None
    """Id of the result that the answer belongs to in its source; None if it has none."""

    outputs: tuple[str, ...]
    """The texts of the model, as the source records them."""

    extraction_method: str | None
    """How the answer was found in the texts, as the source names it."""

    @property
    def scoring_name(self) -> str:
        """Name of the method with the id of the result in the source."""
        return f"{self.method} ({self.metric})" if self.metric else self.method

    def row_key(self) -> tuple[str, ...]:
        """Return the key of the row, which includes the result in the source."""
        return self.model, self.cache_key, self.metric or "", *self.item_key()


class FidelityRow(EvalRow):
    """The distance between two models' predictions on one document."""

    rows_name = "fidelity"

    against: str
    """Name of the reference model, whose predictions are taken as true."""

    source: str
    nll: Nats
    nll_against: Nats

    # A value for each token, because quantiles of a source cannot be computed from means of documents.
    kl: tuple[float, ...]
    """KL(against ‖ model) of the distribution of each predicted token, in nats."""

    agree: int = Field(ge=0)
    """Number of tokens for which both models have the same most likely prediction."""

    truncated: bool = False
    """True if only the document's first `document_tokens` tokens were predicted."""

    text_sha256: str
    """SHA-256 of the document's whole text."""

    def item_key(self) -> tuple[str, ...]:
        """Return the document's source, id and text hash."""
        return self.source, self.id, self.text_sha256

    def row_key(self) -> tuple[str, ...]:
        """Return the key of the row, which includes both models."""
        return self.model, self.against, self.cache_key, *self.item_key()
