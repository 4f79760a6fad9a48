"""MEDLINE against lxml on damaged and oddly spelled citations: the same documents, or a refusal by both.

`MEDITRON_MUTATIONS=20000 pytest tests/sources/test_medline_mutations.py` runs as many (about two minutes).
"""

import gzip
import os
import re
from pathlib import Path
from random import Random

import pytest

from .conftest import citation
from .mutations import mutated, ours, theirs

MUTATIONS = int(os.environ.get("MEDITRON_MUTATIONS", "1500"))

INLINE = [
    citation(
        number,
        title="10<sup>9</sup> of CO<sub>2</sub> &lt; <i>x</i>",
        abstract='<Abstract>\n<AbstractText Label="AIM" NlmCategory="METHODS">A <b>b</b>\u00a0c &amp; 1 &gt; 2.</AbstractText>\n'
        "<AbstractText>Second V<sub>max</sub>.</AbstractText>\n<CopyrightInformation>© x</CopyrightInformation>\n</Abstract>\n"
        '<AuthorList CompleteYN="Y">\n<Author ValidYN="Y">\n<LastName>A</LastName>\n<ForeName>B</ForeName>\n'
        "<Initials>B</Initials>\n</Author>\n</AuthorList>",
        more="\n<MeshHeadingList>\n<MeshHeading>\n<DescriptorName UI='D1' MajorTopicYN='N'>Humans</DescriptorName>\n"
        "</MeshHeading>\n</MeshHeadingList>\n".replace("'", '"'),
    ).encode()
    for number in (11, 22, 33)
]


def check(citations: list[bytes], path: Path, seed: int) -> bool:
    """Whether both read the same of a mutation; whether it was read at all."""
    random = Random(seed)
    data = mutated(random.sample(citations, 3), random)
    path.write_bytes(data)
    mine, lxmls = ours(path), theirs(data)
    if mine != lxmls:
        path.with_name(f"seed-{seed}.xml").write_bytes(data)
    assert mine == lxmls, f"seed {seed}, kept beside {path}"
    return mine is not None


def test_mutations_of_inline_citations(tmp_path: Path) -> None:
    read = sum(check(INLINE, tmp_path / "mutated.xml", seed) for seed in range(MUTATIONS))
    assert 0.1 < read / MUTATIONS < 0.9  # both sides of the question are asked


@pytest.mark.network
def test_mutations_of_real_citations(pubmed_xml: Path, tmp_path: Path) -> None:
    with gzip.open(pubmed_xml) as file:
        data = file.read(30 << 20)
    found = re.findall(rb"<PubmedArticle>.*?</PubmedArticle>", data, re.DOTALL)
    citations = [article for article in found if len(article) < 12_000]
    read = sum(check(citations, tmp_path / "mutated.xml", seed) for seed in range(MUTATIONS, 2 * MUTATIONS))
    assert 0.1 < read / MUTATIONS < 0.9
