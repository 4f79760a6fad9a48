"""MEDLINE against lxml on damaged and oddly spelled citations: the same documents, or a refusal by both.

`MEDITRON_MUTATIONS=20000 pytest tests/sources/test_medline_mutations.py` mutates that many times the inline
citations, and as often those of a daily update file (some minutes).
"""

import gzip
import os
import re
from pathlib import Path
from random import Random

import pytest

from meditron.sources.medline_grammar import CITATION

from .conftest import citation
from .mutations import mutated, ours, theirs

MUTATIONS = int(os.environ.get("MEDITRON_MUTATIONS", "1000"))

FULL = """<PubmedArticle>
  <MedlineCitation Status="MEDLINE" IndexingMethod="Automated" Owner="NLM">
    <PMID Version="1">NUMBER</PMID>
    <DateRevised>
      <Year>2021</Year>
      <Month>06</Month>
      <Day>07</Day>
    </DateRevised>
    <Article PubModel="Print-Electronic">
      <Journal>
        <ISSN IssnType="Print">0960-9822</ISSN>
        <JournalIssue CitedMedium="Internet">
          <Volume>10</Volume>
          <PubDate>
            <MedlineDate>1998 Dec-1999 Jan</MedlineDate>
          </PubDate>
        </JournalIssue>
        <Title>Journal of Cases &amp; Notes</Title>
        <ISOAbbreviation>J Cases</ISOAbbreviation>
      </Journal>
      <ArticleTitle>[10<sup>9</sup> of CO<sub>2</sub> &lt; <i>x</i>].</ArticleTitle>
      <Pagination>
        <MedlinePgn>1-2</MedlinePgn>
      </Pagination>
      <ELocationID EIdType="pii" ValidYN="Y">S1</ELocationID>
      <ELocationID EIdType="doi" ValidYN="Y">10.1/place</ELocationID>
      <Abstract>
        <AbstractText Label="AIM &amp; SCOPE" NlmCategory="METHODS">
A <b>b</b>\u00a0c &amp; 1 &gt; 2\u2009%.</AbstractText>
        <AbstractText Label="EMPTY"/>
        <AbstractText>V<sub>max</sub> of CD44<sup>low</sup>CD62L, T<sub><i>n</i></sub>  é.</AbstractText>
        <CopyrightInformation>© <i>x</i></CopyrightInformation>
      </Abstract>
      <AuthorList CompleteYN="Y">
        <Author ValidYN="Y">
          <LastName>Müller</LastName>
          <ForeName>B C</ForeName>
          <Initials>BC</Initials>
          <AffiliationInfo>
            <Affiliation>Dept, X &amp; Y.</Affiliation>
          </AffiliationInfo>
        </Author>
        <Author ValidYN="Y">
          <CollectiveName>Group</CollectiveName>
        </Author>
      </AuthorList>
      <Language>ger</Language>
      <Language>eng</Language>
      <PublicationTypeList>
        <PublicationType UI="D016428">Journal Article</PublicationType>
        <PublicationType UI="D016454">Review</PublicationType>
      </PublicationTypeList>
      <VernacularTitle>Titel</VernacularTitle>
      <ArticleDate DateType="Electronic">
        <Year>1999</Year>
        <Month>01</Month>
        <Day>02</Day>
      </ArticleDate>
    </Article>
    <MedlineJournalInfo>
      <Country>England</Country>
      <MedlineTA>J Cases</MedlineTA>
      <NlmUniqueID>1</NlmUniqueID>
    </MedlineJournalInfo>
    <CitationSubset>IM</CitationSubset>
    <CommentsCorrectionsList>
      <CommentsCorrections RefType="ErratumIn">
        <RefSource>J Cases. 2000</RefSource>
        <PMID Version="1">77</PMID>
      </CommentsCorrections>
    </CommentsCorrectionsList>
    <MeshHeadingList>
      <MeshHeading>
        <DescriptorName UI="D006801" MajorTopicYN="N">Humans</DescriptorName>
        <QualifierName UI="Q000378" MajorTopicYN="Y">metabolism</QualifierName>
      </MeshHeading>
      <MeshHeading>
        <DescriptorName UI="D1" MajorTopicYN="N" Type="Geographic">Bonn</DescriptorName>
      </MeshHeading>
    </MeshHeadingList>
    <OtherAbstract Type="Publisher" Language="ger">
      <AbstractText Label="ZIEL">Größe 10<sup>9</sup>.</AbstractText>
      <CopyrightInformation>y</CopyrightInformation>
    </OtherAbstract>
    <KeywordList Owner="NOTNLM">
      <Keyword MajorTopicYN="N">a<sub>1</sub></Keyword>
    </KeywordList>
  </MedlineCitation>
  <PubmedData>
    <History>
      <PubMedPubDate PubStatus="pubmed">
        <Year>2000</Year>
        <Month>3</Month>
        <Day>8</Day>
        <Hour>9</Hour>
        <Minute>0</Minute>
      </PubMedPubDate>
    </History>
    <PublicationStatus>ppublish</PublicationStatus>
    <ArticleIdList>
      <ArticleId IdType="pubmed">NUMBER</ArticleId>
      <ArticleId IdType="doi">10.1/<i/></ArticleId>
    </ArticleIdList>
    <ReferenceList>
      <Reference>
        <Citation>One CO<sub>2</sub>.<?pmcsd ?></Citation>
        <ArticleIdList>
          <ArticleId IdType="doi">10.1/other</ArticleId>
        </ArticleIdList>
      </Reference>
    </ReferenceList>
  </PubmedData>
</PubmedArticle>""".replace("<i/>", "x")

INLINE = [
    *(FULL.replace("NUMBER", str(number)).encode() for number in (11, 22)),
    citation(33, abstract="<Abstract><AbstractText>One.</AbstractText></Abstract>").encode(),
]


def test_the_grammar_matches_the_inline_citations() -> None:
    assert CITATION.fullmatch(INLINE[0])
    assert CITATION.fullmatch(INLINE[0].replace(b"\n", b"\r\n").replace(b" <", b"\t<"))
    assert CITATION.fullmatch(INLINE[2])


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


@pytest.mark.timeout(3600)
def test_mutations_of_inline_citations(tmp_path: Path) -> None:
    read = sum(check(INLINE, tmp_path / "mutated.xml", seed) for seed in range(MUTATIONS))
    assert 0.1 < read / MUTATIONS < 0.9  # both outcomes occur


@pytest.mark.network
@pytest.mark.timeout(3600)
def test_mutations_of_real_citations(pubmed_xml: Path, tmp_path: Path) -> None:
    with gzip.open(pubmed_xml) as file:
        data = file.read(30 << 20)
    found = re.findall(rb"<PubmedArticle>.*?</PubmedArticle>", data, re.DOTALL)
    citations = [article for article in found if len(article) < 12_000]
    read = sum(check(citations, tmp_path / "mutated.xml", seed) for seed in range(MUTATIONS, 2 * MUTATIONS))
    assert 0.1 < read / MUTATIONS < 0.9
