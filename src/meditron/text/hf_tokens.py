"""Added and special tokens of an HF folder, merged from all its files as transformers 5.17 merges them.

transformers adds the tokens in this order (`tokenization_utils_base._from_pretrained` and
`TokenizersBackend.__init__`): tokenizer.json's `added_tokens`; tokenizer_config.json's `added_tokens_decoder`
or, without it, special_tokens_map.json, added_tokens.json and tokenizer.json again; the named special tokens;
`extra_special_tokens` (formerly `additional_special_tokens`). A token that the vocabulary contains keeps its
id; a new token gets the next free id, even if a file gives it another.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from meditron.core.errors import InputError
from meditron.text.backend import build_tokenizer, call_backend

__all__ = ["NAMED", "Names", "merge_config", "special_token_names", "tokens_to_add", "with_added_tokens"]

Json = dict[str, Any]
Names = Mapping[str, str]
"""Special token's variable name in chat templates (`bos_token`, `image_token`) → the token."""

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def merge_config(config: Json, special_map: Json) -> Json:
    """Merge special_tokens_map.json into tokenizer_config.json, unless the latter lists the added tokens."""
    merged = dict(config) if "added_tokens_decoder" in config else {**config, **special_map}
    if (older := merged.pop("additional_special_tokens", None)) is not None:
        merged.setdefault("extra_special_tokens", older)
    return merged


def special_token_names(path: Path, config: Json, defaults: Names) -> dict[str, str]:
    """Return variable name → special token of a merged config; `defaults` are the values of absent keys."""
    named = {key: config.get(key) if key in config else defaults.get(key) for key in NAMED}
    more = {
        key: value
        for key, value in config.items()
        if key.endswith("_token") and key not in NAMED and isinstance(value, str)
    }
    extra = config.get("extra_special_tokens")
    named |= more | (extra if isinstance(extra, dict) else {})
    return {key: _token_content(path, key, value) for key, value in named.items() if value is not None}


def _token_content(path: Path, key: str, value: object) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str) or not content:
        raise InputError(path, f"must be a token, got {value!r}", place=key)
    return content


def tokens_to_add(path: Path, spec: Json, config: Json, added: Json, names: Names) -> list[AddedToken]:
    """List the tokens that transformers adds to those of tokenizer.json, in the order in which it adds them.

    Args:
        path: Path of tokenizer_config.json, for error messages.
        spec: Content of tokenizer.json.
        config: Result of `merge_config`.
        added: Content of added_tokens.json.
        names: Result of `special_token_names`.
    """
    known = [_parse_token(path, "added_tokens", token) for token in spec.get("added_tokens", [])]
    extra = _extra_special_tokens(path, config)
    named = {*names.values(), *map(str, (token.content for token in extra))}
    listed = _listed_tokens_by_id(path, config, added, special=named)
    if "added_tokens_decoder" not in config:
        listed |= {
            token["id"]: _parse_token(path, "added_tokens", token) for token in spec.get("added_tokens", [])
        }
    # Tokens are compared with their flags, because transformers adds a known token again if its flags differ.
    present = {_token_with_flags(token) for token in known}
    new = [token for _, token in sorted(listed.items()) if _token_with_flags(token) not in present]
    contents = {token.content for token in (*known, *new)}
    flagged = [_parse_token(path, key, config[key]) for key in names if isinstance(config.get(key), dict)]
    by_content = {token.content: token for token in (*flagged, *listed.values())}
    for name in names.values():
        if name not in contents:
            new.append(by_content.get(name, AddedToken(name, special=True)))
            contents.add(name)
    for token in extra:
        if token.content not in contents:
            new.append(token)
            contents.add(token.content)
    for token in new:
        if token.content in names.values():
            token.special = True
    return new


def _token_with_flags(token: AddedToken) -> tuple[str, ...]:
    return (token.content, *(str(getattr(token, flag)) for flag in _FLAGS))


def _listed_tokens_by_id(
    path: Path, config: Json, added: Json, *, special: set[str]
) -> dict[int, AddedToken]:
    """Return id → token, for the tokens that `added_tokens_decoder` or added_tokens.json lists."""
    decoder = config.get("added_tokens_decoder")
    if decoder is not None:
        if not isinstance(decoder, dict) or not all(str(key).isdecimal() for key in decoder):
            raise InputError(path, "must be an object of ids", place="added_tokens_decoder")
        return {
            int(key): _parse_token(path, f"added_tokens_decoder.{key}", token)
            for key, token in decoder.items()
        }
    if not all(isinstance(i, int) for i in added.values()):
        raise InputError(path.with_name("added_tokens.json"), "must be an object of tokens and their ids")
    return {
        i: AddedToken(content, normalized=content not in special, special=content in special)
        for content, i in added.items()
    }


def _parse_token(path: Path, place: str, value: object) -> AddedToken:
    """Build a token from its JSON value, an object with flags or a text; a text becomes a special token."""
    if isinstance(value, str):
        return AddedToken(value, special=True)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise InputError(path, "must be a token with a content", place=place)
    flags = {flag: value[flag] for flag in _FLAGS if flag in value}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise InputError(path, "has a flag that is not true or false", place=place)
    return AddedToken(value["content"], **flags)


def _extra_special_tokens(path: Path, config: Json) -> list[AddedToken]:
    """Return `extra_special_tokens` if it is a list; if it is an object, `special_token_names` reads it."""
    extra = config.get("extra_special_tokens")
    if extra is None or isinstance(extra, dict):
        return []
    if not isinstance(extra, list):
        raise InputError(path, "must be a list of tokens", place="extra_special_tokens")
    tokens = [_parse_token(path, "extra_special_tokens", token) for token in extra]
    for token in tokens:
        token.special = True
    return tokens


def with_added_tokens(path: Path, spec: Json, tokens: Sequence[AddedToken]) -> Json:
    """Return the content of a tokenizer.json with further tokens added."""
    if not tokens:
        return spec
    # The tokenizers library assigns the ids, so that they are the same as in transformers.
    backend = build_tokenizer(spec, path)
    call_backend(path, lambda: backend.add_tokens(list(tokens)))
    described = [
        {"id": i, "content": token.content, **{flag: getattr(token, flag) for flag in _FLAGS}}
        for i, token in sorted(backend.get_added_tokens_decoder().items())
    ]
    return {**spec, "added_tokens": described}
