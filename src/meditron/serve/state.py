"""Types that the parts of the server share: models, calls, pieces of answers, finished exchanges."""

import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from meditron.core.console import warn
from meditron.serve.config import ServeConfig
from meditron.store.people import People
from meditron.text.chat import Message

if TYPE_CHECKING:
    from meditron.serve.records import Records

__all__ = [
    "ChatCall",
    "ChatPiece",
    "ChatSource",
    "Exchange",
    "ModelInfo",
    "PromptUse",
    "ServeState",
    "new_request_id",
]


def new_request_id() -> str:
    """Return a random id of a request."""
    return f"gen-{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model that the server offers. Fields that are not known are None."""

    id: str
    """Name in the API."""
    state: Literal["unloaded", "loading", "ready", "failed"] = "ready"
    path: str | None = None
    """The MODEL it was started with."""
    quantization: str | None = None
    """Type of the GGUF file, such as Q4_K_M."""
    sha256: str | None = None
    base_model: str | None = None
    knowledge_cutoff: str | None = None
    """Date of the newest document of the corpora that the model's ancestry record names, ISO 8601 as precise
    as known. The base model's own training data may be newer."""
    context: int | None = None
    has_chat_template: bool = True
    """False for a base model, which gets the one-shot medical prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptUse:
    """The version of a stored prompt that a call was made with."""

    name: str
    version: str
    """The version's hash."""
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """One answer that a part of the server asks a model for."""

    model: str
    messages: Sequence[Message]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Settings by their OpenAI names: `temperature`, `top_p`, `max_tokens`, `stop`, `seed`, …"""
    person: str = "local"
    """Name of the person or key that asks."""
    endpoint: str = "chat"
    """What asks: an API path, `chat`, `replay` or `review`."""
    prompt: PromptUse | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    id: str = field(default_factory=new_request_id)
    """Id of the request in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPiece:
    """A piece of an answer. The last one has a finish reason and the numbers of tokens."""

    text: str = ""
    finish: Literal["stop", "length", "cancelled"] | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class ChatSource(Protocol):
    """The models behind the server."""

    def list_models(self) -> Sequence[ModelInfo]:
        """Return every model, loaded or not, in the order of the command line."""
        ...

    def stream(self, call: ChatCall) -> AsyncIterator[ChatPiece]:
        """Yield the answer to a call while it is generated.

        Closing the iterator cancels the generation and frees its slot. The exchange is reported to the
        observers by the source itself.

        Raises:
            UsageError: there is no such model, or the messages or settings are invalid.
            EngineError: the model's process died, the queue is full, or the time is over.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A finished request to a model: what the log, the audit and the metrics are made from."""

    id: str
    started: float
    """Seconds since 1970."""
    seconds: float
    endpoint: str
    model: str
    person: str
    status: int
    """HTTP status; 499 if the client went away."""
    first_token_seconds: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish: str | None = None
    error: str | None = None
    model_sha256: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    prompt: PromptUse | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    messages: Sequence[Message] | str | None = None
    """Content of the request, which is stored only if the user asks for it."""
    answers: tuple[str, ...] = ()
    """Content of the answers, which is stored only if the user asks for it."""


@dataclass(slots=True, kw_only=True)
class ServeState:
    """State that every route can use: `request.app.state.serve`."""

    config: ServeConfig
    models: ChatSource
    data: Path
    """Folder of the server's data; it exists."""
    people: People
    observers: list[Callable[[Exchange], None]] = field(default_factory=list)
    """Called after every exchange, from the event loop's thread; they must return at once."""

    records: "Records | None" = None
    """Stored prompts and logs, open while the server runs."""

    def report(self, exchange: Exchange) -> None:
        """Tell the observers about a finished exchange. A failing observer never fails the request."""
        for observer in self.observers:
            try:
                observer(exchange)
            except Exception as error:  # a full disk of the log must not stop the server
                warn(f"a request was served but not recorded: {error}")
