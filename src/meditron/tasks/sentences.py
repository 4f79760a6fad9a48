"""Sentence splitting of biomedical prose, by rules.

A sentence ends at a full stop, question or exclamation mark (with closing quotes and brackets) that is
followed by white space and by a possible start of a sentence. It does not end after an abbreviation (`vs.`,
`et al.`, `i.e.`), nor after an initial (`J. Smith`), unless the letter names a kind (`vitamin D. We`). Points
inside numbers (`1.2-3.4`, `p = .05`) are not followed by white space. In doubt there is no end: two sentences
in one do less harm than half of one.
"""

import re

__all__ = ["sentences"]

# Possessive quantifiers, and no match from within a run of marks: linear time for every text.
_END = re.compile(r"""(?<![.!?])[.!?]++["'”’»)\]]*+(?=\s++\S)""")
# Capitals, digits, opening signs; and names with a small first letter: mRNA, pH, p53, eGFR, α-synuclein.
_START = re.compile(r"""\s++["'“‘«(\[]*+(?:[^\W_a-zß-öø-ÿα-ω]|[<>≥≤~±+-]?\d|[a-zα-ω]{1,3}-?[A-Z\d]|[α-ω]-)""")
_BEFORE_WORD = re.compile(r"[\s(\[\"“‘]")
# Abbreviations that (almost) never end a sentence; `etc.`, `Inc.` and `30 sec.` can. In small letters or with
# a capital first: `NO.` is nitric oxide, `DR.` diabetic retinopathy.
_ABBREVIATION = re.compile(
    r"vs|cf|viz|al|ca|approx|resp|dr|drs|prof|mr|mrs|st|sr|jr|nos?|nr|figs?|tab|eqs?|refs?|vol|pp|sect|dept|"
    r"univ|i\.e|e\.g|i\.v|i\.m|s\.c|p\.o|i\.p|b\.i\.d|t\.i\.d|q\.d|w\.r\.t|incl|excl|subsp|ssp|spp?|[pnsv]"
)
_KINDS = re.compile(
    r"\b(?:vitamins?|hepatitis|influenza|types?|groups?|grades?|class|stages?|phase|arms?|cohorts?|factors?|"
    r"proteins?|cells?|levels?|models?|regimens?|treatments?)\s+"
    r"(?:[A-Z](?:,|/|,? and|,? or| vs\.?)\s*)*[A-Z]$",
    re.IGNORECASE,
)
_LOOK_BACK = 80  # characters: enough for a word, or for a kind and its letters


def sentences(text: str) -> list[str]:
    """Split a text into sentences; joined by blanks they are the text again, apart from white space."""
    parts, start = [], 0
    for end in _END.finditer(text):
        before = text[max(start, end.start() - _LOOK_BACK) : end.start()]
        if _START.match(text, end.end()) and not _continues(before, end.group()):
            parts.append(text[start : end.end()].strip())
            start = end.end()
    parts.append(text[start:].strip())
    return [sentence for sentence in parts if sentence]


def _continues(before: str, mark: str) -> bool:
    """Return True if the sentence continues after a mark that follows this text."""
    if not mark.startswith(".") or mark.startswith(".."):
        return False
    word = _BEFORE_WORD.split(before)[-1]
    if _ABBREVIATION.fullmatch(word[:1].lower() + word[1:]) and not (len(word) == 1 and word.isupper()):
        return True
    initial = word.split(".")[-1].split("-")[-1]
    return len(initial) == 1 and initial.isupper() and not _KINDS.search(before)
