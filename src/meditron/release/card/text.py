"""The sections of a model card; every number in it comes from a manifest or a record."""

from collections.abc import Iterator, Mapping
from typing import Any

from meditron.core.disclaimer import DISCLAIMER
from meditron.core.redaction import without_digest
from meditron.core.units import format_bytes, format_duration
from meditron.release.card.facts import CardFacts, finetuning_data, finetuning_licences
from meditron.release.card.licence import LICENCE_FILE, licence_notices
from meditron.release.card.markdown import CardWriter
from meditron.release.card.programs import add_programs
from meditron.release.card.results import add_energy, add_evaluation, add_files, add_provenance
from meditron.release.card.usage import add_citation, add_prompts, add_run_commands
from meditron.report import methods, number_format
from meditron.report.training_page import loss_unit
from meditron.store.manifest import Manifest

__all__ = ["add_card"]

_WORDS = {"pretrain": "continued pretraining", "finetune": "finetuning"}
_COUNTS = {"tokens": "Tokens", "answer_tokens": "Answer tokens (in the loss)", "steps": "Steps"}
_INTENDED = (
    "Research on adapting language models to medical text: comparisons of data, methods and measures with "
    "the base model.",
    "Further training by people who evaluate the result.",
)
_OUT_OF_SCOPE = (
    "Diagnosis, treatment, triage or any other clinical decision, and advice to patients.",
    "Text that reaches people without a check by a qualified person.",
    "Deployment of any kind. It would require alignment with the use, tests of safety and bias for it, and "
    "the trials of a medical product.",
)
_LIMITATIONS = (
    "The model was trained to predict text, not to be correct, safe or up to date. It states false things as "
    "fluently as true ones.",
    "It has no professional limits, and it has the biases of its texts: in what is studied, in whom, and "
    "what is published.",
    "The evaluation below is complete: safety and bias were not evaluated, and no clinician was involved.",
    methods.INTERVALS,
)


def add_card(card: CardWriter, facts: CardFacts) -> None:
    """Write all sections of the card."""
    card.text(DISCLAIMER)
    _add_model_details(card, facts)
    _add_uses(card, facts)
    _add_training_data(card, facts)
    _add_training(card, facts)
    add_evaluation(card, facts)
    add_files(card, facts)
    add_run_commands(card, facts)
    add_programs(card, facts)
    add_prompts(card, facts)
    add_energy(card, facts)
    add_citation(card, facts)
    add_provenance(card, facts)


def _add_model_details(card: CardWriter, facts: CardFacts) -> None:
    config, base = facts.config, facts.base
    steps = ", then ".join(_WORDS.get(stage.kind, stage.kind) for stage in facts.lineage)
    card.section("Model details")
    card.key_values(
        {
            "Model": f"a causal language model, by {steps}",
            "Base": config.base_model or "no name on the hub is stated",
            "Origin of the base": without_digest(base.reference)
            if base
            else "none (randomly initialized weights)",
            "Licence of the base": config.base_license or "not stated",
            "Licence of these weights": config.license_name or config.released_license or "not stated",
            "Languages": ", ".join(facts.languages) or "not restricted",
            "Quantized files": ", ".join(file["type"] for file in facts.quantized_files) or "none",
        }
    )
    if facts.licence_text:
        card.text(f"The text of the licence is in the file {LICENCE_FILE} beside this card.")
    if notice := licence_notices(config.base_license) or licence_notices(config.released_license):
        card.text(notice)


def _add_uses(card: CardWriter, facts: CardFacts) -> None:
    for heading, general, configured in (
        ("Intended use", _INTENDED, facts.config.intended),
        ("Out-of-scope use", _OUT_OF_SCOPE, facts.config.out_of_scope),
        ("Limitations", _LIMITATIONS, facts.config.limitations),
    ):
        card.section(heading)
        card.text("\n\n".join([*general, *configured]))


def _add_training_data(card: CardWriter, facts: CardFacts) -> None:
    card.section("Training data")
    card.text(facts.training_data)
    _add_finetuning_rows(card, facts)
    sources = [
        (name, counts)
        for corpus in facts.corpora
        for name, counts in corpus.metrics.get("sources", {}).items()
    ]
    if not sources:
        card.text("The model was not trained on a corpus of this run.")
        return
    # A corpus manifest counts documents only; the tokens of a source are in the tokenize stage's manifest.
    tokens = {k: v for t in facts.dependencies("tokenize") for k, v in t.metrics.get("sources", {}).items()}
    rows = [
        (
            name,
            facts.domains.get(name, ""),
            *(_format_count(counts.get(key)) for key in ("read", "kept", "train", "heldout")),
            _format_count(tokens.get(name, {}).get("tokens")),
        )
        for name, counts in sources
    ]
    headers = ("source", "domain", "read", "kept", "train", "held out", "training tokens")
    card.table(headers, rows, "Documents and training tokens by source")
    _add_licences(card, facts)
    _add_dropped_documents(card, dict(sources))
    card.text(
        "Documents are held out by a hash of their content, before any other step, so no stage of this run "
        "was trained on held-out text. The corpus lists every dropped document with its reason."
    )


def _add_finetuning_rows(card: CardWriter, facts: CardFacts) -> None:
    """Add the rows of finetuning."""
    rows = [
        (
            stage.name,
            ", ".join(stage.metrics.get("data") or finetuning_data(stage)),
            finetuning_licences(stage),
            *(_format_count(stage.metrics["rows"].get(split)) for split in ("train", "heldout", "too-long")),
        )
        for stage in facts.lineage
        if isinstance(stage.metrics.get("rows"), dict)
    ]
    if rows:
        headers = ("stage", "data", "licence or terms", "train", "held out", "too long")
        card.table(headers, rows, "Rows of finetuning")


def _add_licences(card: CardWriter, facts: CardFacts) -> None:
    licences = {k: v for corpus in facts.corpora for k, v in corpus.licences.items()}
    rows = [
        (name, without_digest(str(source.get("from", ""))), licences.get(name, "not stated"))
        for name, source in facts.sources.items()
    ]
    card.table(("source", "from", "licence or terms"), rows, "Origin and licence by source")


def _add_dropped_documents(card: CardWriter, sources: Mapping[str, Mapping[str, Any]]) -> None:
    """Add the reasons for dropped documents: a row per reason and a column per source."""
    for key, caption in (("dropped", "Dropped, by reason"), ("skipped", "Skipped while reading, by reason")):
        reasons = dict.fromkeys(reason for counts in sources.values() for reason in counts.get(key, {}))
        rows = [
            (reason, *(_format_count(counts.get(key, {}).get(reason)) for counts in sources.values()))
            for reason in reasons
        ]
        if rows:
            card.table(("reason", *sources), rows, caption)


def _add_training(card: CardWriter, facts: CardFacts) -> None:
    card.section("Training")
    for stage in facts.lineage:
        parent = facts.chain.parent_model(stage)
        start = without_digest(parent.reference) if parent else "randomly initialized weights"
        card.text(f"{stage.name}: {_WORDS.get(stage.kind, stage.kind)}, from {start}.")
        card.key_values(dict(_training_outcome(stage)))
        rows = [(key, value) for key, value in _flatten_config(stage.payload.get("config", {})) if value]
        card.table(("key", "value"), rows, f"{stage.name}: config")


def _training_outcome(stage: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the results of a training, with their labels."""
    metrics, machine = stage.metrics, stage.machine
    for key, word in _COUNTS.items():
        if isinstance(metrics.get(key), int):
            yield word, number_format.count(metrics[key])
    if isinstance(metrics.get("loss"), float):
        yield f"Loss of the last step, {loss_unit(metrics)}", number_format.decimal(metrics["loss"])
    if "dtype" in metrics:
        yield "Weights and activations", str(metrics["dtype"])
    if "seconds" in metrics:
        yield "Time", format_duration(metrics["seconds"])
    if metrics.get("attempts", 1) > 1:
        yield "Attempts", f"{number_format.count(metrics['attempts'])}; the time is that of the last one"
    memory = f", {format_bytes(machine['memory_bytes'])}" if machine.get("memory_bytes") else ""
    cores = f", {number_format.count(machine['cores'])} cores" if "cores" in machine else ""
    gpus = f", {', '.join(machine['gpus'])}" if machine.get("gpus") else ", no GPU"
    yield "Machine", f"{machine.get('cpu', 'unknown')} ({machine.get('cpu_class', '?')}){cores}{memory}{gpus}"


def _flatten_config(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys of a config with their values as text."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten_config(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, _format_value(value)


def _format_value(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return ", ".join(map(_format_value, value))
    return number_format.decimal(value) if isinstance(value, int | float) else str(value)


def _format_count(value: object) -> str:
    return number_format.count(value) if isinstance(value, int | float) else ""
