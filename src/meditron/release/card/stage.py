"""The card stage: what the model is, made from what, and how well it does, from the manifests alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meditron.release.card.config import CardConfig
from meditron.release.card.facts import CardFacts, gather
from meditron.release.card.hub import NOT_STATED, front_matter
from meditron.release.card.markdown import Markdown, Published
from meditron.release.card.text import describe
from meditron.report.pages import Page
from meditron.store.artifact import Artifact
from meditron.store.files import atomic

__all__ = ["run"]


def run(config: CardConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Write `README.md`, as a model hub reads it, and `report.html`, the same text as a page.

    Returns:
        metrics: `name` and `model` (the released model's stage), `license` and `base_model` as the hub reads
        them, `stages` (those the card stands on), `energy` (see `card_energy.estimate`), `fallbacks` (file →
        type → matrices that have it instead of the one asked for).

    Raises:
        UsageError: the inputs leave no model, or not one, to be described.
        DriftError: the stages were not made from each other.
        InputError: a manifest or a record is damaged.
    """
    facts = gather(config, inputs, out)
    with atomic(out / "README.md", "w") as file:
        file.write(_markdown(facts))
    page = Page(facts.name, "Model card")
    describe(Published(page), facts)
    page.write(out / "report.html")
    return {
        "name": facts.name,
        "model": facts.model,
        "license": config.license or NOT_STATED,
        "base_model": config.base_model,
        "stages": list(facts.chain.stages),
        "energy": dict(facts.energy),
        "fallbacks": facts.fallbacks,
    }


def _markdown(facts: CardFacts) -> str:
    head = front_matter(
        facts.config,
        name=facts.name,
        model=facts.model,
        languages=facts.languages,
        tags=facts.tags,
        result=facts.result,
        domains=facts.domains,
    )
    text = Markdown(facts.name)
    describe(Published(text), facts)
    return f"---\n{head}\n---\n\n{text.render()}"
