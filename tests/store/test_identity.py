"""Content hashes: the normalized text is that of its definition, however it is computed."""

import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from meditron.store.identity import content_sha256, normalize_text

SPACES = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace())


def defined(text: str) -> str:
    """The definition: NFKC, case-folded, words joined by single blanks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@given(st.lists(st.one_of(st.text(max_size=8), st.text(alphabet=SPACES, max_size=4))).map("".join))
def test_the_normalized_text_is_that_of_the_definition(text: str) -> None:
    assert normalize_text(text) == defined(text)


def test_every_character_is_normalized_as_defined() -> None:
    characters = [c for c in map(chr, range(sys.maxunicode + 1)) if not "\ud800" <= c <= "\udfff"]
    text = "x".join(characters)
    assert normalize_text(text) == defined(text)
    assert content_sha256(f"A{SPACES}B") == content_sha256("a b")
