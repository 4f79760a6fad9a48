"""Bodies of requests. The OpenAPI document is generated from these classes.

Unknown fields are refused, so that a misspelt one is not ignored. Fields of OpenAI's API that have no effect
on the answer are accepted.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from meditron.serve.errors import RequestError
from meditron.text.chat import Message

__all__ = [
    "ChatMessage",
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "EmbeddingRequest",
    "PromptReference",
    "ResponseFormat",
    "ResponsesRequest",
    "SamplingFields",
    "TokenizeRequest",
    "parse_request",
]

_MAX_MESSAGES = 4096
_MAX_INPUTS = 2048  # OpenAI's limit of texts to embed
_MAX_IDS = 1 << 20
Tags = Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=16)]
T = TypeVar("T", bound="Body")
StopString = Annotated[str, Field(min_length=1, max_length=256)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=_MAX_IDS)]
Text = Annotated[str, Field(min_length=1)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class Body(BaseModel):
    """A request's body: JSON types are not converted, unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class JsonSchema(Body):
    """A named JSON schema."""

    name: str = Field(default="schema", max_length=64)
    json_schema: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def schema_to_follow(self) -> dict[str, Any] | None:
        """The JSON schema that constrains the answer; None for text."""
        if self.type == "json_schema":
            if self.json_schema is None:
                raise RequestError("response_format needs json_schema", param="response_format.json_schema")
            return self.json_schema.json_schema
        return {"type": "object"} if self.type == "json_object" else None


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool = False
    """Send the numbers of tokens in a last chunk."""
    include_obfuscation: bool | None = None


class PromptReference(Body):
    """A stored prompt: its name, and a label or a version. A name alone stands for production, or latest."""

    name: str = Field(max_length=64)
    label: str | None = Field(default=None, max_length=64)
    version: str | None = Field(default=None, max_length=64)
    """Hash of the version, or its first digits."""
    variables: dict[str, str] = Field(default_factory=dict, max_length=256)
    """Values of the prompt's variables."""

    @property
    def reference(self) -> str:
        """`NAME`, `NAME@LABEL` or `NAME@HASH`; RequestError if it has both."""
        if self.label is not None and self.version is not None:
            raise RequestError("a prompt has a label or a version, and not both", param="prompt")
        chosen = self.label if self.version is None else self.version
        return self.name if chosen is None else f"{self.name}@{chosen}"


class Ignored(Body):
    """Fields of OpenAI's API without an effect here, and fields that are refused with a reason."""

    user: str | None = None
    store: bool | None = None
    service_tier: str | None = None
    parallel_tool_calls: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: list[Any] | None = None
    """Tools are not supported: the list must be empty."""

    @field_validator("tools")
    @classmethod
    def _refuse_tools(cls, tools: list[Any] | None) -> list[Any] | None:
        if tools:
            raise ValueError("tools are not supported")
        return tools


class SamplingFields(Ignored):
    """Sampling settings and other fields that several requests share."""

    model: str
    """Id of a model of `/v1/models`."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Sampling temperature; 0 = greedy decoding. Default: the server's."""
    top_p: float | None = Field(default=None, ge=0, le=1)
    """Sample from the smallest set of most likely tokens with this total probability."""
    top_k: int | None = Field(default=None, ge=-1)
    """Sample from the k most likely tokens; 0 or -1 = all."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Sample from the tokens with at least this share of the probability of the likeliest one."""
    repeat_penalty: float | None = Field(
        default=None, gt=0, le=2, validation_alias=AliasChoices("repeat_penalty", "repetition_penalty")
    )
    """Penalty of tokens among the last 64; 1 = none. Default: the server's."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, max_length=1024
    )
    """Token id → number added to its logit."""
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    """Random seed. Answer i of `n` gets seed + i. Default: a random one."""
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    """Texts before which an answer ends."""
    max_tokens: int | None = Field(default=None, ge=-1)
    """Largest number of tokens of an answer; -1 = what the context holds. The server's limit applies."""
    n: int | None = Field(default=None, ge=1)
    """Number of answers."""
    stream: bool | None = None
    """Send the answer as server-sent events while it is generated."""
    stream_options: StreamOptions | None = None
    metadata: Metadata | None = None
    """Up to 16 pairs of text for the request log."""
    tags: Tags | None = None
    """Up to 16 words for the request log."""

    @field_validator("max_tokens")
    @classmethod
    def _refuse_zero(cls, tokens: int | None) -> int | None:
        if tokens == 0:
            raise ValueError("must be at least 1, or -1 for what the context holds; got 0")
        return tokens

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class TextPart(Body):
    """A part of a message's content. Only text is supported."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class ChatMessage(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None
    refusal: str | None = None

    def plain(self) -> Message:
        """Return the message with its content as one text. A developer's message is the system's."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(SamplingFields):
    """Body of `POST /v1/chat/completions`."""

    prompt: PromptReference | None = None
    """Stored prompt whose messages come before the request's."""
    messages: list[ChatMessage] = Field(default_factory=list, min_length=1, max_length=_MAX_MESSAGES)
    """The conversation. It may be absent if a stored prompt ends with a question."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The same as `max_tokens`."""
    logprobs: bool | None = None
    """Return the log-probability of each token."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """Number of likeliest tokens to return with each token; needs `logprobs`."""
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None


class CompletionRequest(SamplingFields):
    """Body of `POST /v1/completions`: continue a text without the chat template."""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=_MAX_INPUTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=_MAX_INPUTS)]
    )
    """One or several texts or lists of token ids. Names of control tokens in a text are read as text."""
    echo: bool | None = None
    """Return the prompt before its continuation."""
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """Return the log-probabilities of the generated tokens, and this many likeliest tokens at each."""
    best_of: int | None = Field(default=None, ge=1)
    """The same as `n`, if it is given."""
    suffix: None = None
    response_format: ResponseFormat | None = None

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts as a list."""
        prompt = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return [prompt]
        return prompt


class EmbeddingRequest(Body):
    """Body of `POST /v1/embeddings`."""

    model: str
    input: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=_MAX_INPUTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=_MAX_INPUTS)]
    )
    """One or several texts or lists of token ids."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None
    user: str | None = None

    @property
    def inputs(self) -> Sequence[str | list[int]]:
        """The texts as a list."""
        value = self.input
        if isinstance(value, str) or isinstance(value[0], int):
            return [value]
        return value


class TokenizeRequest(Body):
    """Body of `POST /tokenize`: a text, or a conversation in the model's chat template."""

    model: str | None = None
    """Default: the first model."""
    content: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=_MAX_MESSAGES)


class DetokenizeRequest(Body):
    """Body of `POST /detokenize`."""

    model: str | None = None
    """Default: the first model."""
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(max_length=_MAX_IDS)]


class TextFormat(Body):
    """The form of a response's text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "schema"
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = None

    @property
    def schema_to_follow(self) -> dict[str, Any] | None:
        """The JSON schema that constrains the text; None for any text."""
        if self.type == "json_schema" and self.json_schema is None:
            raise RequestError("text.format needs schema", param="text.format.schema")
        return {"type": "object"} if self.type == "json_object" else self.json_schema


class TextSettings(Body):
    """Settings of a response's text."""

    format: TextFormat = TextFormat()
    verbosity: str | None = None


class InputMessage(ChatMessage):
    """A message of a response's input."""

    type: Literal["message"] = "message"
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class ResponsesRequest(Ignored):
    """Body of `POST /v1/responses`: text or messages in, one message out; nothing is stored."""

    model: str
    input: Text | Annotated[list[InputMessage], Field(min_length=1, max_length=_MAX_MESSAGES)]
    instructions: str | None = None
    """System prompt."""
    prompt: PromptReference | None = None
    """Stored prompt whose messages come before the input."""
    tags: Tags | None = None
    """Up to 16 words for the request log."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    stream: bool | None = None
    text: TextSettings = TextSettings()
    metadata: Metadata | None = None
    truncation: Literal["disabled", "auto"] | None = None
    include: list[str] | None = Field(default=None, max_length=0)
    background: Literal[False] | None = None
    previous_response_id: str | None = None
    """Not supported: send the whole conversation as `input`."""

    @field_validator("previous_response_id")
    @classmethod
    def _refuse_reference(cls, reference: str | None) -> str | None:
        if reference is not None:
            raise ValueError("responses are not stored; send the whole conversation as input")
        return reference


def parse_request(kind: type[T], body: bytes | Mapping[str, Any]) -> T:
    """Return a request's body as an object.

    Raises:
        RequestError: it is not JSON, or a field is unknown or has a wrong type or value.
    """
    try:
        return kind.model_validate(body) if isinstance(body, Mapping) else kind.model_validate_json(body)
    except ValidationError as error:
        raise RequestError.from_validation(error) from error
