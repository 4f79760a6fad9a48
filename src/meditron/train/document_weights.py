"""Weights of documents in a mixture: the number of times that each document is read per epoch.

A weight of 1.8 means 1.8 times per epoch on average: once in some epochs, twice in others. Weights are whole
numbers of thousandths, so the counts are exact and equal on every machine.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditron.sources.evidence import evidence_table
from meditron.store.document_facts import quality_values
from meditron.train.config import UpsampleConfig
from meditron.train.samples import seeded_bits

__all__ = ["UNIT", "EpochCopies", "document_weights"]

UNIT = 1_000
"""The weight 1."""


class EpochCopies:
    """The number of copies of each document in each epoch.

    After e epochs, a document of weight w was read ⌊e·w + u⌋ times, with a random u from 0 to 1 for each
    document (systematic sampling). In the first epoch this is the original's rounding: up, with the
    probability of the fraction.
    """

    def __init__(self, weights: NDArray[np.integer[Any]], key: str) -> None:
        self._weights = weights.astype(np.int64)
        self._offsets = (seeded_bits(len(weights), key) % UNIT).astype(np.int64)

    def in_epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the number of copies of each document in an epoch."""
        before = self._weights * epoch + self._offsets
        return (before + self._weights) // UNIT - before // UNIT


def document_weights(config: UpsampleConfig, facts: NDArray[Any]) -> NDArray[np.uint32]:
    """Return the weight of each document in units of 1/UNIT.

    The weight is (1 + strength · score) · quality. The score is the sum of the scores of the document's
    publication types, plus that of its age if this sum is above 0. The weight is 0 for documents of an
    excluded type. The parts that the config does not use, or that are not known of a document, are 1.

    Args:
        config: The table `[pretrain.upsample]`.
        facts: The documents' records (`store.document_facts.FACTS`).
    """
    weights = np.ones(len(facts))
    if config.evidence:
        weights += config.strength * _evidence_scores(config, facts)
        weights[_has_types(config.excluded_types(), facts["types"])] = 0
    if config.quality:
        weights *= np.nan_to_num(quality_values(facts), nan=1.0)
    return np.rint(weights * UNIT).astype(np.uint32)


def _evidence_scores(config: UpsampleConfig, facts: NDArray[Any]) -> NDArray[np.float64]:
    scores = np.zeros(len(facts))
    for name, score in config.type_scores().items():
        scores += score * _has_types((name,), facts["types"])
    ages = config.reference_year_or_published() - facts["year"].astype(np.int64)
    remaining = (scores > 0) & (facts["year"] > 0)
    for age, score in config.recency_or_published():
        young = remaining & (ages <= age)
        scores[young] += score
        remaining &= ~young
    return scores


def _has_types(names: tuple[str, ...], types: NDArray[np.uint32]) -> NDArray[np.bool_]:
    bits: Mapping[str, int] = {entry.name: 1 << bit for bit, entry in enumerate(evidence_table().types)}
    mask = np.uint32(sum(bits[name] for name in names))
    return np.asarray(types & mask != 0)
