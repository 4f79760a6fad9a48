"""Preference tuning: DPO (Rafailov et al. 2023) on pairs of a chosen and a rejected answer.

A sample is one pair, as two documents of one sequence: the conversation with the chosen answer, then that
with the rejected one. No token attends to the other document. The loss of a pair is −log σ(β · margin), where
the margin is the growth of the chosen answer's log-probability since the first step minus that of the
rejected one. Log-probabilities before the first step (of the reference model) are computed once and cached.

Shapes: B pairs of a micro-batch, N pairs of the data; 2: chosen, rejected.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from meditron.core.console import info, warn
from meditron.core.errors import InputError, RecipeError, SourceError, StorageError
from meditron.core.machine import describe
from meditron.model.presets import model_tokenizer
from meditron.parallel.model import ModelStage
from meditron.parallel.rank_group import RankGroup
from meditron.parallel.world import current_world
from meditron.report.pages import Page
from meditron.store.ancestry import Training
from meditron.store.files import cache_folder, canonical_json, read_json, write_json
from meditron.store.manifest import Artifact
from meditron.store.models import resolve_model
from meditron.text.finetune_templates import TokenizedConversation, tokenize_conversation, with_chat_template
from meditron.text.messages import ASSISTANT, ROLES, Turn, is_blank, parse_id, parse_messages
from meditron.text.tokenizer import Tokenizer
from meditron.train.batches import Batch, collate, micro_batches
from meditron.train.data_identity import hex_digest, passage_hashes
from meditron.train.examples import (
    FILE_NAME,
    SPLITS,
    Example,
    Split,
    content_hash,
    file_rows,
    held_out,
    next_token_targets,
    refuse_unsupported_keys,
    user_text,
    write_rows,
)
from meditron.train.finetune_config import FinetuneConfig
from meditron.train.heldout_loss import uncompiled
from meditron.train.loop import TrainState
from meditron.train.samples import IGNORE, Sample, seeded_permutation
from meditron.train.trainer import TrainingInputs

if TYPE_CHECKING:
    from meditron.train.overlap import OverlapFilter

__all__ = ["PairDataset", "PreferenceRow", "dpo_loss", "pair_logps", "read_preferences", "training_inputs"]


# Keys of conversations that would be part of the prompt or of the answers.
_UNSUPPORTED_IN_PAIRS = ("history", "input", "reasoning")
_PROMPTS = ("prompt", "messages")
_ANSWERS = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """A prompt with a chosen and a rejected answer, before tokenization."""

    id: str
    prompt: tuple[Turn, ...]
    chosen: Turn
    rejected: Turn
    place_in_file: str

    @property
    def conversations(self) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
        """The prompt with the chosen answer, and with the rejected one."""
        return (*self.prompt, self.chosen), (*self.prompt, self.rejected)

    @property
    def texts(self) -> tuple[Turn, ...]:
        """The prompt and both answers."""
        return (*self.prompt, self.chosen, self.rejected)

    @property
    def question(self) -> str:
        """The user's messages."""
        return user_text(self.prompt)


def read_preferences(path: Path) -> Iterator[PreferenceRow]:
    """Read the pairs of a file (.jsonl, .json, .csv, .parquet), in its order.

    A row without an id gets a hash of its texts.

    Raises:
        InputError: A row is damaged, is no pair, or its two answers are equal.
        SourceError: There is no such file.
    """
    for place, row in file_rows(path):
        try:
            prompt, chosen, rejected = _parse_pair(row)
            id_ = row.get("id")
            name = content_hash((*prompt, chosen, rejected))[:16] if is_blank(id_) else parse_id(id_)
        except ValueError as error:
            raise InputError(path, str(error), place=place) from error
        yield PreferenceRow(name, prompt, chosen, rejected, place)


def _parse_pair(row: Mapping[str, Any]) -> tuple[tuple[Turn, ...], Turn, Turn]:
    """Return the prompt, the chosen and the rejected answer of a row; ValueError if it is no pair."""
    refuse_unsupported_keys(row, also=_UNSUPPORTED_IN_PAIRS, method="preference tuning")
    if any(isinstance(row.get(key), list) and len(row[key]) > 1 for key in _ANSWERS):
        turns, chosen, rejected = _parse_conversations(row)
    else:
        turns, chosen, rejected = _parse_prompt_and_answers(row)
    if turns[-1].role == ASSISTANT:
        raise ValueError("the prompt ends with an answer; answers are chosen and rejected")
    if any(turn.role != ASSISTANT or not turn.in_loss for turn in (chosen, rejected)):
        raise ValueError("chosen and rejected must be answers of the assistant")
    if chosen == rejected:
        raise ValueError("chosen and rejected are equal: there is nothing to prefer")
    return _without_loss(turns), chosen, rejected


def _parse_prompt_and_answers(row: Mapping[str, Any]) -> tuple[Sequence[Turn], Turn, Turn]:
    present = [key for key in _PROMPTS if row.get(key) and not is_blank(row[key])]
    if len(present) != 1:
        raise ValueError(
            "a pair has a prompt, as text or messages, under exactly one of prompt and messages, or as the "
            "shared beginning of chosen and rejected"
        )
    prompt = row[present[0]]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list):
        raise ValueError(f"{present[0]} must be text or a list of messages")  # noqa: TRY004
    *turns, chosen = parse_messages([*messages, _answer_message(row, "chosen")])
    *_, rejected = parse_messages([*messages, _answer_message(row, "rejected")])
    return turns, chosen, rejected


def _parse_conversations(row: Mapping[str, Any]) -> tuple[Sequence[Turn], Turn, Turn]:
    """Return the prompt and the answers of a row whose `chosen` and `rejected` are whole conversations."""
    (prompt, chosen), (prompt_of_rejected, rejected) = (_split_conversation(row, key) for key in _ANSWERS)
    if prompt != prompt_of_rejected:
        equal = [a == b for a, b in zip(prompt, prompt_of_rejected, strict=False)]
        raise ValueError(
            "chosen and rejected must have the same messages before the last; they differ at message "
            f"{[*equal, False].index(False) + 1}"
        )
    for key in _PROMPTS:
        _require_same_prompt(row, key, prompt)
    return prompt, chosen, rejected


def _require_same_prompt(row: Mapping[str, Any], key: str, prompt: Sequence[Turn]) -> None:
    """Raise ValueError if a row has a prompt other than the shared beginning of its conversations."""
    given = row.get(key)
    # In published datasets, `messages` may be the chosen conversation.
    if not given or is_blank(given) or (key == "messages" and given == row["chosen"]):
        return
    if isinstance(given, str):
        questions = [turn.content.strip() for turn in prompt if turn.role == "user"]
        if given.strip() not in questions[-1:]:
            raise ValueError(f"{key} must equal the user's last message in chosen and rejected, or be absent")
        return
    turns = parse_messages([*given, row["chosen"][-1]])[:-1] if isinstance(given, list) else ()
    if _without_loss(turns) != prompt:
        raise ValueError(f"{key} must equal the messages that chosen and rejected share, or be absent")


def _split_conversation(row: Mapping[str, Any], key: str) -> tuple[tuple[Turn, ...], Turn]:
    """Return the messages before the last, and the last, which must be the assistant's."""
    messages = row.get(key)
    last = messages[-1] if isinstance(messages, list) and messages else None
    role = ROLES.get(str(last.get("role"))) if isinstance(last, dict) else None
    if role and role != ASSISTANT:
        raise ValueError(f"the last message of {key} must be the assistant's, got the {role}'s")
    *before, answer = parse_messages(messages, key)
    return _without_loss(before), answer


def _without_loss(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    # Only the last answer is compared; earlier ones are part of the prompt.
    return tuple(replace(turn, in_loss=False) for turn in turns)


def _answer_message(row: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401  # `parse_messages` checks it
    answer = row.get(key)
    if isinstance(answer, str) and answer:
        return {"role": ASSISTANT, "content": answer}
    answers = answer if isinstance(answer, list) else [answer]
    if len(answers) != 1 or not answers[0]:
        raise ValueError(f"{key} must be one answer: text, or a message")
    return answers[0]


Pair = tuple[str, TokenizedConversation, TokenizedConversation]
"""Id, conversation with the chosen answer, conversation with the rejected one."""


class PairDataset:
    """Dataset of pairs: each epoch has every pair once, in a new order, one pair per sample."""

    document_mask = True

    def __init__(
        self, pairs: Sequence[Pair], *, name: str, epochs: int, batch_size: int, seed: int, length: int | None
    ) -> None:
        """`length`: tokens to pad each sample to; None for no padding."""
        self.pairs, self._name, self._length = pairs, name, length
        self.references_N2 = np.zeros((len(pairs), 2))
        """Log-probabilities of the answers before the first step."""
        self._order = [
            index
            for epoch in range(epochs)
            for index in seeded_permutation(len(pairs), f"{seed}/{name}/{epoch}").tolist()
        ]
        self._sizes = [len(chosen.ids) + len(rejected.ids) for _, chosen, rejected in pairs]
        self._ends = [0, *accumulate(self._sizes[index] for index in self._order)]
        self._samples = -(-len(self._order) // batch_size) * batch_size

    def __len__(self) -> int:
        """Return the number of samples, a multiple of the batch size."""
        return self._samples

    def __getitem__(self, k: int) -> Sample:
        """Return sample k; the last batch is filled with a pair whose targets are all masked."""
        if k >= len(self._order):
            return self[0].mask_all_targets()
        return self.pair(self._order[k])

    def pair(self, index: int) -> Sample:
        """Return a pair of the data as a sample."""
        name, *both = self.pairs[index]
        sizes = [len(conversation.ids) for conversation in both]
        sample = Sample(
            ids_S=np.concatenate([conversation.ids for conversation in both]).astype(np.int64),
            targets_S=np.concatenate([next_token_targets(conversation) for conversation in both]),
            document_ids_S=np.repeat(np.arange(2), sizes),
            positions_S=np.concatenate([np.arange(size) for size in sizes]),
            source=self._name,
            documents=(name,),
            reference_2=self.references_N2[index],
        )
        return sample.pad_to(self._length) if self._length else sample

    def count_tokens(self, consumed: int) -> int:
        """Count the tokens of the first `consumed` samples, of both conversations."""
        return int(self._ends[min(consumed, len(self._order))])

    def epochs_by_source(self, consumed: int) -> dict[str, float]:
        """Return the epochs read after `consumed` samples."""
        return {self._name: self.count_tokens(consumed) / sum(self._sizes)}


def pair_nll(model: ModelStage, batch: Batch) -> Tensor:
    """Return the negative log-likelihood of each answer (B, 2), in nats."""
    nll_B2: Tensor = model(
        batch.ids_BS,
        targets_BS=batch.targets_BS,
        positions_BS=batch.positions_BS,
        documents_BS=batch.documents_BS,
        documents=2,
    )
    return nll_B2


def dpo_loss(model: ModelStage, batch: Batch, *, beta: float) -> Tensor:
    """Return the summed DPO loss of a micro-batch; pairs without targets add nothing."""
    assert batch.reference_B2 is not None  # noqa: S101 (for the type checker)
    growth_B2 = -pair_nll(model, batch) - batch.reference_B2
    loss_B = -F.logsigmoid(beta * (growth_B2[:, 0] - growth_B2[:, 1]))
    real_B = (batch.targets_BS != IGNORE).any(dim=1)
    return torch.where(real_B, loss_B, 0.0).sum()


def pair_logps(state: TrainState, samples: Sequence[Sample]) -> np.ndarray:
    """Return the log-probability of each answer under the model as it is now, (N, 2) float64.

    Data-parallel ranks share the pairs; every rank must call this, and gets all results.
    """
    layout = state.layout
    size, count = layout.data_size, state.config.micro_batch_size or 1
    filler = samples[0].mask_all_targets()
    mine = [*samples[layout.data_rank :: size]]
    mine += [filler] * (-(-len(samples) // size) - len(mine))
    rows: list[list[float]] = []
    with torch.no_grad(), uncompiled(layout.device):
        for part in micro_batches(mine, count):
            batch = collate(part, by_document=True, device=layout.device)
            rows += (-pair_nll(state.model, batch).double()).tolist()
    by_rank = RankGroup.of_job().gather(rows)
    return np.array([by_rank[k % size][k // size] for k in range(len(samples))]).reshape(-1, 2)


def training_inputs(
    config: FinetuneConfig, inputs: Mapping[str, Artifact], out: Path, overlap: "OverlapFilter | None"
) -> TrainingInputs:
    """Read and tokenize the pairs, write them to `rows.jsonl.zst`, and return the inputs of the training.

    Pairs that `overlap` removes are left out.

    Raises:
        InputError: A row is no pair, or cannot be tokenized.
        RecipeError: No pair is short enough to train on.
    """
    path = inputs["rows"].path
    tokenizer = model_tokenizer(resolve_model(inputs["base"].spec))
    name = path.name.partition(".")[0]
    pairs = read_preferences(path)
    if overlap:
        pairs = (pair for pair in pairs if not overlap.removes(name, pair.id, pair.question, pair.texts))
    examples = _tokenize_pairs(path, name, pairs, tokenizer, config)
    if current_world().is_main:
        write_rows(out / FILE_NAME, (example for pair in examples for example in pair))
        if overlap:
            overlap.write(out)
            info(overlap.summary())
    by_split = {split: [pair for pair in examples if pair[0].split == split] for split in SPLITS}
    _check_lengths(name, by_split["train"], by_split["too-long"], len(examples))
    dataset = _dataset(by_split["train"], config, name, config.epochs)
    heldout = _dataset(by_split["heldout"], config, name, 1)
    assert dataset is not None  # noqa: S101  # `_check_lengths`
    trained = [example for pair in by_split["train"] for example in pair]
    answer_tokens = sum(sum(example.tokenized_turns.in_loss) for example in trained)
    tokens = sum(len(example.tokenized_turns.ids) for example in trained)
    datasets = [data for data in (dataset, heldout) if data is not None]
    return TrainingInputs(
        report_title="Preference tuning (DPO)",
        progress_label="dpo",
        tokenizer=with_chat_template(tokenizer, config.template),
        dataset=dataset,
        ancestry_entry=_ancestry_entry(config, inputs, out.name, name, trained),
        heldout_samples=lambda: {name: [heldout[k] for k in range(len(heldout.pairs))]} if heldout else {},
        loss=partial(dpo_loss, beta=config.beta),
        prepare=partial(_fill_references, datasets, base=hex_digest(inputs["base"])),
        final_metrics=partial(_margins, name=name, heldout=heldout, beta=config.beta),
        target_fraction=answer_tokens / tokens,
        stage_metrics={
            "pairs": {split: len(by_split[split]) for split in SPLITS},
            "answer_tokens": answer_tokens,
            **({"overlap": overlap.metrics()} if overlap else {}),
        },
        add_to_report=partial(_add_overlap_to_report, overlap=overlap),
    )


def _add_overlap_to_report(page: Page, *, overlap: "OverlapFilter | None") -> None:
    if overlap:
        overlap.add_to_report(page)


def _tokenize_pairs(
    path: Path, source: str, rows: Iterable[PreferenceRow], tokenizer: Tokenizer, config: FinetuneConfig
) -> list[tuple[Example, Example]]:
    """Tokenize pairs until `limit` of them are trained on. The split depends on the prompt alone."""
    pairs: list[tuple[Example, Example]] = []
    trained = 0
    for row in rows:
        try:
            both = [tokenize_conversation(tokenizer, turns, config.template) for turns in row.conversations]
        except ValueError as error:
            raise InputError(path, str(error), place=row.place_in_file) from error
        except InputError as error:  # from the chat template, which may accept other rows
            hint = error.hint or "change the row to messages that the model's chat template accepts"
            raise InputError(path, error.message, place=row.place_in_file, hint=hint) from error
        content = content_hash(row.prompt)
        split: Split = "train"
        if sum(len(tokenized.ids) for tokenized in both) > config.sequence_length:
            split = "too-long"
        elif held_out(content, config.heldout):
            split = "heldout"
        trained += split == "train"
        chosen, rejected = (
            Example(f"{row.id}/{kind}", source, split, content, turns, tokenized)
            for kind, turns, tokenized in zip(("chosen", "rejected"), row.conversations, both, strict=True)
        )
        pairs.append((chosen, rejected))
        # No pair after the last one is read: a filter would count it.
        if trained == config.limit:
            break
    return pairs


def _dataset(
    pairs: Sequence[tuple[Example, Example]], config: FinetuneConfig, name: str, epochs: int
) -> PairDataset | None:
    if not pairs:
        return None
    return PairDataset(
        [(chosen.id, chosen.tokenized_turns, rejected.tokenized_turns) for chosen, rejected in pairs],
        name=name,
        epochs=epochs,
        batch_size=config.batch_size,
        seed=config.seed or 0,
        # Compiled blocks would be compiled again for every length.
        length=config.sequence_length if config.compile else None,
    )


def _check_lengths(
    name: str, trained: Sequence[object], long: Sequence[tuple[Example, Example]], count: int
) -> None:
    longest = max((sum(len(e.tokenized_turns.ids) for e in pair) for pair in long), default=0)
    if not trained:
        problem = f"; {len(long)} are too long, up to {longest} tokens" if long else ""
        raise RecipeError(f"{name} has no pair to train on{problem}")
    if long and current_world().is_main:
        warn(
            f"{len(long)} of {count} pairs are longer than sequence_length, both conversations together, and "
            f"left out; sequence_length = {longest} would include all"
        )


def _ancestry_entry(
    config: FinetuneConfig, inputs: Mapping[str, Artifact], stage: str, name: str, trained: Sequence[Example]
) -> Training:
    return Training(
        stage=stage,
        kind="finetune",
        data=name,
        data_digest=hex_digest(inputs["rows"]),
        chat_template=config.template,
        texts=passage_hashes(turn.content for e in trained for turn in e.turns if turn.role == "user"),
    )


def _fill_references(datasets: Sequence[PairDataset], state: TrainState, *, base: str) -> None:
    """Give the pairs their log-probabilities before the first step, from the cache if they are known."""
    samples = [data.pair(index) for data in datasets for index in range(len(data.pairs))]
    path = cache_folder() / "reference-logprobs" / f"{_cache_key(state, samples, base)}.json"
    # Only rank 0 looks, because another machine may have another cache.
    cached = _read_cache(path, len(samples)) if state.layout.is_main else None
    known = RankGroup.of_job().gather(cached)[0]
    values = pair_logps(state, samples) if known is None else known
    if known is None and state.layout.is_main:
        try:
            write_json(path, values.tolist())
        except StorageError as error:
            warn(f"the reference log-probabilities are not cached: {error}")
    start = 0
    for data in datasets:
        data.references_N2[:] = values[start : start + len(data.pairs)]
        start += len(data.pairs)


def _read_cache(path: Path, pairs: int) -> npt.NDArray[np.float64] | None:
    """Return the cached log-probabilities of N pairs, (N, 2); None if there are none that can be used."""
    # A cache that cannot be read is like none: an error on rank 0 alone would leave the other ranks waiting.
    with suppress(SourceError, InputError, OSError, ValueError, TypeError):
        if path.is_file():
            values = np.array(read_json(path), np.float64)
            return values if values.shape == (pairs, 2) and np.isfinite(values).all() else None
    return None


def _cache_key(state: TrainState, samples: Sequence[Sample], base: str) -> str:
    """Return a hash of everything that the log-probabilities depend on, to the last bit."""
    settings = {
        "base": base,
        "seed": state.config.seed,
        "dtype": state.config.dtype,
        "float8": state.config.float8,
        "compile": state.config.compile,
        "micro_batch_size": state.config.micro_batch_size,
        "threads": torch.get_num_threads(),
        "layout": state.layout.describe(),
        "device": state.layout.device.type,
        "gpus": describe()["gpus"],
        "cpu": describe()["cpu_class"],
        "torch": str(torch.__version__),
    }
    digest = hashlib.sha256(canonical_json(settings))
    for sample in samples:
        for array in (sample.ids_S, sample.targets_S):
            digest.update(len(array).to_bytes(8, "little") + array.tobytes())
    return digest.hexdigest()


def _margins(state: TrainState, *, name: str, heldout: PairDataset | None, beta: float) -> dict[str, Any]:
    """Return the mean margin of the held-out pairs, [before, after], and the fraction that is preferred."""
    if heldout is None:
        return {}
    samples = [heldout.pair(index) for index in range(len(heldout.pairs))]
    growth_N2 = pair_logps(state, samples) - heldout.references_N2
    margins_N = beta * (growth_N2[:, 0] - growth_N2[:, 1])
    # Before the first step the model is the reference, so every margin is zero.
    return {
        "margin": {name: [0.0, float(margins_N.mean())]},
        "preferred": {name: float((margins_N > 0).mean())},
    }
