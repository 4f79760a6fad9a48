"""The API engine against a local server that fails in every way that servers fail."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from api_server import Server, running_server
from meditron.core.errors import EngineError, UsageError
from meditron.engine.api import API_KEY_VARIABLE, ApiEngine, ApiSettings

KEY = "sk-very-secret"
FAST = ApiSettings(concurrency=4, attempts=4, timeout=2.0, backoff=0.01)


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def engine(server: Server) -> Iterator[ApiEngine]:
    with ApiEngine(server.url, settings=FAST) as engine:
        yield engine


def test_texts_conversations_and_settings_are_sent_as_openai_defines_them(server: Server, engine: ApiEngine):
    chat = engine.generate(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "fever"}],
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        seed=3,
    ).finish()
    assert (chat.text, chat.tokens, chat.stop) == ("FEVER", 7, "end")
    assert engine.generate("rash", raw=True).finish().text == "RASH"
    first, second = server.bodies
    assert first == {
        "model": "toy", "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 3,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "fever"}],
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert second["prompt"] == "rash"
    assert engine.identity["url"] == server.url
    assert (engine.identity["engine"], engine.identity["model"]) == ("api", "toy")


FAILURES = [
    "429",
    "500",
    "503",
    "half",
    "cut",
    "closed",
    "never",
    "drip",
    "other",
    "damaged gzip",
    "[" * 100_000,
]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_that_passes_loses_nothing_and_counts_nothing_twice(
    server: Server, engine: ApiEngine, failure: str
):
    server.failures = lambda prompt, attempt: failure if attempt == 1 and prompt in ("p1", "p4") else ""
    prompts = [f"p{number}" for number in range(8)]
    answers = engine.generate_batch(prompts)
    assert [answer.text for answer in answers] == [prompt.upper() for prompt in prompts]
    assert server.attempts == {prompt: 2 if prompt in ("p1", "p4") else 1 for prompt in prompts}


@pytest.mark.parametrize(
    "usage",
    [
        "null",
        "[]",
        '{"completion_tokens": null}',
        '{"completion_tokens": 1e999}',
        '{"completion_tokens": NaN}',
        '{"completion_tokens": -3}',
        '{"completion_tokens": "7"}',
    ],
)
def test_an_answer_whose_tokens_the_server_does_not_count_has_its_words(
    server: Server, engine: ApiEngine, usage: str
):
    choice = '{"message": {"content": "two words"}, "finish_reason": "stop"}'
    server.failures = lambda prompt, attempt: f'{{"choices": [{choice}], "usage": {usage}}}'
    assert [(each.text, each.tokens) for each in engine.generate_batch(["p"])] == [("two words", 2)]


def events(*contents: object) -> str:
    return "".join(f"data: {json.dumps(content)}\n\n" for content in contents) + "data: [DONE]\n\n"


def piece(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish}]}


def test_pieces_of_a_stream_are_one_answer(server: Server, engine: ApiEngine):
    pieces = [piece("hyper"), piece("tension is"), piece(" high", "length")]
    server.failures = lambda prompt, attempt: events(*pieces)
    reply = engine.generate("p")
    assert next(reply) == "hyper"
    answer = reply.finish()
    # Without a count of the server's it has its words, as an answer in one piece.
    assert (answer.text, answer.tokens, answer.stop) == ("hypertension is high", 3, "length")
    usage = {"choices": [], "usage": {"completion_tokens": 9}}
    server.failures = lambda prompt, attempt: events(*pieces, usage)
    assert engine.generate("p").finish().tokens == 9


@pytest.mark.parametrize(
    ("failure", "problem"),
    [
        ("event without an end", "no complete answer within"),
        (events(piece("a"), {"error": {"message": "out of memory"}}), "the server failed: out of memory"),
        (events(piece("a"), {"choices": [{}]}), "not that of an OpenAI-compatible server"),
        (f"data: {json.dumps(piece('a'))}\n\n", "ended before the answer was complete"),
        ("data: {\n\n", "is not JSON"),
    ],
)
def test_a_broken_stream_is_an_error_with_the_address(
    server: Server, engine: ApiEngine, failure: str, problem: str
):
    server.failures = lambda prompt, attempt: failure
    with pytest.raises(EngineError, match=f"{server.url}: .*{problem}"):
        engine.generate("p").finish()
    assert server.attempts == {"p": 1}


def test_half_of_a_surrogate_pair_in_an_answer_can_be_written(server: Server, engine: ApiEngine):
    server.text = lambda prompt, seed: "a \ud83e b \U0001f9e0"
    [answer] = engine.generate_batch(["p"])
    assert answer.text == "a \ufffd b \U0001f9e0"
    assert answer.text.encode()


def test_all_failures_at_once(server: Server, engine: ApiEngine):
    plan = {f"p{number}": failure for number, failure in enumerate(FAILURES)}
    server.failures = lambda prompt, attempt: plan.get(prompt, "") if attempt < 3 else ""
    prompts = [f"p{number}" for number in range(40)]
    samples = engine.generate_samples([(prompt, [1, 2]) for prompt in prompts])
    assert [[each.text for each in pair] for pair in samples] == [[prompt.upper()] * 2 for prompt in prompts]
    assert (
        1 < server.most_active <= FAST.concurrency + len(FAILURES)
    )  # the server may still hold some that timed out


def test_each_sample_has_its_seed(server: Server, engine: ApiEngine):
    engine.generate_samples([("a", [5, 6]), ("b", [7])], temperature=1.0)
    seeds = {(body["messages"][0]["content"], body["seed"]) for body in server.bodies}
    assert seeds == {("a", 5), ("a", 6), ("b", 7)}


def test_the_wait_that_the_server_asks_for_is_kept(server: Server, engine: ApiEngine):
    server.failures = lambda prompt, attempt: "429" if attempt == 1 else ""
    start = time.monotonic()
    engine.generate("a").finish()
    assert time.monotonic() - start >= 0.3  # FAST would wait 0.01 s


def test_a_server_that_stays_broken_ends_the_run(server: Server, engine: ApiEngine):
    server.failures = lambda prompt, attempt: "500" if prompt == "p1" else ""
    with pytest.raises(EngineError, match="HTTP 500, after 4 attempts"):
        engine.generate_batch([f"p{number}" for number in range(8)])
    assert server.attempts["p1"] == FAST.attempts
    server.failures = lambda prompt, attempt: ""
    assert engine.generate("p1").finish().text == "P1"  # the engine goes on


def test_a_refusal_is_not_repeated_and_the_key_is_never_printed(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(API_KEY_VARIABLE, KEY)
    with ApiEngine(server.url, settings=FAST) as engine:
        server.failures = lambda prompt, attempt: "401"
        with pytest.raises(EngineError, match="HTTP 401: no, Bearer …") as refusal:
            engine.generate("a").finish()
        server.failures = lambda prompt, attempt: "500" if attempt == 1 else ""
        engine.generate("b").finish()
        assert KEY not in json.dumps(dict(engine.identity))
    assert server.attempts["a"] == 1
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(refusal.value) + str(refusal.value.hint) + "".join(capfd.readouterr())


def test_the_only_model_of_a_server_need_not_be_named(server: Server):
    with ApiEngine.load(f"api:{server.url}", FAST) as engine:
        assert engine.identity["model"] == "toy"
    server.models = ["small", "large"]
    with pytest.raises(UsageError, match="serves 2 models") as error:
        ApiEngine.load(f"api:{server.url}", FAST)
    assert f"api:{server.url}#small" in str(error.value.hint)
    with ApiEngine.load(f"api:{server.url}#large", FAST) as engine:
        assert engine.identity["model"] == "large"


def test_no_server_and_no_address():
    with pytest.raises(EngineError, match="connection failed"):
        ApiEngine("http://127.0.0.1:9/v1", settings=ApiSettings(attempts=2, backoff=0.01))
    with pytest.raises(UsageError, match="not an http address"):
        ApiEngine("localhost:8000/v1")
