"""What a recipe may say of a corpus."""

import pytest
from pydantic import ValidationError

from meditron.corpus.config import CorpusConfig, SourceConfig
from meditron.sources.registry import SOURCES


def test_an_unknown_format_is_refused_in_the_config() -> None:
    with pytest.raises(ValidationError, match="no source format 'medlin'; formats: medline"):
        SourceConfig.model_validate({"from": "a.xml", "format": "medlin"})


@pytest.mark.parametrize("name", SOURCES)
def test_every_format_is_accepted(name: str) -> None:
    assert SourceConfig.model_validate({"from": "a", "format": name}).format == name


def test_sizes_are_expected_of_sources_only() -> None:
    table = {"sources": {"papers": {"from": "x"}}, "expected_documents": {"paper": 7}}
    with pytest.raises(ValidationError, match="expected_documents: no source 'paper'; the corpus has papers"):
        CorpusConfig.model_validate(table)
