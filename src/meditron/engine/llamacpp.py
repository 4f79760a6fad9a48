"""Generating and scoring a GGUF file with llama.cpp, in a process of its own."""

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from meditron.core.console import info
from meditron.core.errors import EngineError, MissingExtra, UsageError
from meditron.core.units import size
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
from meditron.engine.llamacpp_child import Child
from meditron.model.tokenizer import model_tokenizer
from meditron.store.gguf import GGUF
from meditron.store.models import resolve
from meditron.text.tokenizer import Tokenizer

__all__ = ["LlamaCppEngine"]

# Legend: V vocabulary.

CACHE_BYTES = 4 << 30
"""Bytes of keys and values, at most a quarter of the machine's memory, that a context may take unless one is
given: llama.cpp allocates all of it when it starts."""
_UNKNOWN_CONTEXT = 8192  # of a file that does not name its model's
_STEP = 256  # llama.cpp rounds a context up to a multiple of this
_SEEDS = (1 << 32) - 1  # with the last of 32 bits llama.cpp draws a seed of its own


def _context(metadata: Mapping[str, Any], path: Path, context: int | None) -> int:
    """Return the context to run with: the one given, else as much of the model's as the memory bound allows.

    The model may be of any architecture that llama.cpp runs. UsageError for a context out of range.
    """

    def number(key: str, default: int = 0) -> int:
        value = metadata.get(f"{metadata.get('general.architecture')}.{key}")
        value = max(value, default=0) if isinstance(value, list) and all(map(_is_int, value)) else value
        return value if isinstance(value, int) and value > 0 else default

    trained = number("context_length", _UNKNOWN_CONTEXT)
    if context is not None:
        return chosen_context(trained, context)
    heads = number("attention.head_count")
    width = number("attention.key_length", number("embedding_length") // max(heads, 1))
    kept = number("attention.head_count_kv", heads) * (width + number("attention.value_length", width))
    token_bytes = 2 * number("block_count") * kept  # F16
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    tokens = min(CACHE_BYTES, memory // 4) // max(token_bytes, 1) // _STEP * _STEP
    if tokens >= trained:
        return trained
    tokens = max(tokens, min(_STEP, trained))
    info(
        f"{path.name}: the context is {tokens:,} of the model's {trained:,} tokens: the keys and values of "
        f"all would take {size(trained * token_bytes)}; a larger context can be set"
    )
    return tokens


def _is_int(value: object) -> bool:
    return type(value) is int


class LlamaCppEngine:
    """An `Engine` over llama.cpp's own server.

    Prompts are made by our tokenizer and template, so they are those of every other engine. Matrix products
    are llama.cpp's: it rounds activations to 8 bits where the weights are quantized, so its figures are near
    torch's on the dequantized weights, and not the same. A process that has died is started anew by the next
    call.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, context: int) -> None:
        """Start llama.cpp with `path`; errors as of `load`."""
        self._path, self._tokenizer, self._context = path, tokenizer, context
        self._child: Child | None = Child(path, context=context)

    @classmethod
    def load(cls, spec: str, *, context: int | None = None) -> Self:
        """Open a MODEL that is a GGUF file.

        Raises UsageError for another and for a context out of range, InputError for a damaged file or one
        that llama.cpp does not run, EngineError where its process dies, MissingExtra without xllamacpp.
        """
        files = resolve(spec)
        if files.kind != "gguf":
            raise UsageError(
                f"{spec}: llama.cpp runs GGUF files",
                hint=f"meditron convert {spec} model.gguf, or take torch",
            )
        if find_spec("xllamacpp") is None:
            raise MissingExtra("xllamacpp", "serve")
        with GGUF(files.path) as gguf:
            context = _context(gguf.metadata, files.path, context)
        return cls(files.path, model_tokenizer(files), context)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer."""
        return self._tokenizer

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._context

    @property
    def child(self) -> Child:
        """The running process; a new one where the last has died."""
        if self._child is None:
            raise ValueError("the engine is closed")
        if not self._child.alive:
            self._child.close()
            self._child = Child(self._path, context=self._context)
        return self._child

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
        """See `Engine.generate`. EngineError, while it is read, where the process dies."""
        given = prompt_ids(self._tokenizer, prompt, raw=raw)
        allowed = max_new_tokens(len(given), self._context, max_tokens, temperature, top_k, top_p)
        request = {
            "prompt": given,
            "n_predict": allowed,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            # These in this order, as torch's engine draws, and no other of llama.cpp's.
            "samplers": ["temperature", "top_k", "top_p"],
            "seed": seed % _SEEDS,
            "return_tokens": True,
            # A conversation goes on where it was; else no answer depends on what was asked before.
            "cache_prompt": not isinstance(prompt, str) and len(prompt) > 1,
        }
        full: Stop = "length" if allowed == max_tokens else "context"
        return Reply(self._pieces(self.child, request, full))

    def _pieces(self, child: Child, request: Mapping[str, Any], full: Stop) -> Pieces:
        stops, count = self._tokenizer.stop_ids, 0
        with closing(child.complete(**request)) as events:
            for event in events:
                ended = event.get("stop_type") == "eos" or not stops.isdisjoint(event["tokens"])
                new = event["tokens_predicted"] - ended - count  # the token that ends it is none of the text
                yield "" if ended else event["content"], new
                if ended:
                    yield "end"
                    return
                count += new
        yield full

    def score(self, pairs: Sequence[ScoringRequest]) -> list[npt.NDArray[np.float32]]:
        """See `Engine.score`; UsageError for continuations of several tokens, too: llama.cpp tells one."""
        for prefix, continuation in pairs:
            check_scoring_request((prefix, continuation), self._context)
            if len(continuation) > 1:
                raise UsageError(
                    f"llama.cpp scores continuations of one token, not of {len(continuation)}",
                    hint="torch scores any: load the model with backend torch",
                )
        asked = dict.fromkeys(tuple(prefix) for prefix, continuation in pairs if continuation)
        chances = dict(zip(asked, self.next_token(list(asked)), strict=True))
        return [
            chances[tuple(prefix)][list(continuation)] if continuation else np.empty(0, np.float32)
            for prefix, continuation in pairs
        ]

    def next_token(self, prefixes: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        """See `Engine.next_token`. Each is some 5 MB of JSON for 49,152 tokens."""
        found = []
        for prefix in prefixes:
            check_scoring_request((prefix, ()), self._context)
            found.append(self._chances(prefix))
        return found

    def _chances(self, prefix: Sequence[int]) -> npt.NDArray[np.float32]:
        size = self._tokenizer.vocab_size
        # Whatever is drawn, the chances are those before it; half a character would come without them.
        drawn = [[self._tokenizer.end_of_text_id, 1e3]]
        request = {
            "prompt": list(prefix),
            "n_predict": 1,
            "n_probs": size,
            "logit_bias": drawn,
            "cache_prompt": False,
        }
        with closing(self.child.complete(**request)) as events:
            told = next(events)["completion_probabilities"][0]["top_logprobs"]
        if any(token["logprob"] is None for token in told):  # JSON has no NaN
            raise EngineError(f"{self._path}: logits are not finite")
        logp_V = np.full(size, -np.inf)
        logp_V[[token["id"] for token in told]] = [token["logprob"] for token in told]
        # llama.cpp adds up the softmax in fp32, 1e-4 off one over so many tokens.
        logp_V -= np.logaddexp.reduce(logp_V)
        return logp_V.astype(np.float32)

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
