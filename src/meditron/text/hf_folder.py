"""HF's tokenizer files: tokenizer.json says how text is cut, the files beside it what tokens are for."""

import json
from collections.abc import Collection, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from meditron.core.errors import InputError, SourceError
from meditron.store.files import read_json
from meditron.text import gguf_vocab
from meditron.text.hf_tokens import NAMED, Names, merged_config, names_of, tokens_to_add, with_tokens
from meditron.text.pieces import METASPACE, byte_map, sentencepiece_bytes
from meditron.text.sentencepiece_model import read_metadata
from meditron.text.special import Special

__all__ = ["files", "read"]

_Json = dict[str, Any]
_LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
_LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _load(path: Path) -> _Json:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(path, f"should hold a JSON object, not {type(content).__name__}")
    return content


def _load_if_there(path: Path) -> _Json:
    return _load(path) if path.is_file() else {}


def read(folder: Path) -> tuple[_Json, Special]:
    """Read a folder's tokenizer as transformers 5.17 does: tokenizer.json's content, and its special tokens.

    Without a tokenizer.json, a SentencePiece `tokenizer.model` is read as sentencepiece reads it. Raises
    InputError for a damaged file, SourceError for a folder with neither.
    """
    path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    raw, special_map = (_load_if_there(p) for p in (config_path, folder / "special_tokens_map.json"))
    config = merged_config(raw, special_map)
    model_config = _load_if_there(folder / "config.json")
    defaults: dict[str, str] = {}
    if path.is_file():
        spec = _checked(path, _load(path))
        class_name = config.get("tokenizer_class") or model_config.get("tokenizer_class")
        if class_name in _LLAMA_CLASSES and model_config.get("model_type", "llama") == "llama":
            spec, defaults = _of_llama_class(path, spec, config), _LLAMA_NAMES
        first = _first_of_template(path, spec)
    elif (path := folder / "tokenizer.model").is_file():
        metadata = read_metadata(path)
        spec, own = gguf_vocab.read(metadata, path)
        defaults = _names(spec, own)
        first = None
    else:
        raise SourceError(f"{folder}: has neither tokenizer.json nor tokenizer.model")
    names = names_of(config_path, config, defaults)
    added = _load_if_there(folder / "added_tokens.json")
    spec = with_tokens(path, spec, tokens_to_add(config_path, spec, config, added, names))
    if path.name == "tokenizer.model":  # tokens are found as they stand, before `▁` is put before a text
        spec["added_tokens"] = [{**token, "normalized": False} for token in spec["added_tokens"]]
    return spec, _special(folder, spec, config, model_config, names, first)


def _of_llama_class(path: Path, spec: _Json, config: _Json) -> _Json:
    """Build what transformers' `LlamaTokenizer` makes of a file: its vocabulary under the class's own rules.

    Byte-level vocabularies under that class's name (published so) are left as they are.
    """
    if byte_map(spec.get("decoder")) is not sentencepiece_bytes:
        return spec
    prefix = config.get("add_prefix_space")
    prefix = prefix is None or bool(prefix)
    scheme = "never" if not prefix else "always" if config.get("legacy") else "first"
    model = {**spec["model"], "unk_token": None, "fuse_unk": True, "byte_fallback": True}
    model |= {"ignore_merges": False, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    steps: list[_Json] = [
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
        "decoder": {"type": "Sequence", "decoders": [*steps, *strip]},
        "model": model,
    }


def _names(spec: _Json, special: Special) -> dict[str, str]:
    """Special tokens by name, of those that a SentencePiece model knows by id."""
    tokens = {i: token for token, i in spec["model"]["vocab"].items()}
    ids = {"bos_token": special.bos, "eos_token": special.eos, "unk_token": special.unknown}
    ids["pad_token"] = special.padding
    return {name: tokens[i] for name, i in ids.items() if i is not None}


def _checked(path: Path, spec: _Json) -> _Json:
    model, added = spec.get("model"), spec.get("added_tokens", [])
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise InputError(path, f"holds a {kind} model; Llama models have BPE", place="model.type")
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise InputError(path, "holds no vocabulary", place="model.vocab")
    if not isinstance(added, list) or not all(
        isinstance(token, dict) and isinstance(token.get("content"), str) for token in added
    ):
        raise InputError(path, "should be a list of tokens with a content", place="added_tokens")
    if not all(type(token.get("id")) is int and token["content"] for token in added):
        raise InputError(path, "should be a list of tokens with a content and an id", place="added_tokens")
    spec = {**spec, "added_tokens": added}
    seen: set[int] = set()
    for token, i in vocab.items():
        if not isinstance(i, int) or isinstance(i, bool) or i < 0 or i in seen:
            raise InputError(path, f"token {token!r} has the id {i!r}", place="model.vocab")
        seen.add(i)
    return spec


def _special(
    folder: Path, spec: _Json, config: _Json, model_config: _Json, names: Names, first: str | None
) -> Special:
    ids = {**spec["model"]["vocab"], **{t["content"]: t["id"] for t in spec["added_tokens"]}}
    named = {key: int(ids[token]) for key, token in names.items()}
    if first is not None and (bos := names.get("bos_token", first)) != first:
        raise InputError(
            folder / "tokenizer.json",
            f"begins a text with {first!r}, but bos_token is {bos!r}",
            place="post_processor",
        )
    # transformers reads these two settings only where there is no tokenizer.json.
    adds = config.get("add_bos_token") is True and not (folder / "tokenizer.json").is_file()
    length = config.get("model_max_length")
    return Special(
        bos=named.pop("bos_token", None if first is None else int(ids[first])),
        eos=named.pop("eos_token", None),
        unknown=named.pop("unk_token", None),
        padding=named.pop("pad_token", None),
        named=named,
        add_bos=adds or first is not None,
        stop=_stops(folder, model_config, ids, spec),
        chat_template=_chat_template(folder, config),
        # transformers writes 1e30 where it knows no length.
        max_length=length if isinstance(length, int) and 0 < length < 1 << 31 else None,
    )


def _first_of_template(path: Path, spec: _Json) -> str | None:
    """The token that tokenizer.json's own post-processor puts before a text."""
    processor = spec.get("post_processor")
    steps = processor.get("processors") if isinstance(processor, dict) else None
    for step in steps if isinstance(steps, list) else [processor]:
        if not isinstance(step, dict):
            continue
        if isinstance(token := step.get("cls"), list) and token:  # BERT's and RoBERTa's
            return _known(path, spec, token[0])
        before = list(takewhile(lambda part: "Sequence" not in part, _parts(step)))
        if len(before) > 1:
            raise InputError(path, f"begins a text with {len(before)} tokens", place="post_processor")
        if before and isinstance(token := before[0].get("SpecialToken"), dict):
            return _known(path, spec, token.get("id"))
    return None


def _known(path: Path, spec: _Json, token: object) -> str:
    if isinstance(token, str) and (
        token in spec["model"]["vocab"] or any(token == added["content"] for added in spec["added_tokens"])
    ):
        return token
    raise InputError(path, f"begins a text with {token!r}, which is no token", place="post_processor")


def _parts(step: _Json) -> list[_Json]:
    single = step.get("single")
    return [part for part in single if isinstance(part, dict)] if isinstance(single, list) else []


def _stops(folder: Path, model_config: _Json, ids: Mapping[str, int], spec: _Json) -> frozenset[int]:
    """The ids that config.json and generation_config.json name as ends.

    Without a generation_config's word, transformers takes config.json's. Otherwise the latter, which often is
    a library's default, counts for added tokens only: no ordinary token ends a text by mistake.
    """
    generation, model = (
        {i for i in (named if isinstance(named, list) else [named]) if type(i) is int}
        for named in (
            _load_if_there(folder / "generation_config.json").get("eos_token_id"),
            model_config.get("eos_token_id"),
        )
    )
    if generation:
        model &= {token["id"] for token in spec["added_tokens"]}
    return frozenset((generation | model) & set(ids.values()))


def _chat_template(folder: Path, config: _Json) -> str | None:
    """The template for plain conversations: a file's, else the config's, of several the one named default."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        try:
            return own.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(own, f"is no UTF-8: {error}") from error
    value = config.get("chat_template")
    if isinstance(value, list):  # several, by name
        named = (entry for entry in value if isinstance(entry, dict))
        value = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    if value is not None and not isinstance(value, str):
        raise InputError(folder / "tokenizer_config.json", "should be text", place="chat_template")
    return value


def files(
    spec: Mapping[str, Any], special: Special, backend: Backend, stop_ids: Collection[int]
) -> dict[str, bytes]:
    """The files that transformers reads, by name; the same ids come out of its AutoTokenizer.

    `stop_ids` are those of a generation_config.json, which is written only for them.
    `PreTrainedTokenizerFast` is the class that takes tokenizer.json as it stands; model-specific classes
    build their own rules around the bare vocabulary.
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
        **{key: name(i) for key, i in special.named.items() if key in NAMED},
        "extra_special_tokens": {key: name(i) for key, i in special.named.items() if key not in NAMED}
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


def _post_processor(special: Special, bos: str | None) -> _Json | None:
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
