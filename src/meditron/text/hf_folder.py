"""HF's tokenizer files: tokenizer.json contains the rules; the files beside it name the special tokens."""

import json
from collections.abc import Collection, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from meditron.core.errors import InputError, SourceError
from meditron.store.files import read_json
from meditron.text import gguf_vocab
from meditron.text.hf_tokens import (
    NAMED,
    Names,
    merge_config,
    special_token_names,
    tokens_to_add,
    with_added_tokens,
)
from meditron.text.pretokenizers import PRETOKENIZERS
from meditron.text.sentencepiece_model import read_metadata
from meditron.text.special_tokens import SpecialTokens
from meditron.text.token_bytes import METASPACE, byte_level_bytes, byte_map_of_decoder, sentencepiece_bytes

__all__ = ["read_tokenizer", "tokenizer_files"]

_Json = dict[str, Any]
_CLASS_OF_MODEL_TYPE = {"qwen2": "Qwen2Tokenizer", "mistral": "TokenizersBackend"}
"""Model types for which transformers 5.17 ignores the tokenizer class that a folder names."""
_LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_QWEN2_NAMES = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")


def _load_json_object(path: Path) -> _Json:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(path, f"must be a JSON object, got {type(content).__name__}")
    return content


def _load_if_present(path: Path) -> _Json:
    return _load_json_object(path) if path.is_file() else {}


def read_tokenizer(folder: Path) -> tuple[_Json, SpecialTokens]:
    """Read a folder's tokenizer as transformers 5.17 does: tokenizer.json's content, and special tokens.

    If there is no tokenizer.json, the SentencePiece file `tokenizer.model` is converted.

    Raises:
        InputError: A file is damaged.
        SourceError: The folder has neither file.
    """
    path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    raw, special_map = (_load_if_present(p) for p in (config_path, folder / "special_tokens_map.json"))
    config = merge_config(raw, special_map)
    model_config = _load_if_present(folder / "config.json")
    defaults: dict[str, str] = {}
    if path.is_file():
        spec = _checked_tokenizer_json(path, _load_json_object(path))
        class_name = config.get("tokenizer_class") or model_config.get("tokenizer_class")
        class_name = _CLASS_OF_MODEL_TYPE.get(str(model_config.get("model_type")), class_name)
        if str(class_name).removesuffix("Fast") == "LlamaTokenizer":
            spec, defaults = _with_llama_class_rules(path, spec, config), _LLAMA_NAMES
        elif str(class_name).removesuffix("Fast") == "Qwen2Tokenizer":
            spec, defaults = _with_qwen2_class_rules(spec), _QWEN2_NAMES
        first = _prepended_token(path, spec)
    elif (path := folder / "tokenizer.model").is_file():
        metadata = read_metadata(path)
        spec, special = gguf_vocab.tokenizer_from_metadata(metadata, path)
        defaults = _special_token_texts(spec, special)
        first = None
    else:
        raise SourceError(f"{folder}: has neither tokenizer.json nor tokenizer.model")
    names = special_token_names(config_path, config, defaults)
    added = _load_if_present(folder / "added_tokens.json")
    spec = with_added_tokens(path, spec, tokens_to_add(config_path, spec, config, added, names))
    if path.name == "tokenizer.model":  # added tokens are matched before `▁` is prepended
        spec["added_tokens"] = [{**token, "normalized": False} for token in spec["added_tokens"]]
    return spec, _special_tokens(folder, spec, config, model_config, names, first)


def _with_llama_class_rules(path: Path, spec: _Json, config: _Json) -> _Json:
    """Replace the rules of a tokenizer.json by those of transformers' class `LlamaTokenizer`.

    That class reads only the vocabulary from the file. Some byte-level vocabularies are published under the
    class's name; they are returned unchanged.
    """
    if byte_map_of_decoder(spec.get("decoder")) is not sentencepiece_bytes:
        return spec
    prefix = config.get("add_prefix_space")
    prefix = prefix is None or bool(prefix)
    scheme = "never" if not prefix else "always" if config.get("legacy") else "first"
    model = {**spec["model"], "unk_token": None, "fuse_unk": True, "byte_fallback": True}
    model |= {"ignore_merges": False, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    decoder_steps: list[_Json] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        **spec,
        "added_tokens": [] if "added_tokens_decoder" in config else spec.get("added_tokens", []),
        "normalizer": None,
        "pre_tokenizer": {**METASPACE, "prepend_scheme": scheme},
        "decoder": {"type": "Sequence", "decoders": [*decoder_steps, *strip]},
        "model": model,
    }


def _with_qwen2_class_rules(spec: _Json) -> _Json:
    """Replace the rules of a tokenizer.json by those of transformers' class `Qwen2Tokenizer`."""
    if byte_map_of_decoder(spec.get("decoder")) is not byte_level_bytes:
        return spec
    model = {**spec["model"], "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    model |= {"ignore_merges": False, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    rules = PRETOKENIZERS["qwen2"]
    return {**spec, "normalizer": rules.normalizer, "pre_tokenizer": rules.spec, "model": model}


def _special_token_texts(spec: _Json, special: SpecialTokens) -> dict[str, str]:
    """Return the special tokens' texts by name (`bos_token`); a SentencePiece model has only their ids."""
    tokens = {i: token for token, i in spec["model"]["vocab"].items()}
    ids = {"bos_token": special.bos, "eos_token": special.eos, "unk_token": special.unknown}
    ids["pad_token"] = special.padding
    return {name: tokens[i] for name, i in ids.items() if i is not None}


def _checked_tokenizer_json(path: Path, spec: _Json) -> _Json:
    model, added = spec.get("model"), spec.get("added_tokens", [])
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise InputError(path, f"is a {kind} model; only BPE is supported", place="model.type")
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise InputError(path, "has no vocabulary", place="model.vocab")
    if not isinstance(added, list) or not all(
        isinstance(token, dict) and isinstance(token.get("content"), str) for token in added
    ):
        raise InputError(path, "must be a list of tokens with a content", place="added_tokens")
    if not all(type(token.get("id")) is int and token["content"] for token in added):
        raise InputError(path, "must be a list of tokens with a content and an id", place="added_tokens")
    spec = {**spec, "added_tokens": added}
    seen_ids: set[int] = set()
    for token, i in vocab.items():
        if not isinstance(i, int) or isinstance(i, bool) or i < 0 or i in seen_ids:
            raise InputError(path, f"token {token!r} has the id {i!r}", place="model.vocab")
        seen_ids.add(i)
    return spec


def _special_tokens(
    folder: Path, spec: _Json, config: _Json, model_config: _Json, names: Names, first: str | None
) -> SpecialTokens:
    ids = {**spec["model"]["vocab"], **{t["content"]: t["id"] for t in spec["added_tokens"]}}
    named = {key: int(ids[token]) for key, token in names.items()}
    if first is not None and (bos := names.get("bos_token", first)) != first:
        raise InputError(
            folder / "tokenizer.json",
            f"texts begin with {first!r}, but bos_token is {bos!r}",
            place="post_processor",
        )
    # transformers reads add_bos_token only if there is no tokenizer.json.
    adds = config.get("add_bos_token") is True and not (folder / "tokenizer.json").is_file()
    length = config.get("model_max_length")
    return SpecialTokens(
        bos=named.pop("bos_token", None if first is None else int(ids[first])),
        eos=named.pop("eos_token", None),
        unknown=named.pop("unk_token", None),
        padding=named.pop("pad_token", None),
        template_tokens=named,
        add_bos=adds or first is not None,
        further_stop_ids=_stop_ids(folder, model_config, ids, spec),
        chat_template=_chat_template(folder, config),
        # transformers writes 1e30 if the length is unknown.
        max_length=length if isinstance(length, int) and 0 < length < 1 << 31 else None,
    )


def _prepended_token(path: Path, spec: _Json) -> str | None:
    """Return the token that tokenizer.json's post-processor prepends to each text; None if there is none."""
    processor = spec.get("post_processor")
    steps = processor.get("processors") if isinstance(processor, dict) else None
    for step in steps if isinstance(steps, list) else [processor]:
        if not isinstance(step, dict):
            continue
        if isinstance(token := step.get("cls"), list) and token:  # BERT's and RoBERTa's
            return _require_known_token(path, spec, token[0])
        before = list(takewhile(lambda part: "Sequence" not in part, _template_parts(step)))
        if len(before) > 1:
            raise InputError(path, f"prepends {len(before)} tokens to a text", place="post_processor")
        if before and isinstance(token := before[0].get("SpecialToken"), dict):
            return _require_known_token(path, spec, token.get("id"))
    return None


def _require_known_token(path: Path, spec: _Json, token: object) -> str:
    if isinstance(token, str) and (
        token in spec["model"]["vocab"] or any(token == added["content"] for added in spec["added_tokens"])
    ):
        return token
    raise InputError(path, f"prepends {token!r} to a text, which is not a token", place="post_processor")


def _template_parts(step: _Json) -> list[_Json]:
    single = step.get("single")
    return [part for part in single if isinstance(part, dict)] if isinstance(single, list) else []


def _stop_ids(folder: Path, model_config: _Json, ids: Mapping[str, int], spec: _Json) -> frozenset[int]:
    """Return the stop ids of config.json and generation_config.json.

    If generation_config.json names no stop ids, transformers uses those of config.json. If both files name
    some, an id of config.json, which is often a library's default, counts only if it is an added token, so
    that no ordinary token ends a text by mistake.
    """
    generation, model = (
        {i for i in (named if isinstance(named, list) else [named]) if type(i) is int}
        for named in (
            _load_if_present(folder / "generation_config.json").get("eos_token_id"),
            model_config.get("eos_token_id"),
        )
    )
    if generation:
        model &= {token["id"] for token in spec["added_tokens"]}
    return frozenset((generation | model) & set(ids.values()))


def _chat_template(folder: Path, config: _Json) -> str | None:
    """Return the chat template from chat_template.jinja, else from the config.

    If the config has several templates, the one named `default` is returned.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(path, f"not UTF-8: {error}") from error
    value = config.get("chat_template")
    if isinstance(value, list):  # several, by name
        named = (entry for entry in value if isinstance(entry, dict))
        value = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    if value is not None and not isinstance(value, str):
        raise InputError(folder / "tokenizer_config.json", "must be text", place="chat_template")
    return value


def tokenizer_files(
    spec: Mapping[str, Any], special: SpecialTokens, backend: Backend, stop_ids: Collection[int]
) -> dict[str, bytes]:
    """Return file name → content of the files with which transformers' AutoTokenizer gives the same ids.

    A generation_config.json is written only if there are `stop_ids`. The tokenizer class is
    `PreTrainedTokenizerFast`, which applies tokenizer.json unchanged; model-specific classes would replace
    its rules by their own.
    """

    def name(i: int | None) -> str | None:
        return None if i is None else backend.id_to_token(i)

    bos = name(special.bos)
    whole = {**spec, "truncation": None, "padding": None, "post_processor": _post_processor(special, bos)}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": special.add_bos and bos is not None,
        "add_eos_token": False,
        "bos_token": bos,
        "eos_token": name(special.eos),
        "unk_token": name(special.unknown),
        "pad_token": name(special.padding),
        **{key: name(i) for key, i in special.template_tokens.items() if key in NAMED},
        "extra_special_tokens": {
            key: name(i) for key, i in special.template_tokens.items() if key not in NAMED
        }
        or None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": special.max_length,
        "chat_template": special.chat_template,
    }
    canonical = Backend.from_str(json.dumps(whole)).to_str(pretty=True)
    kept = {key: value for key, value in config.items() if value is not None}
    contents = {
        "tokenizer.json": canonical.encode() + b"\n",
        "tokenizer_config.json": json.dumps(kept, indent=2, ensure_ascii=False).encode() + b"\n",
    }
    if stop_ids:
        contents["generation_config.json"] = json.dumps({"eos_token_id": sorted(stop_ids)}).encode() + b"\n"
    return contents


def _post_processor(special: SpecialTokens, bos: str | None) -> _Json | None:
    if not special.add_bos or bos is None:
        return None
    first, second = ({"Sequence": {"id": part, "type_id": i}} for i, part in enumerate("AB"))
    starts = [{"SpecialToken": {"id": bos, "type_id": i}} for i in (0, 1)]
    return {
        "type": "TemplateProcessing",
        "single": [starts[0], first],
        "pair": [starts[0], first, starts[1], second],
        "special_tokens": {bos: {"id": bos, "ids": [special.bos], "tokens": [bos]}},
    }
