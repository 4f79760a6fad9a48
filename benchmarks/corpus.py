"""Benchmark of the corpus readers against their peers, in CPU seconds of one core: `make bench ONLY=corpus`.

`medline-vs-pubmed_parser` reads a whole daily update file (gzip) and writes JSON lines to disk. Each side's
result is the best of three alternating rounds; the ratio of each round is recorded too. Ours writes the
fields that `meditron parse` prints. pubmed_parser is called as in its documentation, with the defaults, which
are its fastest form (strings instead of lists, the year without month and day). It reads more fields:
authors, affiliations, the PMIDs of references, chemicals, keywords, grants, the journal's other names. Of a
section it returns the label or the category, not both.
"""

import gzip
import json
import tempfile
import tomllib
from functools import partial
from pathlib import Path

import pubmed_parser

from benchmarks.common import cpu_seconds, record
from meditron.sources.medline import read
from meditron.store.fetch import fetch

ROUNDS = 3  # the peer takes half a minute each
BUFFER = 1 << 20  # bytes; the same for both writers


def main() -> None:
    recipe = tomllib.loads(Path("recipes/quickstart.toml").read_text(encoding="utf-8"))
    file = fetch(recipe["corpus"]["sources"]["pubmed"]["from"])
    citations, size = _measure(file)
    with tempfile.TemporaryDirectory() as folder:
        ours = partial(_ours, file, Path(folder) / "ours.jsonl")
        peer = partial(_peer, file, Path(folder) / "peer.jsonl")
        rounds = [(cpu_seconds(ours), cpu_seconds(peer)) for _ in range(ROUNDS)]
    our_seconds, peer_seconds = map(min, zip(*rounds, strict=True))
    record(
        "corpus",
        "medline-vs-pubmed_parser",
        ours=size / 1e6 / our_seconds,
        peer=size / 1e6 / peer_seconds,
        unit="MB of XML a CPU second",
        bar=15,
        peer_name=f"pubmed_parser 0.5.1, {citations:,} citations",
        citations_per_second=[citations / our_seconds, citations / peer_seconds],
        ratios=[peer_round / our_round for our_round, peer_round in rounds],
    )


def _measure(packed: Path) -> tuple[int, int]:
    """Return the number of citations in a file and its decompressed size in bytes."""
    with gzip.open(packed) as file:
        data = file.read()
    return data.count(b"</PubmedArticle>"), len(data)


def _ours(file: Path, out: Path) -> None:
    with out.open("wb", buffering=BUFFER) as lines:
        lines.writelines(document.to_json_line() for document in read(file))


def _peer(file: Path, out: Path) -> None:
    with out.open("w", buffering=BUFFER, encoding="utf-8") as lines:
        for article in pubmed_parser.parse_medline_xml(str(file)):
            lines.write(json.dumps(article, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
