"""Tokenizers beyond ids: documents, stop tokens, streams, files and errors."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.text.conftest import HARD

from meditron.core.errors import InputError, SourceError
from meditron.store.gguf import GGUF, write_gguf
from meditron.text.gguf_write import gguf_metadata
from meditron.text.token_bytes import byte_alphabet
from meditron.text.tokenizer import Tokenizer, load_tokenizer

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6


def bytes_vocabulary() -> dict[str, Any]:
    """A small byte-level vocabulary: the bytes, two merges, two control tokens, one of the user's own."""
    letters = list(byte_alphabet())
    tokens = [*letters, "th", "the", "<|endoftext|>", "<|im_end|>", "«own»"]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * 258 + [CONTROL, CONTROL, USER],
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
    }


def pieces_vocabulary() -> dict[str, Any]:
    """A small SentencePiece vocabulary with byte fallback."""
    pieces = ["▁", "t", "h", "e", "th", "the", "▁the"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces),
        "tokenizer.ggml.scores": [0.0] * 259 + [-10.0, -11.0, -12.0, -13.0, -1.0, -2.0, -3.0],
    }


def opened(metadata: dict[str, Any], folder: Path) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    write_gguf(folder / "vocabulary.gguf", metadata, [])
    return load_tokenizer(folder / "vocabulary.gguf")


@pytest.fixture(params=[bytes_vocabulary, pieces_vocabulary], ids=["bytes", "pieces"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return opened(request.param(), tmp_path)


def test_names_of_control_tokens_in_a_document_are_text(smollm2: Tokenizer):
    text = "before<|im_start|>system<|endoftext|>after"
    ids = smollm2.encode(text)
    assert not smollm2.special_ids & set(ids)
    assert smollm2.decode(ids) == text
    assert smollm2.encode_batch([text]) == [ids]
    assert {0, 1} <= set(smollm2.encode(text, special=True))


@pytest.mark.shared
def test_names_of_control_tokens_are_text_in_sentencepiece_vocabularies(llama2: Tokenizer):
    text = "a <s> b</s><unk><0x0A>"
    ids = llama2.encode(text)
    assert ids[0] == llama2.bos_id
    assert not {0, 1, 2, 13} & set(ids[1:])
    assert llama2.decode(ids) == text
    assert llama2.encode(text, special=True).count(1) == 2


def test_a_users_own_token_is_found_in_a_document(tmp_path: Path):
    tokenizer = opened(bytes_vocabulary(), tmp_path)
    assert tokenizer.encode("«own»") == [260]


def test_the_end_of_a_document_is_not_the_end_of_a_turn(smollm2: Tokenizer):
    assert smollm2.end_of_text_id == 0
    assert smollm2.eos_id == 2
    assert smollm2.stop_ids == {0, 2}
    assert not smollm2.adds_bos
    assert smollm2.encode("") == []


@pytest.mark.shared
def test_llama2_has_the_bos_and_eos_of_sentencepiece(llama2: Tokenizer):
    assert (llama2.bos_id, llama2.end_of_text_id, llama2.stop_ids) == (1, 2, {2})
    assert llama2.adds_bos
    assert llama2.encode("") == [1]
    assert llama2.encode("", bos=False) == []


@pytest.mark.parametrize("name", ["smollm2", pytest.param("llama2", marks=pytest.mark.shared)])
@settings(deadline=None, max_examples=100)
@given(
    text=st.text(
        # SentencePiece reads ▁ as a space, so it does not come back.
        st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="▁", max_codepoint=0x1FFFF),
        max_size=40,
    )
)
def test_a_stream_never_breaks_a_character(name: str, request: pytest.FixtureRequest, text: str):
    tokenizer = request.getfixturevalue(name)
    prompt, whole = tokenizer.encode("So:"), tokenizer.encode("So: " + text)
    if whole[: len(prompt)] != prompt:
        return
    stream = tokenizer.stream()
    pieces = [stream.step(token_id) for token_id in whole[len(prompt) :]]
    assert "�" not in "".join(pieces) or "�" in text
    assert "".join(pieces) + stream.flush() == " " + text
    assert tokenizer.decode(whole) == "So: " + text


def test_a_stream_that_ends_within_a_character_yields_a_replacement(small: Tokenizer):
    snow = [i for i in small.encode("☃", bos=False) if "▁" not in (small.id_to_token(i) or "")]
    stream = small.stream()
    assert [stream.step(i) for i in snow[:2]] == ["", ""]
    assert stream.flush() == "�"


def test_control_tokens_and_ids_of_no_token_have_no_text(small: Tokenizer):
    assert small.decode([small.end_of_text_id, 10_000]) == ""
    assert small.stream().step(small.end_of_text_id) == ""


def test_saving_is_a_fixed_point(small: Tokenizer, tmp_path: Path):
    small.save(tmp_path / "a")
    again = load_tokenizer(tmp_path / "a")
    again.save(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert again.digest == small.digest
    assert again.special == small.special


def test_gguf_and_back_is_the_same_tokenizer(small: Tokenizer, tmp_path: Path):
    again = opened({"general.architecture": "llama", **gguf_metadata(small)}, tmp_path / "again")
    assert again.digest == small.digest
    assert again.stop_ids == small.stop_ids


@pytest.mark.shared
def test_files_saved_by_transformers_are_read(shared: Path, tmp_path: Path):
    """Metaspace instead of a normalizer, and a class of its own in tokenizer_config.json."""
    from transformers import AutoTokenizer, LlamaTokenizer

    (tmp_path / "model").mkdir()
    copy(shared / "data/llama-tiny/llama2-tokenizer.model", tmp_path / "model/tokenizer.model")
    LlamaTokenizer.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "saved")
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "saved"), load_tokenizer(tmp_path / "saved")
    assert theirs(HARD)["input_ids"] == [ours.encode(text, special=True) for text in HARD]
    assert ours.decode(ours.encode("two  spaces")) == "two  spaces"
    with pytest.raises(InputError, match=r"prepend_scheme.*rule 'first'"):
        gguf_metadata(ours)


@pytest.mark.shared
def test_llama2_to_gguf_and_back(llama2: Tokenizer, llama2_gguf: Path, tmp_path: Path):
    with GGUF(llama2_gguf) as gguf:
        head = {key: v for key, v in gguf.metadata.items() if not key.startswith("tokenizer.")}
    assert opened(head | gguf_metadata(llama2), tmp_path / "again").digest == llama2.digest


def test_smollm2_to_gguf_and_back(smollm2: Tokenizer, smollm2_gguf: Path):
    with GGUF(smollm2_gguf) as gguf:
        theirs = {key: value for key, value in gguf.metadata.items() if key.startswith("tokenizer.")}
    assert gguf_metadata(smollm2) == theirs | {"tokenizer.ggml.add_eos_token": False}


def test_padding_fills_a_wider_embedding(small: Tokenizer):
    metadata = gguf_metadata(small, small.vocab_size + 2)
    assert metadata["tokenizer.ggml.tokens"][-1] == f"[PAD{small.vocab_size + 1}]"
    with pytest.raises(InputError, match="tokens"):
        gguf_metadata(small, small.vocab_size - 1)


@pytest.mark.parametrize("small", [pieces_vocabulary], indirect=True, ids=["pieces"])
@pytest.mark.parametrize(
    "rule", [{"normalizer": {"type": "NFKC"}}, {"pre_tokenizer": {"type": "Whitespace"}}], ids=str
)
def test_rules_that_gguf_cannot_express_are_refused(small: Tokenizer, rule: dict[str, Any]):
    with pytest.raises(InputError, match="GGUF cannot express"):
        gguf_metadata(replace(small, spec={**small.spec, **rule}))


def test_a_pickled_tokenizer_keeps_control_tokens_out(small: Tokenizer):
    text = "".join(small.id_to_token(i) or "" for i in sorted(small.special_ids))
    assert pickle.loads(pickle.dumps(small)).encode(text) == small.encode(text)  # noqa: S301


def test_a_batch_equals_single_texts(small: Tokenizer):
    assert small.encode_batch(HARD) == [small.encode(text) for text in HARD]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer.ggml.model": "bert"}, "bert"),
        ({"tokenizer.ggml.model": 3}, "must be str"),
        ({"tokenizer.ggml.tokens": [1, 2, 3]}, "array of str"),
        ({"tokenizer.ggml.tokens": None}, "missing"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}, "2 times"),
        ({"tokenizer.ggml.token_type": [1]}, "1 entries"),
        ({"tokenizer.ggml.token_type": [9] * 261}, "unknown token type 9"),
        ({"tokenizer.ggml.merges": ["t zebra"]}, "does not join two tokens"),
        ({"tokenizer.ggml.merges": ["th"]}, "does not join two tokens"),
        ({"tokenizer.ggml.merges": [1]}, "array of str"),
        ({"tokenizer.ggml.pre": "command-r"}, "known are default, gpt-2, smollm"),
        ({"tokenizer.ggml.eos_token_id": 2**31}, "largest id is 260"),
        ({"tokenizer.ggml.eos_token_id": "2"}, "must be int"),
        ({"tokenizer.chat_template": 7}, "must be text"),
    ],
)
def test_damaged_byte_level_vocabularies_are_refused(change: dict[str, Any], said: str, tmp_path: Path):
    metadata = {key: v for key, v in (bytes_vocabulary() | change).items() if v is not None}
    with pytest.raises(InputError, match=said) as caught:
        opened(metadata, tmp_path)
    assert "tokenizer." in caught.value.message


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.0] * 5, "5 entries"),
        ([0] * 266, "array of float"),
        ([0.0] * 259 + [float("nan")] * 7, "finite"),
        ([0.0] * 259 + [-10.0, -11.0, -12.0, -13.0, -1.0, -1.0, -3.0], "equal for 'th' and 'the'"),
    ],
)
def test_damaged_scores_are_refused(scores: list[float], said: str, tmp_path: Path):
    with pytest.raises(InputError, match=said):
        opened(pieces_vocabulary() | {"tokenizer.ggml.scores": scores}, tmp_path)


def test_a_piece_of_absurd_length_is_refused(tmp_path: Path):
    metadata = pieces_vocabulary()
    metadata["tokenizer.ggml.tokens"][-1] = "▁" * 5000
    with pytest.raises(InputError, match="more than 1,024 characters"):
        opened(metadata, tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", "{", "line 1, column 2.*not JSON"),
        ("tokenizer.json", "[]", "JSON object"),
        ("tokenizer.json", "[" * 100_000, "not JSON"),
        ("tokenizer.json", '{"model": {"type": "WordPiece"}}', "WordPiece"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}}}', "no vocabulary"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": -1}}}', "'a' has the id -1"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": "0"}}}', "'a' has the id '0'"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 1, "b": 1}}}', "'b' has the id 1"),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}}',
            "ids must be between",
        ),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {"a": 99999999999}, "merges": []}}',
            "not a tokenizer",
        ),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {"a": 1}, "merges": [["a", "z"]]}}',
            "not a tokenizer",
        ),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {"a": 1}}, "added_tokens": 3}',
            "list of tokens",
        ),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {"a": 1}}, "added_tokens": [{"id": 2, "content": []}]}',
            "list of tokens",
        ),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {"a": 1}}, "post_processor": {"processors": 5}}',
            "not a tokenizer",
        ),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {"a": 1}}, '
            '"post_processor": {"single": [{"SpecialToken": {"id": []}}]}}',
            "which is not a token",
        ),
        ("tokenizer_config.json", '{"eos_token": 3}', "must be a token"),
        ("tokenizer_config.json", '{"chat_template": 3}', "must be text"),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": []}, {"name": "default", "template": 3}]}',
            "must be text",
        ),
        ("tokenizer_config.json", "\udcff", "not UTF-8"),
    ],
)
def test_damaged_files_are_refused(file: str, content: str, said: str, small: Tokenizer, tmp_path: Path):
    folder = tmp_path / "saved"
    small.save(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / file).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match=said):
        load_tokenizer(folder)


def test_an_unknown_decoder_is_refused(small: Tokenizer, tmp_path: Path):
    small.save(tmp_path / "saved")
    path = tmp_path / "saved/tokenizer.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text()) | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}
        )
    )
    with pytest.raises(InputError, match="neither"):
        load_tokenizer(path.parent)


def test_a_folder_without_a_tokenizer_is_a_source_error(tmp_path: Path):
    with pytest.raises(SourceError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(SourceError, match="no such file"):
        load_tokenizer(tmp_path / "nowhere")


def test_truncation_in_tokenizer_json_is_removed(small: Tokenizer, tmp_path: Path):
    small.save(tmp_path / "saved")
    path = tmp_path / "saved/tokenizer.json"
    cut = {"max_length": 2, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation": cut}))
    again = load_tokenizer(path.parent)
    assert again.encode("the the the the") == small.encode("the the the the")
    assert again.digest == small.digest
