"""Tokenizers with added special tokens, against transformers and llama.cpp."""

from pathlib import Path

import pytest
from tests.llamacpp import llama_server
from tests.text.conftest import HARD
from tests.text.test_gguf_write import HEAD
from tests.text.test_hf_folder import byte_level, folder, token
from tests.text.test_tokenizer import opened
from transformers import AutoTokenizer

from meditron.core.errors import InputError, UsageError
from meditron.store.gguf import GGUF
from meditron.text.added_tokens import with_special_tokens
from meditron.text.gguf_keys import TokenType
from meditron.text.gguf_write import gguf_metadata
from meditron.text.tokenizer import Tokenizer, load_tokenizer

CHATML = ("<|im_start|>", "<|im_end|>")
TOKENS = (*CHATML, "[bib_ref]", "[/bib_ref]", "<|réponse 1|>")
TEXTS = [
    *HARD,
    "<|im_start|>question\nWhat is 37 °C?<|im_end|>\n<|im_start|>answer\nNormal.<|im_end|>\n",
    "as shown [bib_ref] A trial, Müller [/bib_ref] in 2004 <|réponse 1|>x<|im_end|><|im_end|>",
]


@pytest.fixture(params=["smollm2", "llama2"])
def base(request: pytest.FixtureRequest) -> Tokenizer:
    """A byte-level vocabulary that has ChatML's tokens, and a SentencePiece vocabulary that has none."""
    tokenizer: Tokenizer = request.getfixturevalue(request.param)
    return tokenizer


def test_ids_are_those_of_transformers(base: Tokenizer, tmp_path: Path) -> None:
    extended = with_special_tokens(base, TOKENS)
    base.save(tmp_path / "base")
    extended.save(tmp_path / "extended")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "base")
    new = theirs.add_special_tokens({"additional_special_tokens": list(TOKENS)})
    assert extended.vocab_size == len(theirs) == base.vocab_size + new
    again, by_transformers = (
        load_tokenizer(tmp_path / "extended"),
        AutoTokenizer.from_pretrained(tmp_path / "extended"),
    )
    for name in TOKENS:
        [number] = extended.encode(name, special=True, bos=False)
        assert number == theirs.convert_tokens_to_ids(name) == by_transformers.convert_tokens_to_ids(name)
        assert number in extended.special_ids
    for text in TEXTS:
        expected = theirs(text)["input_ids"]
        assert extended.encode(text, special=True) == expected, text
        assert again.encode(text, special=True) == by_transformers(text)["input_ids"] == expected, text
        # Names of control tokens in a document are text, as before.
        assert extended.encode(text) == base.encode(text), text


def test_llama_cpp_gives_the_same_ids(base: Tokenizer, tmp_path: Path, runnable) -> None:
    extended = with_special_tokens(base, TOKENS)
    metadata = gguf_metadata(extended)
    kinds = metadata["tokenizer.ggml.token_type"]
    assert {kinds[extended.encode(name, special=True, bos=False)[0]] for name in TOKENS} == {
        TokenType.CONTROL
    }
    opened(HEAD | metadata, tmp_path / "gguf")
    with llama_server(runnable(tmp_path / "gguf/vocabulary.gguf", tmp_path / "model.gguf", {})) as server:
        for text in TEXTS:
            assert server.tokenize(text, special=True) == extended.encode(text, special=True), text
            assert server.tokenize(text) == extended.encode(text), text
    with GGUF(tmp_path / "model.gguf") as gguf:
        again = Tokenizer.from_gguf(gguf)
    assert again.special_ids == extended.special_ids
    assert again.stop_ids == extended.stop_ids


def test_tokens_of_the_vocabulary_keep_their_ids(
    smollm2: Tokenizer, llama2: Tokenizer, tmp_path: Path
) -> None:
    kept = with_special_tokens(smollm2, CHATML)
    assert kept.vocab_size == smollm2.vocab_size
    assert kept.digest == smollm2.digest
    new = with_special_tokens(llama2, ("</s>", *CHATML))
    assert new.vocab_size == 32_002
    assert new.encode("<|im_start|>a<|im_end|></s>", special=True, bos=False)[::2] == [32_000, 32_001]
    # A token of the user's own, which decodes to text so far, becomes a special one.
    config = {"eos_token": "<|endoftext|>", "added_tokens_decoder": {"285": token("<x>", special=False)}}
    own = load_tokenizer(folder(tmp_path, byte_level(), config))
    [number] = own.encode("<x>")
    changed = with_special_tokens(own, ["<x>", "<y>"])
    assert number not in own.special_ids
    assert {number, own.vocab_size} <= changed.special_ids
    assert changed.decode([number, own.vocab_size]) == ""


def test_an_ordinary_token_is_refused(base: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"'(the|an)' is an ordinary token"):
        with_special_tokens(base, [*CHATML, "an"])


def test_a_vocabulary_with_missing_ids_is_refused(tmp_path: Path) -> None:
    spec = byte_level()
    vocabulary = spec["model"]["vocab"]
    first, *_, last = sorted(vocabulary, key=vocabulary.__getitem__)
    vocabulary[last] += 50
    tokenizer = load_tokenizer(folder(tmp_path, spec | {"added_tokens": []}, {"eos_token": first}))
    with pytest.raises(InputError, match="ids are missing in the vocabulary"):
        with_special_tokens(tokenizer, CHATML)
