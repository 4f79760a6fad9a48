"""The facts of a model card, read from the manifests and the evaluation's results."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditron.core.errors import MeditronError, UsageError
from meditron.release.card.chain import StageChain, read_chain
from meditron.release.card.config import CardConfig
from meditron.release.card.energy import estimate_energy
from meditron.release.card.licence import LICENCE_FILE, read_licence
from meditron.store.ancestry import read_ancestry, training_data_sentence
from meditron.store.fetch import fetch_without_download
from meditron.store.files import read_json
from meditron.store.manifest import Artifact, InputRecord, Manifest
from meditron.store.models import ModelFiles
from meditron.store.results import EvaluationResult, read_results

__all__ = ["CardFacts", "finetuning_data", "finetuning_licences", "gather_facts"]


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The facts that a model card states, before they are put into sentences."""

    config: CardConfig
    name: str
    """Name of the model."""
    run_name: str
    """Name of the run's folder."""
    model_stage: str
    """Stage of the released model."""
    model_type: str | None
    """The released model's family, as HF names it; None if its config.json does not name it."""
    chain: StageChain
    evaluation: EvaluationResult | None
    quantize_manifest: Manifest | None
    energy_estimate: Mapping[str, Any]
    training_data: str
    """A sentence on the model's known training data."""
    licence_text: str | None
    """Text of the licence; None if no file with it is known."""

    @property
    def lineage(self) -> list[Manifest]:
        """Stages that produced the model, in order; the first one started from the base model."""
        return self.chain.lineage(self.model_stage)

    @property
    def base(self) -> InputRecord | None:
        """The model that the first stage started from."""
        return self.chain.parent_model(self.lineage[0])

    @property
    def corpora(self) -> list[Manifest]:
        """The corpora that the model was trained on."""
        return self.dependencies("corpus")

    @property
    def quantized_files(self) -> list[dict[str, Any]]:
        """The quantized files, as the quantize stage recorded them."""
        return list(self.quantize_manifest.metrics.get("files", ())) if self.quantize_manifest else []

    @property
    def fallback_counts(self) -> dict[str, dict[str, int]]:
        """Quantized file → fallback type → number of matrices in that type."""
        return {
            file["path"]: dict(Counter(file.get("fallbacks", {}).values())) for file in self.quantized_files
        }

    @property
    def domains(self) -> dict[str, str]:
        """Source → domain."""
        return {name: source["domain"] for name, source in self.sources.items() if source.get("domain")}

    @property
    def sources(self) -> dict[str, Mapping[str, Any]]:
        """Source name → the source's table in the recipe."""
        return {k: v for corpus in self.corpora for k, v in corpus.config.get("sources", {}).items()}

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the corpora."""
        codes = (code for corpus in self.corpora for code in corpus.config.get("languages", ()))
        return tuple(dict.fromkeys(codes))

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags for the hub."""
        kinds = [stage.kind for stage in self.lineage]
        gguf = ["gguf"] if self.quantized_files else []
        family = [self.model_type] if self.model_type else []
        return tuple(dict.fromkeys(["medical", "research", *family, *kinds, *gguf, *self.config.tags]))

    def dependencies(self, kind: str) -> list[Manifest]:
        """Return the stages of one kind among the model's dependencies."""
        return [stage for stage in self.chain.with_dependencies([self.model_stage]) if stage.kind == kind]


def finetuning_data(stage: Manifest) -> tuple[str, ...]:
    """Return the entries of a finetune's `task` and `rows`, as its recipe names them."""
    entries = (stage.config.get(key) or () for key in ("task", "rows"))
    return tuple(text for each in entries for text in ([each] if isinstance(each, str) else each))


def finetuning_licences(stage: Manifest) -> str:
    """Return the licences of a finetune's data: its training sets', its files of rows', or its task's.

    With several sources, each licence is stated with the input that it applies to.
    """
    prefix = f"{stage.name}: "
    own = {key.removeprefix(prefix): text for key, text in stage.licences.items() if key.startswith(prefix)}
    if len(stage.metrics.get("data") or ()) > 1:
        return ", ".join(f"{key}: {text}" for key, text in own.items()) or "not stated"
    task = (stage.metrics.get("task") or {}).get("licence")
    return task or stage.config.get("licence") or "not stated"


def gather_facts(config: CardConfig, inputs: Mapping[str, Artifact], out: Path) -> CardFacts:
    """Gather the facts of a card from the manifests of the stages and from the evaluation.

    Raises:
        UsageError: The quantized files were made from another model than the card's, or no stage trained the
            model.
        DriftError: A stage was built from another version of an input than the one in the run (see
            `read_chain`).
        InputError: A record is damaged.
    """
    chain = read_chain(inputs.values())
    quantize = inputs["quantize"].manifest if "quantize" in inputs else None
    evaluate = inputs.get("evaluate")
    run = out.resolve().parent.name
    model = _released_model_stage(inputs, chain, quantize)
    folder = next(iter(inputs.values())).path.parent / model
    return CardFacts(
        config=config,
        name=config.name or run,
        run_name=run,
        model_stage=model,
        model_type=read_json(folder / "config.json").get("model_type"),
        chain=chain,
        evaluation=read_results(evaluate.path) if evaluate else None,
        quantize_manifest=quantize,
        energy_estimate=estimate_energy(list(chain.stages.values()), config.energy),
        training_data=training_data_sentence(read_ancestry(ModelFiles(model, "hf", folder))),
        licence_text=_licence_text(inputs, chain, model),
    )


def _licence_text(inputs: Mapping[str, Artifact], chain: StageChain, model: str) -> str | None:
    """Return the text of the given file, else of the file LICENSE in the base model's folder."""
    if "license" in inputs:
        return read_licence(inputs["license"].path)
    lineage = chain.lineage(model)
    base = chain.parent_model(lineage[0]) if lineage else None
    if base is None:
        return None
    try:
        folder = fetch_without_download(base.reference)
    except MeditronError:  # the base was moved after the training
        return None
    names = (LICENCE_FILE, f"{LICENCE_FILE}.txt", f"{LICENCE_FILE}.md")
    texts = [folder / name for name in names if (folder / name).is_file()] if folder else []
    return read_licence(texts[0]) if texts else None


def _released_model_stage(
    inputs: Mapping[str, Artifact], chain: StageChain, quantize: Manifest | None
) -> str:
    """Return the stage of the released model; the quantized files must have been made from it."""
    # Without this check, files of another model could be published under this card with wrong scores.
    parent = chain.parent_model(quantize) if quantize else None
    named = inputs["model"].name if "model" in inputs else None
    of = named or (parent.reference if parent else "")
    if of not in chain.stages:
        raise UsageError(
            f"card.of must be a stage that trained a model, got '{of}'",
            hint='name the stage: [card] of = "pretrain"',
        )
    if parent and parent.reference != of:
        raise UsageError(
            f"card.of is {of}, but its quantized files were made from {parent.reference}",
            hint=f'set [card] quantize = "", or [quantize] on = "{of}"',
        )
    return of
