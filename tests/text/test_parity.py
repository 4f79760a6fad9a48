"""Ids equal to those of transformers, sentencepiece and llama.cpp, on real citations and on hard texts."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.llamacpp import llama_server
from tests.text.conftest import DIGITS, HARD

from meditron.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t019abcE'’▁-=<>|")), max_size=80
)


@pytest.fixture(params=[pytest.param("smollm2"), pytest.param("llama2", marks=pytest.mark.shared)])
def vocabulary(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.fixture
def transformers_tokenizer(vocabulary: Tokenizer, tmp_path: Path):
    from transformers import AutoTokenizer

    vocabulary.save(tmp_path / "saved")
    return AutoTokenizer.from_pretrained(tmp_path / "saved")


@pytest.mark.network
def test_ids_equal_transformers(vocabulary: Tokenizer, transformers_tokenizer, citations):
    texts = citations + HARD
    assert (
        vocabulary.encode_batch(texts)
        == transformers_tokenizer(texts, split_special_tokens=True)["input_ids"]
    )
    theirs = transformers_tokenizer(texts)["input_ids"]
    assert [vocabulary.encode(text, special=True) for text in texts] == theirs


@pytest.mark.network
def test_text_equals_transformers(vocabulary: Tokenizer, transformers_tokenizer, citations):
    for text in citations[:200] + HARD:
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == transformers_tokenizer.decode(ids, skip_special_tokens=True)
        assert vocabulary.decode(ids, skip_special=False) == transformers_tokenizer.decode(ids)


def test_transformers_finds_the_same_tokens(vocabulary: Tokenizer, transformers_tokenizer):
    assert transformers_tokenizer.bos_token_id == vocabulary.bos_id
    assert transformers_tokenizer.eos_token_id == vocabulary.eos_id
    assert transformers_tokenizer.chat_template == vocabulary.chat_template
    assert len(transformers_tokenizer) == vocabulary.vocab_size


@pytest.fixture(scope="session")
def sentencepiece(shared: Path):
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(shared / "data/llama-tiny/llama2-tokenizer.model"))


@pytest.mark.shared
@pytest.mark.network
def test_ids_equal_sentencepiece(llama2: Tokenizer, sentencepiece, citations):
    texts = citations + HARD
    assert llama2.encode_batch(texts, bos=False) == sentencepiece.encode(texts)
    for text in texts:
        assert (
            llama2.decode(llama2.encode(text))
            == text.replace("▁", " ")
            == sentencepiece.decode(sentencepiece.encode(text))
        )


@pytest.mark.shared
@settings(deadline=None, max_examples=300)
@given(text=TEXTS)
def test_ids_equal_sentencepiece_on_any_text(llama2: Tokenizer, sentencepiece, text: str):
    assert llama2.encode(text, bos=False) == sentencepiece.encode(text)


@pytest.mark.shared
@pytest.mark.parametrize("length", [1, 2, 3, 7, 15, 16, 17, 31, 50, 100])
def test_runs_of_spaces_grow_as_in_sentencepiece(llama2: Tokenizer, sentencepiece, length: int):
    for text in (" " * length, f"a{' ' * length}b", f"\n{' ' * length}\n{' ' * (length // 2)}x"):
        assert llama2.encode(text, bos=False) == sentencepiece.encode(text)


@pytest.mark.network
@pytest.mark.parametrize("name", ["smollm2", pytest.param("llama2", marks=pytest.mark.shared)])
def test_ids_equal_llama_cpp(name: str, request: pytest.FixtureRequest, runnable, citations, tmp_path: Path):
    source, ours = request.getfixturevalue(f"{name}_gguf"), request.getfixturevalue(name)
    with llama_server(runnable(source, tmp_path / "model.gguf", {})) as server:
        for text in citations + HARD:
            assert ours.encode(text) == server.tokenize(text)
        for text in HARD:
            assert ours.encode(text, special=True) == server.tokenize(text, special=True)


@pytest.mark.parametrize("pre", ["default", "gpt-2", "llama-bpe"])
def test_other_pretokenizers_equal_llama_cpp(
    pre: str, smollm2_gguf: Path, runnable, citations, tmp_path: Path
):
    model = runnable(smollm2_gguf, tmp_path / "model.gguf", {"tokenizer.ggml.pre": pre})
    ours = load_tokenizer(model)
    with llama_server(model) as server:
        for text in citations[:100] + HARD:
            assert ours.encode(text, bos=False) == server.tokenize(text, bos=False), text
        assert ours.encode("a") == server.tokenize("a")


def test_transformers_own_gguf_reader_loses_the_digit_rule(smollm2: Tokenizer, smollm2_gguf: Path, citations):
    """Why the reference is transformers on what we save: its own reader is another tokenizer, if barely."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    some = citations[:200]
    assert theirs(some, split_special_tokens=True)["input_ids"] == smollm2.encode_batch(some)
    assert DIGITS in HARD, "on which llama.cpp gives our ids"
    assert theirs(DIGITS)["input_ids"] != smollm2.encode(DIGITS)
