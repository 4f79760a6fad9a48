"""The running server: a request with a stored prompt, its row in the log, and what is in the files."""

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from command import Command
from meditron.serve.audit import last_events, verify_audit
from serving import Server, serving

SECRET = "Xylophonitis"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def server(base_gguf: Path, chat_gguf: Path, folder: Path) -> Iterator[Server]:
    with serving(folder, chat_gguf, base_gguf, "--context", "2048", "--log-content") as running:
        yield running


def test_a_served_request_records_the_hash_of_its_prompt(
    server: Server, folder: Path, meditron: Command, base_gguf: Path
) -> None:
    data = folder / "data"
    for system in ("Answer {{audience}} in one word.", "Answer {{audience}} in two words."):
        name = {"name": "brief"} if not (data / "prompts").exists() else {}
        path = "api/prompts" if name else "api/prompts/brief/versions"
        assert server.post(path, system=system, **name).status_code == 201
    first, second = (
        version["version"]
        for version in json.loads(
            meditron("prompts", "export", "brief", "--json", "--prompts", data / "prompts").out
        )["versions"]
    )
    label = {"label": "production", "reason": "a test"}
    assert server.post("api/prompts/brief/labels", version=first, **label).status_code == 200
    with openai.OpenAI(base_url=f"{server.url}v1", api_key="none", max_retries=0, timeout=60) as client:
        asked = client.chat.completions.with_raw_response.create(
            model="chat",
            messages=[{"role": "user", "content": "What is sepsis?"}],
            max_tokens=4,
            temperature=0,
            metadata={"ward": "7"},
            extra_body={"prompt": {"name": "brief", "variables": {"audience": "a nurse"}}, "tags": ["test"]},
        )
        assert asked.headers["x-meditron-prompt"] == f"brief@{first}"
        request = asked.headers["x-request-id"]
        # After the label has moved, the same request gets the other version, also in a stream.
        assert server.post("api/prompts/brief/labels", version=second, **label).status_code == 200
        with client.chat.completions.with_streaming_response.create(
            model="chat",
            messages=[{"role": "user", "content": "What is sepsis?"}],
            max_tokens=4,
            stream=True,
            extra_body={"prompt": {"name": "brief", "variables": {"audience": "a nurse"}}},
        ) as stream:
            stream.read()
            assert stream.headers["x-meditron-prompt"] == f"brief@{second}"
    shown = json.loads(meditron("logs", "show", request, "--data", data, "--json").out)
    assert (shown["gen_ai.prompt.name"], shown["gen_ai.prompt.version"]) == ("brief", first)
    assert shown["meditron.prompt.label"] == "production"
    assert (shown["meditron.tags"], shown["meditron.metadata"]) == (["test"], {"ward": "7"})
    assert shown["gen_ai.usage.output_tokens"] == 4
    assert shown["gen_ai.response.time_to_first_chunk"] <= shown["meditron.duration"]
    assert [message["parts"][0]["content"] for message in shown["gen_ai.input.messages"]] == [
        "Answer a nurse in one word.",
        "What is sepsis?",
    ]
    # A replay on the server, and one from the command line with a model file.
    variables = {"audience": "a doctor"}
    again = server.post(
        f"api/logs/{request}/replay", model="base", prompt=f"brief@{second}", variables=variables
    ).json()
    assert again["prompt"] == f"brief@{second}"
    local = meditron("logs", "replay", request, "--model", base_gguf, "--data", data, "--json")
    assert local.code == 0, local.err
    replay = json.loads(local.out)
    assert replay["prompt"] == f"brief@{first}"
    row = json.loads(meditron("logs", "show", request, "--data", data, "--json").out)
    assert row["meditron.replays"] == [again["id"], replay["id"]]
    found = json.loads(meditron("logs", "search", "sepsis", "--data", data, "--json").out)
    assert found["total"] == 4


@pytest.mark.parametrize(
    ("prompt", "status", "problem"),
    [
        ({"name": "nothing"}, 404, "no prompt 'nothing'"),
        ({"name": "one-shot-medical", "label": "staging"}, 404, "no label 'staging'"),
        ({"name": "one-shot-medical", "label": "latest", "version": "0" * 12}, 400, "not both"),
        ({"name": "one-shot-medical", "variables": {"x": "y"}}, 400, "no variable x"),
        ({"name": "../one-shot-medical"}, 404, "no prompt"),
        ("one-shot-medical", 400, "prompt"),
    ],
)
def test_prompts_that_cannot_be_used(server: Server, prompt: object, status: int, problem: str) -> None:
    refused = server.chat("chat", "Hello", prompt=prompt, max_tokens=1)
    assert refused.status_code == status, refused.text
    assert problem in refused.json()["error"]["message"]
    system = [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}]
    both = server.post(
        "v1/chat/completions", model="chat", messages=system, prompt={"name": "one-shot-medical"}
    )
    assert both.status_code == 400
    assert "another" in both.json()["error"]["message"]


def test_without_log_content_no_file_has_the_text_and_a_kill_leaves_good_files(
    chat_gguf: Path, tmp_path: Path, meditron: Command
) -> None:
    with serving(tmp_path, chat_gguf, "--context", "1024") as running:
        reply = running.chat("chat", f"What is {SECRET}?", max_tokens=4, stop=[SECRET])
        assert reply.status_code == 200
        assert running.get(f"api/logs/{reply.headers['x-request-id']}").status_code == 200
        running.process.kill()
        running.process.wait()
    data = tmp_path / "data"
    for file in data.rglob("*"):
        assert not file.is_file() or SECRET.lower().encode() not in file.read_bytes().lower(), file
    assert verify_audit(data).ok
    assert [event["event"] for event in last_events(data, 5)] == ["start", "setting", "request"]
    [row] = json.loads(meditron("logs", "list", "--data", data, "--json").out)["requests"]
    assert row["gen_ai.request.model"] == "chat"
    assert "gen_ai.input.messages" not in row


def test_a_prompt_with_a_question_needs_no_message(server: Server) -> None:
    question = [{"role": "user", "content": "Summarize: {{text}}"}]
    server.post("api/prompts", name="summary", messages=question)
    prompt = {"name": "summary", "variables": {"text": "Sepsis."}}
    answered = server.post("v1/chat/completions", model="chat", prompt=prompt, max_tokens=1)
    assert answered.status_code == 200, answered.text
    for body, problem in [
        ({}, "messages: Field required"),
        ({"messages": [], "prompt": prompt}, "messages"),
        ({"prompt": {"name": "zero-shot-medical"}}, "needs a message after it"),
    ]:
        refused = server.post("v1/chat/completions", model="chat", **body)
        assert refused.status_code == 400
        assert problem in refused.json()["error"]["message"]
        assert refused.json()["error"]["param"] in ("messages", "prompt")
