"""Tokens of a corpus: each document named by its content, and a long text in bounded memory."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from meditron.core.errors import InputError
from meditron.corpus import tokenize
from meditron.corpus.config import TokenizeConfig
from meditron.corpus.encoder_choice import choose_encoding, sample_texts
from meditron.sources.evidence import evidence_table
from meditron.store.document_facts import quality_values, read_facts
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
    assert list(tokenize._cut_anywhere("x" * 25)) == ["x" * 10, "x" * 10, "x" * 5]
    assert list(tokenize._cut_anywhere("x" * 10)) == ["x" * 10]
    assert list(tokenize._cut_anywhere("one two three\n\nfour")) == ["one two ", "three\n\n", "four"]


PEAK = """
import pickle, sys
from dataclasses import replace
from pathlib import Path
pickle.loads(Path(sys.argv[1]).read_bytes())(0)
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10)
"""


@pytest.mark.parametrize("encoder", ["gigatoken", "tokenizers"])
def test_a_text_of_4_mb_takes_bounded_memory(tmp_path: Path, base: Path, encoder: str) -> None:
    file = tmp_path / "notes/a.jsonl.zst"
    with JsonlWriter(file) as writer:
        writer.write({"id": "a", "source": "notes", "text": " ".join(TEXTS * 8_000)})
    chosen = choose_encoding(load_tokenizer(base), tmp_path / "tokenizer", (file,), 0)
    assert chosen.name == "gigatoken"
    task = tokenize._TokenizeShardTask(replace(chosen, name=encoder), (file,), tmp_path / "out", {})
    (tmp_path / "task").write_bytes(pickle.dumps(task))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "task")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 450, f"{done.stdout} MiB"  # 900 in one piece


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def write_corpus(folder: Path, documents: dict[str, list[dict[str, object]]]) -> None:
    """Write documents of each source, two to a shard."""
    for source, rows in documents.items():
        for number in range(0, len(rows), 2):
            file = folder / f"train/{source}/{number:06d}.jsonl.zst"
            file.parent.mkdir(parents=True, exist_ok=True)
            with JsonlWriter(file) as writer:
                for place, row in enumerate(rows[number : number + 2]):
                    writer.write({"id": f"{number + place}", "source": source, **row})


def run(folder: Path, base: Path, out: Path, **config: object) -> dict[str, object]:
    inputs = {"base": Artifact("base", base, "0"), "corpus": Artifact("corpus", folder, "0")}
    return tokenize.run(TokenizeConfig(**config), inputs, out)


DOCUMENTS: dict[str, list[dict[str, object]]] = {
    "pubmed": [
        {"text": TEXTS[0], "meta": {"year": 2020, "publication_types": ["Review", "Systematic Review"]}},
        {"text": TEXTS[1], "meta": {"year": 1999, "publication_types": ["Journal Article"]}, "quality": 0.5},
        {"text": TEXTS[2], "meta": {"mesh": ["Animals", "Humans"], "publication_types": ["Comment", 7]}},
        {"text": TEXTS[3] + " <|endoftext|>", "meta": {"year": "2001", "publication_types": "Review"}},
        {"text": TEXTS[5] * 40, "meta": {"article_type": "review-article", "mesh": None}, "quality": "high"},
    ],
    "guidelines": [{"text": TEXTS[4], "meta": {}}, {"text": "1\x042", "quality": 1}],
}


def test_the_ids_do_not_depend_on_the_encoder_or_the_workers_or_a_kill(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize, "PIECE", 500)
    write_corpus(tmp_path / "corpus", DOCUMENTS)
    first = run(tmp_path / "corpus", base, tmp_path / "a")
    assert first["encoder"] == "gigatoken"
    assert first["compared"] == 7
    run(tmp_path / "corpus", base, tmp_path / "b", workers=2)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")

    # A run that was killed after two of its shards, with a third one half written.
    written = tokenize.write_facts

    def killed(prefix: Path, facts: object) -> None:
        if prefix.name == "000002":
            raise KeyboardInterrupt
        written(prefix, facts)

    with monkeypatch.context() as patch:
        patch.setattr(tokenize, "write_facts", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "corpus", base, tmp_path / "c")
    assert (tmp_path / "c/work").exists()
    run(tmp_path / "corpus", base, tmp_path / "c")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "c")

    monkeypatch.setitem(sys.modules, "gigatoken", None)
    monkeypatch.setattr("meditron.corpus.encoder_choice.Encoding._encoders", {})
    other = run(tmp_path / "corpus", base, tmp_path / "d")
    assert other["encoder"] == "tokenizers"
    assert other["compared"] == 0
    same, others = files_of(tmp_path / "a"), files_of(tmp_path / "d")
    del same["report.html"], others["report.html"]  # names the library
    assert same == others


def test_a_difference_of_the_encoders_is_one_line_and_hf_tokenizers(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "corpus", DOCUMENTS)
    monkeypatch.setattr("meditron.corpus.encoder_choice.find_difference", lambda *_: "a strange text")
    metrics = run(tmp_path / "corpus", base, tmp_path / "tokens")
    assert metrics["encoder"] == "tokenizers"
    assert metrics["compared"] == 7
    assert "gigatoken gives other ids for 'a strange text'" in " ".join(capsys.readouterr().err.split())


def test_names_of_control_tokens_in_a_text_are_text(tmp_path: Path, base: Path) -> None:
    write_corpus(tmp_path / "corpus", {"notes": [{"text": "a <|endoftext|> b"}]})
    run(tmp_path / "corpus", base, tmp_path / "tokens")
    tokenizer = load_tokenizer(base)
    *ids, last = IndexedDataset(tmp_path / "tokens/notes")[0].tolist()
    assert last == tokenizer.end_of_text_id
    assert last not in ids
    assert tokenizer.decode(ids) == "a <|endoftext|> b"


def test_facts_and_levels_of_the_documents(tmp_path: Path, base: Path) -> None:
    write_corpus(tmp_path / "corpus", DOCUMENTS)
    types = {"guidelines": ["Practice Guideline"]}
    metrics = run(tmp_path / "corpus", base, tmp_path / "tokens", publication_types=types)
    facts = read_facts(tmp_path / "tokens/pubmed")
    levels = [evidence_table().level_of(int(mask)) for mask in facts["types"]]
    assert levels == ["systematic review", "not stated", "opinion", "not stated", "review"]
    assert facts["year"].tolist() == [2020, 1999, 0, 0, 0]
    assert quality_values(facts)[1] == 0.5
    assert np.isnan(quality_values(facts)[[0, 2, 3, 4]]).all()
    sizes = IndexedDataset(tmp_path / "tokens/pubmed").sizes
    of_pubmed = metrics["sources"]["pubmed"]["levels"]
    assert list(of_pubmed) == ["systematic review", "review", "opinion", "not stated"]
    assert of_pubmed["not stated"] == {"documents": 2, "tokens": int(sizes[1] + sizes[3])}
    assert list(metrics["sources"]["guidelines"]["levels"]) == ["guideline"]
    assert quality_values(read_facts(tmp_path / "tokens/guidelines"))[1] == 1
    page = (tmp_path / "tokens/report.html").read_text()
    assert "systematic review" in page
    assert "gigatoken" in page
    with pytest.raises(ValueError, match="no publication type 'Guide'; types with a level: Practice Guid"):
        TokenizeConfig(publication_types={"guidelines": ["Guide"]})


def test_a_stored_content_hash_is_taken_over(tmp_path: Path, base: Path) -> None:
    stored = short_hash(content_sha256("another text"))
    write_corpus(tmp_path / "corpus", {"notes": [{"text": TEXTS[0], "content_hash": stored}]})
    run(tmp_path / "corpus", base, tmp_path / "tokens")
    assert read_hashes(tmp_path / "tokens/notes") == [stored]
    write_corpus(tmp_path / "corpus", {"notes": [{"text": TEXTS[0], "content_hash": "no hash"}]})
    with pytest.raises(InputError, match="line 1"):
        run(tmp_path / "corpus", base, tmp_path / "others")


def test_a_long_text_of_a_known_tokenizer_has_the_ids_of_the_whole(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize, "PIECE", 300)
    whole = " ".join(TEXTS * 9)
    tokenizer = load_tokenizer(base)
    assert tokenizer.piece_prefix == " "
    write_corpus(tmp_path / "corpus", {"notes": [{"text": whole}]})
    run(tmp_path / "corpus", base, tmp_path / "tokens")
    ids = IndexedDataset(tmp_path / "tokens/notes")[0].tolist()
    assert ids == [*tokenizer.encode(whole), tokenizer.end_of_text_id]


def test_the_sample_depends_on_the_seed_and_has_the_longest_document(tmp_path: Path) -> None:
    texts = [f"{number} {'x' * number}" for number in range(400)]
    write_corpus(tmp_path, {"notes": [{"text": "".join(texts)}, *({"text": text} for text in texts)]})
    files = sorted(tmp_path.glob("train/*/*"))
    samples = [list(sample_texts(files, seed)) for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]
    assert len(samples[0]) == 32  # sixteen shards of two
    longest = list(sample_texts(files[:1], 5))
    assert "".join(texts) in longest
