"""Questions as prompts, and prompts as token ids.

Prompt and continuation are split in tokens as in lm-eval: both are encoded together and the prompt alone, and
the continuation is the remainder of the whole after the prompt's length; white space at the prompt's end
belongs to the continuation. This keeps figures comparable with other evaluations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from meditron.core.errors import MeditronError
from meditron.engine.base import GivesLogits, ScoresTokens, ScoringRequest
from meditron.evaluate.model import EvalModel
from meditron.tasks.prompt_template import Rendered
from meditron.tasks.question import Question
from meditron.tasks.task import questions_sha256
from meditron.text.chat import Message
from meditron.text.finetune_templates import question_ids
from meditron.text.tokenizer import Tokenizer

__all__ = ["EncodedPrompt", "EvalPrompt", "encode", "encode_messages", "encode_prompt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalPrompt:
    """One question as the prompt of one model."""

    question: Question
    rendered: Rendered
    """The whole text of the prompt, in the chat template if there is one."""
    shot_ids: tuple[str, ...] = ()
    """Ids of the solved examples in the prompt, in its order."""
    messages: tuple[Message, ...] = ()
    """The prompt as chat messages; empty for a raw prompt."""
    unconditional_messages: tuple[Message, ...] = ()
    """The same without the question."""

    def item(self) -> tuple[str, str]:
        """Return the question's id and the hash of its content."""
        # The hash as well: ids of files without ids are line numbers, which move.
        return self.question.id, questions_sha256([self.question])


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """A prompt and its continuations as token ids."""

    prefix: list[int]
    continuations: list[list[int]]
    truncated: bool
    """True if the prompt's beginning was left out to fit the longest continuation into the context."""

    def requests(self) -> list[ScoringRequest]:
        """Return the prefix with each continuation."""
        return [(self.prefix, continuation) for continuation in self.continuations]


def encode(tokenizer: Tokenizer, prompt: str, continuations: Sequence[str], context: int) -> EncodedPrompt:
    """Encode a prompt in plain text and its continuations.

    Args:
        tokenizer: The model's tokenizer.
        prompt: The text before the continuations.
        continuations: One text per option.
        context: Maximum number of tokens of the prompt with a continuation.

    Raises:
        MeditronError: a continuation has no tokens of its own, or does not fit in the context.
    """
    # lm-eval's rule: most tokenizers join a blank to the next word, so it cannot be in the prefix.
    stripped = prompt.rstrip()
    space = prompt[len(stripped) :]
    ids = tokenizer.encode(stripped)
    # Encoded with the prompt: a continuation alone may be cut into other tokens.
    suffixes = [
        tokenizer.encode(stripped + space + continuation)[len(ids) :] for continuation in continuations
    ]
    return _truncate(ids or [_start_token(tokenizer)], suffixes, continuations, context)


def encode_messages(
    tokenizer: Tokenizer, messages: Sequence[Message], continuations: Sequence[str], context: int
) -> EncodedPrompt:
    """Encode a prompt of chat messages and its continuations, with the tokens of finetuning.

    Raises:
        MeditronError: as for `encode`.
    """
    # The function that finetuning uses, so that evaluation and training see the same tokens.
    ids = question_ids(tokenizer, messages, continuations)
    return _truncate(list(ids.prompt), list(map(list, ids.answers)), continuations, context)


def _truncate(
    prefix: list[int], suffixes: list[list[int]], continuations: Sequence[str], context: int
) -> EncodedPrompt:
    for text, ids in zip(continuations, suffixes, strict=True):
        if not 0 < len(ids) < context:
            raise MeditronError(
                f"the continuation '{text}' has {len(ids)} tokens; it needs at least 1, and fewer than the "
                f"context of {context}"
            )
    # Cut at the beginning: the question and its cue are at the end. All options keep the same prefix.
    available = context - max(map(len, suffixes))
    return EncodedPrompt(
        prefix=prefix[-available:], continuations=suffixes, truncated=len(prefix) > available
    )


def _start_token(tokenizer: Tokenizer) -> int:
    """Return the context of an empty prompt's first token: BOS, else the end-of-text token, as in lm-eval."""
    return tokenizer.end_of_text_id if tokenizer.bos_id is None else tokenizer.bos_id


def encode_prompt(
    model: EvalModel, engine: ScoresTokens | GivesLogits, prompt: EvalPrompt, *, unconditional: bool = False
) -> EncodedPrompt:
    """Encode a question's prompt for a model.

    Args:
        model: The model, which has the chat template.
        engine: Its engine, which has the tokenizer and the context.
        prompt: The prompt.
        unconditional: Encode the prompt without the question.

    Raises:
        MeditronError: as for `encode`; names model and question.
    """
    rendered = prompt.rendered
    text = rendered.unconditional if unconditional else rendered.prompt
    # Chat messages are encoded as such: a control token's name inside a question must stay text.
    messages = prompt.unconditional_messages if unconditional else prompt.messages
    try:
        if messages:
            return encode_messages(model.chat_tokenizer, messages, rendered.continuations, engine.context)
        return encode(engine.tokenizer, text, rendered.continuations, engine.context)
    except MeditronError as error:
        raise MeditronError(f"{model.name}, question {prompt.question.id}: {error.message}") from error
