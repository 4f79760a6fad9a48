"""The reports of the corpus and of its tokens: what went in, what stayed, what was dropped and why."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from meditron.corpus.config import CorpusConfig
from meditron.report.charts import bars
from meditron.report.pages import Page
from meditron.store.corpus import read_corpus
from meditron.store.jsonl import read_jsonl

__all__ = ["corpus_report"]

_SAMPLES = 3  # documents shown of each source, and of each reason
_SHOWN = 2_000  # characters of each


def corpus_report(config: CorpusConfig, metrics: Mapping[str, Any], out: Path) -> None:
    """Write `report.html` about the finished corpus in `out`."""
    documents, characters = metrics["documents"], metrics["characters"]
    page = Page("Corpus", f"{documents['train']:,} training and {documents['heldout']:,} held-out documents")
    _by_source(page, config, metrics)
    _dropped(page, metrics, out)
    page.section("Documents")
    page.text("The first training documents of each source, as they go to the tokenizer.")
    for name in config.sources:
        chosen = (text for text in read_corpus(out, "train") if text.source == name)
        for text in islice(chosen, _SAMPLES):
            page.details(text.id, _cut(text.text))
    page.key_values({f"{split} characters": f"{count:,}" for split, count in characters.items()})
    page.write(out / "report.html")


def _by_source(page: Page, config: CorpusConfig, metrics: Mapping[str, Any]) -> None:
    page.section("Sources")
    whole = max(1, metrics["characters"]["train"])
    rows, shares = [], []
    for name, source in config.sources.items():
        counts = metrics["sources"][name]
        share = 100 * counts["train_characters"] / whole
        shares.append((name, share))
        rows.append(
            (
                name,
                source.domain,
                *(f"{counts[key]:,}" for key in ("read", "kept", "train", "heldout", "train_characters")),
                f"{share:.1f} %",
            )
        )
    headers = (
        "source",
        "domain",
        "read",
        "kept",
        "train",
        "held out",
        "training characters",
        "share",
    )
    page.table(headers, rows)
    page.figure(bars(shares, "% of the training characters"), "Share of each source in the training text")
    page.key_values({f"terms of {name}": one.licence or "not stated" for name, one in config.sources.items()})


def _dropped(page: Page, metrics: Mapping[str, Any], out: Path) -> None:
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
        "Every document that was read is in a split or here. Skipped is what is no document by its kind, "
        "such as a redirect. All drops stand in drops.jsonl.zst, with the beginning of their text."
    )
    page.table(("source", "", "reason", "documents"), rows)
    shown: dict[tuple[str, str], list[dict[str, str]]] = {}
    for drop in read_jsonl(out / "drops.jsonl.zst"):
        samples = shown.setdefault((drop["source"], drop["reason"]), [])
        if len(samples) < _SAMPLES:
            samples.append(drop)
    for (_, reason), samples in sorted(shown.items()):
        for drop in samples:
            page.details(f"{reason}: {drop['id']}", drop["sample"])


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} […]"
