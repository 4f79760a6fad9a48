"""A conversation with a model: its turns, and the part of them that fits in the context.

A model without a chat template gets the prompt of `text.base_prompt`, and its answer is cut before the next
question, because such a model tends to continue with further ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from meditron.engine.base import Generates, GivesLogits, Prompt, Reply, ScoresTokens, prompt_ids
from meditron.model.sampling import SamplingConfig
from meditron.text.base_prompt import NEXT_QUESTION, render_base_prompt
from meditron.text.chat import Message
from meditron.text.tokenizer import Tokenizer

__all__ = ["Chat"]


@dataclass
class Chat:
    """A conversation: the questions and answers so far, and the engine that answers."""

    engine: Generates
    system_prompt: str | None = None
    """System prompt."""
    examples: Sequence[Message] = ()
    """Messages before the first question, such as the solved example of a stored prompt."""
    turns: list[tuple[str, str]] = field(default_factory=list)
    """Questions with their answers."""
    dropped_turns: int = 0
    """Number of oldest turns that did not fit in the context at the last question."""

    @property
    def has_chat_template(self) -> bool:
        """True if the model has a chat template.

        An engine without a local tokenizer (a server) counts as having one, because it applies its own.
        """
        return self._tokenizer is None or self._tokenizer.chat_template is not None

    @property
    def _tokenizer(self) -> Tokenizer | None:
        return self.engine.tokenizer if isinstance(self.engine, ScoresTokens | GivesLogits) else None

    def ask(self, question: str, sampling: SamplingConfig) -> Reply:
        """Generate the answer to a question.

        The question and the answer become a turn when `add_turn` is called.

        The oldest turns are left out until the context has space for the answer: `max_tokens` tokens, or half
        of the context if that is less. Errors are those of `Generates.generate`.
        """
        self.dropped_turns = min(self.dropped_turns, len(self.turns))
        # Without the limit of half the context, a large max_tokens would drop all earlier turns at every
        # question.
        available = self.engine.context - min(sampling.max_tokens, self.engine.context // 2)
        while self.dropped_turns < len(self.turns) and self._prompt_tokens(question) > available:
            self.dropped_turns += 1
        prompt, raw = self._prompt(question), not self.has_chat_template
        reply = self.engine.generate(prompt, raw=raw, **sampling.generate_arguments)
        return reply.end_before(NEXT_QUESTION) if raw else reply

    def add_turn(self, question: str, answer: str) -> None:
        """Append a question and its answer as the last turn."""
        self.turns.append((question, answer.strip()))

    def clear(self) -> None:
        """Remove all turns."""
        self.turns.clear()
        self.dropped_turns = 0

    def messages(self) -> list[Message]:
        """Return the whole conversation as messages with role and content."""
        return self._messages(self.turns)

    def _messages(self, turns: list[tuple[str, str]]) -> list[Message]:
        messages: list[Message] = (
            [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        )
        messages += self.examples
        for question, answer in turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return messages

    def _prompt(self, question: str) -> Prompt:
        messages = [
            *self._messages(self.turns[self.dropped_turns :]),
            {"role": "user", "content": question},
        ]
        return messages if self.has_chat_template else render_base_prompt(messages)

    def _prompt_tokens(self, question: str) -> int:
        """Return the prompt's number of tokens; 0 if the engine has no local tokenizer to count them."""
        if self._tokenizer is None:
            return 0
        return len(prompt_ids(self._tokenizer, self._prompt(question), raw=not self.has_chat_template))
