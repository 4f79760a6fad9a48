"""Settings of `meditron serve`."""

from pathlib import Path

from pydantic import Field

from meditron.core.config import Config

__all__ = ["ServeConfig"]


class ServeConfig(Config):
    """Settings of a server. Every limit has a default that is safe on a shared machine."""

    host: str = "127.0.0.1"
    """Address to listen on. Other addresses than those of this machine itself need an API key."""
    port: int = Field(default=8000, ge=0, lt=1 << 16)
    """Port to listen on; 0 = any free port."""
    api_key_file: Path | None = None
    """File with the API keys: one key on a line of its own, or people with roles in TOML."""
    origins: tuple[str, ...] = ()
    """Web origins whose pages may call the API (CORS), such as `https://example.org`. Default: none."""
    allowed_hosts: tuple[str, ...] = ()
    """Further host names under which the server may be reached, besides its own address."""
    data: Path | None = None
    """Folder of conversations, prompts, logs and reviews. Default: `$XDG_DATA_HOME/meditron`."""
    prompts: Path | None = None
    """Folder of stored prompts. Default: `prompts` in the folder of data."""
    slots: int = Field(default=4, ge=1, le=64)
    """Requests that a model decodes at the same time."""
    context: int | None = Field(default=None, ge=1)
    """Context length in tokens, shared by the slots. Default: the model's, limited by memory."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a model. Default: all cores."""
    gpu_layers: int = Field(default=-1, ge=-1)
    """Layers in GPU memory; -1 = all that fit."""
    idle_minutes: float = Field(default=15.0, gt=0)
    """Minutes without a request after which a model is unloaded."""
    queue: int = Field(default=64, ge=0)
    """Requests of a model that wait for a slot; further ones are refused with status 429."""
    queue_seconds: float = Field(default=60.0, gt=0)
    """Longest wait for a slot."""
    request_seconds: float = Field(default=600.0, gt=0)
    """Longest time of a request once it has a slot."""
    max_tokens: int = Field(default=4096, ge=1)
    """Largest number of tokens that a request may ask for; also used if it asks for no number."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Sampling temperature of requests that set none; 0 = greedy decoding."""
    repeat_penalty: float = Field(default=1.0, gt=0, le=2)
    """Repeat penalty of requests that set none; 1 = none."""
    max_choices: int = Field(default=8, ge=1)
    """Largest number of answers (`n`) of a request."""
    max_body: int = Field(default=4 << 20, ge=1 << 10)
    """Largest request body in bytes."""
    log_content: bool = False
    """Store the text of requests and answers in the request log."""
    otlp: str | None = Field(default=None, pattern=r"^https?://\S+$")
    """OTLP endpoint that gets each request as an OpenTelemetry span, such as
    `http://localhost:4318/v1/traces`."""
    retention_days: float | None = Field(default=90.0, gt=0)
    """Days after which entries of the request log are deleted; none = never."""
