"""A conversation with a model: its turns, and what of them still fits in the context.

A model without a chat template is asked as `Question: …`, `Answer:`, and its answer ends where it would ask
the next question itself.
"""

from dataclasses import dataclass, field

from meditron.engine.base import Engine, Prompt, Reply, prompt_ids
from meditron.text.chat import Message

__all__ = ["Conversation"]

_NEXT = "\nQuestion:"


@dataclass
class Conversation:
    """What was asked and answered so far."""

    engine: Engine
    system: str | None = None
    """What the model is told before anything is asked."""
    turns: list[tuple[str, str]] = field(default_factory=list)
    """Questions with their answers."""
    forgotten: int = 0
    """How many turns, the oldest, did not fit in the context when the last question was asked."""

    @property
    def templated(self) -> bool:
        """Whether the model has a chat template."""
        return self.engine.tokenizer.chat_template is not None

    def ask(self, question: str, *, max_tokens: int, temperature: float, top_p: float, seed: int) -> Reply:
        """Put a question after what was said; it becomes a turn when its answer is kept.

        The oldest turns are left out until the answer has room: `max_tokens`, or half of the context.
        Raises as `Engine.generate` does.
        """
        self.forgotten = min(self.forgotten, len(self.turns))
        wanted = self.engine.context - min(max_tokens, self.engine.context // 2)
        while self.forgotten < len(self.turns) and self._tokens(question) > wanted:
            self.forgotten += 1
        reply = self.engine.generate(
            self._prompt(question),
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            raw=not self.templated,
        )
        return reply if self.templated else reply.until(_NEXT)

    def keep(self, question: str, answer: str) -> None:
        """Make a question and its answer the last turn."""
        self.turns.append((question, answer.strip()))

    def clear(self) -> None:
        """Forget every turn."""
        self.turns.clear()
        self.forgotten = 0

    def messages(self) -> list[Message]:
        """All of it, as chat templates and training rows have it."""
        return self._messages(self.turns)

    def _messages(self, turns: list[tuple[str, str]]) -> list[Message]:
        told: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer in turns:
            told += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return told

    def _prompt(self, question: str) -> Prompt:
        turns = self.turns[self.forgotten :]
        if self.templated:
            return [*self._messages(turns), {"role": "user", "content": question}]
        told = [self.system] if self.system else []
        told += [f"Question: {asked}\nAnswer: {answer}" for asked, answer in turns]
        return "\n\n".join([*told, f"Question: {question}\nAnswer:"])

    def _tokens(self, question: str) -> int:
        return len(prompt_ids(self.engine.tokenizer, self._prompt(question), raw=not self.templated))
