"""Chat templates: rendering of messages as the text format that a model was trained on.

Chat templates are written in Jinja and come with a model's files, so they are untrusted code. They run in the
sandbox of `text.sandbox`, with the variables and helpers of transformers' `apply_chat_template`, and give the
same text as there.
"""

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError

from meditron.core.errors import InputError
from meditron.text.budget import refuse_longer
from meditron.text.sandbox import TEMPLATE_FAULTS, Environment, render_within_budget

__all__ = ["FIXED_DATE", "Message", "render"]

FIXED_DATE = datetime(2024, 7, 26)
"""The date in training rows and evaluation prompts, for chat templates that write the current date.

With the current date, training rows would change from day to day, and evaluation prompts would differ from
training rows. This date is the default of Llama 3.2's template.
"""

Message = Mapping[str, Any]
"""`role` (system, user, assistant), `content`, and any other keys that a template reads."""

_MAX_TEMPLATE = 1 << 16  # characters; real ones have up to 20,000, and more take seconds to compile
_MAX_MESSAGE = 500  # characters of an error message, which the template may write
_PLACE = "chat template"


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    bos: str | None,
    eos: str | None,
    special_tokens: Mapping[str, str] = MappingProxyType({}),
    now: datetime | None = None,
) -> str:
    """Render messages as text.

    Args:
        template: The Jinja source.
        messages: The conversation.
        add_generation_prompt: End the text with the opening of the assistant's turn.
        bos: The BOS token as text; undefined in the template if None.
        eos: The EOS token as text; undefined in the template if None.
        special_tokens: Further special tokens: variable name in the template (`pad_token`) → token.
        now: Time that the template's `strftime_now` formats; the current time if None.

    Raises:
        InputError: The template is damaged, refuses the messages, tries to leave its sandbox, or exceeds its
            budget; the message names the line.
    """
    variables = {
        "messages": messages,
        "add_generation_prompt": add_generation_prompt,
        "tools": None,
        "documents": None,
        "strftime_now": _make_strftime_now(now),
        **{name: token for name, token in (("bos_token", bos), ("eos_token", eos)) if token is not None},
        **special_tokens,
    }
    try:
        return render_within_budget(_compile_template(template), variables)
    except TEMPLATE_FAULTS as error:
        raise InputError(_PLACE, _error_text(error), place=_error_line(error)) from error


@lru_cache(maxsize=16)
def _compile_template(template: str) -> Template:
    if len(template) > _MAX_TEMPLATE:
        raise InputError(
            _PLACE, f"the template has {len(template):,} characters, more than {_MAX_TEMPLATE:,}"
        )
    return Environment(_HELPERS, {"tojson": _to_json}).from_string(template)


def _error_text(error: BaseException) -> str:
    message = " ".join(str(error)[:_MAX_MESSAGE].split())
    return message or type(error).__name__


def _error_line(error: BaseException) -> str | None:
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno}"
    # jinja2 rewrites the traceback so that its frames have the line numbers of the template.
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == "<template>"]
    return f"line {frames[-1].lineno}" if frames else None


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,  # noqa: ANN401
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Format a value as JSON, as transformers does; jinja2's own filter `tojson` escapes it for HTML."""
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    pieces, length = [], 0
    # The length is checked piece by piece, because indentation can make the text far longer than the value.
    for piece in encoder.iterencode(value):
        pieces.append(piece)
        refuse_longer(length := length + len(piece))
    return "".join(pieces)


def _make_strftime_now(now: datetime | None) -> Callable[[str], str]:
    def strftime_now(form: str) -> str:  # `budget.check_call` knows this name
        return (now or datetime.now()).strftime(form)

    return strftime_now


_HELPERS = {"raise_exception": _raise_exception}
