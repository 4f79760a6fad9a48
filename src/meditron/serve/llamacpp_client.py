"""Requests to a llama.cpp process from the event loop."""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import httpx

from meditron.core.errors import EngineError, MeditronError
from meditron.engine.llamacpp_process import SILENT_SECONDS, LlamaServerProcess
from meditron.serve.errors import RequestError
from meditron.serve.event_lines import read_events

__all__ = ["LlamaClient"]

_KNOWN_SCHEMAS = 256  # schemas whose check is remembered
_LARGE_BIAS = 1e3


class LlamaClient:
    """A llama.cpp process and the connections to it."""

    def __init__(self, process: LlamaServerProcess) -> None:
        self.process = process
        self._schemas: dict[str, None] = {}
        self._http = httpx.AsyncClient(
            base_url=process.address,
            headers=process.headers,
            timeout=httpx.Timeout(SILENT_SECONDS),
            # The process drops idle connections at any time.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,  # a proxy must not receive what goes to this machine
        )

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self.process.alive

    async def complete(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Yield the events of llama.cpp's `POST /completion`. Closing the iterator cancels the request.

        Raises:
            RequestError: llama.cpp refuses the request.
            EngineError: the process died, or sends nothing for too long.
        """
        try:
            async with self._http.stream("POST", "/completion", json={**body, "stream": True}) as response:
                if response.status_code != httpx.codes.OK:
                    raise _refusal(json.loads(await response.aread()))
                async with aclosing(read_events(response.aiter_bytes())) as events:
                    async for event in events:
                        if "error" in event:
                            raise _refusal(event)
                        yield event
        except httpx.ReadTimeout as error:
            await asyncio.to_thread(self.process.close)
            raise EngineError(f"llama.cpp sent nothing for {SILENT_SECONDS} s") from error
        except httpx.HTTPError as error:
            raise await self._end_error() from error

    async def embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the embedding of each list of token ids. Errors are those of `complete`."""
        body = {"input": [list(ids) for ids in inputs]}
        try:
            # No pings come while many texts are processed: only the caller's time limit applies.
            timeout = httpx.Timeout(SILENT_SECONDS, read=None)
            response = await self._http.post("/v1/embeddings", json=body, timeout=timeout)
        except httpx.HTTPError as error:
            raise await self._end_error() from error
        answer = response.json()
        if response.status_code != httpx.codes.OK:
            raise _refusal(answer)
        rows = sorted(answer["data"], key=lambda row: int(row["index"]))
        return [row["embedding"] for row in rows]

    async def check_schema(self, schema: Mapping[str, Any], start: int, end_token: int) -> None:
        """Raise RequestError for a JSON schema that llama.cpp cannot enforce.

        llama.cpp only logs an error of a schema, and then generates text without it. The check asks for one
        token, with a bias for the end-of-text token, with which no JSON begins. Only an enforced schema
        prevents that token.

        Args:
            schema: The schema, as it is sent in a request.
            start: Token id of the check's prompt.
            end_token: Id of the end-of-text token.
        """
        digest = hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()
        if digest in self._schemas:
            return
        body = {
            "prompt": [start],
            "n_predict": 1,
            "temperature": 0.0,
            "logit_bias": [[end_token, _LARGE_BIAS]],
            "json_schema": schema,
            "cache_prompt": False,
        }
        async with aclosing(self.complete(body)) as events:
            stops = [event.get("stop_type") async for event in events]
        if "eos" in stops:
            raise RequestError(
                "the JSON schema is invalid, or uses a keyword that is not supported", param="response_format"
            )
        while len(self._schemas) >= _KNOWN_SCHEMAS:
            del self._schemas[next(iter(self._schemas))]
        self._schemas[digest] = None

    async def _end_error(self) -> MeditronError:
        return await asyncio.to_thread(self.process.end_error)

    async def close(self) -> None:
        """End the process."""
        await asyncio.to_thread(self.process.close)
        await self._http.aclose()


def _refusal(answer: Mapping[str, Any]) -> MeditronError:
    """Return the error for an error of llama.cpp."""
    error = answer["error"]
    message = f"llama.cpp refused the request: {' '.join(str(error['message']).split())}"
    if error.get("type") == "exceed_context_size_error":
        return RequestError(message, code="context_length_exceeded")
    if error.get("code") == httpx.codes.BAD_REQUEST:
        return RequestError(message)
    return EngineError(message)
