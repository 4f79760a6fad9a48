"""The models of a server: lookup, admission, time limits, and a record of each request."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Any

from meditron.core.console import warn
from meditron.core.errors import MeditronError, UsageError
from meditron.serve.config import ServeConfig
from meditron.serve.errors import CLIENT_CLOSED_REQUEST, RequestError, TimeLimitError, error_body
from meditron.serve.generation import GenerationRequest, Piece, chat_generation
from meditron.serve.limits import Limits
from meditron.serve.local_model import LocalModel
from meditron.serve.schemas import ChatRequest, parse_request
from meditron.serve.state import ChatCall, ChatPiece, Exchange, ModelInfo, PromptUse, new_request_id
from meditron.serve.upstream import Upstream, UpstreamModel
from meditron.text.chat import Message

__all__ = ["ModelPool", "Origin"]

_CHECK_SECONDS = 30.0  # largest interval of looks for idle models
_RETRY_SECONDS = 5.0  # between attempts to reach the other server, which may start later than this one
_OK = 200
Model = LocalModel | UpstreamModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who asks for a generation, and from where; for the record of the request."""

    endpoint: str
    person: str = "local"
    prompt: PromptUse | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """The settings as the client gave them."""
    id: str = field(default_factory=new_request_id)
    """Id of the request in the log."""


@dataclass(slots=True)
class _Record:
    """Measurements of a request while it runs."""

    started: float = field(default_factory=time.time)
    start: float = field(default_factory=time.monotonic)
    first: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish: str | None = None
    status: int = _OK
    error: str | None = None
    answers: dict[int, list[str]] = field(default_factory=dict)

    def add(self, piece: Piece) -> None:
        if self.first is None:
            self.first = time.monotonic() - self.start
        self.answers.setdefault(piece.index, []).append(piece.text)
        if piece.finish is not None:
            self.finish = piece.finish
            self.input_tokens = piece.input_tokens
            self.output_tokens = (self.output_tokens or 0) + (piece.output_tokens or 0)

    def fail(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self.status, self.finish = CLIENT_CLOSED_REQUEST, "cancelled"
        elif isinstance(error, Exception):
            self.status, body = error_body(error)
            self.error = body["error"]["message"]


class ModelPool:
    """The models behind the server, as the `ChatSource` of its parts."""

    def __init__(
        self,
        models: Sequence[LocalModel],
        config: ServeConfig,
        *,
        upstream: Upstream | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._config, self._upstream, self._limits = config, upstream, limits
        self._models: dict[str, Model] = {}
        for model in models:
            _name_apart(model, self._models)
            self._models[model.info.id] = model
        self._local = tuple(models)
        self._upstream_listed = False
        self.report: Callable[[Exchange], None] = lambda exchange: None
        """Called with every finished request."""
        self.ready = False
        """True once a model was loaded, or the other server has listed its models."""

    def list_models(self) -> list[ModelInfo]:
        """See `ChatSource.list_models`."""
        return [model.info for model in self._models.values()]

    async def find(self, name: str | None) -> Model:
        """Return a model by its id; the first one for None.

        Raises:
            RequestError: there is no such model.
            EngineError: the other server does not answer.
        """
        if name not in self._models and self._upstream is not None:
            await self._list_upstream()
        if name is None and self._models:
            return next(iter(self._models.values()))
        if name in self._models:
            return self._models[name]
        raise RequestError(
            f"the model {name!r} does not exist",
            status=404,
            param="model",
            code="model_not_found",
            hint=f"models: {', '.join(self._models) or 'none'}",
        )

    async def generate(self, request: GenerationRequest, origin: Origin) -> AsyncGenerator[Piece]:
        """Yield the pieces of the answers to a request. Closing the iterator cancels it.

        Raises:
            UsageError: there is no such model, or the request is invalid.
            EngineError: the model's process died, the queue is full, or the time is over.
        """
        record = _Record()
        sha256 = None
        try:
            model = await self.find(request.model)
            sha256 = model.info.sha256
            async with self._admitted(request.model), aclosing(model.generate(request)) as pieces:
                await self._prepare(model)
                deadline = asyncio.get_running_loop().time() + self._config.request_seconds
                while (piece := await _next_before(deadline, pieces, self._config)) is not None:
                    record.add(piece)
                    yield piece
        except BaseException as error:
            record.fail(error)
            raise
        finally:
            self.report(_exchange(request, origin, record, sha256))

    async def stream(self, call: ChatCall) -> AsyncGenerator[ChatPiece]:
        """See `ChatSource.stream`."""
        messages = [dict(message) for message in call.messages]
        body = parse_request(ChatRequest, {**call.sampling, "model": call.model, "messages": messages})
        request = replace(chat_generation(body, self._config), n=1)
        origin = Origin(
            endpoint=call.endpoint,
            person=call.person,
            prompt=call.prompt,
            tags=call.tags,
            metadata=call.metadata,
            sampling=call.sampling,
            id=call.id,
        )
        async with aclosing(self.generate(request, origin)) as pieces:
            async for piece in pieces:
                yield ChatPiece(
                    text=piece.text,
                    finish=piece.finish,
                    input_tokens=piece.input_tokens,
                    output_tokens=piece.output_tokens,
                )

    async def embed(
        self, name: str, inputs: Sequence[str | Sequence[int]], origin: Origin
    ) -> tuple[list[list[float]], int]:
        """Return the embedding of each text, and the number of tokens of all of them. See `generate`."""
        record, model = _Record(), None
        try:
            model = await self.find(name)
            async with self._admitted(name), asyncio.timeout(self._config.request_seconds):
                vectors, tokens = await model.embed(inputs)
        except TimeoutError:
            record.fail(error := _too_long(self._config))
            raise error from None
        except BaseException as error:
            record.fail(error)
            raise
        else:
            record.input_tokens = tokens
            return vectors, tokens
        finally:
            self.report(
                Exchange(
                    id=origin.id,
                    started=record.started,
                    seconds=time.monotonic() - record.start,
                    endpoint=origin.endpoint,
                    model=name,
                    person=origin.person,
                    status=record.status,
                    input_tokens=record.input_tokens,
                    error=record.error,
                    model_sha256=model.info.sha256 if model else None,
                )
            )

    async def tokenize(self, name: str | None, prompt: str | Sequence[Message]) -> list[int]:
        """Return the token ids of a text or of a conversation that is to be answered."""
        return await (await self.find(name)).tokenize(prompt)

    async def detokenize(self, name: str | None, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return await (await self.find(name)).detokenize(ids)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the first model and unload idle ones in the background; at the end unload all."""
        work = [self._load_first(), self._unload_idle(), *(model.find_sha256() for model in self._local)]
        if self._upstream is not None:
            work.append(self._reach_upstream())
        tasks = [asyncio.create_task(each) for each in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for model in self._local:
                await model.unload()
            if self._upstream is not None:
                await self._upstream.close()

    async def _load_first(self) -> None:
        if self._local:
            try:
                await self._prepare(self._local[0])
            except MeditronError as error:  # every request that needs the model reports it, too
                _warn_of(error)

    async def _prepare(self, model: Model) -> None:
        """Load a local model before the time of its request begins."""
        if isinstance(model, LocalModel):
            await model.prepare()
            self.ready = True

    async def _reach_upstream(self) -> None:
        """List the models of the other server as soon as it answers."""
        warned = False
        while not self._upstream_listed:
            try:
                await self._list_upstream()
            except MeditronError as error:
                if not warned:
                    _warn_of(error)
                warned = True
                await asyncio.sleep(_RETRY_SECONDS)

    async def _unload_idle(self) -> None:
        seconds = 60 * self._config.idle_minutes
        while True:
            await asyncio.sleep(min(seconds / 4, _CHECK_SECONDS))
            for model in self._local:
                await model.unload_if_idle(seconds)

    async def _list_upstream(self) -> None:
        assert self._upstream is not None  # noqa: S101  # the caller has checked it
        for model in await self._upstream.list_models():
            self._models.setdefault(model.info.id, model)
        self._upstream_listed = True
        self.ready = self.ready or not self._local

    async def refresh(self) -> None:
        """List the models of the other server, if there is one and it has not been reached yet."""
        if self._upstream is not None and not self._upstream_listed:
            with suppress(MeditronError):
                await self._list_upstream()

    @asynccontextmanager
    async def _admitted(self, model: str) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if self._limits is not None:
                await stack.enter_async_context(self._limits.admit(model))
            yield


def _warn_of(error: MeditronError) -> None:
    warn(f"{error.message}" + (f" ({error.hint})" if error.hint else ""))


def _name_apart(model: LocalModel, others: Mapping[str, Model]) -> None:
    """Append a number to an id that another model has; raise UsageError for the same model."""
    if any(other.info.path == model.info.path for other in others.values()):
        raise UsageError(f"{model.info.path}: the same model is given twice")
    name = model.info.id
    taken = (f"{name}-{number}" for number in count(2))
    model.rename(next(each for each in chain([name], taken) if each not in others))


async def _next_before(deadline: float, pieces: AsyncIterator[Piece], config: ServeConfig) -> Piece | None:
    """Return the next piece, or None at the end; TimeLimitError after the deadline."""
    try:
        async with asyncio.timeout_at(deadline):
            return await anext(pieces, None)
    except TimeoutError:
        raise _too_long(config) from None


def _too_long(config: ServeConfig) -> TimeLimitError:
    return TimeLimitError(f"the request took longer than {config.request_seconds:g} s")


def _exchange(request: GenerationRequest, origin: Origin, record: _Record, sha256: str | None) -> Exchange:
    text = request.text
    content = request.messages if text is None else text if isinstance(text, str) else None
    return Exchange(
        id=origin.id,
        started=record.started,
        seconds=time.monotonic() - record.start,
        endpoint=origin.endpoint,
        model=request.model,
        person=origin.person,
        status=record.status,
        first_token_seconds=record.first,
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        finish=record.finish,
        error=record.error,
        model_sha256=sha256,
        sampling=origin.sampling,
        prompt=origin.prompt,
        tags=origin.tags,
        metadata=origin.metadata,
        messages=content,
        answers=tuple("".join(parts) for _, parts in sorted(record.answers.items())),
    )
