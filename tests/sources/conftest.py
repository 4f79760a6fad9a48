"""What the tests of the sources share: small MEDLINE files, and lxml's own reading of any."""

import gzip
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

Medline = Callable[..., Path]

HEAD = (
    b'<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, '
    b'1st January 2019//EN" "https://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_190101.dtd">\n'
)


def citation(pmid: int = 1, *, title: str = "A title.", abstract: str = "", more: str = "") -> str:
    """A citation as NLM spells it."""
    return f"""
<PubmedArticle><MedlineCitation Status="MEDLINE" Owner="NLM"><PMID Version="1">{pmid}</PMID>
<Article PubModel="Print"><Journal><JournalIssue CitedMedium="Print"><PubDate><Year>2001</Year></PubDate>
</JournalIssue><Title>A Journal</Title></Journal><ArticleTitle>{title}</ArticleTitle>
<ELocationID EIdType="doi" ValidYN="Y">10.1/x</ELocationID>{abstract}<Language>eng</Language>
<PublicationTypeList><PublicationType UI="D016428">Journal Article</PublicationType></PublicationTypeList>
</Article>{more}</MedlineCitation></PubmedArticle>"""


@pytest.fixture
def medline(tmp_path: Path) -> Medline:
    """Write citations to a MEDLINE file."""

    def write(*citations: str, head: bytes = HEAD, packed: bool = False, name: str = "medline.xml") -> Path:
        path = tmp_path / name
        body = "".join(citations).encode()
        data = head + b"<PubmedArticleSet>" + body + b"</PubmedArticleSet>\n"
        path.write_bytes(gzip.compress(data) if packed else data)
        return path

    return write


def lxml_reading(path: Path) -> Iterator[dict[str, Any]]:
    """Every PubmedArticle of a file by lxml alone, in the form of `Document.to_json`."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for _, article in etree.iterparse(file, tag="PubmedArticle", remove_comments=True, remove_pis=True):
            yield _fields(article)
            article.clear()
            while article.getprevious() is not None:
                del article.getparent()[0]


xpath = lru_cache(etree.XPath)


def _fields(article: Any) -> dict[str, Any]:
    def text(element: Any) -> str:
        content = "".join(element.itertext()) if len(element) else element.text or ""
        return " ".join(content.split())

    def texts(path: str) -> list[str]:
        return [text(element) for element in xpath(path)(article)]

    pmid = xpath("MedlineCitation/PMID")(article)[0]
    date = "MedlineCitation/Article/Journal/JournalIssue/PubDate"
    years = texts(f"{date}/Year") or [
        word[:4] for word in " ".join(texts(f"{date}/MedlineDate")).split() if word[:4].isdigit()
    ]
    types = texts("MedlineCitation/Article/PublicationTypeList/PublicationType")
    dois = texts("PubmedData/ArticleIdList/ArticleId[@IdType='doi']")
    dois += texts("MedlineCitation/Article/ELocationID[@EIdType='doi']")
    notices = xpath("MedlineCitation/CommentsCorrectionsList/*[@RefType='RetractionIn']")(article)
    return {
        "id": f"pubmed:{text(pmid)}",
        "source": "pubmed",
        "title": "".join(texts("MedlineCitation/Article/ArticleTitle")),
        "sections": [
            {"label": part.get("Label"), "category": part.get("NlmCategory"), "text": text(part)}
            for part in xpath("MedlineCitation/Article/Abstract/AbstractText")(article)
        ],
        "language": texts("MedlineCitation/Article/Language")[0],
        "year": int(years[0]) if years else None,
        "meta": {
            "pmid": text(pmid),
            "version": int(pmid.get("Version")),
            "journal": "".join(texts("MedlineCitation/Article/Journal/Title")) or None,
            "publication_types": types,
            "mesh": texts("MedlineCitation/MeshHeadingList/MeshHeading/DescriptorName"),
            "doi": next(filter(None, dois), None),
            "retracted": bool(notices) or "Retracted Publication" in types,
        },
    }
