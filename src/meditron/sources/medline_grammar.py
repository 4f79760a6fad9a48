"""One regular expression for a whole citation as NLM writes it; every match is well-formed XML.

Each part of the expression is an element with both of its tags, attributes of different names in quotes,
and text without `<`, in the order of NLM's DTD. A match therefore proves that the citation's tags are
well-formed, nested and closed, and that each element that is read occurs once, in its place.
`medline_text.legal` checks the characters and references of the same bytes, and `text_of` the nesting of
markup in a text. Other XML (comments, CDATA, prefixes, other quotes, other white space in tags) does not
match, and neither does damage: lxml then reads the citation, or refuses it.

Every quantifier is possessive and the next tag decides each choice, so matching takes linear time. No group
is inside a repeated part: CPython 3.11 leaves its marks wrong if a possessive repetition fails there.
"""

import re

__all__ = ["ARTICLE_END", "CITATION"]

ARTICLE_END = b"</PubmedArticle>"

_TEXT = rb"[^<]*+"
_GAP = _TEXT  # between tags: white space, or text that is not read
_BLANK = rb"[ \t\r\n]*+"
# For texts that are read: text_of checks the nesting.
_MARKED_TEXT = rb"[^<]*+(?:</?+(?:[biu]|su[bp])>[^<]*+)*+"
_INSTRUCTION = rb"<\?(?:pmcsd|nihms)(?: [a-z0-9 ]*+)?+\?>"  # NLM leaves these between references
_VALUE = rb'"[^"<>&\n\t\r]*+"'


def _tag(name: bytes, *attributes: bytes) -> bytes:
    """Return a start tag with any of the attributes, in this order; two may come in either order."""
    optional = [rb" %s=%s" % (attribute, _VALUE) for attribute in attributes]
    if len(optional) == 2:
        return rb"<%s(?:%s(?:%s)?+|%s(?:%s)?+)?+>" % (name, *optional, *reversed(optional))
    return rb"<%s%s>" % (name, b"".join(b"(?:%s)?+" % attribute for attribute in optional))


def _paired(element: bytes, more: bytes = b"") -> bytes:
    """Return text with markup that closes before other markup begins, and the end tag of its element.

    The first branch matches nearly every text.
    """
    pair = b"|".join(rb"<%s>%s</%s>" % (name, _TEXT, name) for name in (b"i", b"b", b"u", b"sub", b"sup"))
    return rb"%s(?:</%s>|(?:(?:%s%s)%s)++</%s>)" % (_TEXT, element, pair, more, _TEXT, element)


def _required(name: bytes, attribute: bytes, value: bytes) -> bytes:
    """Return a start tag with one attribute that the DTD requires: faster than an optional one."""
    return rb'<%s %s="%s">' % (name, attribute, value)


def _leaf(name: bytes, *attributes: bytes, text: bytes = _TEXT) -> bytes:
    return rb"%s%s</%s>" % (_tag(name, *attributes), text, name)


def _inner(name: bytes, *parts: bytes, attributes: tuple[bytes, ...] = ()) -> bytes:
    return rb"%s%s%s</%s>" % (_tag(name, *attributes), _GAP, b"".join(parts), name)


def _once(part: bytes) -> bytes:
    return part + _GAP


def _maybe(part: bytes) -> bytes:
    return rb"(?:%s%s)?+" % (part, _GAP)


def _any(part: bytes) -> bytes:
    return rb"(?:%s%s)*+" % (part, _GAP)


def _leaves(*names: bytes) -> bytes:
    """Return elements without attributes, each at most once, in this order."""
    return b"".join(_maybe(_leaf(name)) for name in names)


def _read(group: str, part: bytes) -> bytes:
    return b"(?P<%s>%s)" % (group.encode(), part)


def _date(name: bytes, *attributes: bytes) -> bytes:
    day = b"".join(_once(_leaf(part)) for part in (b"Year", b"Month", b"Day"))
    time = b"".join(_once(_leaf(part)) for part in (b"Hour", b"Minute"))
    return _inner(name, day, rb"(?:%s)?+" % time, attributes=attributes)


_IDENTIFIER = _any(_leaf(b"Identifier", b"Source"))
_AFFILIATIONS = _any(
    rb"<AffiliationInfo>%s%s(?:</AffiliationInfo>|%s</AffiliationInfo>)"
    % (_GAP, _once(_leaf(b"Affiliation")), _IDENTIFIER)
)
_NAME = b"".join(_once(_leaf(part)) for part in (b"LastName", b"ForeName", b"Initials"))
_PERSON = (
    _leaves(b"LastName", b"ForeName", b"Initials", b"Suffix", b"CollectiveName")
    + _IDENTIFIER
    + _maybe(_leaf(b"Affiliation"))
    + _AFFILIATIONS
)
# The first branch matches nearly every author, and is faster.
_AUTHOR = rb"(?:%s%s%s%s</Author>|%s)" % (
    _required(b"Author", b"ValidYN", b"[YN]"),
    _GAP,
    _NAME,
    _AFFILIATIONS,
    _inner(b"Author", _PERSON, attributes=(b"ValidYN", b"EqualContrib")),
)
_PUBLISHED = _read("date", rb"<Year>%s</Year>|<MedlineDate>%s</MedlineDate>" % (_TEXT, _TEXT))
_ISSUE = _inner(
    b"JournalIssue",
    _leaves(b"Volume", b"Issue"),
    _once(_inner(b"PubDate", _maybe(_PUBLISHED), _leaves(b"Season", b"Month", b"Day"))),
    attributes=(b"CitedMedium",),
)
_JOURNAL = _inner(
    b"Journal",
    _maybe(_leaf(b"ISSN", b"IssnType")),
    _once(_ISSUE),
    _maybe(b"<Title>" + _read("journal", _TEXT) + b"</Title>"),
    _leaves(b"ISOAbbreviation"),
)
_SECTION = (
    rb'<AbstractText(?: Label="[^"<>\n\t\r]*+")?+(?: NlmCategory=%s)?+' % _VALUE
    + rb"(?:>%s</AbstractText>|/>)" % _MARKED_TEXT
)
_SECTIONS = rb"(?:%s%s)*+" % (_SECTION, _BLANK)
_ABSTRACT = _inner(
    b"Abstract",
    _read("sections", _SECTIONS),
    _maybe(b"<CopyrightInformation>" + _paired(b"CopyrightInformation")),
)
_OTHER_ABSTRACT = _inner(
    b"OtherAbstract",
    _SECTIONS,
    _maybe(b"<CopyrightInformation>" + _paired(b"CopyrightInformation")),
    attributes=(b"Type", b"Language"),
)
_AUTHORS = _inner(
    b"AuthorList",
    _any(_AUTHOR),
    attributes=(b"CompleteYN", b"Type"),
)
_DATA_BANKS = _inner(
    b"DataBankList",
    _any(
        _inner(
            b"DataBank",
            _leaves(b"DataBankName"),
            _maybe(_inner(b"AccessionNumberList", _any(_leaf(b"AccessionNumber")))),
        )
    ),
    attributes=(b"CompleteYN",),
)
_GRANTS = _inner(
    b"GrantList",
    _any(_inner(b"Grant", _leaves(b"GrantID", b"Acronym", b"Agency", b"Country"), _maybe(b"<Country/>"))),
    attributes=(b"CompleteYN",),
)
_ARTICLE = _inner(
    b"Article",
    _once(_JOURNAL),
    _once(rb"<ArticleTitle(?:/>|>%s</ArticleTitle>)" % _read("title", _MARKED_TEXT)),
    _maybe(_inner(b"Pagination", _leaves(b"StartPage", b"EndPage", b"MedlinePgn"), _maybe(b"<MedlinePgn/>"))),
    _read("locations", _any(_leaf(b"ELocationID", b"EIdType", b"ValidYN"))),
    _maybe(_ABSTRACT),
    _maybe(_AUTHORS),
    _read("languages", _any(_leaf(b"Language"))),
    _maybe(_DATA_BANKS),
    _maybe(_GRANTS),
    _maybe(_inner(b"PublicationTypeList", _read("types", _any(_leaf(b"PublicationType", b"UI"))))),
    _maybe(b"<VernacularTitle>" + _paired(b"VernacularTitle")),
    _any(_date(b"ArticleDate", b"DateType")),
    attributes=(b"PubModel",),
)
_CHEMICALS = _inner(
    b"ChemicalList",
    _any(_inner(b"Chemical", _leaves(b"RegistryNumber"), _maybe(_leaf(b"NameOfSubstance", b"UI")))),
)
_CORRECTION = _inner(
    b"CommentsCorrections",
    _leaves(b"RefSource"),
    _maybe(_leaf(b"PMID", b"Version")),
    _leaves(b"Note"),
    attributes=(b"RefType",),
)
_HEADING = _inner(
    b"MeshHeading",
    _once(
        rb"<DescriptorName UI=%s MajorTopicYN=%s(?: Type=%s)?+>%s</DescriptorName>"
        % (_VALUE, _VALUE, _VALUE, _TEXT)
    ),
    _any(_leaf(b"QualifierName", b"UI", b"MajorTopicYN")),
)
_INVESTIGATOR = _inner(b"Investigator", _PERSON, attributes=(b"ValidYN",))
_CITATION = _inner(
    b"MedlineCitation",
    _once(b'<PMID Version="(?P<version>[0-9]{1,9}+)">(?P<pmid>[0-9]{1,12}+)</PMID>'),
    _maybe(_date(b"DateCreated")),
    _maybe(_date(b"DateCompleted")),
    _maybe(_date(b"DateRevised")),
    _once(_ARTICLE),
    _maybe(
        _inner(
            b"MedlineJournalInfo",
            _leaves(b"Country"),
            _maybe(b"<Country/>"),
            _leaves(b"MedlineTA", b"NlmUniqueID", b"ISSNLinking"),
        )
    ),
    _maybe(_CHEMICALS),
    _maybe(_inner(b"SupplMeshList", _any(_leaf(b"SupplMeshName", b"Type", b"UI")))),
    _any(_leaf(b"CitationSubset")),
    _maybe(_read("corrections", _inner(b"CommentsCorrectionsList", _any(_CORRECTION)))),
    _maybe(_inner(b"GeneSymbolList", _any(_leaf(b"GeneSymbol")))),
    _maybe(_inner(b"MeshHeadingList", _read("mesh", _any(_HEADING)))),
    _leaves(b"NumberOfReferences"),
    _maybe(
        _inner(
            b"PersonalNameSubjectList",
            _any(_inner(b"PersonalNameSubject", _leaves(b"LastName", b"ForeName", b"Initials", b"Suffix"))),
        )
    ),
    _any(_leaf(b"OtherID", b"Source")),
    _read("others", rb"(?:%s%s)*+" % (_OTHER_ABSTRACT, _BLANK)),
    _any(
        _inner(
            b"KeywordList",
            _any(_required(b"Keyword", b"MajorTopicYN", b"[YN]") + _paired(b"Keyword")),
            attributes=(b"Owner",),
        )
    ),
    _maybe(b"<CoiStatement>" + _paired(b"CoiStatement")),
    _any(_leaf(b"SpaceFlightMission")),
    _maybe(_inner(b"InvestigatorList", _any(_INVESTIGATOR))),
    _any(_leaf(b"GeneralNote", b"Owner")),
    attributes=(b"Status", b"IndexingMethod", b"Owner"),
)
_IDS = _any(_required(b"ArticleId", b"IdType", b"[a-z]++") + _TEXT + b"</ArticleId>")
_REFERENCE = _inner(
    b"Reference",
    _once(b"<Citation>" + _paired(b"Citation", b"|" + _INSTRUCTION)),
    _maybe(_inner(b"ArticleIdList", _IDS)),
)
_EVENT = (
    _required(b"PubMedPubDate", b"PubStatus", b"[a-z-]++") + _date(b"PubMedPubDate")[len("<PubMedPubDate>") :]
)
_DATA = _inner(
    b"PubmedData",
    _maybe(_inner(b"History", _any(_EVENT))),
    _leaves(b"PublicationStatus"),
    _maybe(_inner(b"ArticleIdList", _read("identifiers", _IDS))),
    _any(
        _inner(
            b"ReferenceList",
            _leaves(b"Title"),
            _any(_REFERENCE),
            _any(_inner(b"ReferenceList", _leaves(b"Title"), _any(_REFERENCE))),
        )
    ),
    _any(_INSTRUCTION),
)
CITATION = re.compile(_BLANK + _inner(b"PubmedArticle", _once(_CITATION), _maybe(_DATA)))
"""Its groups are the arguments of `medline_citation.scan`, in their order."""
