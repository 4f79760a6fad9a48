"""Extraction of the answer from a generated text: the option that the text explicitly gives last.

Four kinds of statements are searched for, and the first kind that occurs decides, by its last statement:

1. A statement that names the answer: `The answer is (C)`, `**Answer:** C`, and a boxed option.
2. A choice: `I choose C`, `The best option is C`, `B. Metformin is the correct option`.
3. A conclusion with an option: `The most likely diagnosis is melanoma`.
4. An option on a line of its own, or at the beginning of the text: `C. Melanoma`, `Yes, …`. A list of several
   options is no answer.

A text without such a statement has no answer. The first letter of a word (`Because` → B) or the only option
that a text mentions is never taken, and neither is the option of a negated statement (`The answer cannot be
A`): a wrong guess is worse than none. Hidden reasoning, which ends with `</think>`, is no part of the answer.
"""

import re
from collections.abc import Sequence
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
_FURTHER_QUESTION = re.compile(
    r"\n[^\w\n]{0,6}(?:(?:Question|Problem|Q|User|Human|Instruction|Response)[ \t]*\d*[ \t]*[.:)]"
    r"|(?:Question|Problem)[ \t]*\d*[^\w\n]*\n)",
    re.IGNORECASE,
)
# Bounded, because a text of blanks alone would otherwise take quadratic time.
_OPENING = r"(?:<(?:b|i|em|strong)>|[\s*_\"'“‘”’`(\[<{$:>]|\\(?:text|textbf|mathbf|mathrm|rm)\b){0,40}"
_BEFORE_NOUN = r"[*_\"'“‘(\[<>≥≤~≈±$]*\s*"
_CLOSING = r"[*_)}\]\"'”’` ]{0,40}"
# Words between a copula and an option: `is indeed a **circular rash**`.
_FILLERS = (
    r"(?:(?:indeed|therefore|thus|hence|then|still|simply|just|(?:most\s)?(?:likely|probably|clearly|obviously"
    r"|definitely|certainly|surely)|the|an?|option|choice|letter|number)\s+)*"
)
# `which of A or B is the correct answer`, `if A is the correct answer`
_NOT_ASKED = r"(?i:(?<!\bor\s)(?<!\band\s)(?<!\bif\s)(?<!\bwhether\s)(?<!\bwhy\s)(?<!\bthan\s)(?<!/))"
_NEXT_LINE = re.compile(r"[^\n]*\n\s*(?P<letter>[A-Z])(?:[.):]|\s*\Z)")
# The noun may be a key of JSON: `"final_answer": "C"`, `"answer_choice": "C"`.
_ANSWER_NOUN = (
    r"(?:answer|(?:correct|right|final)[\s_](?:option|choice))(?:_(?:choice|option|letter|idx|index))?"
)
_IS = (
    r"(?![^\W_])(?:[^.\n?]{0,60}?\b(?:is|was|be)\b"
    r"|(?:\s*\([^)\n]{0,30}\))?[\s*_\"']{0,4}(?:[:：>=→]|(?<=\s)[–—-](?=\s)))"
)
_ANSWER = rf"(?<!which\s)(?<!what\s)(?<![^\W_]){_ANSWER_NOUN}{_IS}"
_CHOICE = rf"(?:(?<!which\s)(?<!what\s)\b(?:option|(?<!of\s)choice){_IS}|\b(?:choose|select|pick|go\swith)\b)"
_HEADING = r"^[^\w\n]{0,6}(?i:(?:the\s|my\s)?(?:final\s|correct\s|best\s)?answer)(?:[^\w\n]*\n)+[^\w\n]*"
_CONCLUSION = (
    r"\b(?:most\s(?:likely|appropriate|common|probable)|best|correct|diagnosis|of\schoice)\b[^.\n?]{0,200}?"
    r"\b(?:is|are|was|be)\b"
)
# Words that follow an answer, but no article and no determiner.
_AFTER_ANSWER = (
    r"(?:is|because|since|as|but|and|or|if|when|given|with|due|based|according|for|in|at|on|from|to|it|this|that"
    r"|the|there|they|we|these|those|which|however|although|though|while|not|rather|maybe|yes)"
)
# In `the answer is no longer known`, the word is not an answer; in `the answer is no because …` it is.
_NOT_DETERMINER = rf"(?!(?<=\b[Nn]o)\s+(?!{_AFTER_ANSWER}\b)[a-z])"
_PRAISE = (
    r"\b(?:is|are)\s+(?:indeed\s+)?(?:the\s+)?(?:correct|right|best|most\s(?:likely|appropriate|common))\b"
)
# A negation counts only where it denies the statement itself: next to it, or with nothing but these words
# between. In `the groups did not differ, so the answer is no` it says something else.
_NEGATION = (
    r"(?:\b(?:not|cannot|never|hardly|unlikely|impossible|wrong|incorrect|mistake|nobody|no\s+one|avoid|refuse"
    r"|rather\s+than|instead\s+of|no\s+(?:reason|need|point|sense|way)|if|whether|initially|originally|might"
    r"|(?:at\s+)?first(?:\s+glance)?|second|third|fourth|worst|rejected|eliminated|excluded|distractor|initial|original|textbook|previous|could|who|why\s+not|(?:can|should)\s+(?:we|I)"
    r"|each|every|consider(?:ing)?|evaluat(?:e|ing)|look(?:ing)?\s+at|examin(?:e|ing)|analy[sz](?:e|ing)"
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
    rf"{_NEGATION}(?:[ \t]*,[^,.;:\n]{{0,80}},)?(?:[ \t]+{_BETWEEN}\b)*[ \t*_\"'“‘(\[{{$]*\Z", re.IGNORECASE
)
_REACH = 200
"""Characters before a statement in which a negation is searched for."""
# `The answer cannot be A`, but not `the answer for a patient who is not pregnant must be A`.
_COPULA = re.compile(rf"\b(?P<verb>be|is|are|was)\b{_OPENING}{_FILLERS}{_OPENING}\Z", re.IGNORECASE)
# What others choose, what is not the first choice, and what holds under a condition (`If B is unavailable,
# choose C`) counts only if nothing else is stated.
_SECONDARY = re.compile(
    r"\b(?:next|another|alternative|other|tempting|runner-up"
    r"|least\s+\w+|(?:most\s+)?(?:common|popular)"
    r"|(?:students|patients|people|women|men|many|some|others|most(?!\s+(?:likely|appropriate|probable|suitable"
    r"|reasonable|plausible|accurate)))(?:\s+\w+)?)\s+(?:best\s+)?\Z"
    r"|\b(?:if|unless|otherwise|in\scase|had|(?:in|for|with)\s+(?:an?\s+(?:similar|different)|other|another"
    r"|comparison|contrast|general|normal|healthy|pregnan\w+|subgroup\w*|exam\w*))\b"
    r"(?:[^.;?!\n]|(?<=\d)\.(?=\d))*\Z",
    re.IGNORECASE,
)
_CONDITION = re.compile(
    rf"{_CLOSING},?\s*(?:only|if|unless|when|in\scase|(?:for|in)\s+(?:most\s+|other\s+)?(?:patients|people"
    r"|women|men|adults|children|those))\b",
    re.IGNORECASE,
)
_TENTATIVE = re.compile(r"\b(?:would|may)\s+(?:\w+\s+)?be\b", re.IGNORECASE)
# `Wait, …`, but not the option `Wait and watch`.
_RETRACTION = re.compile(
    r"(?:\A|[.!?…\n,;()–—-])[\s*_\"]{0,10}(?:but\s+|oh\s+|no\s+)?wait"
    r"(?:[,.!:;…–—]|\s+(?:no|a\s+(?:minute|moment|second)|let|actually|that|I|is|but|the|maybe|we)\b)"
    r"|\bactually,|\b(?:correction|edit)\s*:|\bhmm+\b|\bscratch\s+that\b|\bon\s+(?:second\s+thought|reflection)\b"
    r"|\blet(?:\s+me|['’]s|\s+us)\s+(?:reconsider|re-?think|re-?evaluate|re-?check)\b|\bI\s+was\s+wrong\b",
    re.IGNORECASE,
)
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
    r"|(?:(?:is|are|was)(?:\s+not|n['’]t)|cannot\s+be)\s+(?:the\s+)?(?:correct|right|best|answer|most))\b"
    # `A: incorrect`, `A. Metformin – contraindicated`
    r"|[^\w\n]*(?:[^.:\n]{0,80}?[^\w\s]\s*)?(?:(?<!,\s)not|no|incorrect|wrong|contraindicated|ineffective|inappropriate"
    r"|unlikely|eliminated?|excluded?|ruled\sout)\b"
    # `A. Metformin can be ruled out`, but not `B. Insulin, because metformin is contraindicated`
    r"|[^\w\n]*(?:(?!\b(?:because|since|as)\b)[^.:\n–—-]){0,80}?\b(?:(?:is|are|was|be)\s+(?:\w+\s+)?"
    r"(?:contraindicated|ruled\sout|eliminated|excluded|inappropriate|ineffective)"
    r"|(?:is|are|was)\s+not\s+(?:appropriate|indicated|recommended|suitable))\b",
    re.IGNORECASE,
)
# The line before the first option of an analysis, which may be cut off before the others.
_ANALYSIS = re.compile(
    r"\b(?:analy[sz]|evaluat|consider|examin|review|assess|compar|eliminat|exclud|rule\sout|go\sthrough|look\sat"
    r"|discuss|each|one\sby\sone)[^\n]*\n\s*[^\w\n]*[\d.) ]*[^\w\n]*(?:option\s+)?\Z",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Patterns:
    """Regular expressions for one question. In each, the group `option` is the option."""

    answers: tuple[re.Pattern[str], ...]
    choices: tuple[re.Pattern[str], ...]
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
    text = text.replace("__", "**").replace("\\%", "%")
    lettered = tuple(answers) == tuple(ascii_uppercase[: len(answers)])
    patterns = _compile(tuple(_normalize(option).casefold() for option in options), len(answers) * lettered)
    index = _Index(options, answers if lettered else ())
    # Text after a heading that may be of another question counts only if the text before has no answer.
    if match := _FURTHER_QUESTION.search(text):
        answer = _answer(text[: match.start()], patterns, index)
        if answer is not None:
            return answer
    return _answer(text, patterns, index)


class _Index:
    """Index of each option by its text, exact or in other letter case, and by its letter."""

    def __init__(self, options: Sequence[str], letters: Sequence[str]) -> None:
        names = list(map(_normalize, options))
        self._exact = {name: index for index, name in enumerate(names)}
        # Options that differ only in case are told apart by it, or not at all.
        folded = [name.casefold() for name in names]
        self._folded = {name: index for index, name in enumerate(folded) if folded.count(name) == 1}
        for index, letter in enumerate(letters):  # a letter takes precedence over a single-letter option
            self._exact |= {letter: index, letter.lower(): index}

    def get(self, option: str) -> int | None:
        name = _normalize(option)
        return self._exact.get(name, self._folded.get(name.casefold()))


def _answer(text: str, patterns: _Patterns, index: _Index) -> int | None:
    """Return the index of the option that a text without reasoning and further questions gives, or None."""
    answers = _statements(text, patterns.answers, patterns)
    choices = _statements(text, patterns.choices, patterns)
    if answers or choices:
        return _last_option(text, (answers, choices), index)
    standing = _standing_option(text, patterns, index)
    # A text that begins with an option and its words, `B. Insulin`, answers; general remarks may follow.
    if standing is not None and patterns.opening and patterns.opening[standing].match(text):
        return standing
    if statements := _statements(text, patterns.conclusions, patterns):
        return _last_option(text, (statements,), index)
    return standing


def _statements(text: str, kind: Sequence[re.Pattern[str]], patterns: _Patterns) -> list[re.Match[str]]:
    """Return the statements of one kind that are about one option and do not deny it."""
    return [
        match
        for pattern in kind
        for match in pattern.finditer(text)
        if not _goes_on(text, match, patterns) and not _is_negated(text, match)
    ]


def _last_option(text: str, kinds: Sequence[Sequence[re.Match[str]]], index: _Index) -> int | None:
    """Return the option of the last statement of the first kind; None if the text then takes it back.

    Statements that are secondary are of the last kind. After a retraction only later statements count.
    """
    primary = [[match for match in kind if not _is_secondary(text, match)] for kind in kinds]
    start = 0
    for _ in range(sum(map(len, kinds))):
        later = ([match for match in kind if match.start() >= start] for kind in (*primary, *kinds))
        last = max(next(filter(None, later), ()), key=lambda match: match.end("option"), default=None)
        if last is None:
            return None
        retraction = _RETRACTION.search(text, last.end("option"))
        if retraction is None:
            return index.get(last["option"])
        start = retraction.start()
    return None


def _is_secondary(text: str, match: re.Match[str]) -> bool:
    """Return True for a statement that counts only if nothing else is stated."""
    return bool(
        _SECONDARY.search(text, max(0, match.start() - _REACH), match.start())
        or _CONDITION.match(text, match.end())
        or _TENTATIVE.search(text, match.start(), match.end())
    )


def _standing_option(text: str, patterns: _Patterns, index: _Index) -> int | None:
    """Return the only option that has a line of its own; None if there are several lines, or none."""
    matches = list(patterns.line.finditer(text))
    lines = {_normalize(match["option"]).casefold() for match in matches}
    # Of several lines the first may answer, and the others may be denied.
    if any(
        _is_denied_line(text, match, patterns, index)
        for match in (matches if len(lines) == 1 else matches[:1])
    ):
        return None
    if len(lines) > 1:
        return _option_before_others(text, matches, patterns, index)
    if lines:
        start = matches[0].start("option")
        if _ANALYSIS.search(text, max(0, start - _REACH), start):
            return None
        return index.get(matches[0]["option"])  # None for a letter beyond the options
    match = patterns.beginning.match(text)
    if match is None or _goes_on(text, match, patterns) or _is_denied_line(text, match, patterns, index):
        return None
    return index.get(match["option"])


def _option_before_others(
    text: str, lines: Sequence[re.Match[str]], patterns: _Patterns, index: _Index
) -> int | None:
    """Return the option that a text begins with, `B. Insulin`, if it then says why the others are not.

    None if the text is a list: it begins with option A, or the next line is another option.
    """
    first = index.get(lines[0]["option"])
    if not first or not patterns.opening or not patterns.opening[first].match(text):
        return None
    end = text.find("\n", lines[0].end())
    return first if re.search(r"\w", text[end : lines[1].start("option")]) else None


def _is_denied_line(text: str, line: re.Match[str], patterns: _Patterns, index: _Index) -> bool:
    """Return True if a line says that its option is wrong: `A: incorrect`."""
    end = line.end("option")
    option = index.get(line["option"])
    if option is not None and patterns.opening:
        named = patterns.opening[option].match(text, line.start())
        end = named.end() if named else end  # the option's own words may be `Ineffective cells`
    return _DENIED_LINE.match(text, end) is not None


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
    return re.sub(r"^([<>≤≥])\s+", r"\1", " ".join(option.split()).rstrip("."))


def _words(name: str) -> str:
    """Return the pattern of an option's words."""
    return re.sub(r"^([<>≤≥])", r"\1\\s*", r"\s+".join(map(re.escape, name.split())))


@lru_cache(maxsize=64)  # the samples of a question share the patterns
def _compile(options: tuple[str, ...], letters: int) -> _Patterns:
    # Longer texts first, because one option may be the beginning of another.
    names = sorted(filter(None, options), key=len, reverse=True)
    words = list(map(_words, names))
    end = rf"(?!\w|[.,/–]\d){_NOT_DETERMINER}"
    text = rf"(?i:{'|'.join(words)}){end}" if words else "(?!)"
    # `>5 cm` does not name the option `5 cm` of a question that has both.
    if any(name[0] in "<>≤≥" for name in names):
        text = rf"(?:(?=[<>≤≥])|(?<![<>≤≥])(?<![<>≤≥]\s)){text}"
    if letters:
        known = ascii_uppercase[:letters]
        # A letter is upper case, in brackets, or ends its line. `A` before a word in lower case, or in
        # `A 24-hour test`, is an article, and so may be an `a` at the end of a text that is cut off. The
        # letter of `B-cell`, `A+` and `A-fib` is part of a word.
        lower = known.lower()
        # `A CT scan` too, unless it is option A.
        own = _words(options[0]) or "(?!)"
        article = (
            rf"(?<=[AI])\s+(?:(?!{_AFTER_ANSWER}\b)[a-z]|\d[\d.,]*-[a-z])"
            rf"|(?<=[A-D])[ \t]+(?:cells?|lymphocytes?|peptide|dimer|xylose|blockers?|vitamins?|fibers?)\b"
            rf"|(?<=A)[ \t]+(?!(?i:{own})(?!\w))[A-Z]{{2}}"
        )
        # `C. difficile`, unless an option begins with that word.
        genus = rf"\.\s(?!(?i:{'|'.join(words) or '(?!)'}))[a-z]"
        letter = (
            rf"[{known}](?!\w|['’]\w|-[a-z]|\+)(?!{article})(?!{genus})|(?<=\()[{lower}](?=\))"
            rf"|(?<!\w)(?![ai])[{lower}](?=\.?{_CLOSING}(?:\n|\Z))"
            rf"|(?<!\w)(?=[ai])[{lower}](?=\.{_CLOSING}(?:\n|\Z)|{_CLOSING}\n)"
        )
        # At the beginning of a text or line, `A` before anything but its own option is an article too:
        # `A 50% stenosis`, `A "healthy" man`.
        noun = rf"(?<=A)[ \t]+(?!{_OPENING}(?:(?i:{own})(?!\w)|is\b|because\b)){_BEFORE_NOUN}\w"
        praised = rf"(?P<option>(?:{letter})(?!{noun})|{text})"
        first = praised + r"(?!\s+[^\W\d_])"
        # The term `B cell lymphoma` is an option itself and does not name option B.
        terms = [_words(name) for name in names if re.match(r"[a-z](?![\w'’.]).", name)]
        term = rf"(?i:{'|'.join(terms)}){end}" if terms else "(?!)"
        either = rf"(?:{term}|{letter}|{text})"
        named = [
            rf"{letter}(?=[.)]{_CLOSING}(?i:{_words(name)})(?!\w))"
            for letter, name in zip(lower, options, strict=False)
            if name
        ]
        line = (
            rf"(?P<option>[A-Z](?=[.):]|[^\w\n]*$)(?!{genus})|{text}(?=[^\w\n]*$)"
            rf"|{'|'.join(named) or '(?!)'})"
        )
        following = (
            rf"{_CLOSING}(?i:,|/|&|[–-]|or|and|plus|as\s+well\s+as|und|et)[\s(]*(?:{letter})"
            rf"|{_CLOSING}(?i:{'|'.join(words) or '(?!)'})[\s,;]*\([A-Za-z]\)"
        )
    else:
        either, praised = rf"(?:{text})", rf"(?P<option>{text})"
        first, line = praised + r"(?!\s+\w)", praised + r"(?=[^\w\n]*$)"
        following = rf"{_CLOSING}(?i:,|/|&|or|and)\s*(?:{text})"
    option = rf"(?P<option>{either})"
    after_cue = rf"{_OPENING}(?i:{_FILLERS}){_OPENING}{option}"
    # The praise is for the option directly before it: `B lowers fever, but C is the correct answer`.
    between = (
        rf"(?:(?!(?<!\w){either}{_CLOSING}(?i:{_PRAISE})|(?i:\b(?:incorrect|wrong|contraindicated|(?<!,\s)not)\b))"
        r"[^.\n?]){0,150}?"
    )
    the_answer = rf"(?i:{_PRAISE}\s+answer\b|is\s+the\s+(?:final\s+)?answer\b)(?![^.\n]*\?)"
    the_choice = rf"(?i:{_PRAISE}\s+(?:option|choice)\b)(?![^.\n]*\?)"
    boxed = r"\\boxed\s*\{(?:[\s*_(~]|\\(?:text|textbf|textit|mathrm|mathbf)\{|(?i:(?:answer|option)[\s:]))*"
    ends_line = rf"(?=[.)]?{_CLOSING}(?:\n|\Z))"
    return _Patterns(
        answers=(
            re.compile(rf"(?i:{_ANSWER}){after_cue}"),
            re.compile(rf"(?i:{_ANSWER})\s+not\s+{_OPENING}{either}{_CLOSING},?\s*but\s+{_OPENING}{option}"),
            re.compile(rf"{_HEADING}(?i:option\s+)?{first}", re.MULTILINE),
            re.compile(rf"(?i:\b(?:conclusion|verdict))[*_ ]*:{_OPENING}(?i:option\s+)?{option}{ends_line}"),
            re.compile(rf"{boxed}{option}"),
            re.compile(rf"(?<!\w){_NOT_ASKED}{option}{_CLOSING}{the_answer}"),
        ),
        choices=(
            re.compile(rf"(?i:{_CHOICE}){after_cue}"),
            re.compile(rf"^[^\w\n]*(?i:option\s+)?{praised}(?:\W|$){between}(?i:{_PRAISE})", re.MULTILINE),
            re.compile(rf"(?<!\w){_NOT_ASKED}{option}{_CLOSING}{the_choice}"),
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
