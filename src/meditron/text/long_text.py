"""Tokenize long texts in pieces, for tokenizers where this provably gives the ids of the whole text.

The tokenizers library needs about 140 bytes of memory per character of a text. A text is split between an
ASCII letter and a space that is followed by another ASCII letter, for two kinds of tokenizers:

- Byte-level tokenizers with a known pre-tokenizer, without a normalizer or with NFC, which composes no
  character with a space. None of these pre-tokenizers' patterns matches a letter together with the space
  after it, and none looks behind, so both pieces are matched as they are in the whole text.
- SentencePiece tokenizers whose vocabulary has no piece in which `▁` follows another character, so that no
  merge crosses the border. If such a tokenizer prepends `▁` to a text, it also prepends it to each piece, in
  place of the removed space.

In both cases no added token may contain a space or depend on the characters beside it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from meditron.core.errors import UsageError
from meditron.text.pretokenizers import NFC, is_known_pretokenizer
from meditron.text.token_bytes import METASPACE, PREFIX, SPACES

__all__ = ["MAX_UNCUT", "PIECE", "piece_prefix", "refuse_long_text", "split_text"]

PIECE = 1 << 18  # characters, for which the library takes about 40 MB
MAX_UNCUT = 1 << 22  # characters tokenized at once if a text cannot be split: 600 MB
_CUT = re.compile(r"[A-Za-z](?= [A-Za-z])")


def piece_prefix(spec: Mapping[str, Any]) -> str | None:
    """Return the prefix of each piece after the first; None if the tokenizer's texts must not be split.

    The prefix is the space at which the text was split, or empty if encoding prepends a space itself.
    """
    normalizer, split = spec.get("normalizer"), spec.get("pre_tokenizer")
    flags = ("single_word", "lstrip", "rstrip", "normalized" if normalizer else "lstrip")
    for token in spec["added_tokens"]:
        if any(token.get(flag) for flag in flags) or re.search(r"[\s▁]|^[A-Za-z]", token["content"]):
            return None
    if normalizer in (None, NFC) and is_known_pretokenizer(split):
        return " "
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    if split is None and [step for step in steps if step != PREFIX] == [SPACES]:
        space = "" if PREFIX in steps else " "
    elif not steps and split == {**METASPACE, "prepend_scheme": (split or {}).get("prepend_scheme")}:
        space = " "  # Metaspace prepends none to a text that begins with one
    else:
        return None
    vocab = spec["model"]["vocab"]
    whole = "▁" in vocab and not any(re.search("[^▁]▁", piece) for piece in vocab)
    return space if whole else None


def split_text(text: str, prefix: str, size: int | None = None) -> Iterator[str]:
    """Split a text into pieces of about `size` (PIECE) characters; UsageError if one would be too long."""
    size = PIECE if size is None else size
    start, before = 0, ""
    while len(text) - start > size:
        match = _CUT.search(text, start + size // 2, start + MAX_UNCUT)
        if match is None:
            break
        yield before + text[start : match.end()]
        start, before = match.end() + 1, prefix
    refuse_long_text(len(text) - start)
    yield before + text[start:]


def refuse_long_text(count: int) -> None:
    """Raise UsageError if there are more characters than may be tokenized at once."""
    if count > MAX_UNCUT:
        raise UsageError(
            f"a text has {count:,} characters without a place to split; the limit is {MAX_UNCUT:,}",
            hint="split the text, or remove parts that are not prose",
        )
