"""Configs of the training stages: a recipe's `[pretrain]` and `[[finetune]]`. Does not import torch."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from meditron.core.config import InputKind, NonSemantic, StageConfig
from meditron.core.machine import DType

__all__ = ["FinetuneConfig", "PretrainConfig", "TrainingConfig"]

_Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
_FractionBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
_Betas = tuple[_FractionBelowOne, _FractionBelowOne]
_PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
# The limit bounds memory: the order of all samples is planned in memory, with ten bytes per sample.
_MAX_TOKENS = 10**13
_MAX_EPOCHS = 10_000


class TrainingConfig(StageConfig):
    """Settings that pretraining and finetuning share: samples, optimizer, checkpoints."""

    sequence_length: _PositiveInt
    """Tokens of a sample."""

    batch_size: _PositiveInt
    """Samples per optimizer step."""

    micro_batch_size: _PositiveInt | None = None
    """Samples per forward and backward pass, if a whole batch does not fit in memory; must divide
    `batch_size`. Affects the result: sums over micro-batches round differently."""

    learning_rate: Annotated[float, Field(gt=0.0)]
    """Peak learning rate, reached at the end of the warm-up."""

    min_learning_rate_ratio: _Fraction = 0.1
    """Final learning rate of the cosine schedule, as a fraction of `learning_rate`."""

    warmup: _FractionBelowOne = 0.1
    """Fraction of the steps over which the learning rate rises linearly."""

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

    compile: bool = False
    """Run torch.compile on each block: faster steps after some minutes of compilation; needs a C++ compiler.
    Affects the result: compiled code rounds differently."""

    heldout_every: _PositiveInt | None = None
    """Steps between two evaluations of the held-out loss; by default only before the first step and after the
    last."""

    # The three fields below do not change the trained model, so they are not part of the stage's fingerprint.
    checkpoint_every: Annotated[_PositiveInt, NonSemantic] = 10
    """Optimizer steps between two checkpoints: a killed run repeats at most this many."""

    keep_checkpoints: Annotated[_PositiveInt, NonSemantic] = 2
    """Number of checkpoints to keep; if the newest is damaged, the one before it is used."""

    threads: Annotated[_PositiveInt | None, NonSemantic] = None
    """CPU threads; by default one per core. Recorded, because another number may round differently."""

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the kinds of the base model and of a finetune's file of rows or questions."""
        model, rows = InputKind("model"), InputKind("conversations")
        return {"base": model, "rows": rows, "task": InputKind("questions")}

    @model_validator(mode="after")
    def _check_micro_batch_size(self) -> Self:
        """Refuse micro-batches that do not divide a batch."""
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide batch_size ({self.batch_size})"
            )
        return self


class PretrainConfig(TrainingConfig):
    """Settings of continued pretraining: next-token prediction on tokenized text."""

    on: str = "base"
    """Model to train: `base`, or a stage that exports a model."""

    tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)]
    """Tokens to train on, rounded up to whole optimizer steps; at most 10^13."""

    mixture: dict[str, Annotated[float, Field(gt=0.0, le=1.0)]] | None = None
    """Source → its share of the samples; the shares sum to 1. By default in proportion to the sources'
    tokens."""

    document_mask: bool = True
    """Let a token attend to its own document only, with positions restarting in each document."""

    heldout_documents: Annotated[int, Field(ge=0)] = 16
    """Held-out documents of each source for the held-out loss; 0 for none."""

    @model_validator(mode="after")
    def _check_mixture(self) -> Self:
        """Refuse shares that do not sum to one."""
        # The comparison has a tolerance, because 0.1 + 0.2 + 0.7 is not exactly 1 in binary.
        if self.mixture is not None and abs(sum(self.mixture.values()) - 1.0) > 1e-6:
            raise ValueError(f"the shares of mixture sum to {sum(self.mixture.values()):g}, not to 1")
        return self

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
        if self.mixture and "corpus" in stages:
            sources = stages["corpus"].inputs()
            for name in self.mixture:
                if name not in sources:
                    return {"mixture": f"no source '{name}'; the corpus has {', '.join(sources)}"}
        return {}


class FinetuneConfig(TrainingConfig):
    """Settings of supervised finetuning: only the tokens of answers add to the loss."""

    on: str = "pretrain"
    """Model to train: `base`, or a stage that exports a model."""

    task: str | None = None
    """Train on the training split of a task: a registered name, or a file of multiple-choice questions."""

    rows: str | None = None
    """Train on a file of conversations (.jsonl, also .gz or .zst), one JSON object per line, in one of these
    formats, the same in the whole file:

    - {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]}
    - {"instruction": "…", "input": "…", "output": "…"}; `input` may be absent or empty
    - {"prompt": "…", "completion": "…"}
    - {"question": "…", "answer": "…"}

    Each row may have an "id". Roles are system, user (or question) and assistant (or answer). A message with
    "weight": 0 or "train": false is read but adds no loss. Rows with tools or tool calls are refused."""

    licence: str | None = None
    """Licence of the file of rows; recorded in the manifest and shown in the model card."""

    limit: _PositiveInt | None = None
    """Number of training rows, at most; by default all."""

    template: Literal["none", "meditron", "chatml", "tokenizer"] = "none"
    """Chat template that turns a row into text. `none`: messages without markup, each answer followed by the
    end-of-text token (an option of a task's question by nothing); `meditron`: ChatML with the roles question
    and answer, as published with Meditron; `chatml`: ChatML with the roles user and assistant; `tokenizer`:
    the chat template of the model's own tokenizer."""

    epochs: Annotated[int, Field(ge=1, le=_MAX_EPOCHS)] = 1
    """Passes over the rows. The last batch is filled with samples whose targets are all masked."""

    pack: bool = True
    """Pack several rows into one sample of `sequence_length` tokens; no token attends to another row."""

    heldout: _FractionBelowOne = 0.05
    """Fraction of the rows that is held out from training, for the held-out loss. Rows are selected by a hash
    of their content, so equal rows are on the same side."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        """Require exactly one of `task` and `rows`."""
        if (self.task is None) == (self.rows is None):
            raise ValueError("set exactly one of task and rows")
        if self.licence is not None and self.rows is None:
            raise ValueError("licence applies to a file of rows; a task has its own")
        return self

    def inputs(self) -> dict[str, str]:
        """Return the stage's inputs: the base model, and the rows, the task's file or the task's corpus."""
        # Imported here and not at the top of the module, so that reading a recipe does not load every task.
        from meditron.tasks.registry import TASKS

        if self.task is None:
            return {"base": self.on, "rows": str(self.rows)}
        return {"base": self.on} | ({"corpus": "corpus"} if self.task in TASKS else {"task": self.task})

    def licences(self) -> dict[str, str]:
        """Return the licence of the file of rows, if it is set."""
        return {"rows": self.licence} if self.licence else {}
