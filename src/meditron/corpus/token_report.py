"""The report of the tokenize stage: how many tokens, of which sources, in documents of what length."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meditron.report.charts import bars
from meditron.report.pages import Page

__all__ = ["token_report"]


def token_report(lengths: Mapping[str, np.ndarray[Any, Any]], metrics: Mapping[str, Any], out: Path) -> None:
    """Write `report.html`: token shares by source and the lengths of the documents of each."""
    page = Page("Tokens", f"{metrics['tokens']:,} tokens in {metrics['documents']:,} training documents")
    page.section("Sources")
    shares = {name: 100 * one["tokens"] / metrics["tokens"] for name, one in metrics["sources"].items()}
    keys = ("documents", "tokens", "median", "longest")
    rows = [
        (name, *(f"{one[key]:,}" for key in keys), f"{shares[name]:.1f} %")
        for name, one in metrics["sources"].items()
    ]
    page.table(("source", "documents", "tokens", "median length", "longest", "share of tokens"), rows)
    page.figure(bars(list(shares.items()), "% of the tokens"), "Share of each source")
    page.section("Lengths")
    page.text("Tokens a document, end of text included.")
    for name, sizes in lengths.items():
        page.figure(bars(_histogram(sizes), "documents"), f"{name}: documents by length in tokens")
    page.key_values({"ids stored as": metrics["dtype"], "tokenizer": metrics["tokenizer"]})
    page.write(out / "report.html")


def _histogram(sizes: np.ndarray[Any, Any]) -> list[tuple[str, float]]:
    """Documents between neighbouring powers of two, from the shortest to the longest."""
    powers = np.ceil(np.log2(np.maximum(sizes, 1))).astype(int)
    counts = np.bincount(powers)
    first = int(np.flatnonzero(counts)[0])
    return [(f"up to {2**power:,}", float(counts[power])) for power in range(first, len(counts))]
