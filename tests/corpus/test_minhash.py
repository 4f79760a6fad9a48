"""MinHash signatures: shingles against regular expressions, candidates against exact Jaccard similarity."""

import json
import os
import random
import re
import subprocess
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.corpus.minhash import SHINGLE_WORDS, SKETCH_SIZE, MinHash, shingle_hashes
from meditron.search.words import WITHOUT_BLANKS

BANDS_OF_SIMILARITY = tuple(pairwise((0.6, 0.7, 0.8, 0.9, 1.0)))


def word_shingles(text: str) -> list[tuple[str, ...]]:
    """Return the shingles of a text as tuples of words: the reference."""
    alone = "".join(f"{chr(first)}-{chr(last)}" for first, last in WITHOUT_BLANKS)
    words = re.findall(rf"[^\W{alone}]+|(?!\W)[{alone}]", unicodedata.normalize("NFKC", text).lower())
    count = max(1, len(words) - SHINGLE_WORDS + 1) if words else 0
    return [tuple(words[start : start + SHINGLE_WORDS]) for start in range(count)]


def random_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Return texts of random words, each with a copy in which up to a twelfth of the words is replaced."""
    random_ = random.Random(seed)
    pairs = []
    for _ in range(count):
        words = [f"w{random_.randrange(5_000)}" for _ in range(random_.randrange(80, 250))]
        edited = list(words)
        for _ in range(random_.randint(1, len(words) // 12)):
            edited[random_.randrange(len(words))] = f"v{random_.randrange(5_000)}"
        pairs.append((" ".join(words), " ".join(edited)))
    return pairs


@given(
    st.text(st.characters(codec="utf-8"), max_size=60)
    | st.text("ab\u0301é ﬁ_²µ.ſẞ\n", max_size=80)
    | st.text("a 血压ｶがกำ。ー𠀀", max_size=80)
)
def test_shingles_are_those_of_a_regular_expression(text: str) -> None:
    shingles = word_shingles(text)
    hashes = shingle_hashes(text)
    assert len(hashes) == len(shingles)
    # Equal shingles have equal hashes, and different shingles have different ones.
    assert len(set(zip(shingles, hashes.tolist(), strict=True))) == len(set(shingles))
    assert len(set(hashes.tolist())) == len(set(shingles))


def test_an_edited_chinese_text_is_a_near_duplicate() -> None:
    text = (
        "高血压是一种常见的慢性疾病，主要表现为动脉血压持续升高。长期高血压可导致心脏、大脑和肾脏等重要器官的损害。"
        "治疗包括生活方式干预和药物治疗，常用药物有利尿剂、钙通道阻滞剂和血管紧张素转换酶抑制剂。"
    )
    one, other = (set(shingle_hashes(each).tolist()) for each in (text, text.replace("慢性", "慢病")))
    assert len(one & other) / len(one | other) > 0.8
    assert len(one) > 80


LETTERS = st.sampled_from("aBé Σσς²µ½™…ßİıΑω ЖжǅⅣÅΩ–_'") | st.characters(max_codepoint=0x2BFF)


@given(st.text(LETTERS, max_size=60))
def test_characters_have_the_same_form_alone_and_in_a_normalized_text(text: str) -> None:
    # The last word is outside of the table of simple characters, so the whole text is normalized.
    alone, normalized = shingle_hashes(f"{text} a b c d e"), shingle_hashes(f"{text} a b c d e 日")
    assert np.array_equal(alone, normalized[:-1])


def test_equal_words_in_another_form_have_the_same_shingles() -> None:
    one = shingle_hashes("Über ﬁve Patients, (n = 10) in 2 groups…")
    other = shingle_hashes("U\u0308BER  five patients n 10 in ２ groups")
    assert np.array_equal(one, other)
    assert not np.array_equal(one, shingle_hashes("über five patients n 11 in 2 groups"))


@pytest.mark.parametrize(
    ("text", "shingles"), [("", 0), ("… - ?", 0), ("a", 1), ("a b c d", 1), ("a b c d e f", 2)]
)
def test_a_short_text_has_a_signature_if_it_has_a_word(text: str, shingles: int) -> None:
    signature = MinHash().sign(text)
    assert signature.shingle_count == len(signature.sketch) == shingles
    assert signature.keys.shape == (14,)
    assert (signature.keys != 0).all() == bool(shingles)
    assert (signature.keys == 0).all() != bool(shingles)


def test_the_sketch_of_a_long_text_is_the_smallest_of_its_shingles() -> None:
    text = " ".join(f"word{number % 3_000}" for number in range(8_000))
    signature = MinHash().sign(text)
    hashes = sorted(set(shingle_hashes(text).tolist()))
    assert signature.sketch.tolist() == hashes[:SKETCH_SIZE]
    assert signature.shingle_count == 8_000 - SHINGLE_WORDS + 1


def test_signatures_are_the_same_on_every_machine() -> None:
    keys = MinHash(4, 2).sign("Aspirin inhibits cyclooxygenase and lowers the risk of infarction.").keys
    assert [f"{key:016x}" for key in keys.tolist()] == ["6f9f24818b99d8b9", "c57e88d4ad923856"]


@pytest.mark.parametrize(("hashes", "bands"), [(112, 15), (8, 16), (0, 1), (8, 0)])
def test_hashes_are_a_multiple_of_bands(hashes: int, bands: int) -> None:
    with pytest.raises(ValueError, match="hashes must be a multiple of bands"):
        MinHash(hashes, bands)


def test_candidates_are_as_frequent_as_theory_predicts() -> None:
    """`benchmarks/corpus.py` repeats this with 5,000 pairs of real abstracts per band."""
    hasher = MinHash()
    similarities, candidates = [], []
    for one, other in random_pairs(6_000, seed=3):
        first, second = set(word_shingles(one)), set(word_shingles(other))
        similarities.append(len(first & second) / len(first | second))
        candidates.append(bool((hasher.sign(one).keys == hasher.sign(other).keys).any()))
    similarity, candidate = np.array(similarities), np.array(candidates)
    theory = 1 - (1 - similarity**8) ** 14
    for low, high in BANDS_OF_SIMILARITY:
        chosen = (similarity >= low) & (similarity < high)
        deviation = (theory[chosen] * (1 - theory[chosen])).sum() ** 0.5 / chosen.sum()
        assert chosen.sum() > 400
        assert abs(candidate[chosen].mean() - theory[chosen].mean()) < max(0.005, 3.5 * deviation)


PROGRAM = """
import json
from meditron.search.words import WITHOUT_BLANKS
from meditron.corpus.minhash import MinHash, _shingles
keys = MinHash().sign("one two three four five six").keys
print(json.dumps([keys.tolist(), sum(_shingles.stats.cache_hits.values())]))
"""


def import_minhash(environment: dict[str, str]) -> tuple[list[int], int]:
    """Return the keys of a text from a new process, and the number of kernels that came from the cache."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert not result.stderr
    keys, hits = json.loads(result.stdout)
    return keys, hits


def test_kernels_are_cached_and_a_damaged_cache_is_ignored(tmp_path: Path) -> None:
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    keys, hits = import_minhash(cache)
    assert hits == 0
    assert import_minhash(cache) == (keys, 1)
    for index in (tmp_path / "cache").rglob("*.nbi"):
        index.write_bytes(b"")
    assert import_minhash(cache) == (keys, 0)


def test_kernels_need_no_writable_folder() -> None:
    # As in a read-only installation without a home folder: numba finds no place for a cache.
    no_place = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "NUMBA_CACHE_DIR": ""}
    keys, hits = import_minhash(no_place)
    assert keys == MinHash().sign("one two three four five six").keys.tolist()
    assert hits == 0
