"""Added and special tokens of an HF folder, merged from all its files as transformers 5.17 merges them.

Sources, in the order in which transformers adds their tokens (`tokenization_utils_base._from_pretrained` and
`TokenizersBackend.__init__`): tokenizer.json's `added_tokens`; tokenizer_config.json's `added_tokens_decoder`
or, without it, special_tokens_map.json, added_tokens.json and tokenizer.json again; the named special tokens;
`extra_special_tokens` (formerly `additional_special_tokens`). A token of the vocabulary keeps its id; a new
one gets the next free id, even if a file names another.
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
"""Special tokens by the name of their template variable: `bos_token`, `image_token`."""

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def merge_config(config: Json, special_map: Json) -> Json:
    """Merge special_tokens_map.json into tokenizer_config.json, unless the latter lists the added tokens."""
    merged = dict(config) if "added_tokens_decoder" in config else {**config, **special_map}
    if (older := merged.pop("additional_special_tokens", None)) is not None:
        merged.setdefault("extra_special_tokens", older)
    return merged


def special_token_names(path: Path, config: Json, defaults: Names) -> dict[str, str]:
    """Return the named special tokens of a merged config; `defaults` apply to absent keys."""
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
    """List the tokens that transformers adds to those of `spec`, in its order.

    Args:
        path: tokenizer_config.json, for errors.
        spec: tokenizer.json.
        config: The merged config.
        added: added_tokens.json.
        names: The named special tokens.
    """
    known = [_parse_token(path, "added_tokens", token) for token in spec.get("added_tokens", [])]
    extra = _extra_special_tokens(path, config)
    named = {*names.values(), *map(str, (token.content for token in extra))}
    listed = _listed_tokens_by_id(path, config, added, special=named)
    if "added_tokens_decoder" not in config:
        listed |= {
            token["id"]: _parse_token(path, "added_tokens", token) for token in spec.get("added_tokens", [])
        }
    # Compared with their flags: transformers adds a known token again if its flags differ.
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
    """Return tokens by the id that a file gives them."""
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
    """Build a token from its JSON form; a bare text is a special token."""
    if isinstance(value, str):
        return AddedToken(value, special=True)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise InputError(path, "must be a token with a content", place=place)
    flags = {flag: value[flag] for flag in _FLAGS if flag in value}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise InputError(path, "has a flag that is not true or false", place=place)
    return AddedToken(value["content"], **flags)


def _extra_special_tokens(path: Path, config: Json) -> list[AddedToken]:
    """Return the list of extra special tokens; a dictionary of them is read by `special_token_names`."""
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
    """Return `spec` with tokens added by the tokenizers library, which assigns the ids."""
    if not tokens:
        return spec
    # The library itself assigns the ids, so that they cannot differ from transformers'.
    backend = build_tokenizer(spec, path)
    call_backend(path, lambda: backend.add_tokens(list(tokens)))
    described = [
        {"id": i, "content": token.content, **{flag: getattr(token, flag) for flag in _FLAGS}}
        for i, token in sorted(backend.get_added_tokens_decoder().items())
    ]
    return {**spec, "added_tokens": described}
