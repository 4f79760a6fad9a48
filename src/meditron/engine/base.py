"""Engine protocols, one per capability, and the types they share.

An engine runs a model: in this process (torch), in a child process (llama.cpp) or on a server. Callers ask
for the capability they need and use nothing else of an engine:

    Engine                    context length, identity, close
    ├── Generates             text: one prompt streamed, or many in a batch
    ├── ScoresTokens          log-probabilities of given tokens
    └── GivesLogits           whole next-token distributions

An engine class inherits from the protocols of its capabilities or implements their methods; `isinstance`
accepts both. An engine that only generates text (a server) needs no local tokenizer.
"""

import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, Unpack, runtime_checkable

import numpy as np
import numpy.typing as npt

from meditron.core.errors import UsageError
from meditron.model.sampling import SamplingOptions
from meditron.text.chat import Message
from meditron.text.prompt import conversation_ids
from meditron.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "API_SCHEME",
    "CHUNK_POSITIONS",
    "Engine",
    "Generates",
    "Generation",
    "GivesLogits",
    "LocalEngine",
    "Pieces",
    "Prompt",
    "Reply",
    "ScoresTokens",
    "ScoringRequest",
    "SeededPrompt",
    "StopReason",
    "check_scoring_request",
    "prompt_ids",
    "validated_context",
]

# Legend: V vocabulary, C positions of a chunk.

# Python represents bytes that are not UTF-8 as lone surrogates (PEP 383).
_SURROGATE = re.compile("[\ud800-\udfff]")
API_SCHEME = "api:"
"""Beginning of a MODEL that is behind a server: `api:http://host:port/v1#model`."""
Prompt = str | Sequence[Message]
"""A text or a conversation."""
SeededPrompt = tuple[Prompt, Sequence[int]]
"""A prompt, and the seed of each answer to generate to it."""
ScoringRequest = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prefix and of a continuation whose log-probabilities are wanted."""
StopReason = Literal["end", "length", "context", "stopped"]
"""End-of-text token; `max_tokens` reached; context full; stopped by the caller."""
Pieces = Generator[tuple[str, int] | StopReason]
"""(text, number of tokens) as it is generated, then the stop reason. A text may be empty."""
Array = npt.NDArray[np.float32]
CHUNK_POSITIONS = 256
"""Positions of a chunk of `GivesLogits.log_probs`: 50 MB of float32 for 49,152 tokens."""


class Engine(Protocol):
    """A loaded model, as a context manager; closing it frees the memory."""

    @property
    def context(self) -> int:
        """Maximum number of tokens of a prompt and its answer together."""
        ...

    @property
    def identity(self) -> Mapping[str, str]:
        """Provenance to record beside results.

        A local engine has the keys `engine` ("torch" or "llama.cpp") and `dtype`; a remote engine has
        `engine` ("api"), `url`, `model` and `date`.
        """
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...

    def __enter__(self) -> Self:
        """Return the engine itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine."""
        self.close()


@runtime_checkable
class Generates(Engine, Protocol):
    """An engine that generates text."""

    def generate(self, prompt: Prompt, *, raw: bool = False, **options: Unpack[SamplingOptions]) -> "Reply":
        """Continue a text, or answer it if the model has a chat template and `raw` is false.

        Generation stops at a token that ends a text or a turn, after `max_tokens`, or when the context is
        full. Equal seeds give equal texts.

        Args:
            prompt: A text or a conversation.
            raw: Continue the prompt as it is, without the chat template.
            **options: Sampling settings; see `meditron.model.sampling.SamplingConfig`.

        Returns:
            The text as a stream.

        Raises:
            UsageError: before anything is generated: the prompt fills the context, a setting is out of range,
                or the prompt is a conversation and the model has no chat template.
            InputError: the chat template cannot be rendered.
        """
        ...

    def generate_batch(
        self, prompts: Sequence[Prompt], *, raw: bool = False, **options: Unpack[SamplingOptions]
    ) -> list["Generation"]:
        """Generate an answer to each prompt, several at a time.

        Prompt i uses seed + i. Arguments and errors are those of `generate`; every prompt is checked before
        anything is generated.
        """
        ...

    def generate_samples(
        self, prompts: Sequence[SeededPrompt], *, raw: bool = False, **options: Unpack[SamplingOptions]
    ) -> list[list["Generation"]]:
        """Generate several answers to each prompt: one for each of its seeds.

        Equal calls give equal texts, so an evaluation can be repeated. Other arguments and errors are those
        of `generate`. An engine overrides this method if it can generate several texts together, or process a
        prompt once for all of its seeds.
        """
        samples = []
        for prompt, seeds in prompts:
            settings = [SamplingOptions(**{**options, "seed": seed}) for seed in seeds]
            samples.append([self.generate(prompt, raw=raw, **each).finish() for each in settings])
        return samples

    def generate_each(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        *,
        raw: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[tuple[int, "Generation"]]:
        """Generate one answer to each prompt, and yield it with the prompt's index when it is finished.

        Answers can arrive in any order, so that a caller can store each of them before the others are
        finished. Other arguments and errors are those of `generate`. This method generates the answers
        together; an engine that finishes them one by one overrides it.
        """
        seeded = [(prompt, [seed]) for prompt, seed in zip(prompts, seeds, strict=True)]
        samples = self.generate_samples(seeded, raw=raw, **options)
        for index, [generation] in enumerate(samples):
            yield index, generation


@runtime_checkable
class ScoresTokens(Engine, Protocol):
    """An engine that gives the log-probabilities of given tokens."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        ...

    def score(self, requests: Sequence[ScoringRequest]) -> list[Array]:
        """Return the log-probability, in nats, of each token of each continuation.

        A token is scored given the prefix and the continuation's tokens before it.

        Raises:
            UsageError: a prefix is empty, or a request does not fit in the context.
        """
        ...

    def score_documents(
        self, documents: Sequence[Sequence[int]], *, batch_tokens: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Return each document's summed negative log-likelihood (nats) and its number of scored tokens.

        A document's first token has no context and is not scored; tokens beyond the model's context length
        are not scored either.

        Args:
            documents: Token ids.
            batch_tokens: Approximate number of tokens of one batch.
        """
        ...


@runtime_checkable
class GivesLogits(Engine, Protocol):
    """An engine that gives whole next-token distributions."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        ...

    @property
    def vocab_size(self) -> int:
        """Length of each distribution."""
        ...

    def next_token(self, prefixes: Sequence[Sequence[int]]) -> list[Array]:
        """Return for each prefix the log-probabilities of all next tokens, in nats: arrays (V,).

        Temperature and other sampling settings have no effect on the distribution.

        Raises:
            UsageError: a prefix is empty, or does not fit in the context.
        """
        ...

    def log_probs(self, ids: Sequence[int]) -> Iterator["Array | Tensor"]:
        """Yield the log-probabilities of the token after each position of `ids`, in chunks (C, V).

        In every engine a chunk has `CHUNK_POSITIONS` positions and the last chunk the remaining ones, so that
        the distributions of two engines can be read side by side. A chunk may share its memory with the next
        one: read each chunk before requesting the next.

        Raises:
            UsageError: `ids` is empty, or does not fit in the context.
        """
        ...


class LocalEngine(Generates, GivesLogits, Protocol):
    """An engine that `load` opens: it generates, gives logits, and scores at least single tokens."""

    def score(self, requests: Sequence[ScoringRequest]) -> list[Array]:
        """See `ScoresTokens.score`. llama.cpp scores continuations of one token only (UsageError)."""
        ...


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished text with its length in tokens, its time and its stop reason."""

    text: str
    tokens: int
    seconds: float
    stop: StopReason
    """Why the generation ended."""


class Reply(Iterator[str]):
    """Generated text as an iterator of pieces; `finish` waits for the rest of it."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._text: list[str] = []
        self._tokens = 0
        self._start = time.monotonic()
        self._seconds = 0.0
        self._stop: StopReason | None = None

    def __next__(self) -> str:
        """Return the next piece of text that is not empty."""
        for piece in self._pieces:
            self._seconds = time.monotonic() - self._start
            if isinstance(piece, str):
                self._stop = piece
                continue
            text, tokens = piece
            self._tokens += tokens
            if text:
                self._text.append(text)
                return text
        raise StopIteration

    def finish(self) -> Generation:
        """Generate the rest of the text, and return the whole text."""
        for _ in self:  # __next__ collects the pieces
            pass
        if self._stop is None:
            raise RuntimeError("generation ended with an error")
        return Generation("".join(self._text), self._tokens, self._seconds, self._stop)

    def stop(self) -> Generation:
        """Stop generating and return the text so far."""
        self._pieces.close()
        return Generation("".join(self._text), self._tokens, self._seconds, self._stop or "stopped")

    def end_before(self, mark: str) -> "Reply":
        """Return this reply, truncated before the first occurrence of `mark`."""
        return Reply(_pieces_until(self._pieces, mark))


def _pieces_until(pieces: Pieces, mark: str) -> Pieces:
    # A piece can end in the middle of the mark, so text that may be the beginning of the mark is held back.
    pending = ""
    for piece in pieces:
        if isinstance(piece, str):
            yield pending, 0
            yield piece
            return
        pending, separator, _ = (pending + piece[0]).partition(mark)
        if separator:
            pieces.close()
            yield pending, piece[1]
            yield "end"
            return
        safe = next(n for n in range(len(pending) + 1) if mark.startswith(pending[n:]))
        yield pending[:safe], piece[1]
        pending = pending[safe:]


def validated_context(trained: int, context: int | None) -> int:
    """Return the context length to use: `context`, or the model's own if it is None.

    Raises:
        UsageError: `context` is longer than the model's own.
    """
    if context is not None and not 1 <= context <= trained:
        raise UsageError(f"context must be between 1 and the model's {trained:,} tokens, got {context:,}")
    return trained if context is None else context


def check_scoring_request(request: ScoringRequest, context: int) -> None:
    """Raise UsageError for a request with an empty prefix, or one that does not fit in the context."""
    prefix, continuation = request
    if not prefix:
        raise UsageError(
            "the prefix is empty; scoring needs at least one context token",
            hint="begin with the BOS token or a text",
        )
    if (total := len(prefix) + len(continuation)) > context:
        raise UsageError(f"prefix and continuation have {total} tokens; the model's context is {context}")


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt, *, raw: bool) -> list[int]:
    """Encode a prompt, in the chat template if there is one and `raw` is false.

    A control token's name inside a message is encoded as plain text: only the chat template opens and closes
    turns. Errors are those of `Generates.generate`.
    """
    if isinstance(prompt, str) and _SURROGATE.search(prompt):
        raise UsageError("the prompt is not UTF-8")
    template = tokenizer.chat_template
    if isinstance(prompt, str) and (raw or template is None):
        return tokenizer.encode(prompt)
    if raw or template is None:
        reason = "which raw leaves out" if raw else "and the model has none"
        raise UsageError(
            f"a conversation needs the chat template, {reason}", hint="give the prompt as one text"
        )
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return conversation_ids(tokenizer, messages)
