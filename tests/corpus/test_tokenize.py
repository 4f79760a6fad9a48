"""Tokens of a corpus: each document named by its content, and a long text in bounded memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from meditron.core.errors import InputError
from meditron.corpus import tokenize
from meditron.corpus.config import TokenizeConfig
from meditron.store.identity import content_sha256, short_hash
from meditron.store.indexed import IndexedDataset, read_hashes
from meditron.store.jsonl import JsonlWriter
from meditron.store.manifest import Artifact
from meditron.text.tokenizer import load_tokenizer
from tiny import TEXTS, tiny_hf


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("base"))


def tokenized(folder: Path, base: Path, **shards: list[str]) -> Path:
    for name, texts in shards.items():
        file = folder / "corpus/train/notes" / f"{name}.jsonl.zst"
        file.parent.mkdir(parents=True, exist_ok=True)
        with JsonlWriter(file) as writer:
            for number, text in enumerate(texts):
                writer.write({"id": f"{name}:{number}", "source": "notes", "text": text})
    inputs = {
        "base": Artifact("base", base, "0"),
        "corpus": Artifact("corpus", folder / "corpus", "0"),
    }
    tokenize.run(TokenizeConfig(), inputs, folder / "tokens")
    return folder / "tokens/notes"


def test_hashes_name_the_documents_in_order(tmp_path: Path, base: Path) -> None:
    prefix = tokenized(tmp_path, base, a=TEXTS[:4], b=TEXTS[4:])
    assert read_hashes(prefix) == [short_hash(content_sha256(text)) for text in TEXTS]
    hashes = prefix.with_name("notes.hashes")
    assert hashes.read_bytes()[:8].hex() == short_hash(content_sha256(TEXTS[0]))
    hashes.write_bytes(hashes.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"notes\.hashes: 40 bytes, but 6 documents need 48"):
        read_hashes(prefix)


@pytest.mark.parametrize("joint", ["\n\n", "\n", " "])
def test_a_long_text_in_pieces_has_the_ids_of_the_whole(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, joint: str
) -> None:
    monkeypatch.setattr(tokenize, "PIECE", 500)
    whole = joint.join(TEXTS * 9)
    prefix = tokenized(tmp_path, base, a=[TEXTS[0], whole, TEXTS[1]])
    tokenizer = load_tokenizer(base)
    ids = [i for i in IndexedDataset(prefix)[1].tolist() if i != tokenizer.end_of_text_id]
    assert tokenizer.decode(ids) == whole
    assert len(IndexedDataset(prefix)) == 3
    assert IndexedDataset(prefix)[1][-1] == tokenizer.end_of_text_id


def test_a_text_without_blanks_is_cut_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "PIECE", 10)
    assert list(tokenize._cut_text("x" * 25)) == ["x" * 10, "x" * 10, "x" * 5]
    assert list(tokenize._cut_text("x" * 10)) == ["x" * 10]
    assert list(tokenize._cut_text("one two three\n\nfour")) == ["one two ", "three\n\n", "four"]


PEAK = """
import sys
from pathlib import Path
from meditron.corpus.tokenize import _TokenizeShardTask
from meditron.text.tokenizer import load_tokenizer
file, base, out = map(Path, sys.argv[1:])
_TokenizeShardTask(load_tokenizer(base), (file,), out)(0)
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10)
"""


def test_a_text_of_4_mb_takes_bounded_memory(tmp_path: Path, base: Path) -> None:
    file = tmp_path / "notes/a.jsonl.zst"
    with JsonlWriter(file) as writer:
        writer.write({"id": "a", "source": "notes", "text": " ".join(TEXTS * 8_000)})
    command = [sys.executable, "-c", PEAK, str(file), str(base), str(tmp_path / "out")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 450, f"{done.stdout} MiB"  # 900 in one piece
