"""One model over the held-out documents: token ids in, one row a document out.

A document's tokens are its text's, with the BOS token in front where the tokenizer adds one, and no
end-of-text token behind: how a model ends a document is not what is asked. Each token but the first is
scored, given all before it.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from meditron.evaluate.config import EvaluateConfig
from meditron.evaluate.heldout import data_digest
from meditron.evaluate.rows import Row, RowsFile
from meditron.ground.console import progress
from meditron.ground.errors import MeditronError
from meditron.model.llama import Llama
from meditron.model.nll import nll_rows
from meditron.model.tokenizer import model_tokenizer
from meditron.model.weights import load_model
from meditron.store.artifact import Artifact
from meditron.store.corpus import Text
from meditron.store.manifest import fingerprint
from meditron.store.models import resolve
from meditron.text.tokenizer import Tokenizer

__all__ = ["Encoded", "encode", "score"]

# Documents scored between two writes: what a kill costs. Also the unit in which they meet in batches, which
# must be the same after a kill, as padding moves the last bits of a sum.
_TOGETHER = 32


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document as the token ids that are scored."""

    ids: Sequence[int]
    bytes: int
    """UTF-8 bytes of the text that the scored tokens stand for: all ids but the first."""
    cut: bool


def encode(text: str, tokenizer: Tokenizer, max_tokens: int) -> Encoded:
    """Tokenize a document and cut it to `max_tokens` tokens, BOS included."""
    ids = tokenizer.encode(text)
    kept, cut = ids[:max_tokens], len(ids) > max_tokens
    scored = len((tokenizer.decode(kept) if cut else text).encode())
    given = 0 if tokenizer.adds_bos else len(tokenizer.decode(kept[:1]).encode())
    return Encoded(kept, scored - given, cut)


def score(
    name: str,
    artifact: Artifact,
    documents: Mapping[str, Sequence[Text]],
    config: EvaluateConfig,
    file: RowsFile,
) -> list[Row]:
    """The rows of one model, those that `file` already holds taken from there; new ones are appended to it.

    Raises:
        MeditronError: the loss on a document is not a number.
    """
    every = [document for source in sorted(documents) for document in documents[source]]
    plan = _plan(artifact, every, config)
    rows = {key: row.model_copy(update={"model": name}) for key, row in file.known(plan).items()}
    groups = [every[start : start + _TOGETHER] for start in range(0, len(every), _TOGETHER)]
    todo = [group for group in groups if any((d.source, d.id) not in rows for d in group)]
    if todo:
        scorer = _Scorer.open(name, artifact, config, plan)
        before = len(every) - sum(map(len, todo))
        with progress(f"evaluate {name}", len(every), "documents", start=before) as bar:
            for group in todo:
                found = scorer.rows(group)
                file.append(found)
                rows |= {(row.source, row.id): row for row in found}
                bar.advance(len(group))
    # In the documents' order, which the bootstrap's draws go by: found rows stand as the file has them.
    return [rows[document.source, document.id] for document in every]


def _plan(artifact: Artifact, documents: Sequence[Text], config: EvaluateConfig) -> str:
    """SHA-256 of all that decides a model's rows."""
    return fingerprint(
        {
            "model": artifact.digest,
            "selector": artifact.selector,
            "data": data_digest(documents),
            "max_tokens": config.max_tokens,
            "dtype": config.dtype,
            "batches": [_TOGETHER, config.batch_tokens],
        }
    )


@dataclass(frozen=True, slots=True)
class _Scorer:
    """A loaded model with all that stands in its rows."""

    name: str
    digest: str
    model: Llama
    tokenizer: Tokenizer
    max_tokens: int
    batch_tokens: int
    plan: str

    @classmethod
    def open(cls, name: str, artifact: Artifact, config: EvaluateConfig, plan: str) -> Self:
        """Load weights and tokenizer, on the GPU where there is one."""
        files = resolve(artifact.spec)
        model = load_model(files, dtype=getattr(torch, config.dtype))
        model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        limit = min(config.max_tokens, model.config.max_position_embeddings)
        tokenizer = model_tokenizer(files)
        return cls(name, artifact.digest, model, tokenizer, limit, config.batch_tokens, plan)

    def rows(self, documents: Sequence[Text]) -> list[Row]:
        """Score some documents together."""
        encoded = [encode(document.text, self.tokenizer, self.max_tokens) for document in documents]
        nlls, tokens = nll_rows(self.model, [e.ids for e in encoded], batch_tokens=self.batch_tokens)
        found = zip(documents, encoded, nlls.tolist(), tokens.tolist(), strict=True)
        return [self._row(document, e, nll, count) for document, e, nll, count in found]

    def _row(self, document: Text, encoded: Encoded, nll: float, tokens: int) -> Row:
        if not math.isfinite(nll):
            raise MeditronError(
                f"{self.name}: the loss on {document.id} is {nll}",
                hint="the weights are damaged, or the number format is too narrow: try dtype = 'float32'",
            )
        return Row(
            model=self.name,
            model_digest=self.digest,
            source=document.source,
            id=document.id,
            tokens=tokens,
            nll=nll,
            bytes=encoded.bytes,
            ids_sha256=hashlib.sha256(np.asarray(encoded.ids, dtype="<u4").tobytes()).hexdigest(),
            cut=encoded.cut,
            text_sha256=document.sha256,
            plan=self.plan,
        )
