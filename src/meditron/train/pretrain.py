"""The stage `pretrain`: a model and tokens in, the adapted model out as an HF folder."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from meditron.core.errors import InputError
from meditron.store.ancestry import MAX_DOCUMENTS, Training
from meditron.store.artifact import Artifact
from meditron.store.indexed import IndexedDataset, document_hashes
from meditron.text.tokenizer import load_tokenizer
from meditron.train.config import PretrainConfig
from meditron.train.data import Mixture
from meditron.train.data_identity import hex_digest
from meditron.train.heldout import heldout_loss, heldout_rows
from meditron.train.training import Material, train

__all__ = ["run"]


def run(config: PretrainConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Train `inputs["base"]` on `inputs["tokens"]`, with an eye on the held-out text of `inputs["corpus"]`.

    What it leaves, returns and raises is said in `training.train`; RecipeError also where the mixture does
    not fit the token files, InputError where there are none.
    """
    return train(config, inputs["base"], out, lambda: _material(config, inputs, out.name))


def _material(config: PretrainConfig, inputs: Mapping[str, Artifact], stage: str) -> Material:
    tokens = inputs["tokens"].path
    tokenizer = load_tokenizer(tokens)
    samples = _mixture(config, tokens)
    heldout = heldout_rows(inputs["corpus"].path, tokenizer, config.heldout_documents)
    return Material(
        title="Continued pretraining",
        label="pretrain",
        tokenizer=tokenizer,
        samples=samples,
        training=Training(
            stage=stage,
            kind="pretrain",
            data="corpus",
            data_digest=hex_digest(inputs["corpus"]),
            documents=_documents(samples, tokens),
        ),
        heldout=partial(heldout_loss, rows=heldout, max_length=config.sequence_length),
    )


def _documents(samples: Mixture, folder: Path) -> tuple[str, ...] | None:
    """Return the sorted short content hashes of the documents that are read; None above `MAX_DOCUMENTS`."""
    read = samples.documents_read()
    if sum(map(len, read.values())) > MAX_DOCUMENTS:
        return None
    hashes = {source: document_hashes(folder / source) for source in read}
    return tuple(sorted({hashes[source][i] for source, numbers in read.items() for i in numbers.tolist()}))


def _mixture(config: PretrainConfig, folder: Path) -> Mixture:
    """The rows of the whole run from the token files in `folder`."""
    found = {path.stem: IndexedDataset(path.with_suffix("")) for path in sorted(folder.glob("*.idx"))}
    if not found:
        raise InputError(folder, "no token files")
    return Mixture(
        found,
        config.mixture,
        sequence_length=config.sequence_length,
        samples=config.steps * config.batch_size,
        seed=config.seed or 0,
        document_mask=config.document_mask,
    )
