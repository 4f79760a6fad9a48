"""Sections of a card: evaluation, files, energy estimate, provenance."""

from collections.abc import Mapping
from typing import Any

from meditron.core.redaction import without_digest
from meditron.core.units import format_bytes
from meditron.release.card.facts import CardFacts
from meditron.release.card.markdown import CardWriter
from meditron.report import evaluation_tables as tables
from meditron.report import methods, number_format, rubrics
from meditron.report.contamination import contamination_table
from meditron.report.quantization import QuantizationCost, costs_from_evaluation, recommended_type
from meditron.report.verdicts import describe_comparison
from meditron.store.results import Fidelity

__all__ = ["add_energy", "add_evaluation", "add_files", "add_provenance"]

_ASSUMED = {
    "watts_per_core": "W per processor core",
    "watts_per_gb": "W per gigabyte of memory",
    "watts_per_gpu": "W per GPU",
    "pue": "power usage effectiveness",
    "grid": "kg CO₂e per kWh",
}
_DIGITS = 16  # of a digest: unique enough, and short enough for a table


def add_evaluation(card: CardWriter, facts: CardFacts) -> None:
    """Add the scores of all evaluated models, with intervals, baselines and differences."""
    card.section("Evaluation")
    result = facts.evaluation
    if result is None:
        card.text("The model was not evaluated.")
        return
    references = {
        name: {key: record.reference for key, record in stage.inputs.items()}
        for name, stage in facts.chain.stages.items()
    }
    _add_table(card, tables.overview_table(result, facts.domains))
    _add_table(card, contamination_table(result))
    for rubric_tables in rubrics.rubric_tables_by_set(result).values():
        _add_table(card, rubric_tables[0])
    _add_table(card, rubrics.rubric_difference_table(result.rubric_differences))
    _add_table(card, tables.stage_change_table(result, tables.parent_models(result, references)))
    _add_table(card, tables.difference_table(result.differences))
    of_model = [comparison for comparison in result.differences if comparison.b == facts.model_stage]
    card.text("\n\n".join(describe_comparison(comparison, result, facts.domains) for comparison in of_model))
    _add_table(card, tables.held_out_table(result, facts.domains))
    _add_table(card, tables.rule_table(result))
    if result.tasks:
        card.text(methods.task_setup_sentences(result))
    if result.rubrics:
        card.text(f"{rubrics.METHOD} {rubrics.JUDGES}")
    card.text(methods.truncation_sentence(result) or "No prompt and no document was truncated.")
    card.text(f"{methods.PERPLEXITY} {methods.ACCURACY} {methods.BASELINES}")
    card.text(f"{methods.DIFFERENCE} {methods.VERDICT} {methods.evaluation_settings_sentence(result)}")


def add_files(card: CardWriter, facts: CardFacts) -> None:
    """Add the quantized files, and their fidelity to the model."""
    if not facts.quantized_files:
        return
    card.section("Quantized files")
    fidelity = _fidelity_by_type(facts)
    costs = _measured_costs(facts)
    measured = [file for file in facts.quantized_files if file["type"] in costs]
    best = recommended_type(measured, costs)
    rows = [
        (
            file["path"],
            f"{file['type']}{' (recommended)' if file['type'] == best else ''}",
            format_bytes(file["bytes"]),
            format_bytes(file["ram"]) if "ram" in file else "not recorded",
            number_format.decimal(file["bpw"]),
            *_fidelity_cells(fidelity.get(file["type"])),
            _fallback_text(facts, file),
        )
        for file in facts.quantized_files
    ]
    headers = (
        *("file", "type", "size", "RAM with its context", "bits per weight"),
        *("mean KL divergence, nats", "same top token", "matrices of another type"),
    )
    card.table(headers, rows, "GGUF files")
    if best:
        card.text(
            f"{best} is recommended: the smallest of the measured files whose perplexity rises by at most a "
            "twentieth, else the most accurate one."
        )
    if facts.evaluation is not None:
        _add_table(card, tables.fidelity_table(facts.evaluation))


def _fidelity_by_type(facts: CardFacts) -> dict[str, Fidelity]:
    """Return the first fidelity record of each quantized file's type."""
    stage = facts.quantize_manifest.name if facts.quantize_manifest else ""
    records: dict[str, Fidelity] = {}
    for record in facts.evaluation.fidelity if facts.evaluation else ():
        name, _, kind = record.model.partition(":")
        if name == stage:
            records.setdefault(kind, record)
    return records


def _fidelity_cells(record: Fidelity | None) -> tuple[str, str]:
    if record is None:
        return "not measured", "not measured"
    return number_format.decimal(record.kl_mean), number_format.percent(record.top_agreement)


def _measured_costs(facts: CardFacts) -> dict[str, QuantizationCost]:
    if facts.evaluation is None or facts.quantize_manifest is None:
        return {}
    return costs_from_evaluation(facts.evaluation, facts.quantize_manifest.name, facts.model_stage)


def _fallback_text(facts: CardFacts, file: Mapping[str, Any]) -> str:
    counts = facts.fallback_counts.get(file["path"], {})
    return ", ".join(f"{number_format.count(number)} × {kind}" for kind, number in counts.items()) or "none"


def add_energy(card: CardWriter, facts: CardFacts) -> None:
    """Add the energy estimate by stage, with all assumptions."""
    card.section("Estimated energy")
    card.text(
        "A calculation, not a measurement: seconds × assumed watts × power usage effectiveness × carbon "
        "intensity, as if every core and GPU of the machine were busy all the time. Interrupted attempts and "
        "the training of the base are not included."
    )
    spent = facts.energy_estimate
    rows = [
        (name, *(number_format.decimal(stage[key]) for key in ("seconds", "watts", "kwh", "kgco2e")))
        for name, stage in spent["stages"].items()
    ]
    sums = (number_format.decimal(spent[key]) for key in ("kwh", "kgco2e"))
    rows.append(("all", number_format.decimal(spent["seconds"]), "", *sums))
    card.table(("stage", "seconds", "W", "kWh", "kg CO₂e"), rows, "Estimated energy by stage")
    assumptions = [
        (label, number_format.decimal(assumption.value), assumption.source)
        for key, label in _ASSUMED.items()
        for assumption in [getattr(facts.config.energy, key)]
    ]
    card.table(("assumption", "value", "source"), assumptions, "Assumptions")


def add_provenance(card: CardWriter, facts: CardFacts) -> None:
    """Add the digests of all stages, their commits, the library versions, and the external inputs."""
    card.section("Provenance")
    card.text(
        "A digest covers a stage's config, its inputs and every content file; the stages' manifests have the "
        "full digests."
    )
    rows = [
        (
            name,
            stage.digest[:_DIGITS],
            stage.fingerprint[:_DIGITS],
            stage.ended.date().isoformat(),
            f"{stage.git.commit or 'not from a checkout'}{', with changes' if stage.git.dirty else ''}",
        )
        for name, stage in facts.chain.stages.items()
    ]
    card.table(("stage", "digest", "fingerprint", "built", "commit"), rows, "Stages")
    external = [
        (key, without_digest(record.reference), record.digest[:_DIGITS])
        for key, record in facts.chain.external_inputs().items()
    ]
    if external:
        card.table(("input", "from", "digest"), external, "External inputs")
    versions = {k: v for stage in facts.chain.stages.values() for k, v in stage.libraries.items()}
    card.key_values({"Libraries": ", ".join(f"{name} {version}" for name, version in versions.items())})


def _add_table(card: CardWriter, table: tables.ResultTable) -> None:
    if table.rows:
        card.table(table.headers, table.rows, table.caption)
