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


def _balanced_text(element: bytes, more: bytes = b"") -> bytes:
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


def _element(name: bytes, *parts: bytes, attributes: tuple[bytes, ...] = ()) -> bytes:
    return rb"%s%s%s</%s>" % (_tag(name, *attributes), _GAP, b"".join(parts), name)


def _once(part: bytes) -> bytes:
    return part + _GAP


def _optional(part: bytes) -> bytes:
    return rb"(?:%s%s)?+" % (part, _GAP)


def _repeated(part: bytes) -> bytes:
    return rb"(?:%s%s)*+" % (part, _GAP)


def _optional_leaves(*names: bytes) -> bytes:
    """Return elements without attributes, each at most once, in this order."""
    return b"".join(_optional(_leaf(name)) for name in names)


def _group(group: str, part: bytes) -> bytes:
    return b"(?P<%s>%s)" % (group.encode(), part)


def _date(name: bytes, *attributes: bytes) -> bytes:
    day = b"".join(_once(_leaf(part)) for part in (b"Year", b"Month", b"Day"))
    time = b"".join(_once(_leaf(part)) for part in (b"Hour", b"Minute"))
    return _element(name, day, rb"(?:%s)?+" % time, attributes=attributes)


_IDENTIFIER = _repeated(_leaf(b"Identifier", b"Source"))
_AFFILIATIONS = _repeated(
    rb"<AffiliationInfo>%s%s(?:</AffiliationInfo>|%s</AffiliationInfo>)"
    % (_GAP, _once(_leaf(b"Affiliation")), _IDENTIFIER)
)
_NAME = b"".join(_once(_leaf(part)) for part in (b"LastName", b"ForeName", b"Initials"))
_PERSON = (
    _optional_leaves(b"LastName", b"ForeName", b"Initials", b"Suffix", b"CollectiveName")
    + _IDENTIFIER
    + _optional(_leaf(b"Affiliation"))
    + _AFFILIATIONS
)
# The first branch matches nearly every author, and is faster.
_AUTHOR = rb"(?:%s%s%s%s</Author>|%s)" % (
    _required(b"Author", b"ValidYN", b"[YN]"),
    _GAP,
    _NAME,
    _AFFILIATIONS,
    _element(b"Author", _PERSON, attributes=(b"ValidYN", b"EqualContrib")),
)
_PUBLISHED = _group("date", rb"<Year>%s</Year>|<MedlineDate>%s</MedlineDate>" % (_TEXT, _TEXT))
_ISSUE = _element(
    b"JournalIssue",
    _optional_leaves(b"Volume", b"Issue"),
    _once(_element(b"PubDate", _optional(_PUBLISHED), _optional_leaves(b"Season", b"Month", b"Day"))),
    attributes=(b"CitedMedium",),
)
_JOURNAL = _element(
    b"Journal",
    _optional(_leaf(b"ISSN", b"IssnType")),
    _once(_ISSUE),
    _optional(b"<Title>" + _group("journal", _TEXT) + b"</Title>"),
    _optional_leaves(b"ISOAbbreviation"),
)
_SECTION = (
    rb'<AbstractText(?: Label="[^"<>\n\t\r]*+")?+(?: NlmCategory=%s)?+' % _VALUE
    + rb"(?:>%s</AbstractText>|/>)" % _MARKED_TEXT
)
_SECTIONS = rb"(?:%s%s)*+" % (_SECTION, _BLANK)
_ABSTRACT = _element(
    b"Abstract",
    _group("sections", _SECTIONS),
    _optional(b"<CopyrightInformation>" + _balanced_text(b"CopyrightInformation")),
)
_OTHER_ABSTRACT = _element(
    b"OtherAbstract",
    _SECTIONS,
    _optional(b"<CopyrightInformation>" + _balanced_text(b"CopyrightInformation")),
    attributes=(b"Type", b"Language"),
)
_AUTHORS = _element(
    b"AuthorList",
    _repeated(_AUTHOR),
    attributes=(b"CompleteYN", b"Type"),
)
_DATA_BANKS = _element(
    b"DataBankList",
    _repeated(
        _element(
            b"DataBank",
            _optional_leaves(b"DataBankName"),
            _optional(_element(b"AccessionNumberList", _repeated(_leaf(b"AccessionNumber")))),
        )
    ),
    attributes=(b"CompleteYN",),
)
_GRANTS = _element(
    b"GrantList",
    _repeated(
        _element(
            b"Grant",
            _optional_leaves(b"GrantID", b"Acronym", b"Agency", b"Country"),
            _optional(b"<Country/>"),
        )
    ),
    attributes=(b"CompleteYN",),
)
_ARTICLE = _element(
    b"Article",
    _once(_JOURNAL),
    _once(rb"<ArticleTitle(?:/>|>%s</ArticleTitle>)" % _group("title", _MARKED_TEXT)),
    _optional(
        _element(
            b"Pagination",
            _optional_leaves(b"StartPage", b"EndPage", b"MedlinePgn"),
            _optional(b"<MedlinePgn/>"),
        )
    ),
    _group("locations", _repeated(_leaf(b"ELocationID", b"EIdType", b"ValidYN"))),
    _optional(_ABSTRACT),
    _optional(_AUTHORS),
    _group("languages", _repeated(_leaf(b"Language"))),
    _optional(_DATA_BANKS),
    _optional(_GRANTS),
    _optional(_element(b"PublicationTypeList", _group("types", _repeated(_leaf(b"PublicationType", b"UI"))))),
    _optional(b"<VernacularTitle>" + _balanced_text(b"VernacularTitle")),
    _repeated(_date(b"ArticleDate", b"DateType")),
    attributes=(b"PubModel",),
)
_CHEMICALS = _element(
    b"ChemicalList",
    _repeated(
        _element(
            b"Chemical", _optional_leaves(b"RegistryNumber"), _optional(_leaf(b"NameOfSubstance", b"UI"))
        )
    ),
)
_CORRECTION = _element(
    b"CommentsCorrections",
    _optional_leaves(b"RefSource"),
    _optional(_leaf(b"PMID", b"Version")),
    _optional_leaves(b"Note"),
    attributes=(b"RefType",),
)
_HEADING = _element(
    b"MeshHeading",
    _once(
        rb"<DescriptorName UI=%s MajorTopicYN=%s(?: Type=%s)?+>%s</DescriptorName>"
        % (_VALUE, _VALUE, _VALUE, _TEXT)
    ),
    _repeated(_leaf(b"QualifierName", b"UI", b"MajorTopicYN")),
)
_INVESTIGATOR = _element(b"Investigator", _PERSON, attributes=(b"ValidYN",))
_CITATION = _element(
    b"MedlineCitation",
    _once(b'<PMID Version="(?P<version>[0-9]{1,9}+)">(?P<pmid>[0-9]{1,12}+)</PMID>'),
    _optional(_date(b"DateCreated")),
    _optional(_date(b"DateCompleted")),
    _optional(_date(b"DateRevised")),
    _once(_ARTICLE),
    _optional(
        _element(
            b"MedlineJournalInfo",
            _optional_leaves(b"Country"),
            _optional(b"<Country/>"),
            _optional_leaves(b"MedlineTA", b"NlmUniqueID", b"ISSNLinking"),
        )
    ),
    _optional(_CHEMICALS),
    _optional(_element(b"SupplMeshList", _repeated(_leaf(b"SupplMeshName", b"Type", b"UI")))),
    _repeated(_leaf(b"CitationSubset")),
    _optional(_group("corrections", _element(b"CommentsCorrectionsList", _repeated(_CORRECTION)))),
    _optional(_element(b"GeneSymbolList", _repeated(_leaf(b"GeneSymbol")))),
    _optional(_element(b"MeshHeadingList", _group("mesh", _repeated(_HEADING)))),
    _optional_leaves(b"NumberOfReferences"),
    _optional(
        _element(
            b"PersonalNameSubjectList",
            _repeated(
                _element(
                    b"PersonalNameSubject", _optional_leaves(b"LastName", b"ForeName", b"Initials", b"Suffix")
                )
            ),
        )
    ),
    _repeated(_leaf(b"OtherID", b"Source")),
    _group("others", rb"(?:%s%s)*+" % (_OTHER_ABSTRACT, _BLANK)),
    _repeated(
        _element(
            b"KeywordList",
            _repeated(_required(b"Keyword", b"MajorTopicYN", b"[YN]") + _balanced_text(b"Keyword")),
            attributes=(b"Owner",),
        )
    ),
    _optional(b"<CoiStatement>" + _balanced_text(b"CoiStatement")),
    _repeated(_leaf(b"SpaceFlightMission")),
    _optional(_element(b"InvestigatorList", _repeated(_INVESTIGATOR))),
    _repeated(_leaf(b"GeneralNote", b"Owner")),
    attributes=(b"Status", b"IndexingMethod", b"Owner"),
)
_IDS = _repeated(_required(b"ArticleId", b"IdType", b"[a-z]++") + _TEXT + b"</ArticleId>")
_REFERENCE = _element(
    b"Reference",
    _once(b"<Citation>" + _balanced_text(b"Citation", b"|" + _INSTRUCTION)),
    _optional(_element(b"ArticleIdList", _IDS)),
)
_EVENT = (
    _required(b"PubMedPubDate", b"PubStatus", b"[a-z-]++") + _date(b"PubMedPubDate")[len("<PubMedPubDate>") :]
)
_DATA = _element(
    b"PubmedData",
    _optional(_element(b"History", _repeated(_EVENT))),
    _optional_leaves(b"PublicationStatus"),
    _optional(_element(b"ArticleIdList", _group("identifiers", _IDS))),
    _repeated(
        _element(
            b"ReferenceList",
            _optional_leaves(b"Title"),
            _repeated(_REFERENCE),
            _repeated(_element(b"ReferenceList", _optional_leaves(b"Title"), _repeated(_REFERENCE))),
        )
    ),
    _repeated(_INSTRUCTION),
)
CITATION = re.compile(_BLANK + _element(b"PubmedArticle", _once(_CITATION), _optional(_DATA)))
"""Its groups are the arguments of `medline_citation.scan`, in their order."""
