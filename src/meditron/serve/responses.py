"""OpenAI's Responses API: the generation that a request asks for, and its answer, whole or as events."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from itertools import count
from typing import Any

from meditron.serve.answers import Answer, Usage, new_id
from meditron.serve.config import ServeConfig
from meditron.serve.connection import event
from meditron.serve.errors import RequestError
from meditron.serve.generation import GenerationRequest, Piece, Sampling
from meditron.serve.schemas import ResponsesRequest
from meditron.text.chat import Message

__all__ = ["response_body", "response_events", "response_failure", "response_generation", "response_messages"]


def response_messages(body: ResponsesRequest) -> list[Message]:
    """Return the conversation that a request asks to answer."""
    messages: list[Message] = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    return [*messages, *(message.plain() for message in body.input)]


def response_generation(
    body: ResponsesRequest, messages: list[Message], config: ServeConfig
) -> GenerationRequest:
    """Return the generation for a request; RequestError for a value beyond a limit of the server."""
    limit = config.max_tokens if body.max_output_tokens is None else body.max_output_tokens
    if limit > config.max_tokens:
        raise RequestError(
            f"max_output_tokens must be at most {config.max_tokens}, got {limit}", param="max_output_tokens"
        )
    return GenerationRequest(
        model=body.model,
        messages=messages,
        sampling=Sampling(
            max_tokens=limit,
            temperature=config.temperature if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            repeat_penalty=config.repeat_penalty,
        ),
        json_schema=body.text.format.schema_to_follow,
    )


class _Response:
    """A response while it is built."""

    def __init__(self, body: ResponsesRequest, request: GenerationRequest) -> None:
        self.id, self.item_id, self._created = new_id("resp_"), new_id("msg_"), int(time.time())
        self._body, self._sampling = body, request.sampling

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def item(self, status: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "type": "message",
            "id": self.item_id,
            "status": status,
            "role": "assistant",
            "content": parts,
        }

    def body(
        self,
        status: str,
        output: list[dict[str, Any]],
        usage: Usage | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self._body.instructions,
            "metadata": dict(self._body.metadata or {}),
            "model": self._body.model,
            "output": output,
            "parallel_tool_calls": False,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "max_output_tokens": self._body.max_output_tokens,
            "previous_response_id": None,
            "store": False,
            "text": {"format": self._body.text.format.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": "none",
            "tools": [],
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
        }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    }


def _status(finish: str | None) -> str:
    return "incomplete" if finish == "length" else "completed"


def response_body(
    body: ResponsesRequest, request: GenerationRequest, answer: Answer, usage: Usage
) -> dict[str, Any]:
    """Return a whole response."""
    response, status = _Response(body, request), _status(answer.finish)
    return response.body(status, [response.item(status, [response.part("".join(answer.text))])], usage)


async def response_events(
    body: ResponsesRequest, request: GenerationRequest, pieces: AsyncGenerator[Piece]
) -> AsyncGenerator[bytes]:
    """Yield the events of a streamed response."""
    response, numbers = _Response(body, request), count()
    place = {"item_id": response.item_id, "output_index": 0, "content_index": 0}
    answer, usage = Answer(), Usage()

    def named(kind: str, **fields: object) -> bytes:
        return event({"type": kind, "sequence_number": next(numbers), **fields}, kind)

    async with aclosing(pieces):
        async for piece in pieces:
            if not answer.text:  # nothing is sent before the first piece, so that an error has a status
                yield named("response.created", response=response.body("in_progress", []))
                yield named("response.in_progress", response=response.body("in_progress", []))
                item = response.item("in_progress", [])
                yield named("response.output_item.added", output_index=0, item=item)
                yield named("response.content_part.added", **place, part=response.part(""))
            answer.text.append(piece.text)
            answer.finish = piece.finish or answer.finish
            usage.add(piece, first=True)
            if piece.text:
                yield named("response.output_text.delta", **place, delta=piece.text, logprobs=[])
    text, status = "".join(answer.text), _status(answer.finish)
    yield named("response.output_text.done", **place, text=text, logprobs=[])
    yield named("response.content_part.done", **place, part=response.part(text))
    item = response.item(status, [response.part(text)])
    yield named("response.output_item.done", output_index=0, item=item)
    yield named(f"response.{status}", response=response.body(status, [item], usage))


def response_failure(body: Mapping[str, Any]) -> bytes:
    """Return the event for an error after the stream has begun."""
    error = body["error"]
    code = error["code"] or error["type"]
    fields = {"code": code, "message": error["message"], "param": error["param"], "sequence_number": 0}
    return event({"type": "error", **fields}, "error")
