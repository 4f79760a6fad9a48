"""The card stage: a model card from the manifests of a run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from meditron.release.card.config import CardConfig
from meditron.release.card.eu_summary import add_eu_summary
from meditron.release.card.facts import CardFacts, gather_facts
from meditron.release.card.hub import NOT_STATED, front_matter
from meditron.release.card.licence import LICENCE_FILE
from meditron.release.card.markdown import CardWriter, MarkdownWriter, RedactingWriter
from meditron.release.card.modelfile import render_modelfile
from meditron.release.card.text import add_card
from meditron.release.card.tripod import add_checklist
from meditron.report.pages import Page
from meditron.store.files import atomic_write
from meditron.store.manifest import Artifact

__all__ = ["run"]


def run(config: CardConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Write `README.md` for a model hub, `report.html` with the same text, and the files beside them.

    These are the TRIPOD-LLM checklist, the text of the licence, Ollama's Modelfile, and with `eu_summary` the
    summary of training content.

    Returns:
        Metrics: `name` and `model` (the released model's stage), `license` and `base_model` for the hub,
        `stages` (those that the card describes), `energy` (see `energy.estimate_energy`), `fallbacks` (file →
        fallback type → number of matrices).

    Raises:
        UsageError: The inputs have no model to describe, or several.
        DriftError: A stage was built from another version of an input than the one in the run.
        InputError: A manifest or a record is damaged.
    """
    facts = gather_facts(config, inputs, out)
    with atomic_write(out / "README.md", "w") as file:
        file.write(_render_markdown(facts))
    _write_document(out / "TRIPOD-LLM.md", f"{facts.name}: TRIPOD-LLM checklist", add_checklist, facts)
    if config.eu_summary:
        title = f"{facts.name}: public summary of training content"
        _write_document(out / "EU-TRAINING-CONTENT.md", title, add_eu_summary, facts)
    optional = {LICENCE_FILE: facts.licence_text, "Modelfile": render_modelfile(facts, facts.licence_text)}
    for name, text in optional.items():
        if text is not None:
            with atomic_write(out / name, "w") as file:
                file.write(text)
    page = Page(facts.name, "Model card")
    add_card(RedactingWriter(page), facts)
    page.write(out / "report.html")
    return {
        "name": facts.name,
        "model": facts.model_stage,
        "license": config.released_license or NOT_STATED,
        "base_model": config.base_model,
        "stages": list(facts.chain.stages),
        "energy": dict(facts.energy_estimate),
        "fallbacks": facts.fallback_counts,
    }


def _write_document(
    path: Path, title: str, add: Callable[[CardWriter, CardFacts], None], facts: CardFacts
) -> None:
    document = MarkdownWriter(title)
    add(RedactingWriter(document), facts)
    with atomic_write(path, "w") as file:
        file.write(document.render())


def _render_markdown(facts: CardFacts) -> str:
    header = front_matter(
        facts.config,
        name=facts.name,
        model=facts.model_stage,
        languages=facts.languages,
        tags=facts.tags,
        result=facts.evaluation,
        domains=facts.domains,
    )
    text = MarkdownWriter(facts.name)
    add_card(RedactingWriter(text), facts)
    return f"---\n{header}\n---\n\n{text.render()}"
