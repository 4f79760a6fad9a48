"""`chat` from a pipe and at a real (pseudo-)terminal."""

import io
import json
import os
import pty
import re
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from command import Command, CommandResult
from meditron.core.console import sanitize_terminal
from meditron.core.disclaimer import DISCLAIMER
from meditron.engine import load
from meditron.model.weights import save_gguf
from meditron.store.people import People
from meditron.store.prompt_text import PromptText
from meditron.store.prompts import PromptStore
from meditron.text.base_prompt import render_base_prompt
from tiny import tiny_hf

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
Chat = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template, whose context has 256 tokens."""
    return tiny_hf(tmp_path_factory.mktemp("plain") / "tiny")


@pytest.fixture(scope="module")
def templated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_hf(tmp_path_factory.mktemp("templated") / "tiny")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "chat_template": TEMPLATE}), encoding="utf-8")
    return folder


@pytest.fixture
def chat(meditron: Command, templated: Path, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Pipe lines into a conversation."""

    def run(*lines: str, words: tuple = (), model: Path = templated) -> CommandResult:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return meditron("chat", model, "--max-tokens", "6", *words)

    return run


def answers(said: CommandResult) -> list[str]:
    assert said.code == 0, said.err
    return [json.loads(line)["text"] for line in said.out.splitlines()]


def test_a_question_from_a_pipe_is_answered_and_stdout_has_nothing_else(chat: Chat) -> None:
    said = chat("What is sepsis?")
    assert said.code == 0, said.err
    assert said.err.startswith(DISCLAIMER)
    [text] = answers(chat("What is sepsis?", words=("--json",)))
    assert sanitize_terminal(text) in said.out
    assert "> " not in said.out + said.err


def test_each_answer_depends_on_the_turns_before(chat: Chat, templated: Path) -> None:
    first, second = answers(chat("What is sepsis?", "And aspirin?", words=("--json", "--temperature", "0")))
    with load(str(templated)) as engine:
        talk = [
            {"role": "user", "content": "What is sepsis?"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "And aspirin?"},
        ]
        assert engine.generate(talk, max_tokens=6).finish().text.strip() == second


def test_equal_seeds_and_lines_give_equal_answers_and_regen_draws_another(chat: Chat) -> None:
    lines, words = ("What is sepsis?", "/regen", "/regen"), ("--json", "--temperature", "1.5", "--top-p", "1")
    assert answers(chat(*lines, words=words)) == answers(chat(*lines, words=words))
    assert len(set(answers(chat(*lines, words=words)))) > 1


def test_commands(chat: Chat, tmp_path: Path) -> None:
    saved = tmp_path / "talk.jsonl"
    lines = [
        "/system Be brief.",
        "One?",
        "/clear",
        "/temp 0",
        "Two?",
        "/regen",
        f"/save {saved}",
        "/quit",
        "No?",
    ]
    said = chat(*lines, "", words=("--json",))
    assert len(answers(said)) == 3
    [row] = [json.loads(line) for line in saved.read_text(encoding="utf-8").splitlines()]
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][0]["content"] == "Be brief."
    assert row["messages"][1]["content"] == "Two?"
    helped = chat("/help")
    for command in ("/help", "/clear", "/system", "/regen", "/temp", "/save", "/quit"):
        assert command in helped.err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/hlep", "did you mean /help"),
        ("/temp warm", "must be a number ≥ 0, got 'warm'"),
        ("/temp nan", "must be a number ≥ 0, got 'nan'"),
        ("/save", "needs a file"),
        ("/save /nowhere/x.jsonl", "/nowhere/x.jsonl"),
        ("/save ~nobody-of-this-name/x.jsonl", "is not a valid path"),
        ("/regen", "there is no question yet"),
        ("word " * 300, "context is 256"),
    ],
)
def test_a_failed_line_is_reported_and_the_next_is_answered(chat: Chat, line: str, expected: str) -> None:
    said = chat(line, "What is sepsis?", words=("--json",))
    assert said.code == 1
    assert expected in said.err
    assert len(said.out.splitlines()) == 1


def test_the_oldest_turns_are_left_out_when_the_context_is_full(chat: Chat, tmp_path: Path) -> None:
    saved = tmp_path / "talk.jsonl"
    said = chat(*["What lowers mortality?"] * 12, f"/save {saved}", words=("--json",))
    assert len(answers(said)) == 12
    assert "the context is full" in said.err
    assert len(json.loads(saved.read_text(encoding="utf-8"))["messages"]) == 24


def test_a_model_without_a_template_gets_a_plain_prompt(chat: Chat, plain: Path) -> None:
    said = chat("What is sepsis?", "And aspirin?", words=("--json", "--temperature", "0"), model=plain)
    assert "has no chat template" in said.err
    first, second = answers(said)
    with load(str(plain)) as engine:
        roles = ("user", "assistant", "user")
        talk = zip(roles, ("What is sepsis?", first, "And aspirin?"), strict=True)
        text = render_base_prompt([{"role": role, "content": content} for role, content in talk])
        reply = engine.generate(text, raw=True, max_tokens=6).end_before("\nQuestion:")
        assert reply.finish().text.strip() == second


def test_invalid_usage_is_an_error(meditron: Command, templated: Path) -> None:
    said = meditron("chat", templated, "--temperature", "-1")
    assert (said.code, said.out) == (2, "")
    assert "temperature" in said.err


def test_at_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_ends(plain: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "F32.gguf"
    with load(str(plain)) as engine:
        config = engine.model.config.model_copy(update={"max_position_embeddings": 8192})
        save_gguf(engine.model, config, engine.tokenizer, gguf, "F32")
    shown = on_terminal(
        ["chat", str(gguf), "--engine", "llama.cpp", "--max-tokens", "8000", "--temperature", "0"],
        [
            (r"> ", b"What is sepsis?\n"),
            (r"sepsis\?\s+\S", b"\x03"),  # once the answer has begun
            # Keys wait for the prompt: before it the terminal's own line editing would take them.
            (r"\(stopped\).*> ", b"/help\n"),
            (r"/quit +end.*> ", b"typed\x03"),
            (r"/quit ends.*> ", b"\x04"),
        ],
        XDG_STATE_HOME=str(tmp_path / "state"),
    )
    assert "Traceback" not in shown
    history = tmp_path / "state" / "meditron" / "chat_history"
    assert history.read_text(encoding="utf-8") == "What is sepsis?\n/help\n"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def on_terminal(words: list[str], script: list[tuple[str, bytes]], **environment: str) -> str:
    """Run the command at a terminal: when what the script waits for is shown, its keys are typed."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "meditron", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", **environment},
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    ) as process:
        os.close(theirs)
        shown, since = "", 0
        try:
            while select.select([ours], [], [], 60)[0] and (piece := os.read(ours, 65536)):
                shown += piece.decode(errors="replace")
                if script and (found := re.compile(script[0][0], re.DOTALL).search(shown, since)):
                    since = found.end()
                    time.sleep(0.3)  # as no person types within the millisecond in which a prompt is drawn
                    os.write(ours, script.pop(0)[1])
            process.kill()
        except OSError:  # Linux reports so that the other end is closed
            pass
        finally:
            os.close(ours)
    assert process.returncode == 0, shown
    return shown


def test_a_stored_prompt_comes_before_the_conversation(chat: Chat, templated: Path, tmp_path: Path) -> None:
    folder, saved = tmp_path / "prompts", tmp_path / "talk.jsonl"
    text = PromptText(
        system="Be brief, {{who}}.",
        messages=[{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1."}],
    )
    stored = PromptStore(folder).add("brief", text, People().local)
    words = (
        "--prompts",
        folder,
        "--prompt",
        "brief",
        "--variable",
        "who=nurse",
        "--json",
        "--temperature",
        "0",
    )
    said = chat("What is sepsis?", f"/save {saved}", words=words)
    [answer] = answers(said)
    assert f"prompt: {stored.id}" in said.err
    [row] = [json.loads(line) for line in saved.read_text(encoding="utf-8").splitlines()]
    before = [
        {"role": "system", "content": "Be brief, nurse."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1."},
        {"role": "user", "content": "What is sepsis?"},
    ]
    assert row["messages"] == [*before, {"role": "assistant", "content": answer}]
    with load(str(templated)) as engine:
        assert engine.generate(before, max_tokens=6).finish().text.strip() == answer
    for extra, problem in [
        (("--prompt", "brief"), "the prompt's variable who has no value"),
        (("--prompt", "nothing"), "no prompt 'nothing'"),
        (("--prompt", "brief", "--system", "x"), "exclude each other"),
        (("--variable", "who=x"), "--variable needs a stored prompt"),
    ]:
        refused = chat("Hello", words=("--prompts", folder, *extra))
        assert refused.code == 2
        assert problem in refused.err
