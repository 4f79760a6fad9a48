"""The corpus room against its peers, in CPU seconds of one core. `make bench ONLY=corpus`.

`medline-vs-pubmed_parser`: every tenth citation of a real daily update file, gzip in, JSON lines on disk out;
the first thousands alone are longer than its rest, and would flatter us. Ours writes the fields that
`meditron parse` prints. pubmed_parser is called as its own example calls it, with the defaults, its quickest
form (strings instead of lists, the year alone), and always reads more: authors, affiliations, the PMIDs of
references, chemicals, grants; of a section it gives the label or the category, not both.
"""

import gzip
import json
import tempfile
import tomllib
from functools import partial
from pathlib import Path

import pubmed_parser

from benchmarks.common import alternate, cpu_seconds, record
from meditron.sources.medline import read
from meditron.store.fetch import fetch

EVERY = 10  # of 20,788 citations: a round of the peer takes some seconds with these
BUFFER = 1 << 20  # for either writer


def main() -> None:
    recipe = tomllib.loads(Path("recipes/quickstart.toml").read_text(encoding="utf-8"))
    whole = fetch(recipe["corpus"]["sources"]["pubmed"]["from"])
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.xml.gz"
        citations, size = _slice(whole, part)
        ours, peer = alternate(
            partial(cpu_seconds, partial(_ours, part, Path(folder) / "ours.jsonl")),
            partial(cpu_seconds, partial(_peer, part, Path(folder) / "peer.jsonl")),
        )
    record(
        "corpus",
        "medline-vs-pubmed_parser",
        ours=size / 1e6 / ours,
        peer=size / 1e6 / peer,
        unit="MB of XML a CPU second",
        bar=15,
        peer_name=f"pubmed_parser 0.5.1, every {EVERY}th of 20,788 citations",
        citations_per_second=[citations / ours, citations / peer],
    )


def _slice(whole: Path, part: Path) -> tuple[int, int]:
    """Write every tenth citation as a file of its own: how many these are, and its bytes unpacked."""
    end = b"</PubmedArticle>"
    with gzip.open(whole) as file:
        first, *others = file.read().split(end)
    taken = [first, *others[EVERY - 1 : -1 : EVERY]]
    data = end.join([*taken, b"</PubmedArticleSet>"])
    part.write_bytes(gzip.compress(data, 6, mtime=0))
    return len(taken), len(data)


def _ours(part: Path, out: Path) -> None:
    with out.open("wb", buffering=BUFFER) as file:
        file.writelines(document.to_line() for document in read(part))


def _peer(part: Path, out: Path) -> None:
    with out.open("w", buffering=BUFFER, encoding="utf-8") as file:
        for article in pubmed_parser.parse_medline_xml(str(part)):
            file.write(json.dumps(article, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
