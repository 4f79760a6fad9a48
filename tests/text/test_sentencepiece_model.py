"""tokenizer.model read without the library: equal ids, on models trained here with sentencepiece."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.llamacpp import llama_server
from tests.text.conftest import HARD
from tests.text.test_parity import TEXTS
from tests.text.test_tokenizer import opened

from meditron.core.errors import InputError
from meditron.text.gguf_write import gguf_metadata
from meditron.text.sentencepiece_model import read_metadata
from meditron.text.tokenizer import load_tokenizer
from meditron.text.tokenizer_check import tokenizer_differences

SENTENCES = [
    "The patient was given aspirin 75 mg once daily.",
    "Haemoglobin was 13.2 g/dL, and the platelets were low.",
    "Two  spaces,   three, and    four; naïve café.",
    "Treatment of the patients with the drug lowered the pressure.",
]
PLAIN = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": True,
}


def train(path: Path, **changes: Any) -> Path:
    import sentencepiece

    path.mkdir(parents=True, exist_ok=True)
    with (path / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 20),
            model_writer=file,
            minloglevel=5,
            **{"vocab_size": 380, "hard_vocab_limit": False} | PLAIN | changes,
        )
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no prefix"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("sp"), add_dummy_prefix=request.param)


@pytest.fixture(scope="module")
def processor(trained: Path):
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))


@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_ids_equal_sentencepiece(text: str, trained: Path, processor):
    assert load_tokenizer(trained).encode(text, bos=False) == processor.encode(text)


def test_ids_and_text_equal_sentencepiece(trained: Path, processor):
    ours = load_tokenizer(trained)
    for text in [*HARD, *SENTENCES, "  Hello", "a  b", " x "]:
        assert ours.encode(text, bos=False) == processor.encode(text), text
        assert ours.decode(ours.encode(text)) == processor.decode(processor.encode(text)), text
    assert (ours.bos_id, ours.eos_id, ours.special.unknown) == (
        processor.bos_id(),
        processor.eos_id(),
        processor.unk_id(),
    )


def test_the_gguf_and_llama_cpp_are_the_same(trained: Path, tmp_path: Path, runnable):
    config = (
        '{"add_bos_token": true, "chat_template": "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]"}'
    )
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes((trained / "tokenizer.model").read_bytes())
    (folder / "tokenizer_config.json").write_text(config)
    ours = load_tokenizer(folder)
    assert ours.adds_bos
    again = opened({"general.architecture": "llama", **gguf_metadata(ours)}, tmp_path / "gguf")
    assert tokenizer_differences(ours, again) == []
    source = tmp_path / "gguf/vocabulary.gguf"
    with llama_server(runnable(source, tmp_path / "model.gguf", {})) as server:
        for text in [*HARD, *SENTENCES, "  Hello", "<s>[INST] x [/INST] y</s> <s> z"]:
            assert server.tokenize(text) == ours.encode(text), text
            assert server.tokenize(text, special=True) == ours.encode(text, special=True), text


def test_tokens_beside_the_model_are_added(trained: Path, tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes((trained / "tokenizer.model").read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 400}')
    size = load_tokenizer(trained).vocab_size
    ours = load_tokenizer(tmp_path)
    assert ours.encode("a<pad>", special=True)[-1] == size
    assert not ours.adds_bos, "as in transformers, only where add_bos_token says so"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "unigram", "vocab_size": 300}, "unigram"),
        ({"normalization_rule_name": "nmt_nfkc"}, "precompiled_charsmap"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
        ({"user_defined_symbols": ["«own»"]}, "user-defined"),
    ],
)
def test_other_rules_are_refused(changes: dict[str, Any], said: str, tmp_path: Path):
    path = train(tmp_path, **changes)
    with pytest.raises(InputError, match=said):
        load_tokenizer(path)


@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=200))
def test_damaged_files_are_errors(data: bytes, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.getbasetemp() / "damaged.model"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_metadata(path)


def test_a_mutated_model_is_read_or_refused(trained: Path, tmp_path: Path):
    data = (trained / "tokenizer.model").read_bytes()
    path = tmp_path / "tokenizer.model"
    for at in range(0, len(data), 37):
        for changed in (data[:at], data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]):
            path.write_bytes(changed)
            with suppress(InputError):
                load_tokenizer(tmp_path)
