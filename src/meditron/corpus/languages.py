"""The pass that keeps documents in the configured languages. `eng`, `en` and `en-GB` are one language.

The language is that which the source states. If it states none, CLD2 detects it in the text. Text that is
short, of several languages or mostly formulas stays unknown, and is kept: losing an abstract is worse than
keeping a foreign one.
"""

import re

import pycld2

from meditron.corpus.candidate import Candidate, CorpusPass, DropReason

__all__ = ["Language", "detect_language", "is_english", "language_allowed"]

_OTHER_LANGUAGE = DropReason("another language")

# Codes of ISO 639-1 → ISO 639-2/B, which MEDLINE uses, and ISO 639-2/T if it differs.
# fmt: off
_THREE_LETTERS = {
    "af": "afr", "ar": "ara", "az": "aze", "be": "bel", "bg": "bul", "bs": "bos", "ca": "cat",
    "cs": "cze ces", "cy": "wel cym", "da": "dan", "de": "ger deu", "el": "gre ell", "en": "eng",
    "eo": "epo", "es": "spa", "et": "est", "fa": "per fas", "fi": "fin", "fr": "fre fra", "ga": "gle",
    "gl": "glg", "he": "heb", "hi": "hin", "hr": "hrv scr", "hu": "hun", "hy": "arm hye", "id": "ind",
    "is": "ice isl", "it": "ita", "ja": "jpn", "ka": "geo kat", "ko": "kor", "la": "lat", "lt": "lit",
    "lv": "lav", "mi": "mao mri", "mk": "mac mkd", "ml": "mal", "ms": "may msa", "nb": "nob",
    "nl": "dut nld", "nn": "nno", "no": "nor", "pl": "pol", "ps": "pus", "pt": "por", "ro": "rum ron",
    "ru": "rus", "rw": "kin", "sa": "san", "sk": "slo slk", "sl": "slv", "sq": "alb sqi",
    "sr": "scc srp", "sv": "swe", "th": "tha", "tr": "tur", "uk": "ukr", "ur": "urd", "vi": "vie",
    "zh": "chi zho",
}
# fmt: on
_TWO_LETTERS = {three: two for two, threes in _THREE_LETTERS.items() for three in threes.split()}
# The codes of ISO 639-2 for undetermined, no, multiple and uncoded languages; "" is a missing language.
_UNKNOWN = frozenset({"", "und", "zxx", "mul", "mis"})
_SAMPLE = 10_000  # characters of a text in which the language is detected
_MIN_PERCENT = 80
_MIN_BYTES = 200
# Control characters and noncharacters, for which CLD2 raises an error. The last two code points of each of
# the 17 planes are noncharacters.
_NO_TEXT = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufdd0-\\ufdef"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)


class Language(CorpusPass):
    """A pass that drops documents in languages other than `languages` of the config."""

    drop_reasons = (_OTHER_LANGUAGE,)

    def process_document(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document, or the reason to drop it if its language is known and not allowed."""
        language = candidate.document.language
        if self.config.languages and _code(language) in _UNKNOWN:
            language = detect_language(candidate.text)
        return candidate if language_allowed(language, self.config.languages) else _OTHER_LANGUAGE


def language_allowed(language: str | None, allowed: tuple[str, ...]) -> bool:
    """Return True if a language is allowed or unknown. An empty `allowed` allows all languages."""
    code = _code(language)
    return not allowed or code in _UNKNOWN or _two_letter_code(code) in set(map(_two_letter_code, allowed))


def is_english(language: str | None) -> bool:
    """Return True if a language code stands for English."""
    return _two_letter_code(_code(language)) == "en"


def detect_language(text: str) -> str | None:
    """Return the ISO 639-1 code of the language of a text; None if it is not certain.

    It is certain if CLD2 calls its answer reliable, and at least 80 % and 200 bytes of what it took for words
    are of that language.
    """
    sample = _NO_TEXT.sub(" ", text[:_SAMPLE]).encode()
    reliable, size, languages = pycld2.detect(sample, isPlainText=True)
    _, code, percent, _ = languages[0]
    certain = reliable and code != "un" and percent >= _MIN_PERCENT and size * percent >= 100 * _MIN_BYTES
    return str(code) if certain else None


def _code(language: str | None) -> str:
    """Return a language code in lower case, without region and script: `en` for `en_US`."""
    return (language or "").lower().replace("_", "-").partition("-")[0]


def _two_letter_code(code: str) -> str:
    code = code.lower().partition("-")[0]
    return _TWO_LETTERS.get(code, code)
