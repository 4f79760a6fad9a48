"""Near-duplicates through the whole corpus stage, with exact Jaccard similarities as the reference."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from meditron.corpus.build import run
from meditron.corpus.candidate import CorpusPass, DocumentTable, DropReason
from meditron.corpus.config import CorpusConfig, NearDedupConfig
from meditron.corpus.near_dedup import ABSTRACT, HELDOUT_DUPLICATE, NEAR_DUPLICATE
from meditron.corpus.passes import PASSES
from meditron.store.corpus import read_corpus
from meditron.store.jsonl import read_jsonl

from .test_build import artifacts, config, digest
from .test_minhash import random_pairs, word_shingles

Row = Mapping[str, Any]
# The texts are words without grammar.
SETTINGS = {"near_dedup": {"threshold": 0.8}, "filters": {"min_stop_words": 0}}


def words(count: int, seed: int) -> list[str]:
    random_ = random.Random(seed)
    return [f"w{random_.randrange(100_000)}" for _ in range(count)]


def edited(text: list[str], places: Iterable[int]) -> list[str]:
    return [f"edit{place}" if place in set(places) else word for place, word in enumerate(text)]


def build(
    folder: Path, rows: Iterable[Row], **settings: Any
) -> tuple[dict[str, Any], dict[str, set[str]], dict[str, tuple[str, str | None]]]:
    """Return the metrics, split → ids, and the id of each dropped document → its reason and its original."""
    folder.mkdir(exist_ok=True)
    path = folder / "docs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    inputs = artifacts(docs=path)
    metrics = run(config(inputs, **{"heldout": 0, **SETTINGS, **settings}), inputs, folder / "out")
    ids = {split: {d.id for d in read_corpus(folder / "out", split)} for split in ("train", "heldout")}
    drops = {
        drop["id"]: (drop["reason"], drop.get("of")) for drop in read_jsonl(folder / "out/drops.jsonl.zst")
    }
    return metrics, ids, drops


def similarity(one: str, other: str) -> float:
    first, second = set(word_shingles(one)), set(word_shingles(other))
    return len(first & second) / len(first | second)


@pytest.fixture(scope="module")
def planted() -> list[dict[str, str]]:
    """Return 1,500 pairs of texts with similarities from 0.4 to 1, in random order."""
    rows = [
        {"id": f"{name}:{number}", "text": text}
        for number, pair in enumerate(random_pairs(1_500, seed=8))
        for name, text in zip("ab", pair, strict=True)
    ]
    random.Random(2).shuffle(rows)
    return rows


@pytest.mark.parametrize("heldout", [0.0, 0.3])
def test_planted_near_duplicates_are_found_and_nothing_else_is(
    tmp_path: Path, planted: list[dict[str, str]], heldout: float
) -> None:
    metrics, ids, drops = build(tmp_path, planted, heldout=heldout, shard_documents=211)
    texts = {row["id"]: row["text"] for row in planted}
    kept = ids["train"] | ids["heldout"]
    assert kept | set(drops) == set(texts)
    for dropped, (reason, original) in drops.items():
        assert original in kept
        assert similarity(texts[dropped], texts[original]) >= 0.8
        if reason == HELDOUT_DUPLICATE:
            assert original in ids["heldout"]
    similar = [n for n in range(1_500) if similarity(texts[f"a:{n}"], texts[f"b:{n}"]) >= 0.85]
    both_kept = sum(1 for n in similar if {f"a:{n}", f"b:{n}"} <= kept)
    assert len(similar) > 250
    assert both_kept <= 0.03 * len(similar)
    counts = metrics["near_duplicates"]
    near = sum(1 for reason, _ in drops.values() if reason in (NEAR_DUPLICATE, HELDOUT_DUPLICATE))
    assert counts["clusters"] == counts["sizes"]["2"] == near == counts["documents"] // 2
    assert counts["similar_pairs"] == near
    assert sum(counts["dropped"].values()) == near


def test_a_held_out_document_is_never_in_the_training_split_under_another_form(
    tmp_path: Path, planted: list[dict[str, str]]
) -> None:
    _, ids, drops = build(tmp_path, planted, heldout=0.3)
    texts = {row["id"]: row["text"] for row in planted}
    leaks = [
        number
        for number in range(1_500)
        for one, other in (("a", "b"), ("b", "a"))
        if f"{one}:{number}" in ids["heldout"]
        and f"{other}:{number}" in ids["train"]
        and similarity(texts[f"a:{number}"], texts[f"b:{number}"]) >= 0.85
    ]
    found = [original for reason, original in drops.values() if reason == HELDOUT_DUPLICATE]
    assert set(found) <= ids["heldout"]
    assert len(leaks) <= 0.03 * len(found)


def test_the_best_document_of_a_cluster_stays(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for group in range(4):
        text = words(200, group)
        rows += [
            {"id": f"first:{group}", "text": " ".join(edited(text, [20])), "year": 2001},
            {"id": f"newest:{group}", "text": " ".join(edited(text, [60])), "year": 2020 - 19 * (group > 1)},
            {"id": f"longest:{group}", "text": " ".join(text + ["more"] * (group < 3)), "year": 2001},
        ]
    _, ids, drops = build(tmp_path, rows)
    assert ids["train"] == {"newest:0", "newest:1", "longest:2", "first:3"}
    assert {original for _, original in drops.values()} == ids["train"]
    assert drops["first:0"] == (NEAR_DUPLICATE, "newest:0")
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Jaccard similarity of at least 0.8" in page
    assert "near-duplicate of another document: first:0 (of newest:0)" in page


def test_a_document_that_is_like_a_dropped_one_only_stays(tmp_path: Path) -> None:
    text = words(200, 1)
    # 6 of 200 words apart are 30 of about 196 shingles: a similarity of 0.73. 3 words apart: 0.86.
    chain = [edited(text, range(10, 10 + 30 * step, 10)) for step in range(3)]
    rows = [{"id": str(n), "text": " ".join(words_), "year": 2003 - n} for n, words_ in enumerate(chain)]
    assert similarity(rows[0]["text"], rows[1]["text"]) > 0.83  # type: ignore[arg-type]
    assert similarity(rows[0]["text"], rows[2]["text"]) < 0.75  # type: ignore[arg-type]
    metrics, ids, drops = build(tmp_path, rows)
    assert (ids["train"], drops) == ({"0", "2"}, {"1": (NEAR_DUPLICATE, "0")})
    assert metrics["near_duplicates"]["sizes"] == {"3-4": 1}


def test_a_cluster_with_a_held_out_document_loses_its_training_documents(tmp_path: Path) -> None:
    text = words(200, 1)
    rows = [
        {"id": f"{chain}:{n}", "text": " ".join([*edited(text, range(10, 10 + 30 * n, 10)), f"chain{chain}"])}
        for chain in range(40)
        for n in range(3)
    ]
    rows = [row | {"text": row["text"].replace("w", f"w{row['id'][:-2]}x")} for row in rows]
    metrics, ids, drops = build(tmp_path, rows, heldout=0.25)
    chains = {identity[:-2] for identity in ids["heldout"]}
    assert 5 < len(chains) == metrics["near_duplicates"]["heldout_clusters"] < 35
    assert not {identity for identity in ids["train"] if identity[:-2] in chains}
    reasons = {reason for identity, (reason, _) in drops.items() if identity[:-2] in chains}
    assert HELDOUT_DUPLICATE in reasons


def article_rows() -> list[dict[str, Any]]:
    abstract, body = words(200, 1), words(3_000, 2)
    other = words(200, 3)
    return [
        {"id": "pubmed:1", "text": " ".join(abstract)},
        {"id": "pubmed:2", "text": " ".join(other), "meta": {"doi": "10.1/X"}},
        {"id": "pubmed:3", "text": " ".join(words(200, 4)), "meta": {"doi": "10.1/y"}},
        {"id": "pmc:1", "text": " ".join(edited(abstract, range(0, 200, 30)) + body), "meta": {"pmid": "1"}},
        {"id": "pmc:2", "text": " ".join(words(9_000, 5) + other), "meta": {"doi": "https://doi.org/10.1/x"}},
        {"id": "pmc:3", "text": " ".join(words(3_000, 6)), "meta": {"doi": "10.1/y"}},
        {"id": "s2:2", "text": " ".join(words(9_000, 5)[:7_000]), "meta": {"doi": "10.1/x"}},
    ]


def test_an_abstract_of_a_full_paper_is_dropped(tmp_path: Path) -> None:
    metrics, ids, drops = build(tmp_path, article_rows())
    assert drops == {
        "pubmed:1": (ABSTRACT, "pmc:1"),
        "pubmed:2": (ABSTRACT, "pmc:2"),
        "s2:2": (NEAR_DUPLICATE, "pmc:2"),
    }
    # Another text with the same DOI is not the abstract.
    assert ids["train"] == {"pmc:1", "pmc:2", "pmc:3", "pubmed:3"}
    assert metrics["near_duplicates"]["dropped"] == {ABSTRACT: 2, NEAR_DUPLICATE: 1, HELDOUT_DUPLICATE: 0}
    _, ids, drops = build(tmp_path / "all", article_rows(), near_dedup={"abstracts": False})
    assert not drops


def test_the_paper_of_a_held_out_abstract_stays(tmp_path: Path) -> None:
    _, ids, drops = build(tmp_path, article_rows(), heldout=0.6)
    assert {"pmc:1", "pmc:2", "pmc:3"} <= ids["train"] | ids["heldout"]
    assert set(drops) == {"pubmed:1", "pubmed:2", "s2:2"}


def test_the_original_of_a_copy_is_a_document_that_stays(tmp_path: Path) -> None:
    text = words(200, 1)
    rows = [
        {"id": "7", "text": " ".join(text), "year": 2000},
        {"id": "8", "text": " ".join(text).upper()},
        {"id": "7", "text": " ".join(edited(text, [9])), "year": 2020},
        {"id": "7", "text": " ".join(words(200, 2))},
    ]
    _, ids, drops = build(tmp_path, rows)
    assert ids["train"] == {"7#2", "7#3"}
    assert drops == {"7": (NEAR_DUPLICATE, "7#2"), "8": ("copy of another document", "7#2")}


def test_texts_without_words_are_not_near_duplicates(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": "… " * n} for n in range(1, 9)] + [{"id": "one", "text": "Word."}]
    metrics, ids, drops = build(tmp_path, rows, min_characters=0)
    assert len(ids["train"]) == 9 - len(drops)
    assert not any(reason == NEAR_DUPLICATE for reason, _ in drops.values())
    assert metrics["near_duplicates"]["clusters"] == 0
    assert metrics["near_duplicates"]["largest"] == []


def test_short_texts_are_compared_by_the_words_they_have(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "No abstract here."}, {"id": "b", "text": "No abstract – here"}]
    _, ids, drops = build(tmp_path, rows, min_characters=0)
    assert (ids["train"], drops) == ({"a"}, {"b": (NEAR_DUPLICATE, "a")})


def test_without_the_key_only_copies_are_dropped(tmp_path: Path, planted: list[dict[str, str]]) -> None:
    metrics, _, drops = build(tmp_path, planted[:200], near_dedup=None)
    assert "near_duplicates" not in metrics
    assert {reason for reason, _ in drops.values()} <= {"copy of another document"}


def large_cluster(count: int) -> list[dict[str, str]]:
    text = words(400, 5)
    rows = [{"id": f"near:{n}", "text": " ".join(edited(text, [n]))} for n in range(count)]
    return rows + [{"id": f"far:{n}", "text": " ".join(words(100, n + 50))} for n in range(20)]


def test_the_result_does_not_depend_on_the_sizes_of_batches(
    tmp_path: Path, planted: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = planted[:600] + large_cluster(60)
    expected = build(tmp_path / "a", rows)
    monkeypatch.setattr("meditron.corpus.near_clusters.MAX_BATCH", 16)
    monkeypatch.setattr("meditron.corpus.near_clusters._PART", 100)
    assert build(tmp_path / "b", rows) == expected
    assert len({identity for identity in expected[1]["train"] if identity.startswith("near:")}) == 1
    assert expected[0]["near_duplicates"]["largest"][0]["size"] == 60
    (best, *examples) = expected[0]["near_duplicates"]["largest"][0]["documents"]
    assert best["id"] == "near:0"
    assert len(examples) == 3


def run_in(folder: Path, rows_path: Path, passes: Any = PASSES, **settings: Any) -> dict[str, str]:
    inputs = artifacts(docs=rows_path)
    run(config(inputs, heldout=0.2, shard_documents=150, **SETTINGS, **settings), inputs, folder, passes)
    return digest(folder)


def test_workers_and_interruptions_do_not_change_the_result(
    tmp_path: Path, planted: list[dict[str, str]]
) -> None:
    class Interrupt(CorpusPass):
        """A pass that stops the run after the comparison."""

        def compare_documents(self, documents: DocumentTable) -> Mapping[DropReason, np.ndarray]:
            assert len(documents.metrics) == 1
            raise KeyboardInterrupt

    path = tmp_path / "docs.jsonl"
    path.write_text("\n".join(map(json.dumps, planted[:900])))
    expected = run_in(tmp_path / "one", path)
    assert run_in(tmp_path / "two", path, workers=2) == expected
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path / "resumed", path, (*PASSES, Interrupt))
    leftovers = {entry.name for entry in (tmp_path / "resumed/work").iterdir()}
    assert leftovers == {"docs", "groups.jsonl", "groups.offsets", "decontamination.npy"}
    assert run_in(tmp_path / "resumed", path) == expected


def test_a_limit_within_a_piece_limits_the_comparison(tmp_path: Path) -> None:
    metrics, ids, _ = build(tmp_path, large_cluster(60), limit=30, shard_documents=25)
    assert metrics["near_duplicates"]["documents"] == 30
    assert len(ids["train"]) == 1


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"hashes": 100}, "hashes must be a multiple of bands, got 100 and 14"),
        ({"threshold": 0}, "threshold"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        NearDedupConfig.model_validate(settings)
    with pytest.raises(ValidationError, match=problem):
        CorpusConfig.model_validate({"sources": {"a": {"from": "a"}}, "near_dedup": settings})
