"""A generation, independent of the API path that asks for it and of the backend that runs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from meditron.serve.config import ServeConfig
from meditron.serve.errors import RequestError
from meditron.serve.schemas import ChatRequest, CompletionRequest, SamplingFields
from meditron.text.chat import Message

__all__ = [
    "Finish",
    "GenerationRequest",
    "Piece",
    "Sampling",
    "TokenLogprob",
    "chat_generation",
    "completion_generations",
]

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Resolved sampling settings."""

    max_tokens: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt and the answers to generate."""

    model: str
    messages: Sequence[Message] | None = None
    """The conversation to answer; None for a text or ids to continue."""
    text: str | Sequence[int] | None = None
    """The text or the token ids to continue."""
    sampling: Sampling
    n: int = 1
    logprobs: int | None = None
    """Number of likeliest tokens to return with each token; None: no log-probabilities."""
    json_schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its log-probability before sampling, and the likeliest tokens at its place."""

    token: str
    logprob: float
    bytes: list[int]
    top: "tuple[TokenLogprob, ...]" = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of answer `index`. The last one of each answer has a finish reason and numbers of tokens."""

    index: int
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None


def _sampling(body: SamplingFields, max_tokens: int | None, config: ServeConfig) -> Sampling:
    """Fill in the server's defaults, and apply its limits."""
    if max_tokens is not None and max_tokens > config.max_tokens:
        raise RequestError(
            f"max_tokens must be at most {config.max_tokens}, got {max_tokens}", param="max_tokens"
        )
    try:
        bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    except ValueError as error:
        raise RequestError("logit_bias: keys are token ids", param="logit_bias") from error
    return Sampling(
        max_tokens=config.max_tokens if max_tokens in (None, -1) else max_tokens,
        temperature=config.temperature if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        repeat_penalty=config.repeat_penalty if body.repeat_penalty is None else body.repeat_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=body.seed,
        stop=body.stop_strings,
        logit_bias=bias,
    )


def _choices(n: int | None, prompts: int, config: ServeConfig) -> int:
    if (n or 1) * prompts > config.max_choices:
        got = f"{n or 1} for each of {prompts} prompts" if prompts > 1 else f"{n}"
        raise RequestError(f"n must be at most {config.max_choices}, got {got}", param="n")
    return n or 1


def chat_generation(body: ChatRequest, config: ServeConfig) -> GenerationRequest:
    """Return the generation for a chat request; RequestError for a value beyond a limit of the server."""
    if not body.messages and body.prompt is None:
        raise RequestError("messages: Field required", param="messages")
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs", param="top_logprobs")
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return GenerationRequest(
        model=body.model,
        messages=[message.plain() for message in body.messages],
        sampling=_sampling(body, limit, config),
        n=_choices(body.n, 1, config),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        json_schema=body.response_format.schema_to_follow if body.response_format else None,
    )


def completion_generations(body: CompletionRequest, config: ServeConfig) -> list[GenerationRequest]:
    """Return the generation for each prompt of a request; RequestError as in `chat_generation`."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise RequestError("best_of must be equal to n", param="best_of")
    if body.echo and body.logprobs is not None:
        raise RequestError(
            "log-probabilities of a prompt (echo with logprobs) are not supported",
            param="logprobs",
            hint="meditron evaluate scores texts",
        )
    n = _choices(body.n, len(body.prompts), config)
    schema = body.response_format.schema_to_follow if body.response_format else None
    return [
        GenerationRequest(
            model=body.model,
            text=prompt,
            sampling=_sampling(body, body.max_tokens, config),
            n=n,
            logprobs=body.logprobs,
            json_schema=schema,
        )
        for prompt in body.prompts
    ]
