"""The card stage: a model card from the manifests of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meditron.release.card.config import CardConfig
from meditron.release.card.facts import CardFacts, gather_facts
from meditron.release.card.hub import NOT_STATED, front_matter
from meditron.release.card.markdown import MarkdownWriter, RedactingWriter
from meditron.release.card.text import add_card
from meditron.release.card.tripod import add_checklist
from meditron.report.pages import Page
from meditron.store.files import atomic_write
from meditron.store.manifest import Artifact

__all__ = ["run"]


def run(config: CardConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Write `README.md` for a model hub, `report.html` with the same text, and the TRIPOD-LLM checklist.

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
    checklist = MarkdownWriter(f"{facts.name}: TRIPOD-LLM checklist")
    add_checklist(RedactingWriter(checklist), facts)
    with atomic_write(out / "TRIPOD-LLM.md", "w") as file:
        file.write(checklist.render())
    page = Page(facts.name, "Model card")
    add_card(RedactingWriter(page), facts)
    page.write(out / "report.html")
    return {
        "name": facts.name,
        "model": facts.model_stage,
        "license": config.license or NOT_STATED,
        "base_model": config.base_model,
        "stages": list(facts.chain.stages),
        "energy": dict(facts.energy_estimate),
        "fallbacks": facts.fallback_counts,
    }


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
