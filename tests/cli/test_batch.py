"""`generate --jsonl`: one output line per input line, independent of failures of others."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from command import Command
from meditron.engine import load
from meditron.engine.llamacpp import LlamaCppEngine
from meditron.model.weights import save_gguf
from tiny import tiny_hf

PROMPTS = [
    {"id": "a", "prompt": "Aspirin inhibits"},
    {"prompt": "Metformin is"},
    {"id": 7, "messages": [{"role": "user", "content": "Sepsis"}]},
    {"id": "long", "prompt": "a " * 400},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    lines = [json.dumps(row) for row in PROMPTS]
    lines[1:1] = ["", "{damaged", "[1]"]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "prompts.jsonl"


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_gets_an_answer_or_an_error(meditron: Command, model: Path, prompts: Path) -> None:
    said = meditron("generate", model, "--jsonl", prompts, "--max-tokens", "4")
    assert said.code == 1
    answers = {row["id"]: row for row in rows(said.out)}
    assert list(answers) == ["a", 3, 4, 5, 7, "long"]
    for name, expected in {
        3: "line 3): not JSON",
        4: "expected an object, got a list",
        7: "prompts.jsonl (line 6): a conversation needs the chat template",
        "long": "prompts.jsonl (line 7): the prompt",
    }.items():
        assert expected in answers[name]["error"]
    alone = json.loads(meditron("generate", model, "Metformin is", "--max-tokens", "4", "--json").out)
    assert answers[5]["text"] == alone["text"]
    assert set(answers["a"]) == {"id", "text", "tokens", "seconds", "stop"}
    assert "4 prompts failed" in said.err


def test_lines_from_stdin(
    meditron: Command, model: Path, monkeypatch: pytest.MonkeyPatch, prompts: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(prompts.read_bytes().splitlines()[0])))
    said = meditron("generate", model, "--jsonl", "-", "--max-tokens", "4")
    assert said.code == 0, said.err
    assert [row["id"] for row in rows(said.out)] == ["a"]


def test_a_file_of_answers_is_resumed_after_a_kill(
    meditron: Command, model: Path, prompts: Path, tmp_path: Path
) -> None:
    out, words = tmp_path / "answers.jsonl", ("generate", model, "--jsonl", prompts, "--max-tokens", "4")
    assert meditron(*words, "--out", out).out == ""
    whole = rows(out.read_text(encoding="utf-8"))
    kept = {**whole[0], "text": "kept as it was", "tokens": 1, "seconds": 0.0, "stop": "end"}
    out.write_text(json.dumps(kept) + '\n{"id": 5, "te', encoding="utf-8")
    assert meditron(*words, "--out", out).code == 1
    again = rows(out.read_text(encoding="utf-8"))
    assert again[0] == kept
    assert [row["id"] for row in again] == [row["id"] for row in whole]
    # Errors are tried again, and stand there once.
    assert meditron(*words, "--out", out).code == 1
    assert sorted(str(row["id"]) for row in rows(out.read_text("utf-8"))) == sorted(
        str(row["id"]) for row in whole
    )


def test_two_processes_with_one_file_answer_each_prompt_once(
    model: Path, two_prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    words = [sys.executable, "-m", "meditron", "generate", model, "--jsonl", two_prompts, "--out", out]
    both = [subprocess.Popen([*words, "--max-tokens", "4"], stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert sorted(row["id"] for row in rows(out.read_text(encoding="utf-8"))) == ["a", "b"]


@pytest.fixture
def two_prompts(tmp_path: Path) -> Path:
    path = tmp_path / "two.jsonl"
    path.write_text('{"id": "a", "prompt": "Aspirin"}\n{"id": "b", "prompt": "Sepsis"}\n', encoding="utf-8")
    return path


def test_answers_record_the_model_and_the_settings_and_the_same_ones_resume_without_loading_the_model(
    meditron: Command, model: Path, two_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "answers.jsonl"
    words = ("generate", model, "--jsonl", two_prompts, "--out", out, "--max-tokens", "4")
    assert meditron(*words).code == 0
    before = out.read_bytes()
    for row in rows(out.read_text(encoding="utf-8")):
        assert row["model"] == str(model)
        assert row["settings"]["max-tokens"] == 4
        assert (row["settings"]["engine"], row["settings"]["dtype"]) == ("torch", "float32")
    with monkeypatch.context() as patch:
        patch.setattr("meditron.engine.load_generator", lambda *_, **__: pytest.fail("the model was loaded"))
        assert meditron(*words).code == 0
        assert meditron(*words, "--dtype", "float32").code == 0  # the default, named
    assert out.read_bytes() == before
    out.write_bytes(before.splitlines(keepends=True)[0])
    assert meditron(*words).code == 0
    assert [row["id"] for row in rows(out.read_text(encoding="utf-8"))] == ["a", "b"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["--max-tokens", "5"], "max-tokens 4 → 5"),
        (["--seed", "3", "--temperature", "0.5"], "temperature 0.0 → 0.5, seed 0 → 3"),
        (["--raw"], "raw false → true"),
        (["--dtype", "bfloat16"], "dtype float32 → bfloat16"),
        (["--context", "64"], "→ 64"),
    ],
)
def test_answers_of_other_settings_are_refused(
    meditron: Command, model: Path, two_prompts: Path, tmp_path: Path, changed: list[str], expected: str
) -> None:
    out = tmp_path / "answers.jsonl"
    words = ("generate", model, "--jsonl", two_prompts, "--out", out, "--max-tokens", "4")
    assert meditron(*words).code == 0
    before = out.read_bytes()
    words = words[:-2] if "--max-tokens" in changed else words
    said = meditron(*words, *changed)
    assert said.code == 2
    for part in ("answers.jsonl", "other settings", expected, "--out"):
        assert part in said.err
    assert out.read_bytes() == before


def test_answers_of_another_model_are_refused_and_a_copy_of_the_model_resumes(
    meditron: Command, model: Path, two_prompts: Path, tmp_path: Path
) -> None:
    out, other, copy = tmp_path / "answers.jsonl", tiny_hf(tmp_path / "other", seed=1), tmp_path / "copy"
    shutil.copytree(model, copy)
    words = ("--jsonl", two_prompts, "--out", out, "--max-tokens", "4")
    assert meditron("generate", model, *words).code == 0
    before = out.read_bytes()
    assert meditron("generate", copy, *words).code == 0
    said = meditron("generate", other, *words)
    assert said.code == 2
    for part in ("answers.jsonl", "another model", f"{model} → {other}", "--out"):
        assert part in said.err.replace("\n", "")
    shutil.rmtree(copy)
    shutil.copytree(other, copy)
    out.write_text(before.decode().replace(str(model), str(copy)), encoding="utf-8")
    said = meditron("generate", copy, *words)  # the name is the same, the files are not
    assert said.code == 2
    assert "another model" in said.err


def test_default_engine_settings_of_another_machine_are_refused_when_the_model_is_loaded(
    meditron: Command, model: Path, two_prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    words = ("generate", model, "--jsonl", two_prompts, "--out", out, "--max-tokens", "4")
    assert meditron(*words, "--dtype", "bfloat16").code == 0
    before = out.read_bytes().splitlines(keepends=True)[0] + b'{"id": "b", "error": "the engine ended"}\n'
    out.write_bytes(before)
    said = meditron(*words)
    assert said.code == 2
    assert "dtype bfloat16 → float32" in said.err
    assert out.read_bytes() == before


@pytest.mark.parametrize("stdin", [False, True])
def test_an_answer_to_a_prompt_that_was_changed_is_refused(
    meditron: Command,
    model: Path,
    two_prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stdin: bool,
) -> None:
    out = tmp_path / "answers.jsonl"
    assert meditron("generate", model, "--jsonl", two_prompts, "--out", out, "--max-tokens", "4").code == 0
    before = out.read_bytes()
    content = two_prompts.read_bytes().replace(b"Sepsis", b"Metformin")
    two_prompts.write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    source = "-" if stdin else two_prompts
    said = meditron("generate", model, "--jsonl", source, "--out", out, "--max-tokens", "4")
    assert said.code == 2
    assert 'the prompt with the id "b" was changed' in said.err
    assert out.read_bytes() == before


def test_answers_without_a_record_of_their_model_are_refused(
    meditron: Command, model: Path, two_prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_text('{"id": "a", "text": "old", "tokens": 1, "seconds": 0.0, "stop": "end"}\n', "utf-8")
    before = out.read_bytes()
    said = meditron("generate", model, "--jsonl", two_prompts, "--out", out)
    assert said.code == 2
    assert "do not record their model and settings" in said.err
    assert out.read_bytes() == before


def test_another_file_is_not_rewritten_as_answers(meditron: Command, model: Path, prompts: Path) -> None:
    other = prompts.with_name("other.jsonl")
    other.write_bytes(prompts.read_bytes())
    said = meditron("generate", model, "--jsonl", prompts, "--out", other)
    assert said.code == 1
    assert "not an answer of meditron generate" in said.err
    assert other.read_bytes() == prompts.read_bytes()


def test_a_text_without_a_newline_is_not_taken_for_an_answer_cut_off_by_a_kill(
    meditron: Command, model: Path, prompts: Path
) -> None:
    notes = prompts.with_name("notes.txt")
    notes.write_text("not JSON")
    said = meditron("generate", model, "--jsonl", prompts, "--out", notes)
    assert said.code == 1
    assert "notes.txt (line 1): not an answer of meditron generate" in said.err
    assert notes.read_text() == "not JSON"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "needs a PROMPT or --jsonl"),
        (["word", "--jsonl", "x.jsonl"], "not both"),
        (["word", "--out", "x.jsonl"], "--out is for"),
        (["--jsonl", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--jsonl", "x.jsonl", "--temperature", "-1"], "temperature"),
        (["word", "--engine", "llama.cpp"], "GGUF files"),
    ],
)
def test_invalid_usage_is_an_error_before_a_model_is_loaded(
    meditron: Command, model: Path, words: list[str], expected: str
) -> None:
    said = meditron("generate", model, *words)
    assert (said.code, said.out) == (2, "")
    assert expected in said.err


def test_a_killed_llama_cpp_fails_one_line_and_the_others_are_answered(
    meditron: Command, model: Path, tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = tmp_path / "F32.gguf"
    with load(str(model)) as engine:
        config = engine.model.config.model_copy(update={"max_position_embeddings": 8192})
        save_gguf(engine.model, config, engine.tokenizer, gguf, "F32")
    prompts.write_text("".join(f'{{"prompt": "word {n}"}}\n' for n in range(3)), encoding="utf-8")
    ask, killed = LlamaCppEngine.generate, []

    def killing(self: LlamaCppEngine, *args, **settings):
        if killed:
            return ask(self, *args, **settings)
        reply = ask(self, *args, **{**settings, "max_tokens": 8000})  # not all there before the kill
        next(reply)
        killed.append(self.process.pid)
        os.kill(self.process.pid, signal.SIGKILL)
        return reply

    monkeypatch.setattr(LlamaCppEngine, "generate", killing)
    words = ("generate", gguf, "--jsonl", prompts, "--engine", "llama.cpp", "--max-tokens", "4", "--raw")
    said = meditron(*words)
    assert said.code == 1
    first, *others = rows(said.out)
    assert "killed by SIGKILL" in first["error"]
    assert gguf.name in first["error"]
    assert [row["id"] for row in others] == [2, 3]
    assert all(row["tokens"] for row in others)


def test_a_pipe_is_only_written_to_and_other_files_are_not_changed(
    meditron: Command, model: Path, prompts: Path, tmp_path: Path
) -> None:
    """What is replaced by renaming must be a file of ours: nothing else is ever replaced."""
    words = ("generate", model, "--jsonl", prompts, "--max-tokens", "4", "--out")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        meditron(*words, pipe)
        assert rows(os.read(reader, 1 << 16).decode())[0]["id"] == "a"
        assert pipe.is_fifo()
    finally:
        os.close(reader)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "a", "text": "a document"}\n', encoding="utf-8")
    assert "not an answer of meditron generate" in meditron(*words, corpus).err
    assert corpus.read_text(encoding="utf-8") == '{"id": "a", "text": "a document"}\n'
    link, real = tmp_path / "link.jsonl", tmp_path / "real.jsonl"
    meditron(*words, real)
    whole = json.dumps({**rows(real.read_text(encoding="utf-8"))[0], "text": "kept"})
    real.write_text(whole, encoding="utf-8")  # its newline was lost
    link.symlink_to(real)
    meditron(*words, link)
    assert link.is_symlink()
    assert real.read_text(encoding="utf-8").startswith(whole + "\n")


def test_a_file_with_a_repeated_id_is_resumed(meditron: Command, model: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    path.write_text('{"id": "a", "prompt": "Sepsis"}\n{"id": "a", "prompt": "Asthma"}\n', encoding="utf-8")
    words = ("generate", model, "--jsonl", path, "--out", out, "--max-tokens", "2")
    assert meditron(*words).code == 1
    before = rows(out.read_text(encoding="utf-8"))
    assert "on an earlier line too" in before[1]["error"]
    assert meditron(*words).code == 1
    assert rows(out.read_text(encoding="utf-8")) == before


def test_repeated_ids_and_ids_that_are_not_json_are_errors(
    meditron: Command, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = ['{"id": 2, "prompt": "a"}', '{"prompt": "b"}', '{"id": NaN, "prompt": "c"}']
    lines += ['{"id": "\\ud800", "prompt": "d"}', '{"id": "e", "prompt": "half \\ud800"}']
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = rows(meditron("generate", model, "--jsonl", path, "--max-tokens", "2").out)
    assert [row.get("error", "").partition("): ")[2] for row in found[:4]] == [
        "",
        "the id 2 is on an earlier line too",
        "the id cannot be written as JSON",
        "the id cannot be written as JSON",
    ]
    assert "not UTF-8" in found[4]["error"]


@pytest.mark.parametrize(
    "words", [["--seed", str(1 << 80), "--temperature", "1"], ["--temperature", "1e-300"]]
)
def test_any_seed_and_any_temperature_above_zero_work(
    meditron: Command, model: Path, words: list[str]
) -> None:
    said = meditron("generate", model, "Sepsis", "--max-tokens", "3", *words)
    assert said.code == 0, said.err


@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
def test_answers_are_never_appended_to_the_prompts(
    meditron: Command, model: Path, prompts: Path, link: str
) -> None:
    out, before = prompts.with_name("out.jsonl"), prompts.read_bytes()
    if link == "same":
        out = prompts
    elif link == "symbolic":
        out.symlink_to(prompts)
    else:
        out.hardlink_to(prompts)
    said = meditron("generate", model, "--jsonl", prompts, "--out", out)
    assert said.code == 2
    assert "never overwritten" in said.err
    assert prompts.read_bytes() == before


def test_the_context_can_be_lowered_and_not_raised(meditron: Command, model: Path) -> None:
    words = ("generate", model, "Sepsis is treated with antibiotics", "--raw", "--max-tokens", "2")
    assert meditron(*words, "--context", "64").code == 0
    said = meditron(*words, "--context", "2")
    assert said.code == 2
    assert "context is 2" in said.err
    assert meditron(*words, "--context", "1000000").code == 2
    assert meditron(*words, "--context", "0").code == 2
