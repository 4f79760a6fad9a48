"""The API engine: a model behind an OpenAI-compatible server, such as vLLM, llama.cpp's server or Ollama.

Servers fail in many ways, and an evaluation of thousands of requests meets all of them. A request is sent
again after a failure that can pass: no connection, a timeout, HTTP 408, 425, 429 or 5xx, and an answer that
is cut off or is not JSON. Between two attempts the engine waits twice as long as before, or as long as the
server asks for (`Retry-After`). Every answer has its place in the list of results before it is sent, so a
repeated request cannot be counted twice.
"""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NoReturn, Self, TypeVar, Unpack

import httpx

from meditron.core.console import warn
from meditron.core.errors import EngineError, UsageError
from meditron.core.redaction import public_address
from meditron.engine.base import API_SCHEME, Generates, Generation, Pieces, Prompt, Reply, SeededPrompt
from meditron.engine.event_lines import split_lines
from meditron.model.sampling import SamplingConfig, SamplingOptions
from meditron.text.chat import Message

__all__ = ["API_KEY_VARIABLE", "JUDGE_KEY_VARIABLE", "ApiEngine", "ApiSettings"]

API_KEY_VARIABLE = "MEDITRON_API_KEY"
"""Environment variable of the key, which is sent as a bearer token and never printed or recorded."""
JUDGE_KEY_VARIABLE = "MEDITRON_JUDGE_API_KEY"
"""Environment variable of the key of a judge's server, so that no server gets the key of another one."""
_EVENTS = "text/event-stream"
_TEMPORARY = frozenset({408, 425, 429})
_LONGEST_ANSWER = 32 << 20  # bytes; a server that sends more is broken
_LONGEST_WAIT = 120.0  # seconds between two attempts, whatever the server asks for
_UNKNOWN_CONTEXT = 1 << 30  # servers do not report their context; they refuse a prompt that is too long
T = TypeVar("T")
_SEEDS = 1 << 31  # servers read seeds as signed 32-bit or 64-bit integers


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Settings of the requests to a server. No setting changes the answers."""

    concurrency: int = 8
    """Maximum number of requests in flight."""
    attempts: int = 8
    """Number of times that a request is sent before its failure ends the run."""
    timeout: float = 300.0
    """Seconds within which an answer must be complete."""
    backoff: float = 1.0
    """Seconds before the second attempt; the wait doubles with each further one."""
    key_variable: str = API_KEY_VARIABLE
    """Environment variable of the server's key."""


class _TemporaryFailure(Exception):
    """A failure after which the same request is sent again."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class _Request:
    """A request: the end of its address, and its JSON body."""

    path: Literal["/chat/completions", "/completions"]
    body: dict[str, Any]


class ApiEngine(Generates):
    """A model behind an OpenAI-compatible server. It generates text; the server has tokenizer and weights.

    A conversation is answered by `/chat/completions`, in the server's chat template; a text is continued by
    `/completions`. Seeds are sent, but whether equal seeds give equal texts depends on the server.
    """

    def __init__(self, url: str, model: str | None = None, settings: ApiSettings | None = None) -> None:
        """Connect to a server and look up its models.

        Args:
            url: Address of the API, up to and including `/v1`.
            model: Name of the model; default: the only model of the server.
            settings: Concurrency, attempts and timeouts.

        Raises:
            UsageError: the address is not an http address, or the server has several models, or not this one.
            EngineError: the server does not answer.
        """
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{url}: not an http address", hint="api:http://host:port/v1#model")
        self._settings = settings or ApiSettings()
        self._address = public_address(url.rstrip("/"))
        self._key = os.environ.get(self._settings.key_variable, "")
        self._stopped = threading.Event()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=self._settings.concurrency)
        timeout = httpx.Timeout(self._settings.timeout, connect=min(30.0, self._settings.timeout))
        self._client = httpx.Client(headers=headers, timeout=timeout, limits=limits)
        self._url = url.rstrip("/")
        try:
            self._model = model or self._only_model()
        except BaseException:
            self.close()
            raise

    @classmethod
    def load(cls, spec: str, settings: ApiSettings | None = None) -> Self:
        """Open a MODEL of the form `api:http://host:port/v1#model`; errors are those of the constructor."""
        url, _, model = spec.removeprefix(API_SCHEME).partition("#")
        return cls(url, model or None, settings)

    @property
    def context(self) -> int:
        """A number larger than any context: the server refuses a prompt that is too long."""
        return _UNKNOWN_CONTEXT

    @property
    def identity(self) -> Mapping[str, str]:
        """Address, model and date, because a model behind a server has no digest."""
        date = datetime.now(UTC).date().isoformat()
        return {"engine": "api", "url": self._address, "model": self._model, "date": date}

    def generate(self, prompt: Prompt, *, raw: bool = False, **options: Unpack[SamplingOptions]) -> Reply:
        """See `Generates.generate`. The text arrives in one piece if the server does not stream."""
        return Reply(self._stream(self._request(prompt, SamplingConfig(**options), raw=raw)))

    def _stream(self, request: _Request) -> Pieces:
        body = {**request.body, "stream": True, "stream_options": {"include_usage": True}}
        # Once a part of the text is out, a failure is final: a repeated request may give another text.
        answer = self._retry(lambda: self._open(request.path, body))
        if isinstance(answer, tuple):
            text, tokens, finish = answer
            yield text, tokens
        else:
            finish, whole, counted = "", "", 0
            with closing(self._events(answer)) as events:
                for event in events:
                    text, tokens, reason = _parse_event(event, self._address)
                    finish, whole, counted = reason or finish, whole + text, counted + tokens
                    yield text, tokens
            if not counted:
                yield "", _count_tokens(None, whole)
        yield "length" if finish == "length" else "end"

    def _open(self, path: str, body: Mapping[str, Any]) -> "httpx.Response | tuple[str, int, str]":
        """Return the open stream of an answer, or the answer of a server that does not stream."""
        with self._translate_failures():
            request = self._client.build_request("POST", self._url + path, json=body)
            response = self._client.send(request, stream=True)
            if response.status_code == httpx.codes.OK and _EVENTS in response.headers.get("Content-Type", ""):
                return response
            with closing(response):
                return _parse_answer(self._json(response))

    def _events(self, response: httpx.Response) -> Generator[Any]:
        """Yield the JSON of each event of a stream, and close it."""
        finished = False
        try:
            with closing(response):
                for line in split_lines(self._parts(response)):
                    kind, _, content = line.rstrip(b"\r").partition(b":")
                    if kind != b"data" or finished:
                        continue
                    finished = content.strip() == b"[DONE]"
                    if not finished:
                        yield json.loads(content)
        except _TemporaryFailure as failure:
            raise EngineError(f"{self._address}: {failure}") from failure
        except httpx.HTTPError as error:
            raise EngineError(
                f"{self._address}: the connection failed in the middle of the answer ({type(error).__name__})"
            ) from error
        except ValueError as error:
            raise EngineError(f"{self._address}: an event of the stream is not JSON") from error
        if not finished:
            raise EngineError(f"{self._address}: the stream ended before the answer was complete")

    def generate_batch(
        self, prompts: Sequence[Prompt], *, raw: bool = False, **options: Unpack[SamplingOptions]
    ) -> list[Generation]:
        """See `Generates.generate_batch`. Up to `ApiSettings.concurrency` requests are in flight."""
        sampling = SamplingConfig(**options)
        return self._answer_all(
            [
                self._request(prompt, replace(sampling, seed=sampling.seed + index), raw=raw)
                for index, prompt in enumerate(prompts)
            ]
        )

    def generate_samples(
        self, prompts: Sequence[SeededPrompt], *, raw: bool = False, **options: Unpack[SamplingOptions]
    ) -> list[list[Generation]]:
        """See `Generates.generate_samples`. Up to `ApiSettings.concurrency` requests are in flight."""
        sampling = SamplingConfig(**options)
        generations = iter(
            self._answer_all(
                [
                    self._request(prompt, replace(sampling, seed=seed), raw=raw)
                    for prompt, seeds in prompts
                    for seed in seeds
                ]
            )
        )
        return [[next(generations) for _ in seeds] for _, seeds in prompts]

    def generate_each(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        *,
        raw: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[tuple[int, Generation]]:
        """See `Generates.generate_each`. Up to `ApiSettings.concurrency` requests are in flight.

        After a lasting failure, requests that are not in flight are dropped, and those in flight are finished
        and yielded before the error is raised.
        """
        sampling = SamplingConfig(**options)
        requests = [
            self._request(prompt, replace(sampling, seed=seed), raw=raw)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        with ThreadPoolExecutor(self._settings.concurrency) as threads:
            futures = {threads.submit(self._answer, each): index for index, each in enumerate(requests)}
            failure: BaseException | None = None
            yielded = set()
            try:
                for future in as_completed(futures):
                    if failure := future.exception():
                        break
                    yielded.add(future)
                    yield futures[future], future.result()
            finally:
                self._stopped.set()
                threads.shutdown(wait=True, cancel_futures=True)
                self._stopped.clear()
        if failure:
            # Answers that arrived after the failure are paid for, so they are not thrown away.
            for future, index in futures.items():
                if future not in yielded and not future.cancelled() and future.exception() is None:
                    yield index, future.result()
            raise failure

    def _request(self, prompt: Prompt, sampling: SamplingConfig, *, raw: bool) -> _Request:
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed % _SEEDS,
        }
        if sampling.top_k:  # not part of OpenAI's API, which refuses unknown keys
            body["top_k"] = sampling.top_k
        if raw and not isinstance(prompt, str):
            raise UsageError("a conversation needs the chat template, which raw leaves out")
        if raw:
            return _Request("/completions", {**body, "prompt": prompt})
        messages: Sequence[Message] = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        )
        return _Request("/chat/completions", {**body, "messages": list(messages)})

    def _answer_all(self, requests: Sequence[_Request]) -> list[Generation]:
        """Send requests together; after a lasting failure, those that are not in flight are dropped."""
        with ThreadPoolExecutor(self._settings.concurrency) as threads:
            futures: list[Future[Generation]] = [threads.submit(self._answer, each) for each in requests]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()  # raises the error of the request that failed
            except BaseException:
                self._stopped.set()
                threads.shutdown(wait=True, cancel_futures=True)
                self._stopped.clear()
                raise
            return [future.result() for future in futures]

    def _answer(self, request: _Request) -> Generation:
        start = time.monotonic()
        text, tokens, finish = self._retry(
            lambda: _parse_answer(self._send("POST", request.path, request.body))
        )
        return Generation(text, tokens, time.monotonic() - start, "length" if finish == "length" else "end")

    def _only_model(self) -> str:
        names = self._retry(lambda: _parse_models(self._send("GET", "/models")))
        if len(names) == 1:
            return names[0]
        listed = ", ".join(f"{API_SCHEME}{self._address}#{name}" for name in names[:8])
        raise UsageError(f"{self._address} serves {len(names)} models", hint=f"name one: {listed}")

    def _retry(self, send: Callable[[], T]) -> T:
        """Call a function until it succeeds, at most `attempts` times.

        Raises:
            EngineError: the last attempt failed too, or the server refused the request.
        """
        for attempt in range(1, self._settings.attempts + 1):
            try:
                return send()
            except _TemporaryFailure as failure:
                if attempt == self._settings.attempts:
                    raise EngineError(
                        f"{self._address}: {failure}, after {attempt} attempts",
                        hint="rows that are complete are kept: run the same command again to continue",
                    ) from failure
                backoff = self._settings.backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)  # noqa: S311
                seconds = min(failure.retry_after or backoff, _LONGEST_WAIT)
                warn(f"{self._address}: {failure}; attempt {attempt + 1} in {seconds:.1f} s")
            if self._stopped.wait(seconds):
                break
        raise EngineError(f"{self._address}: stopped, because another request failed")

    def _send(self, method: Literal["GET", "POST"], path: str, body: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401  # JSON
        """Send a request once and return the JSON of its answer.

        Raises:
            _TemporaryFailure: the request can be sent again.
            EngineError: the server refuses the request.
        """
        with self._translate_failures(), self._client.stream(method, self._url + path, json=body) as response:
            return self._json(response)

    @contextmanager
    def _translate_failures(self) -> Iterator[None]:
        """Raise errors of httpx as `_TemporaryFailure` if the request can be sent again, else EngineError."""
        try:
            yield
        except httpx.TimeoutException as error:
            raise _TemporaryFailure(f"no answer within {self._settings.timeout:g} s") from error
        except (httpx.TransportError, httpx.DecodingError) as error:  # a compressed answer may be cut off
            raise _TemporaryFailure(f"the connection failed ({type(error).__name__})") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EngineError(f"{self._address}: {type(error).__name__}") from error

    def _json(self, response: httpx.Response) -> Any:  # noqa: ANN401  # JSON
        """Read the JSON of an answer; raises as `_send`."""
        content = b"".join(self._parts(response))
        if response.status_code != httpx.codes.OK:
            self._refuse(response, content)
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _TemporaryFailure("the answer is not complete JSON") from error

    def _parts(self, response: httpx.Response) -> Iterator[bytes]:
        """Yield the parts of an answer; raises as `_send` if it is not complete in time, or too long."""
        deadline, length = time.monotonic() + self._settings.timeout, 0
        for part in response.iter_bytes():
            length += len(part)
            # httpx limits the time between two parts, so a server that sends single bytes never ends.
            if time.monotonic() > deadline:
                raise _TemporaryFailure(f"no complete answer within {self._settings.timeout:g} s")
            if length > _LONGEST_ANSWER:
                raise EngineError(f"{self._address}: the answer exceeds {_LONGEST_ANSWER} bytes")
            yield part

    def _refuse(self, response: httpx.Response, content: bytes) -> NoReturn:
        status = response.status_code
        if status in _TEMPORARY or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise _TemporaryFailure(f"HTTP {status}", _retry_after(response.headers.get("Retry-After")))
        reason = _error_message(content)
        if self._key:
            reason = reason.replace(self._key, "…")  # some servers repeat a wrong key
        hint = f"set {self._settings.key_variable}" if status in (401, 403) else None
        raise EngineError(f"{self._address}: HTTP {status}{f': {reason}' if reason else ''}", hint=hint)

    def close(self) -> None:
        """Close the connections."""
        self._stopped.set()
        self._client.close()


def _parse_answer(answer: Any) -> tuple[str, int, str]:  # noqa: ANN401  # JSON
    """Return an answer's text, number of tokens and finish reason.

    Raises:
        _TemporaryFailure: a field is missing or has the wrong type.
    """
    try:
        [choice] = answer["choices"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        # A model whose whole output is in a field for reasoning has no content.
        text = "".join(["" if text is None else text])  # TypeError if it is no text
        # JSON can escape half of a surrogate pair, of which no file of rows has a form.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text, _count_tokens(answer.get("usage"), text), str(choice["finish_reason"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _TemporaryFailure("the answer is not that of an OpenAI-compatible server") from error


def _parse_event(event: Any, address: str) -> tuple[str, int, str | None]:  # noqa: ANN401  # JSON
    """Return the text of an event, the number of tokens if it has one, and the finish reason if it has one.

    Raises:
        EngineError: the server reports an error, or a field is missing or has the wrong type.
    """
    try:
        if "error" in event:
            raise EngineError(f"{address}: the server failed: {_error_message(json.dumps(event).encode())}")
        text, finish = "", None
        for choice in event.get("choices", ()):
            part = choice["delta"].get("content") if "delta" in choice else choice["text"]
            text += part or ""
            finish = choice.get("finish_reason") or finish
        usage = event.get("usage")
        return text, 0 if usage is None else _count_tokens(usage, ""), finish
    except (KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{address}: an event is not that of an OpenAI-compatible server") from error


def _count_tokens(usage: object, text: str) -> int:
    """Return the number of tokens that a server counts; the number of words if it counts none."""
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return tokens if type(tokens) is int and tokens >= 0 else len(text.split())


def _parse_models(answer: Any) -> list[str]:  # noqa: ANN401  # JSON
    try:
        return [str(model["id"]) for model in answer["data"]]
    except (KeyError, TypeError) as error:
        raise _TemporaryFailure("the list of models is not that of an OpenAI-compatible server") from error


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a `Retry-After` header asks for, a number or a date; None if there is none."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _error_message(content: bytes) -> str:
    """Return the message of an error in OpenAI's form, or the beginning of any other text; one line."""
    try:
        error = json.loads(content)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        text = content.decode(errors="replace")
    return " ".join(str(text).split())[:300]
