"""What every engine offers: a tokenizer, generated text, and the log-probability of given text."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from meditron.ground.errors import UsageError
from meditron.text.chat import Message, render
from meditron.text.tokenizer import Tokenizer

__all__ = ["Engine", "Generation", "Pair", "Prompt", "Reply", "Stop", "prompt_ids"]

_SURROGATE = re.compile("[\ud800-\udfff]")  # how Python holds bytes that are no UTF-8
Prompt = str | Sequence[Message]
"""A text, or a conversation."""
Pair = tuple[Sequence[int], Sequence[int]]
"""Ids that are given, and ids that go on from them."""
Stop = Literal["end", "length", "context"]
"""The model ended its text; it wrote as much as it was allowed; its context is full."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished text: how many tokens it took, how long it took, and what stopped it."""

    text: str
    tokens: int
    seconds: float
    stop: Stop


class Reply(Iterator[str]):
    """Text as it is generated, piece by piece; `finish` waits for the rest and says how it went."""

    def __init__(self, pieces: Iterator[tuple[str, int] | Stop]) -> None:
        """`pieces`: texts with the tokens that each took (a text may be empty), at last what stopped it."""
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


class Engine(Protocol):
    """A model that is ready. A context manager; closing it gives its memory back."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer."""
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

    def score(self, pairs: Sequence[Pair]) -> list[npt.NDArray[np.float32]]:
        """Log-probability, in nats, of every id of each continuation, given its prefix and those before it.

        Raises UsageError for an empty prefix and for a pair that does not fit in the context.
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


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt, *, raw: bool) -> list[int]:
    """The ids a model goes on from, as its tokenizer and its template have it; errors as of `generate`."""
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
    text = render(
        template,
        messages,
        add_generation_prompt=True,
        bos=_name(tokenizer, tokenizer.bos_id),
        eos=_name(tokenizer, tokenizer.eos_id),
    )
    return tokenizer.encode(text, special=True, bos=False)  # the template writes its own


def _name(tokenizer: Tokenizer, token_id: int | None) -> str | None:
    return None if token_id is None else tokenizer.token(token_id)
