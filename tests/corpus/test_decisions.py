"""Who is held out, which language passes, and what stays of versions, deletions and copies."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.corpus.dedup import INDEX, Reason, decide, id_key, index_row, occurrences, unique_id
from meditron.corpus.languages import passes
from meditron.corpus.split import is_heldout
from meditron.store.identity import content_sha256

NOBODY = np.empty((0, 2), dtype="<u8")


Row = tuple[str, str, int, Reason]


def indexed(*rows: Row) -> np.ndarray:
    index = [
        index_row(i, content_sha256(text), version, reason, heldout=False)
        for i, text, version, reason in rows
    ]
    return np.array(index, dtype=INDEX)


def decided(*rows: Row, deleted: tuple[str, ...] = ()) -> list[Reason]:
    gone = np.array([id_key(one) for one in deleted], dtype="<u8").reshape(-1, 2)
    return [Reason(one) for one in decide(indexed(*rows), gone)]


def test_the_split_is_the_contents_hash() -> None:
    content = content_sha256("Some text.")
    fraction = int(content[:16], 16) / 2**64
    assert is_heldout(content, fraction + 1e-9)
    assert not is_heldout(content, fraction - 1e-9)
    assert is_heldout(content_sha256(" SOME\n text."), fraction + 1e-9)
    texts = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(20_000)]
    assert not any(is_heldout(text, 0) for text in texts)
    assert abs(sum(is_heldout(text, 0.12) for text in texts) / 20_000 - 0.12) < 0.01


@pytest.mark.parametrize("language", ["eng", "en", "EN-gb", None, "und", ""])
def test_english_passes(language: str | None) -> None:
    assert passes(language, ("en",))
    assert passes(language, ("eng", "fr"))


def test_other_languages_pass_when_wanted() -> None:
    assert not passes("fre", ("en",))
    assert passes("fre", ("en", "fr"))
    assert passes("ger", ("deu",))
    assert passes("fre", ())


def test_the_newest_version_stays() -> None:
    kept = Reason.KEPT
    found = decided(("p:1", "new", 2, kept), ("p:1", "old", 1, kept), ("p:2", "x", 1, kept))
    assert found == [kept, Reason.SUPERSEDED, kept]
    assert decided(("p:1", "a", 1, kept), ("p:1", "b", 1, kept)) == [Reason.SUPERSEDED, kept]


def test_an_older_version_does_not_outlive_the_retraction_of_the_newest() -> None:
    for version, text in ((2, "b"), (1, "b"), (1, "a")):
        found = decided(("p:1", "a", 1, Reason.KEPT), ("p:1", text, version, Reason.RETRACTED))
        assert found == [Reason.SUPERSEDED, Reason.RETRACTED]


def test_the_same_file_in_two_sources_belongs_to_the_first() -> None:
    kept = Reason.KEPT
    rows = (("p:1", "a", 1, kept), ("p:2", "b", 1, kept))
    assert decided(*rows, *rows) == [kept, kept, Reason.COPY, Reason.COPY]
    # Between the two copies stands another text: the newest is the last one's, in the first one's place.
    assert decided(rows[0], ("p:1", "x", 1, kept), rows[0]) == [kept, Reason.SUPERSEDED, Reason.COPY]


def test_every_copy_of_an_older_version_is_superseded_and_its_id_is_not_counted() -> None:
    old, new = ("p:1", "a", 1, Reason.KEPT), ("p:1", "b", 1, Reason.KEPT)
    found = decided(old, old, new)
    assert found == [Reason.SUPERSEDED, Reason.SUPERSEDED, Reason.KEPT]
    numbers = occurrences(indexed(old, old, new), np.array(found, "u1"))
    assert unique_id("p:1", numbers[2]) == "p:1"


def test_sources_without_versions_may_use_the_same_ids() -> None:
    assert decided(("1", "a", 0, Reason.KEPT), ("1", "b", 0, Reason.KEPT)) == [Reason.KEPT] * 2


def test_deleted_ids_go() -> None:
    rows = (("p:1", "a", 1, Reason.KEPT), ("p:2", "b", 1, Reason.KEPT))
    assert decided(*rows, deleted=("p:2", "p:9")) == [Reason.KEPT, Reason.DELETED]


def test_of_copies_the_first_stays() -> None:
    rows = tuple(
        (f"p:{n}", text, 1, Reason.KEPT) for n, text in enumerate(("Same  text", "same TEXT", "same text"))
    )
    assert decided(*rows) == [Reason.KEPT, Reason.COPY, Reason.COPY]


def test_what_goes_anyway_is_no_ones_original() -> None:
    rows = (("p:1", "text", 1, Reason.LANGUAGE), ("p:2", "text", 1, Reason.KEPT))
    assert decided(*rows) == [Reason.LANGUAGE, Reason.KEPT]


def test_nothing_is_decided_of_nothing() -> None:
    assert len(decide(np.empty(0, INDEX), NOBODY)) == 0
    assert len(occurrences(np.empty(0, INDEX), np.empty(0, "u1"))) == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6), st.integers(1, 3)), max_size=30))
def test_no_kept_text_or_id_is_kept_twice(drawn: list[tuple[int, int, int]]) -> None:
    rows = [(f"p:{i}", f"text {t}", v, Reason.KEPT) for i, t, v in drawn]
    found = decided(*rows)
    kept = [row for row, reason in zip(rows, found, strict=True) if reason is Reason.KEPT]
    assert len({row[0] for row in kept}) == len(kept)
    assert len({row[1] for row in kept}) == len(kept)
    # Every id has its newest version's text in the corpus, its own or a copy's.
    for name in {row[0] for row in rows}:
        *_, (_, text, _, _) = sorted((row for row in rows if row[0] == name), key=lambda row: row[2])
        assert text in {row[1] for row in kept}


IDS = st.sampled_from(["7", "7#2", "7#2#1", "7#02", "8", "8#1", "#3", "#"])


@given(st.lists(st.tuples(IDS, st.integers(0, 2)), max_size=30))
def test_no_two_documents_share_an_id(drawn: list[tuple[str, int]]) -> None:
    index = indexed(*((name, str(n), version, Reason.KEPT) for n, (name, version) in enumerate(drawn)))
    reasons = decide(index, NOBODY)
    numbers = occurrences(index, reasons)
    given = [
        unique_id(name, number)
        for (name, _), number, reason in zip(drawn, numbers, reasons, strict=True)
        if reason == Reason.KEPT
    ]
    assert len(set(given)) == len(given)


def test_repeated_ids_are_numbered() -> None:
    index = indexed(*(("0", str(n), 0, Reason.KEPT) for n in range(4)))
    numbers = occurrences(index, np.zeros(4, "u1"))
    assert [unique_id("0", number) for number in numbers] == ["0", "0#2", "0#3", "0#4"]
