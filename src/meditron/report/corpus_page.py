"""The report pages of the corpus and tokenize stages."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from meditron.report.charts import bar_chart
from meditron.report.pages import Page
from meditron.store.corpus import read_corpus
from meditron.store.jsonl import read_jsonl

__all__ = ["write_corpus_page", "write_token_page"]

_SAMPLES = 3  # documents shown per source, and per reason of a drop
_SHOWN = 2_000  # characters of each


def write_corpus_page(
    sources: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Any], out: Path
) -> None:
    """Write `report.html` of the finished corpus in `out`.

    Args:
        sources: The recipe's source tables.
        metrics: The stage's metrics.
        out: The stage's folder.
    """
    documents, characters = metrics["documents"], metrics["characters"]
    page = Page("Corpus", f"{documents['train']:,} training and {documents['heldout']:,} held-out documents")
    _add_sources(page, sources, metrics)
    _add_drops(page, metrics, out)
    page.section("Documents")
    page.text("The first training documents of each source, as the tokenizer reads them.")
    for name in sources:
        documents_of_source = (document for document in read_corpus(out, "train") if document.source == name)
        for document in islice(documents_of_source, _SAMPLES):
            page.details(document.id, _shorten(document.text))
    page.key_values({f"{split} characters": f"{count:,}" for split, count in characters.items()})
    page.write(out / "report.html")


def write_token_page(
    lengths: Mapping[str, np.ndarray[Any, Any]], metrics: Mapping[str, Any], out: Path
) -> None:
    """Write `report.html` of the tokenize stage: tokens by source, and lengths of documents.

    Args:
        lengths: Source → tokens of each document.
        metrics: The stage's metrics.
        out: The stage's folder.
    """
    page = Page("Tokens", f"{metrics['tokens']:,} tokens in {metrics['documents']:,} training documents")
    page.section("Sources")
    shares = {name: 100 * counts["tokens"] / metrics["tokens"] for name, counts in metrics["sources"].items()}
    keys = ("documents", "tokens", "median", "longest")
    rows = [
        (name, *(f"{counts[key]:,}" for key in keys), f"{shares[name]:.1f} %")
        for name, counts in metrics["sources"].items()
    ]
    page.table(("source", "documents", "tokens", "median length", "longest", "share of tokens"), rows)
    page.figure(bar_chart(list(shares.items()), "% of the tokens"), "Share of each source")
    page.section("Lengths")
    page.text("Tokens per document, including the end-of-text token.")
    for name, sizes in lengths.items():
        page.figure(
            bar_chart(_length_histogram(sizes), "documents"), f"{name}: documents by length in tokens"
        )
    page.key_values({"ids stored as": metrics["dtype"], "tokenizer": metrics["tokenizer"]})
    page.write(out / "report.html")


def _add_sources(page: Page, sources: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Any]) -> None:
    page.section("Sources")
    # The training split may be empty.
    total = max(1, metrics["characters"]["train"])
    keys = ("read", "kept", "train", "heldout", "train_characters")
    rows, shares = [], []
    for name, source in sources.items():
        counts = metrics["sources"][name]
        share = 100 * counts["train_characters"] / total
        shares.append((name, share))
        rows.append((name, source["domain"], *(f"{counts[key]:,}" for key in keys), f"{share:.1f} %"))
    headers = ("source", "domain", "read", "kept", "train", "held out", "training characters", "share")
    page.table(headers, rows)
    page.figure(
        bar_chart(shares, "% of the training characters"), "Share of each source in the training text"
    )
    page.key_values(
        {f"licence of {name}": source.get("licence") or "not stated" for name, source in sources.items()}
    )


def _add_drops(page: Page, metrics: Mapping[str, Any], out: Path) -> None:
    page.section("Dropped")
    rows = [
        (name, kind, reason, f"{count:,}")
        for name, counts in metrics["sources"].items()
        for kind in ("dropped", "skipped")
        for reason, count in counts[kind].items()
    ]
    if not rows:
        page.text("Nothing was dropped.")
        return
    page.text(
        "Every document that was read is either in a split or counted here. Skipped entries are not "
        "documents, for example redirects. drops.jsonl.zst lists every drop with the beginning of its text."
    )
    page.table(("source", "", "reason", "documents"), rows)
    drops_by_reason: dict[tuple[str, str], list[dict[str, str]]] = {}
    for drop in read_jsonl(out / "drops.jsonl.zst"):
        of_reason = drops_by_reason.setdefault((drop["source"], drop["reason"]), [])
        if len(of_reason) < _SAMPLES:
            of_reason.append(drop)
    for (_, reason), drops in sorted(drops_by_reason.items()):
        for drop in drops:
            page.details(f"{reason}: {drop['id']}", drop["sample"])


def _length_histogram(sizes: np.ndarray[Any, Any]) -> list[tuple[str, float]]:
    """Count documents between neighbouring powers of two, from the shortest to the longest."""
    # Document lengths spread over several orders of magnitude.
    powers = np.ceil(np.log2(np.maximum(sizes, 1))).astype(int)
    counts = np.bincount(powers)
    first = int(np.flatnonzero(counts)[0])
    return [(f"up to {2**power:,}", float(counts[power])) for power in range(first, len(counts))]


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} […]"
