"""Generating and scoring with our own model, in torch."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meditron.core.errors import InputError, UsageError
from meditron.engine.base import (
    Pieces,
    Prompt,
    Reply,
    ScoringRequest,
    Stop,
    check_scoring_request,
    chosen_context,
    max_new_tokens,
    prompt_ids,
)
from meditron.engine.prefix_packing import Row, batches, pack, split_common_prefix, tensors
from meditron.model.generate import generate
from meditron.model.head import Head
from meditron.model.llama import Llama, SharedPrefixCache
from meditron.model.tensors import require_finite
from meditron.model.tokenizer import model_tokenizer
from meditron.model.weights import load_config, load_model
from meditron.store.models import resolve
from meditron.text.tokenizer import Tokenizer

__all__ = ["TorchEngine"]

# Legend: B rows of a batch, S sequence, D width, N places where a prediction is asked for, C of them at a
# time, V vocabulary.

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BATCH_TOKENS = 2048


class TorchEngine:
    """An `Engine` over a `Llama`, on the device where the model is."""

    def __init__(self, model: Llama, tokenizer: Tokenizer, *, context: int | None = None) -> None:
        self._model: Llama | None = model.eval()
        self._context = context
        self._head: Head | None = None
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, spec: str, *, dtype: str | None = None, context: int | None = None) -> Self:
        """Open a MODEL; see `meditron.engine.load`."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        name = dtype or ("float32" if device.type == "cpu" else "bfloat16")
        if name not in _DTYPES:
            raise UsageError(f"no dtype {name!r}", hint=f"there is {', '.join(_DTYPES)}")
        files = resolve(spec)
        tokenizer = model_tokenizer(files)
        if context is not None:
            chosen_context(load_config(files).max_position_embeddings, context)
        return cls(load_model(files, dtype=_DTYPES[name]).to(device), tokenizer, context=context)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer."""
        return self._tokenizer

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return chosen_context(self.model.config.max_position_embeddings, self._context)

    @property
    def model(self) -> Llama:
        """The model itself."""
        if self._model is None:
            raise ValueError("the engine is closed")
        return self._model

    @property
    def head(self) -> Head:
        """The model's head in fp32, made when it is first asked for."""
        if self._head is None:
            self._head = Head(self.model.head_weight)
        return self._head

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        raw: bool = False,
    ) -> Reply:
        """See `Engine.generate`."""
        given = prompt_ids(self._tokenizer, prompt, raw=raw)
        self._check_ids(given)
        allowed = max_new_tokens(len(given), self.context, max_tokens, temperature, top_k, top_p)
        ids = generate(
            self.model,
            given,
            max_tokens=allowed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop_ids=self._tokenizer.stop_ids,
        )
        return Reply(self._pieces(ids, allowed, "length" if allowed == max_tokens else "context"))

    def _pieces(self, ids: Iterator[int], allowed: int, full: Stop) -> Pieces:
        stream, count = self._tokenizer.stream(), 0
        for token_id in ids:
            count += 1
            yield stream.step(token_id), 1
        yield stream.end(), 0
        yield full if count == allowed else "end"

    def _check_ids(self, ids: Sequence[int]) -> None:
        size = self.model.config.vocab_size
        if ids and max(ids) >= size:
            token = self._tokenizer.token(max(ids))
            raise InputError(
                self._tokenizer.path, f"token {token!r} is {max(ids)}; the model has {size} tokens"
            )

    def _check_pairs(self, pairs: Sequence[ScoringRequest]) -> None:
        for prefix, continuation in pairs:
            check_scoring_request((prefix, continuation), self.context)
            self._check_ids([*prefix, *continuation])

    @torch.inference_mode()
    def score(self, pairs: Sequence[ScoringRequest]) -> list[npt.NDArray[np.float32]]:
        """See `Engine.score`. Pairs of one prefix share a row, rows of like length a batch.

        What all prefixes begin with is read once. The head and the softmax are fp32. EngineError if the
        logits are not finite.
        """
        self._check_pairs(pairs)
        scores: dict[int, npt.NDArray[np.float32]] = {}
        for rows, beginning in self._batches(pairs):
            scores.update(self._score_batch(rows, beginning))
        return [scores[i] for i in range(len(pairs))]

    def _batches(
        self, pairs: Sequence[ScoringRequest]
    ) -> Iterator[tuple[list[Row], SharedPrefixCache | None]]:
        """The pairs in batches of rows, with what stands before every row, where anything does."""
        common, rows = split_common_prefix(pack(pairs, _BATCH_TOKENS))
        device = self.model.head_weight.device
        beginning = self.model.prefill(torch.tensor(common, device=device)) if common else None
        for some in batches(rows, _BATCH_TOKENS, len(common)):
            yield some, beginning

    def _score_batch(
        self, rows: Sequence[Row], beginning: SharedPrefixCache | None
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """(index of the pair, its log-probabilities); the head works once wherever something is asked."""
        width = len(rows[0].ids)
        asked = [
            (index, [b * width + place for place in places], targets)
            for b, row in enumerate(rows)
            for index, places, targets in row.asked
        ]
        places = sorted({place for _, ours, _ in asked for place in ours})
        rank = {place: n for n, place in enumerate(places)}
        owners = [rank[place] for _, ours, _ in asked for place in ours]
        targets = [target for *_, ours in asked for target in ours]
        chosen = self._predictions(self._hidden(rows, beginning, places), owners, targets)
        start = 0
        for index, ours, _ in asked:
            yield index, chosen[start : start + len(ours)]
            start += len(ours)

    def _hidden(
        self, rows: Sequence[Row], beginning: SharedPrefixCache | None, places: Sequence[int]
    ) -> Tensor:
        """Hidden states (N, D) at these places of the batch, counted row after row."""
        device = self.model.head_weight.device
        ids_BS, positions_BS, mask = tensors(rows, device, beginning.length if beginning else 0)
        hidden_BSD = self.model(ids_BS, positions_BS=positions_BS, mask=mask, cache=beginning)
        hidden_ND: Tensor = hidden_BSD.flatten(0, 1)[torch.tensor(places, dtype=torch.long, device=device)]
        return hidden_ND

    def _predictions(
        self, hidden_ND: Tensor, owners: Sequence[int], targets: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Log-probability of each target where its owner stands; fp32, of a few places' logits at a time."""
        chosen = np.empty(len(targets), dtype=np.float32)
        owner, target = np.asarray(owners, dtype=np.int64), np.asarray(targets, dtype=np.int64)
        for places, logits_CV in self.head.chunks(hidden_ND):
            here = np.flatnonzero((owner >= places.start) & (owner < places.stop))
            at = (owner[here] - places.start, target[here])
            logp_CV = torch.log_softmax(logits_CV, dim=-1, out=logits_CV)
            picked = logp_CV[*(torch.from_numpy(i).to(logp_CV.device) for i in at)]
            require_finite(self.model, picked)
            chosen[here] = picked.cpu().numpy()
        return chosen

    @torch.inference_mode()
    def next_token(self, prefixes: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        """Log-probability, in nats, of every token of the vocabulary, (V,), as the next after each prefix.

        Raises as `score` does.
        """
        pairs = [(prefix, (0,)) for prefix in prefixes]  # whichever id: only the place is asked for
        self._check_pairs([(prefix, ()) for prefix in prefixes])
        found: dict[int, npt.NDArray[np.float32]] = {}
        for rows, beginning in self._batches(pairs):
            width = len(rows[0].ids)
            places = [b * width + row.asked[0][1][0] for b, row in enumerate(rows)]
            for some, logits_CV in self.head.chunks(self._hidden(rows, beginning, places)):
                logp_CV = logits_CV.log_softmax(-1)
                require_finite(self.model, logp_CV)
                for row, logp_V in zip(rows[some], logp_CV.cpu().numpy(), strict=True):
                    found.update((index, logp_V) for index, *_ in row.asked)
        return [found[i] for i in range(len(prefixes))]

    def close(self) -> None:
        """Give the model's memory back."""
        self._model = self._head = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
