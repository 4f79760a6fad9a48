"""Expected and built sizes of sources."""

import pytest

from meditron.corpus.expectations import compare_sizes


def test_a_source_that_is_more_than_a_tenth_off_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = compare_sizes(
        {"papers": 100, "abstracts": 200, "replay": 10}, {"papers": 95, "abstracts": 50}, "documents"
    )
    assert sizes["papers"] == {"expected": 100, "built": 95, "ratio": 0.95}
    assert sizes["replay"]["built"] == 0
    err = capsys.readouterr().err
    assert "papers" not in err
    assert "source 'abstracts' has 50 documents, 25.0% of 200 expected" in err
    assert "source 'replay' has 0 documents" in err
