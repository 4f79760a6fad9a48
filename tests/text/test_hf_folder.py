"""HF folders: tokens, stop ids and rules of all files, as transformers reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.text.conftest import HARD

from meditron.core.errors import InputError
from meditron.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    *HARD,
    "<|im_start|>user\nhi<|im_end|>\n <|im_end|>x",
    "a [PAD] b<extra> <extra>c [MASK]d<image>",
    " <|strip|>  x <|word|>s <|word|> naïve café",
]


def token(content: str, **flags: bool) -> dict[str, Any]:
    plain = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"content": content, **plain, **flags}


def byte_level(specials: tuple[str, ...] = ("<|endoftext|>",), **rules: Any) -> dict[str, Any]:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the cat sat on the mat", "user assistant system"], trainer)
    return json.loads(backend.to_str()) | rules


def sentencepiece_like() -> dict[str, Any]:
    """The published form of Llama-2's tokenizer.json, small."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz", "he", "▁t", "▁the", "th", "ca", "cat"]
    merges = ["▁ t", "h e", "▁t he", "t h", "c a", "ca t"]
    special = [token(name) | {"id": i, "normalized": True} for i, name in enumerate(pieces[:3])]
    steps = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    back = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": template("<s>", 1),
        "decoder": {"type": "Sequence", "decoders": back},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": merges,
        },
    }


def template(name: str, i: int) -> dict[str, Any]:
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]}},
    }


def folder(path: Path, spec: dict[str, Any], config: dict[str, Any] | None = None, **files: Any) -> Path:
    """Write a model's folder without weights; `files` by name, a dot written as two underscores."""
    path.mkdir(parents=True, exist_ok=True)
    contents = {
        "config__json": {"model_type": "llama"},
        "tokenizer__json": spec,
        "tokenizer_config__json": {"tokenizer_class": "PreTrainedTokenizerFast", **(config or {})},
        **files,
    }
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return path


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "decoder": ({"added_tokens_decoder": {"300": token("<|im_start|>"), "301": token("<|im_end|>")}}, {}),
    "decoder not special": (
        {"added_tokens_decoder": {"300": token("<|im_start|>", special=False, normalized=True)}},
        {},
    ),
    "decoder with gaps and out of order": (
        {"added_tokens_decoder": {"305": token("<|im_end|>"), "302": token("<|im_start|>")}},
        {},
    ),
    "decoder changes flags": (
        {
            "added_tokens_decoder": {
                "0": token("<|endoftext|>", lstrip=True),
                "300": token("<|strip|>", rstrip=True),
            }
        },
        {},
    ),
    "decoder names a piece": (
        {"added_tokens_decoder": {"1": token("cat"), "300": token("<|word|>", single_word=True)}},
        {},
    ),
    "added_tokens.json": ({}, {"added_tokens__json": {"<|im_start|>": 300, "<|im_end|>": 301}}),
    "added_tokens.json and eos": (
        {"eos_token": "<|im_end|>"},
        {"added_tokens__json": {"<|im_end|>": 301, "<|im_start|>": 300}},
    ),
    "additional_special_tokens": ({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}, {}),
    "extra_special_tokens": ({"extra_special_tokens": ["<extra>", "<|im_end|>"]}, {}),
    "extra_special_tokens by name": ({"extra_special_tokens": {"image_token": "<image>"}}, {}),
    "a token setting of its own": ({"image_token": "<image>"}, {}),
    "special_tokens_map.json": (
        {},
        {
            "special_tokens_map__json": {
                "eos_token": "<|im_end|>",
                "pad_token": {"content": "[PAD]", "lstrip": False},
            }
        },
    ),
    "special_tokens_map.json lists more": (
        {"eos_token": "<|endoftext|>"},
        {"special_tokens_map__json": {"additional_special_tokens": ["<|im_start|>", "<extra>"]}},
    ),
    "a map that the decoder replaces": (
        {"added_tokens_decoder": {"300": token("<|im_end|>")}},
        {"special_tokens_map__json": {"pad_token": "[PAD]", "eos_token": "<|im_end|>"}},
    ),
    "named tokens that are new": (
        {"pad_token": "[PAD]", "mask_token": "[MASK]", "bos_token": "<|endoftext|>"},
        {},
    ),
    "a named token with flags": (
        {
            "mask_token": {"__type": "AddedToken", **token("[MASK]", lstrip=True)},
            "eos_token": "<|endoftext|>",
        },
        {},
    ),
    "settings that tokenizer.json replaces": (
        {
            "add_bos_token": True,
            "add_eos_token": True,
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
        },
        {},
    ),
    "an unknown class": ({"tokenizer_class": "LLaMATokenizer", "eos_token": "<|endoftext|>"}, {}),
    "an unknown class's map": ({"tokenizer_class": "SomethingNew", "unk_token": "<unk>"}, {}),
}


def theirs(path: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def assert_same(ours: Tokenizer, reference: Any) -> None:
    for text in TEXTS:
        assert ours.encode(text, special=True) == reference(text)["input_ids"], text
        plain = reference(text, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == plain, text
    assert ours.vocab_size == len(reference)
    assert ours.special_tokens == reference.special_tokens_map
    assert (ours.bos_id, ours.eos_id) == (reference.bos_token_id, reference.eos_token_id)
    assert ours.special_ids == {i for i, t in reference.added_tokens_decoder.items() if t.special}


@pytest.mark.parametrize("name", CASES)
def test_added_tokens_are_matched_as_in_transformers(name: str, tmp_path: Path):
    config, files = CASES[name]
    path = folder(tmp_path / "model", byte_level(), config, **files)
    ours, reference = load_tokenizer(path), theirs(path)
    assert_same(ours, reference)
    ours.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.digest == ours.digest
    assert [again.encode(t, special=True) for t in TEXTS] == [ours.encode(t, special=True) for t in TEXTS]
    assert_same(again, theirs(tmp_path / "saved"))


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "LlamaTokenizer"},
        {"tokenizer_class": "LlamaTokenizerFast", "legacy": True},
        {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_prefix_space": False},
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "pad_token": "<pad>"},
        {
            "tokenizer_class": "LlamaTokenizer",
            "added_tokens_decoder": {"1": token("<s>"), "299": token("<|im_end|>")},
        },
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"},
    ],
    ids=str,
)
def test_the_rules_of_the_llama_class_are_those_of_transformers(config: dict[str, Any], tmp_path: Path):
    path = folder(tmp_path / "model", sentencepiece_like(), config)
    ours, reference = load_tokenizer(path), theirs(path)
    for text in TEXTS:
        assert ours.encode(text, special=True) == reference(text)["input_ids"], text
    assert (ours.bos_id, ours.eos_id) == (reference.bos_token_id, reference.eos_token_id)


def test_an_added_token_is_decoded_as_it_is_written(tmp_path: Path):
    spec = byte_level()
    path = folder(
        tmp_path,
        spec,
        {"added_tokens_decoder": {"300": token("naïve", special=False), "301": token("Ġx", special=False)}},
    )
    ours = load_tokenizer(path)
    text = "a naïve Ġx café"
    ids = ours.encode(text)
    assert {ours.id_to_token(i) for i in ids} >= {"naïve", "Ġx"}
    assert ours.decode(ids) == text
    stream = ours.stream()
    assert "".join(map(stream.step, ids)) + stream.flush() == text


@pytest.mark.parametrize(
    ("files", "stops"),
    [
        ({"config__json": {"model_type": "llama", "eos_token_id": [0, 3]}}, {0, 3}),
        ({"config__json": {"model_type": "llama", "eos_token_id": 3}}, {0, 3}),
        ({"config__json": {"model_type": "llama", "eos_token_id": 50}}, {0, 50}),
        ({"generation_config__json": {"eos_token_id": [0, 3]}}, {0, 3}),
        ({"generation_config__json": {"eos_token_id": 50}}, {0, 50}),
        # A library's default in config.json is no end once generation_config.json names the ends.
        (
            {
                "config__json": {"model_type": "llama", "eos_token_id": [2, 50]},
                "generation_config__json": {"eos_token_id": 3},
            },
            {0, 2, 3},
        ),
        ({"config__json": {"model_type": "llama", "eos_token_id": [-1, 10**9, None, True, 3]}}, {0, 3}),
        ({"config__json": {"model_type": "llama", "eos_token_id": None}}, {0}),
    ],
)
def test_stop_ids_come_from_all_files(files: dict[str, Any], stops: set[int], tmp_path: Path):
    spec = byte_level(("<|endoftext|>", "<|a|>", "<|b|>", "<|turn_over|>"))
    assert load_tokenizer(folder(tmp_path, spec, {"eos_token": "<|endoftext|>"}, **files)).stop_ids == stops


def test_stop_ids_survive_saving(tmp_path: Path):
    spec = byte_level(("<|pad|>", "<|a|>", "<|b|>", "<|turn_over|>"))
    ours = load_tokenizer(folder(tmp_path / "model", spec, generation_config__json={"eos_token_id": [1, 3]}))
    ours.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").stop_ids == ours.stop_ids == {1, 3}


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({"chat_template": "one"}, {}, "one"),
        (
            {
                "chat_template": [
                    {"name": "tool_use", "template": "two"},
                    {"name": "default", "template": "one"},
                ]
            },
            {},
            "one",
        ),
        ({"chat_template": [{"name": "tool_use", "template": "two"}]}, {}, None),
        ({"chat_template": "old"}, {"chat_template__jinja": "one\r\n"}, "one\n"),
    ],
)
def test_the_chat_template_is_the_default_one(
    config: dict[str, Any], files: dict[str, Any], expected: str | None, tmp_path: Path
):
    ours = load_tokenizer(folder(tmp_path, byte_level(), {"eos_token": "<|endoftext|>", **config}, **files))
    assert ours.chat_template == expected


@pytest.mark.parametrize("length", [1e30, int(1e30), -1, None, "4096"])
def test_an_unusable_length_is_ignored(length: Any, tmp_path: Path):
    path = folder(tmp_path, byte_level(), {"eos_token": "<|endoftext|>", "model_max_length": length})
    assert load_tokenizer(path).special.max_length is None


@pytest.mark.parametrize(
    ("spec", "config", "said"),
    [
        (
            {},
            {"added_tokens_decoder": {"x": token("a")}},
            r"tokenizer_config.json \(added_tokens_decoder\).*ids",
        ),
        ({}, {"added_tokens_decoder": {"300": {"content": 3}}}, "token with a content"),
        ({}, {"added_tokens_decoder": {"300": {"content": "a", "special": "yes"}}}, "not true or false"),
        ({}, {"extra_special_tokens": 3}, "list of tokens"),
        ({}, {"bos_token": "<s>"}, "texts begin with '<|endoftext|>'.*bos_token is '<s>'"),
        ({"model": {"dropout": 0.1}}, {}, "merges are random"),
    ],
)
def test_contradictions_and_damage_are_refused(
    spec: dict[str, Any], config: dict[str, Any], said: str, tmp_path: Path
):
    whole = byte_level(post_processor=template("<|endoftext|>", 0))
    whole["model"] |= spec.get("model", {})
    path = folder(tmp_path, whole, config)
    with pytest.raises(InputError, match=said.replace("|", r"\|")):
        load_tokenizer(path)
