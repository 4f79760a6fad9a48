"""Sentences of biomedical prose, by rules.

A sentence ends at a full stop, question or exclamation mark (with the quotes and brackets that close behind
it) that white space follows and then something a sentence can begin with. It does not end after an
abbreviation (`vs.`, `et al.`, `i.e.`), nor after an initial (`J. Smith`), unless the letter is the name of a
kind (`vitamin D. We`). Points inside numbers (`1.2-3.4`, `p = .05`) have no white space behind them. In doubt
it does not end: two sentences in one do less harm than half of one.
"""

import re

__all__ = ["sentences"]

# Possessive, and never begun within a run of marks, so that no text takes more than linear time.
_END = re.compile(r"""(?<![.!?])[.!?]++["'”’»)\]]*+(?=\s++\S)""")
# Capitals, figures, opening signs; and names that begin small: mRNA, pH, p53, eGFR, α-synuclein.
_START = re.compile(r"""\s++["'“‘«(\[]*+(?:[^\W_a-zß-öø-ÿα-ω]|[<>≥≤~±+-]?\d|[a-zα-ω]{1,3}-?[A-Z\d]|[α-ω]-)""")
_BEFORE_WORD = re.compile(r"[\s(\[\"“‘]")
# Never the end of a sentence, or so rarely that it does not count; `etc.`, `Inc.` and `30 sec.` may end one.
# In small letters or with a capital first: `NO.` is nitric oxide, `DR.` diabetic retinopathy.
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
_LOOK_BACK = 80  # characters: a word, or a kind and its letters


def sentences(text: str) -> list[str]:
    """The sentences in order; joined by blanks they are the text again, but for its white space."""
    found, start = [], 0
    for end in _END.finditer(text):
        before = text[max(start, end.start() - _LOOK_BACK) : end.start()]
        if _START.match(text, end.end()) and not _goes_on(before, end.group()):
            found.append(text[start : end.end()].strip())
            start = end.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def _goes_on(before: str, mark: str) -> bool:
    """Whether the sentence goes on after a mark that stands behind this piece of it."""
    if not mark.startswith(".") or mark.startswith(".."):
        return False
    word = _BEFORE_WORD.split(before)[-1]
    if _ABBREVIATION.fullmatch(word[:1].lower() + word[1:]) and not (len(word) == 1 and word.isupper()):
        return True
    initial = word.split(".")[-1].split("-")[-1]
    return len(initial) == 1 and initial.isupper() and not _KINDS.search(before)
