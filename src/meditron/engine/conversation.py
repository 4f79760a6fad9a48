"""A conversation with a model: its turns, and the part of them that fits in the context.

A model without a chat template gets the text `Question: …`, `Answer:`, and its answer ends before the next
`Question:` that it would write itself.
"""

from dataclasses import dataclass, field

from meditron.engine.base import Generates, GivesLogits, Prompt, Reply, ScoresTokens, prompt_ids
from meditron.model.sampling import SamplingConfig
from meditron.text.chat import Message
from meditron.text.tokenizer import Tokenizer

__all__ = ["Chat"]

_NEXT_QUESTION = "\nQuestion:"


@dataclass
class Chat:
    """The questions and answers so far, with the engine that answers."""

    engine: Generates
    system: str | None = None
    """System prompt."""
    turns: list[tuple[str, str]] = field(default_factory=list)
    """Questions with their answers."""
    dropped_turns: int = 0
    """Number of oldest turns that did not fit in the context at the last question."""

    @property
    def has_chat_template(self) -> bool:
        """True if the model has a chat template. A server without a tokenizer here applies its own."""
        return self._tokenizer is None or self._tokenizer.chat_template is not None

    @property
    def _tokenizer(self) -> Tokenizer | None:
        return self.engine.tokenizer if isinstance(self.engine, ScoresTokens | GivesLogits) else None

    def ask(self, question: str, sampling: SamplingConfig) -> Reply:
        """Generate the answer to a question. It becomes a turn when `keep` is called with the answer.

        The oldest turns are left out until there is space for the answer: `max_tokens`, or half of the
        context if that is less. Errors are those of `Generates.generate`.
        """
        self.dropped_turns = min(self.dropped_turns, len(self.turns))
        # Without the bound of one half, a large max_tokens would forget everything at every question.
        available = self.engine.context - min(sampling.max_tokens, self.engine.context // 2)
        while self.dropped_turns < len(self.turns) and self._prompt_tokens(question) > available:
            self.dropped_turns += 1
        prompt, raw = self._prompt(question), not self.has_chat_template
        reply = self.engine.generate(prompt, raw=raw, **sampling.options)
        return reply.end_before(_NEXT_QUESTION) if raw else reply

    def add_turn(self, question: str, answer: str) -> None:
        """Append a question and its answer as the last turn."""
        self.turns.append((question, answer.strip()))

    def clear(self) -> None:
        """Remove all turns."""
        self.turns.clear()
        self.dropped_turns = 0

    def messages(self) -> list[Message]:
        """Return the whole conversation in the form of chat templates and training rows."""
        return self._messages(self.turns)

    def _messages(self, turns: list[tuple[str, str]]) -> list[Message]:
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer in turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return messages

    def _prompt(self, question: str) -> Prompt:
        turns = self.turns[self.dropped_turns :]
        if self.has_chat_template:
            return [*self._messages(turns), {"role": "user", "content": question}]
        parts = [self.system] if self.system else []
        parts += [f"Question: {earlier}\nAnswer: {answer}" for earlier, answer in turns]
        return "\n\n".join([*parts, f"Question: {question}\nAnswer:"])

    def _prompt_tokens(self, question: str) -> int:
        """Return the length of the prompt; 0 if only the server can count it."""
        if self._tokenizer is None:
            return 0
        return len(prompt_ids(self._tokenizer, self._prompt(question), raw=not self.has_chat_template))
