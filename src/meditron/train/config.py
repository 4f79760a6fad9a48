"""Configs of all trainings and of a recipe's `[pretrain]`. Does not import torch."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from meditron.core.config import Config, InputKind, NonSemantic, StageConfig
from meditron.core.machine import DType
from meditron.model.lora_config import LoraConfig
from meditron.parallel.config import ParallelConfig
from meditron.sources.evidence import evidence_table

__all__ = [
    "FractionBelowOne",
    "GuardConfig",
    "PositiveInt",
    "PretrainConfig",
    "TrainingConfig",
    "UpsampleConfig",
]

_Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
FractionBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
_Betas = tuple[FractionBelowOne, FractionBelowOne]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
# The limit bounds memory: the order of all samples is planned in memory, with ten bytes per sample.
_MAX_TOKENS = 10**13
GAP_REPLAY_TOKENS = {"guidelines": 107, "abstracts": 5_480, "papers": 40_700, "replay": 420}
"""Millions of training tokens of each source of GAP-Replay, the corpus of Meditron-7B and -70B (Chen et al.,
MEDITRON-70B, 2023, Table 1). The original reads it in these natural proportions."""


class GuardConfig(Config):
    """Reaction to a step whose loss or gradient is not finite, or whose loss is a spike.

    `stop` ends the training with an error. `skip` leaves out the optimizer step. `rollback` restores the
    newest checkpoint and goes on with the next batch, so the batches since that checkpoint are not learned
    again (PaLM, Chowdhery et al. 2022, section 5.1). Each event is written to `metrics.jsonl`.
    """

    on_nan: Literal["stop", "skip", "rollback"] = "stop"
    """Reaction to a loss or a gradient norm that is not finite."""

    on_spike: Literal["log", "stop", "skip", "rollback"] = "log"
    """Reaction to a spike; `log` only records it."""

    spike_sigmas: Annotated[float, Field(gt=0.0)] = 6.0
    """A loss is a spike if it is this many standard deviations above the mean of the last 50 steps."""

    max_events: PositiveInt = 10
    """Skips and rollbacks after which the training stops with an error."""


class TrainingConfig(StageConfig):
    """Settings that pretraining and finetuning share: samples, optimizer, checkpoints."""

    exports_model = True

    sequence_length: PositiveInt
    """Tokens of a sample."""

    batch_size: PositiveInt
    """Samples per optimizer step."""

    micro_batch_size: PositiveInt | None = None
    """Samples per forward and backward pass, if a whole batch does not fit in memory; must divide
    `batch_size`. By default all samples of a data-parallel rank, with `parallel.pp` above 1 a single one.
    Affects the result: sums over micro-batches round differently."""

    learning_rate: Annotated[float, Field(gt=0.0)]
    """Peak learning rate, reached at the end of the warm-up."""

    min_learning_rate_ratio: _Fraction = 0.1
    """Final learning rate of the cosine schedule, as a fraction of `learning_rate`."""

    warmup: FractionBelowOne = 0.1
    """Fraction of the steps over which the learning rate rises linearly."""

    schedule_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] | None = None
    """Tokens over which the cosine schedule would reach its end, if the training stops earlier; by default
    the tokens of the training."""

    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """Decoupled weight decay of AdamW, applied to matrices only."""

    betas: _Betas = (0.9, 0.95)
    """Decay rates of AdamW's first and second moment."""

    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    """AdamW's epsilon, added to the denominator."""

    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Gradient clipping: a gradient with a larger global norm is scaled down to this norm."""

    dtype: DType = "auto"
    """Dtype of weights and activations. With bfloat16 the optimizer keeps float32 master weights. `auto`:
    bfloat16 if the CPU has instructions for it, else float32; the dtype used is recorded."""

    optimizer_state_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of AdamW's two moments: bfloat16 halves their memory; the weights that are updated stay
    float32."""

    float8: bool = False
    """Compute the blocks' matrix products in float8 through torchao, on GPUs that have it (Hopper or later);
    needs the extra `gpu`. Not with `parallel.tp` above 1."""

    compile: bool = False
    """Run torch.compile on each block: faster steps after some minutes of compilation; needs a C++ compiler.
    Affects the result: compiled code rounds differently."""

    guard: GuardConfig = GuardConfig()
    """Reaction to losses that are not finite, and to spikes."""

    heldout_every: PositiveInt | None = None
    """Steps between two evaluations of the held-out loss; by default only before the first step and after the
    last."""

    # The fields below do not change the trained model, so they are not part of the stage's fingerprint.
    checkpoint_every: Annotated[PositiveInt, NonSemantic] = 10
    """Optimizer steps between two checkpoints. One is written while training goes on, so a killed run repeats
    at most twice this many."""

    keep_checkpoints: Annotated[PositiveInt, NonSemantic] = 2
    """Number of checkpoints to keep; if the newest is damaged, the one before it is used."""

    parallel: Annotated[ParallelConfig, NonSemantic] = ParallelConfig()
    """Distribution over ranks (`--nproc`, or torchrun)."""

    track: Annotated[tuple[Literal["tensorboard", "trackio"], ...], NonSemantic] = ()
    """Experiment trackers that the metrics are written to as well; each needs its package."""

    threads: Annotated[PositiveInt | None, NonSemantic] = None
    """CPU threads of each rank; by default the cores are divided over the ranks. Recorded, because another
    number may round differently."""

    @property
    def adapter(self) -> LoraConfig | None:
        """Config of the adapters that are trained on frozen weights; None if the weights are trained."""
        return None

    @property
    def quantized(self) -> bool:
        """True if the matrices of the blocks are frozen in 4 bits."""
        return False

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the kind of the base model."""
        return {"base": InputKind("model")}

    @model_validator(mode="after")
    def _check_float8(self) -> Self:
        """Refuse float8 with tensor parallelism, whose hooks are on the modules that float8 replaces."""
        if self.float8 and self.parallel.tp > 1:
            raise ValueError("float8 is not supported with parallel.tp > 1: use dp_shard or pp")
        return self

    @model_validator(mode="after")
    def _check_micro_batch_size(self) -> Self:
        """Refuse micro-batches that do not divide a batch."""
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide batch_size ({self.batch_size})"
            )
        return self


def _require_known_types(names: Iterable[str]) -> None:
    known = [entry.name for entry in evidence_table().types]
    for name in names:
        if name not in known:
            raise ValueError(f"no publication type '{name}'; types with a level: {', '.join(known)}")


class UpsampleConfig(Config):
    """Weights of documents by evidence level and quality: how often each is read per epoch.

    The weight is (1 + strength · score) · quality. The score is the sum of the scores of the document's
    publication types, plus a score of its age. The defaults are the values of the original's PMC-Upsampled
    mixture, without its scores of journals and citations. Held-out documents are never upsampled.
    """

    evidence: bool = True
    """Use the scores; `false` for weights by quality alone."""

    strength: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    """Factor of the scores."""

    scores: dict[str, Annotated[float, Field(ge=0.0, le=100.0)]] = Field(default_factory=dict)
    """Publication type → score, in place of the published one: `{ "Case Reports" = 0.3 }`. All types and
    scores are listed in the guide "Train on your own corpus"."""

    exclude: tuple[str, ...] | None = None
    """Publication types that are left out: weight 0. By default the published ones: preprints, retractions,
    and animal studies."""

    recency: (
        tuple[tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=0.0, le=100.0)]], ...] | None
    ) = None
    """Pairs of an age in years and a score: the score of the first age that a document does not exceed is
    added, if the document has a score already. By default `[[5, 1.0], [10, 0.2]]`; `[]` for none."""

    reference_year: Annotated[int, Field(ge=1, le=9999)] | None = None
    """Year from which ages are counted; by default 2023, as published."""

    quality: bool = False
    """Multiply the weight by the document's quality score, from 0 to 1, if it has one."""

    @model_validator(mode="after")
    def _check_types(self) -> Self:
        """Refuse unknown publication types, and ages out of order."""
        _require_known_types((*self.scores, *(self.exclude or ())))
        ages = [age for age, _ in self.recency or ()]
        if ages != sorted(set(ages)):
            raise ValueError(f"the ages of recency must increase, got {ages}")
        return self

    def type_scores(self) -> dict[str, float]:
        """Return publication type → score, for all types with a score."""
        published = {entry.name: entry.score for entry in evidence_table().types if entry.score}
        return published | self.scores

    def excluded_types(self) -> tuple[str, ...]:
        """Return the publication types that are left out."""
        published = tuple(entry.name for entry in evidence_table().types if entry.excluded)
        return published if self.exclude is None else self.exclude

    def recency_or_published(self) -> tuple[tuple[int, float], ...]:
        """Return the pairs of an age and its score."""
        return evidence_table().recency if self.recency is None else self.recency

    def reference_year_or_published(self) -> int:
        """Return the year from which ages are counted."""
        return evidence_table().reference_year if self.reference_year is None else self.reference_year


class PretrainConfig(TrainingConfig):
    """Settings of continued pretraining: next-token prediction on tokenized text."""

    on: str = "base"
    """Model to train: `base`, or a stage that exports a model."""

    tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)]
    """Tokens to train on, rounded up to whole optimizer steps; at most 10^13."""

    mixture: dict[str, Annotated[float, Field(gt=0.0, le=1.0)]] | Literal["as-published"] | None = None
    """Source → its share of the samples; the shares sum to 1. By default in proportion to the sources'
    tokens. `as-published`: GAP-Replay's proportions, for sources named `guidelines` (0.23 %), `abstracts`
    (11.7 %), `papers` (87.1 %) and `replay` (0.90 %)."""

    epochs: dict[str, Annotated[float, Field(gt=0.0, le=1000.0)]] | None = None
    """Source → its number of epochs relative to the other sources, which have 1: with `{ guidelines = 3 }`
    the guidelines are read three times while the other sources are read once. Not with `mixture`. The number
    of tokens in all is `tokens`."""

    upsample: UpsampleConfig | None = None
    """Weights of documents by evidence level and quality; by default all documents have the weight 1."""

    document_mask: bool = True
    """Let a token attend to its own document only, with positions restarting in each document."""

    heldout_documents: Annotated[int, Field(ge=0)] = 16
    """Held-out documents of each source for the held-out loss; 0 for none."""

    @model_validator(mode="after")
    def _check_mixture(self) -> Self:
        """Refuse shares that do not sum to one."""
        # The comparison has a tolerance, because 0.1 + 0.2 + 0.7 is not exactly 1 in binary.
        if isinstance(self.mixture, dict) and abs(sum(self.mixture.values()) - 1.0) > 1e-6:
            raise ValueError(f"the shares of mixture sum to {sum(self.mixture.values()):g}, not to 1")
        if self.mixture is not None and self.epochs is not None:
            raise ValueError("set mixture or epochs, not both: each decides the sources' proportions")
        return self

    @property
    def shares(self) -> Mapping[str, float] | None:
        """Source → its part of the samples, in any unit; None: in proportion to the sources' tokens."""
        return GAP_REPLAY_TOKENS if self.mixture == "as-published" else self.mixture

    @property
    def steps(self) -> int:
        """Optimizer steps for `tokens` tokens, rounded up."""
        return -(-self.tokens // (self.batch_size * self.sequence_length))

    def inputs(self) -> dict[str, str]:
        """Return the stage's inputs: the base model, the token files, the corpus (for held-out text)."""
        return {"base": self.on, "tokens": "tokenize", "corpus": "corpus"}

    def cross_stage_errors(self, stages: Mapping[str, StageConfig]) -> dict[str, str]:
        """Return an error if the mixture names a source that the corpus does not have."""
        # The error is found when the recipe is loaded, not after hours of building the corpus.
        if "corpus" in stages:
            sources = stages["corpus"].document_inputs()
            for key, names in (("mixture", self.shares), ("epochs", self.epochs)):
                for name in names or ():
                    if name not in sources:
                        return {key: f"no source '{name}'; the corpus has {', '.join(sources)}"}
        return {}
