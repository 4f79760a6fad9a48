"""`inspect` and `parse` on real and damaged files."""

import json
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from command import Command
from meditron.cli.inspect_views import inspect_artifact
from meditron.core.errors import InputError, SourceError, UsageError
from meditron.store.ancestry import GGUF_KEY, Training, untrained_ancestry
from meditron.store.gguf import write_gguf
from meditron.store.indexed import IndexedWriter
from meditron.store.jsonl import JsonlWriter
from meditron.text.finetune_templates import tokenize_conversation
from meditron.text.messages import Turn
from meditron.text.tokenizer import load_tokenizer
from meditron.train.examples import Example, write_rows
from tiny import CHAT, TEXTS, tiny_hf
from toy_stages import ToyRun


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "part.jsonl.zst"
    with JsonlWriter(path) as writer:
        for number, text in enumerate(TEXTS):
            writer.write({"id": f"test:{number}", "source": "test", "text": text, "meta": {}})
    return path


def test_a_stage_shows_its_manifest(meditron: Command, toy: ToyRun) -> None:
    meditron("run", toy.path, "--out", toy.out)
    view = json.loads(meditron("inspect", toy.run_folder / "total", "--json").out)
    manifest = json.loads((toy.run_folder / "total/manifest.json").read_text())
    assert view["kind"] == "stage"
    assert view["facts"]["fingerprint"] == manifest["fingerprint"]
    assert view["facts"]["metrics"]["words"] == 7
    assert [row["file"] for row in view["rows"]] == ["total.json"]
    result = meditron("inspect", toy.run_folder / "total/manifest.json").out
    assert {"  kind: total", "  state: finished", "    words: 7", "    on: words"} <= set(result.splitlines())
    assert "  files: 1, " in result
    assert manifest["fingerprint"] not in result, "a summary; --json has the whole record"


def test_a_stage_prints_rows_of_all_its_files_together(
    meditron: Command, tmp_path: Path, toy: ToyRun
) -> None:
    meditron("run", toy.path, "--out", toy.out, "--until", "words")
    for name, count in (("drops", 1), ("train", 3), ("heldout", 2)):
        lines = [json.dumps({"id": f"{name}:{n}", "text": "word " * 9 * count}) for n in range(count)]
        (toy.run_folder / f"words/{name}.jsonl").write_text("\n".join(lines))
    result = meditron("inspect", toy.run_folder / "words", "--rows", "4").out
    printed = [word for word in result.split() if word.partition(":")[0] in ("drops", "train", "heldout")]
    assert printed == ["train:0", "train:1", "train:2", "heldout:0"], "the largest file first"
    assert not meditron("inspect", toy.run_folder / "words", "--rows", "0").out.count("documents")
    view = json.loads(meditron("inspect", toy.run_folder / "words", "--rows", "4", "--json").out)
    assert sum(len(inside["rows"]) for inside in view["inside"]) == 6


def test_documents_are_shown_and_searched(meditron: Command, documents: Path) -> None:
    view = json.loads(meditron("inspect", documents, "--json", "--rows", "2").out)
    assert [row["text"] for row in view["rows"]] == TEXTS[:2]
    found = json.loads(meditron("inspect", documents, "--json", "--grep", "SEPSIS").out)
    assert [row["id"] for row in found["rows"]] == ["test:3"]
    assert "lactate above 4 mmol/L" in meditron("inspect", documents, "--grep", "sepsis").out
    assert json.loads(meditron("inspect", documents.parent, "--json").out)["kind"] == "documents"


def test_tokens_are_decoded_with_their_boundaries(meditron: Command, model: Path) -> None:
    tokenizer = load_tokenizer(model)
    with IndexedWriter(model / "test", np.uint16) as writer:
        for text in TEXTS:
            writer.add_document([*tokenizer.encode(text), tokenizer.end_of_text_id])
    for spec in (model / "test", model / "test.idx", model / "test.bin"):
        view = json.loads(meditron("inspect", spec, "--json", "--rows", "1").out)
        assert view["kind"] == "tokens"
        assert view["facts"]["documents"] == len(TEXTS)
        (row,) = view["rows"]
        assert row["text"] == TEXTS[0] + "<|endoftext|>" or row["text"] == TEXTS[0]
        assert row["ids"] == [*tokenizer.encode(TEXTS[0]), tokenizer.end_of_text_id]
        assert len(row["tokens"]) == len(row["ids"])
        assert "".join(row["tokens"]).startswith(TEXTS[0])
    result = meditron("inspect", model / "test.idx", "--grep", "sepsis").out
    assert "document 3" in result
    assert "│" in result
    whole = json.loads(meditron("inspect", model, "--json").out)
    assert [view["kind"] for view in whole["inside"]] == ["model", "tokens"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write rows of a finetune beside their tokenizer."""
    folder = tiny_hf(tmp_path_factory.mktemp("learned") / "finetune", control=CHAT)
    tokenizer = load_tokenizer(folder)
    conversation = (Turn("user", "Which\x1b[31m drug?"), Turn("assistant", "Aspirin."))
    labelled = tokenize_conversation(tokenizer, conversation, "meditron")
    write_rows(
        folder / "rows.jsonl.zst", [Example("q1", "chat", "train", "0" * 64, conversation, labelled)] * 3
    )
    return folder


def test_rows_of_a_finetune_show_roles_and_the_spans_in_the_loss(meditron: Command, learned: Path) -> None:
    view = json.loads(meditron("inspect", learned / "rows.jsonl.zst", "--rows", "2", "--json").out)
    assert view["kind"] == "rows"
    assert len(view["rows"]) == 2
    message = [(span["role"], span["learned"], span["text"]) for span in view["rows"][0]["spans"]]
    assert message == [
        ("user", False, "<|im_start|>question\nWhich\x1b[31m drug?<|im_end|>\n"),
        ("assistant", False, "<|im_start|>answer\n"),
        ("assistant", True, "Aspirin.<|im_end|>"),
        ("assistant", False, "\n"),
    ]
    result = meditron("inspect", learned, "--rows", "1").out
    assert re.search(r"q1: train, \d+ tokens, \d+ in the loss", result)
    assert "‹assistant›⟦Aspirin.<|im_end|>⟧" in result
    assert "‹assistant›<|im_start|>answer⏎" in result
    assert "\x1b" not in result
    assert "nothing" not in meditron("inspect", learned / "rows.jsonl.zst", "--grep", "nothing").out


def test_rows_of_a_finetune_are_colored_on_a_terminal(learned: Path) -> None:
    words = [sys.executable, "-m", "meditron", "inspect", str(learned / "rows.jsonl.zst"), "--rows", "1"]
    result = on_terminal(words, TERM="xterm-256color")
    assert "\x1b[1;4;32mAspirin.<|im_end|>\x1b[0m" in result, "bold, underlined, green"
    assert "\x1b[36m<|im_start|>question" in result
    assert "\x1b[31m" not in result, "a row's own escape sequence"
    assert "⟦" not in result
    assert "‹assistant›⟦Aspirin.<|im_end|>⟧" in on_terminal(words, TERM="xterm-256color", NO_COLOR="1")


def on_terminal(words: list[str], **environment: str) -> str:
    """Return the output of a command on a pseudo-terminal."""
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        words, stdout=terminal, stderr=terminal, env={**os.environ, **environment}
    ) as child:
        os.close(terminal)
        result = b""
        with suppress(OSError):  # the terminal is gone when the command is
            while piece := os.read(controller, 1 << 16):
                result += piece
        os.close(controller)
    assert child.returncode == 0, result
    return result.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("roles", ['[["user",1,false]]', '[["user"]]', '"user"', "3"])
def test_roles_that_do_not_match_the_tokens_are_an_error(learned: Path, tmp_path: Path, roles: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((learned / name).read_bytes())
    (tmp_path / "rows.jsonl").write_text(f'{{"id":"x","ids":[1,2],"roles":{roles}}}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"rows\.jsonl \(row x\)"):
        inspect_artifact(str(tmp_path / "rows.jsonl"))


def test_a_models_tensors_are_those_written_by_transformers(meditron: Command, model: Path) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(model / "model.safetensors")
    view = inspect_artifact(str(model))
    model_view = view if view.kind == "model" else view.inside[0]
    assert {row["tensor"]: tuple(row["shape"]) for row in model_view.rows} == {
        name: tensor.shape for name, tensor in tensors.items()
    }
    assert sum(row["bytes"] for row in model_view.rows) == sum(t.nbytes for t in tensors.values())
    file = json.loads(meditron("inspect", model / "model.safetensors", "--json", "--rows", "1").out)
    assert len(file["rows"]) == 1


def test_a_gguf_shows_metadata_and_tensors(meditron: Command, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    metadata = {
        "general.architecture": "llama",
        "words": [str(n) for n in range(40)],
        "note": "\x1b[31m two\nlines",
    }
    write_gguf(path, metadata, [("a.weight", np.zeros((4, 8), np.float16)), ("b", np.ones(3, np.float32))])
    view = json.loads(meditron("inspect", path, "--json").out)
    assert view["facts"]["tensors"] == 2
    assert view["rows"][0] == {"tensor": "a.weight", "type": "F16", "shape": [4, 8], "bytes": 64}
    result = meditron("inspect", path).out
    assert "40 values" in result
    assert "\x1b" not in result
    assert "4×8" in result


def test_the_ancestry_of_a_gguf_is_a_sentence(meditron: Command, tmp_path: Path) -> None:
    hashes = tuple(f"{number:016x}" for number in range(5000))
    trained = Training(
        stage="pretrain", kind="pretrain", data="corpus", data_digest="0" * 64, documents=hashes
    )
    record = untrained_ancestry("init:tiny", "0" * 64, seeded=True).with_training(trained)
    metadata = {"general.architecture": "llama", GGUF_KEY: record.model_dump_json()}
    write_gguf(tmp_path / "x.gguf", metadata, [("b", np.ones(3, np.float32))])
    result = meditron("inspect", tmp_path / "x.gguf").out
    assert "meditron.ancestry: Trained on corpus (pretrain)" in result
    assert hashes[7] not in result


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\xff" * 16, "not a safetensors file"),
        (b"\x08\0\0\0\0\0\0\0{broken}", "the header is damaged"),
        (b'\x0a\0\0\0\0\0\0\0{"a": [1]}', "the header is damaged"),
    ],
)
def test_damaged_safetensors_are_reported(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        inspect_artifact(str(path))


def test_a_whole_safetensors_file_is_read(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float32)}, tmp_path / "x.safetensors")
    assert inspect_artifact(str(tmp_path / "x.safetensors")).rows == [
        {"tensor": "a", "type": "F32", "shape": [2, 3], "bytes": 24}
    ]


def test_files_of_unknown_kinds_are_refused(meditron: Command, tmp_path: Path) -> None:
    (tmp_path / "x.dat").write_bytes(b"?")
    with pytest.raises(SourceError, match="no file of a known kind"):
        inspect_artifact(str(tmp_path / "x.dat"))
    with pytest.raises(UsageError, match="--rows must be at least 0, got -1"):
        inspect_artifact(str(tmp_path), rows=-1)
    result = meditron("inspect", tmp_path / "nothing")
    assert result.code == 2
    assert len(result.err.splitlines()) <= 2


def test_parse_prints_one_document_a_line(meditron: Command, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(TEXTS)))
    result = meditron("parse", path, path)
    assert result.code == 0
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert len(rows) == 2 * len(TEXTS)
    for row in rows:
        fields = {"id", "source", "title", "sections", "language", "year", "version", "retracted", "meta"}
        assert set(row) == fields
    assert rows[0]["sections"][0]["text"] == TEXTS[0]
    assert "漢字" in result.out
    assert meditron("parse", path, "--json").out == meditron("parse", path).out


@pytest.mark.parametrize("words", [["parse"], ["inspect"], ["inspect", "--json"]])
def test_texts_are_printed_without_control_characters(
    meditron: Command, tmp_path: Path, words: list[str]
) -> None:
    path = tmp_path / "x.jsonl"
    text = "p\u2009<\u202f0.05,\u00a05\u200bmg"
    path.write_text(json.dumps({"id": "1", "text": f"{text} \x1b[2J \x9b2J \x7f"}))
    verb, *flags = words
    result = meditron(verb, path, *flags)
    assert result.code == 0
    assert text in result.out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", result.out)


def test_a_lone_surrogate_is_printed_as_a_question_mark(meditron: Command, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "1", "text": "a \\ud800"}\n')
    assert json.loads(meditron("inspect", path, "--json").out)["rows"][0]["text"] == "a \ud800"
    result = meditron("inspect", path)
    assert "a ?" in result.out
    result.out.encode()


def test_parse_streams_citations_to_a_reader_that_closes_the_pipe(pubmed_xml: Path) -> None:
    script = '"$0" -m meditron parse "$1" | head -n 20'
    words = ["/bin/sh", "-c", script, sys.executable, str(pubmed_xml)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({row["meta"]["pmid"] for row in rows}) == 20
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["/nowhere/x.xml.gz"], [], ["{path}", "--format", "medlien"]])
def test_parse_without_a_readable_file_is_one_line_and_exit_2(
    meditron: Command, tmp_path: Path, words: list[str]
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "1", "text": "word"}\n')
    result = meditron("parse", *[word.format(path=path) for word in words])
    assert result.code == 2
    assert result.out == ""
    assert "Traceback" not in result.err


def test_parse_names_a_truncated_file(meditron: Command, tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": "1", "text": "some words that are packed"}\n' * 500)[:-60])
    result = meditron("parse", path)
    assert result.code == 1
    assert str(path) in result.err.splitlines()[-1]
    assert "Traceback" not in result.err


def test_rows_of_every_stage_are_shown_by_their_own_fields(meditron: Command, tmp_path: Path) -> None:
    """A row with a number under `tokens` or `ids` is not a decoded document."""
    rows = {
        "perplexity.jsonl": {"id": "a", "model": "base", "source": "pubmed", "tokens": 12, "nll": 2.5},
        "metrics.jsonl": {"step": 1, "tokens": 1024, "loss": 3.2, "text": 7},
        "rows.jsonl": {"id": "q1", "split": "train", "ids": [1, 2], "roles": [["user", 2, False]]},
        "drops.jsonl": {"id": "b", "reason": "too short", "tokens": ["a"]},
    }
    for name, row in rows.items():
        (tmp_path / name).write_text(json.dumps(row) + "\n")
        result = meditron("inspect", tmp_path / name)
        assert result.code == 0, result.err
        for key in row:
            assert key in result.out
    assert meditron("inspect", tmp_path).code == 0


def test_a_run_lists_its_stages(meditron: Command, toy: ToyRun) -> None:
    meditron("run", toy.path, "--out", toy.out, "--until", "total")
    view = json.loads(meditron("inspect", toy.run_folder, "--json").out)
    assert view["kind"] == "run"
    assert [row["stage"] for row in view["rows"]] == ["words", "total"]
    assert view["rows"][1]["inputs"] == ["words"]
    result = meditron("inspect", toy.run_folder)
    assert result.code == 0
    assert "total" in result.out


def test_json_files_of_a_run_are_shown(meditron: Command, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"dtype": "float32", "tasks": {"base": {"n": 600}}}')
    assert "n: 600" in meditron("inspect", tmp_path / "results.json").out
    (tmp_path / "list.json").write_text('[{"id": 1}, 2]')
    assert json.loads(meditron("inspect", tmp_path / "list.json", "--json").out)["rows"] == [
        {"id": 1},
        {"value": 2},
    ]
    (tmp_path / "bad.json").write_text("{")
    result = meditron("inspect", tmp_path / "bad.json")
    assert result.code == 1
    assert "defect" not in result.err
