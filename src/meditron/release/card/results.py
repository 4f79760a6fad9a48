"""Sections of a card: evaluation, files, energy estimate, provenance."""

from meditron.core.redaction import without_digest
from meditron.release.card.facts import CardFacts
from meditron.release.card.markdown import CardWriter
from meditron.report import evaluation_tables as tables
from meditron.report import methods, number_format, rubrics
from meditron.report.contamination import contamination_table
from meditron.report.quantization import (
    FileLoss,
    losses_from_evaluations,
    measured_file_costs,
    recommendation,
)
from meditron.report.quantization_tables import file_tables
from meditron.report.verdicts import describe_comparison

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
    losses: dict[str, FileLoss] = {}
    if facts.evaluation is not None and facts.quantize_manifest is not None:
        stage = facts.quantize_manifest.name
        losses = losses_from_evaluations([facts.evaluation], stage, facts.model_stage, facts.domains)
    for table in file_tables(facts.quantized_files, losses, "GGUF files"):
        _add_table(card, table)
    costs = measured_file_costs(losses)
    measured = [file for file in facts.quantized_files if file["type"] in costs]
    if advice := recommendation(measured, costs):
        card.text(f"{advice[0].upper()}{advice[1:]}.")


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
