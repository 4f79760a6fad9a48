"""The stored prompt of a request's messages."""

import asyncio
from collections.abc import Mapping, Sequence

from starlette.requests import Request

from meditron.core.errors import SourceError, UsageError
from meditron.serve.errors import RequestError
from meditron.serve.pages import state_of
from meditron.serve.records import records_of
from meditron.serve.schemas import PromptReference
from meditron.serve.state import PromptUse
from meditron.text.chat import Message

__all__ = ["apply_stored_prompt", "prompt_headers"]

_HEADER = "X-Meditron-Prompt"
_SYSTEM = ("system", "developer")


async def apply_stored_prompt(
    request: Request, reference: PromptReference | None, messages: Sequence[Message]
) -> tuple[list[Message], PromptUse | None]:
    """Return a request's messages after those of the stored prompt that it names, and the prompt's version.

    Raises:
        RequestError: there is no such prompt, a variable has no value, there is no message at all, or both
            the prompt and the request have a system text.
    """
    if reference is None:
        return list(messages), None
    try:
        store = records_of(state_of(request)).prompts
        stored = await asyncio.to_thread(store.find, reference.reference)
        first = stored.render(reference.variables)
    except UsageError as error:
        status = 404 if isinstance(error, SourceError) else 400
        raise RequestError(error.message, status=status, param="prompt", hint=error.hint) from error
    if first[0]["role"] == "system" and any(message["role"] in _SYSTEM for message in messages):
        raise RequestError(
            f"the prompt {stored.name} has a system text, and the request has another",
            param="prompt",
            hint="leave out the system message",
        )
    if not messages and first[-1]["role"] != "user":
        raise RequestError(f"the prompt {stored.name} needs a message after it", param="messages")
    return [*first, *messages], PromptUse(name=stored.name, version=stored.version, label=stored.label)


def prompt_headers(prompt: PromptUse | None) -> Mapping[str, str]:
    """Return the header of an answer that names the version of its stored prompt."""
    return {} if prompt is None else {_HEADER: f"{prompt.name}@{prompt.version}"}
