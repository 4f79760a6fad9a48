"""The `pretrain` stage: trains a model on tokenized text and exports it as an HF folder."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from meditron.core.errors import InputError
from meditron.store.ancestry import MAX_DOCUMENTS, Training
from meditron.store.indexed import IndexedDataset, read_hashes
from meditron.store.manifest import Artifact
from meditron.text.tokenizer import load_tokenizer
from meditron.train.config import PretrainConfig
from meditron.train.data_identity import hex_digest
from meditron.train.heldout_loss import document_loss, heldout_documents
from meditron.train.layout import SINGLE_PROCESS, ParallelLayout
from meditron.train.loop import train
from meditron.train.mixture import Mixture
from meditron.train.runtime import deterministic
from meditron.train.trainer import Trainer, TrainingInputs, finish_training, is_exported

__all__ = ["run"]


def run(
    config: PretrainConfig,
    inputs: Mapping[str, Artifact],
    out: Path,
    *,
    layout: ParallelLayout = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Train the model `inputs["base"]` on the token files `inputs["tokens"]`.

    The held-out loss is measured on `inputs["corpus"]`. Writes an HF folder with `ancestry.json`,
    `metrics.jsonl` and `report.html` to `out`. A run that was killed resumes from its newest checkpoint, bit
    for bit as if it had never stopped.

    Args:
        config: The stage's table of the recipe.
        inputs: The artifacts `base`, `tokens` and `corpus`.
        out: The stage's folder.
        layout: Distribution over devices and processes.

    Returns:
        Metrics: `loss` of the last step; `heldout`, source → [before, after], nats per target; `tokens`,
        `steps`, and `epochs` of each source; `tokens_per_second` (median step), `peak_flops` (measured,
        FLOP/s), `matmul_utilization`, `step_seconds`; `spikes`, `threads`, `dtype`, `resumed_from` (a step or
        null).

    Raises:
        InputError: There are no token files, the tokenizer does not fit the model, or a file is damaged.
        RecipeError: The mixture does not fit the token files, or the sequence length does not fit the model.
        TrainingError: The loss or the gradient norm is not finite.
        KeyboardInterrupt: SIGINT or SIGTERM was received; a checkpoint was saved.
    """
    with deterministic(config.seed or 0, config.threads):
        if not is_exported(out):
            # The trainer is created inside `deterministic`, because initial weights are drawn from its seed.
            trainer = Trainer(config, inputs["base"], _training_inputs(config, inputs, out.name), out, layout)
            with trainer.session():
                train(trainer.state, log=trainer.log, checkpoint=trainer.checkpoint_if_due)
            trainer.export()
    return finish_training(out)


def _training_inputs(config: PretrainConfig, inputs: Mapping[str, Artifact], stage: str) -> TrainingInputs:
    folder = inputs["tokens"].path
    tokenizer = load_tokenizer(folder)
    mixture = _open_mixture(config, folder)
    # The held-out documents are tokenized once, because the held-out loss is evaluated several times.
    heldout = heldout_documents(inputs["corpus"].path, tokenizer, config.heldout_documents)
    return TrainingInputs(
        report_title="Continued pretraining",
        progress_label="pretrain",
        tokenizer=tokenizer,
        dataset=mixture,
        ancestry_entry=Training(
            stage=stage,
            kind="pretrain",
            data="corpus",
            data_digest=hex_digest(inputs["corpus"]),
            documents=_hash_trained_documents(mixture, folder),
        ),
        heldout_loss=partial(document_loss, documents=heldout, max_length=config.sequence_length),
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
    return Mixture(
        sources,
        config.mixture,
        sequence_length=config.sequence_length,
        samples=config.steps * config.batch_size,
        seed=config.seed or 0,
        document_mask=config.document_mask,
    )
