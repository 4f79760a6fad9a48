"""Config of a recipe's `[[finetune]]`. Does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from meditron.core.config import InputKind, StageConfig, translate_usage_errors
from meditron.model.lora_config import LoraConfig
from meditron.tasks.registry import TASKS, parse_benchmarks, parse_task
from meditron.tasks.training_sets import TrainingSet, parse_training_set
from meditron.text.special_tokens import MAX_ADDED_TOKENS, token_text_problem
from meditron.train.config import FractionBelowOne, PositiveInt, TrainingConfig

__all__ = ["CORPUS", "FinetuneConfig", "FinetuneData", "OverlapRule"]

CORPUS = "corpus"
"""Name of the corpus among the stage's inputs, of which some tasks are made."""
_MAX_EPOCHS = 10_000
OverlapRule = Literal["search", "8-grams"]
_ROW_KINDS: Mapping[Literal["task", "rows"], Literal["questions", "conversations"]] = {
    "task": "questions",
    "rows": "conversations",
}


@dataclass(frozen=True, slots=True)
class FinetuneData:
    """An entry of `task` or `rows`: where its rows are, and how they are read."""

    input: str
    """Name of the stage's input that has the rows: `task`, `rows-2`, `corpus`."""
    kind: Literal["task", "rows"]
    text: str
    """The entry as written in the recipe."""
    reference: str
    """Reference of the input, without the name of a training set."""
    known: TrainingSet | None
    """The training set that the entry names; None for a file and for a task made from the corpus."""


class FinetuneConfig(TrainingConfig):
    """Settings of supervised finetuning: only the tokens of answers add to the loss."""

    on: str = "pretrain"
    """Model to train: `base`, or a stage that exports a model."""

    method: Literal["full", "lora", "qlora", "dpo"] = "full"
    """Parameters that are trained. `full`: all weights; `lora`: adapters on frozen weights, which the stage
    writes merged into the model, and in peft's format to `adapter/`; `qlora`: as `lora`, with the matrices of
    the blocks in 4 bits (NF4); `dpo`: direct preference optimization on pairs of answers, of all weights, or
    of adapters if `lora` is set."""

    beta: Annotated[float, Field(gt=0.0)] = 0.1
    """Of `dpo`: factor of the margin in the loss; the larger, the closer the model stays to its base."""

    lora: LoraConfig | None = None
    """Rank, scale, dropout and modules of the adapters; by default `{ rank = 16, alpha = 32, dropout = 0.0 }`
    on all matrices of the blocks."""

    task: str | tuple[str, ...] | None = None
    """Train on the questions of a task's training split, or of several. An entry is

    - a file of multiple-choice questions, all of which are trained on
    - a training set: `medqa-4`, `medqa-5`, `medmcqa`, `medmcqa-explained` (only questions with an
      explanation), `pubmedqa` (labelled by experts), `pubmedqa-a` (artificial), from the hub or from
      your own copy (`medmcqa:data/medmcqa`)
    - a task made from the corpus: `pubmed-sections`, `pubmedqa-artificial`"""

    rows: str | tuple[str, ...] | None = None
    """Train on conversations: a file or a folder of files (.jsonl, .json, .csv, .parquet; text also .gz or
    .zst), the training set `medquad:FOLDER` or `wikidoc-patient`, or several of them. With `task` both are
    trained on. Each row has one of these formats, the same in the whole file:

    - {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]} (OpenAI)
    - {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}, …]} (ShareGPT)
    - {"instruction": "…", "input": "…", "output": "…"}; `input` may be absent or empty (Alpaca)
    - {"prompt": "…", "completion": "…"}
    - {"question": "…", "answer": "…"}

    A row's "reasoning" is a chain of thought, which is written before the last answer. With `method = "dpo"`
    a row is a pair: {"prompt": "…", "chosen": "…", "rejected": "…"}. `messages` in place of `prompt` has
    several turns, and an answer may be a message. `chosen` and `rejected` may be lists of messages that share
    all but the last; the shared messages are the prompt.

    Each row may have an "id". Roles are system, user (or question) and assistant (or answer). A message with
    "weight": 0 or "train": false is read but adds no loss. Rows with tools or tool calls are refused."""

    licence: str | None = None
    """Licence of the files of rows; recorded in the manifest and shown in the model card. Training sets have
    their own."""

    reasoning: bool = False
    """Answer a task's questions with the source's explanation before the answer, in the prompt of the
    evaluation methods `cot` and `self-consistency`. Questions without an explanation are left out."""

    decontaminate: tuple[str, ...] | None = None
    """Benchmarks, named as in `evaluate.tasks`: rows that overlap with one of their questions are left out
    and listed in `overlap.jsonl`. Default: those in `evaluate.tasks`; `[]`: none."""

    overlap_rules: Annotated[tuple[OverlapRule, ...], Field(min_length=1)] = ("search", "8-grams")
    """Rules of `decontaminate`; a row that meets one is left out. `search`: it contains a question, by the
    corpus stage's rules; `8-grams`: at least 80 % of the 8-word sequences of its question are in the
    questions of one benchmark (Chen et al. 2023, appendix B.5)."""

    limit: PositiveInt | None = None
    """Number of training rows of each entry of `task` and `rows`, at most; by default all."""

    template: Literal["none", "meditron", "chatml", "tokenizer"] = "none"
    """Chat template that turns a row into text. `none`: messages without markup, each answer followed by the
    end-of-text token (an option of a task's question by nothing); `meditron`: ChatML with the roles question
    and answer, as published with Meditron; `chatml`: ChatML with the roles user and assistant; `tokenizer`:
    the chat template of the model's own tokenizer."""

    added_tokens: Annotated[tuple[str, ...], Field(max_length=MAX_ADDED_TOKENS)] = ()
    """Special tokens that are added to the tokenizer, such as those of a template that the base model was not
    trained with: `["<|im_start|>", "<|im_end|>"]`. A token that the tokenizer has keeps its id. The rows of
    new ones in the embedding and the head begin as the mean of the other tokens' rows, and are trained; with
    adapters as `lora.embeddings` does. Not with `dpo`."""

    epochs: Annotated[int, Field(ge=1, le=_MAX_EPOCHS)] = 1
    """Passes over the rows. The last batch is filled with samples whose targets are all masked."""

    pack: bool = True
    """Pack several rows into one sample of `sequence_length` tokens; no token attends to another row."""

    heldout: FractionBelowOne = 0.05
    """Fraction of the rows that is held out from training, for the held-out loss. Rows are selected by a hash
    of their content, so equal rows are on the same side."""

    @field_validator("decontaminate")
    @classmethod
    def _files_are_distinct(cls, files: tuple[str, ...] | None) -> tuple[str, ...] | None:
        with translate_usage_errors():
            parse_benchmarks(files or ())
        return files

    @field_validator("added_tokens")
    @classmethod
    def _tokens_are_valid(cls, tokens: tuple[str, ...]) -> tuple[str, ...]:
        for token in tokens:
            if problem := token_text_problem(token):
                raise ValueError(f"{token!r:.80} {problem}")
            if tokens.count(token) > 1:
                raise ValueError(f"{token!r:.80} is listed twice")
        return tokens

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        """Require data, all different, and refuse settings of the other kind of data."""
        entries = [entry.text for entry in self.data()]
        if not entries:
            raise ValueError("set task or rows")
        if repeated := next((text for text in entries if entries.count(text) > 1), None):
            raise ValueError(f"'{repeated}' is listed twice")
        if self.licence is not None and self.rows is None:
            raise ValueError("licence applies to files of rows; a task has its own")
        if self.reasoning and self.task is None:
            raise ValueError("reasoning applies to a task; a row has its reasoning under its own key")
        return self

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        """Refuse settings that the method does not have."""
        if self.method == "full" and self.lora is not None:
            raise ValueError('lora applies to method = "lora", "qlora" and "dpo", and method is "full"')
        if self.method == "dpo" and (self.task is not None or not isinstance(self.rows, str)):
            raise ValueError('method = "dpo" needs rows, one file of pairs')
        if self.method == "dpo" and self.added_tokens:
            # The loss compares with the model before the first step, which has never seen the tokens.
            raise ValueError(
                'added_tokens is not supported with method = "dpo": add them in a finetune on conversations, '
                "and start from that with `on`"
            )
        if self.adapter is not None and self.float8:
            raise ValueError(f'float8 is not supported with method = "{self.method}"')
        return self

    @property
    def adapter(self) -> LoraConfig | None:
        """Config of the adapters that are trained on frozen weights; None if the weights are trained."""
        if self.method in ("full", "dpo"):
            return self.lora
        adapter = self.lora or LoraConfig()
        return adapter.model_copy(update={"embeddings": adapter.embeddings or bool(self.added_tokens)})

    @property
    def quantized(self) -> bool:
        """True if the matrices of the blocks are frozen in 4 bits."""
        return self.method == "qlora"

    def data(self) -> tuple[FinetuneData, ...]:
        """Return the entries of `task`, then those of `rows`.

        Raises:
            ValueError: An entry names a training set of the other key, or one without its files.
        """
        entries = []
        values: dict[Literal["task", "rows"], str | tuple[str, ...] | None]
        values = {"task": self.task, "rows": self.rows}
        for kind, value in values.items():
            texts = (value,) if isinstance(value, str) else value or ()
            for number, text in enumerate(texts, start=1):
                known, reference = parse_training_set(text, kind)
                name = kind if number == 1 else f"{kind}-{number}"
                if kind == "task" and text in TASKS:
                    name = reference = CORPUS
                entries.append(FinetuneData(name, kind, text, reference, known))
        return tuple(entries)

    def with_recipe_defaults(self, stages: Mapping[str, StageConfig]) -> Self:
        """Return the config with the evaluation's question files as `decontaminate`, if it has no value."""
        if self.decontaminate is not None:
            return self
        tasks = dict.fromkeys(task for stage in stages.values() for task in stage.benchmarks())
        return self.model_copy(update={"decontaminate": tuple(tasks)})

    def inputs(self) -> dict[str, str]:
        """Return the stage's inputs: the base model, the data, and files of questions by their references."""
        data = {entry.input: entry.reference for entry in self.data()}
        questions = {spec: str(parse_task(spec).source) for spec in self.decontaminate or ()}
        return {"base": self.on} | data | questions

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the kinds of the base model, of the data and of the files of questions."""
        questions = {spec: InputKind("questions", task=spec) for spec in self.decontaminate or ()}
        kinds = super().input_kinds() | questions
        for entry in self.data():
            if self.method == "dpo":
                kinds[entry.input] = InputKind("preferences")
            elif entry.input != CORPUS:
                known = entry.known.name if entry.known else None
                kinds[entry.input] = InputKind(_ROW_KINDS[entry.kind], training_set=known)
        return kinds

    def licences(self) -> dict[str, str]:
        """Return the licence of each training set, and that of the files of rows if it is set."""
        licences = {}
        for entry in self.data():
            if entry.known:
                licences[entry.input] = entry.known.licence
            elif entry.kind == "rows" and self.licence:
                licences[entry.input] = self.licence
        return licences
