"""The typed records that evaluation writes, and that report and card read."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from meditron.ground.errors import InputError, SourceError
from meditron.store.files import read_json, write_json

__all__ = ["FILE_NAME", "Comparison", "EvaluationResult", "Perplexity", "read_results", "write_results"]

FILE_NAME = "results.json"

Interval = Annotated[tuple[float, float], "low and high end, 95 %"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Perplexity(_Record):
    """How well one model predicts the held-out documents of one source."""

    model: str
    source: str
    documents: int = Field(ge=0)
    """Held-out documents scored."""
    tokens: int = Field(ge=0)
    """Tokens predicted."""
    nll: float
    """Mean negative log-likelihood per token, in nats."""
    perplexity: float
    """exp(nll)."""
    interval: Interval
    """95 % bootstrap interval of the perplexity; documents are the unit."""
    bits_per_byte: float
    """The same loss by the text's bytes: compares between tokenizers, as perplexity does not."""
    cut: int = Field(ge=0)
    """Documents of which only the first tokens were scored."""
    data_sha256: str
    """SHA-256 over the ids and text hashes of the documents scored."""


class Comparison(_Record):
    """The paired difference of one measure between two models on the same documents or items."""

    a: str
    b: str
    what: str
    """The measure and the source or task: `nll per token, pubmed`."""
    source: str | None = None
    """The source, where the measure is of one."""
    n: int = Field(ge=0)
    """Documents or items, the unit of pairing."""
    difference: float
    """b minus a."""
    interval: Interval
    p: float = Field(ge=0, le=1)
    """Two-sided p-value of no difference."""
    detectable: float
    """The smallest true difference that this n would detect with 80 % power."""


class EvaluationResult(_Record):
    """All that one evaluation found."""

    perplexity: dict[str, dict[str, Perplexity]] = {}
    """Model → source → perplexity."""
    differences: list[Comparison] = []
    rows: str
    """The file of per-document rows, relative to the folder."""
    dtype: str
    """Number format of weights and activations; the loss itself is float32."""
    seed: int
    """Seed of the bootstrap."""
    resamples: int
    """Bootstrap resamples."""


def write_results(folder: Path, result: EvaluationResult) -> None:
    """Write `results.json` atomically."""
    write_json(folder / FILE_NAME, result.model_dump(mode="json"))


def read_results(folder: Path) -> EvaluationResult:
    """Read `results.json`; SourceError where there is none, InputError where it is damaged."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise SourceError(f"{path}: no such file", hint="is it the folder of a finished evaluation?")
    try:
        return EvaluationResult.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(path, first["msg"], place=".".join(map(str, first["loc"])) or "top level") from error
