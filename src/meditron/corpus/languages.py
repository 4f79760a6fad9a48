"""The pass that keeps documents in the configured languages. `eng`, `en` and `en-GB` are one language."""

from meditron.corpus.candidate import Candidate, CorpusPass, DropReason

__all__ = ["Language", "language_allowed"]

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


class Language(CorpusPass):
    """A pass that drops documents in languages other than `languages` of the config."""

    drop_reasons = (_OTHER_LANGUAGE,)

    def process_document(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document, or the reason to drop it if its language is known and not allowed."""
        allowed = language_allowed(candidate.document.language, self.config.languages)
        return candidate if allowed else _OTHER_LANGUAGE


def language_allowed(language: str | None, allowed: tuple[str, ...]) -> bool:
    """Return True if a language is allowed or unknown. An empty `allowed` allows all languages."""
    # Region and script are ignored: `en_US` is `en`.
    code = (language or "").lower().replace("_", "-").partition("-")[0]
    return not allowed or code in _UNKNOWN or _two_letter_code(code) in set(map(_two_letter_code, allowed))


def _two_letter_code(code: str) -> str:
    code = code.lower().partition("-")[0]
    return _TWO_LETTERS.get(code, code)
