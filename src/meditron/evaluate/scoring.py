"""One model over the held-out documents: token ids in, one row a document out.

A document's tokens are its text's, with the BOS token in front where the tokenizer adds one, and no
end-of-text token behind: how a model ends a document is not what is asked. Each token but the first is
scored, given all before it.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meditron.core.errors import MeditronError
from meditron.evaluate.config import EvaluateConfig
from meditron.evaluate.heldout import data_digest
from meditron.evaluate.model import EvalModel
from meditron.evaluate.rows import DocumentRow, RowsFile, run_resumable
from meditron.model.nll import nll_rows
from meditron.store.corpus import CorpusDocument
from meditron.store.manifest import fingerprint
from meditron.text.tokenizer import Tokenizer

__all__ = ["Encoded", "encode", "ids_digest", "not_a_number", "score"]

_TOGETHER = 32  # documents scored between two writes


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document as the token ids that are scored."""

    ids: Sequence[int]
    bytes: int
    """UTF-8 bytes of the text that the scored tokens stand for: all ids but the first."""
    truncated: bool


def encode(text: str, tokenizer: Tokenizer, max_tokens: int) -> Encoded:
    """Tokenize a document and cut it to `max_tokens` tokens, BOS included."""
    ids = tokenizer.encode(text)
    kept, truncated = ids[:max_tokens], len(ids) > max_tokens
    scored = len((tokenizer.decode(kept) if truncated else text).encode())
    given = 0 if tokenizer.adds_bos else len(tokenizer.decode(kept[:1]).encode())
    return Encoded(kept, scored - given, truncated)


def ids_digest(ids: Sequence[int]) -> str:
    """SHA-256 of token ids."""
    return hashlib.sha256(np.asarray(ids, dtype="<u4").tobytes()).hexdigest()


def not_a_number(name: str, what: str, value: float) -> MeditronError:
    """The error for a figure of `name` that is none."""
    return MeditronError(
        f"{name}: {what} is {value}",
        hint="the weights are damaged, or the number format is too narrow: try dtype = 'float32'",
    )


def score(
    model: EvalModel,
    documents: Mapping[str, Sequence[CorpusDocument]],
    config: EvaluateConfig,
    file: RowsFile[DocumentRow],
) -> list[DocumentRow]:
    """The rows of one model, those that `file` already holds taken from there; new ones are appended to it.

    Raises:
        MeditronError: the loss on a document is not a number.
    """
    every = [document for source in sorted(documents) for document in documents[source]]
    cache_key = _cache_key(model, every, config)
    groups = [every[start : start + _TOGETHER] for start in range(0, len(every), _TOGETHER)]

    def work(group: Sequence[CorpusDocument]) -> list[DocumentRow]:
        return _rows(model, group, config, cache_key)

    found = run_resumable(file, model.name, cache_key, groups, _item, work, unit="documents")
    # In the documents' order, which the bootstrap's draws go by: found rows stand as the file has them.
    return [found[_item(document)] for document in every]


def _item(document: CorpusDocument) -> tuple[str, ...]:
    return document.source, document.id, document.sha256


def _cache_key(model: EvalModel, documents: Sequence[CorpusDocument], config: EvaluateConfig) -> str:
    """SHA-256 of all that decides a model's rows."""
    return fingerprint(
        {
            **model.identity,
            "data": data_digest(documents),
            "max_tokens": config.max_tokens,
            "batches": [_TOGETHER, config.batch_tokens],
        }
    )


def _rows(
    model: EvalModel, documents: Sequence[CorpusDocument], config: EvaluateConfig, cache_key: str
) -> list[DocumentRow]:
    """Score some documents together."""
    engine = model.engine
    limit = min(config.max_tokens, engine.model.config.max_position_embeddings)
    encoded = [encode(document.text, engine.tokenizer, limit) for document in documents]
    nlls, tokens = nll_rows(engine.model, [e.ids for e in encoded], batch_tokens=config.batch_tokens)
    rows = []
    for document, e, nll, count in zip(documents, encoded, nlls.tolist(), tokens.tolist(), strict=True):
        if not math.isfinite(nll):
            raise not_a_number(model.name, f"the loss on {document.id}", nll)
        rows.append(
            DocumentRow(
                **model.row(cache_key),
                source=document.source,
                id=document.id,
                tokens=count,
                nll=nll,
                bytes=e.bytes,
                ids_sha256=ids_digest(e.ids),
                truncated=e.truncated,
                text_sha256=document.sha256,
            )
        )
    return rows
