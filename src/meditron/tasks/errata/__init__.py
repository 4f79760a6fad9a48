"""Questions of benchmarks that are known to be wrong or unclear, by the hash of their content.

Each TOML file in this folder has the errata of one publication: `source`, and tables of content hash → kind
of error. The hash covers text and options, so that errata apply to a question in any file and under any id,
and a question of another version of the benchmark with other words has none.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from meditron.store.identity import short_hash
from meditron.tasks.question import Question

__all__ = ["Erratum", "find_errata", "known_errata"]


@dataclass(frozen=True, slots=True)
class Erratum:
    """A known error of a question."""

    kind: str
    """Kind of the error: `wrong answer key`, `unclear question`, `no correct answer`, …"""
    source: str
    """Publication that lists the question."""


@cache
def known_errata() -> Mapping[str, Erratum]:
    """Return short content hash → erratum, for all errata files."""
    errata: dict[str, Erratum] = {}
    for path in sorted(Path(__file__).parent.glob("*.toml")):
        published = tomllib.loads(path.read_text(encoding="utf-8"))
        for items in published["items"].values():
            errata |= {digest: Erratum(kind, published["source"]) for digest, kind in items.items()}
    return errata


def find_errata(questions: Iterable[Question]) -> dict[str, Erratum]:
    """Return question id → erratum, for the questions that have one."""
    digests = {question.id: short_hash(question.content_sha256) for question in questions}
    return {
        identity: known_errata()[digest] for identity, digest in digests.items() if digest in known_errata()
    }
