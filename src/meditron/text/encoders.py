"""Encoders of many texts: HF tokenizers, and gigatoken, which gives the same ids about ten times as fast.

gigatoken implements a tokenizer.json again, so its ids are compared with those of HF tokenizers before it is
used (`find_difference`). Three things are adapted:

- Control tokens are left out of its tokenizer.json. The name of a control token inside a text (`<s>`) is
  therefore text, as in `Tokenizer.encode`, and no text gives the id of a control token.
- It splits off no digits, as SmolLM2's pre-tokenizer does. Texts are split at digits before they are encoded.
- It refuses byte-level vocabularies without a token for every byte, such as SmolLM2's. The missing tokens are
  added with ids beyond the vocabulary, and a text whose ids contain one is encoded by HF tokenizers.

gigatoken reads tokenizer.json from memory and opens no file and no connection. Its cache of words has a
fixed size. Encoders use one thread: the stage's workers are processes.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from typing import Any, Protocol, Self

import msgspec
import numpy as np
import numpy.typing as npt

from meditron.text.long_text import PIECE
from meditron.text.token_bytes import byte_alphabet, byte_level_bytes, byte_map_of_decoder
from meditron.text.tokenizer import Tokenizer

__all__ = [
    "ODD_TEXTS",
    "GigatokenEncoder",
    "GigatokenTokenizer",
    "TextEncoder",
    "TokenizersEncoder",
    "UnsupportedTokenizer",
    "find_difference",
]

Encoded = tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.int64]]
"""The ids of all texts, concatenated, and the number of ids of each text."""

_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

_BEYOND_16_BITS = re.compile("[\U00010000-\U0010ffff]")

ODD_TEXTS: tuple[str, ...] = (
    "",
    " ",
    "\n\n\n \t\r\n x",
    "  a  b   c \u00a0d\u2009e\u3000f",
    "<s> </s> <unk> <pad> [INST] <|endoftext|> <|im_start|>user<|im_end|> <0x0A> <|begin_of_text|>",
    "e\u0301 \u0301\u0301x a\u0308\u0323 \u1100\u1161\u11a8",
    "\ufb01 \u00bd \u2460 \u2155 x\u00b2 10\u207b\u2079",
    "漢字かな交じり文 한국어 العربية עברית हिन्दी ไทย ΑΒΓ αβγ Жизнь",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e8\U0001f1ed",
    "\ufe0f\u20e3 \U0001d400 \U0001f9ec",
    "\u2581x\u2581\u2581 _x__ \ufffd \ufeff \u200b\u200d \ufdd1 \U0010fffd \x00\x04\x1b\x7f\x85",
    "5 µg/kg, p<0.05, 95% CI [1.1–2.3], 1,204 ± 3.5; TGF-β1, CO₂, ²³⁵U, IL-6's don't I'M",
    "x" * 3_000 + " " * 3_000 + "ab" * 3_000 + "1" * 3_000,
)
"""Texts with characters and lengths on which implementations of a tokenizer may differ."""


class UnsupportedTokenizer(Exception):
    """gigatoken is not installed, or does not support the tokenizer; the message has the reason."""


class TextEncoder(Protocol):
    """An encoder of texts to token ids, without BOS and end-of-text token."""

    name: str
    """Name of the library."""
    batch_characters: int
    """Number of characters that are encoded at once in bounded memory."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the ids of all texts, concatenated, and the number of ids of each text."""
        ...


class TokenizersEncoder:
    """Encoder with HF tokenizers, the reference of the ids."""

    name = "tokenizers"
    batch_characters = PIECE  # the library needs about 300 bytes for each token

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the ids of all texts, concatenated, and the number of ids of each text."""
        # Arrays instead of lists: a Python integer takes 28 bytes.
        arrays = [np.array(ids, np.uint32) for ids in self._tokenizer.encode_batch(texts, bos=False)]
        sizes = np.array([len(ids) for ids in arrays], np.int64)
        return np.concatenate([np.empty(0, np.uint32), *arrays]), sizes


class GigatokenTokenizer(msgspec.Struct, frozen=True):
    """A tokenizer as gigatoken reads it. Stored as JSON, it is read five times as fast as a `Tokenizer`."""

    spec: msgspec.Raw
    """The content of tokenizer.json, adapted to gigatoken."""
    splits_digits: bool
    """True if texts are to be split at digits before they are encoded."""
    vocab_size: int
    """`Tokenizer.vocab_size`; the ids from here on stand for bytes that the vocabulary lacks."""

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> Self:
        """Adapt a tokenizer to gigatoken, which may still refuse it."""
        spec, splits_digits = _gigatoken_spec(tokenizer)
        return cls(msgspec.Raw(msgspec.json.encode(spec)), splits_digits, tokenizer.vocab_size)


class GigatokenEncoder:
    """Encoder with gigatoken.

    Args:
        tokenizer: The tokenizer.
        reference: Makes the encoder of texts with a byte that the vocabulary lacks.

    Raises:
        UnsupportedTokenizer: gigatoken is not installed, or does not support this tokenizer.
    """

    name = "gigatoken"
    batch_characters = 1 << 23  # each call takes five milliseconds longer than its texts

    def __init__(self, tokenizer: GigatokenTokenizer, reference: Callable[[], TextEncoder]) -> None:
        try:
            from gigatoken import Tokenizer as Gigatoken
        except ImportError as missing:
            raise UnsupportedTokenizer("gigatoken is not installed") from missing
        self._splits_digits = tokenizer.splits_digits
        self._vocab_size = tokenizer.vocab_size
        self._make_reference = reference
        try:
            self._backend = Gigatoken.from_json(bytes(tokenizer.spec))
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UnsupportedTokenizer(f"gigatoken does not support this tokenizer: {reason}") from error

    @cached_property
    def _reference(self) -> TextEncoder:
        # Made only if it is needed: few corpora have a byte that the vocabulary lacks.
        return self._make_reference()

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the ids of all texts, concatenated, and the number of ids of each text."""
        if self._splits_digits:
            parts = [_split_at_digits(text) for text in texts]
            ids, part_sizes = self._encode_whole([part for of_text in parts for part in of_text])
            ends = np.cumsum([0, *map(len, parts)])
            sizes = np.diff(np.concatenate([np.zeros(1, np.int64), np.cumsum(part_sizes)])[ends])
        else:
            ids, sizes = self._encode_whole(list(texts))
        if not ids.size or ids.max() < self._vocab_size:
            return ids, sizes
        return self._encode_texts_with_missing_bytes(texts, ids, sizes)

    def _encode_whole(self, texts: list[str]) -> Encoded:
        layout = self._backend.encode_batch(texts, parallel=False).layout
        offsets = np.asarray(layout.offsets.data)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return ids, np.diff(offsets).astype(np.int64)

    def _encode_texts_with_missing_bytes(
        self, texts: Sequence[str], ids: npt.NDArray[np.integer[Any]], sizes: npt.NDArray[np.int64]
    ) -> Encoded:
        """Replace the ids of the texts with a byte that the vocabulary does not have."""
        arrays = np.split(ids, np.cumsum(sizes)[:-1])
        for number, array in enumerate(arrays):
            if array.size and array.max() >= self._vocab_size:
                arrays[number] = self._reference.encode([texts[number]])[0]
        return np.concatenate(arrays), np.array([len(array) for array in arrays], np.int64)


def find_difference(encoder: TextEncoder, reference: TextEncoder, texts: Iterable[str]) -> str | None:
    """Return the first text, or None, whose ids differ between two encoders."""
    for text in texts:
        try:
            ids = encoder.encode([text])[0]
        except (RuntimeError, ValueError):
            return text
        if not np.array_equal(ids, reference.encode([text])[0]):
            return text
    return None


def _gigatoken_spec(tokenizer: Tokenizer) -> tuple[dict[str, Any], bool]:
    """Return a tokenizer.json for gigatoken, and True if texts are to be split at digits before."""
    spec = dict(tokenizer.spec)
    spec |= {"truncation": None, "padding": None, "post_processor": None}
    spec["added_tokens"] = [token for token in spec["added_tokens"] if not token.get("special")]
    steps = (spec.get("pre_tokenizer") or {}).get("pretokenizers", [])
    # Without a normalizer and other tokens, the split at digits is the first step of the whole encoding.
    splits_digits = (
        len(steps) == 2
        and steps[0] == _DIGITS
        and {**steps[1], "trim_offsets": True} == _BYTE_LEVEL
        and not spec.get("normalizer")
        and not spec["added_tokens"]
    )
    if splits_digits:
        spec["pre_tokenizer"] = _BYTE_LEVEL
    if byte_map_of_decoder(spec.get("decoder")) is byte_level_bytes:
        vocabulary = dict(spec["model"]["vocab"])
        missing = [character for character in byte_alphabet() if character not in vocabulary]
        vocabulary |= {character: tokenizer.vocab_size + n for n, character in enumerate(missing)}
        spec["model"] = {**spec["model"], "vocab": vocabulary}
    return spec, splits_digits


def _split_at_digits(text: str) -> list[str]:
    """Split a text as HF's pre-tokenizer `Digits` does: each digit is a part, and so is the text between."""
    common, complete = _number_patterns()
    # `re` compares a character with a set that reaches beyond 16 bits one range after another, which takes a
    # hundred times as long.
    pattern = complete if _BEYOND_16_BITS.search(text) else common
    return [part for part in pattern.split(text) if part]


@cache
def _number_patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return patterns of the characters that `Digits` splits off: those of 16 bits, and all, in a group."""
    from tokenizers.pre_tokenizers import Digits

    # The library's version of Unicode is newer than Python's, so it decides about unassigned characters too.
    # Planes above 1 have no numbers.
    kinds = {"Nd", "Nl", "No", "Cn"}
    possible = [c for c in map(chr, range(0x20000)) if unicodedata.category(c) in kinds]
    split = Digits(individual_digits=True).pre_tokenize_str("a".join(possible))
    numbers = [part for part, _ in split if len(part) == 1 and part != "a"]
    common = [number for number in numbers if ord(number) < 1 << 16]
    return re.compile(f"([{''.join(common)}])"), re.compile(f"([{''.join(numbers)}])")
