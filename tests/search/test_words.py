"""Normalized words, and the compiled tables that follow the same rule."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.search.question_index import hash_words
from meditron.search.words import split_words

TEXTS = st.text(
    st.characters(codec="utf-8") | st.sampled_from(" .-'\u0301\u00adéßﬁ²½ΑάЙガ漢字ไทย한ـ٥کی"), max_size=60
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A 54-year-old's  pain (p < .05)", "a 54 year old s pain p 05"),
        ("ÉMILE Émile E\u0301mile émile", "emile emile emile emile"),
        ("ﬁbrosis 10² m² ½ Lipitor™", "fibrosis 102 m2 12 lipitortm"),
        ("co\u00adoperate zero\u200dwidth under_score", "cooperate zerowidth under score"),
        ("STRASSE straße Σίσυφος", "strasse strasse σισυφοσ"),
        ("糖尿病 is diabetes", "糖 尿 病 is diabetes"),
        ("당뇨병", unicodedata.normalize("NFKD", "당뇨병")),
        ("الصـــدر ٥٤ کلیه", "الصدر 54 كليه"),
        ("５४ ۵", "54 5"),
        ("… — !", ""),
    ],
)
def test_words_of_texts(text: str, words: str) -> None:
    assert split_words(text) == words.split()


@given(TEXTS)
def test_canonically_equal_texts_have_equal_words(text: str) -> None:
    words = split_words(text)
    assert split_words(unicodedata.normalize("NFC", text)) == words
    assert split_words(unicodedata.normalize("NFD", text)) == words


@given(st.lists(TEXTS, min_size=1, max_size=8))
def test_the_compiled_hashes_are_equal_exactly_for_equal_words(texts: list[str]) -> None:
    text = " ".join(texts)
    words, hashes = split_words(text), hash_words(text).tolist()
    assert len(words) == len(hashes)
    assert len(set(words)) == len(set(hashes)) == len(set(zip(words, hashes, strict=True)))
    assert hash_words(" ".join(words)).tolist() == hashes


def test_a_lone_surrogate_separates_words() -> None:
    assert split_words("a\ud800b") == ["a", "b"]
    assert hash_words("a\ud800b").tolist() == hash_words("a b").tolist()
