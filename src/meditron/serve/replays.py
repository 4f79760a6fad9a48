"""Replays: the messages of a logged request, answered again by another model or with another prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from meditron.core.errors import UsageError
from meditron.serve.log_rows import LogRow
from meditron.serve.state import ChatCall, PromptUse
from meditron.store.prompts import PromptStore, StoredPrompt
from meditron.text.chat import Message

__all__ = ["replay_call"]

_SETTINGS = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "stop"),
        *("presence_penalty", "frequency_penalty", "repeat_penalty"),
    }
)


def replay_call(
    row: LogRow,
    store: PromptStore,
    *,
    model: str,
    person: str,
    prompt: str | None = None,
    variables: Mapping[str, str] | None = None,
) -> ChatCall:
    """Return the call that repeats a request.

    Args:
        row: The request, with its messages.
        store: The stored prompts.
        model: The model that answers.
        person: Who repeats it.
        prompt: Stored prompt in place of that of the request: `NAME`, `NAME@LABEL` or `NAME@HASH`.
        variables: Values of that prompt's variables.

    Raises:
        UsageError: the messages were not stored, or the request was no chat; a variable has no value.
        SourceError: there is no such prompt.
    """
    if row.messages is None:
        raise UsageError(
            f"the texts of {row.id} were not stored, so it cannot be repeated",
            hint="meditron serve --log-content stores the texts of later requests",
        )
    if isinstance(row.messages, str) or not all(isinstance(each, dict) for each in row.messages):
        raise UsageError(f"{row.id} continues a text; only chats can be repeated")
    messages: Sequence[Message] = row.messages
    use = None
    if row.prompt_name is not None:
        use = PromptUse(name=row.prompt_name, version=row.prompt_version or "", label=row.prompt_label)
    if prompt is not None:
        chosen = store.find(prompt)
        messages = [*chosen.render(variables or {}), *_without_prompt(row, store)]
        use = PromptUse(name=chosen.name, version=chosen.version, label=chosen.label)
    return ChatCall(
        model=model,
        messages=messages,
        sampling={name: value for name, value in row.sampling.items() if name in _SETTINGS},
        person=person,
        endpoint="replay",
        prompt=use,
        tags=row.tags,
        metadata={LogRow.REPLAY_KEY: row.id},
    )


def _without_prompt(row: LogRow, store: PromptStore) -> list[dict[str, Any]]:
    """Return the messages of a request without those of its stored prompt, or without its system message."""
    messages: list[dict[str, Any]] = list(row.messages)
    if row.prompt_name is None:
        has_system = bool(messages) and messages[0].get("role") == "system"
        return messages[1:] if has_system else messages
    original: StoredPrompt = store.find(f"{row.prompt_name}@{row.prompt_version}")
    # The values of its variables are not known, but how many messages it has is.
    count = len(original.text.messages) + bool(original.text.system.strip())
    return messages[count:]
