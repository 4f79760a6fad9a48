"""The Croissant description of a corpus, as mlcroissant reads it."""

from pathlib import Path
from typing import Any

import mlcroissant
import pytest

from meditron.corpus.croissant import CROISSANT_FILE, write_croissant


def counts(train: int, heldout: int) -> dict[str, int]:
    return {"train": train, "heldout": heldout}


# mlcroissant warns of recommended properties, such as a citation, which a user's corpus need not have.
@pytest.mark.filterwarnings("ignore")
def test_the_description_is_valid_and_names_every_split(tmp_path: Path) -> None:
    sources: dict[str, Any] = {"pubmed": {"licence": "NLM terms and conditions"}, "wiki": {}}
    metrics: dict[str, Any] = {"documents": counts(5, 2), "newest_date": "2023-08", "licences": {}}
    metrics["sources"] = {"pubmed": counts(3, 2), "wiki": counts(2, 0)}
    write_croissant(sources, metrics, tmp_path)
    dataset = mlcroissant.Dataset(str(tmp_path / CROISSANT_FILE))
    assert not dataset.metadata.ctx.issues.errors
    assert [records.name for records in dataset.metadata.record_sets] == [
        "train-pubmed",
        "heldout-pubmed",
        "train-wiki",
    ]
    assert "never be used for diagnosis" in dataset.metadata.description


@pytest.mark.filterwarnings("ignore")
def test_the_licences_of_sources_and_documents_are_listed_once(tmp_path: Path) -> None:
    sources: dict[str, Any] = {"a": {"licence": "NLM terms"}, "b": {"licence": "CC BY 4.0"}, "c": {}}
    metrics: dict[str, Any] = {"documents": counts(3, 0), "sources": dict.fromkeys(sources, counts(1, 0))}
    stated = ("not stated", "CC-BY-4.0", "CC-BY-NC-3.0")
    for licences, listed in (
        (stated, ["NLM terms", "CC-BY-4.0", "CC-BY-NC-3.0"]),
        ((), ["NLM terms", "CC-BY-4.0"]),
    ):
        metrics["licences"] = {name: {"documents": 1, "characters": 9} for name in licences}
        write_croissant(sources, metrics, tmp_path)
        assert mlcroissant.Dataset(str(tmp_path / CROISSANT_FILE)).metadata.license == listed
    write_croissant({"c": {}}, metrics | {"licences": {"not stated": {}}}, tmp_path)
    assert mlcroissant.Dataset(str(tmp_path / CROISSANT_FILE)).metadata.license == ["not stated"]
