"""Records of evaluation results: written by the evaluate stage, read by reports, card and commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from meditron.core.config import first_problem
from meditron.core.errors import InputError, SourceError
from meditron.core.statistics import MIN_SAMPLE_SIZE, holm
from meditron.store.files import read_json, write_json
from meditron.store.import_record import ImportRecord
from meditron.store.rubric_results import RubricScore

__all__ = [
    "FILE_NAME",
    "RULES",
    "Accuracy",
    "Baseline",
    "Calibration",
    "Comparison",
    "ContaminationGroup",
    "ErrataScore",
    "EvaluationResult",
    "Extraction",
    "Fidelity",
    "GenerationRecord",
    "Interval",
    "PermutationScore",
    "Perplexity",
    "PromptForm",
    "ReliabilityBin",
    "Rule",
    "SeedScore",
    "SubsetScore",
    "TaskScore",
    "TrainingData",
    "TrainingRecord",
    "adjust_p_values",
    "read_results",
    "write_results",
]

FILE_NAME = "results.json"

Interval = Annotated[
    tuple[float, float] | None, "lower and upper end, 95 %; None for fewer than 6 documents or questions"
]
Rule = Literal["sum", "bytes", "calibrated"]
"""Rule by which the loglikelihood method chooses an option: `sum`, the highest log-probability of the
option's tokens (lm-eval's acc); `bytes`, the same divided by the option's bytes (acc_bytes); `calibrated`,
the same minus the option's log-probability without the question (acc_mutual_info)."""
RULES: tuple[Rule, ...] = ("sum", "bytes", "calibrated")
Extraction = Literal["explicit", "forced"]
"""How the answer is found in a generated text: the last option that the text explicitly names, or the
likeliest option after the text and the words `The answer is`."""
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
    """Number of held-out documents that were scored."""
    tokens: int = Field(ge=0)
    """Number of tokens whose prediction was scored."""
    nll: float
    """Mean negative log-likelihood per token, in nats."""
    perplexity: float
    """exp(nll)."""
    interval: Interval
    """95 % bootstrap interval of the perplexity; documents are resampled."""
    bits_per_byte: float
    """Loss per byte of text, in bits; unlike perplexity it is comparable between models with different
    tokenizers."""
    truncated: int = Field(ge=0)
    """Number of documents that were longer than the limit, so that only their first tokens were scored."""
    data_sha256: str
    """SHA-256 over the ids and text hashes of the scored documents."""


class Accuracy(_Record):
    """Fraction of questions answered with the gold option, with its interval."""

    accuracy: float = Field(ge=0, le=1)
    interval: Interval
    """95 % Wilson interval."""
    macro_f1: float = Field(ge=0, le=1)
    """Macro-averaged F1 over the options (classes, or positions)."""


ContaminationGroup = Literal["trained", "removed", "not found", "not searched"]
"""Group of questions by what the search of the training corpus found: `trained`, in documents of the training
split; `removed`, in documents that were dropped or held out; `not found`; `not searched`, of a benchmark that
the search did not include."""


class SubsetScore(_Record):
    """Accuracy of one model on a group of a task's questions."""

    n: int = Field(ge=1)
    """Number of questions of the group."""
    accuracy: float = Field(ge=0, le=1)
    interval: Interval
    """95 % Wilson interval."""


class PermutationScore(_Record):
    """Scores of one model over several orders of each question's options."""

    orders: int = Field(ge=2)
    """Number of orders, the published one included."""
    accuracy: float = Field(ge=0, le=1)
    """Mean accuracy over the orders."""
    interval: Interval
    """95 % bootstrap interval of the mean; questions are resampled, each with all of its orders."""
    accuracies: tuple[float, ...]
    """Accuracy in each order, the published order first."""
    every_order: float = Field(ge=0, le=1)
    """Fraction of the questions that are answered right in every order."""
    every_order_interval: Interval
    """95 % Wilson interval."""
    same_option: float = Field(ge=0, le=1)
    """Fraction of the questions for which the same option is chosen in every order, right or wrong."""


class SeedScore(_Record):
    """Scores of one model over several seeds of the drawn examples and of the sampled answers."""

    seeds: tuple[int, ...]
    accuracy: float = Field(ge=0, le=1)
    """Mean accuracy over the seeds."""
    accuracies: tuple[float, ...]
    """Accuracy with each seed, in their order."""
    deviation: float = Field(ge=0)
    """Standard deviation of the accuracy between seeds (n − 1 in the denominator)."""
    interval: Interval
    """95 % bootstrap interval of the mean between seeds, for these questions; None for fewer than 6 seeds."""
    question_interval: Interval
    """95 % bootstrap interval of the mean for these seeds; questions are resampled, each with all seeds."""
    same_option: float = Field(ge=0, le=1)
    """Fraction of the questions for which the same option is chosen with every seed, right or wrong."""


class ErrataScore(_Record):
    """Accuracy of one model without the questions of a benchmark that are known to be wrong or unclear."""

    sources: tuple[str, ...]
    """Publications that list the questions."""
    questions: dict[str, int]
    """Kind of error → number of evaluated questions that have it."""
    without: SubsetScore | None
    """Score on the other questions; None if there are none."""


class GenerationRecord(_Record):
    """Settings and counts of a task's generated answers."""

    samples: int = Field(ge=1)
    """Maximum number of samples of a question."""
    temperature: float = Field(ge=0)
    max_tokens: int = Field(ge=1)
    """Maximum number of tokens of a sample."""
    extraction: Extraction
    early_stop: bool
    seed: int
    outputs: int = Field(ge=1)
    """Number of generated texts."""
    parsed: float = Field(ge=0, le=1)
    """Fraction of the texts that name an option."""
    unfinished: float = Field(ge=0, le=1)
    """Fraction of the texts that reached the maximum length."""


class ReliabilityBin(_Record):
    """The answers whose confidence lies in one tenth of the range."""

    n: int = Field(ge=1)
    confidence: float
    """Mean probability that the model gives to its answers."""
    accuracy: float
    interval: Interval
    """95 % Wilson interval of the accuracy."""


class Calibration(_Record):
    """Comparison of the probability of answers with their accuracy."""

    error: float
    """Expected calibration error: mean distance of confidence and accuracy over ten bins."""
    error_interval: Interval
    overconfidence: float
    """Mean confidence minus accuracy."""
    overconfidence_interval: Interval
    bins: tuple[ReliabilityBin, ...]


class TaskScore(Accuracy):
    """Result of one model on one task: the accuracy by the chosen rule, and by every other rule."""

    model: str
    task: str
    version: int | None
    """Version of the task's code; two results with equal task, version and template have equal prompts.
    None if the result was imported from a program that did not record it, as all optional settings below."""
    data: str
    """Name of the file of questions, or of the task if the questions are made from a corpus."""
    split: str | None = None
    """Name of the evaluated split, as the data names it; None if the data has no splits."""
    template: str | None
    """Name of the prompt template, by which a question is written as a prompt."""
    template_sha256: str = ""
    """SHA-256 of the template's file."""
    example_prompt: str = ""
    """The template's prompt, with placeholders for the question's texts."""
    prompt_form: str | None
    """`raw` for a prompt in plain text, else the name of the chat template that the prompt is rendered in."""
    system_prompt: str | None = None
    """Name and hash of the stored prompt before each question, `NAME@HASH`; None without one."""
    method: str
    """Name of the evaluation method: `loglikelihood`, `next-token`, `cot`, `self-consistency`."""
    method_description: str = ""
    """One clause that says how the method gets an answer from the model."""
    dtype: str | None
    """Number format of weights and activations."""
    engine: str | None
    """Engine of the model: `torch`, or `torch on dequantized weights`."""
    shots: int | None = Field(ge=0)
    """Number of solved examples before each question."""
    shot_ids: tuple[str, ...] = ()
    """Ids of the drawn examples. The last one is a spare, used when one of the others repeats the
    question."""
    shots_from: str | None = None
    """Name of the file of examples; None if they are from the task's training split."""
    shots_sha256: str | None = None
    """SHA-256 of that file."""
    n: int = Field(ge=1)
    """Number of questions."""
    repeated: int = Field(default=0, ge=0)
    """Number of questions whose text and options repeat those of another question."""
    ties: int = Field(default=0, ge=0)
    """Number of questions for which several options share the best score; the first of these options is taken
    as the answer."""
    contamination: dict[ContaminationGroup, SubsetScore] = {}
    """Accuracy on the questions that the documents of the training corpus contained, and on the others. The
    groups are the same for all models of an evaluation. Empty if no corpus was searched."""
    permutations: PermutationScore | None = None
    """Scores over several orders of the options; None if only the published order was evaluated."""
    seeds: SeedScore | None = None
    """Scores over several seeds; None if there was one seed, or nothing is drawn."""
    errata: ErrataScore | None = None
    """Score without known errors of the benchmark; None if none of the questions is known to have one."""
    clusters: int = Field(default=0, ge=0)
    """Number of documents, passages or groups that the questions are about; 0 if each has its own."""
    clustered_interval: Interval = None
    """95 % bootstrap interval of the accuracy over clusters; None without clusters, or for fewer than 6."""
    calibration: Calibration | None = None
    """Calibration of the answers' probabilities; None for methods without probabilities."""
    rule: Rule | None = None
    """Rule that chose the answers; None for methods without rules."""
    rules: dict[Rule, Accuracy] = {}
    """Accuracy by every rule; empty for methods without rules."""
    constrained: bool = False
    """True if the method `next-token` chose among the options' first tokens only."""
    generation: GenerationRecord | None = None
    """Settings and counts of the generated answers; None for methods that generate none."""
    parse_rate: float = Field(ge=0, le=1)
    """Fraction of the answers that name an option; 1 for methods that compare the options."""
    option_probability_mass: float | None = Field(default=None, ge=0, le=1)
    """Mean over questions of the probability that the next token begins one of the options; None for methods
    without probabilities."""
    truncated: int | None = Field(default=0, ge=0)
    """Number of questions whose prompt was longer than the model's context, so that its beginning was cut
    off; None if another program answered and did not record it."""
    classes: tuple[str, ...] = ()
    """The options, if they are the same for every question; else empty."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Confusion matrix over `classes`: number of questions by gold class (row) and answer (column); the last
    column counts answers that named no option."""
    prompt_sha256: str | None
    """SHA-256 over the hashes of every prompt with its options, in the questions' order."""
    data_sha256: str
    """SHA-256 over the questions, their options and gold answers."""
    rows: str
    """The file of per-question rows, relative to the folder."""


class Baseline(_Record):
    """Accuracy of a baseline without a language model: commonest answer, best position, or naive Bayes."""

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
    """99th percentile over tokens of KL(against ‖ model), in nats."""
    top_agreement: float
    """Fraction of positions at which both models give the highest probability to the same token."""
    intervals: dict[str, Interval]
    """95 % bootstrap intervals of `perplexity_ratio` (model / against), `kl_mean` and `top_agreement`;
    documents are resampled."""
    perplexity_ratio: float
    truncated: int = Field(default=0, ge=0)
    """Number of documents that were longer than the limit, so that only their first tokens were predicted."""
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
    clusters: int = Field(default=0, ge=0)
    """Number of clusters of the questions, such as the passages that they are about; 0 without clusters."""
    clustered_interval: Interval = None
    """95 % bootstrap interval of the difference over clusters; a verdict needs it to exclude zero, too."""
    unlike: tuple[str, ...] = ()
    """Settings in which the evaluations of a and b differ, such as `dtype: float32 / bfloat16` (a / b)."""


class TrainingRecord(_Record):
    """One training in a model's ancestry, without the hashes of its data."""

    stage: str
    kind: str
    data: str
    chat_template: str | None = None
    questions: int = Field(ge=0)
    """Number of questions trained on."""
    documents: int | None = None
    """Number of documents trained on; None if the record does not list them."""


class TrainingData(_Record):
    """Summary of a model's ancestry record."""

    statement: str
    """One sentence on the training data, for terminal and reports."""
    known: bool
    """True if all training data is recorded, starting from random weights."""
    base: str | None = None
    """The model before the first recorded training."""
    trainings: tuple[TrainingRecord, ...] = ()
    """Oldest first."""


def adjust_p_values(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Adjust the p-values of one report's comparisons by Holm's method.

    Comparisons of fewer than `MIN_SAMPLE_SIZE` pairs are left out of the adjustment and get none.
    """
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
    """Remote model → its engine, URL, name and date, because a remote model has no digest."""
    ancestry: dict[str, TrainingData] = {}
    """Model → its training data."""
    imported: ImportRecord | None = None
    """Origin of an imported result; None for a result of this program."""
    differences: list[Comparison] = []
    rubrics: dict[str, dict[str, RubricScore]] = {}
    """Model → set of rubrics → score of its open answers."""
    rubric_differences: list[Comparison] = []
    """Paired differences of rubric scores; `task` is the set. p is adjusted for these comparisons only."""
    rows: str
    """The file of per-document rows of perplexity, relative to the folder."""
    dtype: str | None
    """Number format of weights and activations; None if it is not known. The loss itself is float32."""
    seed: int
    """Seed of the bootstrap."""
    resamples: int
    """Bootstrap resamples."""

    @field_validator("differences", "rubric_differences")
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
        InputError: the file is damaged, or was written by another version of meditron.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise SourceError(f"{path}: no such file", hint="is it the folder of a finished evaluation?")
    try:
        return EvaluationResult.model_validate(read_json(path))
    except ValidationError as error:
        place, problem = first_problem(error)
        raise InputError(path, problem, place=place) from error
