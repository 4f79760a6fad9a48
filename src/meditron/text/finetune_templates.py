"""Finetuning templates: conversations as token ids, with the role of each token and the loss mask.

A row is a conversation: messages of the roles system, user and assistant. A template renders a conversation
as one text. The targets are the assistant's messages and the token that ends each of them. The text that
opens an assistant's turn is not a target, because it is part of the prompt when the model is used. (The runs
published with Meditron also trained on that text and on the line break after the turn.)

The whole text is tokenized at once, because tokenizing its parts separately can give other tokens. To find
where a turn begins, the text before the turn is tokenized alone: the turn's tokens begin at the first token
in which the two tokenizations differ. A token that spans the border belongs to the later turn, so that every
character of an answer is in the loss.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from meditron.core.errors import InputError, UsageError
from meditron.text.chat import FIXED_DATE, Message
from meditron.text.messages import ASSISTANT, Turn
from meditron.text.prompt import conversation_ids, render_conversation

if TYPE_CHECKING:
    from meditron.text.tokenizer import Tokenizer

__all__ = [
    "NO_TEMPLATE",
    "TEMPLATES",
    "QuestionIds",
    "Span",
    "TokenizedConversation",
    "decode_spans",
    "question_ids",
    "question_turns",
    "tokenize_conversation",
    "with_chat_template",
]

_TURN_TOKENS = ("<|im_start|>", "<|im_end|>")
"""The tokens of `chatml` and `meditron` that begin and end a turn."""
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_JINJA_TEMPLATES: Mapping[str, str] = {
    "chatml": _CHATML,
    # ChatML with the role names of the published Meditron runs.
    "meditron": _CHATML.replace(
        "message['role']",
        "('question' if message['role'] == 'user' else 'answer' if message['role'] == 'assistant' "
        "else message['role'])",
    ).replace("|>assistant", "|>answer"),
}
NO_TEMPLATE = "none"
TEMPLATES = (NO_TEMPLATE, *_JINJA_TEMPLATES, "tokenizer")
"""Names of the templates. `none` concatenates the messages and adds the end-of-text token after each answer;
`chatml` and `meditron` write turns between `<|im_start|>` and `<|im_end|>`; `tokenizer` is the tokenizer's
own chat template."""


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one role that are either all in the loss or all masked."""

    role: str
    tokens: int
    in_loss: bool


@dataclass(frozen=True, slots=True)
class TokenizedConversation:
    """The token ids of a conversation, and consecutive spans that cover all of them."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]

    @property
    def in_loss(self) -> tuple[bool, ...]:
        """The loss mask: True for each token that is a target."""
        return tuple(span.in_loss for span in self.spans for _ in range(span.tokens))


@dataclass(frozen=True, slots=True)
class QuestionIds:
    """Token ids of a multiple-choice question in the chat template that a model was finetuned in."""

    prompt: tuple[int, ...]
    """All tokens before the answer, including those that open the assistant's turn."""
    answers: tuple[tuple[int, ...], ...]
    """The tokens that each option adds to the prompt, without the token that ends the turn."""


@dataclass(frozen=True, slots=True)
class _TextPiece:
    """A part of a conversation's rendered text, from one role."""

    role: str
    text: str
    in_loss: bool = False
    learns_end: bool = True


def tokenize_conversation(
    tokenizer: "Tokenizer", conversation: Sequence[Turn], template: str
) -> TokenizedConversation:
    """Tokenize a conversation under a template and compute its loss mask.

    Raises:
        ValueError: A message contains the name of a control token, or the prompt is empty.
        UsageError: The tokenizer lacks the template's tokens, or the template is `tokenizer` and it has none.
        InputError: The tokenizer's template fails, or adding a message changes the text before the message.
    """
    for turn in conversation:
        _refuse_control_tokens(tokenizer, turn.content)
    if template == NO_TEMPLATE:
        pieces, bos = _pieces_without_template(tokenizer, conversation), None
    else:
        pieces = _pieces_of_template(tokenizer, conversation, template)
        bos = False  # the template writes its own
    tokenized = _tokenize_pieces(tokenizer, pieces, bos=bos)
    if tokenized.spans[0].in_loss:
        raise ValueError("the prompt is empty; an answer needs at least one token before it")
    return tokenized


def question_turns(prompt: str, option: str, template: str) -> tuple[Turn, Turn]:
    """Return a question with one of its options as the answer, as a user's and an assistant's turn.

    Training and evaluation both call this function. `option` begins with the space that separates it from the
    prompt. Without a template, the answer keeps that space and no end-of-text token follows. In a chat
    template the space is removed, and the template ends the turn.
    """
    if template == NO_TEMPLATE:
        return Turn("user", prompt), Turn(ASSISTANT, option, learns_end=False)
    return Turn("user", prompt), Turn(ASSISTANT, option.strip())


def question_ids(tokenizer: "Tokenizer", messages: Sequence[Message], options: Sequence[str]) -> QuestionIds:
    """Tokenize a question and its options in the tokenizer's chat template, as finetuning does.

    Each option is rendered as the assistant's next message, because a template may write text before an
    answer. A token that spans the border between prompt and option counts as part of the option; the prompt
    then ends earlier for all options. Unlike in finetuning, the name of a control token in a message is read
    as text.

    Raises:
        UsageError: As in `conversation_ids`.
        InputError: As in `conversation_ids`, or the template does not end answers.
    """
    prompt = conversation_ids(tokenizer, messages, now=FIXED_DATE)
    rows = []
    for option in options:
        conversation = [*messages, {"role": ASSISTANT, "content": option}]
        ids = conversation_ids(tokenizer, conversation, add_generation_prompt=False, now=FIXED_DATE)
        start = _common_prefix_length(prompt, ids)
        rows.append((start, ids[: _target_end(tokenizer, ids, start, len(ids)) - 1]))
    # The prompt ends at the earliest border of all options, so that all log-likelihoods are conditioned on
    # the same prompt.
    shared = min(start for start, _ in rows)
    return QuestionIds(tuple(prompt[:shared]), tuple(tuple(ids[shared:]) for _, ids in rows))


def with_chat_template(tokenizer: "Tokenizer", template: str) -> "Tokenizer":
    """Return the tokenizer with the chat template of a model that was finetuned in `template`."""
    if template not in _JINJA_TEMPLATES:
        return tokenizer
    return replace(tokenizer, special=replace(tokenizer.special, chat_template=_JINJA_TEMPLATES[template]))


def decode_spans(
    tokenizer: "Tokenizer", ids: Sequence[int], spans: Iterable[Span]
) -> Iterator[tuple[Span, str]]:
    """Yield each span with its text, names of control tokens included."""
    end, before = 0, ""
    for span in spans:
        end += span.tokens
        # All tokens up to the span's end are decoded, because the first token of a decoded text loses its
        # space.
        text = tokenizer.decode(ids[:end], skip_special=False)
        yield span, text[len(before) :]
        before = text


def _refuse_control_tokens(tokenizer: "Tokenizer", content: str) -> None:
    if tokenizer.encode(content, special=True, bos=False) != tokenizer.encode(content, bos=False):
        raise ValueError("a message contains the name of a control token, which would be read as that token")


def _pieces_without_template(tokenizer: "Tokenizer", conversation: Sequence[Turn]) -> list[_TextPiece]:
    end = tokenizer.id_to_token(tokenizer.end_of_text_id) or ""
    return [
        _TextPiece(
            turn.role,
            turn.content + (end if turn.learns_end else ""),
            in_loss=turn.in_loss,
            learns_end=turn.learns_end,
        )
        if turn.role == ASSISTANT
        else _TextPiece(turn.role, turn.content)
        for turn in conversation
    ]


def _pieces_of_template(
    tokenizer: "Tokenizer", conversation: Sequence[Turn], template: str
) -> list[_TextPiece]:
    """Return the text that each turn adds; the text that opens an assistant's turn is a separate piece."""
    source = _template_source(tokenizer, template)
    pieces: list[_TextPiece] = []
    text_before = ""

    def add_piece(role: str, count: int, *, opened: bool = False, in_loss: bool = False) -> None:
        nonlocal text_before
        text = _render_turns(tokenizer, source, conversation[:count], add_generation_prompt=opened)
        # A template may change earlier turns (for example remove their reasoning), so that the
        # beginning of a turn cannot be found in the whole text.
        if not text.startswith(text_before):
            raise InputError(
                "chat template",
                f"the text of {count} messages does not begin with that of the messages before",
                hint='the loss mask cannot be computed: set template = "chatml"',
            )
        pieces.append(_TextPiece(role, text[len(text_before) :], in_loss))
        text_before = text

    for count, turn in enumerate(conversation, start=1):
        if turn.role == ASSISTANT:
            add_piece(turn.role, count - 1, opened=True)
            add_piece(turn.role, count, in_loss=turn.in_loss)
        # A tokenizer's template may refuse a system message alone, so that message is rendered together with
        # the turn after it.
        elif turn.role != "system" or template in _JINJA_TEMPLATES:
            add_piece(turn.role, count)
    return pieces


def _template_source(tokenizer: "Tokenizer", template: str) -> str:
    if template in _JINJA_TEMPLATES:
        if missing := [token for token in _TURN_TOKENS if not _is_special(tokenizer, token)]:
            raise UsageError(
                f"the template '{template}' needs the token {missing[0]}, which the model's tokenizer lacks",
                hint=f'set added_tokens = {json.dumps(_TURN_TOKENS)}, or template = "{NO_TEMPLATE}"',
            )
        return _JINJA_TEMPLATES[template]
    if tokenizer.chat_template is None:
        raise UsageError("the model has no chat template", hint=f'set template = "{NO_TEMPLATE}"')
    return tokenizer.chat_template


def _is_special(tokenizer: "Tokenizer", token: str) -> bool:
    ids = tokenizer.encode(token, special=True, bos=False)
    return len(ids) == 1 and ids[0] in tokenizer.special_ids


def _render_turns(
    tokenizer: "Tokenizer", source: str, conversation: Sequence[Turn], *, add_generation_prompt: bool
) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in conversation]
    return render_conversation(
        tokenizer,
        messages,
        template=source,
        add_generation_prompt=add_generation_prompt,
        now=FIXED_DATE,
    )


def _tokenize_pieces(
    tokenizer: "Tokenizer", pieces: Sequence[_TextPiece], *, bos: bool | None
) -> TokenizedConversation:
    texts = [piece.text for piece in pieces]
    ids = tokenizer.encode("".join(texts), special=True, bos=bos)
    spans: list[Span] = []
    start = 0
    for count, piece in enumerate(pieces, start=1):
        end = len(ids)
        if count < len(pieces):
            prefix = tokenizer.encode("".join(texts[:count]), special=True, bos=bos)
            end = max(start, _common_prefix_length(prefix, ids))
        target_end = start
        if piece.in_loss:
            target_end = _target_end(tokenizer, ids, start, end) if piece.learns_end else end
        spans += [Span(piece.role, target_end - start, True), Span(piece.role, end - target_end, False)]
        start = end
    return TokenizedConversation(tuple(ids), tuple(span for span in spans if span.tokens))


def _common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _target_end(tokenizer: "Tokenizer", ids: Sequence[int], start: int, end: int) -> int:
    """Return the index after the answer's last stop token; a line break after that token is not a target."""
    for stop in range(end, start, -1):
        if ids[stop - 1] in tokenizer.stop_ids:
            return stop
    raise InputError(
        "chat template",
        "ends an answer without a stop token",
        hint=f'the model would not learn to stop: set template = "chatml" or "{NO_TEMPLATE}"',
    )
