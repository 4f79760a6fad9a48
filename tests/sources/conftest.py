"""What the tests of the sources share: small MEDLINE files, and lxml's own reading of any."""

import gzip
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from meditron.sources.dates import parse_journal_date
from meditron.sources.mathml import math_text
from meditron.sources.scripts import END, SUB, SUP, render_sup_and_sub_marks

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
            yield fields(article)
            article.clear()
            while article.getprevious() is not None:
                del article.getparent()[0]


xpath = lru_cache(etree.XPath)


def flat(element: Any) -> str:
    """The text of an element as the module promises it, by recursion over lxml's tree."""
    text = element.text or ""
    for child in element:
        name = etree.QName(child).localname
        if name == "math":
            inner = math_text(child)
            text += " " * (text[-1:].isdigit() and inner[:1].isdigit()) + inner
            text += " " * (text[-1:].isdigit() and (child.tail or "")[:1].isdigit())
        else:
            inner = flat(child)
            text += {"sup": SUP + inner + END, "sub": SUB + inner + END}.get(name, inner)
        text += child.tail or ""
    return text


def fields(article: Any) -> dict[str, Any]:
    def text(element: Any) -> str:
        return " ".join(render_sup_and_sub_marks(flat(element)).split())

    def texts(path: str) -> list[str]:
        return [text(element) for element in xpath(path)(article)]

    def sections(path: str, element: Any = article) -> list[dict[str, Any]]:
        parts = xpath(path)(element)
        return [
            {"text": text(part), "label": part.get("Label"), "category": part.get("NlmCategory")}
            for part in parts
        ]

    pmid = xpath("MedlineCitation[1]/PMID")(article)[0]
    root = "MedlineCitation[1]/Article[1]"
    date = f"{root}/Journal/JournalIssue/PubDate"
    dates = [*texts(f"{date}/Year")[:1], *texts(f"{date}/MedlineDate")[:1]]
    years = re.findall("[12][0-9]{3}", next(filter(None, dates), ""))
    parts = [*texts(f"{date}/Season")[:1], *texts(f"{date}/Month")[:1], *texts(f"{date}/Day")[:1]]
    whole = [*dates[:1], *parts] if texts(f"{date}/Year")[:1] != [] and dates[0] else dates[-1:]
    types = texts(f"{root}/PublicationTypeList/PublicationType")
    dois = texts("PubmedData/ArticleIdList/ArticleId[@IdType='doi']")
    dois += texts(f"{root}/ELocationID[@EIdType='doi']")
    notices = xpath(
        "MedlineCitation[1]/CommentsCorrectionsList/CommentsCorrections[@RefType='RetractionIn']"
    )(article)
    title = "".join(texts(f"{root}/ArticleTitle")[:1])
    languages = texts(f"{root}/Language")
    abstract = sections(f"{root}/Abstract/AbstractText")
    english = "eng" in languages or title.startswith("[") or any(part["text"] for part in abstract)
    return {
        "id": f"pubmed:{text(pmid)}",
        "source": "pubmed",
        "title": title,
        "sections": abstract,
        "language": "eng" if english else next(filter(None, languages), None),
        "year": int(years[0]) if years else None,
        "version": int(pmid.get("Version", "1")),
        "retracted": bool(notices) or "Retracted Publication" in types,
        "meta": {
            "pmid": text(pmid),
            "journal": "".join(texts(f"{root}/Journal/Title")[:1]) or None,
            "languages": languages,
            "publication_types": types,
            "mesh": texts("MedlineCitation[1]/MeshHeadingList/MeshHeading/DescriptorName"),
            "doi": next(filter(None, dois), None),
            "date": parse_journal_date(" ".join(filter(None, whole))),
            "other_abstracts": [
                {
                    "language": other.get("Language", "eng"),
                    "type": other.get("Type"),
                    "sections": sections("AbstractText", other),
                }
                for other in xpath("MedlineCitation[1]/OtherAbstract")(article)
            ],
        },
    }
