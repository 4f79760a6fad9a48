"""Chat templates: messages into the one text that a model was trained to go on from.

Templates are Jinja and come with a model's files, so they are foreign code: they run in the sandbox, with the
variables and helpers that HF's do (transformers' `apply_chat_template`), and give the same text.
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
from meditron.text.budget import Budget, refuse_longer
from meditron.text.sandbox import Environment

__all__ = ["FIXED_DATE", "Message", "render"]

FIXED_DATE = datetime(2024, 7, 26)
"""The date in training rows and evaluation prompts, for templates that write the current one.

Rows would differ from day to day, and a model would be asked otherwise than it was trained. It is the default
of Llama 3.2's template.
"""

Message = Mapping[str, Any]
"""`role` (system, user, assistant), `content`, and whatever else a template knows."""

_MAX_TEMPLATE = 1 << 16  # characters; real ones have up to 20,000, and more take seconds to compile
_MAX_MESSAGE = 500  # characters of an error that the template words itself
_WHERE = "chat template"
# What foreign code can raise besides jinja2's own: each is the template's fault.
_FAULTS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,  # what jinja2 makes of loops twenty deep, Python does not compile
    TypeError,
    ValueError,
)


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
    """The text of `messages`; with `add_generation_prompt` it ends where the assistant's turn begins.

    `bos` and `eos` are the tokens as text, undefined where there is none; `special_tokens` are more of them
    by the name of their variable (`pad_token`); `now` is the time for `strftime_now`, the current one when
    absent. Raises InputError, with the line, for a
    template that is damaged, refuses the messages, reaches out of its sandbox, or does not end.
    """
    budget = Budget()
    variables = {
        "messages": messages,
        "add_generation_prompt": add_generation_prompt,
        "tools": None,
        "documents": None,
        "strftime_now": _clock(now),
        **{name: token for name, token in (("bos_token", bos), ("eos_token", eos)) if token is not None},
        **special_tokens,
        Budget.KEY: budget,
    }
    pieces: list[str] = []
    try:
        for piece in _compiled(template).generate(variables):
            pieces.append(piece)
            budget.pay_for_output(piece)
    except _FAULTS as error:
        raise InputError(_WHERE, _said(error), place=_line(error)) from error
    return "".join(pieces)


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    if len(template) > _MAX_TEMPLATE:
        raise InputError(_WHERE, f"has {len(template):,} characters, more than {_MAX_TEMPLATE:,}")
    return Environment(_HELPERS, {"tojson": _to_json}).from_string(template)


def _said(error: BaseException) -> str:
    message = " ".join(str(error)[:_MAX_MESSAGE].split())
    return message or type(error).__name__


def _line(error: BaseException) -> str | None:
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno}"
    # jinja2 rewrites the traceback, so that the template's lines stand in it.
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == "<template>"]
    return f"line {frames[-1].lineno}" if frames else None


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,  # noqa: ANN401
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja2's own filter escapes what HTML would misread."""
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    pieces, length = [], 0
    for piece in encoder.iterencode(value):  # indentation grows with depth
        pieces.append(piece)
        refuse_longer(length := length + len(piece))
    return "".join(pieces)


def _clock(now: datetime | None) -> Callable[[str], str]:
    def strftime_now(form: str) -> str:  # `budget` knows this function by its name
        return (now or datetime.now()).strftime(form)

    return strftime_now


_HELPERS = {"raise_exception": _raise}
