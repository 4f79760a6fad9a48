"""The split, the languages allowed, and the selection among versions, deletions and copies."""

import hashlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.corpus import decisions
from meditron.corpus.build import run
from meditron.corpus.candidate import DocumentTable, DropReason
from meditron.corpus.config import CorpusConfig
from meditron.corpus.dedup import (
    COPY,
    DELETED,
    INDEX,
    SUPERSEDED,
    Deduplication,
    id_hash,
    index_row,
    occurrence_numbers,
    rows_to_drop,
    unique_id,
)
from meditron.corpus.document_files import DocumentFiles
from meditron.corpus.languages import language_allowed
from meditron.corpus.split import is_heldout
from meditron.store.identity import content_sha256
from meditron.store.jsonl import read_jsonl

from .test_build import artifacts
from .test_build import config as corpus_config

# Codes of drop reasons of earlier passes.
KEPT, RETRACTED, LANGUAGE = 0, 1, 2

Row = tuple[str, str, int, int]


def indexed(*rows: Row) -> np.ndarray:
    index = [
        index_row(i, content_sha256(text), version, reason, heldout=False)
        for i, text, version, reason in rows
    ]
    return np.array(index, dtype=INDEX)


def decided(*rows: Row, deleted: tuple[str, ...] = ()) -> list[int | DropReason]:
    """Return each row's reason of `rows_to_drop`, or else its own."""
    keys = np.array([id_hash(identity) for identity in deleted], dtype="<u8").reshape(-1, 2)
    reasons: list[int | DropReason] = [row[3] for row in rows]
    for reason, numbers in rows_to_drop(indexed(*rows), keys).items():
        for number in numbers:
            reasons[number] = reason
    return reasons


def numbered(rows: list[Row]) -> list[int]:
    """Return the number of each row's occurrence."""
    counted = [reason not in (SUPERSEDED, DELETED) for reason in decided(*rows)]
    return list(occurrence_numbers(indexed(*rows), np.array(counted, dtype=bool)))


def test_the_split_is_the_hash_of_the_content() -> None:
    content = content_sha256("Some text.")
    fraction = int(content[:16], 16) / 2**64
    assert is_heldout(content, fraction + 1e-9)
    assert not is_heldout(content, fraction - 1e-9)
    assert is_heldout(content_sha256(" SOME\n text."), fraction + 1e-9)
    texts = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(20_000)]
    assert not any(is_heldout(text, 0) for text in texts)
    assert abs(sum(is_heldout(text, 0.12) for text in texts) / 20_000 - 0.12) < 0.01
    splits = [[is_heldout(text, 0.12, seed) for text in texts] for seed in (0, 1, 2)]
    assert splits[0] == [is_heldout(text, 0.12) for text in texts]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        both = sum(a and b for a, b in zip(splits[one], splits[other], strict=True))
        assert abs(both / 20_000 - 0.12**2) < 0.004  # independent


@pytest.mark.parametrize("language", ["eng", "en", "EN-gb", None, "und", ""])
def test_english_is_allowed(language: str | None) -> None:
    assert language_allowed(language, ("en",))
    assert language_allowed(language, ("eng", "fr"))


def test_other_languages_are_allowed_by_config() -> None:
    assert not language_allowed("fre", ("en",))
    assert language_allowed("fre", ("en", "fr"))
    assert language_allowed("ger", ("deu",))
    assert language_allowed("fre", ())


def test_the_newest_version_stays() -> None:
    kept = KEPT
    reasons = decided(("p:1", "new", 2, kept), ("p:1", "old", 1, kept), ("p:2", "x", 1, kept))
    assert reasons == [kept, SUPERSEDED, kept]
    assert decided(("p:1", "a", 1, kept), ("p:1", "b", 1, kept)) == [SUPERSEDED, kept]


def test_a_retracted_newest_version_supersedes_older_versions() -> None:
    for version, text in ((2, "b"), (1, "b"), (1, "a")):
        reasons = decided(("p:1", "a", 1, KEPT), ("p:1", text, version, RETRACTED))
        assert reasons == [SUPERSEDED, RETRACTED]


def test_of_the_same_file_in_two_sources_the_first_stays() -> None:
    kept = KEPT
    rows = (("p:1", "a", 1, kept), ("p:2", "b", 1, kept))
    assert decided(*rows, *rows) == [kept, kept, COPY, COPY]
    # Another version is between the two copies: the last copy is the newest version, the first one stays.
    assert decided(rows[0], ("p:1", "x", 1, kept), rows[0]) == [kept, SUPERSEDED, COPY]


def test_every_copy_of_an_older_version_is_superseded_and_its_id_is_not_counted() -> None:
    old, new = ("p:1", "a", 1, KEPT), ("p:1", "b", 1, KEPT)
    reasons = decided(old, old, new)
    assert reasons == [SUPERSEDED, SUPERSEDED, KEPT]
    assert unique_id("p:1", numbered([old, old, new])[2]) == "p:1"


def test_equal_ids_without_versions_are_different_documents() -> None:
    assert decided(("1", "a", 0, KEPT), ("1", "b", 0, KEPT)) == [KEPT] * 2


def test_deleted_ids_are_dropped() -> None:
    rows = (("p:1", "a", 1, KEPT), ("p:2", "b", 1, KEPT))
    assert decided(*rows, deleted=("p:2", "p:9")) == [KEPT, DELETED]


def test_of_copies_the_first_stays() -> None:
    rows = tuple((f"p:{n}", text, 1, KEPT) for n, text in enumerate(("Same  text", "same TEXT", "same text")))
    assert decided(*rows) == [KEPT, COPY, COPY]


def test_a_dropped_document_is_not_the_original_of_a_copy() -> None:
    rows = (("p:1", "text", 1, LANGUAGE), ("p:2", "text", 1, KEPT))
    assert decided(*rows) == [LANGUAGE, KEPT]


def test_an_empty_index() -> None:
    assert decided() == []
    assert numbered([]) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6), st.integers(1, 3)), max_size=30))
def test_no_kept_text_or_id_is_kept_twice(drawn: list[tuple[int, int, int]]) -> None:
    rows = [(f"p:{i}", f"text {t}", v, KEPT) for i, t, v in drawn]
    reasons = decided(*rows)
    kept = [row for row, reason in zip(rows, reasons, strict=True) if reason == KEPT]
    assert len({row[0] for row in kept}) == len(kept)
    assert len({row[1] for row in kept}) == len(kept)
    # Every id has its newest version's text in the corpus, its own or a copy's.
    for name in {row[0] for row in rows}:
        *_, (_, text, _, _) = sorted((row for row in rows if row[0] == name), key=lambda row: row[2])
        assert text in {row[1] for row in kept}


IDS = st.sampled_from(["7", "7#2", "7#2#1", "7#02", "8", "8#1", "#3", "#"])


@given(st.lists(st.tuples(IDS, st.integers(0, 2)), max_size=30))
def test_no_two_documents_share_an_id(drawn: list[tuple[str, int]]) -> None:
    rows = [(name, str(n), version, KEPT) for n, (name, version) in enumerate(drawn)]
    ids = [
        unique_id(name, number)
        for (name, _), number, reason in zip(drawn, numbered(rows), decided(*rows), strict=True)
        if reason == KEPT
    ]
    assert len(set(ids)) == len(ids)


def test_repeated_ids_are_numbered() -> None:
    numbers = numbered([("0", str(n), 0, KEPT) for n in range(4)])
    assert [unique_id("0", number) for number in numbers] == ["0", "0#2", "0#3", "0#4"]


def test_memory_and_originals_of_many_copies() -> None:
    count, bits = 400_000, np.random.default_rng(0)
    index = np.zeros(count, INDEX)
    index["id"], index["text"] = bits.integers(0, 1 << 63, (2, count, 2))
    index["text"][bits.integers(0, count, count // 10)] = index["text"][bits.integers(0, count, count // 10)]
    originals = np.arange(count, dtype=np.uint32)
    config = CorpusConfig.model_validate({"sources": {"a": {"from": "a.jsonl"}}})
    tracemalloc.start()
    table = DocumentTable(index, np.empty((0, 2), np.uint64), originals=originals)
    copies = Deduplication(config).compare_documents(table)[COPY]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The partition that is compared takes a constant amount, which counts here because the rows are few.
    assert peak < 35 * count
    assert len(copies) > count // 20
    assert (index["text"][originals[copies]] == index["text"][copies]).all()
    assert (originals[copies] < copies).all()
    assert not np.isin(originals[copies], copies).any()


def test_ids_of_originals_are_read_for_many_shards_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": f"{n}", "text": f"Text {n % 7} is the same as that of others."} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    inputs = artifacts(rows=tmp_path / "rows.jsonl")
    calls: list[int] = []
    ids = DocumentFiles.ids
    monkeypatch.setattr(DocumentFiles, "ids", lambda files, rows: calls.append(len(rows)) or ids(files, rows))
    for block, lengths in ((1 << 20, [23]), (4, [5, 4, 4, 4, 4, 2])):
        monkeypatch.setattr(decisions, "_BLOCK", block)
        calls.clear()
        settings = corpus_config(inputs, heldout=0, min_characters=0, shard_documents=2)
        run(settings, inputs, tmp_path / str(block))
        assert calls == lengths
        drops = read_jsonl(tmp_path / str(block) / "drops.jsonl.zst")
        assert {drop["id"]: drop["of"] for drop in drops} == {f"{n}": f"{n % 7}" for n in range(7, 30)}
