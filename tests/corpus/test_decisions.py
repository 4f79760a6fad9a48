"""Who is held out, which language passes, and what stays of versions, deletions and copies."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.corpus.dedup import INDEX, Reason, decide, id_key, index_row
from meditron.corpus.languages import passes
from meditron.corpus.split import is_heldout

NOBODY = np.empty((0, 2), dtype="<u8")


def decided(*rows: tuple[str, str, int, Reason, bool], deleted: tuple[str, ...] = ()) -> list[Reason]:
    index = [index_row(i, text, version, reason, heldout=held) for i, text, version, reason, held in rows]
    gone = np.array([id_key(one) for one in deleted], dtype="<u8").reshape(-1, 2)
    return [Reason(one) for one in decide(np.array(index, dtype=INDEX), gone)]


def test_the_split_is_the_ids_sha256() -> None:
    fraction = int(hashlib.sha256(b"pubmed:12").hexdigest()[:16], 16) / 2**64
    assert is_heldout("pubmed:12", fraction + 1e-9)
    assert not is_heldout("pubmed:12", fraction - 1e-9)
    assert not any(is_heldout(f"pubmed:{n}", 0) for n in range(100))
    share = sum(is_heldout(f"pubmed:{n}", 0.12) for n in range(20_000)) / 20_000
    assert abs(share - 0.12) < 0.01


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
    found = decided(
        ("p:1", "new", 2, kept, False), ("p:1", "old", 1, kept, False), ("p:2", "x", 1, kept, False)
    )
    assert found == [kept, Reason.SUPERSEDED, kept]
    assert decided(("p:1", "a", 1, kept, False), ("p:1", "b", 1, kept, False)) == [Reason.SUPERSEDED, kept]


def test_an_older_version_does_not_outlive_the_retraction_of_the_newest() -> None:
    found = decided(("p:1", "a", 1, Reason.KEPT, False), ("p:1", "b", 2, Reason.RETRACTED, False))
    assert found == [Reason.SUPERSEDED, Reason.RETRACTED]


def test_sources_without_versions_may_use_the_same_ids() -> None:
    assert decided(("1", "a", 0, Reason.KEPT, False), ("1", "b", 0, Reason.KEPT, False)) == [Reason.KEPT] * 2


def test_deleted_ids_go() -> None:
    rows = (("p:1", "a", 1, Reason.KEPT, False), ("p:2", "b", 1, Reason.KEPT, True))
    assert decided(*rows, deleted=("p:2", "p:9")) == [Reason.KEPT, Reason.DELETED]


def test_the_heldout_copy_stays_wherever_it_stands() -> None:
    rows = tuple(
        (f"p:{n}", "Same  text", 1, Reason.KEPT, held) for n, held in enumerate([False, True, True, False])
    )
    assert decided(*rows) == [Reason.COPY_OF_HELDOUT, Reason.KEPT, Reason.COPY, Reason.COPY_OF_HELDOUT]


def test_of_training_copies_the_first_stays() -> None:
    rows = tuple((f"p:{n}", "text", 1, Reason.KEPT, False) for n in range(3))
    assert decided(*rows) == [Reason.KEPT, Reason.COPY, Reason.COPY]


def test_what_goes_anyway_is_no_ones_original() -> None:
    rows = (("p:1", "text", 1, Reason.LANGUAGE, True), ("p:2", "text", 1, Reason.KEPT, False))
    assert decided(*rows) == [Reason.LANGUAGE, Reason.KEPT]


def test_nothing_is_decided_of_nothing() -> None:
    assert len(decide(np.empty(0, INDEX), NOBODY)) == 0


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6), st.integers(1, 3), st.booleans()), max_size=30)
)
def test_no_kept_text_or_id_is_kept_twice(drawn: list[tuple[int, int, int, bool]]) -> None:
    rows = [(f"p:{i}", f"text {t}", v, Reason.KEPT, i % 3 == 0) for i, t, v, _ in drawn]
    found = decided(*rows)
    kept = [row for row, reason in zip(rows, found, strict=True) if reason is Reason.KEPT]
    assert len({row[0] for row in kept}) == len(kept)
    assert len({row[1] for row in kept}) == len(kept)
    assert {row[1] for row in rows if row[4] and found[rows.index(row)] is Reason.COPY_OF_HELDOUT} == set()
