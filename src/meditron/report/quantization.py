"""The cost of each quantization type in quality: measured if an evaluation exists, else as published."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from meditron.core.console import warn
from meditron.core.errors import MeditronError
from meditron.core.statistics import MAX_EXPONENT
from meditron.core.units import format_bytes, format_count
from meditron.report import number_format
from meditron.report.evaluation_tables import ResultTable
from meditron.store import results
from meditron.store.manifest import Manifest, read_manifest
from meditron.store.results import EvaluationResult

__all__ = [
    "QuantizationCost",
    "costs_from_evaluation",
    "files_table",
    "measured_costs",
    "published_cost",
    "recommendation",
    "recommended_type",
]

# llama.cpp, tools/quantize/README.md: perplexity of Llama-3-8B on WikiText-2 above that of BF16, without an
# importance matrix.
_PUBLISHED = {
    "Q2_K": 3.5199,
    "Q3_K_S": 1.6321,
    "Q3_K_M": 0.6569,
    "Q3_K_L": 0.5562,
    "Q4_0": 0.4685,
    "Q4_K_S": 0.2689,
    "Q4_K_M": 0.1754,
    "Q5_0": 0.1316,
    "Q5_K_S": 0.1049,
    "Q5_K_M": 0.0569,
    "Q6_K": 0.0217,
    "Q8_0": 0.0026,
}
_PUBLISHED_BF16 = 6.2316
_ACCEPTABLE = 0.05
"""Rise of the perplexity that a recommended file has at most."""


@dataclass(frozen=True, slots=True)
class QuantizationCost:
    """The rise in perplexity by quantization, as a fraction of the original perplexity."""

    perplexity_change: float
    is_measured: bool
    """True if this model was measured; False for the published value of another model."""
    reference: str
    """The text that it was measured on, or the model and the source of the published value."""

    def __str__(self) -> str:
        source = "measured on" if self.is_measured else "published for"
        return f"{self.percent_text} {source} {self.reference}"

    @property
    def percent_text(self) -> str:
        """The rise in percent: `+2.8 %`. A change that rounds to zero is printed without a sign."""
        if abs(self.perplexity_change) < 0.0005:
            return "0.0 %" if self.is_measured else "< 0.1 %"
        sign = "+" if self.perplexity_change > 0 else ""
        return f"{sign}{number_format.percent(self.perplexity_change)}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields for `--json`."""
        return {
            "perplexity_change": self.perplexity_change,
            "measured": self.is_measured,
            "on": self.reference,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read the fields that `to_json` wrote."""
        return cls(fields["perplexity_change"], is_measured=fields["measured"], reference=fields["on"])


def published_cost(kind: str) -> QuantizationCost | None:
    """Return the cost that llama.cpp published for a type; None for float types, whose cost is negligible."""
    if kind not in _PUBLISHED:
        return None
    return QuantizationCost(_PUBLISHED[kind] / _PUBLISHED_BF16, is_measured=False, reference="Llama-3-8B")


def costs_from_evaluation(result: EvaluationResult, stage: str, parent: str) -> dict[str, QuantizationCost]:
    """Return the measured cost of each type of a quantize stage.

    A paired comparison with the model that the files were made from takes precedence over a fidelity record,
    which usually has fewer documents. If there are several sources, the first one is used.

    Args:
        result: An evaluation.
        stage: Name of the quantize stage.
        parent: Name of the model that its files were made from.
    """
    costs: dict[str, QuantizationCost] = {}
    for comparison in result.differences:
        name, _, kind = comparison.b.partition(":")
        if name == stage and kind and comparison.a == parent and comparison.source:
            on = f"{format_count(comparison.n, 'documents')} of {comparison.source}"
            # exp of the mean difference in log-loss is the ratio of perplexities, with each document counted
            # once.
            change = math.expm1(min(comparison.difference, MAX_EXPONENT))
            costs.setdefault(kind, QuantizationCost(change, True, on))
    for pair in result.fidelity:
        name, _, kind = pair.model.partition(":")
        if name == stage and kind:
            on = f"{format_count(pair.documents, 'documents')} of {pair.source}"
            costs.setdefault(kind, QuantizationCost(pair.perplexity_ratio - 1, True, on))
    return costs


def measured_costs(model: Path) -> dict[str, QuantizationCost]:
    """Return the measured cost of each type for the model of a run's stage; empty if nothing was measured.

    An evaluation is used only if its quantized files were made from exactly this model, according to the
    digests in the run's manifests.
    """
    if not model.is_dir():
        return {}
    try:
        return _costs_in_run(model)
    except MeditronError as error:
        # Costs are only information: quantization that has already written its files must not fail because of
        # an old or damaged evaluation.
        warn(f"the run's evaluation was not used for the cost of quantization: {error.message}")
        return {}


def _costs_in_run(model: Path) -> dict[str, QuantizationCost]:
    stage = read_manifest(model)
    if stage is None:
        return {}
    siblings = {place: read_manifest(place) for place in sorted(model.parent.iterdir()) if place.is_dir()}
    manifests = {place: manifest for place, manifest in siblings.items() if manifest is not None}
    quantized = [m for m in manifests.values() if m.kind == "quantize" and _has_input(m, stage)]
    costs: dict[str, QuantizationCost] = {}
    for place, evaluation in manifests.items():
        if evaluation.kind == "evaluate" and (place / results.FILE_NAME).is_file():
            for manifest in quantized:
                if manifest.digest in {record.digest for record in evaluation.inputs.values()}:
                    measured = costs_from_evaluation(results.read_results(place), manifest.name, stage.name)
                    costs = measured | costs
    return costs


def recommended_type(files: Sequence[Mapping[str, Any]], costs: Mapping[str, QuantizationCost]) -> str | None:
    """Return the type of the smallest file whose perplexity rises by at most 5 %, else of the best file.

    The result is None if no file has a known cost.
    """
    known = [
        (file, cost) for file in files if (cost := costs.get(file["type"]) or published_cost(file["type"]))
    ]
    acceptable = [file for file, cost in known if cost.perplexity_change <= _ACCEPTABLE]
    if acceptable:
        return str(min(acceptable, key=lambda file: file["bytes"])["type"])
    return str(min(known, key=lambda pair: pair[1].perplexity_change)[0]["type"]) if known else None


def recommendation(files: Sequence[Mapping[str, Any]], costs: Mapping[str, QuantizationCost]) -> str:
    """Return a sentence that recommends a type, with the reason; empty without a quantized file."""
    kind = recommended_type(files, costs)
    cost = costs.get(kind or "") or published_cost(kind or "")
    if kind is None or cost is None:
        return ""
    limit = number_format.percent(_ACCEPTABLE)
    if cost.perplexity_change <= _ACCEPTABLE:
        reason = f"the smallest file with a rise in perplexity of at most {limit}"
    else:
        reason = f"the most accurate file; the perplexity of all rises by more than {limit}"
    advice = f"recommended: {kind}, {reason} ({cost})"
    if cost.is_measured:
        return advice
    return f"{advice}. Small models lose more: measure with `meditron evaluate FILE --against MODEL`"


def files_table(
    files: Sequence[Mapping[str, Any]], costs: Mapping[str, QuantizationCost], title: str
) -> ResultTable:
    """Return a row per file: type, size, memory, and the rise in perplexity.

    Measured and published rises have a column each; without a measurement there is only the published one.
    """
    best = recommended_type(files, costs)
    measured = {kind: f"{c.percent_text} on {c.reference}" for kind, c in costs.items() if c.is_measured}
    rows = [
        (
            *((file["path"],) if "path" in file else ()),
            f"{file['type']}{' (recommended)' if file['type'] == best else ''}",
            format_bytes(file["bytes"]),
            number_format.decimal(float(file["bpw"])),
            *((format_bytes(file["ram"]),) if "ram" in file else ()),
            *((measured.get(file["type"], "not measured"),) if measured else ()),
            cost.percent_text if (cost := published_cost(file["type"])) else "–",
        )
        for file in files
    ]
    memory = (f"RAM, {number_format.count(files[0]['context'])} tokens",) if "ram" in files[0] else ()
    names = ("file",) if "path" in files[0] else ()
    headers = (*names, "type", "size", "bits per weight", *memory)
    rises = (*(("measured rise in perplexity",) if measured else ()), "published rise, Llama-3-8B")
    return ResultTable(title, (*headers, *rises), rows)


def _has_input(manifest: Manifest, parent: Manifest) -> bool:
    return any(record.digest == parent.digest for record in manifest.inputs.values())
