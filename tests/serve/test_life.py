"""The life of a server: clients that leave, processes that die, idle models, signals, addresses."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from command import Command
from serving import Server, serving

# The tokens that end a text or a turn are excluded, so that an answer lasts for seconds.
ENDLESS = {"max_tokens": 30_000, "logit_bias": {"0": -100, "1": -100, "2": -100}, "temperature": 0}
# Seconds: a busy machine answers late, but an answer that is not cancelled takes minutes.
SOON = 8
SLOTS = ("--slots", "1", "--max-tokens", "30000")


@pytest.fixture(scope="module")
def server(chat_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, chat_gguf, *SLOTS, "--idle-minutes", "0.05") as running:
        assert running.chat("chat", "Hi", max_tokens=1).status_code == 200
        yield running


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.02)


def leave(server: Server, *, stream: bool, prompt: str = "Hi", after: float = 0.3) -> None:
    """Send a request whose answer takes long, and close the connection."""
    body = {"model": "chat", "messages": [{"role": "user", "content": prompt}], **ENDLESS, "stream": stream}
    url = f"{server.url}v1/chat/completions"
    if not stream:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=body, timeout=after)
        return
    with httpx.stream("POST", url, json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(20)]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_the_slot_of_a_client_that_left_is_free_at_once(server: Server, stream: bool):
    leave(server, stream=stream)
    start = time.monotonic()
    assert server.chat("chat", "Hi", max_tokens=1).status_code == 200
    assert time.monotonic() - start < SOON


def test_the_slot_is_free_after_one_batch_of_a_long_prompt(server: Server):
    leave(server, stream=False, prompt="sepsis " * 4000, after=0.2)
    start = time.monotonic()
    assert server.chat("chat", "Hi", max_tokens=1).status_code == 200
    assert time.monotonic() - start < SOON


def kill_while_another_waits(server: Server, **settings: object) -> None:
    """Kill the model's process while it answers one request and another waits; both must end well."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], **ENDLESS, **settings}
    answers: list[httpx.Response] = []
    server.chat("chat", "Hi", max_tokens=1)
    [child] = server.children()
    waiting = threading.Thread(target=lambda: answers.append(server.chat("chat", "Hi", max_tokens=1)))
    with httpx.stream(
        "POST", f"{server.url}v1/chat/completions", json={**body, "stream": True}, timeout=60
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        waiting.start()
        time.sleep(1)
        assert not answers
        os.kill(child, signal.SIGKILL)
        *_, last = (line for line in lines if line)
    waiting.join()
    error = json.loads(last.removeprefix("data: "))["error"]
    assert "was killed by SIGKILL" in error["message"]
    assert error["type"] == "server_error"
    assert answers[0].status_code == 200, answers[0].text
    assert server.chat("chat", "Hi", max_tokens=1).status_code == 200
    assert server.children() != [child]


def test_a_killed_process_fails_its_requests_and_the_next_starts_another(server: Server):
    kill_while_another_waits(server)  # which waits for the only slot


def test_a_request_that_waits_for_the_kv_cache_gets_the_next_process(chat_gguf: Path, tmp_path: Path):
    words = ("--slots", "2", "--context", "32768", "--max-tokens", "40000")
    with serving(tmp_path, chat_gguf, *words) as server:
        kill_while_another_waits(server, max_tokens=-1)  # the whole context


def test_an_idle_model_is_unloaded_and_loaded_again(server: Server):
    assert server.chat("chat", "Hi", max_tokens=1).status_code == 200
    assert len(server.children()) == 1
    wait_for(lambda: server.get("v1/models").json()["data"][0]["state"] == "unloaded")
    wait_for(lambda: server.children() == [])
    assert server.chat("chat", "Hi", max_tokens=1).status_code == 200


def test_a_request_takes_no_longer_than_allowed(chat_gguf: Path, tmp_path: Path):
    with serving(tmp_path, chat_gguf, *SLOTS, "--request-seconds", "2") as server:
        answer = server.chat("chat", "Hi", **ENDLESS)
        assert answer.status_code == 504
        assert answer.json()["error"]["message"] == "the request took longer than 2 s"
        # The first signal lets a stream finish.
        body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "n": 1}
        settings = {**ENDLESS, "max_tokens": 30}
        with httpx.stream("POST", f"{server.url}v1/chat/completions", json={**body, **settings}) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            assert list(lines)[-2] == "data: [DONE]"
        assert server.process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            server.get("health")


def test_a_second_signal_ends_running_requests(chat_gguf: Path, tmp_path: Path):
    with serving(tmp_path, chat_gguf, *SLOTS) as server:
        body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], **ENDLESS, "stream": True}
        with httpx.stream("POST", f"{server.url}v1/chat/completions", json=body, timeout=60) as stream:
            next(stream.iter_lines())
            [child] = server.children()
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: "a second signal ends them" in server.errors())
            assert server.end() == 1
        wait_for(lambda: not Path(f"/proc/{child}").exists(), 5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--host", "0.0.0.0"), "can be reached from other machines"),  # noqa: S104
        (("--host", "::"), "can be reached from other machines"),
        (("--port", "{taken}"), "address already in use"),
        (("--api-key-file", "none.txt"), "none.txt"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_found_before_a_model_is_read(
    meditron: Command, words: tuple, message: str, tmp_path: Path
):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        given = [word.format(taken=number) for word in words]
        done = meditron("serve", tmp_path / "missing.gguf", *given, "--data", tmp_path)
    assert done.code == 2
    assert message in done.err
    assert "missing.gguf" not in done.err


def test_other_mistakes(meditron: Command, tmp_path: Path, base_gguf: Path):
    data = ("--data", tmp_path, "--port", "0")
    assert "no model to serve" in meditron("serve", *data).err
    assert "missing.gguf: no such file" in meditron("serve", tmp_path / "missing.gguf", *data).err
    twice = meditron("serve", base_gguf, base_gguf, *data)
    assert (twice.code, "the same model is given twice" in twice.err) == (2, True)
    folder = meditron("serve", base_gguf.with_name("hf"), *data)
    assert "the server runs GGUF files only" in folder.err
    assert meditron("serve", base_gguf, "--slots", "0").code == 2
