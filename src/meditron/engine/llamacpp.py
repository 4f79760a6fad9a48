"""The llama.cpp engine: a GGUF file in a child process, in llama.cpp's own arithmetic."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Self, Unpack

import numpy as np

from meditron.core.console import info
from meditron.core.errors import EngineError, MissingExtra, UsageError
from meditron.core.units import format_bytes
from meditron.engine.base import (
    CHUNK_POSITIONS,
    Array,
    Generates,
    Generation,
    GivesLogits,
    Pieces,
    Prompt,
    Reply,
    ScoringRequest,
    SeededPrompt,
    StopReason,
    check_scoring_request,
    prompt_ids,
    validated_context,
)
from meditron.engine.llamacpp_process import LlamaServerProcess
from meditron.model.presets import model_tokenizer
from meditron.model.sampling import SamplingConfig, SamplingOptions, max_new_tokens
from meditron.store.gguf import GGUF
from meditron.store.model_memory import cache_elements
from meditron.store.models import resolve_model
from meditron.text.tokenizer import Tokenizer

__all__ = ["CACHE_BYTES", "SEEDS", "LlamaCppEngine", "main_type", "shared_context"]

# Shapes: V vocabulary.

CACHE_BYTES = 4 << 30
"""Memory limit of the KV cache if no context is given, or a quarter of the machine's memory if that is less.
llama.cpp allocates the whole cache when it starts."""
_UNKNOWN_CONTEXT = 8192  # for a file without its model's context length
_STEP = 256  # llama.cpp rounds a context up to a multiple of this
SEEDS = (1 << 32) - 1
"""Number of seeds: llama.cpp takes 32 bits, and replaces the largest value by a random seed."""
_NONEMPTY = (
    r"root ::= [ \t\r\n]* [^ \t\r\n] [^\x00]*"  # GBNF: a text may end after its first visible character
)
_SLOTS = 4  # requests that llama.cpp decodes together; they share one context


def shared_context(
    metadata: Mapping[str, Any], path: Path, context: int | None, slots: int
) -> tuple[int, int]:
    """Return the context length of one request, and the number of tokens that all slots share.

    Args:
        metadata: Metadata of the GGUF file.
        path: The GGUF file, for a message.
        context: Tokens that the slots share. Default: the model's context length for each slot, or fewer, as
            many as fit in the memory limit, but at least those of `_choose_context`.
        slots: Number of requests that are decoded together.
    """
    if context is not None:
        return min(context, _trained_context(metadata)), context
    longest = _choose_context(metadata, path, None)
    return longest, min(slots * longest, max(longest, _affordable_tokens(metadata)))


def _choose_context(metadata: Mapping[str, Any], path: Path, context: int | None) -> int:
    """Return the context length to use: `context`, or as much of the model's own as the memory limit allows.

    The model may be of any architecture that llama.cpp runs.

    Raises:
        UsageError: `context` is below 1 or above the model's context length.
    """
    trained = _trained_context(metadata)
    if context is not None:
        return validated_context(trained, context)
    tokens = _affordable_tokens(metadata)
    if tokens >= trained:
        return trained
    tokens = max(tokens, min(_STEP, trained))
    info(
        f"{path.name}: the context is {tokens:,} of the model's {trained:,} tokens, because the KV cache of "
        f"all of them would take {format_bytes(trained * _token_bytes(metadata))}; a larger context can be "
        "set"
    )
    return tokens


def _trained_context(metadata: Mapping[str, Any]) -> int:
    length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return length if type(length) is int and length > 0 else _UNKNOWN_CONTEXT


def _affordable_tokens(metadata: Mapping[str, Any]) -> int:
    """Return the number of tokens whose KV cache fits in the memory limit."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(CACHE_BYTES, memory // 4) // max(_token_bytes(metadata), 1) // _STEP * _STEP


def _token_bytes(metadata: Mapping[str, Any]) -> int:
    return 2 * cache_elements(metadata)  # F16


def main_type(gguf: GGUF) -> str:
    """Return the tensor type with the most bytes of a GGUF file, which mixes types."""
    bytes_by_type: Counter[str] = Counter()
    for tensor in gguf.tensors.values():
        bytes_by_type[tensor.type] += tensor.nbytes
    return bytes_by_type.most_common(1)[0][0]


class _CompletionRequest(NamedTuple):
    """A request to llama.cpp's server, and the stop reason if all `n_predict` tokens are generated."""

    body: dict[str, Any]
    stop_if_full: StopReason

    @property
    def tokens(self) -> int:
        """Maximum number of tokens that the request takes in the context."""
        return len(self.body["prompt"]) + int(self.body["n_predict"])


class LlamaCppEngine(Generates, GivesLogits):
    """llama.cpp's own server as an engine: it generates and gives logits, and scores single tokens.

    Prompts are encoded by this project's tokenizer and chat template, so they are the same as in every other
    engine. llama.cpp computes the matrix products and rounds activations to 8 bits if the weights are
    quantized, so its scores are close to torch's on the dequantized weights, but not equal. The engine is not
    a `ScoresTokens`: the server returns the distribution after a prompt's last token only, so longer texts
    would take one request, and megabytes of JSON, per token. If the process dies, the next call starts
    another.
    """

    def __init__(
        self, path: Path, tokenizer: Tokenizer, context: int, dtype: str, *, slots: int = _SLOTS
    ) -> None:
        """Start llama.cpp with `path`; errors are those of `load`."""
        self._path, self._tokenizer, self._context, self._dtype = path, tokenizer, context, dtype
        self._slots = slots
        self._process: LlamaServerProcess | None = self._start()

    @classmethod
    def load(cls, spec: str, *, context: int | None = None, slots: int = _SLOTS) -> Self:
        """Open a MODEL that is a GGUF file.

        Args:
            spec: The MODEL.
            context: Maximum number of tokens of a prompt and its answer together; see `meditron.engine.load`.
            slots: Number of requests that are decoded together. With one slot, equal calls give equal texts.

        Raises:
            UsageError: the model is not a GGUF file, or the context is out of range.
            InputError: the file is damaged, or llama.cpp does not run it.
            EngineError: the process dies.
            MissingExtra: xllamacpp is not installed.
        """
        files = resolve_model(spec)
        if files.kind != "gguf":
            raise UsageError(
                f"{spec}: llama.cpp runs GGUF files only",
                hint=f"meditron convert {spec} model.gguf, or use --engine torch",
            )
        if find_spec("xllamacpp") is None:
            raise MissingExtra("xllamacpp", "llamacpp")
        with GGUF(files.path) as gguf:
            context = _choose_context(gguf.metadata, files.path, context)
            dtype = main_type(gguf)
        return cls(files.path, model_tokenizer(files), context, dtype, slots=slots)

    def _start(self) -> LlamaServerProcess:
        return LlamaServerProcess(self._path, context=self._context, slots=self._slots)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def context(self) -> int:
        """Maximum number of tokens of a prompt and its answer together."""
        return self._context

    @property
    def vocab_size(self) -> int:
        """Length of each distribution."""
        return self._tokenizer.vocab_size

    @property
    def identity(self) -> Mapping[str, str]:
        """Engine and type of most weights, to record beside results."""
        return {"engine": "llama.cpp", "dtype": self._dtype}

    @property
    def process(self) -> LlamaServerProcess:
        """The running llama.cpp process; a new one is started if the last has died."""
        if self._process is None:
            raise ValueError("the engine is closed")
        if not self._process.alive:
            self._process.close()
            self._process = self._start()
        return self._process

    def generate(self, prompt: Prompt, *, raw: bool = False, **options: Unpack[SamplingOptions]) -> Reply:
        """See `Generates.generate`. Reading the reply raises EngineError if the process dies."""
        completion = self._completion_request(prompt, SamplingConfig(**options), raw=raw)
        # A conversation continues in the KV cache of its last turn. Other answers must not depend on which
        # prompt came before: a reused prefix was computed in a batch of another size, and rounds differently.
        completion.body["cache_prompt"] = not isinstance(prompt, str) and len(prompt) > 1
        return Reply(self._stream_pieces(self.process, completion))

    def generate_batch(
        self, prompts: Sequence[Prompt], *, raw: bool = False, **options: Unpack[SamplingOptions]
    ) -> list[Generation]:
        """See `Generates.generate_batch`. llama.cpp decodes as many requests together as it has slots.

        Logits round differently in a batch than alone, so near-ties and random draws can give other tokens
        than in `generate`.
        """
        sampling = SamplingConfig(**options)
        completions = [
            self._completion_request(prompt, replace(sampling, seed=sampling.seed + index), raw=raw)
            for index, prompt in enumerate(prompts)
        ]
        process = self.process
        generations: list[Generation] = []
        with ThreadPoolExecutor(self._slots) as threads:
            for group in self._concurrent_groups(completions):
                replies = (Reply(self._stream_pieces(process, completion)) for completion in group)
                generations += threads.map(Reply.finish, replies)
        return generations

    def generate_samples(
        self, prompts: Sequence[SeededPrompt], *, raw: bool = False, **options: Unpack[SamplingOptions]
    ) -> list[list[Generation]]:
        """See `Generates.generate_samples`. One request at a time, in one slot.

        The first sample of a prompt processes the whole prompt, and each later one reads it from the slot's
        KV cache. So a text depends only on its prompt, its settings and whether it is the prompt's first.
        """
        sampling = SamplingConfig(**options)
        # All prompts are checked before anything is generated.
        requests = [(self._completion_request(prompt, sampling, raw=raw), seeds) for prompt, seeds in prompts]
        samples: list[list[Generation]] = []
        for completion, seeds in requests:
            samples.append([])
            for number, seed in enumerate(seeds):
                completion.body.update(seed=seed % SEEDS, id_slot=0, cache_prompt=number > 0)
                samples[-1].append(Reply(self._stream_pieces(self.process, completion)).finish())
        return samples

    def _concurrent_groups(
        self, completions: Sequence[_CompletionRequest]
    ) -> Iterator[list[_CompletionRequest]]:
        """Yield groups of requests that fit in the slots and, together, in the context of all slots."""
        group: list[_CompletionRequest] = []
        for completion in completions:
            used = sum(other.tokens for other in group)
            if group and (len(group) == self._slots or used + completion.tokens > self._context):
                yield group
                group = []
            group.append(completion)
        if group:
            yield group

    def _completion_request(
        self, prompt: Prompt, sampling: SamplingConfig, *, raw: bool
    ) -> _CompletionRequest:
        ids = prompt_ids(self._tokenizer, prompt, raw=raw)
        limit = max_new_tokens(len(ids), self._context, sampling.max_tokens)
        body = {
            "prompt": ids,
            "n_predict": limit,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            # llama.cpp's default sampler chain is longer; these samplers, in this order, are those of the
            # torch engine.
            "samplers": ["temperature", "top_k", "top_p"],
            "seed": sampling.seed % SEEDS,
            "return_tokens": True,
            "cache_prompt": False,
        }
        if sampling.nonempty:
            body["grammar"] = _NONEMPTY
        return _CompletionRequest(body, "length" if limit == sampling.max_tokens else "context")

    def _stream_pieces(self, process: LlamaServerProcess, completion: _CompletionRequest) -> Pieces:
        stop_ids, count = self._tokenizer.stop_ids, 0
        with closing(process.stream_completion(**completion.body)) as events:
            for event in events:
                ended = event.get("stop_type") == "eos" or not stop_ids.isdisjoint(event["tokens"])
                # The token that ends the text is counted by the server and is not part of the text.
                new = event["tokens_predicted"] - ended - count
                yield "" if ended else event["content"], new
                if ended:
                    yield "end"
                    return
                count += new
        yield completion.stop_if_full

    def score(self, requests: Sequence[ScoringRequest]) -> list[Array]:
        """See `ScoresTokens.score`; UsageError for a continuation of more than one token."""
        for prefix, continuation in requests:
            check_scoring_request((prefix, continuation), self._context)
            if len(continuation) > 1:
                raise UsageError(
                    f"llama.cpp scores continuations of one token, got {len(continuation)} tokens",
                    hint="the torch engine scores continuations of any length",
                )
        # One next-token distribution scores all one-token options that follow the same prefix.
        prefixes = list(dict.fromkeys(tuple(prefix) for prefix, continuation in requests if continuation))
        distributions = dict(zip(prefixes, self.next_token(prefixes), strict=True))
        return [
            distributions[tuple(prefix)][list(continuation)] if continuation else np.empty(0, np.float32)
            for prefix, continuation in requests
        ]

    def next_token(self, prefixes: Sequence[Sequence[int]]) -> list[Array]:
        """See `GivesLogits.next_token`. A distribution over 49,152 tokens is some 5 MB of JSON."""
        for prefix in prefixes:
            check_scoring_request((prefix, ()), self._context)
        return [self._next_token_distribution(prefix) for prefix in prefixes]

    def log_probs(self, ids: Sequence[int]) -> Iterator[Array]:
        """See `GivesLogits.log_probs`.

        In this engine `log_probs` is slow, because each position of the text takes one request to llama.cpp.
        """
        check_scoring_request((ids, ()), self._context)
        ends = range(1, len(ids) + 1)
        return (
            np.stack(
                [self._next_token_distribution(ids[:end]) for end in ends[start : start + CHUNK_POSITIONS]]
            )
            for start in range(0, len(ends), CHUNK_POSITIONS)
        )

    def _next_token_distribution(self, prefix: Sequence[int]) -> Array:
        vocab_size = self._tokenizer.vocab_size
        # The bias makes the server draw the end-of-text token: for a token that is only part of a UTF-8
        # character the server would report no probabilities. The server reports the probabilities before the
        # bias is applied.
        bias = [[self._tokenizer.end_of_text_id, 1e3]]
        body = {
            "prompt": list(prefix),
            "n_predict": 1,
            "n_probs": vocab_size,
            "logit_bias": bias,
            "cache_prompt": False,
        }
        with closing(self.process.stream_completion(**body)) as events:
            top = next(events)["completion_probabilities"][0]["top_logprobs"]
        if any(token["logprob"] is None for token in top):  # JSON has no NaN
            raise EngineError(f"{self._path}: logits are not finite")
        logp_V = np.full(vocab_size, -np.inf)
        logp_V[[token["id"] for token in top]] = [token["logprob"] for token in top]
        # llama.cpp sums the softmax in fp32, which is off by 1e-4 for a whole vocabulary.
        logp_V -= np.logaddexp.reduce(logp_V)
        return logp_V.astype(np.float32)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.close()
            self._process = None
