"""The torch engine: generation and scoring with the project's own model, in this process."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Self, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meditron.core.errors import InputError, UsageError
from meditron.engine.base import (
    CHUNK_POSITIONS,
    Array,
    Generates,
    Generation,
    GivesLogits,
    Pieces,
    Prompt,
    Reply,
    ScoresTokens,
    ScoringRequest,
    SeededPrompt,
    StopReason,
    check_scoring_request,
    prompt_ids,
    validated_context,
)
from meditron.engine.prefix_packing import PackedRow, batch_tensors, pack_requests, plan_branches, row_batches
from meditron.model.generate import generate, generate_batch
from meditron.model.head import Head
from meditron.model.llama import KVCache, Llama, SharedPrefixCache
from meditron.model.nll import document_nll
from meditron.model.presets import model_tokenizer
from meditron.model.sampling import SamplingConfig, SamplingOptions, max_new_tokens
from meditron.model.tensors import require_finite
from meditron.model.weight_rows import load_config
from meditron.model.weights import load_model
from meditron.parallel.world import current_world, pick_device
from meditron.store.models import resolve_model
from meditron.text.tokenizer import Tokenizer

__all__ = ["TorchEngine"]

# Shapes: B rows of a batch, S sequence, D width, N places where a prediction is needed, C of them at a time,
# V vocabulary.

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tokens of a scoring batch: on a CPU the activations of a larger one leave the second-level cache (2,048
# tokens take a tenth more CPU time for SmolLM2), on a GPU a smaller one leaves cores idle.
_CPU_BATCH_TOKENS, _GPU_BATCH_TOKENS = 512, 2048
# Upper bounds of one generation batch: bytes of the KV cache, elements of the prompts' attention mask, number
# of rows.
_CACHE_BYTES = 1 << 30
_MASK_ELEMENTS = 1 << 26
_BATCH_ROWS = 64


class TorchEngine(Generates, ScoresTokens, GivesLogits):
    """A `Llama` as an engine with all capabilities, on the model's device and in its dtype."""

    def __init__(self, model: Llama, tokenizer: Tokenizer, *, context: int | None = None) -> None:
        self._model: Llama | None = model.eval()
        self._context = context
        self._head_fp32: Head | None = None
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, spec: str, *, dtype: str | None = None, context: int | None = None) -> Self:
        """Open a MODEL on this rank's device; see `meditron.engine.load`."""
        device = pick_device(current_world())
        name = dtype or ("float32" if device.type == "cpu" else "bfloat16")
        if name not in _DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(_DTYPES)}, got {name!r}")
        files = resolve_model(spec)
        tokenizer = model_tokenizer(files)
        if context is not None:  # checked before the weights are read, which may take minutes
            validated_context(load_config(files).max_position_embeddings, context)
        return cls(load_model(files, dtype=_DTYPES[name]).to(device), tokenizer, context=context)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def context(self) -> int:
        """Maximum number of tokens of a prompt and its answer together."""
        return validated_context(self.model.config.max_position_embeddings, self._context)

    @property
    def vocab_size(self) -> int:
        """Length of each distribution."""
        return self.model.config.vocab_size

    @property
    def identity(self) -> Mapping[str, str]:
        """Engine and dtype, to record beside results."""
        return {"engine": "torch", "dtype": str(self.model.head_weight.dtype).removeprefix("torch.")}

    @property
    def model(self) -> Llama:
        """The loaded model."""
        if self._model is None:
            raise ValueError("the engine is closed")
        return self._model

    @property
    def _fp32_head(self) -> Head:
        # Created at the first use: a fp32 copy of a bfloat16 head is V · D · 4 bytes that generation never
        # needs.
        if self._head_fp32 is None:
            self._head_fp32 = Head(self.model.head_weight, chunk=CHUNK_POSITIONS)
        return self._head_fp32

    def generate(self, prompt: Prompt, *, raw: bool = False, **options: Unpack[SamplingOptions]) -> Reply:
        """See `Generates.generate`."""
        sampling = SamplingConfig(**options)
        ids, limit = self._encode_prompt(prompt, sampling, raw=raw)
        tokens = generate(
            self.model,
            ids,
            replace(sampling, max_tokens=limit),
            stop_ids=self._tokenizer.stop_ids,
            blank_ids=self._blank_ids if sampling.nonempty else (),
        )
        return Reply(self._decode_pieces(tokens, limit, sampling))

    def _encode_prompt(self, prompt: Prompt, sampling: SamplingConfig, *, raw: bool) -> tuple[list[int], int]:
        """Return a prompt's ids and the number of tokens that can follow them."""
        ids = prompt_ids(self._tokenizer, prompt, raw=raw)
        self._check_ids(ids)
        return ids, max_new_tokens(len(ids), self.context, sampling.max_tokens)

    @cached_property
    def _blank_ids(self) -> frozenset[int]:
        """Tokens whose text has no visible character."""
        ids = range(self._tokenizer.vocab_size)
        return frozenset(token for token in ids if not self._tokenizer.decode([token]).strip())

    def _decode_pieces(self, tokens: Iterator[int], limit: int, sampling: SamplingConfig) -> Pieces:
        stream, count = self._tokenizer.stream(), 0
        for token in tokens:
            count += 1
            yield stream.step(token), 1
        yield stream.flush(), 0
        reason_if_full: StopReason = "length" if limit == sampling.max_tokens else "context"
        yield reason_if_full if count == limit else "end"

    def generate_batch(
        self, prompts: Sequence[Prompt], *, raw: bool = False, **options: Unpack[SamplingOptions]
    ) -> list[Generation]:
        """See `Generates.generate_batch`. Prompts of similar length share a batch and its KV cache.

        Greedy decoding gives the texts of `generate`, except that a near-tie between two tokens can be
        decided differently: a matrix product rounds differently for another number of rows.
        """
        sampling = SamplingConfig(**options)
        samplings = [replace(sampling, seed=sampling.seed + i) for i in range(len(prompts))]
        return self._generate_together(
            [self._encode_prompt(prompt, sampling, raw=raw) for prompt in prompts], samplings
        )

    def generate_samples(
        self, prompts: Sequence[SeededPrompt], *, raw: bool = False, **options: Unpack[SamplingOptions]
    ) -> list[list[Generation]]:
        """See `Generates.generate_samples`. Samples in one batch share their prompt's computation."""
        sampling = SamplingConfig(**options)
        encoded = [(self._encode_prompt(prompt, sampling, raw=raw), seeds) for prompt, seeds in prompts]
        generations = iter(
            self._generate_together(
                [ids_and_limit for ids_and_limit, seeds in encoded for _ in seeds],
                [replace(sampling, seed=seed) for _, seeds in encoded for seed in seeds],
            )
        )
        return [[next(generations) for _ in seeds] for _, seeds in encoded]

    def _generate_together(
        self, encoded: Sequence[tuple[list[int], int]], samplings: Sequence[SamplingConfig]
    ) -> list[Generation]:
        """Generate a text for each pair of prompt ids and limit, in batches of similar length."""
        generations: dict[int, Generation] = {}
        longest = max((sampling.max_tokens for sampling in samplings), default=0)
        for indices in self._generation_batches([len(ids) for ids, _ in encoded], longest):
            start = time.monotonic()
            tokens: dict[int, list[int]] = {index: [] for index in indices}
            seconds = dict.fromkeys(indices, 0.0)
            steps = generate_batch(
                self.model,
                [encoded[index][0] for index in indices],
                [replace(samplings[index], max_tokens=encoded[index][1]) for index in indices],
                stop_ids=self._tokenizer.stop_ids,
                blank_ids=self._blank_ids if samplings[indices[0]].nonempty else (),
            )
            for step in steps:
                for index, token in zip(indices, step, strict=True):
                    if token is not None:
                        tokens[index].append(token)
                        seconds[index] = time.monotonic() - start
            for index in indices:
                pieces = self._decode_pieces(iter(tokens[index]), encoded[index][1], samplings[index])
                generations[index] = replace(Reply(pieces).finish(), seconds=seconds[index])
        return [generations[index] for index in range(len(encoded))]

    def _generation_batches(self, lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
        """Yield batches of prompt indices, the longest prompts first, within the memory bounds."""
        token_bytes = self.model.config.kv_cache_bytes_per_token // 2 * self.model.head_weight.itemsize
        remaining = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        while remaining:
            width = lengths[remaining[0]]
            # Padding to the longest prompt: the shortest one may write more tokens than the context has left.
            capacity = width + min(max_tokens, self.context - lengths[remaining[-1]])
            fits = min(_CACHE_BYTES // (capacity * token_bytes), _MASK_ELEMENTS // width**2, _BATCH_ROWS)
            yield remaining[: max(1, fits)]
            remaining = remaining[max(1, fits) :]

    def _check_ids(self, ids: Sequence[int]) -> None:
        # A tokenizer can have more tokens than the model has embeddings; torch would fail in the lookup.
        if ids and max(ids) >= self.vocab_size:
            token = self._tokenizer.id_to_token(max(ids))
            raise InputError(
                self._tokenizer.path,
                f"token {token!r} has id {max(ids)}, but the model has {self.vocab_size} tokens",
            )

    def _check_requests(self, requests: Sequence[ScoringRequest]) -> None:
        for prefix, continuation in requests:
            check_scoring_request((prefix, continuation), self.context)
            self._check_ids([*prefix, *continuation])

    def score(self, requests: Sequence[ScoringRequest]) -> list[Array]:
        """See `ScoresTokens.score`. Head and softmax are fp32; EngineError if the logits are not finite.

        Requests with the same prefix share a row, and a common beginning of several prefixes is computed once
        (see `meditron.engine.prefix_packing`).
        """
        self._check_requests(requests)
        scores: dict[int, Array] = {}
        for rows, cache in self._scoring_batches(requests):
            scores.update(self._score_batch(rows, cache))
        return [scores[index] for index in range(len(requests))]

    @torch.inference_mode()
    def _scoring_batches(
        self, requests: Sequence[ScoringRequest]
    ) -> Iterator[tuple[list[PackedRow], SharedPrefixCache | None]]:
        """Yield batches of packed rows, each with the cache of the prefix tokens before its rows, or None."""
        batch_tokens = _CPU_BATCH_TOKENS if self._device.type == "cpu" else _GPU_BATCH_TOKENS
        branches = plan_branches(pack_requests(requests, batch_tokens))
        # One cache serves the whole tree: a branch truncates it to the tokens of its parent. The cache takes
        # the memory of the tree's longest path, at most one context of one row.
        cache = KVCache(len(self.model.model.layers), max((branch.length for branch in branches), default=0))
        for branch in branches:
            cache.truncate(branch.cached_length)
            if branch.ids:
                self.model(torch.tensor([branch.ids], device=self._device), cache=cache)
            shared = SharedPrefixCache(cache) if cache.length else None
            for rows in row_batches(branch.rows, batch_tokens, cache.length):
                yield rows, shared

    @property
    def _device(self) -> torch.device:
        return self.model.head_weight.device

    def _score_batch(
        self, rows: Sequence[PackedRow], cache: SharedPrefixCache | None
    ) -> Iterator[tuple[int, Array]]:
        """Yield each request's index with its log-probabilities."""
        width = len(rows[0].ids)
        # Targets with their indices into the flattened batch (B · S).
        flat_targets = [
            (target, [b * width + place for place in target.row_indices])
            for b, row in enumerate(rows)
            for target in row.targets
        ]
        # All options of one token need the prediction at the last token of their prefix, so the head computes
        # each position once.
        places = sorted({place for _, flat in flat_targets for place in flat})
        index_of = {place: n for n, place in enumerate(places)}
        owners = [index_of[place] for _, flat in flat_targets for place in flat]
        ids = [token for target, _ in flat_targets for token in target.ids]
        scores = self._log_probs_at(self._hidden_states(rows, cache, places), owners, ids)
        start = 0
        for target, flat in flat_targets:
            yield target.request_index, scores[start : start + len(flat)]
            start += len(flat)

    @torch.inference_mode()
    def _hidden_states(
        self, rows: Sequence[PackedRow], cache: SharedPrefixCache | None, places: Sequence[int]
    ) -> Tensor:
        """Compute the hidden states (N, D) at the given indices of the flattened batch."""
        ids_BS, positions_BS, mask = batch_tensors(rows, self._device, cache.length if cache else 0)
        hidden_BSD = self.model(ids_BS, positions_BS=positions_BS, mask=mask, cache=cache)
        places_N = torch.tensor(places, dtype=torch.long, device=self._device)
        hidden_ND: Tensor = hidden_BSD.flatten(0, 1)[places_N]
        return hidden_ND

    @torch.inference_mode()
    def _log_probs_at(self, hidden_ND: Tensor, owners: Sequence[int], ids: Sequence[int]) -> Array:
        """Return the log-probability of each token id at its row of `hidden_ND`, given by `owners`."""
        scores = np.empty(len(ids), dtype=np.float32)
        owner, token = np.asarray(owners, dtype=np.int64), np.asarray(ids, dtype=np.int64)
        for places, logits_CV in self._fp32_head.logit_chunks(hidden_ND):
            here = np.flatnonzero((owner >= places.start) & (owner < places.stop))
            at = (owner[here] - places.start, token[here])
            # Computed in place, because a chunk of logits is the largest tensor of a scoring pass.
            logp_CV = torch.log_softmax(logits_CV, dim=-1, out=logits_CV)
            picked = logp_CV[*(torch.from_numpy(i).to(logp_CV.device) for i in at)]
            require_finite(self.model, picked)
            scores[here] = picked.cpu().numpy()
        return scores

    def score_documents(
        self, documents: Sequence[Sequence[int]], *, batch_tokens: int = 2048
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """See `ScoresTokens.score_documents`; `meditron.model.nll.document_nll` computes it."""
        return document_nll(self.model, documents, max_length=self.context, batch_tokens=batch_tokens)

    @torch.inference_mode()
    def next_token(self, prefixes: Sequence[Sequence[int]]) -> list[Array]:
        """See `GivesLogits.next_token`."""
        self._check_requests([(prefix, ()) for prefix in prefixes])
        # The token id 0 is a placeholder: a request of one token yields the prediction at the prefix's last
        # token.
        requests = [(prefix, (0,)) for prefix in prefixes]
        distributions: dict[int, Array] = {}
        for rows, cache in self._scoring_batches(requests):
            width = len(rows[0].ids)
            places = [b * width + row.targets[0].row_indices[0] for b, row in enumerate(rows)]
            for chunk, logits_CV in self._fp32_head.logit_chunks(self._hidden_states(rows, cache, places)):
                logp_CV = logits_CV.log_softmax(-1)
                require_finite(self.model, logp_CV)
                for row, logp_V in zip(rows[chunk], logp_CV.cpu().numpy(), strict=True):
                    distributions.update((target.request_index, logp_V) for target in row.targets)
        return [distributions[index] for index in range(len(prefixes))]

    def log_probs(self, ids: Sequence[int]) -> Iterator[Tensor]:
        """See `GivesLogits.log_probs`. Chunks are fp32 and share one buffer."""
        self._check_requests([(ids, ())])
        return self._log_prob_chunks(ids)

    @torch.inference_mode()
    def _log_prob_chunks(self, ids: Sequence[int]) -> Iterator[Tensor]:
        hidden_SD = self.model(torch.tensor([list(ids)], device=self._device))[0]
        for _, logits_CV in self._fp32_head.logit_chunks(hidden_SD):
            yield torch.log_softmax(logits_CV, dim=-1, out=logits_CV)

    def close(self) -> None:
        """Free the model's memory."""
        self._model = self._head_fp32 = None
