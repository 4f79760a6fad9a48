"""`generate` and `chat` with a model behind a server."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from api_server import Server, running_server
from command import Command


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


def test_generate_answers_prompts_and_files_of_prompts(
    meditron: Command, server: Server, tmp_path: Path
) -> None:
    model = f"api:{server.url}#toy"
    completed = meditron("generate", model, "What is sepsis?", "--max-tokens", "7", "--seed", "3")
    assert (completed.code, completed.out) == (0, "WHAT IS SEPSIS?\n"), completed.err
    [body] = server.bodies
    assert (body["max_tokens"], body["seed"], body["messages"][0]["content"]) == (7, 3, "What is sepsis?")
    raw = meditron("generate", model, "Sepsis is", "--raw", "--json")
    assert json.loads(raw.out)["text"] == "SEPSIS IS"
    assert server.bodies[-1]["prompt"] == "Sepsis is"
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text('{"id": "a", "prompt": "one"}\n{"id": "b", "prompt": "two"}\n', encoding="utf-8")
    assert meditron("generate", model, "--jsonl", prompts, "--out", answers).code == 0
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines] == ["ONE", "TWO"]
    assert (lines[0]["model"], lines[0]["settings"]["model"]) == (model, "toy")
    asked = len(server.bodies)
    assert meditron("generate", model, "--jsonl", prompts, "--out", answers).code == 0
    other = meditron("generate", f"api:{server.url}#other", "--jsonl", prompts, "--out", answers)
    assert other.code == 2
    assert "another model" in other.err
    assert len(server.bodies) == asked


def test_chat_sends_the_whole_conversation(
    meditron: Command, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("One?\nTwo?\n"))
    completed = meditron("chat", f"api:{server.url}", "--system", "Be brief.", "--json")
    assert completed.code == 0, completed.err
    assert [json.loads(line)["text"] for line in completed.out.splitlines()] == ["ONE?", "TWO?"]
    contents = [message["content"] for message in server.bodies[-1]["messages"]]
    assert contents == ["Be brief.", "One?", "ONE?", "Two?"]


@pytest.mark.parametrize(
    "words", [("--engine", "torch"), ("--context", "64"), ("--dtype", "bfloat16")], ids=lambda words: words[0]
)
def test_settings_of_local_models_are_refused(
    words: tuple[str, str], meditron: Command, server: Server
) -> None:
    completed = meditron("generate", f"api:{server.url}", "One?", *words)
    assert completed.code == 2
    assert f"{words[0][2:]} {words[1]}: the model is behind a server, which decides it" in completed.err
    assert not server.bodies
