"""The report pages of the corpus and tokenize stages."""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from meditron.report.charts import bar_chart
from meditron.report.contamination import CONTAMINATION, benchmark_table
from meditron.report.pages import Page
from meditron.store.jsonl import read_jsonl

__all__ = ["write_corpus_page", "write_token_page"]

Shorten = Callable[[str, int], str]
"""Function that returns the beginning of a text, at most that many characters, without personal information
that reports must not show."""

_SAMPLES = 3  # documents shown per source, and per reason of a drop
_SHOWN = 2_000  # characters of each


def write_corpus_page(
    sources: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Any], out: Path, shorten: Shorten
) -> None:
    """Write `report.html` of the finished corpus in `out`.

    Args:
        sources: The recipe's source tables.
        metrics: The stage's metrics.
        out: The stage's folder.
        shorten: Applied to all texts and ids of documents that the page shows.
    """
    documents, characters = metrics["documents"], metrics["characters"]
    page = Page("Corpus", f"{documents['train']:,} training and {documents['heldout']:,} held-out documents")
    _add_sources(page, sources, metrics)
    _add_expectations(page, metrics.get("expected_documents", {}), "documents")
    _add_drops(page, sources, metrics, out, shorten)
    if "near_duplicates" in metrics:
        _add_near_duplicates(page, metrics["near_duplicates"], shorten)
    _add_content(page, metrics)
    if "contamination" in metrics:
        table = benchmark_table(metrics["contamination"])
        page.section("Benchmark questions")
        page.table(table.headers, table.rows, table.caption)
        page.text(CONTAMINATION)
    _add_documents(page, sources, out, shorten)
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
    _add_expectations(page, metrics.get("expected_tokens", {}), "tokens")
    _add_levels(page, metrics)
    _add_years(page, metrics)
    page.section("Lengths")
    page.text("Tokens per document, including the end-of-text token.")
    for name, sizes in lengths.items():
        page.figure(
            bar_chart(_length_histogram(sizes), "documents"), f"{name}: documents by length in tokens"
        )
    compared = f"{metrics['encoder']}; {metrics['compared']:,} documents compared with HF tokenizers"
    page.key_values(
        {"ids stored as": metrics["dtype"], "tokenizer": metrics["tokenizer"], "encoded by": compared}
    )
    page.write(out / "report.html")


def _add_documents(page: Page, sources: Mapping[str, Mapping[str, Any]], out: Path, shorten: Shorten) -> None:
    page.section("Documents")
    page.text("The first training documents of each source, as the tokenizer reads them.")
    for name in sources:
        shards = sorted((out / "train" / name).glob("*.jsonl.zst"))
        for row in islice((row for shard in shards for row in read_jsonl(shard)), _SAMPLES):
            meta = row.get("meta", {})
            names = [shorten(name, _SHOWN) for name in (row["id"], meta.get("title")) if name]
            # Statements about the document, such as its address, are no personal information.
            facts = [fact for fact in (row.get("date"), row.get("licence"), meta.get("url")) if fact]
            more = " […]" if len(row["text"]) > _SHOWN else ""
            page.details(" · ".join([*names, *facts]), shorten(row["text"], _SHOWN) + more)


def _add_expectations(page: Page, sizes: Mapping[str, Mapping[str, Any]], unit: str) -> None:
    """Add the comparison with the sizes that the recipe expects, if it expects any."""
    if not sizes:
        return
    rows = [
        (name, f"{size['expected']:,}", f"{size['built']:,}", f"{100 * size['ratio']:.1f} %")
        for name, size in sizes.items()
    ]
    page.section(f"Expected and built {unit}")
    page.table(("source", f"expected {unit}", f"built {unit}", "built of the expected"), rows)


def _add_near_duplicates(page: Page, metrics: Mapping[str, Any], shorten: Shorten) -> None:
    """Add the numbers of clusters of near-duplicates, and examples of the largest."""
    page.section("Near-duplicates")
    page.text(
        "Documents with a Jaccard similarity of at least "
        f"{metrics['threshold']:g} form a cluster. A cluster with a held-out document lost its training "
        "documents."
    )
    page.key_values(
        {
            "clusters": f"{metrics['clusters']:,}",
            "documents in clusters": f"{metrics['documents']:,}",
            "clusters with held-out documents": f"{metrics['heldout_clusters']:,}",
        }
    )
    if not metrics["clusters"]:
        return
    rows = [(size, f"{clusters:,}") for size, clusters in metrics["sizes"].items()]
    page.table(("documents of a cluster", "clusters"), rows)
    for cluster in metrics["largest"]:
        listed = "\n".join(f"{shorten(each['id'], _SHOWN)}: {each['title']}" for each in cluster["documents"])
        page.details(f"A cluster of {cluster['size']:,} documents; the first one was kept", listed)


def _add_years(page: Page, metrics: Mapping[str, Any]) -> None:
    """Add the tokens of each source by periods of five years."""
    page.section("Years")
    for name, counts in metrics["sources"].items():
        periods: Counter[str] = Counter()
        for year, tokens in sorted(counts["years"].items(), key=lambda item: int(item[0])):
            first = int(year) // 5 * 5
            periods[f"{first}-{first + 4}" if int(year) else "not stated"] += tokens
        page.figure(bar_chart(list(periods.items()), "tokens"), f"{name}: tokens by year of publication")


def _add_levels(page: Page, metrics: Mapping[str, Any]) -> None:
    page.section("Evidence levels")
    page.text(
        "The level of a document is that of its strongest publication type. Shares are of the source's "
        "tokens, before [pretrain.upsample] weights them."
    )
    rows = [
        (name, level, f"{of_level['documents']:,}", f"{of_level['tokens']:,}", f"{share:.1f} %")
        for name, counts in metrics["sources"].items()
        for level, of_level in counts["levels"].items()
        for share in (100 * of_level["tokens"] / max(1, counts["tokens"]),)
    ]
    page.table(("source", "level", "documents", "tokens", "share of the source"), rows)


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


def _add_content(page: Page, metrics: Mapping[str, Any]) -> None:
    """Add the licences, the dates and the personal information of the kept documents."""
    page.section("Licences, dates, personal information")
    page.key_values(
        {
            "newest document": metrics["newest_date"] or "not known",
            "documents without a date": f"{metrics['undated']:,}",
        }
    )
    licences = metrics["licences"].items()
    rows = [(name, f"{counts['documents']:,}", f"{counts['characters']:,}") for name, counts in licences]
    page.table(("licence", "documents", "characters"), rows)
    kinds = metrics["personal_information"]
    if kinds:
        page.text(
            'Personal information in the kept documents, by patterns; with personal_information = "mask", '
            "the spans that were replaced. Samples are masked."
        )
        page.table(
            ("kind", "spans"), [(kind.replace("_", " "), f"{count:,}") for kind, count in kinds.items()]
        )
        for kind, samples in metrics["personal_information_samples"].items():
            page.details(kind.replace("_", " "), "\n".join(samples))


def _add_drops(
    page: Page,
    sources: Mapping[str, Mapping[str, Any]],
    metrics: Mapping[str, Any],
    out: Path,
    shorten: Shorten,
) -> None:
    page.section("Dropped")
    if own := {name: source["filters"] for name, source in sources.items() if source.get("filters")}:
        page.text("These sources have filters of their own:")
        page.key_values(
            {
                f"filters of {name}": ", ".join(f"{key} = {_toml(value)}" for key, value in filters.items())
                for name, filters in own.items()
            }
        )
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
            original = f" (of {shorten(drop['of'], _SHOWN)})" if "of" in drop else ""
            page.details(f"{reason}: {shorten(drop['id'], _SHOWN)}{original}", drop["sample"])


def _toml(value: float) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _length_histogram(sizes: np.ndarray[Any, Any]) -> list[tuple[str, float]]:
    """Count documents between neighbouring powers of two, from the shortest to the longest."""
    # Document lengths spread over several orders of magnitude.
    powers = np.ceil(np.log2(np.maximum(sizes, 1))).astype(int)
    counts = np.bincount(powers)
    first = int(np.flatnonzero(counts)[0])
    return [(f"up to {2**power:,}", float(counts[power])) for power in range(first, len(counts))]
