"""Long texts in pieces, where tokenizing the pieces provably gives the ids of the whole.

The library needs some 140 bytes for each character of a text. A text is cut between a letter of ASCII and a
blank before another, for tokenizers of two kinds:

- Byte-level ones with a known cut and no normalizer: none of the patterns joins a letter with a blank behind
  it, and none looks back, so both sides are matched as in the whole.
- SentencePiece ones without a vocabulary piece in which `▁` follows another character: no merge crosses such
  a place. If a tokenizer puts `▁` before a text, it does so before each piece, in the place of the blank.

No added token may hold a blank or depend on what stands beside it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from meditron.core.errors import UsageError
from meditron.text.pieces import METASPACE, PREFIX, SPACES
from meditron.text.pretokenizers import is_known

__all__ = ["MAX_UNCUT", "PIECE", "blank_between", "cut", "refuse_long"]

PIECE = 1 << 18  # characters; the library takes some 40 MB for them
MAX_UNCUT = 1 << 22  # characters that are tokenized at once if there is no place to cut: 600 MB
_CUT = re.compile(r"[A-Za-z](?= [A-Za-z])")


def blank_between(spec: Mapping[str, Any]) -> str | None:
    """The blank that later pieces begin with: none if the tokenizer puts one; None if no text may be cut."""
    normalizer, split = spec.get("normalizer"), spec.get("pre_tokenizer")
    flags = ("single_word", "lstrip", "rstrip", "normalized" if normalizer else "lstrip")
    for token in spec["added_tokens"]:
        if any(token.get(flag) for flag in flags) or re.search(r"[\s▁]|^[A-Za-z]", token["content"]):
            return None
    if normalizer is None and is_known(split):
        return " "
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    if split is None and [step for step in steps if step != PREFIX] == [SPACES]:
        blank = "" if PREFIX in steps else " "
    elif not steps and split == {**METASPACE, "prepend_scheme": (split or {}).get("prepend_scheme")}:
        blank = " "  # none is put before a text that begins with one
    else:
        return None
    vocab = spec["model"]["vocab"]
    whole = "▁" in vocab and not any(re.search("[^▁]▁", piece) for piece in vocab)
    return blank if whole else None


def cut(text: str, blank: str) -> Iterator[str]:
    """Cut a text into pieces of about `PIECE` characters; UsageError for a stretch without a place to cut."""
    start, before = 0, ""
    while len(text) - start > PIECE:
        found = _CUT.search(text, start + PIECE // 2, start + MAX_UNCUT)
        if found is None:
            break
        yield before + text[start : found.end()]
        start, before = found.end() + 1, blank
    refuse_long(len(text) - start)
    yield before + text[start:]


def refuse_long(count: int) -> None:
    """Raise UsageError for more characters than may be tokenized at once."""
    if count > MAX_UNCUT:
        raise UsageError(
            f"a text has {count:,} characters without a place to cut; {MAX_UNCUT:,} can be tokenized at once",
            hint="split the text, or remove what is not prose",
        )
