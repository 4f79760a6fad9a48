"""The stored prompt of a request's messages."""

from collections.abc import Sequence

from starlette.requests import Request

from meditron.serve.errors import RequestError
from meditron.serve.state import PromptUse
from meditron.text.chat import Message

__all__ = ["PROMPT_HEADER", "apply_stored_prompt"]

PROMPT_HEADER = "X-Prompt"
"""Header that names a stored prompt."""


async def apply_stored_prompt(
    request: Request, messages: Sequence[Message]
) -> tuple[list[Message], PromptUse | None]:
    """Return a request's messages with the stored prompt that its header names, and the prompt's version.

    Raises:
        RequestError: there is no such prompt.
    """
    if PROMPT_HEADER in request.headers:
        raise RequestError(f"{PROMPT_HEADER}: this server has no stored prompts", param=PROMPT_HEADER)
    return list(messages), None
