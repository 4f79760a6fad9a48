"""A chat with engines of both kinds: with a tokenizer here, and a server that only generates."""

from collections.abc import Sequence
from typing import Self

from meditron.engine import Generates, Generation, GivesLogits, LocalEngine, Reply, ScoresTokens
from meditron.engine.base import Prompt
from meditron.engine.conversation import Chat
from meditron.model.sampling import SamplingConfig


class ToyServer(Generates):
    """An engine without a tokenizer, as a remote API is: it answers with the length of its prompt."""

    context = 64
    identity = {"engine": "api", "url": "http://localhost/v1", "model": "toy", "date": "2026-11-28"}  # noqa: RUF012

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []

    def generate(self, prompt: Prompt, *, raw: bool = False, **options) -> Reply:
        self.prompts.append(prompt)

        def pieces():
            yield f"{len(prompt)} messages, seed {options['seed']}", 4
            yield "end"

        return Reply(pieces())

    def generate_batch(self, prompts: Sequence[Prompt], *, raw: bool = False, **options) -> list[Generation]:
        seed = options.pop("seed", 0)
        return [
            self.generate(prompt, raw=raw, seed=seed + n, **options).finish()
            for n, prompt in enumerate(prompts)
        ]

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_an_engine_without_a_tokenizer_generates_and_does_nothing_else():
    with ToyServer() as server:
        assert isinstance(server, Generates)
        assert not isinstance(server, ScoresTokens | GivesLogits)


def test_a_server_gets_the_whole_conversation_and_applies_its_own_template():
    server = ToyServer()
    chat = Chat(server, "Be brief.")
    assert chat.has_chat_template
    for n in range(3):
        answer = chat.ask("word " * 100, SamplingConfig(seed=n)).finish().text
        assert answer == f"{2 * n + 2} messages, seed {n}"
        chat.add_turn("word " * 100, answer)
    assert chat.dropped_turns == 0
    roles = [message["role"] for message in server.prompts[-1]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]


def test_the_oldest_turns_leave_first_when_the_context_of_a_local_engine_is_full(engine: LocalEngine):
    chat = Chat(engine)
    assert not chat.has_chat_template
    sampling = SamplingConfig(max_tokens=4)
    for n in range(8):
        question = f"What lowers mortality in trial {n}?"
        assert chat.ask(question, sampling).finish().tokens <= 4
        chat.add_turn(question, "Aspirin, in most of the trials that enrolled patients.")
    assert 0 < chat.dropped_turns < 8
    assert len(chat.messages()) == 16
    chat.clear()
    assert (chat.turns, chat.dropped_turns) == ([], 0)
