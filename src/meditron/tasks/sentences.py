"""Rule-based sentence splitting of biomedical prose.

A sentence ends at a full stop, question or exclamation mark (with closing quotes and brackets) that is
followed by white space and then by a character that can begin a sentence. It does not end after an
abbreviation (`vs.`, `et al.`, `i.e.`), nor after an initial (`J. Smith`), unless the letter belongs to a noun
such as vitamin (`vitamin D. We`). In doubt the text is not split: two joined sentences do less harm than half
a sentence.
"""

import re

__all__ = ["split_sentences"]

# Possessive quantifiers, and no match that starts within a run of marks, so that matching takes linear time.
_END = re.compile(r"""(?<![.!?])[.!?]++["'”’»)\]]*+(?=\s++\S)""")
# Start of a sentence: a capital, a digit, an opening sign, or a name such as mRNA, pH, p53, eGFR,
# α-synuclein.
_START = re.compile(r"""\s++["'“‘«(\[]*+(?:[^\W_a-zß-öø-ÿα-ω]|[<>≥≤~±+-]?\d|[a-zα-ω]{1,3}-?[A-Z\d]|[α-ω]-)""")
_BEFORE_WORD = re.compile(r"[\s(\[\"“‘]")
# Abbreviations that rarely end a sentence; `etc.`, `Inc.` and `30 sec.` often do and are not listed. They
# match in lower case or with a first capital only: `NO.` is nitric oxide, `DR.` diabetic retinopathy.
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
_LOOK_BACK = (
    80  # characters before a mark that are examined: enough for an abbreviation or `vitamins A, B and D`
)


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences. Joined by blanks, they give the text again, apart from white space."""
    parts, start = [], 0
    for end in _END.finditer(text):
        before = text[max(start, end.start() - _LOOK_BACK) : end.start()]
        if _START.match(text, end.end()) and not _sentence_continues(before, end.group()):
            parts.append(text[start : end.end()].strip())
            start = end.end()
    parts.append(text[start:].strip())
    return [sentence for sentence in parts if sentence]


def _sentence_continues(before: str, mark: str) -> bool:
    """Return True if a sentence continues after a punctuation mark.

    Args:
        before: The text before the mark.
        mark: The mark, with closing quotes and brackets.
    """
    if not mark.startswith(".") or mark.startswith(".."):
        return False
    word = _BEFORE_WORD.split(before)[-1]
    if _ABBREVIATION.fullmatch(word[:1].lower() + word[1:]) and not (len(word) == 1 and word.isupper()):
        return True
    initial = word.split(".")[-1].split("-")[-1]
    return len(initial) == 1 and initial.isupper() and not _KINDS.search(before)
