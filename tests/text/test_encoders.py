"""gigatoken gives the ids of HF tokenizers, also for names of control tokens and for odd Unicode."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.text import encoders
from meditron.text.encoders import (
    ODD_TEXTS,
    GigatokenEncoder,
    GigatokenTokenizer,
    TokenizersEncoder,
    UnsupportedTokenizer,
    find_difference,
)
from meditron.text.tokenizer import Tokenizer, load_tokenizer
from tiny import CHAT, TEXTS, tiny_hf

NAMES = ["<s>", "</s>", "<unk>", "<0x0A>", "<|endoftext|>", *CHAT, "[INST]"]
PARTS = st.one_of(
    st.sampled_from([*NAMES, *TEXTS, " ", "  ", "\n", "1,204", "½", "\U00010d40", "\u0301", "\u2581"]),
    st.text(max_size=30),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(tiny_hf(tmp_path_factory.mktemp("base"), control=CHAT))


def ids_of(encoder: encoders.TextEncoder, texts: list[str]) -> list[list[int]]:
    ids, sizes = encoder.encode(texts)
    assert len(sizes) == len(texts)
    assert sizes.sum() == len(ids)
    return [part.tolist() for part in np.split(ids, np.cumsum(sizes)[:-1])]


@settings(max_examples=60)
@given(texts=st.lists(st.lists(PARTS, max_size=6).map("".join), min_size=1, max_size=5))
def test_a_byte_level_vocabulary(small: Tokenizer, texts: list[str]) -> None:
    ids = ids_of(_gigatoken(small), texts)
    assert ids == ids_of(TokenizersEncoder(small), texts)
    assert not {i for of_text in ids for i in of_text} & small.special_ids


@pytest.mark.shared
@settings(max_examples=60)
@given(texts=st.lists(st.lists(PARTS, max_size=6).map("".join), min_size=1, max_size=5))
def test_the_vocabulary_of_llama_2(llama2: Tokenizer, texts: list[str]) -> None:
    ids = ids_of(_gigatoken(llama2), texts)
    assert ids == ids_of(TokenizersEncoder(llama2), texts)
    assert not {i for of_text in ids for i in of_text} & llama2.special_ids


@pytest.mark.network
@settings(max_examples=60)
@given(texts=st.lists(st.lists(PARTS, max_size=6).map("".join), min_size=1, max_size=5))
def test_the_vocabulary_of_smollm2_which_lacks_bytes_and_splits_digits(
    smollm2: Tokenizer, texts: list[str]
) -> None:
    ids = ids_of(_gigatoken(smollm2), texts)
    assert ids == ids_of(TokenizersEncoder(smollm2), texts)
    assert not {i for of_text in ids for i in of_text} & smollm2.special_ids


@pytest.mark.network
def test_numbers_of_all_scripts_and_missing_bytes(smollm2: Tokenizer) -> None:
    numbers = "".join(map(chr, range(0x20000)))
    texts = [*ODD_TEXTS, "a\x04b 1", *(t for t in (numbers[:0xD800], numbers[0xE000:]))]
    assert find_difference(_gigatoken(smollm2), TokenizersEncoder(smollm2), texts[:-2]) is None
    for text in texts[-2:]:
        parts = encoders._split_at_digits(text)
        assert "".join(parts) == text
        assert {p for p in parts if len(p) == 1} >= {c for c in text if c.isdecimal()}


_GIGATOKEN: dict[str, GigatokenEncoder] = {}


def _gigatoken(tokenizer: Tokenizer) -> GigatokenEncoder:
    """The encoder, built once: hypothesis calls a test many times."""
    if tokenizer.digest not in _GIGATOKEN:
        _GIGATOKEN[tokenizer.digest] = _new_gigatoken(tokenizer)
    return _GIGATOKEN[tokenizer.digest]


def _new_gigatoken(tokenizer: Tokenizer) -> GigatokenEncoder:
    return GigatokenEncoder(
        GigatokenTokenizer.from_tokenizer(tokenizer), lambda: TokenizersEncoder(tokenizer)
    )


def test_no_text_and_empty_texts(small: Tokenizer) -> None:
    for encoder in (_gigatoken(small), TokenizersEncoder(small)):
        assert ids_of(encoder, ["", "a", ""])[0::2] == [[], []]


def test_without_gigatoken_the_reason_is_named(small: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    with pytest.raises(UnsupportedTokenizer, match="not installed"):
        _new_gigatoken(small)


def test_an_unknown_pretokenizer_is_not_supported(small: Tokenizer) -> None:
    split = {"type": "Split", "pattern": {"Regex": "[aeiou]+"}, "behavior": "Isolated", "invert": False}
    with pytest.raises(UnsupportedTokenizer, match="does not support"):
        _new_gigatoken(Tokenizer({**small.spec, "pre_tokenizer": split}, small.special, small.path))


def test_a_difference_is_found(small: Tokenizer) -> None:
    class Wrong(TokenizersEncoder):
        def encode(self, texts):
            ids, sizes = super().encode(texts)
            return (ids[::-1] if "wrong" in texts[0] else ids), sizes

    reference = TokenizersEncoder(small)
    assert find_difference(Wrong(small), reference, ["right", "wrong", "right"]) == "wrong"
    assert find_difference(Wrong(small), reference, ["right"]) is None
