"""`meditron serve`: an OpenAI-compatible server and a chat page in front of models."""

import sys
from typing import Annotated, Any

from cyclopts import Parameter

from meditron.cli.options import Json, flags_from, print_json, validate_settings
from meditron.core.console import info
from meditron.core.disclaimer import DISCLAIMER

__all__ = ["serve"]


@flags_from(
    "serve",
    {
        "Address and access": ("host", "port", "api_key_file", "origins", "allowed_hosts"),
        "Model": ("slots", "context", "threads", "gpu_layers", "idle_minutes"),
        "Sampling": ("temperature", "repeat_penalty"),
        "Limits": ("queue", "queue_seconds", "request_seconds", "max_tokens", "max_choices", "max_body"),
        "Data": ("data", "prompts", "log_content", "retention_days", "otlp"),
    },
    names={"origins": "--origin", "allowed_hosts": "--allowed-host"},
)
def serve(
    *models: Annotated[
        str, Parameter(help="MODELs in GGUF: a run's quantize stage, a .gguf file, hf:…, pypi:….")
    ],
    upstream: Annotated[
        str | None,
        Parameter(
            help="Address of an OpenAI-compatible server, such as vLLM's http://host:8000/v1, whose models "
            "are served too. Its key is read from MEDITRON_API_KEY."
        ),
    ] = None,
    as_json: Json = False,
    **settings: Any,  # noqa: ANN401  # keys of the server's settings
) -> int:
    """Serve models over OpenAI's API, with a chat page.

    The server answers at once and loads the first model in the background; further models are loaded by their
    first request. SIGTERM or Ctrl-C lets running requests finish; a second one ends them. With --json the
    address and the models are printed as one object when the server answers.

    For example:

        meditron serve runs/quickstart/quantize:Q4_K_M --port 8000
    """
    from meditron.serve.config import ServeConfig
    from meditron.serve.run import run_server

    config: ServeConfig = validate_settings(
        ServeConfig, settings, names={"origins": "--origin", "allowed_hosts": "--allowed-host"}
    )

    def announce(url: str, names: list[str]) -> None:
        info(f"Open {url}")
        if as_json:
            print_json({"url": url, "models": names})
            sys.stdout.flush()

    info(DISCLAIMER)
    return run_server(models, config, announce, upstream=upstream)
