"""A GGUF file behind the server: its facts, and the life of its llama.cpp processes.

The process is started by the first request, or at the server's start for the first model, and ends when the
model has been idle. If it dies, requests in flight fail and the next request starts another.
"""

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import TypeVar

from gguf import LlamaFileType

from meditron.core.console import info
from meditron.core.errors import EngineError, MeditronError, MissingExtra, UsageError
from meditron.engine.llamacpp import main_type, shared_context
from meditron.engine.llamacpp_process import LlamaServerProcess
from meditron.engine.llamacpp_server import EMBEDDING_TOKENS
from meditron.model.presets import model_tokenizer
from meditron.serve.config import ServeConfig
from meditron.serve.errors import RequestError
from meditron.serve.generation import GenerationRequest, Piece
from meditron.serve.llamacpp_client import LlamaClient
from meditron.serve.local_generation import encode_prompt, generate_pieces
from meditron.serve.reservation import Reservations
from meditron.serve.state import ModelInfo
from meditron.store.ancestry import read_ancestry
from meditron.store.checksums import read_checksums
from meditron.store.gguf import GGUF
from meditron.store.gguf_parts import split_stem
from meditron.store.models import ModelFiles, resolve_model
from meditron.text.chat import Message
from meditron.text.tokenizer import Tokenizer

__all__ = ["LocalModel"]

_RETRY_SECONDS = 5.0  # a model that cannot be loaded is not loaded again by every request
T = TypeVar("T")


class LocalModel:
    """A GGUF file that llama.cpp runs in child processes of the server."""

    def __init__(self, spec: str, config: ServeConfig) -> None:
        """Read the file's metadata.

        Raises:
            UsageError: the MODEL is not a GGUF file.
            SourceError, InputError: there is no such file, or it is damaged.
            MissingExtra: xllamacpp is not installed.
        """
        if find_spec("xllamacpp") is None:
            raise MissingExtra("xllamacpp", "llamacpp")
        self._files = resolve_model(spec)
        if self._files.kind != "gguf":
            raise UsageError(
                f"{spec}: the server runs GGUF files only", hint=f"meditron convert {spec} model.gguf"
            )
        path = self._files.path
        with GGUF(path) as gguf:
            self._context, self._shared = shared_context(gguf.metadata, path, config.context, config.slots)
            self._reservations = Reservations(config.slots, self._shared)
            has_template = "tokenizer.chat_template" in gguf.metadata
            quantization = _file_type(gguf)
        ancestry = read_ancestry(self._files)
        self._config = config
        self._info = ModelInfo(
            id=split_stem(path) or path.stem,
            state="unloaded",
            path=self._files.spec,
            quantization=quantization,
            base_model=ancestry.base if ancestry else None,
            knowledge_cutoff=ancestry.newest_date if ancestry else None,
            context=self._context,
            has_chat_template=has_template,
        )
        self._client: LlamaClient | None = None
        self._embedder: LlamaClient | None = None
        self._tokenizer: Tokenizer | None = None
        self._loading: asyncio.Task[LlamaClient] | None = None
        self._embedder_lock = asyncio.Lock()
        self._failure: tuple[float, MeditronError] | None = None
        self._requests = 0
        self._last_used = time.monotonic()

    @property
    def info(self) -> ModelInfo:
        """Description of the model, and its state."""
        return self._info

    def rename(self, name: str) -> None:
        """Change the model's id."""
        self._info = replace(self._info, id=name)

    async def prepare(self) -> None:
        """Load the model, if it is not loaded. Raises the errors of `generate`."""
        await self._load()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece]:
        """Yield the pieces of the answers while they are generated. Closing the iterator cancels them.

        Raises:
            UsageError: the prompt is too long, or a setting is invalid.
            InputError: the chat template fails, or llama.cpp does not run the file.
            EngineError: the process died while it answered.
        """
        with self._in_use():
            pieces = generate_pieces(
                request,
                connect=self._load,
                tokenizer=await self._load_tokenizer(),
                reservations=self._reservations,
                context=self._context,
            )
            async with aclosing(pieces):
                async for piece in pieces:
                    yield piece

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> tuple[list[list[float]], int]:
        """Return the embedding of each text, and the number of tokens of all of them.

        Raises:
            UsageError: a text is too long.
            EngineError: the process died.
        """
        with self._in_use():
            tokenizer = await self._load_tokenizer()
            ids = await asyncio.to_thread(
                lambda: [tokenizer.encode(text) if isinstance(text, str) else list(text) for text in inputs]
            )
            limit = min(self._context, EMBEDDING_TOKENS)
            for number, each in enumerate(ids):
                _check_ids(tokenizer, each)
                if len(each) > limit:
                    raise RequestError(
                        f"input {number} has {len(each)} tokens; at most {limit} are embedded",
                        param="input",
                        code="context_length_exceeded",
                    )
            client = await self._load_embedder()
            return await client.embed(ids), sum(map(len, ids))

    async def tokenize(self, prompt: str | Sequence[Message]) -> list[int]:
        """Return the token ids of a text or of a conversation that is to be answered."""
        tokenizer = await self._load_tokenizer()
        messages, text = (None, prompt) if isinstance(prompt, str) else (prompt, None)
        return await asyncio.to_thread(encode_prompt, tokenizer, messages, text)  # megabytes take seconds

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        tokenizer = await self._load_tokenizer()
        _check_ids(tokenizer, ids)
        return await asyncio.to_thread(tokenizer.decode, ids, skip_special=False)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            self._last_used = time.monotonic()

    async def unload_if_idle(self, seconds: float) -> None:
        """End the processes if there was no request for some seconds."""
        running = self._client is not None or self._embedder is not None
        if running and not self._requests and time.monotonic() - self._last_used >= seconds:
            await self.unload()
            info(f"{self._info.id}: unloaded after {seconds / 60:g} minutes without a request")

    async def unload(self) -> None:
        """End the processes."""
        clients = self._client, self._embedder
        self._client = self._embedder = None
        if self._info.state != "failed":
            self._info = replace(self._info, state="unloaded")
        for client in clients:
            if client is not None:
                await client.close()

    async def _load(self) -> LlamaClient:
        """Return the running process; start it if there is none or it has died."""
        if self._client is not None and self._client.alive:
            return self._client
        if self._loading is None:
            self._raise_recent_failure()
            self._loading = asyncio.create_task(self._start())
            self._loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        # One load for all who wait; the end of one of them does not end it.
        return await asyncio.shield(self._loading)

    async def _start(self) -> LlamaClient:
        self._info = replace(self._info, state="loading")
        try:
            if self._client is not None:
                await self._client.close()
                self._client = None
            await self._load_tokenizer()
            client = LlamaClient(await _in_daemon_thread(self._start_process))
        except MeditronError as error:
            self._failure = (time.monotonic(), error)
            self._info = replace(self._info, state="failed")
            raise
        finally:
            self._loading = None
        self._client = client
        self._last_used = time.monotonic()
        self._info = replace(self._info, state="ready")
        return client

    async def _load_embedder(self) -> LlamaClient:
        """Return the process for embeddings. llama.cpp generates no text in such a process."""
        async with self._embedder_lock:
            if self._embedder is None or not self._embedder.alive:
                if self._embedder is not None:
                    await self._embedder.close()
                self._embedder = LlamaClient(await _in_daemon_thread(self._start_embedder))
            return self._embedder

    async def _load_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = await asyncio.to_thread(model_tokenizer, self._files)
        return self._tokenizer

    def _raise_recent_failure(self) -> None:
        if self._failure is not None and time.monotonic() - self._failure[0] < _RETRY_SECONDS:
            raise self._failure[1]

    def _start_process(self) -> LlamaServerProcess:
        return LlamaServerProcess(
            self._files.path,
            context=self._shared,
            slots=self._config.slots,
            threads=self._config.threads,
            gpu_layers=self._config.gpu_layers,
        )

    def _start_embedder(self) -> LlamaServerProcess:
        return LlamaServerProcess(
            self._files.path,
            context=min(self._context, EMBEDDING_TOKENS),
            slots=1,
            threads=self._config.threads,
            gpu_layers=self._config.gpu_layers,
            embeddings=True,
        )

    async def find_sha256(self) -> None:
        """Look up or compute the SHA-256 of the file for `info`; a split model has none."""
        if split_stem(self._files.path) is None:
            digest = await _in_daemon_thread(lambda: _sha256(self._files))
            self._info = replace(self._info, sha256=digest)


def _check_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    """Raise RequestError for an id outside of the vocabulary, which would end llama.cpp's process."""
    if ids and max(ids) >= tokenizer.vocab_size:
        raise RequestError(
            f"token id {max(ids)} is outside of the vocabulary of {tokenizer.vocab_size} tokens"
        )


def _file_type(gguf: GGUF) -> str:
    """Return llama.cpp's name of a file's mix of types, or its main tensor type if it names no mix."""
    try:
        name = str(LlamaFileType(gguf.metadata.get("general.file_type")).name)
    except ValueError:
        return main_type(gguf)
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def _sha256(files: ModelFiles) -> str:
    if digest := read_checksums(files.path.parent).get(files.path.name):
        return digest
    with files.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _in_daemon_thread(work: Callable[[], T]) -> T:
    """Run work that may take minutes in a thread that does not delay the end of this process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(lambda: None if done.done() else outcome())
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def run() -> None:
        try:
            result = work()
        except Exception as error:
            failure = error if isinstance(error, MeditronError) else EngineError(f"{error}")
            settle(lambda: done.set_exception(failure))
        else:
            settle(lambda: done.set_result(result))

    threading.Thread(target=run, daemon=True).start()
    return await done
