"""Answers of a llama.cpp process: the prompt's token ids, the request, its events as pieces.

Conversations are rendered and tokenized here, in the sandbox for chat templates; llama.cpp gets token ids.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from meditron.core.errors import EngineError, UsageError
from meditron.engine.llamacpp import SEEDS
from meditron.model.sampling import max_new_tokens
from meditron.serve.errors import RequestError
from meditron.serve.generation import GenerationRequest, Piece, TokenLogprob
from meditron.serve.llamacpp_client import LlamaClient
from meditron.serve.reservation import Reservations
from meditron.text.base_prompt import NEXT_QUESTION, render_base_prompt
from meditron.text.chat import Message
from meditron.text.prompt import conversation_ids
from meditron.text.tokenizer import Tokenizer

__all__ = ["encode_prompt", "generate_pieces"]

_COMPACT = {"whitespace_flexible": False}
"""Setting of llama.cpp's JSON grammar: no white space between tokens, which a model may repeat for ever."""


def encode_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message] | None, text: str | Sequence[int] | None
) -> list[int]:
    """Return the token ids of a conversation, or of a text to continue.

    Raises:
        UsageError: a message is not UTF-8.
        InputError: the chat template fails.
    """
    if messages is not None and tokenizer.chat_template is not None:
        return conversation_ids(tokenizer, messages)
    if messages is not None:
        return tokenizer.encode(render_base_prompt(messages))
    assert text is not None  # noqa: S101  # a request has messages or a text
    return tokenizer.encode(text) if isinstance(text, str) else list(text)


async def generate_pieces(
    request: GenerationRequest,
    *,
    connect: Callable[[], Awaitable[LlamaClient]],
    tokenizer: Tokenizer,
    reservations: Reservations,
    context: int,
) -> AsyncGenerator[Piece]:
    """Yield the pieces of all answers. See `LocalModel.generate`.

    Args:
        request: The prompt and the settings.
        connect: Returns the running process. It is called when there is space for the request, because the
            process may have died while the request waited.
        tokenizer: The model's tokenizer.
        reservations: The slots and the KV cache of the model.
        context: Longest prompt with its answer, in tokens.
    """
    # A template of a hostile file computes for seconds before it exceeds its budget.
    ids = await asyncio.to_thread(encode_prompt, tokenizer, request.messages, request.text)
    if max(ids, default=0) >= tokenizer.vocab_size:
        raise RequestError(f"a token id is outside of the vocabulary of {tokenizer.vocab_size} tokens")
    try:
        limit = max_new_tokens(len(ids), context, request.sampling.max_tokens)
    except UsageError as error:
        code = "context_length_exceeded" if ids else None
        raise RequestError(error.message, code=code, hint=error.hint) from error
    base = request.messages is not None and tokenizer.chat_template is None
    body = _completion_body(request, ids, limit, extra_stops=(NEXT_QUESTION,) if base else ())
    first_seed = body["seed"]
    most = max(1, min(reservations.slots, (reservations.tokens - len(ids)) // limit))
    for start in range(0, request.n, most):
        count = min(most, request.n - start)
        # llama.cpp copies the processed prompt into the slots of further answers, and counts the seed up.
        body |= {"n_cmpl": count, "seed": (first_seed + start) % SEEDS}
        async with reservations.reserve(count, len(ids) + count * limit):
            client = await connect()
            if request.json_schema is not None:
                await client.check_schema(body["json_schema"], ids[0], tokenizer.end_of_text_id)
            events = client.complete(body)
            async with aclosing(_pieces(events, request, tokenizer, start, count)) as pieces:
                async for piece in pieces:
                    yield piece


def _completion_body(
    request: GenerationRequest, ids: list[int], limit: int, *, extra_stops: tuple[str, ...]
) -> dict[str, Any]:
    sampling = request.sampling
    body: dict[str, Any] = {
        "prompt": ids,
        "n_predict": limit,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        # The order of the engines, without the other samplers of llama.cpp's default chain.
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
        "seed": (secrets.randbelow(SEEDS) if sampling.seed is None else sampling.seed) % SEEDS,
        "stop": [*sampling.stop, *extra_stops],
        "logit_bias": [[token, value] for token, value in sampling.logit_bias.items()],
        "return_tokens": True,
        "cache_prompt": True,
    }
    if request.logprobs is not None:
        body["n_probs"] = max(request.logprobs, 1)
    if request.json_schema is not None:
        body["json_schema"] = {**request.json_schema, "x-guidance": _COMPACT}
    return body


async def _pieces(
    events: AsyncGenerator[dict[str, Any]],
    request: GenerationRequest,
    tokenizer: Tokenizer,
    first: int,
    count: int,
) -> AsyncGenerator[Piece]:
    """Yield the events of one request to llama.cpp as pieces of the answers from `first` on."""
    open_answers = set(range(count))
    async with aclosing(events):
        async for event in events:
            number = int(event["index"])
            if number not in open_answers:  # what follows a stop token that llama.cpp does not know
                continue
            ended = event.get("stop_type") == "eos" or not tokenizer.stop_ids.isdisjoint(event["tokens"])
            text = "" if ended else event["content"]
            logprobs = () if ended else _logprobs(event, request.logprobs)
            if not (ended or event["stop"]):
                if text or logprobs:
                    yield Piece(index=first + number, text=text, logprobs=logprobs)
                continue
            open_answers.discard(number)
            yield Piece(
                index=first + number,
                text=text,
                logprobs=logprobs,
                finish="length" if not ended and event["stop_type"] == "limit" else "stop",
                input_tokens=event["tokens_evaluated"],
                cached_tokens=event.get("timings", {}).get("cache_n", 0),
                output_tokens=event["tokens_predicted"],
            )
            if not open_answers:
                return
    raise EngineError("llama.cpp closed the connection before its answer was complete")


def _logprobs(event: Mapping[str, Any], top: int | None) -> tuple[TokenLogprob, ...]:
    if top is None:
        return ()
    return tuple(
        _logprob(token, tuple(_logprob(other) for other in token["top_logprobs"][:top]))
        for token in event.get("completion_probabilities", ())
    )


def _logprob(token: Mapping[str, Any], top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    value = token["logprob"]
    # JSON has no infinity; llama.cpp writes null, and OpenAI's API has this number for "never".
    return TokenLogprob(token["token"], -9999.0 if value is None else value, token["bytes"], top)
