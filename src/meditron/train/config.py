"""The configurations of the stages that train: a recipe's `[pretrain]` and `[[finetune]]`. No torch here."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from meditron.core.config import NonSemantic
from meditron.core.machine import DType
from meditron.core.stage import InputKind, StageConfig

__all__ = ["FinetuneConfig", "PretrainConfig", "TrainingConfig"]

_Share = Annotated[float, Field(ge=0.0, le=1.0)]
_Part = Annotated[float, Field(ge=0.0, lt=1.0)]
_Betas = tuple[_Part, _Part]
_Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
# The order of all rows is planned in memory: ten bytes a row.
_MOST_TOKENS = 10**13
_MOST_EPOCHS = 10_000


class TrainingConfig(StageConfig):
    """What every stage that trains a whole model is told: its rows, its optimizer, its checkpoints."""

    sequence_length: _Positive
    """Tokens in a row."""

    batch_size: _Positive
    """Rows an optimizer step."""

    micro_batch_size: _Positive | None = None
    """Rows a forward and backward pass, where a whole batch does not fit in memory. It divides `batch_size`.
    Sums over micro-batches round differently, so this is part of what the model is."""

    learning_rate: Annotated[float, Field(gt=0.0)]
    """The peak, reached at the end of the warm-up."""

    min_learning_rate_ratio: _Share = 0.1
    """Where the cosine ends, as a share of `learning_rate`."""

    warmup: _Part = 0.1
    """Share of the steps over which the learning rate rises linearly."""

    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """AdamW's decoupled decay, on matrices; norms are left out."""

    betas: _Betas = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""

    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    """AdamW's term under the division."""

    clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest global norm of the gradient; longer ones are scaled down to it."""

    dtype: DType = "auto"
    """Of weights and activations. With bfloat16 the optimizer keeps float32 master weights. `auto`: bfloat16
    where the CPU has instructions for it, else float32. Recorded, as it rounds differently."""

    compile: bool = False
    """Run torch.compile on each block: faster steps after some minutes of compilation; needs a C++ compiler.
    It rounds differently, so this is part of what the model is."""

    heldout_every: _Positive | None = None
    """Steps between two evaluations of the held-out loss; absent: only at the start and at the end."""

    checkpoint_every: Annotated[_Positive, NonSemantic] = 10
    """Optimizer steps between two checkpoints: what a killed run repeats at most."""

    keep_checkpoints: Annotated[_Positive, NonSemantic] = 2
    """Newest checkpoints to keep; a damaged one is then not the last."""

    threads: Annotated[_Positive | None, NonSemantic] = None
    """CPU threads; absent: as many as there are cores. Recorded, as another number may round differently."""

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the kinds of the model and of a finetune's rows or task file."""
        model, rows = InputKind("model"), InputKind("conversations")
        return {"base": model, "rows": rows, "task": InputKind("questions")}

    @model_validator(mode="after")
    def _batches_come_out_even(self) -> Self:
        """Refuse micro-batches that do not make up a batch."""
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size does not divide batch_size ({self.batch_size})")
        return self


class PretrainConfig(TrainingConfig):
    """Next-token training of a whole model on tokenized text."""

    on: str = "base"
    """The model to go on from: `base`, or a stage that leaves one."""

    tokens: Annotated[int, Field(ge=1, le=_MOST_TOKENS)]
    """Tokens to train on, rounded up to whole optimizer steps; 10^13 at most."""

    mixture: dict[str, Annotated[float, Field(gt=0.0, le=1.0)]] | None = None
    """Source → its share of the rows, together one. Absent: as the sources' tokens stand to each other."""

    document_mask: bool = True
    """A token sees its own document only, and positions start again with each document."""

    heldout_documents: Annotated[int, Field(ge=0)] = 16
    """Held-out documents of each source that are evaluated; 0 for none."""

    @model_validator(mode="after")
    def _shares_are_a_whole(self) -> Self:
        """Refuse shares that do not sum to one."""
        if self.mixture is not None and abs(sum(self.mixture.values()) - 1.0) > 1e-6:
            raise ValueError(f"the shares of mixture sum to {sum(self.mixture.values()):g}, not to 1")
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps that see `tokens` tokens, rounded up."""
        return -(-self.tokens // (self.batch_size * self.sequence_length))

    def inputs(self) -> dict[str, str]:
        """The model to go on from, the tokenized training split, and the corpus for its held-out split."""
        return {"base": self.on, "tokens": "tokenize", "corpus": "corpus"}

    def cross_stage_errors(self, stages: Mapping[str, StageConfig]) -> dict[str, str]:
        """A mixture of what is no source of the corpus."""
        if self.mixture and "corpus" in stages:
            sources = stages["corpus"].inputs()
            for name in self.mixture:
                if name not in sources:
                    return {"mixture": f"the corpus has {', '.join(sources)}, no '{name}'"}
        return {}


class FinetuneConfig(TrainingConfig):
    """Supervised training of a whole model on rows that end in answers, which alone count in the loss."""

    on: str = "pretrain"
    """The model to go on from: `base`, or a stage that leaves one."""

    task: str | None = None
    """Train on a task's training split: a registered name, or a file of multiple-choice questions."""

    rows: str | None = None
    """Train on conversations: a file of lines {"messages": [{"role", "content"}, …]}, each with an "id" if it
    likes. Roles are system, user (or question) and assistant (or answer). A message with "weight": 0 or
    "train": false is read and not learned; tools, tool calls and other keys are refused by name."""

    licence: str | None = None
    """The terms under which the file of rows may be used; they travel to the manifest and the model card."""

    limit: _Positive | None = None
    """Training rows, at most; all when absent."""

    template: Literal["plain", "tags", "chatml", "tokenizer"] = "plain"
    """How a row becomes text. `plain`: as it is, an answer ended by the end-of-text token, a task's option by
    nothing; `tags`: question and answer turns, as published with Meditron; `chatml`: the same with user and
    assistant; `tokenizer`: the model's own chat template."""

    epochs: Annotated[int, Field(ge=1, le=_MOST_EPOCHS)] = 1
    """How often each row is seen; the last batch is filled up with rows that teach nothing."""

    pack: bool = True
    """Pack several rows into one of `sequence_length` tokens; no token sees another row's."""

    heldout: _Part = 0.05
    """Share of the rows that is never trained on, chosen by a hash of each row's content, to take the
    loss on: rows of equal content are never on both sides."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        """Refuse a table that names no rows, or two kinds of them."""
        if (self.task is None) == (self.rows is None):
            raise ValueError("exactly one of task and rows says what to train on")
        if self.licence is not None and self.rows is None:
            raise ValueError("licence is of a file of rows; a task states its own")
        return self

    def inputs(self) -> dict[str, str]:
        """The model to go on from, and the rows: their file, the task's, or the corpus it is made from."""
        from meditron.tasks.registry import TASKS

        if self.task is None:
            return {"base": self.on, "rows": str(self.rows)}
        return {"base": self.on} | ({"corpus": "corpus"} if self.task in TASKS else {"task": self.task})

    def licences(self) -> dict[str, str]:
        """The terms of the file of rows, where they are stated."""
        return {"rows": self.licence} if self.licence else {}
