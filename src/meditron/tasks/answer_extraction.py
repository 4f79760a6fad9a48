"""Extraction of the answer from a generated text: the option that the text explicitly gives last.

Three kinds of statements are searched for, and the first kind that occurs decides, by its last statement:

1. A statement about the answer: `The answer is (C)`, `**Answer:** C`, `B. Metformin is the correct option`.
2. A conclusion with an option: `The most likely diagnosis is melanoma`.
3. An option on a line of its own, or at the beginning of the text: `C. Melanoma`, `Yes, …`. A list of several
   options is no answer.

A text without such a statement has no answer. The first letter of a word (`Because` → B) or the only option
that a text mentions is never taken, and neither is the option of a negated statement (`The answer cannot be
A`): a wrong guess is worse than none. Hidden reasoning, which ends with `</think>`, is no part of the answer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import ascii_uppercase

__all__ = ["PARSER_VERSION", "extract_answer"]

PARSER_VERSION = 6
"""Version of the rules, increased whenever a text can get another answer."""

# Marks of hidden reasoning: of most models, of Magistral, of MedGemma, and of gpt-oss.
_REASONING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<unused94>", "<unused95>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
# A model that is not finetuned for chat continues with further questions of its own, after an empty line. A
# text that repeats its question has no such line before it. A turn's end may be written out.
_NEXT_QUESTION = re.compile(
    r"\n[ \t]*\n[^\w\n]{0,4}(?:Question|Problem|Q|User|Human)[ \t]*\d*[^\w\n]{0,4}:"
    r"|</s>|<\|(?:im_end|eot_id|end|endoftext|return)\|>|<end_of_turn>",
    re.IGNORECASE,
)
# Bounded, because a text of blanks alone would otherwise take quadratic time.
_OPENING = r"(?:[\s*_\"'“‘”’`(\[<{$:>]|\\(?:text|textbf|mathbf|mathrm|rm)\b){0,40}"
_BEFORE_NOUN = r"[*_\"'“‘(\[<>≥≤~≈±$]*\s*"
_CLOSING = r"[*_)\]\"'”’` ]*"
# Words between a copula and an option: `is indeed a **circular rash**`.
_FILLERS = r"(?:(?:indeed|therefore|most\slikely|probably|likely|clearly|the|an?)\s+|option\s+|choice\s+)*"
# `which of A or B is the correct answer`, `if A is the correct answer`
_NOT_ASKED = r"(?i:(?<!\bor\s)(?<!\band\s)(?<!\bif\s)(?<!\bwhether\s)(?<!\bwhy\s)(?<!\bthan\s)(?<!/))"
_NEXT_LINE = re.compile(r"[^\n]*\n\s*(?P<letter>[A-Z])(?:[.):]|\s*\Z)")
_ANSWER = (
    r"(?:(?<!which\s)(?<!what\s)\b(?:answer|option|(?<!of\s)choice)\b"
    r"(?:[^.\n?]{0,60}?\b(?:is|was|be)\b|(?:\s*\([^)\n]{0,30}\))?[\s*_\"]{0,4}[:：>=])"
    r"|\b(?:choose|select|pick|go\swith)\b)"
)
_CONCLUSION = (
    r"\b(?:most\s(?:likely|appropriate|common|probable)|best|correct|diagnosis|of\schoice)\b[^.\n?]{0,200}?"
    r"\b(?:is|are|was|be)\b"
)
# In `the answer is no longer known`, the word is not an answer.
_NOT_DETERMINER = (
    r"(?!(?<=\b[Nn]o)\s+(?:clear|evidence|longer|simple|single|such|more|less|doubt|change|difference|effect"
    r"|significant|treatment|association|benefit|surgery|contraception)\b)"
)
_PRAISE = (
    r"\b(?:is|are)\s+(?:indeed\s+)?(?:the\s+)?(?:correct|right|best|most\s(?:likely|appropriate|common))\b"
)
# A negation counts only where it denies the statement itself: next to it, or with nothing but these words
# between. In `the groups did not differ, so the answer is no` it says something else.
_NEGATION = (
    r"(?:\b(?:not|cannot|never|hardly|unlikely|impossible|wrong|incorrect|mistake|nobody|no\s+one|avoid|refuse"
    r"|rather\s+than|instead\s+of|no\s+(?:reason|need|point|sense|way)|if|whether|initially|originally|might"
    r"|(?<!\bno\s)(?<!\bnot\s)(?<!n['’]t\s)doubt(?:ful)?)|n['’]t)\b"
)
_BETWEEN = (
    r"(?:think|thought|believe|say|claim|conclude|agree|accept|assume|suggest|mean|imply|follow|sure|certain"
    r"|convinced|clear|confident|true|likely|possible|possibly|appropriate|reasonable|advisable|wise|right"
    r"|correct|case|good|idea|need|want|wish|have|be|inclined|able|allowed|recommend(?:ed)?|advised?|expected"
    r"|going|ever|simply|just|really|to|that|the|an?|my|your|our|final|best|most|one|in|for|why|I|we|you|us"
    r"|would|should|or|[a-j])"
)
_DENIED_BEFORE = re.compile(
    rf"{_NEGATION}(?:\s*,[^,.;:\n]{{0,80}},)?(?:\s+{_BETWEEN}\b)*[\s*_\"'“‘(\[{{$]*\Z", re.IGNORECASE
)
_REACH = 200
"""Characters before a statement in which a negation is searched for."""
# `The answer cannot be A`, but not `the answer for a patient who is not pregnant must be A`.
_COPULA = re.compile(rf"\b(?P<verb>be|is|are|was)\b{_OPENING}{_FILLERS}{_OPENING}\Z", re.IGNORECASE)
# What others choose, what is not the first choice, and what holds under a condition (`If B is unavailable,
# choose C`) counts only if nothing else is stated.
_SECONDARY = re.compile(
    r"\b(?:second|next|another|alternative|other|tempting|distractor|least\s+\w+|(?:most\s+)?(?:common|popular)"
    r"|(?:students|patients|people|women|men|many|some|most|others|who)(?:\s+\w+)?)\s+(?:best\s+)?\Z"
    r"|\b(?:if|unless|otherwise|in\scase)\b(?:[^.;?!\n]|(?<=\d)\.(?=\d))*\Z",
    re.IGNORECASE,
)
_CONDITION = re.compile(rf"{_CLOSING},?\s*(?:only\s+)?(?:if|unless|in\scase)\b", re.IGNORECASE)
_RETRACTION = re.compile(r"\bwait\b|\bactually,|\b(?:correction|edit)\s*:", re.IGNORECASE)
# `The option that is not correct is A`.
_NOT_CORRECT = re.compile(r"(?:\bnot|n['’]t)\s+(?:correct|right|true)[\s,]*\Z", re.IGNORECASE)
# `Answer: A is not correct`. On a line of its own, only a judgement denies an option: `C. Melanoma is not
# benign` is an explanation.
_DENIED = re.compile(
    rf"{_CLOSING}\s*(?:(?:is|are|was)(?:n['’]t|\s+(?:\w+\s+)?(?:not|never|wrong|incorrect|false|unlikely))"
    r"|(?:can|could|would|should)(?:not|n['’]t|\s+not))\b",
    re.IGNORECASE,
)
_DENIED_LINE = re.compile(
    r"[^\w\n]*[^.\n?!]{0,150}?\b(?:(?:is|are|was)\s+(?:\w+\s+)?(?:wrong|incorrect|false|unlikely)"
    r"|(?:(?:is|are|was)(?:\s+not|n['’]t)|cannot\s+be)\s+(?:the\s+)?(?:correct|right|best|answer|most))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Patterns:
    """Regular expressions for one question. In each, the group `option` is the option."""

    answers: tuple[re.Pattern[str], ...]
    conclusions: tuple[re.Pattern[str], ...]
    opening: tuple[re.Pattern[str], ...]
    """For each letter, the beginning of a text that gives it with the words of its option."""
    beginning: re.Pattern[str]
    """The beginning of a text that gives an answer first."""
    line: re.Pattern[str]
    """A line that is an option, or begins with its letter."""
    further: re.Pattern[str]
    """The text after an option, if it goes on with another one: `, B or C`."""


def extract_answer(text: str, *, options: Sequence[str], answers: Sequence[str]) -> int | None:
    """Return the index of the option that a text gives as its answer; None if it gives none.

    Args:
        text: The generated text.
        options: The question's options.
        answers: The text of each option in an answer: its letter, or the option itself.
    """
    for start, end in _REASONING:
        text = text.rpartition(end)[2]
        if start in text:  # cut off within the reasoning
            return None
    if match := _NEXT_QUESTION.search(text):
        text = text[: match.start()]
    lettered = tuple(answers) == tuple(ascii_uppercase[: len(answers)])
    patterns = _compile(tuple(map(_normalize, options)), len(answers) if lettered else 0)
    index_of = {_normalize(option): index for index, option in enumerate(options)}
    if lettered:  # a letter takes precedence over an option that is a single letter
        index_of |= {_normalize(letter): index for index, letter in enumerate(answers)}
    if statements := _statements(text, patterns.answers, patterns):
        return _last_option(text, statements, index_of)
    standing = _standing_option(text, patterns, index_of)
    # A text that begins with an option and its words, `B. Insulin`, answers; general remarks may follow.
    if standing is not None and lettered and patterns.opening[standing].match(text):
        return standing
    if statements := _statements(text, patterns.conclusions, patterns):
        return _last_option(text, statements, index_of)
    return standing


def _statements(text: str, kind: Sequence[re.Pattern[str]], patterns: _Patterns) -> list[re.Match[str]]:
    """Return the statements of one kind that are about one option and do not deny it."""
    return [
        match
        for pattern in kind
        for match in pattern.finditer(text)
        if not _goes_on(text, match, patterns) and not _is_negated(text, match)
    ]


def _last_option(text: str, statements: Sequence[re.Match[str]], index_of: Mapping[str, int]) -> int | None:
    """Return the option of the last statement; None if the text then takes it back."""
    primary = [
        match
        for match in statements
        if not _SECONDARY.search(text, max(0, match.start() - _REACH), match.start())
        and not _CONDITION.match(text, match.end("option"))
    ]
    last = max(primary or statements, key=lambda match: match.end("option"))
    return None if _RETRACTION.search(text, last.end("option")) else index_of[_normalize(last["option"])]


def _standing_option(text: str, patterns: _Patterns, index_of: Mapping[str, int]) -> int | None:
    """Return the only option that has a line of its own; None if there are several lines, or none."""
    matches = list(patterns.line.finditer(text))
    lines = {_normalize(match["option"]) for match in matches}
    if len(lines) > 1 or any(_DENIED_LINE.match(text, match.end("option")) for match in matches):
        return None
    if lines:
        return index_of.get(lines.pop())  # None for a letter beyond the options
    match = patterns.beginning.match(text)
    if match is None or _goes_on(text, match, patterns):
        return None
    return index_of[_normalize(match["option"])]


def _goes_on(text: str, match: re.Match[str], patterns: _Patterns) -> bool:
    """Return True if an option is one of several: `A or B`, or a list with a line for each."""
    if patterns.further.match(text, match.end("option")):
        return True
    line_start = text.rfind("\n", 0, match.start("option")) + 1
    following = _NEXT_LINE.match(text, match.end("option"))
    # An explanation of the other options may follow an answer; a list goes on with the next letter.
    return (
        not re.search(r"\w", text[line_start : match.start("option")])
        and following is not None
        and ord(following["letter"]) - ord(match["option"][0]) == 1
    )


def _is_negated(text: str, match: re.Match[str]) -> bool:
    """Return True if a statement denies its option: `cannot be A`, `do not choose A`, `A is not`."""
    start, end = match.span("option")
    if _DENIED.match(text, end) or _DENIED_BEFORE.search(text, max(0, match.start() - _REACH), match.start()):
        return True
    copula = _COPULA.search(text, match.start(), start)
    if copula is None:
        return False
    denied = _DENIED_BEFORE if copula["verb"].lower() == "be" else _NOT_CORRECT
    return denied.search(text, match.start(), copula.start()) is not None


def _normalize(option: str) -> str:
    return " ".join(option.casefold().split()).rstrip(".")


def _words(name: str) -> str:
    """Return the pattern of an option's words."""
    return r"\s+".join(map(re.escape, name.split()))


@lru_cache(maxsize=64)  # the samples of a question share the patterns
def _compile(options: tuple[str, ...], letters: int) -> _Patterns:
    # Longer texts first, because one option may be the beginning of another.
    names = sorted(filter(None, options), key=len, reverse=True)
    words = list(map(_words, names))
    text = rf"(?i:{'|'.join(words)})(?!\w|[.,/–]\d){_NOT_DETERMINER}" if words else "(?!)"
    if letters:
        known = ascii_uppercase[:letters]
        # A letter is upper case, in brackets, or ends its line. `A` before a word in lower case, or in
        # `A 24-hour test`, is an article, and so may be an `a` at the end of a text that is cut off. The
        # letter of `B-cell`, `A+` and `A-fib` is part of a word.
        lower = known.lower()
        article = r"(?<=[AI])\s+(?:(?!is\b|because\b)[a-z]|\d[\d.,]*-[a-z])"
        # `C. difficile`, unless an option begins with that word.
        genus = rf"\.\s(?!(?i:{'|'.join(words) or '(?!)'}))[a-z]"
        letter = (
            rf"[{known}](?!\w|['’]\w|-[a-z]|\+)(?!{article})(?!{genus})|(?<=\()[{lower}](?=\))"
            rf"|(?<!\w)(?![ai])[{lower}](?=\.?{_CLOSING}(?:\n|\Z))"
            rf"|(?<!\w)(?=[ai])[{lower}](?=\.{_CLOSING}(?:\n|\Z)|{_CLOSING}\n)"
        )
        # At the beginning of a text or line, `A` before anything but its own option is an article too:
        # `A 50% stenosis`, `A "healthy" man`.
        own = _words(options[0]) or "(?!)"
        noun = rf"(?<=A)[ \t]+(?!{_OPENING}(?:(?i:{own})(?!\w)|is\b|because\b)){_BEFORE_NOUN}\w"
        praised = rf"(?P<option>(?:{letter})(?!{noun})|{text})"
        first = praised + r"(?!\s+[^\W\d_])"
        either, line = (
            rf"(?:{letter}|{text})",
            rf"(?P<option>[A-Z](?=[.):]|[^\w\n]*$)(?!{genus})|{text}(?=[^\w\n]*$))",
        )
        following = rf"{_CLOSING}(?i:,|/|&|[–-]|or|and|plus|as\s+well\s+as|und|et)[\s(]*(?:{letter})"
    else:
        either, praised = rf"(?:{text})", rf"(?P<option>{text})"
        first, line = praised + r"(?!\s+\w)", praised + r"(?=[^\w\n]*$)"
        following = rf"{_CLOSING}(?i:,|/|&|or|and)\s*(?:{text})"
    option = rf"(?P<option>{either})"
    after_cue = rf"{_OPENING}(?i:{_FILLERS}){_OPENING}{option}"
    # The praise is for the option directly before it: `B lowers fever, but C is the correct answer`.
    between = rf"(?:(?!(?<!\w){either}{_CLOSING}(?i:{_PRAISE}))[^.\n?]){{0,150}}?"
    best = rf"(?i:{_PRAISE}\s+(?:answer|option|choice)\b|is\s+the\s+(?:final\s+)?answer\b)(?![^.\n]*\?)"
    return _Patterns(
        answers=(
            re.compile(rf"(?i:{_ANSWER}){after_cue}"),
            re.compile(rf"\\boxed\{{(?:\\(?:text|textbf|mathrm|mathbf)\{{)*\(?{option}"),
            re.compile(rf"^[^\w\n]*(?i:option\s+)?{praised}(?:\W|$){between}(?i:{_PRAISE})", re.MULTILINE),
            re.compile(rf"(?<!\w){_NOT_ASKED}{option}{_CLOSING}{best}"),
        ),
        conclusions=(re.compile(rf"(?i:{_CONCLUSION}){after_cue}"),),
        opening=tuple(
            re.compile(rf"[^\w\n]*{letter}[.):]{_CLOSING}\s*(?i:{_words(name)})(?!\w)")
            for letter, name in zip(ascii_uppercase[:letters], options, strict=False)
        ),
        # `No evidence was found` answers nothing, and neither does `Aspirin lowers fever`.
        beginning=re.compile(rf"[\W\d_]*{first}"),
        line=re.compile(rf"^(?:[^\w\n]|[\d_])*(?i:option\s+)?{line}", re.MULTILINE),
        further=re.compile(following),
    )
