"""Tokenizers in a GGUF: equal ids and stop tokens in llama.cpp, or a refusal."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.llamacpp import llama_server
from tests.text.conftest import HARD
from tests.text.test_hf_folder import byte_level, folder, sentencepiece_like, token
from tests.text.test_tokenizer import bytes_vocabulary, opened, pieces_vocabulary

from meditron.core.errors import InputError
from meditron.text.gguf_write import gguf_metadata
from meditron.text.tokenizer import Tokenizer, load_tokenizer
from meditron.text.tokenizer_check import tokenizer_differences

HEAD: dict[str, Any] = {"general.architecture": "llama"}


def spec_of(tokenizer: Tokenizer, **changes: Any) -> Tokenizer:
    """The same tokenizer with other rules, for a new backend."""
    return Tokenizer({**tokenizer.spec, **changes}, tokenizer.special, tokenizer.path)


@pytest.fixture
def small(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(folder(tmp_path, byte_level(), {"eos_token": "<|endoftext|>"}))


@pytest.mark.parametrize("flag", ["single_word", "lstrip", "rstrip"])
@pytest.mark.parametrize("special", [True, False])
def test_flags_of_added_tokens_are_refused(flag: str, special: bool, small: Tokenizer):
    added = [*small.spec["added_tokens"], {"id": 300, **token("<x>", special=special, **{flag: True})}]
    with pytest.raises(InputError, match=f"'<x>' has the flag {flag}"):
        gguf_metadata(spec_of(small, added_tokens=added))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"ignore_merges": True}, "pre_tokenizer"),
        ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"continuing_subword_prefix": "##", "merges": []}, "continuing_subword_prefix"),
    ],
)
def test_flags_of_the_model_are_refused(model: dict[str, Any], said: str, small: Tokenizer):
    with pytest.raises(InputError, match=said):
        gguf_metadata(spec_of(small, model={**small.spec["model"], **model}))


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (("aab", "bcc"), "overlap"),
        (("ab", "xaby"), "contains"),
        (("  ", "    "), None),
        (("<a>", "<b>"), None),
    ],
)
def test_added_tokens_that_llama_cpp_matches_differently_are_refused(
    contents: tuple[str, str], said: str | None, small: Tokenizer
):
    added = [
        {"id": 300 + i, **token(content, special=False, normalized=content == "ab")}
        for i, content in enumerate(contents)
    ]
    tokenizer = spec_of(small, added_tokens=[*small.spec["added_tokens"], *added])
    if said is None:
        gguf_metadata(tokenizer)
    else:
        with pytest.raises(InputError, match=said):
            gguf_metadata(tokenizer)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first", "split": False}}, "'first'"),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "always", "split": False}}, "'always'"),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never", "split": True}}, "at spaces"),
        (
            {"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never", "split": False}},
            "remove the space",
        ),
    ],
)
def test_other_rules_for_blanks_are_refused(rules: dict[str, Any], said: str, tmp_path: Path):
    whole = {"normalizer": None, **rules}
    whole["pre_tokenizer"] = {"replacement": "▁", **whole["pre_tokenizer"]}
    ours = load_tokenizer(
        folder(tmp_path, sentencepiece_like() | whole, {"bos_token": "<s>", "eos_token": "</s>"})
    )
    with pytest.raises(InputError, match=said):
        gguf_metadata(ours)


def sentencepiece_folder(path: Path, **model: Any) -> Tokenizer:
    spec = sentencepiece_like()
    spec["model"] |= model
    for added in spec["added_tokens"]:
        added["normalized"] = False
    return load_tokenizer(folder(path, spec, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}))


def test_merges_that_scores_cannot_express_are_refused(tmp_path: Path):
    merges = sentencepiece_like()["model"]["merges"]
    gguf_metadata(sentencepiece_folder(tmp_path / "a"))
    with pytest.raises(InputError, match="does not join 'ca' and 't'"):
        gguf_metadata(sentencepiece_folder(tmp_path / "b", merges=merges[:-1]))


def test_a_published_llama_tokenizer_survives_a_gguf(tmp_path: Path, runnable):
    ours = sentencepiece_folder(tmp_path / "model")
    again = opened(HEAD | gguf_metadata(ours), tmp_path / "again")
    assert tokenizer_differences(ours, again) == []
    source = tmp_path / "again/vocabulary.gguf"
    with llama_server(runnable(source, tmp_path / "model.gguf", {})) as server:
        for text in HARD:
            assert server.tokenize(text) == ours.encode(text), text
            assert server.tokenize(text, special=True) == ours.encode(text, special=True), text


STOPS: list[tuple[set[int], dict[str, int]]] = [
    ({0}, {"eos_token_id": 0}),
    ({0, 3}, {"eos_token_id": 0, "eot_token_id": 3}),
    ({0, 1, 3}, {"eos_token_id": 0, "eot_token_id": 1, "eom_token_id": 3}),
    ({0, 2}, {"eos_token_id": 0}),  # <|im_end|>, which llama.cpp knows by name
]


@pytest.mark.parametrize(("stops", "keys"), STOPS)
def test_stop_ids_survive_a_round_trip(stops: set[int], keys: dict[str, int], tmp_path: Path):
    spec = byte_level(("<|endoftext|>", "<|a|>", "<|im_end|>", "<|turn_over|>"))
    generation = {"eos_token_id": sorted(stops)}
    ours = load_tokenizer(
        folder(tmp_path / "hf", spec, {"eos_token": "<|endoftext|>"}, generation_config__json=generation)
    )
    metadata = gguf_metadata(ours)
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    said = {name: metadata.get(f"tokenizer.ggml.{name}") for name in names}
    assert {name: i for name, i in said.items() if i is not None} == keys
    once = opened(HEAD | metadata, tmp_path / "once")
    twice = opened(HEAD | gguf_metadata(once), tmp_path / "twice")
    twice.save(tmp_path / "saved")
    back = load_tokenizer(tmp_path / "saved")
    assert ours.stop_ids == once.stop_ids == twice.stop_ids == back.stop_ids == stops | {0, 2}


def test_more_stop_ids_than_gguf_has_keys_are_refused(tmp_path: Path):
    path = folder(
        tmp_path,
        byte_level(),
        {"eos_token": "<|endoftext|>"},
        generation_config__json={"eos_token_id": [5, 6, 7]},
    )
    with pytest.raises(InputError, match=r"stop ids \[0, 5, 6, 7\].*can name three"):
        gguf_metadata(load_tokenizer(path))


def test_a_stop_id_of_config_json_is_written_to_the_gguf(tmp_path: Path):
    """Without one, llama.cpp would take token 11."""
    spec = byte_level(("<|pad|>", "<|a|>", "<|x|>", "<|turn_over|>"))
    ours = load_tokenizer(folder(tmp_path, spec, config__json={"model_type": "llama", "eos_token_id": 3}))
    metadata = gguf_metadata(ours)
    assert metadata["tokenizer.ggml.eos_token_id"] == 3
    assert tokenizer_differences(ours, opened(HEAD | metadata, tmp_path / "gguf")) == []


@pytest.mark.parametrize("name", ["<|end|>", "<|eot_id|>", "<end_of_turn>", "[EOT]", "<|call|>"])
def test_llama_cpp_stops_at_the_same_names(name: str, tmp_path: Path):
    """llama.cpp takes such a token for an end even if the file calls it an ordinary one."""
    metadata = bytes_vocabulary()
    metadata["tokenizer.ggml.tokens"][260] = name
    ours = opened(metadata, tmp_path)
    assert 260 in ours.stop_ids
    assert ours.encode(name) != [260]


def test_the_end_of_an_html_strike_is_no_stop_of_a_byte_level_vocabulary(tmp_path: Path):
    """Qwen's vocabulary has `</s>` as an ordinary token."""
    metadata = bytes_vocabulary()
    metadata["tokenizer.ggml.tokens"][260] = "</s>"
    metadata["tokenizer.ggml.token_type"][260] = 1
    ours = opened(metadata, tmp_path)
    assert 260 not in ours.stop_ids


def test_special_tokens_of_a_template_survive_a_round_trip(tmp_path: Path):
    config = {
        "eos_token": "<|endoftext|>",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
        "sep_token": "[SEP]",
    }
    config |= {"unk_token": "<unk>", "cls_token": "[CLS]"}
    ours = load_tokenizer(folder(tmp_path / "hf", byte_level(), config))
    again = opened(HEAD | gguf_metadata(ours), tmp_path / "gguf")
    assert again.special_tokens == ours.special_tokens == config


def test_the_metadata_is_tested_against_llama_cpp_itself(tmp_path: Path, runnable):
    """Byte-level: control tokens, tokens of a user's own and a cut, in llama.cpp."""
    config = {
        "eos_token": "<|endoftext|>",
        "added_tokens_decoder": {
            "285": token("<|im_start|>"),
            "286": token("<|im_end|>"),
            "287": token("naïve", special=False),
        },
    }
    ours = load_tokenizer(folder(tmp_path / "hf", byte_level(), config))
    opened(HEAD | gguf_metadata(ours), tmp_path / "gguf")
    texts = [*HARD, "a naïve <|im_end|>x", "<|im_start|>user\n naïvenaïve<|im_end|>"]
    with llama_server(runnable(tmp_path / "gguf/vocabulary.gguf", tmp_path / "model.gguf", {})) as server:
        for text in texts:
            assert server.tokenize(text) == ours.encode(text), text
            assert server.tokenize(text, special=True) == ours.encode(text, special=True), text
            ids = ours.encode(text)
            assert ours.decode(ids) == server.detokenize(ids)


def test_a_difference_is_named(tmp_path: Path):
    ours = opened(
        bytes_vocabulary() | {"tokenizer.chat_template": "{{ messages[0].content }}"}, tmp_path / "a"
    )
    assert tokenizer_differences(ours, ours) == []
    changes = {
        "stop ids": {"further_stop_ids": frozenset({5})},
        "BOS": {"bos": 258, "add_bos": True},
        "EOS": {"eos": 258},
        "the padding token": {"padding": 4},
        "chat text of conversation 1": {"chat_template": "{{ messages[0].content }} "},
        "only one of the two has a chat template": {"chat_template": None},
    }
    for said, change in changes.items():
        other = Tokenizer(ours.spec, replace(ours.special, **change), ours.path)
        assert any(line.startswith(said) for line in tokenizer_differences(ours, other)), said
    model = json.loads(json.dumps(ours.spec["model"]))
    model["merges"].reverse()
    model["merges"] = model["merges"][1:]
    other = Tokenizer({**ours.spec, "model": model}, ours.special, ours.path)
    assert any(line.startswith("token ids of") for line in tokenizer_differences(ours, other))
    pieces = opened(pieces_vocabulary(), tmp_path / "b")
    assert any(line.startswith("token 0") for line in tokenizer_differences(ours, pieces))
