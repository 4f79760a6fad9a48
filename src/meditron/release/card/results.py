"""What a card tells of what was found: evaluation, files, the estimate of energy, provenance."""

from collections.abc import Mapping
from typing import Any

from meditron.core.units import size
from meditron.release.card.facts import CardFacts, origin
from meditron.release.card.markdown import Sheet
from meditron.report import evaluation_tables as tables
from meditron.report import number_format

__all__ = ["energy", "evaluation", "files", "provenance"]

_ASSUMED = {
    "watts_per_core": "W a processor core",
    "watts_per_gb": "W a gigabyte of memory",
    "watts_per_gpu": "W a GPU",
    "pue": "power usage effectiveness",
    "grid": "kg CO₂e a kWh",
}
_DIGITS = 16  # of a digest: enough to tell it, and short enough for a table


def evaluation(sheet: Sheet, facts: CardFacts) -> None:
    """Every model that was evaluated beside the released one, with intervals, baselines and differences."""
    sheet.section("Evaluation")
    result = facts.result
    if result is None:
        sheet.text("It was not evaluated.")
        return
    references = {
        name: {key: record.reference for key, record in stage.inputs.items()}
        for name, stage in facts.chain.stages.items()
    }
    _put(sheet, tables.overview(result, facts.domains))
    _put(sheet, tables.steps(result, tables.origins(result, references)))
    _put(sheet, tables.differences(result.differences))
    own = [one for one in result.differences if one.b == facts.model]
    sheet.text("\n\n".join(tables.sentence(one, result, facts.domains) for one in own))
    _put(sheet, tables.measures(result, facts.domains))
    _put(sheet, tables.rules(result))
    if result.tasks:
        sheet.text(tables.asked(result))
    sheet.text(tables.truncated(result) or "No prompt and no document was truncated.")
    sheet.text(
        "Perplexity is exp of the mean log-loss a token on held-out documents; its interval is a "
        f"bootstrap-t over documents ({number_format.count(result.resamples)} resamples), that of an "
        "accuracy is Wilson's; below 6 there is none. A model is called better or worse if p, adjusted for "
        "all comparisons (Holm), is below 0.05 and the interval excludes zero. A paired difference is taken "
        "on the same documents or questions; in log-loss it is the "
        "mean over documents, each counting once, while in a perplexity each token does. Majority always "
        "gives the commonest answer; naive Bayes counts the words of the training questions. Models were "
        f"scored in {result.dtype} by {' and '.join(dict.fromkeys(result.engines.values())) or 'torch'}."
    )


def files(sheet: Sheet, facts: CardFacts) -> None:
    """The quantized files, and how far they lie from the model they were made from."""
    if not facts.files:
        return
    sheet.section("Quantized files")
    rows = [
        (
            file["path"],
            file["type"],
            size(file["bytes"]),
            number_format.decimal(file["bpw"]),
            _fallbacks(facts, file),
        )
        for file in facts.files
    ]
    headers = ("file", "type", "size", "bits per weight", "matrices of another type")
    sheet.table(headers, rows, "GGUF files, as they were read back")
    if facts.result is not None:
        _put(sheet, tables.fidelity(facts.result))


def _fallbacks(facts: CardFacts, file: Mapping[str, Any]) -> str:
    counts = facts.fallbacks.get(file["path"], {})
    return ", ".join(f"{number_format.count(number)} × {kind}" for kind, number in counts.items()) or "none"


def energy(sheet: Sheet, facts: CardFacts) -> None:
    """The estimate, stage by stage, and everything it assumes."""
    sheet.section("Energy: an estimate")
    sheet.text(
        "A calculation, not a measurement: seconds × assumed watts × power usage effectiveness × carbon "
        "intensity, as if every core and GPU of the machine had been busy throughout. Attempts that were "
        "broken off, and the making of the base, are not in it."
    )
    spent = facts.energy
    rows = [
        (name, *(number_format.decimal(one[key]) for key in ("seconds", "watts", "kwh", "kgco2e")))
        for name, one in spent["stages"].items()
    ]
    sums = (number_format.decimal(spent[key]) for key in ("kwh", "kgco2e"))
    rows.append(("all", number_format.decimal(spent["seconds"]), "", *sums))
    sheet.table(("stage", "seconds", "W", "kWh", "kg CO₂e"), rows, "Estimated energy by stage")
    assumed = [(what, getattr(facts.config.energy, key)) for key, what in _ASSUMED.items()]
    said = [(what, number_format.decimal(one.value), one.source) for what, one in assumed]
    sheet.table(("assumed", "value", "source"), said, "What it assumes")


def provenance(sheet: Sheet, facts: CardFacts) -> None:
    """The chain of digests, the code, the versions, and what came from outside."""
    sheet.section("Provenance")
    sheet.text(
        "Each digest covers what a stage was asked to be and every content file it left; the stages' "
        "manifests have them whole."
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
    sheet.table(("stage", "digest", "fingerprint", "made", "commit"), rows, "Stages")
    outside = [
        (key, origin(one.reference), one.digest[:_DIGITS]) for key, one in facts.chain.outside().items()
    ]
    if outside:
        sheet.table(("input", "from", "digest"), outside, "What came from outside")
    versions = {k: v for stage in facts.chain.stages.values() for k, v in stage.libraries.items()}
    sheet.key_values({"Libraries": ", ".join(f"{name} {version}" for name, version in versions.items())})


def _put(sheet: Sheet, table: tables.Table) -> None:
    if table.rows:
        sheet.table(table.headers, table.rows, table.caption)
