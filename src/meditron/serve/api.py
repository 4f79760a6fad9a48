"""Routes of the OpenAI-compatible API."""

import base64
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from functools import wraps
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from meditron.serve import answers, responses
from meditron.serve.access import require_role
from meditron.serve.connection import EventStream, until_disconnect
from meditron.serve.errors import RequestError, error_response
from meditron.serve.generation import GenerationRequest, Piece, chat_generation, completion_generations
from meditron.serve.models import ModelPool, Origin
from meditron.serve.openapi import openapi_document
from meditron.serve.pages import person_of, state_of
from meditron.serve.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    ResponsesRequest,
    TokenizeRequest,
    parse_request,
)
from meditron.serve.state import ModelInfo, PromptUse
from meditron.serve.stored_prompts import apply_stored_prompt, prompt_headers

__all__ = ["routes"]

_SETTINGS_EXCLUDED = {"model", "messages", "prompt", "input", "instructions", "metadata", "tags", "user"}
_REQUEST_ID = "X-Request-Id"
"""Header with the id of a request in the log."""
Handler = Callable[[Request], Awaitable[Response]]


def _handled(handler: Handler) -> Handler:
    """Return a handler whose errors are responses, and whose work ends if the client goes away."""

    @wraps(handler)
    async def handle(request: Request) -> Response:
        try:
            # The body is read first: until then, the messages that tell of a disconnect are the body's.
            await request.body()
            return await until_disconnect(request, handler(request))  # type: ignore[arg-type]
        except Exception as error:  # every error gets the form of OpenAI's API
            return error_response(error)

    return require_role("chat")(handle)


def _pool(request: Request) -> ModelPool:
    pool = state_of(request).models
    assert isinstance(pool, ModelPool)  # noqa: S101  # set by the command
    return pool


def _origin(request: Request, body: Any, prompt: PromptUse | None = None) -> Origin:  # noqa: ANN401  # any body
    return Origin(
        endpoint=request.url.path,
        person=person_of(request).name,
        prompt=prompt,
        tags=tuple(getattr(body, "tags", None) or ()),
        metadata=getattr(body, "metadata", None) or {},
        sampling=body.model_dump(mode="json", exclude_none=True, exclude=_SETTINGS_EXCLUDED, by_alias=True),
    )


@_handled
async def _chat(request: Request) -> Response:
    body = parse_request(ChatRequest, await request.body())
    generation = chat_generation(body, state_of(request).config)
    messages, prompt = await apply_stored_prompt(request, body.prompt, generation.messages or ())
    origin = _origin(request, body, prompt)
    headers = {_REQUEST_ID: origin.id, **prompt_headers(prompt)}
    pieces = _pool(request).generate(replace(generation, messages=messages), origin)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(answers.chat_chunks(body.model, pieces, include_usage=usage), headers=headers)
    done, usage_numbers = await answers.collect(pieces, generation.n)
    return JSONResponse(
        answers.chat_body(body.model, done, usage_numbers, logprobs=generation.logprobs is not None),
        headers=headers,
    )


@_handled
async def _completions(request: Request) -> Response:
    body = parse_request(CompletionRequest, await request.body())
    generations = completion_generations(body, state_of(request).config)
    n = generations[0].n
    echoes = await _echoes(_pool(request), body) if body.echo else [""] * len(generations)
    echoes = [echo for echo in echoes for _ in range(n)]
    origin = _origin(request, body)
    headers = {_REQUEST_ID: origin.id}
    pieces = _in_turn(_pool(request), generations, origin)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(
            answers.completion_chunks(body.model, pieces, echoes=echoes, n=n, include_usage=usage),
            headers=headers,
        )
    done, usage_numbers = await answers.collect(pieces, n)
    return JSONResponse(
        answers.completion_body(
            body.model, done, usage_numbers, echoes=echoes, logprobs=body.logprobs is not None
        ),
        headers=headers,
    )


async def _in_turn(
    pool: ModelPool, generations: Sequence[GenerationRequest], origin: Origin
) -> AsyncGenerator[Piece]:
    """Yield the pieces of several generations, whose answers are numbered on."""
    first = 0
    for place, generation in enumerate(generations):
        # Each prompt is a row of the log.
        part = replace(origin, id=f"{origin.id}-{place}") if place else origin
        async with aclosing(pool.generate(generation, part)) as pieces:
            async for piece in pieces:
                yield replace(piece, index=first + piece.index)
        first += generation.n


async def _echoes(pool: ModelPool, body: CompletionRequest) -> list[str]:
    return [
        prompt if isinstance(prompt, str) else await pool.detokenize(body.model, prompt)
        for prompt in body.prompts
    ]


@_handled
async def _responses(request: Request) -> Response:
    body = parse_request(ResponsesRequest, await request.body())
    messages, prompt = await apply_stored_prompt(request, body.prompt, responses.response_messages(body))
    generation = responses.response_generation(body, messages, state_of(request).config)
    origin = _origin(request, body, prompt)
    headers = {_REQUEST_ID: origin.id, **prompt_headers(prompt)}
    pieces = _pool(request).generate(generation, origin)
    if body.stream:
        events = responses.response_events(body, generation, pieces)
        return EventStream(events, responses.response_failure, headers=headers)
    [answer], usage = await answers.collect(pieces)
    return JSONResponse(responses.response_body(body, generation, answer, usage), headers=headers)


@_handled
async def _embeddings(request: Request) -> Response:
    body = parse_request(EmbeddingRequest, await request.body())
    vectors, tokens = await _pool(request).embed(body.model, body.inputs, _origin(request, body))
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _encode_vector(vector) if body.encoding_format == "base64" else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})


def _encode_vector(vector: Sequence[float]) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


@_handled
async def _models(request: Request) -> Response:
    pool = _pool(request)
    await pool.refresh()
    return JSONResponse({"object": "list", "data": [_model_body(info) for info in pool.list_models()]})


@_handled
async def _model(request: Request) -> Response:
    model = await _pool(request).find(request.path_params["model"])
    return JSONResponse(_model_body(model.info))


def _model_body(info: ModelInfo) -> dict[str, Any]:
    fields = asdict(info)
    del fields["path"]  # clients need not know the folders of the server
    head = {"id": fields.pop("id"), "object": "model", "created": _STARTED, "owned_by": "meditron"}
    return {**head, **fields}


_STARTED = int(time.time())


@_handled
async def _tokenize(request: Request) -> Response:
    body = parse_request(TokenizeRequest, await request.body())
    if (body.content is None) == (body.messages is None):
        raise RequestError("tokenize needs content or messages, and not both", param="content")
    prompt = [message.plain() for message in body.messages or ()] if body.content is None else body.content
    ids = await _pool(request).tokenize(body.model, prompt)
    return JSONResponse({"tokens": ids, "count": len(ids)})


@_handled
async def _detokenize(request: Request) -> Response:
    body = parse_request(DetokenizeRequest, await request.body())
    return JSONResponse({"content": await _pool(request).detokenize(body.model, body.tokens)})


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _ready(request: Request) -> Response:
    ready = _pool(request).ready
    return JSONResponse({"status": "ready" if ready else "loading"}, 200 if ready else 503)


async def _openapi(_: Request) -> Response:
    return JSONResponse(openapi_document())


routes: list[Route] = [
    Route("/v1/chat/completions", _chat, methods=["POST"]),
    Route("/v1/completions", _completions, methods=["POST"]),
    Route("/v1/responses", _responses, methods=["POST"]),
    Route("/v1/embeddings", _embeddings, methods=["POST"]),
    Route("/v1/models", _models),
    Route("/v1/models/{model:path}", _model),
    Route("/tokenize", _tokenize, methods=["POST"]),
    Route("/detokenize", _detokenize, methods=["POST"]),
    Route("/health", _health),
    Route("/ready", _ready),
    Route("/openapi.json", _openapi),
]
