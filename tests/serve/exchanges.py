"""Exchanges for the tests of the log."""

import itertools
import time
from typing import Any

from meditron.serve.state import Exchange, PromptUse

_numbers = itertools.count(1)
VERSION = "ab" * 32


def exchange(**changes: Any) -> Exchange:
    """Return a served request with content."""
    number = next(_numbers)
    values: dict[str, Any] = {
        "id": f"request-{number:06}",
        "started": time.time(),
        "seconds": 1.5,
        "endpoint": "/v1/chat/completions",
        "model": "tiny",
        "person": "local",
        "status": 200,
        "first_token_seconds": 0.25,
        "input_tokens": 20,
        "output_tokens": 5,
        "finish": "stop",
        "sampling": {"temperature": 0.7, "max_tokens": 64},
        "messages": [{"role": "user", "content": "What is sepsis?"}],
        "answers": ("An overwhelming reaction to an infection.",),
    }
    return Exchange(**values | changes)


def prompted(name: str = "triage", version: str = VERSION, **changes: Any) -> Exchange:
    """Return a served request with a stored prompt."""
    return exchange(prompt=PromptUse(name=name, version=version, label="production"), **changes)
