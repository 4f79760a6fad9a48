"""HF's tokenizer files: tokenizer.json says how text is cut, the files beside it what tokens are for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from meditron.ground.errors import InputError, SourceError
from meditron.store.files import read_json
from meditron.text.special import Special

__all__ = ["files", "read"]

_Json = dict[str, Any]


def _load(path: Path) -> _Json:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(path, f"should hold a JSON object, not {type(content).__name__}")
    return content


def _load_if_there(path: Path) -> _Json:
    return _load(path) if path.is_file() else {}


def read(folder: Path) -> tuple[_Json, Special]:
    """tokenizer.json as it stands, checked as far as JSON goes, and what its neighbours say of its tokens.

    Raises InputError for a damaged file, SourceError where the folder has no tokenizer.json.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise SourceError(
            f"{folder}: has no tokenizer.json",
            hint="a folder with only tokenizer.model: open it with transformers and save_pretrained() it",
        )
    spec = _checked(path, _load(path))
    config = {
        **_load_if_there(folder / "special_tokens_map.json"),
        **_load_if_there(folder / "tokenizer_config.json"),
    }
    return spec, _special(folder, spec, config)


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
    seen: set[int] = set()
    for token, i in vocab.items():
        if not isinstance(i, int) or isinstance(i, bool) or i < 0 or i in seen:
            raise InputError(path, f"token {token!r} has the id {i!r}", place="model.vocab")
        seen.add(i)
    return spec


def _special(folder: Path, spec: _Json, config: _Json) -> Special:
    path = folder / "tokenizer_config.json"
    ids = {**spec["model"]["vocab"], **{t.get("content"): t.get("id") for t in spec.get("added_tokens", [])}}

    def token(key: str) -> int | None:
        value = config.get(key)
        name = value.get("content") if isinstance(value, dict) else value
        if name is None:
            return None
        if not isinstance(name, str) or not isinstance(ids.get(name), int):
            raise InputError(path, f"names {name!r}, which is no token", place=key)
        return int(ids[name])

    first = _first_of_template(spec.get("post_processor"), ids)
    bos = token("bos_token")
    add_bos = config.get("add_bos_token")
    length = config.get("model_max_length")
    return Special(
        bos=bos if bos is not None else first,
        eos=token("eos_token"),
        unknown=token("unk_token"),
        padding=token("pad_token"),
        add_bos=add_bos if isinstance(add_bos, bool) else first is not None,
        stop=_stops(folder / "generation_config.json", set(ids.values())),
        chat_template=_chat_template(folder, config),
        # transformers writes 1e30 where it knows no length.
        max_length=length if isinstance(length, int) and 0 < length < 1 << 31 else None,
    )


def _first_of_template(processor: object, ids: Mapping[str, int]) -> int | None:
    """The token that tokenizer.json's own post-processor puts before a text."""
    if not isinstance(processor, dict):
        return None
    steps = processor.get("processors")
    for step in steps if isinstance(steps, list) else [processor]:
        single = step.get("single") if isinstance(step, dict) else None
        head = single[0] if isinstance(single, list) and single else None
        if isinstance(head, dict) and isinstance(token := head.get("SpecialToken"), dict):
            return ids.get(str(token.get("id")))
    return None


def _stops(path: Path, ids: set[Any]) -> frozenset[int]:
    named = _load_if_there(path).get("eos_token_id")
    values = named if isinstance(named, list) else [named]
    return frozenset(value for value in values if isinstance(value, int) and value in ids)


def _chat_template(folder: Path, config: _Json) -> str | None:
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


def files(spec: Mapping[str, Any], special: Special, backend: Backend) -> dict[str, bytes]:
    """The two files that transformers reads, by name; the same ids come out of its AutoTokenizer.

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
        "clean_up_tokenization_spaces": False,
        "model_max_length": special.max_length,
        "chat_template": special.chat_template,
    }
    canonical = Backend.from_str(json.dumps(whole)).to_str(pretty=True)
    kept = {key: value for key, value in config.items() if value is not None}
    return {
        "tokenizer.json": canonical.encode() + b"\n",
        "tokenizer_config.json": json.dumps(kept, indent=2, ensure_ascii=False).encode() + b"\n",
    }


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
