"""Token ids of conversations, in which control tokens come only from the chat template.

The name of a control token inside a message is read as text; otherwise a message could end its own turn.
These names are marked in the messages before the template runs, so every name without a mark in the rendered
text was written by the template. The whole text is tokenized at once, with the template's control tokens
given by id, so that messages get the same tokens as the same text in a document.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from meditron.core.errors import UsageError
from meditron.text.chat import Message, render

if TYPE_CHECKING:
    from meditron.text.tokenizer import Tokenizer

__all__ = ["conversation_ids", "render_conversation"]

_MARK = "\ufdd0"  # a Unicode noncharacter, reserved for internal use
_SURROGATE = re.compile("[\ud800-\udfff]")  # bytes that are not UTF-8, as Python decodes them


def render_conversation(
    tokenizer: "Tokenizer",
    messages: Sequence[Message],
    *,
    template: str | None = None,
    add_generation_prompt: bool = True,
    now: datetime | None = None,
) -> str:
    """Render messages with `template`, by default the tokenizer's own. Raises as `conversation_ids` does."""
    source = tokenizer.chat_template if template is None else template
    if source is None:
        raise UsageError("the model has no chat template", hint="pass the prompt as plain text")
    return render(
        source,
        messages,
        add_generation_prompt=add_generation_prompt,
        bos=None,
        eos=None,
        special_tokens=tokenizer.special_tokens,
        now=now,
    )


def conversation_ids(
    tokenizer: "Tokenizer",
    messages: Sequence[Message],
    *,
    template: str | None = None,
    add_generation_prompt: bool = True,
    now: datetime | None = None,
) -> list[int]:
    """Render messages with `template`, by default the tokenizer's own, and tokenize the text.

    Raises:
        UsageError: There is no template, or a message is not UTF-8 or nested too deeply.
        InputError: The template fails.
    """
    control = {str(tokenizer.id_to_token(i)): i for i in tokenizer.special_ids}
    # Longer names come first in the pattern, because one name may be the beginning of another.
    names = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "(?!)")
    plain = [dict(message) for message in messages]
    try:
        marked = [_mark_control_tokens(message, names) for message in plain]
    except RecursionError as error:
        raise UsageError("a message is nested too deeply") from error
    text = render_conversation(
        tokenizer, marked, template=template, add_generation_prompt=add_generation_prompt, now=now
    )
    if _SURROGATE.search(text):
        raise UsageError("the conversation is not UTF-8")
    if marked == plain:
        return tokenizer.encode(text, special=True, bos=False)  # the template writes its own
    parts = [control.get(part, part.replace(_MARK, "")) for part in re.split(f"({names.pattern})", text)]
    return tokenizer.encode_parts(parts)


def _mark_control_tokens(value: Any, names: re.Pattern[str]) -> Any:  # noqa: ANN401  # a message may hold any JSON
    """Copy a message's value with a mark after the first character of each control token's name."""
    if isinstance(value, str):
        return names.sub(lambda name: f"{name[0][0]}{_MARK}{name[0][1:]}", value)
    if isinstance(value, Mapping):
        return {key: _mark_control_tokens(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mark_control_tokens(item, names) for item in value]
    return value
