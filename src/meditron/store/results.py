"""Records of evaluation results: written by the evaluate stage, read by reports, card and commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from meditron.core.config import first_problem
from meditron.core.errors import InputError, SourceError
from meditron.core.statistics import MIN_SAMPLE_SIZE, holm
from meditron.store.files import read_json, write_json

__all__ = [
    "FILE_NAME",
    "RULES",
    "Accuracy",
    "Baseline",
    "Comparison",
    "EvaluationResult",
    "Fidelity",
    "Perplexity",
    "PromptForm",
    "Rule",
    "TaskScore",
    "TrainingData",
    "TrainingRecord",
    "adjust_p_values",
    "read_results",
    "write_results",
]

FILE_NAME = "results.json"

Interval = Annotated[
    tuple[float, float] | None, "low and high end, 95 %; None of fewer than 6 documents or questions"
]
Rule = Literal["sum", "bytes", "calibrated"]
"""How an option is chosen: by the summed log-probability of its tokens (lm-eval's acc), by that sum per byte
(acc_bytes), or by that sum minus its unconditional value (acc_mutual_info)."""
RULES: tuple[Rule, ...] = ("sum", "bytes", "calibrated")
PromptForm = Literal["trained", "raw", "both"]
"""`trained`: each model in the chat template of its last finetune, plain text if there was none; `raw`: every
model in plain text; `both`: one evaluation of each."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Perplexity(_Record):
    """Perplexity of one model on the held-out documents of one source."""

    model: str
    source: str
    documents: int = Field(ge=0)
    """Held-out documents scored."""
    tokens: int = Field(ge=0)
    """Tokens predicted."""
    nll: float
    """Mean negative log-likelihood per token, in nats."""
    perplexity: float
    """exp(nll)."""
    interval: Interval
    """95 % bootstrap interval of the perplexity; documents are the unit."""
    bits_per_byte: float
    """The loss per byte of text, in bits; comparable between tokenizers, unlike perplexity."""
    truncated: int = Field(ge=0)
    """Documents that were longer than the limit, so that only their first tokens were scored."""
    data_sha256: str
    """SHA-256 over the ids and text hashes of the scored documents."""


class Accuracy(_Record):
    """Fraction of questions answered with the gold option, with its interval."""

    accuracy: float = Field(ge=0, le=1)
    interval: Interval
    """95 % Wilson interval."""
    macro_f1: float = Field(ge=0, le=1)
    """Macro-averaged F1 over the options (classes, or positions)."""


class TaskScore(Accuracy):
    """Result of one model on one task: the accuracy by the chosen rule, and by every other rule."""

    model: str
    task: str
    version: int
    """Version of the task: equal task, version and template give equal prompts."""
    data: str
    """Name of the file of questions, or of the task if it is made from a corpus."""
    split: str | None = None
    """Name of the split that was asked, as the data names it; None if the data has no split."""
    template: str
    """How a question was laid out as a prompt."""
    prompt_form: str
    """`raw` (plain text), or the name of the chat template in whose turns the prompt stands."""
    method: str
    """Name of the evaluation method: `loglikelihood`, `next-token`."""
    method_description: str = ""
    """One clause on how the method takes an answer."""
    dtype: str
    """Number format of weights and activations."""
    engine: str
    """Engine of the model: `torch`, or `torch on dequantized weights`."""
    shots: int = Field(ge=0)
    """Solved questions before each prompt."""
    shot_ids: tuple[str, ...] = ()
    """Ids of the drawn examples; the last one replaces an example that repeats the question."""
    shots_from: str | None = None
    """Name of the file of examples; None if they are from the task's training split."""
    shots_sha256: str | None = None
    """SHA-256 of that file."""
    n: int = Field(ge=1)
    """Questions."""
    repeated: int = Field(default=0, ge=0)
    """Questions of `n` whose text and options repeat those of another one."""
    ties: int = Field(default=0, ge=0)
    """Questions whose best score several options share; the first of them counts as the answer."""
    rule: Rule | None = None
    """Rule that chose the answers; None for methods without rules."""
    rules: dict[Rule, Accuracy] = {}
    """Accuracy by every rule; empty for methods without rules."""
    parse_rate: float = Field(ge=0, le=1)
    """Share of the answers that name an option; 1 if options are compared."""
    option_probability_mass: float | None = Field(default=None, ge=0, le=1)
    """Mean probability that the next token begins one of the options; None if the method has no
    probabilities."""
    truncated: int = Field(default=0, ge=0)
    """Questions whose prompt lost its beginning, as it is longer than the model's context."""
    classes: tuple[str, ...] = ()
    """The options, where they are the same for every question."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Of classes: questions by gold class (row) and answer (column); the last column named no option."""
    prompt_sha256: str
    """SHA-256 over the hashes of every prompt with its options, in the questions' order."""
    data_sha256: str
    """SHA-256 over the questions, their options and gold answers."""
    rows: str
    """The file of per-question rows, relative to the folder."""


class Baseline(_Record):
    """Accuracy without a language model: by the commonest answer, best position, or word counts."""

    task: str
    name: Literal["majority", "position", "naive Bayes"]
    n: int = Field(ge=1)
    accuracy: float = Field(ge=0, le=1)
    interval: Interval
    """95 % Wilson interval."""
    trained_on: int | None = None
    """Number of training questions; None for baselines computed from the test answers."""


class Fidelity(_Record):
    """Difference between the predictions of two models on the same held-out text of one source."""

    model: str
    against: str
    source: str
    documents: int
    n_tokens: int
    perplexity: float
    perplexity_against: float
    kl_mean: float
    """Mean over tokens of KL(against ‖ model), in nats."""
    kl_99: float
    """99th percentile over tokens of the same."""
    top_agreement: float
    """Share of tokens for which both models predict the same token."""
    intervals: dict[str, Interval]
    """95 % bootstrap intervals of `perplexity_ratio` (model / against), `kl_mean` and `top_agreement`;
    documents are the unit."""
    perplexity_ratio: float
    truncated: int = Field(default=0, ge=0)
    """Documents that were longer than the limit, so that only their first tokens were predicted."""
    data_sha256: str


class Comparison(_Record):
    """Paired difference of one measure between two models on the same documents or questions."""

    a: str
    b: str
    what: str
    """The measure and the source or task: `nll per token, pubmed`."""
    source: str | None = None
    """The source, for perplexity."""
    task: str | None = None
    """The task, for accuracy."""
    n: int = Field(ge=0)
    """Number of pairs: documents or questions."""
    difference: float
    """b minus a."""
    interval: Interval
    p: float = Field(ge=0, le=1)
    """Two-sided p-value of no difference."""
    p_adjusted: float | None = Field(default=None, ge=0, le=1)
    """p adjusted by Holm's method for all comparisons of the report; None for fewer than 6 pairs."""
    family: int = Field(default=1, ge=0)
    """Number of comparisons in the adjustment."""
    method: str = ""
    """Methods of the interval and the test."""
    detectable: float | None
    """Minimum detectable effect: the smallest true difference detected with 80 % power at this n."""
    mcnemar: float | None = None
    """McNemar's exact two-sided p-value, for accuracies."""
    unlike: tuple[str, ...] = ()
    """Settings in which the two evaluations differ, as `dtype: float32 / bfloat16` (a / b)."""


class TrainingRecord(_Record):
    """One training in a model's ancestry, without the hashes of its data."""

    stage: str
    kind: str
    data: str
    chat_template: str | None = None
    questions: int = Field(ge=0)
    """Questions trained on."""
    documents: int | None = None
    """Documents trained on; None if the record does not list them."""


class TrainingData(_Record):
    """Summary of a model's ancestry record."""

    statement: str
    """One sentence to print."""
    known: bool
    """True if all training data is recorded, starting from random weights."""
    base: str | None = None
    """The model before the first recorded training."""
    trainings: tuple[TrainingRecord, ...] = ()
    """Oldest first."""


def adjust_p_values(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Adjust the p-values of comparisons in one report (Holm), without those of fewer than `FEWEST` pairs."""
    tested = [comparison for comparison in comparisons if comparison.n >= MIN_SAMPLE_SIZE]
    p = iter(holm([comparison.p for comparison in tested]))
    return [
        comparison.model_copy(
            update={"p_adjusted": next(p) if comparison.n >= MIN_SAMPLE_SIZE else None, "family": len(tested)}
        )
        for comparison in comparisons
    ]


class EvaluationResult(_Record):
    """Results of one evaluation."""

    perplexity: dict[str, dict[str, Perplexity]] = {}
    """Model → source → perplexity."""
    tasks: dict[str, dict[str, TaskScore]] = {}
    """Model → task → score."""
    baselines: dict[str, dict[str, Baseline]] = {}
    """Task → name → baseline."""
    fidelity: list[Fidelity] = []
    engines: dict[str, str] = {}
    """Model → its engine: `torch`, or `torch on dequantized weights`."""
    identities: dict[str, dict[str, str]] = {}
    """Model → provenance of a remote model: engine, URL, model and date. Local models have digests."""
    ancestry: dict[str, TrainingData] = {}
    """Model → its training data."""
    differences: list[Comparison] = []
    rows: str
    """The file of per-document rows of perplexity, relative to the folder."""
    dtype: str
    """Number format of weights and activations; the loss itself is float32."""
    seed: int
    """Seed of the bootstrap."""
    resamples: int
    """Bootstrap resamples."""

    @field_validator("differences")
    @classmethod
    def _adjust_differences(cls, differences: list[Comparison]) -> list[Comparison]:
        return adjust_p_values(differences)


def write_results(folder: Path, result: EvaluationResult) -> None:
    """Write `results.json` atomically."""
    write_json(folder / FILE_NAME, result.model_dump(mode="json"))


def read_results(folder: Path) -> EvaluationResult:
    """Read `results.json`.

    Raises:
        SourceError: there is no such file.
        InputError: it is damaged, or was written by another version.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise SourceError(f"{path}: no such file", hint="is it the folder of a finished evaluation?")
    try:
        return EvaluationResult.model_validate(read_json(path))
    except ValidationError as error:
        place, problem = first_problem(error)
        raise InputError(path, problem, place=place) from error
