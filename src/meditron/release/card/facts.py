"""All that a card tells of, gathered from the manifests and the evaluation's records."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditron.core.errors import UsageError
from meditron.release.card.chain import Chain, read_chain
from meditron.release.card.config import CardConfig
from meditron.release.card.energy import estimate
from meditron.store.ancestry import read_ancestry, statement
from meditron.store.artifact import Artifact
from meditron.store.manifest import InputRecord, Manifest
from meditron.store.models import ModelFiles
from meditron.store.results import EvaluationResult, read_results

__all__ = ["CardFacts", "gather", "origin"]


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What is told, before it is put into words."""

    config: CardConfig
    name: str
    """The model's, for people."""
    run: str
    """The folder that the stages lie in."""
    model: str
    """The released model's stage."""
    chain: Chain
    result: EvaluationResult | None
    quantize: Manifest | None
    energy: Mapping[str, Any]
    training_data: str
    """One sentence on how much is known of the model's training data."""

    @property
    def line(self) -> list[Manifest]:
        """The stages that the model went through, from its base on."""
        return self.chain.line(self.model)

    @property
    def base(self) -> InputRecord | None:
        """Where the first of them began."""
        return self.chain.parent(self.line[0])

    @property
    def corpora(self) -> list[Manifest]:
        """The corpora that the model was trained on."""
        return self.below("corpus")

    @property
    def files(self) -> list[dict[str, Any]]:
        """The quantized files, as the quantize stage told them."""
        return list(self.quantize.metrics.get("files", ())) if self.quantize else []

    @property
    def fallbacks(self) -> dict[str, dict[str, int]]:
        """File → type → how many matrices have this one instead of the one asked for."""
        return {file["path"]: dict(Counter(file.get("fallbacks", {}).values())) for file in self.files}

    @property
    def domains(self) -> dict[str, str]:
        """Source → what its text is about."""
        return {name: source["domain"] for name, source in self.sources.items() if source.get("domain")}

    @property
    def sources(self) -> dict[str, Mapping[str, Any]]:
        """Source → its table in the recipe."""
        return {k: v for corpus in self.corpora for k, v in corpus.config.get("sources", {}).items()}

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that the corpora kept."""
        return tuple(dict.fromkeys(one for c in self.corpora for one in c.config.get("languages", ())))

    @property
    def tags(self) -> tuple[str, ...]:
        """What the hub finds the model by."""
        own = ["medical", "research", "llama", *dict.fromkeys(stage.kind for stage in self.line)]
        return tuple(dict.fromkeys([*own, *(["gguf"] if self.files else []), *self.config.tags]))

    def below(self, kind: str) -> list[Manifest]:
        """The stages of a kind that the model was made from."""
        return [stage for stage in self.chain.below([self.model]) if stage.kind == kind]


def gather(config: CardConfig, inputs: Mapping[str, Artifact], out: Path) -> CardFacts:
    """Read the chain and what was found of it.

    Raises:
        UsageError: the quantized files were made from another model than the card's; the model is no stage.
        DriftError: the stages were not made from each other (see `read_chain`).
        InputError: a record is damaged.
    """
    chain = read_chain(inputs.values())
    quantize = inputs["quantize"].manifest if "quantize" in inputs else None
    evaluate = inputs.get("evaluate")
    run = out.resolve().parent.name
    model = _released(inputs, chain, quantize)
    folder = next(iter(inputs.values())).path.parent / model
    return CardFacts(
        config=config,
        name=config.name or run,
        run=run,
        model=model,
        chain=chain,
        result=read_results(evaluate.path) if evaluate else None,
        quantize=quantize,
        energy=estimate(list(chain.stages.values()), config.energy),
        training_data=statement(read_ancestry(ModelFiles(model, "hf", folder))),
    )


def _released(inputs: Mapping[str, Artifact], chain: Chain, quantize: Manifest | None) -> str:
    """The stage that left the model: the one named, which the quantized files must have been made from."""
    parent = chain.parent(quantize) if quantize else None
    named = inputs["model"].name if "model" in inputs else None
    of = named or (parent.reference if parent else "")
    if of not in chain.stages:
        raise UsageError(
            f"a card is of a model that a stage trained, not of '{of or 'none'}'",
            hint='name the stage: [card] of = "pretrain"',
        )
    if parent and parent.reference != of:
        raise UsageError(
            f"the card is of {of}, but its quantized files were made from {parent.reference}",
            hint=f'write [quantize] on = "{of}", or [card] quantize = ""',
        )
    return of


def origin(reference: str) -> str:
    """A source without its promised hash, which stands among the digests."""
    return reference.partition("@sha256:")[0]
