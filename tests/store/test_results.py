import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from meditron.core.errors import InputError, SourceError
from meditron.core.statistics import Interval
from meditron.store.results import (
    FILE_NAME,
    Comparison,
    EvaluationResult,
    Perplexity,
    read_results,
    write_results,
)

PERPLEXITY = Perplexity(
    model="base",
    source="pubmed",
    documents=60,
    tokens=19_507,
    nll=2.949,
    perplexity=19.09,
    interval=(18.2, 20.1),
    bits_per_byte=0.8,
    truncated=3,
    data_sha256="0" * 64,
)
COMPARISON = Comparison(
    a="base",
    b="pretrain",
    what="nll per token, pubmed",
    source="pubmed",
    n=60,
    difference=-0.19,
    interval=(-0.202, -0.178),
    p=0.0002,
    detectable=0.02,
)
RESULT = EvaluationResult(
    perplexity={"base": {"pubmed": PERPLEXITY}},
    differences=[COMPARISON],
    rows="perplexity.jsonl",
    dtype="bfloat16",
    seed=1,
    resamples=10_000,
)


def test_results_are_read_as_they_were_written(tmp_path: Path):
    write_results(tmp_path, RESULT)
    assert read_results(tmp_path) == RESULT
    written = json.loads((tmp_path / FILE_NAME).read_text())
    assert written["differences"][0]["interval"] == [-0.202, -0.178]
    assert written["perplexity"]["base"]["pubmed"]["tokens"] == 19_507


def test_an_interval_of_the_statistics_is_one():
    made = Comparison.model_validate(COMPARISON.model_dump() | {"interval": Interval(0.1, 0.2)})
    assert made.interval == (0.1, 0.2)


@pytest.mark.parametrize("change", [{"p": 1.5}, {"n": -1}, {"interval": [1]}, {"unknown": 1}])
def test_impossible_figures_are_refused(change: dict[str, Any]):
    with pytest.raises(ValidationError):
        Comparison.model_validate(COMPARISON.model_dump() | change)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"rows": None}, r"\(rows\)"),
        ({"perplexity": {"base": {"pubmed": {}}}}, r"\(perplexity\.base\.pubmed\.model\)"),
        ({"differences": [{"a": "base"}]}, r"\(differences\.0\.b\)"),
    ],
)
def test_a_damaged_file_is_an_input_error_with_the_field(tmp_path: Path, change: dict[str, Any], place: str):
    write_results(tmp_path, RESULT)
    path = tmp_path / FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=place):
        read_results(tmp_path)


def test_no_results_are_a_source_error(tmp_path: Path):
    with pytest.raises(SourceError, match=r"results\.json: no such file"):
        read_results(tmp_path)
