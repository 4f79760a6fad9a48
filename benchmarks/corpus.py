"""The corpus room against its peers, in CPU seconds of one core. `make bench ONLY=corpus`.

`medline-vs-pubmed_parser`: the first citations of a real daily update file, gzip in, JSON lines on disk out.
Ours writes the fields that `meditron parse` prints; pubmed_parser, called as its own example calls it, writes
what it yields: more (authors, affiliations, references, chemicals), and labels or categories but not both.
"""

import gzip
import json
import tempfile
import tomllib
from functools import partial
from itertools import islice
from pathlib import Path

import pubmed_parser

from benchmarks.common import alternate, cpu_seconds, record
from meditron.sources.medline import read
from meditron.store.fetch import fetch

CITATIONS = 5_000  # of 20,788: a round of the peer takes some seconds with these


def main() -> None:
    recipe = tomllib.loads(Path("recipes/quickstart.toml").read_text(encoding="utf-8"))
    whole = fetch(recipe["corpus"]["sources"]["pubmed"]["from"])
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.xml.gz"
        megabytes = _slice(whole, part, CITATIONS) / 1e6
        ours, peer = alternate(
            partial(cpu_seconds, partial(_ours, part, Path(folder) / "ours.jsonl")),
            partial(cpu_seconds, partial(_peer, part, Path(folder) / "peer.jsonl")),
        )
    record(
        "corpus",
        "medline-vs-pubmed_parser",
        ours=megabytes / ours,
        peer=megabytes / peer,
        unit="MB of XML a CPU second",
        bar=15,
        peer_name=f"pubmed_parser 0.5.1, first {CITATIONS:,} citations",
        citations_per_second=[CITATIONS / ours, CITATIONS / peer],
    )


def _slice(whole: Path, part: Path, citations: int) -> int:
    """The file up to its n-th citation, as XML that ends well; its length unpacked."""
    end = b"</PubmedArticle>"
    with gzip.open(whole) as file:
        pieces = list(islice(iter(lambda: file.read(1 << 20), b""), 120))
    data = end.join(b"".join(pieces).split(end, citations)[:citations]) + end + b"</PubmedArticleSet>"
    part.write_bytes(gzip.compress(data, 6, mtime=0))
    return len(data)


def _ours(part: Path, out: Path) -> None:
    with out.open("wb") as file:
        file.writelines(document.to_line() for document in read(part))


def _peer(part: Path, out: Path) -> None:
    with out.open("w", encoding="utf-8") as file:
        for article in pubmed_parser.parse_medline_xml(str(part)):
            file.write(json.dumps(article, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
