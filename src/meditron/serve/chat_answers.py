"""Generation of the chat page's answers: each is a task that stores its text when it ends or is stopped."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

from meditron.core.console import warn
from meditron.core.errors import MeditronError
from meditron.serve.conversations import Answer, Conversation, Conversations, Message, State
from meditron.serve.state import ChatCall, ChatPiece, ChatSource, ModelInfo
from meditron.text.chat import Message as ChatMessage

__all__ = ["Answers", "Event", "chat_messages", "provenance_of"]

_SAVE_SECONDS = 5.0  # a crash loses the text of so many seconds
_INTERNAL = "the server failed; its log has the reason"

Event = tuple[str, dict[str, Any]]
"""Name and data of a server-sent event."""


class Answers:
    """The answers that are being generated. They are used from one event loop."""

    def __init__(self, store: Conversations, models: ChatSource) -> None:
        """Keep where answers come from and where they are stored."""
        self._store, self._models = store, models
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._stoppable: set[int] = set()
        """Answers whose model still generates. Later a task only stores the answer and must not be
        cancelled, because the page's stream waits for its end."""

    def start(self, message: Message, call: ChatCall, events: "asyncio.Queue[Event | Message]") -> None:
        """Generate an answer in a task. Its pieces go to `events`, at its end the finished message.

        The task does not belong to the request: a request that is cancelled could not store anything.
        """
        task = asyncio.create_task(self._generate(message, call, events))
        self._tasks[message.id] = task
        self._stoppable.add(message.id)
        task.add_done_callback(lambda _: self._tasks.pop(message.id, None))

    def stop(self, message_id: int) -> bool:
        """Cancel an answer, and return False if it is not being generated."""
        if message_id not in self._stoppable:
            return False
        self._stoppable.remove(message_id)
        return self._tasks[message_id].cancel()

    def is_running(self, message_id: int) -> bool:
        """Return whether an answer is being generated."""
        return message_id in self._tasks

    async def _generate(
        self, message: Message, call: ChatCall, events: "asyncio.Queue[Event | Message]"
    ) -> None:
        progress = _Progress()
        state: State = "done"
        error: str | None = None
        hint: str | None = None
        try:
            # A source is an asynchronous generator: closing it frees the model's slot at once.
            async with aclosing(cast("Any", self._models.stream(call))) as pieces:
                async for piece in pieces:
                    if text := progress.add(piece):
                        events.put_nowait(("piece", {"id": message.id, "text": text}))
                    if progress.is_save_due():
                        await self._save(replace(message, text=progress.text))
        except asyncio.CancelledError:
            state = "stopped"
        except MeditronError as failure:
            state, error, hint = "failed", failure.message, failure.hint
        except Exception as failure:  # its text may contain paths or content of this process
            warn(f"an answer failed: {type(failure).__name__}: {failure}")
            state, error = "failed", _INTERNAL
        finally:
            self._stoppable.discard(message.id)
        if progress.finish == "cancelled":
            state = "stopped"
        assert message.answer is not None  # noqa: S101  # set by `Conversations.add_answer`
        provenance = provenance_of(self._models.list_models(), call.model)
        answer = replace(
            message.answer,
            provenance=provenance or message.answer.provenance,
            input_tokens=progress.input_tokens,
            output_tokens=progress.output_tokens,
            seconds=time.monotonic() - progress.started,
            first_token_seconds=progress.first_token_seconds,
            finish=progress.finish,
            error=error,
            hint=hint,
        )
        finished = replace(message, text=progress.text, state=state, answer=answer)
        if problem := await self._save(finished):  # the text is still shown
            finished = replace(finished, answer=replace(answer, error=f"not stored: {problem}"))
        events.put_nowait(finished)

    async def _save(self, message: Message) -> str | None:
        """Store an answer so far, and return what went wrong."""
        try:
            await asyncio.to_thread(self._store.save, message)
        except MeditronError as failure:
            warn(f"an answer was not stored: {failure.message}")
            return failure.message
        except Exception as failure:  # the stream of the page must end all the same
            warn(f"an answer was not stored: {type(failure).__name__}: {failure}")
            return _INTERNAL
        return None


@dataclass(slots=True)
class _Progress:
    """An answer so far."""

    texts: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)
    first_token_seconds: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish: str | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.texts)

    def is_save_due(self) -> bool:
        """Return whether the text was not stored for some seconds; they begin again if so."""
        due = time.monotonic() - self.saved >= _SAVE_SECONDS
        if due:
            self.saved = time.monotonic()
        return due

    def add(self, piece: ChatPiece) -> str:
        """Add a piece, and return its text to show."""
        # The blanks between "Answer:" in the prompt of a base model and the first word are not shown.
        text = piece.text if self.texts else piece.text.lstrip()
        if text:
            self.texts.append(text)
            if self.first_token_seconds is None:
                self.first_token_seconds = time.monotonic() - self.started
        self.finish = piece.finish or self.finish
        self.input_tokens = self.input_tokens if piece.input_tokens is None else piece.input_tokens
        self.output_tokens = self.output_tokens if piece.output_tokens is None else piece.output_tokens
        return text


def chat_messages(conversation: Conversation, question: int, answer: Answer) -> tuple[list[ChatMessage], int]:
    """Return what a model is asked, and the number of oldest turns that are left out.

    Turns with an empty answer, which failed or was stopped, are not sent: chat templates need answers with
    text. The oldest ones are left out until the context has space for the answer: `max_tokens` tokens, or
    half of the context if that is less. The number of tokens is estimated from that of the last answer.

    Args:
        conversation: The conversation.
        question: Id of the message to answer.
        answer: The model, its context and the settings of the answer.
    """
    path = conversation.path(question)
    turns = [turn for turn in zip(path[:-1:2], path[1::2], strict=True) if turn[1].text.strip()]
    start, rate = _last_prompt(turns)
    if context := answer.provenance.get("context"):
        space = context - min(answer.sampling.get("max_tokens") or context, context // 2)
        new = len(answer.system) + len(path[-1].text)
        while start < len(turns) and rate * (new + _characters(turns[start:])) > space:
            start += 1
    sent = [*(message for turn in turns[start:] for message in turn), path[-1]]
    messages: list[ChatMessage] = [{"role": message.role, "content": message.text} for message in sent]
    if answer.system.strip():
        messages.insert(0, {"role": "system", "content": answer.system})
    return messages, start


def _last_prompt(turns: Sequence[tuple[Message, Message]]) -> tuple[int, float]:
    """Return the first turn of the last prompt, and its number of tokens per character."""
    for number, (_, answered) in reversed([*enumerate(turns, 1)]):
        made = answered.answer
        if made is not None and made.input_tokens is not None:
            tokens = made.input_tokens + (made.output_tokens or 0)
            characters = len(made.system) + _characters(turns[made.left_out : number])
            return made.left_out, tokens / max(1, characters)
    return 0, 0.0


def _characters(turns: Sequence[tuple[Message, Message]]) -> int:
    return sum(len(asked.text) + len(answered.text) for asked, answered in turns)


def provenance_of(models: Sequence[ModelInfo], name: str) -> dict[str, Any]:
    """Return what is known about a model, as it is stored with an answer; empty for an unknown model."""
    hidden = ("id", "state", "path")
    return next(
        ({key: v for key, v in asdict(m).items() if key not in hidden} for m in models if m.id == name), {}
    )
