"""Answers in the forms of OpenAI's API: chat completions and completions, whole or in chunks."""

import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from meditron.serve.connection import event
from meditron.serve.generation import Piece, TokenLogprob

__all__ = ["Answer", "chat_body", "chat_chunks", "collect", "completion_body", "completion_chunks", "new_id"]

DONE = event("[DONE]")


def new_id(prefix: str) -> str:
    """Return a random id."""
    return f"{prefix}{secrets.token_hex(12)}"


@dataclass(slots=True)
class Answer:
    """One finished answer."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None


@dataclass(slots=True)
class Usage:
    """Numbers of tokens of a request. Answers to one prompt count it once."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def add(self, piece: Piece, *, first: bool) -> None:
        """Count the tokens of an answer's last piece; `first` for the first answer to its prompt."""
        if piece.finish is not None:
            self.completion += piece.output_tokens or 0
            if first:
                self.prompt += piece.input_tokens or 0
                self.cached += piece.cached_tokens or 0

    def body(self) -> dict[str, Any]:
        """Return the usage in OpenAI's form."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


async def collect(pieces: AsyncGenerator[Piece], n: int = 1) -> tuple[list[Answer], Usage]:
    """Return the finished answers in order. Answers n·k … n·k + n − 1 belong to prompt k."""
    answers: dict[int, Answer] = {}
    usage = Usage()
    async with aclosing(pieces):
        async for piece in pieces:
            answer = answers.setdefault(piece.index, Answer())
            answer.text.append(piece.text)
            answer.logprobs += piece.logprobs
            answer.finish = piece.finish or answer.finish
            usage.add(piece, first=piece.index % n == 0)
    return [answer for _, answer in sorted(answers.items())], usage


def _head(kind: str, name: str, model: str) -> dict[str, Any]:
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}


def chat_body(model: str, answers: Sequence[Answer], usage: Usage, *, logprobs: bool) -> dict[str, Any]:
    """Return the body of a whole chat completion."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": "".join(answer.text), "refusal": None},
            "logprobs": {"content": list(map(_chat_logprob, answer.logprobs))} if logprobs else None,
            "finish_reason": answer.finish,
        }
        for index, answer in enumerate(answers)
    ]
    head = _head("chat.completion", new_id("chatcmpl-"), model)
    return {**head, "choices": choices, "usage": usage.body()}


async def chat_chunks(
    model: str, pieces: AsyncGenerator[Piece], *, include_usage: bool
) -> AsyncGenerator[bytes]:
    """Yield the events of a streamed chat completion."""
    head = _head("chat.completion.chunk", new_id("chatcmpl-"), model)
    usage, begun = Usage(), set[int]()

    def chunk(piece: Piece, delta: dict[str, Any], finish: str | None = None) -> bytes:
        logprobs = {"content": list(map(_chat_logprob, piece.logprobs))} if piece.logprobs else None
        choice = {"index": piece.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event({**head, "choices": [choice], **({"usage": None} if include_usage else {})})

    async with aclosing(pieces):
        async for piece in pieces:
            usage.add(piece, first=piece.index == 0)
            if piece.index not in begun:
                begun.add(piece.index)
                yield chunk(Piece(index=piece.index), {"role": "assistant", "content": ""})
            if piece.text or piece.logprobs:
                yield chunk(piece, {"content": piece.text})
            if piece.finish is not None:
                yield chunk(Piece(index=piece.index), {}, piece.finish)
    if include_usage:
        yield event({**head, "choices": [], "usage": usage.body()})
    yield DONE


def _chat_logprob(token: TokenLogprob) -> dict[str, Any]:
    return {**_flat_logprob(token), "top_logprobs": list(map(_flat_logprob, token.top))}


def _flat_logprob(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": token.bytes}


def completion_body(
    model: str, answers: Sequence[Answer], usage: Usage, *, echoes: Sequence[str], logprobs: bool
) -> dict[str, Any]:
    """Return the body of a whole completion; `echoes` are texts to write before the answers."""
    choices = [
        {
            "index": index,
            "text": echo + "".join(answer.text),
            "logprobs": _legacy_logprobs(answer.logprobs, len(echo)) if logprobs else None,
            "finish_reason": answer.finish,
        }
        for index, (answer, echo) in enumerate(zip(answers, echoes, strict=True))
    ]
    head = _head("text_completion", new_id("cmpl-"), model)
    return {**head, "choices": choices, "usage": usage.body()}


async def completion_chunks(
    model: str,
    pieces: AsyncGenerator[Piece],
    *,
    echoes: Sequence[str],
    n: int,
    include_usage: bool,
) -> AsyncGenerator[bytes]:
    """Yield the events of a streamed completion."""
    head = _head("text_completion", new_id("cmpl-"), model)
    usage, offsets = Usage(), dict[int, int]()
    async with aclosing(pieces):
        async for piece in pieces:
            usage.add(piece, first=piece.index % n == 0)
            echo = "" if piece.index in offsets else echoes[piece.index]
            offset = offsets.get(piece.index, len(echo))
            offsets[piece.index] = offset + len(piece.text)
            choice = {
                "index": piece.index,
                "text": echo + piece.text,
                "logprobs": _legacy_logprobs(piece.logprobs, offset) if piece.logprobs else None,
                "finish_reason": piece.finish,
            }
            yield event({**head, "choices": [choice], **({"usage": None} if include_usage else {})})
    if include_usage:
        yield event({**head, "choices": [], "usage": usage.body()})
    yield DONE


def _legacy_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> Mapping[str, Any]:
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{other.token: other.logprob for other in token.top} for token in tokens],
        "text_offset": list(_offsets(tokens, offset)),
    }


def _offsets(tokens: Sequence[TokenLogprob], offset: int) -> Iterator[int]:
    for token in tokens:
        yield offset
        offset += len(token.token)
