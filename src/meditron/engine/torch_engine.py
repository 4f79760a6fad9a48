"""Generating and scoring with our own model, in torch."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from meditron.engine.base import Pair, Prompt, Reply, Stop, prompt_ids
from meditron.ground.errors import InputError, UsageError
from meditron.model.generate import generate
from meditron.model.llama import Llama
from meditron.model.tokenizer import model_tokenizer
from meditron.model.weights import load_model
from meditron.store.models import resolve
from meditron.text.tokenizer import Tokenizer

__all__ = ["TorchEngine"]

# Legend: B pairs of a batch, S sequence, D width, N predicted tokens of a pair, V vocabulary.

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BATCH_TOKENS = 2048


class TorchEngine:
    """An `Engine` over a `Llama`, on the device where the model is."""

    def __init__(self, model: Llama, tokenizer: Tokenizer) -> None:
        self._model: Llama | None = model.eval()
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, spec: str, *, dtype: str | None = None) -> Self:
        """Open a MODEL; see `meditron.engine.load`."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        name = dtype or ("float32" if device.type == "cpu" else "bfloat16")
        if name not in _DTYPES:
            raise UsageError(f"no dtype {name!r}", hint=f"there is {', '.join(_DTYPES)}")
        files = resolve(spec)
        tokenizer = model_tokenizer(files)
        return cls(load_model(files, dtype=_DTYPES[name]).to(device), tokenizer)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer."""
        return self._tokenizer

    @property
    def model(self) -> Llama:
        """The model itself."""
        if self._model is None:
            raise ValueError("the engine is closed")
        return self._model

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
        if max_tokens < 1:
            raise UsageError(f"{max_tokens} tokens are no text", hint="max_tokens is 1 or more")
        given = prompt_ids(self._tokenizer, prompt, raw=raw)
        self._check_ids(given)
        ids = generate(
            self.model,
            given,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop_ids=self._tokenizer.stop_ids,
        )
        room = self.model.config.max_position_embeddings - len(given)
        return Reply(self._pieces(ids, max_tokens, room))

    def _pieces(self, ids: Iterator[int], allowed: int, room: int) -> Iterator[tuple[str, int] | Stop]:
        stream, count = self._tokenizer.stream(), 0
        for token_id in ids:
            count += 1
            yield stream.step(token_id), 1
        yield stream.end(), 0
        yield "length" if count == allowed else "context" if count == room else "end"

    def _check_ids(self, ids: Sequence[int]) -> None:
        size = self.model.config.vocab_size
        if ids and max(ids) >= size:
            token = self._tokenizer.token(max(ids))
            raise InputError(
                self._tokenizer.path, f"token {token!r} is {max(ids)}; the model has {size} tokens"
            )

    @torch.inference_mode()
    def score(self, pairs: Sequence[Pair]) -> list[npt.NDArray[np.float32]]:
        """See `Engine.score`. The head and the softmax are fp32; pairs of like length share a batch."""
        context = self.model.config.max_position_embeddings
        for prefix, continuation in pairs:
            if not prefix:
                raise UsageError(
                    "nothing stands before what is to be scored", hint="begin with BOS or a text"
                )
            if len(prefix) + len(continuation) > context:
                total = len(prefix) + len(continuation)
                raise UsageError(f"{total} tokens are to be scored; the model's context is {context}")
            self._check_ids([*prefix, *continuation])
        scores: dict[int, npt.NDArray[np.float32]] = {}
        for batch in _batches([len(prefix) + len(continuation) for prefix, continuation in pairs]):
            scores.update(zip(batch, self._score_batch([pairs[i] for i in batch]), strict=True))
        return [scores[i] for i in range(len(pairs))]

    def _score_batch(self, pairs: Sequence[Pair]) -> Iterator[npt.NDArray[np.float32]]:
        """Rows are filled on the right, where causal attention never looks."""
        head_VD = self.model.head_weight
        rows = [[*prefix, *continuation] for prefix, continuation in pairs]
        ids_BS = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long, device=head_VD.device)
        for ids_S, row in zip(ids_BS, rows, strict=True):
            ids_S[: len(row)] = torch.tensor(row, device=head_VD.device)
        hidden_BSD = self.model(ids_BS)
        for hidden_SD, (prefix, continuation) in zip(hidden_BSD, pairs, strict=True):
            first = len(prefix) - 1
            hidden_ND = hidden_SD[first : first + len(continuation)]
            logits_NV = hidden_ND.float() @ head_VD.float().T
            targets_N1 = torch.tensor(list(continuation), device=head_VD.device, dtype=torch.long)[:, None]
            chosen_N = logits_NV.log_softmax(-1).gather(1, targets_N1)[:, 0]
            yield chosen_N.cpu().numpy()

    def close(self) -> None:
        """Give the model's memory back."""
        self._model = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of pairs of like length, longest first, about `_BATCH_TOKENS` tokens at a time."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        count = max(1, _BATCH_TOKENS // lengths[order[0]])
        yield order[:count]
        order = order[count:]
