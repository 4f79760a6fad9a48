"""Counts of what the kept documents contain: licences, personal information, and the newest date."""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from meditron.corpus.personal_information import masked_samples
from meditron.sources.dates import latest_day

__all__ = ["NOT_STATED", "ContentTally", "merge_tallies"]

NOT_STATED = "not stated"
"""Key of the documents without a known licence."""
_SAMPLES = 3  # of each kind of personal information, in the report


class ContentTally:
    """Counts of the kept documents of one shard or source, from the fields that the passes added."""

    def __init__(self) -> None:
        self.licences: dict[str, list[int]] = {}
        """Licence → number of documents and of characters."""
        self.personal_information: dict[str, int] = {}
        """Kind → number of spans."""
        self.samples: dict[str, list[str]] = {}
        """Kind → masked surroundings of the first spans."""
        self.newest_date: str | None = None
        self.undated = 0
        """Number of documents without a date."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a kept document, given its row in the corpus."""
        licence = self.licences.setdefault(row.get("licence", NOT_STATED), [0, 0])
        licence[0] += 1
        licence[1] += len(row["text"])
        self.undated += "date" not in row
        self.newest_date = _newer(self.newest_date, row.get("date"))
        counts = row.get("personal_information", {})
        for kind, count in counts.items():
            self.personal_information[kind] = self.personal_information.get(kind, 0) + count
        # A masked text has no spans, and so no samples.
        wanted = [kind for kind in counts if len(self.samples.get(kind, ())) < _SAMPLES]
        if wanted:
            for kind, sample in masked_samples(row["text"], wanted).items():
                self.samples.setdefault(kind, []).append(sample)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {
            "licences": self.licences,
            "personal_information": self.personal_information,
            "samples": self.samples,
            "newest_date": self.newest_date,
            "undated": self.undated,
        }


def merge_tallies(tallies: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge what `ContentTally.to_json` returned, in order, into the metrics of a source or corpus.

    Returns:
        `licences`: licence → `documents` and `characters`, the most characters first;
        `personal_information`: kind → number of spans; `personal_information_samples`; `newest_date`: the
        newest date of a document, in ISO 8601 as precise as known, or None; `undated`: the number of
        documents without a date.
    """
    licences: dict[str, list[int]] = {}
    personal: dict[str, int] = {}
    samples: dict[str, list[str]] = {}
    newest, undated = None, 0
    for tally in tallies:
        for name, (documents, characters) in tally["licences"].items():
            counts = licences.setdefault(name, [0, 0])
            counts[0] += documents
            counts[1] += characters
        for kind, count in tally["personal_information"].items():
            personal[kind] = personal.get(kind, 0) + count
        for kind, found in tally["samples"].items():
            samples[kind] = [*samples.get(kind, []), *found][:_SAMPLES]
        newest = _newer(newest, tally["newest_date"])
        undated += tally["undated"]
    by_size = sorted(licences.items(), key=lambda entry: (-entry[1][1], entry[0]))
    return {
        "licences": {name: {"documents": counts[0], "characters": counts[1]} for name, counts in by_size},
        "personal_information": dict(sorted(personal.items())),
        "personal_information_samples": dict(sorted(samples.items())),
        "newest_date": newest,
        "undated": undated,
    }


def _newer(one: str | None, other: str | None) -> str | None:
    """Return the date that may be later; of two with the same last day the more precise one."""
    dates = [(latest_day(text) or date.min, len(text), text) for text in (one, other) if text]
    return max(dates)[2] if dates else None
