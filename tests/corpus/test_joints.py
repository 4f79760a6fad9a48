"""Extension points of the corpus: a source with one document per file, and passes registered from outside."""

import hashlib
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from meditron.corpus.build import run
from meditron.corpus.candidate import Candidate, CorpusPass, DocumentTable, DropReason, SignaturePass
from meditron.corpus.config import CorpusConfig
from meditron.corpus.passes import PASSES
from meditron.sources.document import Document, Readable, ReadLog, Section
from meditron.sources.registry import SOURCES, SourceFormat
from meditron.store.corpus import read_corpus
from meditron.store.jsonl import read_jsonl
from meditron.store.manifest import Artifact
from small_archives import write_archive

from .test_build import artifacts, config, digest, rows


def read_note(file: Readable, log: ReadLog | None = None, name: str | None = None) -> Iterator[Document]:
    """Read a toy format: `note`, an empty line, the text."""
    with file.open("rb") as stream:
        _, _, text = stream.read().decode().partition("\n\n")
    yield Document(f"note:{name or file.name}", "note", "", (Section(text),))


@contextmanager
def few_open_files(more: int) -> Iterator[None]:
    """Let the process open `more` files in addition to those open now."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def note_text(number: int) -> str:
    return f"Note {number} reports case {number * number} at some length. " * 3


def small_files(folder: Path, count: int, prefix: str = "") -> dict[str, Artifact]:
    for number in range(count):
        path = folder / f"{number // 1_000:02d}" / f"{number:05d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(prefix + note_text(number))
    return artifacts(notes=folder)


def test_ten_thousand_files_of_a_new_format_give_five_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Registered first, as a specific format is before plain text.
    formats = {"note": SourceFormat(read_note, lambda start: start.startswith(b"note\n\n")), **SOURCES}
    monkeypatch.setattr("meditron.sources.registry.SOURCES", formats)
    inputs = small_files(tmp_path / "in", 10_000, "note\n\n")
    with few_open_files(24):
        metrics = run(config(inputs, heldout=0), inputs, tmp_path / "out")
    assert metrics["sources"]["notes"]["kept"] == 10_000
    shards = sorted((tmp_path / "out/train/notes").iterdir())
    assert [shard.name for shard in shards] == [f"{number:06d}.jsonl.zst" for number in range(5)]
    assert [sum(1 for _ in read_jsonl(shard)) for shard in shards] == [2_000] * 5
    ids = [document.id for document in read_corpus(tmp_path / "out", "train")]
    assert ids == [f"note:{n // 1_000:02d}/{n:05d}.txt" for n in range(10_000)]


def test_shards_of_small_files_are_the_same_from_any_number_of_workers(tmp_path: Path) -> None:
    inputs = small_files(tmp_path / "in", 1_200)
    for name, workers in (("one", 1), ("two", 2)):
        run(config(inputs, shard_documents=300, workers=workers), inputs, tmp_path / name)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


class Crash(CorpusPass):
    """A pass that fails at one document."""

    def process_document(self, candidate: Candidate) -> Candidate:
        if candidate.document.id.endswith("00950.txt"):
            raise KeyboardInterrupt
        return candidate


def test_a_resumed_run_keeps_finished_pieces_of_small_files(tmp_path: Path) -> None:
    inputs = small_files(tmp_path / "in", 1_200)
    settings = config(inputs, shard_documents=300)
    run(settings, inputs, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(settings, inputs, tmp_path / "resumed", (*PASSES, Crash))
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("resumed/work/notes/*.index.npy")}
    assert len(finished) == 3  # 300 and 200 of the first 500 files, 300 of the next
    written: dict[Path, int] = {}

    class Observe(CorpusPass):
        """A pass that looks at the work folder before it is removed."""

        def compare_documents(self, documents: DocumentTable) -> Mapping[DropReason, np.ndarray]:
            written.update({path: path.stat().st_mtime_ns for path in finished})
            return {}

    run(settings, inputs, tmp_path / "resumed", (*PASSES, Observe))
    assert written == finished
    assert digest(tmp_path / "resumed") == digest(tmp_path / "whole")


SAME_START = DropReason("same beginning as another document")
MASKED = "[number]"


class SameStart(SignaturePass):
    """A toy near-duplicate pass: compares the first three words."""

    drop_reasons = (SAME_START,)
    signature_dtype = np.dtype("<u8,<u8")

    def signature_row(self, candidate: Candidate) -> tuple[int, int]:
        key = hashlib.sha256(" ".join(candidate.text.split()[:3]).encode()).digest()
        return int.from_bytes(key[:8]), int.from_bytes(key[8:16])

    def compare_documents(self, documents: DocumentTable) -> Mapping[DropReason, np.ndarray]:
        assert documents.signatures is not None
        kept = np.flatnonzero(documents.index["reason"] == 0)
        _, first = np.unique(documents.signatures[kept], return_index=True)
        return {SAME_START: np.delete(kept, first)}


class MaskNumbers(CorpusPass):
    """A toy pass that changes texts."""

    def process_document(self, candidate: Candidate) -> Candidate:
        text = "".join(MASKED if letter.isdigit() else letter for letter in candidate.text)
        return replace(candidate, text=text)


def test_a_new_pass_compares_documents_across_sources(tmp_path: Path) -> None:
    long = "and so on, at some length. " * 6
    first = rows(tmp_path / "a.jsonl", f"The same start, a {long}", f"Another start here, b {long}", "Short.")
    second = rows(tmp_path / "b.jsonl", f"The same start, c {long}", f"Not like others, d {long}")
    inputs = artifacts(a=first, b=second)
    metrics = run(config(inputs, heldout=0), inputs, tmp_path / "out", (*PASSES, SameStart))
    assert metrics["sources"]["a"]["dropped"] == {"too short": 1}
    assert metrics["sources"]["b"]["dropped"] == {SAME_START: 1}
    drops = [(drop["id"], drop["reason"]) for drop in read_jsonl(tmp_path / "out/drops.jsonl.zst")]
    assert drops == [("a:2", "too short"), ("b:0", SAME_START)]
    assert SAME_START in (tmp_path / "out/report.html").read_text()


def test_a_new_pass_changes_texts_before_copies_are_compared(tmp_path: Path) -> None:
    long = "patients were seen, and nothing else was done. " * 4
    inputs = artifacts(a=rows(tmp_path / "a.jsonl", f"In all, 5 {long}", f"In all, 7 {long}"))
    clean, *others = PASSES
    metrics = run(config(inputs, heldout=0), inputs, tmp_path / "out", (clean, MaskNumbers, *others))
    assert metrics["sources"]["a"]["dropped"] == {"copy of another document": 1}
    (document,) = read_corpus(tmp_path / "out", "train")
    assert MASKED in document.text


def test_a_pass_that_drops_for_an_undeclared_reason_is_named(tmp_path: Path) -> None:
    class Silent(CorpusPass):
        """A pass whose reasons are missing."""

        def process_document(self, candidate: Candidate) -> Candidate | DropReason:
            return DropReason("no reason")

    inputs = artifacts(a=rows(tmp_path / "a.jsonl", "A text of some length, and more of it. " * 9))
    with pytest.raises(ValueError, match="the pass silent drops a document for 'no reason'"):
        run(config(inputs), inputs, tmp_path / "out", (*PASSES, Silent))


def test_archives_are_read_like_folders(tmp_path: Path) -> None:
    members = {f"notes/{n}.txt": f"Note {n} of the archive, at some length. " * 4 for n in range(3)}
    members |= {"README.txt": "About the notes.", "notes/empty.txt": "", ".hidden": "x"}
    (tmp_path / "in").mkdir()
    write_archive(tmp_path / "in/a.tar.gz", members)
    write_archive(tmp_path / "in/b.zip", {"c/4.txt": "Note 4 of the other archive, at length. " * 4})
    inputs = artifacts(notes=tmp_path / "in")
    metrics = run(config(inputs, heldout=0), inputs, tmp_path / "out")
    ids = [document.id for document in read_corpus(tmp_path / "out", "train")]
    assert ids == [*(f"text:a.tar.gz!notes/{n}.txt" for n in range(3)), "text:b.zip!c/4.txt"]
    skipped = {"README or licence": 1, "empty file": 1, "hidden file": 1}
    assert metrics["sources"]["notes"]["skipped"] == skipped
    sources = {"notes": {"from": str(tmp_path / "in"), "include": ["*.txt"], "exclude": ["*!notes/1.txt"]}}
    settings = CorpusConfig.model_validate({"sources": sources, "heldout": 0})
    metrics = run(settings, inputs, tmp_path / "chosen")
    assert metrics["sources"]["notes"]["skipped"] == {"excluded": 1, "not included": 1, "empty file": 1}
    assert metrics["sources"]["notes"]["kept"] == 4 - 1
