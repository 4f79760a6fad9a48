"""A model of another OpenAI-compatible server, such as vLLM, in front of which this server stands."""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import httpx

from meditron.core.errors import EngineError, MeditronError
from meditron.core.redaction import public_address
from meditron.serve.errors import RequestError
from meditron.serve.event_lines import read_events
from meditron.serve.generation import Finish, GenerationRequest, Piece, TokenLogprob
from meditron.serve.state import ModelInfo
from meditron.text.chat import Message

__all__ = ["Upstream", "UpstreamModel"]

_SILENT_SECONDS = 120.0
_LIST_SECONDS = 10.0
_SERVER_ERROR = 500


class Upstream:
    """The connection to a server."""

    def __init__(self, url: str, key: str | None) -> None:
        """Prepare requests to a server.

        Args:
            url: Address of its API, up to and including `/v1`.
            key: Its API key, which is sent to it and to nobody else.
        """
        if not url.startswith(("http://", "https://")):
            raise RequestError(f"{url}: not an http address", hint="--upstream http://host:port/v1")
        self.address = public_address(url.rstrip("/"))
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(_SILENT_SECONDS, connect=_LIST_SECONDS),
            limits=httpx.Limits(max_connections=None),
        )

    async def list_models(self) -> "list[UpstreamModel]":
        """Return the server's models.

        Raises:
            EngineError: the server does not answer, or not as an OpenAI-compatible server does.
        """
        answer = await self._json("GET", "/models", None)
        try:
            return [UpstreamModel(self, str(model["id"])) for model in answer["data"]]
        except (KeyError, TypeError) as error:
            raise self.broken("the list of models") from error

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:  # noqa: ANN401  # JSON
        """Send a request and return the JSON of its answer. Errors are those of `stream`."""
        return await self._json("POST", path, body)

    async def _json(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:  # noqa: ANN401
        try:
            response = await self._http.request(
                method, path, json=body, timeout=_LIST_SECONDS if body is None else _SILENT_SECONDS
            )
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code != httpx.codes.OK:
            raise self._refusal(response, response.content)
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise self.broken("the answer") from error

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Yield the events of a streamed answer. Closing the iterator cancels the request.

        Raises:
            RequestError: the server refuses the request.
            EngineError: the server does not answer, or its stream breaks off.
        """
        try:
            async with self._http.stream("POST", path, json=body) as response:
                if response.status_code != httpx.codes.OK:
                    raise self._refusal(response, await response.aread())
                async with aclosing(read_events(response.aiter_bytes())) as events:
                    async for event in events:
                        if "error" in event:
                            raise EngineError(f"{self.address}: {_error_message(event)}")
                        yield event
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self.broken("the stream") from error

    def _unreachable(self, error: Exception) -> EngineError:
        return EngineError(f"{self.address}: the connection failed ({type(error).__name__})")

    def broken(self, what: str) -> EngineError:
        """Return the error for an answer in another form than OpenAI's."""
        return EngineError(f"{self.address}: {what} is not that of an OpenAI-compatible server")

    def _refusal(self, response: httpx.Response, content: bytes) -> MeditronError:
        try:
            message = _error_message(json.loads(content))
        except (ValueError, TypeError, KeyError, RecursionError):
            message = " ".join(content.decode(errors="replace").split())[:300]
        text = f"{self.address}: HTTP {response.status_code}: {message}"
        # A wrong key is the operator's mistake, not the client's.
        if response.status_code >= _SERVER_ERROR or response.status_code in (401, 403):
            return EngineError(text)
        error = RequestError(text, status=response.status_code)
        error.__dict__["retry_after"] = _seconds(response.headers.get("Retry-After"))
        return error

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


class UpstreamModel:
    """A model of another server, which has the chat template and the tokenizer."""

    def __init__(self, upstream: Upstream, name: str) -> None:
        self._upstream = upstream
        self.info = ModelInfo(id=name, path=f"{upstream.address}#{name}")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece]:
        """Yield the pieces of the answers while they are generated. Errors are those of `Upstream.stream`."""
        path = "/completions" if request.messages is None else "/chat/completions"
        finished: dict[int, Finish] = {}
        usage: Mapping[str, Any] = {}
        async with aclosing(self._upstream.stream(path, _request_body(request))) as events:
            async for event in events:
                try:
                    usage = dict(event.get("usage") or usage)
                    pieces = [_piece(choice, request.n, finished) for choice in event.get("choices") or ()]
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    raise self._upstream.broken("the stream") from error
                for piece in pieces:
                    if piece.text or piece.logprobs:
                        yield piece
        if not finished:
            raise EngineError(f"{self._upstream.address}: the stream ended before its answer was complete")
        if len(finished) != request.n:  # some servers ignore `n`
            raise EngineError(f"{self._upstream.address}: {len(finished)} answers instead of {request.n}")
        # Servers count the tokens of all answers together, and only at the end.
        for number, (index, finish) in enumerate(sorted(finished.items())):
            yield Piece(
                index=index,
                finish=finish,
                input_tokens=usage.get("prompt_tokens"),
                output_tokens=usage.get("completion_tokens") if number == 0 else 0,
            )

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> tuple[list[list[float]], int]:
        """Return the embedding of each text, and the number of tokens of all of them."""
        body = {"model": self.info.id, "input": list(inputs), "encoding_format": "float"}
        answer = await self._upstream.post("/embeddings", body)
        try:
            rows = sorted(answer["data"], key=lambda row: int(row["index"]))
            return [row["embedding"] for row in rows], int(answer["usage"]["prompt_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(f"{self._upstream.address}: the answer has no embeddings") from error

    async def tokenize(self, prompt: str | Sequence[Message]) -> list[int]:
        """Raise RequestError: the tokenizer is the other server's."""
        raise self._no_tokenizer()

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Raise RequestError: the tokenizer is the other server's."""
        raise self._no_tokenizer()

    def _no_tokenizer(self) -> RequestError:
        return RequestError(f"{self.info.id} is a model of {self._upstream.address}, which has its tokenizer")


def _request_body(request: GenerationRequest) -> dict[str, Any]:
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": request.model,
        "n": request.n,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    # Fields outside of OpenAI's API, which some servers refuse, are sent only if they are set.
    optional = {
        "stop": list(sampling.stop),
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": {str(token): value for token, value in sampling.logit_bias.items()},
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repeat_penalty if sampling.repeat_penalty != 1 else None,
    }
    body |= {key: value for key, value in optional.items() if value or (key == "seed" and value is not None)}
    if request.json_schema is not None:
        schema = {"name": "schema", "schema": dict(request.json_schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.messages is None:
        text = request.text
        body["prompt"] = text if isinstance(text, str) else list(text or ())
        return body | ({} if request.logprobs is None else {"logprobs": request.logprobs})
    body["messages"] = list(request.messages)
    return body | ({} if request.logprobs is None else {"logprobs": True, "top_logprobs": request.logprobs})


def _piece(choice: Mapping[str, Any], n: int, finished: dict[int, Finish]) -> Piece:
    """Return the text of a choice, one of `n`, and note in `finished` if it ends an answer."""
    index = int(choice.get("index", 0))
    if not 0 <= index < n:
        raise ValueError(index)
    if (reason := choice.get("finish_reason")) is not None:
        finished[index] = "length" if reason == "length" else "stop"
    delta = choice.get("delta")
    text = (choice.get("text") if delta is None else delta.get("content")) or ""
    # JSON can spell half of a surrogate pair, which has no UTF-8 form: it could be neither sent nor stored.
    text = text.encode(errors="replace").decode()
    logprobs = tuple(_logprob(token) for token in (choice.get("logprobs") or {}).get("content") or ())
    return Piece(index=index, text=text, logprobs=logprobs)


def _logprob(token: Mapping[str, Any]) -> TokenLogprob:
    top = tuple(_logprob(other) for other in token.get("top_logprobs") or ())
    return TokenLogprob(token["token"], token["logprob"], token.get("bytes") or [], top)


def _error_message(answer: Mapping[str, Any]) -> str:
    error = answer["error"]
    return " ".join(str(error["message"] if isinstance(error, dict) else error).split())[:300]


def _seconds(value: str | None) -> float | None:
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        return None
