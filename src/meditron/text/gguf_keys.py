"""Access to the vocabulary in a GGUF file's metadata, with a check of each value's type.

Keys and their meaning: ggml's gguf.md and llama.cpp's `src/llama-vocab.cpp`.
"""

from collections import Counter
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

from meditron.core.errors import InputError
from meditron.text.special_tokens import SpecialTokens

__all__ = ["NAMED_KEYS", "TokenType", "VocabularyKeys"]

_T = TypeVar("_T")


NAMED_KEYS = {"sep_token": "seperator_token_id", "cls_token": "cls_token_id", "mask_token": "mask_token_id"}
"""Special token's variable name in chat templates → its GGUF key (the misspelling is in the GGUF format)."""


class TokenType(IntEnum):
    """Token types of llama.cpp."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class VocabularyKeys:
    """The metadata `tokenizer.ggml.*` of a GGUF file; each method checks the type of the value it returns."""

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self._metadata = metadata
        self._path = path
        self.tokens = self.required_array("tokens", str)
        self.types = self.required_array("token_type", int)
        self._check_vocabulary()

    def key_error(self, key: str, problem: str, *, hint: str | None = None) -> InputError:
        """Return an error that names `key`."""
        return InputError(self._path, problem, place=f"tokenizer.ggml.{key}", hint=hint)

    def optional_value(self, key: str, kind: type[_T]) -> _T | None:
        """Return the value of `key`, None if it is absent."""
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        # bool is a subclass of int in Python, but another type in GGUF.
        if value is not None and (
            not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool)
        ):
            raise self.key_error(key, f"must be {kind.__name__}, got {type(value).__name__}")
        return value

    def required_value(self, key: str, kind: type[_T]) -> _T:
        """Return the value of `key`; raise InputError if it is absent."""
        value = self.optional_value(key, kind)
        if value is None:
            raise self.key_error(key, "is missing: the vocabulary is incomplete")
        return value

    def required_array(self, key: str, kind: type[_T]) -> list[_T]:
        """Return the array `key`, whose items are all of `kind`; raise InputError if it is absent."""
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            raise self.key_error(key, "is missing: the vocabulary is incomplete")
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise self.key_error(key, f"must be an array of {kind.__name__}")
        return value

    def _check_vocabulary(self) -> None:
        if not self.tokens:
            raise self.key_error("tokens", "is empty")
        if len(self.types) != len(self.tokens):
            raise self.key_error(
                "token_type", f"has {len(self.types):,} entries for {len(self.tokens):,} tokens"
            )
        if unknown := set(self.types) - set(TokenType):
            raise self.key_error("token_type", f"unknown token type {min(unknown)}")
        # If two ids had the same token, encoding could never produce one of them.
        token, times = Counter(self.tokens).most_common(1)[0]
        if times > 1:
            raise self.key_error("tokens", f"the token {token!r} appears {times} times")

    def token_id(self, key: str, default: int | None = None) -> int | None:
        """Return the token id under `key`, or `default`; InputError if the id is not in the vocabulary."""
        value = self.optional_value(key, int)
        value = default if value is None else value
        if value is not None and not 0 <= value < len(self.tokens):
            raise self.key_error(key, f"is {value}; the largest id is {len(self.tokens) - 1}")
        return value

    def special_tokens(
        self, *, add_bos: bool, bos: int | None = None, eos: int | None = None
    ) -> SpecialTokens:
        """Return the vocabulary's special tokens; the arguments are the values of absent keys."""
        explicit = self.optional_value("add_bos_token", bool)
        further_stops = (self.token_id(key) for key in ("eot_token_id", "eom_token_id"))
        template = self._metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise InputError(self._path, "must be text", place="tokenizer.chat_template")
        return SpecialTokens(
            bos=self.token_id("bos_token_id", bos),
            eos=self.token_id("eos_token_id", eos),
            unknown=self.token_id("unknown_token_id"),
            padding=self.token_id("padding_token_id"),
            template_tokens={
                name: i for name, key in NAMED_KEYS.items() if (i := self.token_id(key)) is not None
            },
            add_bos=add_bos if explicit is None else explicit,
            further_stop_ids=frozenset(i for i in further_stops if i is not None),
            chat_template=template,
            max_length=self._context_length(),
        )

    def _context_length(self) -> int | None:
        value = self._metadata.get(f"{self._metadata.get('general.architecture')}.context_length")
        return value if isinstance(value, int) and 0 < value < 1 << 31 else None
