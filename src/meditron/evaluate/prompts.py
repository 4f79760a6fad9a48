"""The prompt of a question for a model, and the encoding of prompts and continuations as token ids.

The boundary between prompt and continuation is the same as in lm-eval, so that scores are comparable: prompt
and continuation are encoded together, the prompt is also encoded alone, and the tokens after the length of
the prompt are those of the continuation. White space at the end of the prompt belongs to the continuation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from meditron.core.errors import MeditronError
from meditron.engine.base import GivesLogits, ScoresTokens, ScoringRequest
from meditron.evaluate.model import EvalModel
from meditron.tasks.prompt_template import RenderedPrompt
from meditron.tasks.question import Question
from meditron.tasks.task import questions_sha256
from meditron.text.chat import Message
from meditron.text.finetune_templates import question_ids
from meditron.text.tokenizer import Tokenizer

__all__ = ["EncodedPrompt", "EvalPrompt", "encode_chat_prompt", "encode_plain_prompt", "encode_prompt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalPrompt:
    """The prompt of one question for one model."""

    question: Question
    rendered: RenderedPrompt
    """The prompt as text, in the model's chat template if it is prompted with one, and its continuations."""
    shot_ids: tuple[str, ...] = ()
    """Ids of the solved examples in the prompt, in their order."""
    messages: tuple[Message, ...] = ()
    """The prompt as chat messages; empty for a prompt in plain text."""
    unconditional_messages: tuple[Message, ...] = ()
    """The prompt without the question, as chat messages; empty for a prompt in plain text."""

    @property
    def answers(self) -> tuple[str, ...]:
        """The text of each option in an answer, such as its letter."""
        return tuple(continuation.strip() for continuation in self.rendered.continuations)

    def item_key(self) -> tuple[str, str]:
        """Return the question's id and the hash of its content, like `QuestionRow.item_key`."""
        # The hash is included, because in files without ids the id is the line number, which can change.
        return self.question.id, questions_sha256([self.question])


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """A prompt and its continuations as token ids."""

    prefix: list[int]
    continuations: list[list[int]]
    truncated: bool
    """True if the beginning of the prompt was cut off, so that the longest continuation fits in the
    context."""

    def scoring_requests(self) -> list[ScoringRequest]:
        """Return one request for each continuation: the prompt's ids and the continuation's ids."""
        return [(self.prefix, continuation) for continuation in self.continuations]


def encode_plain_prompt(
    tokenizer: Tokenizer, prompt: str, continuations: Sequence[str], context: int
) -> EncodedPrompt:
    """Encode a prompt in plain text and its continuations.

    Args:
        tokenizer: The model's tokenizer.
        prompt: The text before the continuations.
        continuations: The text of each option.
        context: Maximum number of tokens of the prompt and a continuation together.

    Raises:
        MeditronError: a continuation has no tokens, or does not fit in the context.
    """
    # As in lm-eval, a final blank moves to the continuation: most tokenizers join a blank to the next word.
    stripped = prompt.rstrip()
    space = prompt[len(stripped) :]
    ids = tokenizer.encode(stripped)
    # Encoded together with the prompt, because a text alone can be split into other tokens.
    suffixes = [
        tokenizer.encode(stripped + space + continuation)[len(ids) :] for continuation in continuations
    ]
    return _truncate_prompt(ids or [_start_token(tokenizer)], suffixes, continuations, context)


def encode_chat_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], continuations: Sequence[str], context: int
) -> EncodedPrompt:
    """Encode a prompt of chat messages and its continuations, as the same tokens as in finetuning.

    Raises:
        MeditronError: as for `encode_plain_prompt`.
    """
    # The function that finetuning uses, so that evaluation and training see the same tokens.
    ids = question_ids(tokenizer, messages, continuations)
    return _truncate_prompt(list(ids.prompt), list(map(list, ids.answers)), continuations, context)


def _truncate_prompt(
    prefix: list[int], suffixes: list[list[int]], continuations: Sequence[str], context: int
) -> EncodedPrompt:
    for text, ids in zip(continuations, suffixes, strict=True):
        if not 0 < len(ids) < context:
            raise MeditronError(
                f"the continuation '{text}' has {len(ids)} tokens; it needs at least 1, and fewer than the "
                f"context of {context}"
            )
    # Cut at the beginning, because the question is at the end, and equally for all options.
    available = context - max(map(len, suffixes))
    return EncodedPrompt(
        prefix=prefix[-available:], continuations=suffixes, truncated=len(prefix) > available
    )


def _start_token(tokenizer: Tokenizer) -> int:
    """Return the token that stands for an empty prompt: BOS, or else the end-of-text token, as in lm-eval."""
    return tokenizer.end_of_text_id if tokenizer.bos_id is None else tokenizer.bos_id


def encode_prompt(
    model: EvalModel, engine: ScoresTokens | GivesLogits, prompt: EvalPrompt, *, unconditional: bool = False
) -> EncodedPrompt:
    """Encode a question's prompt for a model.

    Args:
        model: The model; its chat template is used.
        engine: The model's engine; its tokenizer and context length are used.
        prompt: The prompt.
        unconditional: If True, encode the prompt without the question.

    Raises:
        MeditronError: as for `encode_plain_prompt`; names the model and the question.
    """
    rendered = prompt.rendered
    text = rendered.unconditional_prompt if unconditional else rendered.prompt
    # Messages are not encoded from the rendered text: the name of a control token in a question must stay
    # text.
    messages = prompt.unconditional_messages if unconditional else prompt.messages
    try:
        if messages:
            return encode_chat_prompt(model.chat_tokenizer, messages, rendered.continuations, engine.context)
        return encode_plain_prompt(engine.tokenizer, text, rendered.continuations, engine.context)
    except MeditronError as error:
        raise MeditronError(f"{model.name}, question {prompt.question.id}: {error.message}") from error
