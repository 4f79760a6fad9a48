"""Replays: the messages of a logged request, answered again by another model or with another prompt."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from meditron.core.errors import UsageError
from meditron.model.sampling import SamplingConfig
from meditron.serve.log_rows import LogRow
from meditron.serve.state import ChatCall, Exchange, PromptUse
from meditron.store.prompts import PromptStore, StoredPrompt
from meditron.text.base_prompt import NEXT_QUESTION, render_base_prompt
from meditron.text.chat import Message

__all__ = ["answer_replay", "replay_call"]

_LOCAL_SETTINGS = frozenset({"temperature", "top_p", "top_k", "max_tokens", "seed"})
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


def answer_replay(call: ChatCall) -> Exchange:
    """Answer a call in this process, without a server, and return it as an exchange for the log.

    Settings that only the server has, such as penalties, are left out.

    Raises:
        UsageError, SourceError, InputError, EngineError: as of `meditron.engine.load_generator`.
    """
    from meditron.engine import load_generator
    from meditron.engine.conversation import Chat

    # A server reads negative numbers as no limit.
    settings = {
        name: value for name, value in call.sampling.items() if name in _LOCAL_SETTINGS and value >= 0
    }
    started, clock = time.time(), time.monotonic()
    with load_generator(call.model) as engine:
        raw = not Chat(engine).has_chat_template
        prompt = render_base_prompt(call.messages) if raw else list(call.messages)
        reply = engine.generate(prompt, raw=raw, **SamplingConfig(**settings).generate_arguments)
        done = (reply.end_before(NEXT_QUESTION) if raw else reply).finish()
    return Exchange(
        id=call.id,
        started=started,
        seconds=time.monotonic() - clock,
        endpoint=call.endpoint,
        model=call.model,
        person=call.person,
        status=200,
        output_tokens=done.tokens,
        finish="length" if done.stop in ("length", "context") else "stop",
        sampling=settings,
        prompt=call.prompt,
        tags=call.tags,
        metadata=call.metadata,
        messages=call.messages,
        answers=(done.text.strip(),),
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
