"""The cost of each quantization type in quality: measured if an evaluation exists, else as published.

The recommended file is the smallest whose loss is acceptable: on every medical text (on every text if none
is medical) the perplexity rises by at most 5 %, also at the upper end of its 95 % interval, and on no task is
the accuracy significantly lower. A file that was not measured has the published rise of its type, and is only
recommended if no measured file is acceptable. If no file is acceptable, it is the one whose rise is lowest at
the upper end, or none if the rise of one of the quantized files is not known. A single file that is not
acceptable is recommended only if it was measured.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from meditron.core.console import warn
from meditron.core.errors import MeditronError
from meditron.core.statistics import MAX_EXPONENT
from meditron.core.units import format_count
from meditron.report import number_format
from meditron.report.verdicts import source_domains, verdict
from meditron.store import results
from meditron.store.gguf_types import FLOAT_TYPES
from meditron.store.manifest import Manifest, read_manifest
from meditron.store.results import Comparison, EvaluationResult, Fidelity

__all__ = [
    "FileLoss",
    "QuantizationCost",
    "TextLoss",
    "losses_from_evaluations",
    "measured_costs",
    "measured_file_costs",
    "published_cost",
    "recommendation",
    "recommended_file",
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
_MEDICAL = "medical"


@dataclass(frozen=True, slots=True)
class QuantizationCost:
    """The rise in perplexity by quantization, as a fraction of the original perplexity."""

    perplexity_change: float
    is_measured: bool
    """True if this model was measured; False for the published value of another model."""
    reference: str
    """The text that it was measured on, or the model and the source of the published value."""
    interval: tuple[float, float] | None = None
    """95 % interval of the rise; None for a published value, and for fewer than 6 documents."""
    worse_on: tuple[str, ...] = ()
    """Tasks on which the accuracy is significantly lower."""

    def __str__(self) -> str:
        source = "measured on" if self.is_measured else "published for"
        ends = f" {number_format.interval(self.interval, number_format.percent)}" if self.interval else ""
        worse = f", less accurate on {', '.join(self.worse_on)}" if self.worse_on else ""
        return f"{self.percent_text}{ends} {source} {self.reference}{worse}"

    @property
    def upper_end(self) -> float:
        """The upper end of the interval; the rise itself without an interval."""
        return self.interval[1] if self.interval else self.perplexity_change

    @property
    def is_acceptable(self) -> bool:
        """True if the rise is at most 5 % at its upper end and no accuracy is significantly lower."""
        return self.upper_end <= _ACCEPTABLE and not self.worse_on

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
            "interval": self.interval,
            "worse_on": list(self.worse_on),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read the fields that `to_json` wrote."""
        ends = fields["interval"]
        return cls(
            fields["perplexity_change"],
            is_measured=fields["measured"],
            reference=fields["on"],
            interval=ends and (ends[0], ends[1]),
            worse_on=tuple(fields["worse_on"]),
        )


def published_cost(kind: str) -> QuantizationCost | None:
    """Return the cost that llama.cpp published for a type; None for float types, whose cost is negligible."""
    if kind not in _PUBLISHED:
        return None
    return QuantizationCost(_PUBLISHED[kind] / _PUBLISHED_BF16, is_measured=False, reference="Llama-3-8B")


@dataclass(frozen=True, slots=True)
class TextLoss:
    """The loss of a quantized file on the text of one source."""

    source: str
    domain: str
    """Domain of the source; empty if it is not known."""
    documents: int
    ratio: float
    """Perplexity divided by that of the model the file was made from."""
    interval: tuple[float, float] | None
    fidelity: Fidelity | None = None

    @property
    def cost(self) -> QuantizationCost:
        """The loss as a rise in perplexity."""
        on = f"{format_count(self.documents, 'documents')} of {self.source}"
        ends = self.interval and (self.interval[0] - 1, self.interval[1] - 1)
        return QuantizationCost(self.ratio - 1, True, on, ends)


@dataclass(frozen=True, slots=True)
class FileLoss:
    """The measured loss of one quantized file."""

    texts: tuple[TextLoss, ...]
    tasks: Mapping[str, Comparison]
    """Task → paired difference in accuracy from the model that the file was made from."""

    @property
    def cost(self) -> QuantizationCost | None:
        """The largest rise on a medical text, by its upper end; None if only tasks were measured."""
        texts = [text for text in self.texts if text.domain == _MEDICAL] or self.texts
        if not texts:
            return None
        largest = max((text.cost for text in texts), key=lambda cost: cost.upper_end)
        return replace(largest, worse_on=self.worse_on)

    @property
    def worse_on(self) -> tuple[str, ...]:
        """Tasks on which the accuracy is significantly lower."""
        return tuple(task for task, comparison in self.tasks.items() if verdict(comparison) == "worse")


def losses_from_evaluations(
    evaluations: Iterable[EvaluationResult], stage: str, parent: str, domains: Mapping[str, str]
) -> dict[str, FileLoss]:
    """Return the measured loss of each type of a quantize stage.

    A source can have a paired comparison with the model that the files were made from and a fidelity record:
    the perplexities of the one with more documents are used.

    Args:
        evaluations: Evaluations of the files; of equal measurements the last one counts.
        stage: Name of the quantize stage, or of the folder of the files.
        parent: Name of the model that its files were made from. Its F16, BF16 or F32 file stands for it.
        domains: Source → domain.
    """
    references = {parent, *(f"{stage}:{kind}" for kind in FLOAT_TYPES)}
    texts: dict[str, dict[str, TextLoss]] = {}
    tasks: dict[str, dict[str, Comparison]] = {}
    for result in evaluations:
        for pair in result.fidelity:
            name, _, kind = pair.model.rpartition(":")
            if name != stage or pair.against not in references:
                continue
            known = texts.setdefault(kind, {}).get(pair.source)
            if known is None or known.documents <= pair.documents:
                texts[kind][pair.source] = _text_of_fidelity(pair, domains)
        for comparison in result.differences:
            name, _, kind = comparison.b.rpartition(":")
            if name != stage or comparison.a not in references:
                continue
            if comparison.task:
                tasks.setdefault(kind, {})[comparison.task] = comparison
            elif comparison.source:
                known = texts.setdefault(kind, {}).get(comparison.source)
                if known is None or known.documents < comparison.n:
                    text = _text_of_comparison(comparison, comparison.source, domains)
                    texts[kind][comparison.source] = replace(text, fidelity=known.fidelity if known else None)
    return {
        kind: FileLoss(tuple(texts.get(kind, {}).values()), tasks.get(kind, {}))
        for kind in dict.fromkeys([*texts, *tasks])
    }


def _text_of_fidelity(pair: Fidelity, domains: Mapping[str, str]) -> TextLoss:
    ends = pair.intervals.get("perplexity_ratio")
    domain = domains.get(pair.source, "")
    return TextLoss(pair.source, domain, pair.documents, pair.perplexity_ratio, ends, pair)


def _text_of_comparison(comparison: Comparison, source: str, domains: Mapping[str, str]) -> TextLoss:
    # exp of the mean difference in log-loss is the ratio of perplexities, with each document counted once.
    ratio, *ends = (
        math.exp(min(value, MAX_EXPONENT)) for value in (comparison.difference, *(comparison.interval or ()))
    )
    interval = (ends[0], ends[1]) if ends else None
    return TextLoss(source, domains.get(source, ""), comparison.n, ratio, interval)


def measured_file_costs(losses: Mapping[str, FileLoss]) -> dict[str, QuantizationCost]:
    """Return the cost of each type whose loss on text was measured."""
    return {kind: cost for kind, loss in losses.items() if (cost := loss.cost)}


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
    domains = {source: domain for m in manifests.values() for source, domain in source_domains(m)}
    costs: dict[str, QuantizationCost] = {}
    for manifest in quantized:
        evaluations = [
            results.read_results(place)
            for place, evaluation in manifests.items()
            if evaluation.kind == "evaluate"
            and (place / results.FILE_NAME).is_file()
            and _has_input(evaluation, manifest)
        ]
        losses = losses_from_evaluations(evaluations, manifest.name, stage.name, domains)
        # A file that was measured on tasks alone has the published rise of its type.
        published = {
            kind: replace(cost, worse_on=loss.worse_on)
            for kind, loss in losses.items()
            if loss.worse_on and (cost := published_cost(kind))
        }
        costs = published | measured_file_costs(losses) | costs
    return costs


def recommended_type(files: Sequence[Mapping[str, Any]], costs: Mapping[str, QuantizationCost]) -> str | None:
    """Return the type to take, by the rule at the top of this module; None if none can be named."""
    known = [
        (file, cost) for file in files if (cost := costs.get(file["type"]) or published_cost(file["type"]))
    ]
    acceptable = [(file, cost) for file, cost in known if cost.is_acceptable]
    if acceptable:
        smallest, _ = min(acceptable, key=lambda pair: (not pair[1].is_measured, pair[0]["bytes"]))
        return str(smallest["type"])
    if not known or len(known) < sum(file["type"] not in FLOAT_TYPES for file in files):
        return None
    best, cost = min(known, key=lambda pair: pair[1].upper_end)
    return str(best["type"]) if cost.is_measured or len(known) > 1 else None


def recommended_file(files: Sequence[Mapping[str, Any]], losses: Mapping[str, FileLoss]) -> str | None:
    """Return the type to take among the measured files; None if no loss on text was measured."""
    costs = measured_file_costs(losses)
    return recommended_type([file for file in files if file["type"] in costs], costs)


def recommendation(files: Sequence[Mapping[str, Any]], costs: Mapping[str, QuantizationCost]) -> str:
    """Return a sentence that recommends a type, with the reason; empty without a quantized file."""
    kind = recommended_type(files, costs)
    cost = costs.get(kind or "") or published_cost(kind or "")
    if kind is None or cost is None:
        return ""
    condition = f"perplexity rises by at most {number_format.percent(_ACCEPTABLE)}"
    if cost.interval:
        condition += ", also at the upper end of the 95 % interval,"
    if cost.is_measured:
        condition += " and whose accuracy is significantly lower on no measured task"
    if cost.is_acceptable:
        reason = f"the smallest {'measured file' if cost.is_measured else 'file'} whose {condition}"
    else:
        reason = f"the file with the smallest loss; there is none whose {condition}"
    advice = f"recommended: {kind}, {reason} ({cost})"
    if cost.is_measured:
        return advice
    return f"{advice}. Small models lose more: measure with `meditron evaluate FILE --against MODEL`"


def _has_input(manifest: Manifest, parent: Manifest) -> bool:
    return any(record.digest == parent.digest for record in manifest.inputs.values())
