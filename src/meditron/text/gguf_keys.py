"""Typed reading of the vocabulary's part of a GGUF's metadata, where every value may be anything.

Keys and their meaning: ggml's gguf.md and llama.cpp's `src/llama-vocab.cpp`.
"""

from collections import Counter
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

from meditron.core.errors import InputError
from meditron.text.special import Special

__all__ = ["NAMED_KEYS", "Keys", "TokenType"]

_T = TypeVar("_T")


NAMED_KEYS = {"sep_token": "seperator_token_id", "cls_token": "cls_token_id", "mask_token": "mask_token_id"}
"""GGUF's keys, spelt so, of special tokens that a template may name."""


class TokenType(IntEnum):
    """llama.cpp's kinds of tokens."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Keys:
    """Typed reading of `tokenizer.ggml.*`."""

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self._metadata = metadata
        self._path = path
        self.tokens = self.many("tokens", str)
        self.types = self.many("token_type", int)
        self._check()

    def error(self, key: str, problem: str, *, hint: str | None = None) -> InputError:
        """What is wrong with `key`."""
        return InputError(self._path, problem, place=f"tokenizer.ggml.{key}", hint=hint)

    def maybe(self, key: str, kind: type[_T]) -> _T | None:
        """The value of `key`, None where it is absent."""
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is not None and (
            not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool)
        ):
            raise self.error(key, f"should be {kind.__name__}, is {type(value).__name__}")
        return value

    def one(self, key: str, kind: type[_T]) -> _T:
        """The value of `key`."""
        value = self.maybe(key, kind)
        if value is None:
            raise self.error(key, "is missing: the file holds no whole vocabulary")
        return value

    def many(self, key: str, kind: type[_T]) -> list[_T]:
        """The array under `key`, every item of `kind`."""
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            raise self.error(key, "is missing: the file holds no whole vocabulary")
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise self.error(key, f"should be an array of {kind.__name__}")
        return value

    def _check(self) -> None:
        if not self.tokens:
            raise self.error("tokens", "is empty")
        if len(self.types) != len(self.tokens):
            raise self.error("token_type", f"has {len(self.types):,} entries for {len(self.tokens):,} tokens")
        if unknown := set(self.types) - set(TokenType):
            raise self.error("token_type", f"knows no type {min(unknown)}")
        token, times = Counter(self.tokens).most_common(1)[0]
        if times > 1:
            raise self.error("tokens", f"holds {token!r} {times} times")

    def token_id(self, key: str, default: int | None = None) -> int | None:
        """The id under `key`, else `default`, which also has to be one of the vocabulary."""
        value = self.maybe(key, int)
        value = default if value is None else value
        if value is not None and not 0 <= value < len(self.tokens):
            raise self.error(key, f"is {value}; the vocabulary ends at {len(self.tokens) - 1}")
        return value

    def special(self, *, add_bos: bool, bos: int | None = None, eos: int | None = None) -> Special:
        """What the tokens are for; the arguments hold where the file is silent."""
        explicit = self.maybe("add_bos_token", bool)
        named = (self.token_id(key) for key in ("eot_token_id", "eom_token_id"))
        template = self._metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise InputError(self._path, "should be text", place="tokenizer.chat_template")
        return Special(
            bos=self.token_id("bos_token_id", bos),
            eos=self.token_id("eos_token_id", eos),
            unknown=self.token_id("unknown_token_id"),
            padding=self.token_id("padding_token_id"),
            named={name: i for name, key in NAMED_KEYS.items() if (i := self.token_id(key)) is not None},
            add_bos=add_bos if explicit is None else explicit,
            stop=frozenset(i for i in named if i is not None),
            chat_template=template,
            max_length=self._context_length(),
        )

    def _context_length(self) -> int | None:
        value = self._metadata.get(f"{self._metadata.get('general.architecture')}.context_length")
        return value if isinstance(value, int) and 0 < value < 1 << 31 else None
