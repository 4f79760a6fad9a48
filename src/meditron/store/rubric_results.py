"""Records of rubric evaluations: scores of open answers, the judges, their agreement and their errors."""

from typing import Annotated, Literal

from pydantic import Field

from meditron.core.config import Record

__all__ = [
    "Aggregate",
    "HumanAgreement",
    "HumanComparison",
    "JudgeAgreement",
    "JudgePair",
    "JudgeRecord",
    "JudgeScore",
    "RubricGroup",
    "RubricScore",
]

Interval = Annotated[
    tuple[float, float] | None, "lower and upper end, 95 %; None for fewer than 6 conversations"
]
Aggregate = Literal["majority", "mean"]
"""How several judges' verdicts on a criterion become one: that of most judges; no verdict if they are tied
(`majority`). Or the share of judges that find it met, by which its points are multiplied (`mean`)."""


class JudgeRecord(Record):
    """Identity and settings of a judge: everything that its verdicts depend on."""

    name: str
    digest: str
    """SHA-256 of its files; for a judge behind a server, of its URL and name."""
    engine: str
    dtype: str
    """Number format of weights and activations."""
    identity: dict[str, str]
    """Of a judge behind a server: engine, URL, model and date; else empty."""
    form: str
    """Form of its prompts: `raw`, or the name of a chat template."""
    prompt: str
    """Name and version of its prompt."""
    prompt_sha256: str
    """SHA-256 of the file of its prompt."""
    temperature: float = Field(ge=0)
    retry_temperature: float = Field(ge=0)
    """Temperature of the requests after a text without a verdict."""
    max_tokens: int = Field(ge=1)
    attempts: int = Field(ge=1)
    """Maximum number of times that it was asked for a verdict."""
    seed: int


class RubricGroup(Record):
    """Score of the conversations or criteria with one tag."""

    tag: str
    of: Literal["conversations", "criteria"]
    """Whether conversations have the tag, or criteria: then only these criteria count in a conversation's
    score."""
    n: int = Field(ge=0)
    """Number of conversations with a score."""
    score: float | None
    """Mean score, limited to the range 0 to 1; None without conversations."""
    interval: Interval


class JudgeScore(Record):
    """Score by one judge's verdicts alone."""

    judge: str
    score: float | None
    interval: Interval
    met_rate: float | None
    """Fraction of its verdicts that are `met`."""
    judgements: int = Field(ge=0)
    """Number of criteria of answers that it was asked about."""
    missing: int = Field(ge=0)
    """Number of them without a verdict after all attempts."""
    retried: int = Field(ge=0)
    """Number of them with more than one attempt."""
    own_answers: bool = False
    """True if the judge is the model that answered."""


class JudgePair(Record):
    """Agreement of two judges."""

    a: str
    b: str
    n: int = Field(ge=0)
    """Number of criteria on which both have a verdict."""
    agreement: float | None
    """Fraction of equal verdicts."""
    kappa: float | None
    """Cohen's kappa; None if both give all criteria the same verdict."""
    interval: Interval
    """95 % bootstrap interval of kappa; conversations are resampled."""


class JudgeAgreement(Record):
    """Agreement of several judges."""

    alpha: float | None
    """Krippendorff's alpha over all judges; None if all verdicts are the same."""
    interval: Interval
    """95 % bootstrap interval of alpha; conversations are resampled."""
    n: int = Field(ge=0)
    """Number of criteria with verdicts of at least two judges."""
    pairs: tuple[JudgePair, ...]


class HumanComparison(Record):
    """Agreement of verdicts with human labels, and rates corrected for the errors."""

    judge: str
    """Name of the judge; `combined` for the verdicts of all judges together."""
    n: int = Field(ge=0)
    """Number of labelled criteria with a verdict."""
    agreement: float | None
    kappa: float | None
    kappa_interval: Interval
    sensitivity: float | None
    """Fraction of the criteria that humans find met that the judge finds met."""
    sensitivity_interval: Interval
    specificity: float | None
    """Fraction of the criteria that humans find not met that the judge finds not met."""
    specificity_interval: Interval
    met_rate: float | None
    """Fraction of all verdicts that are `met`."""
    met_rate_interval: Interval
    rogan_gladen: float | None
    """`met_rate`, corrected by sensitivity and specificity; None if their sum is at most 1."""
    rogan_gladen_interval: Interval
    prediction_powered: float | None
    """`met_rate`, corrected by the mean difference of labels and verdicts."""
    prediction_powered_interval: Interval


class HumanAgreement(Record):
    """Comparison of the judges with human labels."""

    labels: str
    """Name of the file of labels."""
    labels_sha256: str
    """SHA-256 of the file."""
    criteria: int = Field(ge=0)
    """Number of criteria of answers with a human verdict."""
    tied: int = Field(ge=0)
    """Number of criteria whose labels are tied, so that there is no human verdict."""
    unused: int = Field(ge=0)
    """Number of labels of other answers than those of this model."""
    raters_alpha: float | None
    """Krippendorff's alpha between the human raters; None without criteria that several of them labelled."""
    comparisons: tuple[HumanComparison, ...]
    """The verdicts of all judges together, then each judge if there are several."""
    labelled_conversations: int = Field(ge=0)
    """Number of conversations with a human verdict on every criterion."""
    corrected_score: float | None
    """The score, corrected by the mean difference of human and judged scores of these conversations
    (prediction-powered inference); None without any."""
    corrected_interval: Interval


class RubricScore(Record):
    """Result of one model on one set of rubrics."""

    model: str
    rubrics: str
    """Name of the set."""
    data: str
    """Name of the file of rubrics."""
    rubrics_sha256: str
    """SHA-256 of the file."""
    rows_sha256: str
    """SHA-256 of the evaluated conversations with their criteria."""
    prompt_sha256: str
    """SHA-256 over the hashes of every prompt, in the conversations' order."""
    score: float | None
    """Mean over conversations of achieved points / possible points, limited to the range 0 to 1."""
    interval: Interval
    """95 % bootstrap interval; conversations are resampled."""
    mean: float | None
    """The same mean, not limited: below zero if negative criteria outweigh the positive ones."""
    bounds: tuple[float, float]
    """Lowest and highest score that any verdicts in place of the missing ones would give."""
    n: int = Field(ge=0)
    """Number of conversations with a score."""
    unscored: int = Field(ge=0)
    """Number of conversations without a score: no positive criterion has a verdict."""
    clusters: int = Field(ge=0)
    """Number of different conversations."""
    criteria: int = Field(ge=0)
    """Number of criteria of all answers."""
    missing: int = Field(ge=0)
    """Number of criteria without a verdict; they are left out of the score."""
    tied: int = Field(ge=0)
    """Number of them on which the judges are tied."""
    met_rate: float | None
    """Fraction of the verdicts that are `met`."""
    groups: tuple[RubricGroup, ...]
    judges: tuple[JudgeRecord, ...]
    aggregate: Aggregate
    judge_scores: tuple[JudgeScore, ...]
    judge_agreement: JudgeAgreement | None = None
    """Agreement of the judges; None for one judge."""
    human_agreement: HumanAgreement | None = None
    """Agreement with human labels; None without a file of labels."""
    engine: str
    """Engine of the model."""
    dtype: str
    """Number format of weights and activations."""
    prompt_form: str
    """`raw` for prompts in plain text, else the name of a chat template."""
    temperature: float = Field(ge=0)
    max_tokens: int = Field(ge=1)
    """Maximum number of tokens of an answer."""
    seed: int
    unfinished: int = Field(ge=0)
    """Number of answers that reached the maximum length."""
    answers: str
    """The file of answers, relative to the folder."""
    judgements: str
    """The file of judgements, relative to the folder."""
    page: str
    """The page of answers with their verdicts, relative to the folder."""
