"""Repair of text whose UTF-8 was read as Windows-1252: `â‰¤5 Âµg` becomes `≤5 µg`.

Only sequences that no language and no formula writes are repaired; all others stay, because a wrong repair
would damage what was right:

- `â` and two more characters that encode a sign: `â€™` ’, `â‰¥` ≥, `âˆ’` −, `â„¢` ™.
- `Ã`, `Î` or `Ï` and a character that encode a Latin or Greek letter: `Ã©` é, `Î¼` μ, `Ï€` π. The second
  character is no quotation mark, dash or blank, which can follow a capital letter (`IRMÃ—`); so `Ã—`, which
  would be ×, stays.
- `Â` and a sign: `Â°` °, `Â±` ±, `Âµ` µ. `Â²` only after a letter in lower case (`cmÂ²`), because an operator
  squared is written alike.
"""

import re

__all__ = ["repair_mojibake"]

# Windows-1252 leaves five bytes undefined; programs decode them as the control characters of these numbers.
_BYTES = {bytes([code]).decode("cp1252", "ignore") or chr(code): code for code in range(0x80, 0x100)}
_BYTES |= {chr(code): code for code in range(0x80, 0xA0)}
_CONTINUATION = "".join(character for character, code in _BYTES.items() if code < 0xC0)
_AMBIGUOUS = "‘’“”„‚–—•…«»\xa0"
_CERTAIN = "".join(character for character in _CONTINUATION if character not in _AMBIGUOUS)


def _character_class(characters: str) -> str:
    return "[" + re.escape(characters) + "]"


_SEQUENCE = re.compile(
    # `Ãƒ` is `Ã`, the first half of the next pair: read at once, because each pass takes linear time.
    "(?P<chain>Ã[ƒ\x83]+)"
    f"|â{_character_class(_CONTINUATION)}{{2}}"
    f"|[ÃÎÏ]{_character_class(_CERTAIN)}"
    f"|Â{_character_class(''.join(c for c in _CERTAIN if c not in '²³¹'))}"
    "|(?<=[a-zµ])Â[²³¹]"
)
_LEADS = "âÃÎÏÂ"


def repair_mojibake(text: str) -> str:
    """Return the text with all certain sequences decoded; repeated until none is left."""
    if text.isascii():
        return text
    while any(lead in text for lead in _LEADS):
        repaired = _SEQUENCE.sub(_decode, text)
        if repaired == text:
            break
        text = repaired
    return text


def _decode(match: re.Match[str]) -> str:
    if match["chain"]:
        return "Ã"
    encoded = bytes(_LEAD_BYTES.get(character) or _BYTES[character] for character in match[0])
    try:
        decoded = encoded.decode()
    except UnicodeDecodeError:  # not the encoding of a character
        return match[0]
    # A control character would be removed afterwards, and a letter with it that may have been right.
    return decoded if decoded.isprintable() else match[0]


_LEAD_BYTES = {"â": 0xE2, "Ã": 0xC3, "Î": 0xCE, "Ï": 0xCF, "Â": 0xC2}
