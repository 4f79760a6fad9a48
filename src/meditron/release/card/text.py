"""What a model card says, section by section; every figure in it is a manifest's or a record's."""

from collections.abc import Iterator, Mapping
from typing import Any

from meditron.core.disclaimer import ADVISORY
from meditron.core.units import duration, size
from meditron.release.card.facts import CardFacts, origin
from meditron.release.card.markdown import Sheet
from meditron.release.card.results import energy, evaluation, files, provenance
from meditron.release.card.usage import citation, prompt, run_it
from meditron.report import number_format
from meditron.store.manifest import Manifest

__all__ = ["describe"]

_WORDS = {"pretrain": "continued pretraining", "finetune": "finetuning"}
_COUNTS = {"tokens": "Tokens", "answer_tokens": "Tokens of answers, which were learned", "steps": "Steps"}
_INTENDED = (
    "Research on adapting language models to medical text: comparing data, methods and measures, with the "
    "base beside it.",
    "A starting point for further training by people who evaluate what they make of it.",
)
_OUT_OF_SCOPE = (
    "Diagnosis, treatment, triage or any other clinical decision, and advice to patients.",
    "Text that reaches people without having been checked by somebody who can tell whether it is right.",
    "Deployment of any kind: that would need alignment with the use, tests of safety and bias there, and the "
    "trials that medical products need.",
)
_LIMITATIONS = (
    "It was trained to predict text, not to be right, safe or up to date: it states what is false as "
    "fluently as what is true.",
    "It knows no professional limits, and carries the biases of its texts: of what is studied, in whom, and "
    "what is published.",
    "The evaluation below is all that was made: none of safety, of bias or by clinicians.",
    "Intervals say how far other documents or questions might move a figure, not what another seed of the "
    "training would.",
)


def describe(sheet: Sheet, facts: CardFacts) -> None:
    """Put the card down on a sheet."""
    sheet.text(ADVISORY)
    _identity(sheet, facts)
    _uses(sheet, facts)
    _data(sheet, facts)
    _training(sheet, facts)
    evaluation(sheet, facts)
    files(sheet, facts)
    run_it(sheet, facts)
    prompt(sheet, facts)
    energy(sheet, facts)
    citation(sheet, facts)
    provenance(sheet, facts)


def _identity(sheet: Sheet, facts: CardFacts) -> None:
    config, base = facts.config, facts.base
    made = ", then ".join(_WORDS.get(stage.kind, stage.kind) for stage in facts.line)
    sheet.section("What it is")
    sheet.key_values(
        {
            "Model": f"a causal language model, made by {made}",
            "Base": config.base_model or "no name on the hub is stated",
            "Base, fetched from": origin(base.reference) if base else "none: it began with seeded weights",
            "Licence of the base": config.base_license or "not stated",
            "Licence of these weights": config.license_name or config.license or "not stated",
            "Languages": ", ".join(facts.languages) or "not restricted",
            "Quantized files": ", ".join(file["type"] for file in facts.files) or "none",
        }
    )


def _uses(sheet: Sheet, facts: CardFacts) -> None:
    for heading, said, more in (
        ("What it is for", _INTENDED, facts.config.intended),
        ("What it is not for", _OUT_OF_SCOPE, facts.config.out_of_scope),
        ("Limitations", _LIMITATIONS, facts.config.limitations),
    ):
        sheet.section(heading)
        sheet.text("\n\n".join([*said, *more]))


def _data(sheet: Sheet, facts: CardFacts) -> None:
    sheet.section("Training data")
    sheet.text(facts.training_data)
    _rows(sheet, facts)
    sources = [(name, one) for c in facts.corpora for name, one in c.metrics.get("sources", {}).items()]
    if not sources:
        sheet.text("No corpus stands among the stages that it was made from.")
        return
    tokens = {k: v for t in facts.below("tokenize") for k, v in t.metrics.get("sources", {}).items()}
    rows = [
        (
            name,
            facts.domains.get(name, ""),
            *(_number(counts.get(key)) for key in ("read", "kept", "train", "heldout")),
            _number(tokens.get(name, {}).get("tokens")),
        )
        for name, counts in sources
    ]
    headers = ("source", "about", "read", "kept", "for training", "held out", "training tokens")
    sheet.table(headers, rows, "Documents by source, and the tokens of those for training")
    _terms(sheet, facts)
    _dropped(sheet, dict(sources))
    sheet.text(
        "A document is held out by a hash of its own identity, before anything else is done: no held-out "
        "text was trained on in these stages; what the base model read before them is not recorded. The "
        "corpus lists the documents that were dropped, each with its reason."
    )


def _rows(sheet: Sheet, facts: CardFacts) -> None:
    """The rows that it was finetuned on."""
    rows = [
        (
            stage.name,
            stage.config.get("task") or stage.config.get("rows") or "",
            (stage.metrics.get("task") or {}).get("licence") or stage.config.get("licence") or "not stated",
            *(_number(stage.metrics["rows"].get(split)) for split in ("train", "heldout", "too-long")),
        )
        for stage in facts.line
        if isinstance(stage.metrics.get("rows"), dict)
    ]
    if rows:
        headers = ("stage", "rows of", "licence or terms", "trained on", "held out", "too long")
        sheet.table(headers, rows, "Rows of questions and answers")


def _terms(sheet: Sheet, facts: CardFacts) -> None:
    licences = {k: v for corpus in facts.corpora for k, v in corpus.licences.items()}
    rows = [
        (name, origin(str(source.get("from", ""))), licences.get(name, "not stated"))
        for name, source in facts.sources.items()
    ]
    sheet.table(("source", "from", "licence or terms"), rows, "Where it is from, under which terms")


def _dropped(sheet: Sheet, sources: Mapping[str, Mapping[str, Any]]) -> None:
    """Why documents are missing: a row a reason, a column a source."""
    for key, caption in (("dropped", "Dropped, and why"), ("skipped", "Skipped while reading, and why")):
        reasons = dict.fromkeys(reason for counts in sources.values() for reason in counts.get(key, {}))
        rows = [
            (reason, *(_number(counts.get(key, {}).get(reason)) for counts in sources.values()))
            for reason in reasons
        ]
        if rows:
            sheet.table(("reason", *sources), rows, caption)


def _training(sheet: Sheet, facts: CardFacts) -> None:
    sheet.section("Training")
    for stage in facts.line:
        parent = facts.chain.parent(stage)
        began = origin(parent.reference) if parent else "seeded weights"
        sheet.text(f"{stage.name}: {_WORDS.get(stage.kind, stage.kind)}, from {began}.")
        sheet.key_values(dict(_outcome(stage)))
        rows = [(key, value) for key, value in _leaves(stage.payload.get("config", {})) if value]
        sheet.table(("key", "value"), rows, f"{stage.name}: its configuration")


def _outcome(stage: Manifest) -> Iterator[tuple[str, str]]:
    """What a training came to."""
    metrics, machine = stage.metrics, stage.machine
    for key, word in _COUNTS.items():
        if isinstance(metrics.get(key), int):
            yield word, number_format.count(metrics[key])
    if isinstance(metrics.get("loss"), float):
        yield "Loss of the last step, nats a token", number_format.decimal(metrics["loss"])
    if "dtype" in metrics:
        yield "Weights and activations", str(metrics["dtype"])
    if "seconds" in metrics:
        yield "Time", duration(metrics["seconds"])
    if metrics.get("attempts", 1) > 1:
        yield "Attempts", f"{number_format.count(metrics['attempts'])}; the time is the last one's"
    memory = f", {size(machine['memory_bytes'])}" if machine.get("memory_bytes") else ""
    cores = f", {number_format.count(machine['cores'])} cores" if "cores" in machine else ""
    gpus = f", {', '.join(machine['gpus'])}" if machine.get("gpus") else ", no GPU"
    yield "Machine", f"{machine.get('cpu', 'unknown')} ({machine.get('cpu_class', '?')}){cores}{memory}{gpus}"


def _leaves(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of a configuration, with their values as text."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, _written(value)


def _written(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return ", ".join(map(_written, value))
    return number_format.decimal(value) if isinstance(value, int | float) else str(value)


def _number(value: object) -> str:
    return number_format.count(value) if isinstance(value, int | float) else ""
