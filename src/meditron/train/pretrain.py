"""The `pretrain` stage: trains a model on tokenized text and exports it as an HF folder."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from meditron.core.console import warn
from meditron.core.errors import InputError
from meditron.sources.evidence import sum_by_level
from meditron.store.ancestry import MAX_DOCUMENTS, Training
from meditron.store.contamination import read_contamination
from meditron.store.document_facts import read_facts
from meditron.store.indexed import IndexedDataset, read_hashes
from meditron.store.manifest import Artifact
from meditron.text.tokenizer import load_tokenizer
from meditron.train.config import PretrainConfig
from meditron.train.data_identity import hex_digest
from meditron.train.document_weights import UNIT, document_weights
from meditron.train.heldout_loss import document_loss, document_samples, heldout_documents
from meditron.train.loop import train
from meditron.train.mixture import Mixture
from meditron.train.setup import training_layout
from meditron.train.trainer import Trainer, TrainingInputs, finish_training, is_exported

__all__ = ["run"]

# Up to four epochs are nearly as good as new text (Muennighoff et al., Scaling Data-Constrained Language
# Models, NeurIPS 2023).
_MAX_USEFUL_EPOCHS = 4


def run(config: PretrainConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Train the model `inputs["base"]` on the token files `inputs["tokens"]`.

    The held-out loss is measured on `inputs["corpus"]`. Writes an HF folder with `ancestry.json`,
    `metrics.jsonl` and `report.html` to `out`. A run that was killed resumes from its newest checkpoint, bit
    for bit as if it had never stopped.

    Args:
        config: The stage's table of the recipe.
        inputs: The artifacts `base`, `tokens` and `corpus`.
        out: The stage's folder.

    Returns:
        Metrics: `loss` of the last step; `heldout`, source → [before, after], nats per target; `tokens`,
        `steps`, and `epochs` of each source; `mixture`: for each source the `tokens` of its documents, the
        `sampled` tokens of the training, and both for each evidence level in `levels`; `tokens_per_second`
        (median step), `peak_flops` (measured, FLOP/s), `matmul_utilization`, `step_seconds`; `spikes`,
        `events`, `threads`, `dtype`, `layout`, `ranks`, `resumed_from` (a step or null).

    Raises:
        InputError: There are no token files, the tokenizer does not fit the model, or a file is damaged.
        RecipeError: The mixture does not fit the token files, or the sequence length does not fit the model.
        TrainingError: The loss or the gradient norm is not finite.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGUSR1 was received; a checkpoint was saved.
    """
    with training_layout(config) as layout:
        # Only rank 0 looks, because another machine may see its files late; all ranks get its result.
        if not layout.any(layout.is_main and is_exported(out)):
            training_inputs = _training_inputs(config, inputs, out.name)
            if layout.is_main:
                _warn_of_many_epochs(training_inputs.stage_metrics["mixture"])
            trainer = Trainer(config, inputs["base"], training_inputs, out, layout)
            with trainer.session():
                train(trainer.state, trainer.callbacks)
            trainer.export()
        layout.barrier()
    return finish_training(out)


def _training_inputs(config: PretrainConfig, inputs: Mapping[str, Artifact], stage: str) -> TrainingInputs:
    folder = inputs["tokens"].path
    corpus = inputs["corpus"]
    tokenizer = load_tokenizer(folder)
    mixture = _open_mixture(config, folder)
    # The held-out documents are tokenized once, because the held-out loss is evaluated several times.
    heldout = heldout_documents(corpus.path, tokenizer, config.heldout_documents)
    return TrainingInputs(
        report_title="Continued pretraining",
        progress_label="pretrain",
        tokenizer=tokenizer,
        dataset=mixture,
        ancestry_entry=Training(
            stage=stage,
            kind="pretrain",
            data="corpus",
            data_digest=hex_digest(corpus),
            documents=_hash_trained_documents(mixture, folder),
            contamination=read_contamination(corpus.path),
            newest_date=corpus.manifest.metrics.get("newest_date") if corpus.manifest else None,
        ),
        heldout_loss=partial(document_loss, documents=heldout, max_length=config.sequence_length),
        heldout_samples=partial(document_samples, heldout, max_length=config.sequence_length),
        stage_metrics={"mixture": _mixture_metrics(mixture, folder)},
    )


def _hash_trained_documents(mixture: Mixture, folder: Path) -> tuple[str, ...] | None:
    """Return the sorted content hashes of the documents trained on; None if more than `MAX_DOCUMENTS`."""
    # Only documents that were read are recorded, so that evaluation may use the rest of the training split.
    indices = mixture.documents_read()
    if sum(map(len, indices.values())) > MAX_DOCUMENTS:
        return None
    hashes = {source: read_hashes(folder / source) for source in indices}
    return tuple(sorted({hashes[source][i] for source, numbers in indices.items() for i in numbers.tolist()}))


def _open_mixture(config: PretrainConfig, folder: Path) -> Mixture:
    # The token files are memory-mapped, because a corpus may be larger than memory.
    sources = {path.stem: IndexedDataset(path.with_suffix("")) for path in sorted(folder.glob("*.idx"))}
    if not sources:
        raise InputError(folder, "no token files (*.idx)")
    weights = None
    if config.upsample:
        weights = {name: document_weights(config.upsample, read_facts(folder / name)) for name in sources}
    return Mixture(
        sources,
        config.shares,
        sequence_length=config.sequence_length,
        samples=config.steps * config.batch_size,
        seed=config.seed or 0,
        document_mask=config.document_mask,
        epochs=config.epochs,
        weights=weights,
    )


def _mixture_metrics(mixture: Mixture, folder: Path) -> dict[str, Any]:
    """Return the tokens of each source and evidence level, before and after the mixture's weights."""
    sampled = mixture.tokens_by_source(len(mixture))
    metrics = {}
    for stream in mixture.streams:
        sizes = stream.documents.sizes.astype(np.int64)
        weighted = sizes * (UNIT if stream.weights is None else stream.weights.astype(np.int64))
        levels = sum_by_level(read_facts(folder / stream.name)["types"], sizes, weighted)
        # Of the sampled tokens, each level has its part of an epoch, apart from the last epoch's remainder.
        share = sampled[stream.name] / stream.weighted_tokens
        metrics[stream.name] = {
            "tokens": stream.tokens,
            "sampled": sampled[stream.name],
            "levels": {
                level: {"tokens": tokens, "sampled": round(share * after)}
                for level, (tokens, after) in levels.items()
            },
        }
    return metrics


def _warn_of_many_epochs(mixture: Mapping[str, Any]) -> None:
    for source, counts in mixture.items():
        epochs = counts["sampled"] / counts["tokens"]
        if epochs > _MAX_USEFUL_EPOCHS:
            warn(
                f"the source '{source}' is read {epochs:.1f} times; beyond {_MAX_USEFUL_EPOCHS} epochs, "
                "repeated text adds little and is memorized: lower its share, or add text"
            )
