"""A draft of the public summary of training content that Article 53(1)(d) of the EU AI Act requires.

The sections are those of the European Commission's template of 24 July 2025 ("Explanatory Notice and Template
for the Public Summary of Training Content for general-purpose AI models"), in words of our own. Each is
answered from the manifests as far as they know it; the rest is left to the provider.
"""

from meditron.core.redaction import without_digest
from meditron.release.card.facts import CardFacts, finetuning_data, finetuning_licences
from meditron.release.card.markdown import CardWriter
from meditron.report import number_format

__all__ = ["add_eu_summary"]

_PROVIDER = "Not recorded: to be filled by the provider."
# Scheme of a source → the template's category of data.
_PUBLIC_SCHEMES = ("pubmed", "pmc", "hf", "pypi", "http", "https")


def add_eu_summary(card: CardWriter, facts: CardFacts) -> None:
    """Write the three parts of the template: general information, data sources, data processing."""
    card.text(
        "Draft from the manifests of this run. It covers the training of this run; the base model's own "
        "training content is described by the base's provider."
    )
    _add_general(card, facts)
    _add_sources(card, facts)
    _add_processing(card, facts)


def _add_general(card: CardWriter, facts: CardFacts) -> None:
    card.section("1. General information")
    base = facts.base
    tokens = [
        stage.metrics["tokens"] for stage in facts.lineage if isinstance(stage.metrics.get("tokens"), int)
    ]
    card.key_values(
        {
            "Provider": facts.config.authors or _PROVIDER,
            "Model": facts.name,
            "Modified model": facts.config.base_model or (without_digest(base.reference) if base else "none"),
            "Date of placement on the market": _PROVIDER,
            "Modality": "text",
            "Size of the training data": f"{number_format.count(sum(tokens))} tokens"
            if tokens
            else _PROVIDER,
            "Languages": ", ".join(facts.languages) or "not restricted",
            "Latest date of the data": _latest_date(facts) or _PROVIDER,
        }
    )


def _latest_date(facts: CardFacts) -> str | None:
    dates = [str(until) for corpus in facts.corpora if (until := corpus.config.get("until"))]
    return max(dates, default=None)


def _add_sources(card: CardWriter, facts: CardFacts) -> None:
    card.section("2. List of data sources")
    by_category: dict[str, list[tuple[str, str, str]]] = {"public": [], "crawled": [], "other": []}
    licences = {key: text for corpus in facts.corpora for key, text in corpus.licences.items()}
    for name, source in facts.sources.items():
        origin = without_digest(str(source.get("from", "")))
        scheme = origin.partition(":")[0].lower()
        category = "crawled" if scheme == "web" else "public" if scheme in _PUBLIC_SCHEMES else "other"
        by_category[category].append((name, origin, licences.get(name, "not stated")))
    tuned = [
        (stage.name, ", ".join(finetuning_data(stage)), finetuning_licences(stage))
        for stage in facts.lineage
        if stage.kind == "finetune"
    ]
    headers = ("name", "from", "licence or terms")
    parts: tuple[tuple[str, list[tuple[str, str, str]], str], ...] = (
        ("2.1 Publicly available datasets", by_category["public"], "None recorded."),
        ("2.2 Private datasets, licensed or not", [], _PROVIDER),
        ("2.3 Data crawled from online sources", by_category["crawled"], "None recorded."),
        ("2.4 User data", [], _PROVIDER),
        ("2.5 Synthetic data", [], _PROVIDER),
        (
            "2.6 Other sources: local files and finetuning data",
            by_category["other"] + tuned,
            "None recorded.",
        ),
    )
    for title, rows, absent in parts:
        if rows:
            card.table(headers, rows, title)
        else:
            card.text(f"{title}: {absent}")


def _add_processing(card: CardWriter, facts: CardFacts) -> None:
    card.section("3. Data processing")
    handled = dict.fromkeys(
        str(corpus.config["personal_information"])
        for corpus in facts.corpora
        if corpus.config.get("personal_information")
    )
    filtered = dict.fromkeys(
        str(corpus.config["licences"]) for corpus in facts.corpora if corpus.config.get("licences")
    )
    dropped = {
        reason: count
        for corpus in facts.corpora
        for counts in corpus.metrics.get("sources", {}).values()
        for reason, count in counts.get("dropped", {}).items()
    }
    card.key_values(
        {
            "3.1 Reservation of rights (text and data mining)": _PROVIDER,
            "Documents selected by licence": ", ".join(filtered) or "no selection recorded",
            "3.2 Removal of illegal content": _PROVIDER,
            "Personal information": ", ".join(handled) or "no screening recorded",
            "3.3 Other processing: reasons for dropped documents": ", ".join(dropped) or "none recorded",
        }
    )
