"""Identifiers of licences, from the statements that documents and sources make: URLs, names and sentences.

Identifiers are those of the SPDX list (https://spdx.org/licenses). Two kinds of statement have no SPDX
identifier, so they get one of their own: a Creative Commons licence whose version is not stated is
`CC-BY-NC` instead of `CC-BY-NC-4.0`, because a guessed version would be other terms than those granted; and
works that are in the public domain by law are `LicenseRef-Public-Domain` and
`LicenseRef-US-Government-Work`.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable
from functools import lru_cache

__all__ = ["COMMERCIAL", "combined_statement", "creative_commons_link", "is_allowed", "licence_id"]

COMMERCIAL = frozenset(
    {
        *("CC-BY", "CC-BY-SA", "CC0-1.0", "CC-PDM-1.0", "PDDL-1.0", "ODC-By-1.0", "ODbL-1.0"),
        *("LicenseRef-Public-Domain", "LicenseRef-US-Government-Work", "OGL-UK-1.0", "OGL-UK-2.0"),
        *("OGL-UK-3.0", "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Unlicense"),
        *("GFDL-1.1", "GFDL-1.2", "GFDL-1.3"),
    }
)
"""Licences that permit commercial use and derived works. A Creative Commons licence without a version stands
for all its versions. ND licences are absent: they permit commercial use, but no derived work."""

# After the version there may be a port, such as `us` or `igo`, and the name of a page, such as `deed.en`.
_CC_URL = re.compile(
    r"creativecommons\.org/(?:licen[sc]es?/(?P<terms>by(?:-(?:nc|nd|sa))*|publicdomain)"
    r"|publicdomain/(?P<dedication>zero|mark))"
    r"(?:/?(?P<version>\d(?:\.\d)?)(?:/(?P<port>igo|[a-z]{2})(?![\w-]))?)?",
    re.IGNORECASE,
)
# Semantic Scholar writes CCBYNC.
_CC_CODE = re.compile(
    r"\b(?:CC|Creative[ -]Commons)(?:[ -](?:licen[sc]e))?[ -]*"
    r"(BY(?:[ -]?(?:N\.? ?C\b\.?|N\.? ?D\b\.?|S\.? ?A\b\.?|NC|ND|SA))*)(?![A-Za-z])[ -]*(?:v"
    r"(?:ersion)?\.? ?)?(\d\.\d)?",
    re.IGNORECASE,
)
_CC_NAME = re.compile(
    r"\bCreative[ -]Commons\b[^.;]{0,40}?\bAttribution\b((?:[\s/,-]|\band\b|Non[ -]?Commercial"
    r"|No[ -]?Deriv(?:ative)?s?|"
    r"Share[ -]?Alike|Works?\b)*)[ (]*(?:v(?:ersion)?\.? ?)?(\d\.\d)?",
    re.IGNORECASE,
)
_RESTRICTIONS = (
    ("nc", re.compile(r"n\.? ?c\b|nc|non[ -]?commercial", re.IGNORECASE)),
    ("nd", re.compile(r"(?<!a)(?:n\.? ?d\b|nd)|no[ -]?deriv", re.IGNORECASE)),  # not `and`
    ("sa", re.compile(r"s\.? ?a\b|sa|share[ -]?alike", re.IGNORECASE)),
)
# Restrictions of use that a sentence states beside the licence's name, which then go beyond the name.
_COMMERCIAL_USE = r"commercial (?:re-?)?(?:use|purpose|exploitation|distribution|reproduction|sale)s?\b"
_NONCOMMERCIAL_USE = re.compile(
    r"\bnon[ -]?commercial(?:ly)?\b"
    r"|\b(?:no|without|not (?:be )?(?:\w+ )?for|(?:excluding|except|prohibit\w*|forbid\w*)(?: for)?)"
    r"(?: any| all)? "
    + _COMMERCIAL_USE
    + rf"|\b{_COMMERCIAL_USE}[^.;]{{0,40}}?"
    + r"\b(?:prohibited|forbidden|excluded|restricted|not|requires?|needs?|only with|contact)\b",
    re.IGNORECASE,
)
_ANY_USE = re.compile(
    r"\bcommercial(?:ly)? (?:or|and|as well as) non[ -]?commercial|non[ -]?commercial(?:ly)? (?:or|and"
    r"|as well as) commercial",
    re.IGNORECASE,
)
# "… images are not included under the Creative Commons license" excepts third-party material and denies
# nothing.
_NEGATED = re.compile(
    r"\bno[ -]cc\b|\bnot (?:an? )?(?:CC\b|Creative Commons\b)"
    r"|\bnot (?:(?:available|licen[sc]ed|published|released|distributed|placed) )?"
    r"(?:under|in) (?:an? |the |any )?(?:CC\b|Creative Commons|public domain)",
    re.IGNORECASE,
)

# Name → pattern of the whole statement or of a phrase in it; the first that matches counts.
_OTHER = (
    ("CC0-1.0", r"\bCC[ -]?0\b|\bCC[ -]Zero\b|Creative Commons (?:Zero|Public Domain|0\b)"),
    ("CC-PDM-1.0", r"\bpublic domain mark\b|\bPDM\b"),
    ("PDDL-1.0", r"\bPDDL\b|Open Data Commons Public Domain"),
    ("ODC-By-1.0", r"\bODC[ -]BY\b|Open Data Commons Attribution"),
    ("ODbL-1.0", r"\bODbL\b|Open Data(?:base| Commons Open Database) Licen[sc]e"),
    ("OGL-UK-1.0", r"\bOGL(?:-UK)?[ -]?v?1(?:\.0)?\b|Open Government Licen[sc]e v(?:ersion )?1"),
    ("OGL-UK-2.0", r"\bOGL(?:-UK)?[ -]?v?2(?:\.0)?\b|Open Government Licen[sc]e v(?:ersion )?2"),
    ("OGL-UK-3.0", r"\bOGL(?:-UK)?[ -]?v?3(?:\.0)?\b|Open Government Licen[sc]e v(?:ersion )?3"
                   r"|open-government-licence/version/3"),
    ("Apache-2.0", r"\bApache(?:[ -]Licen[sc]e)?(?:,? ?-?v(?:ersion)?\.?)?[ -]?2(?:\.0)?\b"
                   r"|apache\.org/licenses/LICENSE-2\.0"),
    ("MIT", r"^MIT$|\bMIT Licen[sc]e\b|opensource\.org/licenses?/mit\b"),
    ("BSD-3-Clause", r"\bBSD[ -]3(?:[ -]clause)?\b|\b3[ -]clause BSD\b|(?:new|modified) BSD licen[sc]e"),
    ("BSD-2-Clause", r"\bBSD[ -]2(?:[ -]clause)?\b|\b2[ -]clause BSD\b|simplified BSD licen[sc]e"),
    ("ISC", r"^ISC$|\bISC Licen[sc]e\b"),
    ("Unlicense", r"^(?:the )?unlicense$|\bunlicense\.org"),
    ("GPL-2.0", r"\bGPL(?:[ -]?v?2)(?:\.0)?\b|General Public Licen[sc]e,? v(?:ersion )?2"),
    ("GPL-3.0", r"\bGPL(?:[ -]?v?3)(?:\.0)?\b|General Public Licen[sc]e,? v(?:ersion )?3"),
    ("GFDL-1.1", r"\bGFDL[ -]1\.1\b"),
    ("GFDL-1.2", r"\bGFDL[ -]1\.2\b"),
    ("GFDL-1.3", r"\bGFDL[ -]1\.3\b"),
    (
        "LicenseRef-US-Government-Work",
        r"\bU\.?S\.? (?:federal )?government(?:al)? works?\b|\bworks? of the (?:U\.?S\.?|United States"
        r"|federal) "
        r"(?:federal )?government\b|\bgovernment works? (?:is|are)? ?in the public domain"
        r"|\bUS-Government-Work\b",
    ),
    ("LicenseRef-Public-Domain", r"\bpublic[ -]?domain\b|^PD$"),
)  # fmt: skip
_OTHER_PATTERNS = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _OTHER)
_HYPHENS = re.compile("[\u2010-\u2015\u2212\ufe58\ufe63_]")
_MAX_STATEMENT = 10_000  # characters read; a statement of a licence is a sentence or a paragraph


def licence_id(statement: str | None) -> str | None:
    """Return the identifier of the licence that a statement names; None if it names none that is known.

    If a statement names several Creative Commons licences, or a licence and a stricter condition (`licensed
    under CC BY 4.0 … for non-commercial use`), the result has all their restrictions. A Creative Commons
    licence goes before CC0 in one statement: publishers place the article under CC BY and its data under CC0.

    Args:
        statement: A URL, an identifier, a name or sentences: `https://creativecommons.org/licenses/by/4.0/`,
            `CC BY-NC`, `… the Creative Commons Attribution License …`.
    """
    return _licence_id(statement[:_MAX_STATEMENT]) if statement and statement.strip() else None


@lru_cache(maxsize=4_096)
def _licence_id(statement: str) -> str | None:
    # Publishers write the hyphens of a licence's name as hyphens, dashes, no-break hyphens and minus signs.
    text = _HYPHENS.sub("-", " ".join(unicodedata.normalize("NFKC", statement).split()))
    if _NEGATED.search(text):
        return None
    if identifier := _creative_commons_id(text):
        return identifier
    if match := _CC_URL.search(text):
        dedications = {"zero": "CC0-1.0", "mark": "CC-PDM-1.0"}
        return dedications.get((match["dedication"] or "").lower(), "LicenseRef-Public-Domain")
    return next((name for name, pattern in _OTHER_PATTERNS if pattern.search(text)), None)


def _creative_commons_id(text: str) -> str | None:
    """Return the identifier with the restrictions of all Creative Commons licences that a text names."""
    links = [match for match in _CC_URL.finditer(text) if (match["terms"] or "").lower().startswith("by")]
    named = [(match["terms"], match["version"]) for match in links]
    named += [(match[1], match[2]) for kind in (_CC_CODE, _CC_NAME) for match in kind.finditer(text)]
    if not named:
        return None
    restrictions = {name for terms, _ in named for name, pattern in _RESTRICTIONS if pattern.search(terms)}
    if _NONCOMMERCIAL_USE.search(text) and not _ANY_USE.search(text):
        restrictions.add("nc")
    # Share-alike concerns derived works, which ND forbids: no licence has both.
    parts = ["nc" if "nc" in restrictions else "", "nd" if "nd" in restrictions else ""]
    parts.append("sa" if "sa" in restrictions and "nd" not in restrictions else "")
    versions = [version for _, version in named if version]
    version = f"{versions[0]}.0" if versions and "." not in versions[0] else versions[0] if versions else ""
    return "-".join(filter(None, ["CC-BY", *(part.upper() for part in parts), version]))


def creative_commons_link(text: str) -> str | None:
    """Return the first link to a Creative Commons licence in a text, without the name of a page after it.

    `See http://creativecommons.org/licenses/by/4.0/deed.en.` gives
    `https://creativecommons.org/licenses/by/4.0/`.
    """
    match = _CC_URL.search(text)
    if match is None:
        return None
    kind = f"licenses/{match['terms']}" if match["terms"] else f"publicdomain/{match['dedication']}"
    path = "/".join(filter(None, (kind, match["version"], match["port"]))).lower()
    return f"https://creativecommons.org/{path}/"


def combined_statement(statements: Iterable[str | None]) -> str | None:
    """Return the first of a document's statements that names the licence which all of them together name.

    A text may be stricter than the link beside it, or name the licence that a link to a publisher's terms
    does not name. If no single statement says as much as all, the result is all of them, joined. If none
    names a known licence, it is the first; without any statement it is None.

    Args:
        statements: The statements, the preferred form first; those that are None or empty are ignored.
    """
    stated = [*dict.fromkeys(statement for statement in statements if statement)]
    together = " ".join(stated)
    identifier = licence_id(together)
    if identifier is None:
        return next((text for text in stated if licence_id(text)), next(iter(stated), None))
    return next((text for text in stated if licence_id(text) == identifier), together)


def is_allowed(identifier: str, allowed: Collection[str]) -> bool:
    """Return True if a licence is allowed: itself, or its Creative Commons licence without the version."""
    family = re.sub(r"^(CC-BY(?:-(?:NC|ND|SA))*)-\d\.\d$", r"\1", identifier)
    return identifier in allowed or family in allowed
