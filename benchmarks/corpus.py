"""The corpus room against its peers, in CPU seconds of one core. `make bench ONLY=corpus`.

`medline-vs-pubmed_parser`: a real daily update file, whole, gzip in, JSON lines on disk out; of either side
the best of three alternating rounds, and beside it the ratio of each round. Ours writes the fields
that `meditron parse` prints. pubmed_parser is called as its own example calls it, with the defaults, its
quickest form (strings instead of lists, the year alone), and always reads more: authors, affiliations, the
PMIDs of references, chemicals, keywords, grants, the journal's other names. Of a section it gives the label
or the category, not both.
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

ROUNDS = 3  # of the peer's half minute each
BUFFER = 1 << 20  # for either writer


def main() -> None:
    recipe = tomllib.loads(Path("recipes/quickstart.toml").read_text(encoding="utf-8"))
    file = fetch(recipe["corpus"]["sources"]["pubmed"]["from"])
    citations, size = _measure(file)
    with tempfile.TemporaryDirectory() as folder:
        ours = partial(_ours, file, Path(folder) / "ours.jsonl")
        peer = partial(_peer, file, Path(folder) / "peer.jsonl")
        rounds = [(cpu_seconds(ours), cpu_seconds(peer)) for _ in range(ROUNDS)]
    mine, theirs = map(min, zip(*rounds, strict=True))
    record(
        "corpus",
        "medline-vs-pubmed_parser",
        ours=size / 1e6 / mine,
        peer=size / 1e6 / theirs,
        unit="MB of XML a CPU second",
        bar=15,
        peer_name=f"pubmed_parser 0.5.1, {citations:,} citations",
        citations_per_second=[citations / mine, citations / theirs],
        ratios=[slower / faster for faster, slower in rounds],
    )


def _measure(packed: Path) -> tuple[int, int]:
    """How many citations a file holds, and its bytes unpacked."""
    with gzip.open(packed) as file:
        data = file.read()
    return data.count(b"</PubmedArticle>"), len(data)


def _ours(file: Path, out: Path) -> None:
    with out.open("wb", buffering=BUFFER) as lines:
        lines.writelines(document.to_line() for document in read(file))


def _peer(file: Path, out: Path) -> None:
    with out.open("w", buffering=BUFFER, encoding="utf-8") as lines:
        for article in pubmed_parser.parse_medline_xml(str(file)):
            lines.write(json.dumps(article, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
