"""One regular expression for a whole citation as NLM writes it. Every match is well-formed XML.

The expression consists of elements in the order of NLM's DTD. Each is a start tag with quoted attributes of
different names, text without `<`, and the end tag. A match therefore proves that the tags of the citation are
well-formed, nested and closed, and that each element that is read occurs once, in its place. Two checks are
done elsewhere on the same bytes: `medline_text.is_legal_xml` checks characters and references, and
`medline_text.text_of` checks the nesting of markup within a text. Other XML (comments, CDATA, prefixes,
single quotes, other white space in tags) and damaged XML do not match; lxml then reads the citation or raises
an error.

Every quantifier is possessive and the next tag decides every alternative, so matching takes linear time. No
named group is inside a repeated part: in CPython 3.11 its position is wrong if a possessive repetition fails.
"""

import re

__all__ = ["ARTICLE_END", "CITATION"]

ARTICLE_END = b"</PubmedArticle>"

_TEXT = rb"[^<]*+"
_GAP = _TEXT  # white space, or text that is not read, between two tags
_BLANK = rb"[ \t\r\n]*+"
# A text that is read, with inline markup; `text_of` checks that the markup nests.
_MARKED_TEXT = rb"[^<]*+(?:</?+(?:[biu]|su[bp])>[^<]*+)*+"
_INSTRUCTION = (
    rb"<\?(?:pmcsd|nihms)(?: [a-z0-9 ]*+)?+\?>"  # processing instructions in NLM's files, between references
)
_VALUE = rb'"[^"<>&\n\t\r]*+"'


def _start_tag(name: bytes, *attributes: bytes) -> bytes:
    """Return a start tag with optional attributes in this order; two attributes may be in either order."""
    optional = [rb" %s=%s" % (attribute, _VALUE) for attribute in attributes]
    if len(optional) == 2:
        return rb"<%s(?:%s(?:%s)?+|%s(?:%s)?+)?+>" % (name, *optional, *reversed(optional))
    return rb"<%s%s>" % (name, b"".join(b"(?:%s)?+" % attribute for attribute in optional))


def _balanced_text_to_end_tag(element: bytes, more: bytes = b"") -> bytes:
    """Return text with inline markup that does not nest, up to and including the end tag of its element.

    The first alternative, text without markup, matches nearly every text and is fast.
    """
    pair = b"|".join(rb"<%s>%s</%s>" % (name, _TEXT, name) for name in (b"i", b"b", b"u", b"sub", b"sup"))
    return rb"%s(?:</%s>|(?:(?:%s%s)%s)++</%s>)" % (_TEXT, element, pair, more, _TEXT, element)


def _tag_with_required_attribute(name: bytes, attribute: bytes, value: bytes) -> bytes:
    """Return a start tag with one attribute that the DTD requires. It matches faster than an optional one."""
    return rb'<%s %s="%s">' % (name, attribute, value)


def _leaf_element(name: bytes, *attributes: bytes, text: bytes = _TEXT) -> bytes:
    return rb"%s%s</%s>" % (_start_tag(name, *attributes), text, name)


def _element_with_children(name: bytes, *parts: bytes, attributes: tuple[bytes, ...] = ()) -> bytes:
    return rb"%s%s%s</%s>" % (_start_tag(name, *attributes), _GAP, b"".join(parts), name)


def _exactly_once(part: bytes) -> bytes:
    return part + _GAP


def _at_most_once(part: bytes) -> bytes:
    return rb"(?:%s%s)?+" % (part, _GAP)


def _any_number_of(part: bytes) -> bytes:
    return rb"(?:%s%s)*+" % (part, _GAP)


def _optional_leaf_elements(*names: bytes) -> bytes:
    """Return elements without attributes and children, each at most once, in this order."""
    return b"".join(_at_most_once(_leaf_element(name)) for name in names)


def _named_group(group: str, part: bytes) -> bytes:
    return b"(?P<%s>%s)" % (group.encode(), part)


def _date_element(name: bytes, *attributes: bytes) -> bytes:
    day = b"".join(_exactly_once(_leaf_element(part)) for part in (b"Year", b"Month", b"Day"))
    time = b"".join(_exactly_once(_leaf_element(part)) for part in (b"Hour", b"Minute"))
    return _element_with_children(name, day, rb"(?:%s)?+" % time, attributes=attributes)


_IDENTIFIER = _any_number_of(_leaf_element(b"Identifier", b"Source"))
_AFFILIATIONS = _any_number_of(
    rb"<AffiliationInfo>%s%s(?:</AffiliationInfo>|%s</AffiliationInfo>)"
    % (_GAP, _exactly_once(_leaf_element(b"Affiliation")), _IDENTIFIER)
)
_NAME = b"".join(_exactly_once(_leaf_element(part)) for part in (b"LastName", b"ForeName", b"Initials"))
_PERSON = (
    _optional_leaf_elements(b"LastName", b"ForeName", b"Initials", b"Suffix", b"CollectiveName")
    + _IDENTIFIER
    + _at_most_once(_leaf_element(b"Affiliation"))
    + _AFFILIATIONS
)
# The first alternative matches nearly every author and is fast.
_AUTHOR = rb"(?:%s%s%s%s</Author>|%s)" % (
    _tag_with_required_attribute(b"Author", b"ValidYN", b"[YN]"),
    _GAP,
    _NAME,
    _AFFILIATIONS,
    _element_with_children(b"Author", _PERSON, attributes=(b"ValidYN", b"EqualContrib")),
)
_PUBLISHED = _named_group(
    "date",
    _at_most_once(rb"(?:<Year>%s</Year>|<MedlineDate>%s</MedlineDate>)" % (_TEXT, _TEXT))
    + _optional_leaf_elements(b"Season", b"Month", b"Day"),
)
_ISSUE = _element_with_children(
    b"JournalIssue",
    _optional_leaf_elements(b"Volume", b"Issue"),
    _exactly_once(_element_with_children(b"PubDate", _PUBLISHED)),
    attributes=(b"CitedMedium",),
)
_JOURNAL = _element_with_children(
    b"Journal",
    _at_most_once(_leaf_element(b"ISSN", b"IssnType")),
    _exactly_once(_ISSUE),
    _at_most_once(b"<Title>" + _named_group("journal", _TEXT) + b"</Title>"),
    _optional_leaf_elements(b"ISOAbbreviation"),
)
_SECTION = (
    rb'<AbstractText(?: Label="[^"<>\n\t\r]*+")?+(?: NlmCategory=%s)?+' % _VALUE
    + rb"(?:>%s</AbstractText>|/>)" % _MARKED_TEXT
)
_SECTIONS = rb"(?:%s%s)*+" % (_SECTION, _BLANK)
_ABSTRACT = _element_with_children(
    b"Abstract",
    _named_group("sections", _SECTIONS),
    _at_most_once(b"<CopyrightInformation>" + _balanced_text_to_end_tag(b"CopyrightInformation")),
)
_OTHER_ABSTRACT = _element_with_children(
    b"OtherAbstract",
    _SECTIONS,
    _at_most_once(b"<CopyrightInformation>" + _balanced_text_to_end_tag(b"CopyrightInformation")),
    attributes=(b"Type", b"Language"),
)
_AUTHORS = _element_with_children(
    b"AuthorList",
    _any_number_of(_AUTHOR),
    attributes=(b"CompleteYN", b"Type"),
)
_DATA_BANKS = _element_with_children(
    b"DataBankList",
    _any_number_of(
        _element_with_children(
            b"DataBank",
            _optional_leaf_elements(b"DataBankName"),
            _at_most_once(
                _element_with_children(
                    b"AccessionNumberList", _any_number_of(_leaf_element(b"AccessionNumber"))
                )
            ),
        )
    ),
    attributes=(b"CompleteYN",),
)
_GRANTS = _element_with_children(
    b"GrantList",
    _any_number_of(
        _element_with_children(
            b"Grant",
            _optional_leaf_elements(b"GrantID", b"Acronym", b"Agency", b"Country"),
            _at_most_once(b"<Country/>"),
        )
    ),
    attributes=(b"CompleteYN",),
)
_ARTICLE = _element_with_children(
    b"Article",
    _exactly_once(_JOURNAL),
    _exactly_once(rb"<ArticleTitle(?:/>|>%s</ArticleTitle>)" % _named_group("title", _MARKED_TEXT)),
    _at_most_once(
        _element_with_children(
            b"Pagination",
            _optional_leaf_elements(b"StartPage", b"EndPage", b"MedlinePgn"),
            _at_most_once(b"<MedlinePgn/>"),
        )
    ),
    _named_group("locations", _any_number_of(_leaf_element(b"ELocationID", b"EIdType", b"ValidYN"))),
    _at_most_once(_ABSTRACT),
    _at_most_once(_AUTHORS),
    _named_group("languages", _any_number_of(_leaf_element(b"Language"))),
    _at_most_once(_DATA_BANKS),
    _at_most_once(_GRANTS),
    _at_most_once(
        _element_with_children(
            b"PublicationTypeList",
            _named_group("types", _any_number_of(_leaf_element(b"PublicationType", b"UI"))),
        )
    ),
    _at_most_once(b"<VernacularTitle>" + _balanced_text_to_end_tag(b"VernacularTitle")),
    _any_number_of(_date_element(b"ArticleDate", b"DateType")),
    attributes=(b"PubModel",),
)
_CHEMICALS = _element_with_children(
    b"ChemicalList",
    _any_number_of(
        _element_with_children(
            b"Chemical",
            _optional_leaf_elements(b"RegistryNumber"),
            _at_most_once(_leaf_element(b"NameOfSubstance", b"UI")),
        )
    ),
)
_CORRECTION = _element_with_children(
    b"CommentsCorrections",
    _optional_leaf_elements(b"RefSource"),
    _at_most_once(_leaf_element(b"PMID", b"Version")),
    _optional_leaf_elements(b"Note"),
    attributes=(b"RefType",),
)
_HEADING = _element_with_children(
    b"MeshHeading",
    _exactly_once(
        rb"<DescriptorName UI=%s MajorTopicYN=%s(?: Type=%s)?+>%s</DescriptorName>"
        % (_VALUE, _VALUE, _VALUE, _TEXT)
    ),
    _any_number_of(_leaf_element(b"QualifierName", b"UI", b"MajorTopicYN")),
)
_INVESTIGATOR = _element_with_children(b"Investigator", _PERSON, attributes=(b"ValidYN",))
_CITATION = _element_with_children(
    b"MedlineCitation",
    _exactly_once(b'<PMID Version="(?P<version>[0-9]{1,9}+)">(?P<pmid>[0-9]{1,12}+)</PMID>'),
    _at_most_once(_date_element(b"DateCreated")),
    _at_most_once(_date_element(b"DateCompleted")),
    _at_most_once(_date_element(b"DateRevised")),
    _exactly_once(_ARTICLE),
    _at_most_once(
        _element_with_children(
            b"MedlineJournalInfo",
            _optional_leaf_elements(b"Country"),
            _at_most_once(b"<Country/>"),
            _optional_leaf_elements(b"MedlineTA", b"NlmUniqueID", b"ISSNLinking"),
        )
    ),
    _at_most_once(_CHEMICALS),
    _at_most_once(
        _element_with_children(
            b"SupplMeshList", _any_number_of(_leaf_element(b"SupplMeshName", b"Type", b"UI"))
        )
    ),
    _any_number_of(_leaf_element(b"CitationSubset")),
    _at_most_once(
        _named_group(
            "corrections", _element_with_children(b"CommentsCorrectionsList", _any_number_of(_CORRECTION))
        )
    ),
    _at_most_once(_element_with_children(b"GeneSymbolList", _any_number_of(_leaf_element(b"GeneSymbol")))),
    _at_most_once(_element_with_children(b"MeshHeadingList", _named_group("mesh", _any_number_of(_HEADING)))),
    _optional_leaf_elements(b"NumberOfReferences"),
    _at_most_once(
        _element_with_children(
            b"PersonalNameSubjectList",
            _any_number_of(
                _element_with_children(
                    b"PersonalNameSubject",
                    _optional_leaf_elements(b"LastName", b"ForeName", b"Initials", b"Suffix"),
                )
            ),
        )
    ),
    _any_number_of(_leaf_element(b"OtherID", b"Source")),
    _named_group("others", rb"(?:%s%s)*+" % (_OTHER_ABSTRACT, _BLANK)),
    _any_number_of(
        _element_with_children(
            b"KeywordList",
            _any_number_of(
                _tag_with_required_attribute(b"Keyword", b"MajorTopicYN", b"[YN]")
                + _balanced_text_to_end_tag(b"Keyword")
            ),
            attributes=(b"Owner",),
        )
    ),
    _at_most_once(b"<CoiStatement>" + _balanced_text_to_end_tag(b"CoiStatement")),
    _any_number_of(_leaf_element(b"SpaceFlightMission")),
    _at_most_once(_element_with_children(b"InvestigatorList", _any_number_of(_INVESTIGATOR))),
    _any_number_of(_leaf_element(b"GeneralNote", b"Owner")),
    attributes=(b"Status", b"IndexingMethod", b"Owner"),
)
_IDS = _any_number_of(
    _tag_with_required_attribute(b"ArticleId", b"IdType", b"[a-z]++") + _TEXT + b"</ArticleId>"
)
_REFERENCE = _element_with_children(
    b"Reference",
    _exactly_once(b"<Citation>" + _balanced_text_to_end_tag(b"Citation", b"|" + _INSTRUCTION)),
    _at_most_once(_element_with_children(b"ArticleIdList", _IDS)),
)
_EVENT = (
    _tag_with_required_attribute(b"PubMedPubDate", b"PubStatus", b"[a-z-]++")
    + _date_element(b"PubMedPubDate")[len("<PubMedPubDate>") :]
)
_DATA = _element_with_children(
    b"PubmedData",
    _at_most_once(_element_with_children(b"History", _any_number_of(_EVENT))),
    _optional_leaf_elements(b"PublicationStatus"),
    _at_most_once(_element_with_children(b"ArticleIdList", _named_group("identifiers", _IDS))),
    _any_number_of(
        _element_with_children(
            b"ReferenceList",
            _optional_leaf_elements(b"Title"),
            _any_number_of(_REFERENCE),
            _any_number_of(
                _element_with_children(
                    b"ReferenceList", _optional_leaf_elements(b"Title"), _any_number_of(_REFERENCE)
                )
            ),
        )
    ),
    _any_number_of(_INSTRUCTION),
)
CITATION = re.compile(
    _BLANK + _element_with_children(b"PubmedArticle", _exactly_once(_CITATION), _at_most_once(_DATA))
)
"""Expression for one citation. `medline_citation.document_from_match` reads its groups in their order."""
