"""What every engine offers: a tokenizer, generated text, and the log-probability of given text."""

import re
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from meditron.core.errors import UsageError
from meditron.model import sampling
from meditron.text.chat import Message
from meditron.text.prompt import conversation_ids
from meditron.text.tokenizer import Tokenizer

__all__ = [
    "Engine",
    "Generation",
    "Pieces",
    "Prompt",
    "Reply",
    "ScoringRequest",
    "Stop",
    "check_scoring_request",
    "check_settings",
    "chosen_context",
    "max_new_tokens",
    "prompt_ids",
]

_SURROGATE = re.compile("[\ud800-\udfff]")  # how Python holds bytes that are no UTF-8
Prompt = str | Sequence[Message]
"""A text, or a conversation."""
ScoringRequest = tuple[Sequence[int], Sequence[int]]
"""Ids that are given, and ids that go on from them."""
Stop = Literal["end", "length", "context", "stopped"]
"""The model ended its text; it wrote as much as it was allowed; its context is full; it was told to stop."""
Pieces = Generator[tuple[str, int] | Stop]
"""Texts with the tokens that each took (a text may be empty), at last what stopped it."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished text: how many tokens it took, how long it took, and what stopped it."""

    text: str
    tokens: int
    seconds: float
    stop: Stop


class Reply(Iterator[str]):
    """Text as it is generated, piece by piece; `finish` waits for the rest and says how it went."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._text: list[str] = []
        self._tokens = 0
        self._began = time.monotonic()
        self._seconds = 0.0
        self._stop: Stop | None = None

    def __next__(self) -> str:
        """The next piece that is not empty."""
        for piece in self._pieces:
            self._seconds = time.monotonic() - self._began
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
        """All of the text, generating what is still to come."""
        for _ in self:
            pass
        if self._stop is None:
            raise RuntimeError("the text broke off with an error")
        return Generation("".join(self._text), self._tokens, self._seconds, self._stop)

    def stop(self) -> Generation:
        """What was said so far: nothing more is generated."""
        self._pieces.close()
        return Generation("".join(self._text), self._tokens, self._seconds, self._stop or "stopped")

    def until(self, mark: str) -> "Reply":
        """The same, ended where `mark` would come."""
        return Reply(_until(self._pieces, mark))


def _until(pieces: Pieces, mark: str) -> Pieces:
    """What could be the beginning of `mark` is held back until it is known."""
    held = ""
    for piece in pieces:
        if isinstance(piece, str):
            yield held, 0
            yield piece
            return
        held, found, _ = (held + piece[0]).partition(mark)
        if found:
            pieces.close()
            yield held, piece[1]
            yield "end"
            return
        safe = next(n for n in range(len(held) + 1) if mark.startswith(held[n:]))
        yield held[:safe], piece[1]
        held = held[safe:]


class Engine(Protocol):
    """A model that is ready. A context manager; closing it gives its memory back."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer."""
        ...

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        ...

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
        """Go on from a text, or answer it where the model has a chat template and `raw` is not asked for.

        Temperature 0 is greedy. Otherwise tokens are drawn from the `top_k` likeliest (0: all) that hold
        `top_p` of the probability; equal seeds give equal texts. It stops at a token that ends a text or a
        turn, after `max_tokens`, or where the context is full. Raises UsageError, before anything is
        generated, for a prompt that leaves no room in the context, settings out of range, and a
        conversation for a model without a template; InputError for a template that does not work.
        """
        ...

    def score(self, pairs: Sequence[ScoringRequest]) -> list[npt.NDArray[np.float32]]:
        """Log-probability, in nats, of every id of each continuation, given its prefix and those before it.

        Raises UsageError for an empty prefix and for a pair that does not fit in the context.
        """
        ...

    def next_token(self, prefixes: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        """Log-probability, in nats, of every token of the vocabulary, (V,), as the next after each prefix.

        Before any sampling. Raises as `score` does.
        """
        ...

    def close(self) -> None:
        """Give the model's memory back."""
        ...

    def __enter__(self) -> Self:
        """Return itself."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        ...


def chosen_context(trained: int, context: int | None) -> int:
    """Return the context to run with; UsageError for one that the model does not have."""
    if context is not None and not 1 <= context <= trained:
        raise UsageError(f"context must be between 1 and the model's {trained:,} tokens, got {context:,}")
    return trained if context is None else context


def check_settings(max_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    """UsageError for settings out of range, whatever the prompt."""
    if max_tokens < 1:
        raise UsageError(f"{max_tokens} tokens are no text", hint="max_tokens is 1 or more")
    sampling.check_settings(temperature, top_k, top_p)


def max_new_tokens(
    given: int, context: int, max_tokens: int, temperature: float, top_k: int, top_p: float
) -> int:
    """How many tokens may follow a prompt of `given` tokens; UsageError where there can be none."""
    check_settings(max_tokens, temperature, top_k, top_p)
    sampling.check(given, context, temperature, top_k, top_p)
    return min(max_tokens, context - given)


def check_scoring_request(pair: ScoringRequest, context: int) -> None:
    """UsageError for a pair that cannot be scored in so many tokens of context."""
    prefix, continuation = pair
    if not prefix:
        raise UsageError("nothing stands before what is to be scored", hint="begin with BOS or a text")
    if (total := len(prefix) + len(continuation)) > context:
        raise UsageError(f"{total} tokens are to be scored; the model's context is {context}")


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt, *, raw: bool) -> list[int]:
    """The ids a model goes on from, as its tokenizer and its template have it; errors as of `generate`.

    A control token's name inside a message is text: only the template opens and closes turns.
    """
    if isinstance(prompt, str) and _SURROGATE.search(prompt):
        raise UsageError("the prompt is not UTF-8")
    template = tokenizer.chat_template
    if isinstance(prompt, str) and (raw or template is None):
        return tokenizer.encode(prompt)
    if raw or template is None:
        raise UsageError(
            "a conversation needs the chat template"
            + (" that raw leaves out" if raw else ", and the model has none"),
            hint="give the prompt as one text",
        )
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return conversation_ids(tokenizer, messages)
