"""What a recipe may say of a corpus."""

import pytest
from pydantic import ValidationError

from meditron.corpus.config import SourceConfig
from meditron.sources.registry import SOURCES


def test_a_format_without_a_reader_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ValidationError, match="no source format 'medlin'; formats: medline"):
        SourceConfig.model_validate({"from": "a.xml", "format": "medlin"})


@pytest.mark.parametrize("name", SOURCES)
def test_every_reader_may_be_named(name: str) -> None:
    assert SourceConfig.model_validate({"from": "a", "format": name}).format == name
