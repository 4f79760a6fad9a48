"""Evidence levels: the strongest type decides, and odd values are ignored."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from meditron.sources.evidence import UNKNOWN_LEVEL, evidence_table, sum_by_level, type_mask

NAMES = [entry.name for entry in evidence_table().types if entry.mesh is None]


@given(st.lists(st.sampled_from([*NAMES, "Journal Article"]), max_size=5))
def test_the_level_is_that_of_the_strongest_type(types: list[str]) -> None:
    known = [name for name in NAMES if name in types]
    levels = {entry.name: entry.level for entry in evidence_table().types}
    level = evidence_table().level_of(type_mask(types))
    assert level == (levels[known[0]] if known else UNKNOWN_LEVEL)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(NAMES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(values, values, values)
def test_any_value_gives_a_mask(types: object, mesh: object, article_type: object) -> None:
    mask = type_mask(types, mesh, article_type)
    assert 0 <= mask < 1 << len(evidence_table().types) <= 1 << 32
    assert evidence_table().level_of(mask)


def test_article_types_and_descriptors_are_types_too() -> None:
    table = evidence_table()
    assert table.level_of(type_mask(article_type="review-article")) == "review"
    assert table.level_of(type_mask(article_type="case-report")) == "case report"
    assert table.level_of(type_mask(mesh=["Humans", "Animals"])) == "animal study"
    assert type_mask(["Animals"], ["Review"], "research-article") == 0


def test_names_are_unique_and_levels_are_in_one_place() -> None:
    types = evidence_table().types
    assert len({entry.name for entry in types}) == len(types)
    aliases = [alias for entry in types for alias in entry.article_types]
    assert len(set(aliases)) == len(aliases)


def test_sums_by_level_are_in_the_order_of_the_levels() -> None:
    documents = [["Letter"], [], ["Review", "Guideline"], ["Comment"], []]
    masks = np.array([type_mask(types) for types in documents], np.uint32)
    sums = sum_by_level(masks, np.ones(5, np.int64), np.array([1, 10, 100, 1_000, 10_000]))
    assert list(sums.items()) == [
        ("guideline", [1, 100]),
        ("opinion", [2, 1_001]),
        (UNKNOWN_LEVEL, [2, 10_010]),
    ]
    assert sum_by_level(masks[:0], masks[:0]) == {}


def test_the_guide_lists_the_types_and_scores() -> None:
    guide = (Path(__file__).parents[2] / "docs/how-to/own-corpus.md").read_text(encoding="utf-8")
    rows = [
        f"| {entry.level} | {entry.name}{' (MeSH)' if entry.mesh else ''} "
        f"| {'left out' if entry.excluded else f'{entry.score:g}'} |"
        for entry in evidence_table().types
    ]
    assert "\n".join(rows) in guide
