"""The bytes of each token, and decoding. A token's bytes never change, so ids can be decoded one by one.

Models have one of two kinds of vocabularies. Byte-level vocabularies (GPT-2's kind) write each byte as one
printable character. SentencePiece vocabularies write a space as `▁`, and a byte that is not part of a piece
as `<0xNN>`.
"""

import codecs
import re
from collections.abc import Callable, Collection
from functools import cache
from typing import Any

__all__ = [
    "METASPACE",
    "PREFIX",
    "SPACES",
    "ByteMap",
    "TextStream",
    "byte_alphabet",
    "byte_level_bytes",
    "byte_map_of_decoder",
    "is_byte_piece",
    "sentencepiece_bytes",
    "strips_first_space",
]

ByteMap = Callable[[str], bytes]
# Steps in the tokenizer.json of SentencePiece vocabularies that replace or prepend spaces.
PREFIX = {"type": "Prepend", "prepend": "▁"}
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@cache
def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's table of the 256 printable characters that stand for bytes, as character → byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(others)}


def byte_level_bytes(token: str) -> bytes:
    """Return the bytes of a byte-level token."""
    alphabet = byte_alphabet()
    try:
        return bytes(alphabet[character] for character in token)
    except KeyError:  # an added token, written as plain text
        return token.encode()


def sentencepiece_bytes(token: str) -> bytes:
    """Return the bytes of a SentencePiece token."""
    byte = _BYTE_PIECE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def is_byte_piece(token: str) -> bool:
    """Return whether a SentencePiece token is a byte (`<0x0A>`)."""
    return _BYTE_PIECE.fullmatch(token) is not None


def _decoder_steps(decoder: object) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [step for step in decoder.get("decoders", []) if isinstance(step, dict)]
    return [decoder]


def byte_map_of_decoder(decoder: object) -> ByteMap | None:
    """Return the function token → bytes for a tokenizer.json's `decoder`; None for an unknown decoder."""
    steps = [step.get("type") for step in _decoder_steps(decoder)]
    if steps == ["ByteLevel"]:
        return byte_level_bytes
    if steps and set(steps) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return sentencepiece_bytes
    return None


def strips_first_space(decoder: object) -> bool:
    """Return whether a `decoder` removes a text's first space, which encoding prepends."""
    return any(
        (step.get("type") == "Strip" and step.get("start", 0) > 0)
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in _decoder_steps(decoder)
    )


class TextStream:
    """Incremental decoder of ids that arrive one at a time; it never returns a part of a character.

    The ids continue a prompt, so the first space is kept. Special tokens give no text.
    """

    def __init__(self, bytes_of: Callable[[int], bytes], skip: Collection[int]) -> None:
        self._bytes_of = bytes_of
        self._skip = skip
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def step(self, token_id: int) -> str:
        """Add one id; return the text that it completes, which is empty while a character is incomplete."""
        return "" if token_id in self._skip else self._utf8.decode(self._bytes_of(token_id))

    def flush(self) -> str:
        """Return U+FFFD if the last character is incomplete, else an empty text."""
        return self._utf8.decode(b"", final=True)
