"""Conversations as tokens that know their role: whose turn each belongs to, and whether it is to be learned.

A row that a model is finetuned on is a conversation: messages of the roles system, user and assistant. A
template makes one text of it, and what is learned is what the assistant says, with the token that ends its
turn; the text that opens the turn is given when the model is asked, and is not learned. (The runs published
with Meditron also learned that text and the line break after the turn.)

The text is tokenized whole, as a prompt is with a continuation that is scored: a tokenizer cuts a text
otherwise than its pieces. A turn's tokens begin where those of the text before it, tokenized alone, cease to
be those of the whole. Where a tokenizer joins the two sides of that place in one token, it is of the turn
behind it: no character of an answer goes unlearned.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from meditron.core.errors import InputError, UsageError
from meditron.text.chat import FIXED_DATE, Message
from meditron.text.prompt import conversation_ids, rendered

if TYPE_CHECKING:
    from meditron.text.tokenizer import Tokenizer

__all__ = [
    "ROLES",
    "TEMPLATES",
    "QuestionIds",
    "Span",
    "TokenizedConversation",
    "Turn",
    "answered",
    "decode_spans",
    "label",
    "parse_messages",
    "question_ids",
    "with_chat_template",
]

_ASSISTANT = "assistant"
ROLES: Mapping[str, str] = {
    "system": "system",
    "user": "user",
    "question": "user",
    "assistant": _ASSISTANT,
    "answer": _ASSISTANT,
}
"""A role as a row may write it → the role."""

_LOSS_KEYS: Mapping[str, tuple[object, object]] = {"weight": (0, 1), "train": (False, True)}
# Keys of a message that say nothing a model reads. Any other key is refused unless its value is empty: tool
# calls, reasoning or a name would change the text.
_MESSAGE_KEYS = (
    "role",
    "content",
    *_LOSS_KEYS,
    "id",
    "timestamp",
    "created_at",
    "source",
    "lang",
    "metadata",
)

_TURN_ENDS = "<|im_end|>"
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_JINJA = {
    "chatml": _CHATML,
    # The published runs' tags: the turns of ChatML under other names.
    "tags": _CHATML.replace(
        "message['role']",
        "('question' if message['role'] == 'user' else 'answer' if message['role'] == 'assistant' "
        "else message['role'])",
    ).replace("|>assistant", "|>answer"),
}
TEMPLATES = ("plain", *_JINJA, "tokenizer")
"""`plain`: contents one behind the other, an answer that ends with the end-of-text token behind it; `chatml`
and `tags`: turns between `<|im_start|>` and `<|im_end|>`; `tokenizer`: the tokenizer's own chat template."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    ends: bool = True
    """Whether an answer has an end to be learned. An option that is only chosen has none: a model that
    learned to stop after one word would do so in every conversation."""
    in_loss: bool = True
    """Whether an answer is learned; a row excludes one by `"weight": 0` or `"train": false`."""


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one role, all learned or none."""

    role: str
    tokens: int
    learned: bool


@dataclass(frozen=True, slots=True)
class TokenizedConversation:
    """The tokens of a conversation, and the spans that together are all of them."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]

    @property
    def learned(self) -> tuple[bool, ...]:
        """Whether each token is learned."""
        return tuple(span.learned for span in self.spans for _ in range(span.tokens))


@dataclass(frozen=True, slots=True)
class QuestionIds:
    """A multiple-choice question as tokens, in the chat turns in which a model was finetuned."""

    prompt: tuple[int, ...]
    """All tokens before the answer, up to the opened turn of the assistant."""
    answers: tuple[tuple[int, ...], ...]
    """The tokens that each option adds to the prompt, without the token that ends a turn."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of the text."""

    role: str
    text: str
    learned: bool = False
    ends: bool = True


def parse_messages(messages: object) -> tuple[Turn, ...]:
    """The turns of a row's `messages`; ValueError, in one line, for what is no answered conversation."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("no list of messages")
    found = tuple(map(_turn, messages))
    if not any(turn.role == _ASSISTANT for turn in found):
        raise ValueError("no message of the assistant, so nothing to learn")
    if not any(turn.role == _ASSISTANT and turn.in_loss for turn in found):
        raise ValueError("every message of the assistant is excluded from the loss, so nothing to learn")
    return found


def _turn(message: object) -> Turn:
    if not isinstance(message, dict):
        raise ValueError("a message is an object with a role and a content that is text")  # noqa: TRY004
    for key, value in message.items():
        if key not in _MESSAGE_KEYS and value not in (None, [], {}, ""):
            raise ValueError(
                f"a message has the key '{key}', which finetuning cannot honour; known are "
                f"{', '.join(_MESSAGE_KEYS)}"
            )
    if not isinstance(message.get("content"), str):
        raise ValueError("a message is an object with a role and a content that is text")  # noqa: TRY004
    role = ROLES.get(str(message.get("role")))
    if role is None:
        raise ValueError(f"no role {message.get('role')!r}; roles are {', '.join(ROLES)}")
    try:
        message["content"].encode()
    except UnicodeEncodeError as error:
        raise ValueError("a message holds half of a character, which no UTF-8 can") from error
    if role == _ASSISTANT and not message["content"].strip():
        raise ValueError("an answer without text")
    in_loss = _in_loss(message)
    if in_loss and role != _ASSISTANT:
        raise ValueError(f"a message of the {role} is to be learned; only the assistant's can be")
    return Turn(role, message["content"], in_loss=in_loss is not False)


def _in_loss(message: Mapping[str, object]) -> bool | None:
    """Return what a message says of its place in the loss, by OpenAI's `weight` or axolotl's `train`."""
    told = []
    for key, allowed in _LOSS_KEYS.items():
        if (value := message.get(key)) is None:
            continue
        if type(value) not in (bool, int, float) or value not in allowed:
            raise ValueError(f"a message has {key} {value!r}; it can be {' or '.join(map(str, allowed))}")
        told.append(bool(value))
    if len(set(told)) > 1:
        raise ValueError(f"a message's {' and '.join(_LOSS_KEYS)} contradict each other")
    return told[0] if told else None


def label(tokenizer: "Tokenizer", conversation: Sequence[Turn], template: str) -> TokenizedConversation:
    """The tokens of a conversation under a template, and which of them are learned.

    Raises:
        ValueError: a message holds the name of a control token, or nothing stands before the answer.
        UsageError: the tokenizer lacks the template's tokens, or has no template of its own.
        InputError: the tokenizer's template does not work, or its text of a conversation does not begin with
            its text of that conversation's beginning.
    """
    for turn in conversation:
        _refuse_control_tokens(tokenizer, turn.content)
    if template == "plain":
        pieces, bos = _plain(tokenizer, conversation), None
    else:
        pieces = _rendered(tokenizer, conversation, template)
        bos = False  # the template writes its own
    labelled = _labelled(tokenizer, pieces, bos=bos)
    if labelled.spans[0].learned:
        raise ValueError("nothing stands before the answer")
    return labelled


def answered(prompt: str, option: str, template: str) -> tuple[Turn, Turn]:
    """Return the turns of a question and an option that answers it, for training and evaluation alike.

    An option comes with the blank that parts it from the prompt. Under `plain` it keeps that blank and has no
    end to be learned; in the turns of any other template it loses the blank and is ended by the template.
    """
    if template == "plain":
        return Turn("user", prompt), Turn(_ASSISTANT, option, ends=False)
    return Turn("user", prompt), Turn(_ASSISTANT, option.strip())


def question_ids(tokenizer: "Tokenizer", messages: Sequence[Message], options: Sequence[str]) -> QuestionIds:
    """Return a question's tokens as a finetune in the tokenizer's chat template trained them.

    Each option is rendered as the assistant's next message, as in a training row: a template may write a
    blank or more before an answer. A token that joins prompt and option belongs to the option, of every
    option. Unlike in training, a message may hold a control token's name, which is text.

    Raises:
        UsageError, InputError: as `conversation_ids`; InputError also if the template does not end answers.
    """
    prompt = conversation_ids(tokenizer, messages, now=FIXED_DATE)
    rows = []
    for option in options:
        answered_by = [*messages, {"role": _ASSISTANT, "content": option}]
        ids = conversation_ids(tokenizer, answered_by, add_generation_prompt=False, now=FIXED_DATE)
        begin = _common(prompt, ids)
        rows.append((begin, ids[: _stop(tokenizer, ids, begin, len(ids)) - 1]))
    shared = min(begin for begin, _ in rows)
    return QuestionIds(tuple(prompt[:shared]), tuple(tuple(ids[shared:]) for _, ids in rows))


def with_chat_template(tokenizer: "Tokenizer", template: str) -> "Tokenizer":
    """The tokenizer with the chat template that a model finetuned on `template` is to be talked to with."""
    if template not in _JINJA:
        return tokenizer
    return replace(tokenizer, special=replace(tokenizer.special, chat_template=_JINJA[template]))


def decode_spans(
    tokenizer: "Tokenizer", ids: Sequence[int], spans: Iterable[Span]
) -> Iterator[tuple[Span, str]]:
    """Each span with its text, the names of control tokens with it."""
    end, before = 0, ""
    for span in spans:
        end += span.tokens
        # Decoded from the beginning each time: a text's first token has another text than a later one.
        text = tokenizer.decode(ids[:end], skip_special=False)
        yield span, text[len(before) :]
        before = text


def _refuse_control_tokens(tokenizer: "Tokenizer", content: str) -> None:
    if tokenizer.encode(content, special=True, bos=False) != tokenizer.encode(content, bos=False):
        raise ValueError("a message holds the name of a control token, which would be read as that token")


def _plain(tokenizer: "Tokenizer", conversation: Sequence[Turn]) -> list[_Piece]:
    end = tokenizer.token(tokenizer.end_of_text_id) or ""
    return [
        _Piece(turn.role, turn.content + (end if turn.ends else ""), learned=turn.in_loss, ends=turn.ends)
        if turn.role == _ASSISTANT
        else _Piece(turn.role, turn.content)
        for turn in conversation
    ]


def _rendered(tokenizer: "Tokenizer", conversation: Sequence[Turn], template: str) -> list[_Piece]:
    """What each turn adds to the text; an assistant's first adds what opens it."""
    source = _source(tokenizer, template)
    pieces: list[_Piece] = []
    written = ""

    def add(role: str, count: int, *, opened: bool = False, learned: bool = False) -> None:
        nonlocal written
        text = _text(tokenizer, source, conversation[:count], add_generation_prompt=opened)
        if not text.startswith(written):
            raise InputError(
                "chat template",
                f"the text of {count} messages does not begin with that of the messages before",
                hint='answers cannot be told from it: write template = "chatml"',
            )
        pieces.append(_Piece(role, text[len(written) :], learned))
        written = text

    for count, turn in enumerate(conversation, start=1):
        if turn.role == _ASSISTANT:
            add(turn.role, count - 1, opened=True)
            add(turn.role, count, learned=turn.in_loss)
        # A foreign template may refuse a system message without a question: it goes with what follows it.
        elif turn.role != "system" or template in _JINJA:
            add(turn.role, count)
    return pieces


def _source(tokenizer: "Tokenizer", template: str) -> str:
    if template in _JINJA:
        if tokenizer.encode(_TURN_ENDS, special=True, bos=False)[-1] not in tokenizer.stop_ids:
            raise UsageError(
                f"the template '{template}' needs {_TURN_ENDS}, which is no token of the model's tokenizer",
                hint='write template = "plain"',
            )
        return _JINJA[template]
    if tokenizer.chat_template is None:
        raise UsageError("the model has no chat template", hint='write template = "plain"')
    return tokenizer.chat_template


def _text(
    tokenizer: "Tokenizer", source: str, conversation: Sequence[Turn], *, add_generation_prompt: bool
) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in conversation]
    return rendered(
        tokenizer,
        messages,
        template=source,
        add_generation_prompt=add_generation_prompt,
        now=FIXED_DATE,
    )


def _labelled(tokenizer: "Tokenizer", pieces: Sequence[_Piece], *, bos: bool | None) -> TokenizedConversation:
    texts = [piece.text for piece in pieces]
    ids = tokenizer.encode("".join(texts), special=True, bos=bos)
    spans: list[Span] = []
    begin = 0
    for count, piece in enumerate(pieces, start=1):
        end = len(ids)
        if count < len(pieces):
            before = tokenizer.encode("".join(texts[:count]), special=True, bos=bos)
            end = max(begin, _common(before, ids))
        stop = begin
        if piece.learned:
            stop = _stop(tokenizer, ids, begin, end) if piece.ends else end
        spans += [Span(piece.role, stop - begin, True), Span(piece.role, end - stop, False)]
        begin = end
    return TokenizedConversation(tuple(ids), tuple(span for span in spans if span.tokens))


def _common(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two texts have in common from their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(some, others, strict=False)))


def _stop(tokenizer: "Tokenizer", ids: Sequence[int], begin: int, end: int) -> int:
    """Where what is learned of an answer ends: behind the last of its tokens at which generation stops."""
    for stop in range(end, begin, -1):
        if ids[stop - 1] in tokenizer.stop_ids:
            return stop
    raise InputError(
        "chat template",
        "ends an answer with no token at which generation stops",
        hint='the model would never learn to stop: write template = "chatml" or "plain"',
    )
