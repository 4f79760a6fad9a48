"""Weights of documents: the original's scores, summed, rounded at random with the right expectation."""

import numpy as np
import pytest
from pydantic import ValidationError

from meditron.sources.evidence import evidence_table, type_mask
from meditron.store.document_facts import FACTS, fact_row
from meditron.train.config import UpsampleConfig
from meditron.train.document_weights import UNIT, EpochCopies, document_weights


def weight_of(types, *, year=None, mesh=(), **config):
    facts = np.array([fact_row(type_mask(list(types), list(mesh)), year, None)], FACTS)
    return document_weights(UpsampleConfig(**config), facts)[0] / UNIT


PUBLISHED = {
    "Guideline": 1, "Practice Guideline": 1, "Patient Education Handout": 1, "Meta-Analysis": 1,
    "Systematic Review": 0.8, "Clinical Trial, Phase IV": 0.8, "Clinical Trial, Phase III": 0.6,
    "Clinical Trial, Phase II": 0.4, "Clinical Trial, Phase I": 0.2, "Randomized Controlled Trial": 0.5,
    "Review": 0.5, "Observational Study": 0.5, "Comparative Study": 0.5, "Clinical Study": 0.4,
    "Case Reports": 0, "Editorial": 0.1, "Letter": 0.1, "Comment": 0.1,
}  # fmt: skip
"""Table 10 of the paper, and PUBLICATION_TYPE_FACTORS of gap-replay/pubmed/upsample.py."""


@pytest.mark.parametrize(("name", "score"), PUBLISHED.items())
def test_published_scores(name, score):
    assert weight_of([name]) == 1 + score


def test_all_types_are_published_or_excluded():
    types = evidence_table().types
    assert {t.name for t in types if not t.excluded} == set(PUBLISHED)
    assert {t.name for t in types if t.excluded} == {
        "Observational Study, Veterinary", "Preprint", "Retraction of Publication",
        "Retracted Publication", "Animals",
    }  # fmt: skip


def test_scores_add_up_and_recent_documents_with_a_score_count_more():
    assert weight_of(["Review", "Systematic Review", "Journal Article"]) == 2.3
    assert weight_of(["Review"], year=2023) == 2.5
    assert weight_of(["Review"], year=2018) == 2.5
    assert weight_of(["Review"], year=2017) == 1.7
    assert weight_of(["Review"], year=2013) == 1.7
    assert weight_of(["Review"], year=2012) == 1.5
    assert weight_of(["Case Reports"], year=2023) == 1
    assert weight_of([], year=2023) == 1


def test_excluded_documents_have_the_weight_0():
    assert weight_of(["Review", "Preprint"], year=2022) == 0
    assert weight_of(["Randomized Controlled Trial"], mesh=["Humans", "Animals"]) == 0
    assert weight_of(["Randomized Controlled Trial"], mesh=["Animals"], exclude=[]) == 1.5


def test_every_value_is_configurable():
    assert weight_of(["Case Reports"], scores={"Case Reports": 0.3}) == 1.3
    assert weight_of(["Review"], strength=3) == 2.5
    assert weight_of(["Review"], year=2025, reference_year=2026, recency=[[1, 2.0]]) == 3.5
    assert weight_of(["Review"], year=2023, recency=[]) == 1.5
    assert weight_of(["Review"], evidence=False) == 1
    facts = np.array([fact_row(type_mask(["Review"]), None, q) for q in (0.25, None, 0, 1, 1.5)], FACTS)
    weights = document_weights(UpsampleConfig(quality=True), facts)
    assert (weights / UNIT).tolist() == [0.375, 1.5, 0, 1.5, 1.5]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scores": {"Guide": 1}}, "no publication type 'Guide'"),
        ({"exclude": ["Mice"]}, "no publication type 'Mice'"),
        ({"recency": [[10, 1], [5, 2]]}, "the ages of recency must increase"),
        ({"scores": {"Review": -1}}, "greater than or equal to 0"),
    ],
)
def test_wrong_values_are_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        UpsampleConfig(**config)


def test_the_first_epoch_rounds_up_with_the_probability_of_the_fraction():
    weights = np.full(100_000, 1800)
    copies = EpochCopies(weights, "1/pubmed/copies").in_epoch(0)
    assert set(copies.tolist()) == {1, 2}
    assert copies.mean() == pytest.approx(1.8, abs=0.005)
    assert EpochCopies(weights, "2/pubmed/copies").in_epoch(0).tolist() != copies.tolist()
