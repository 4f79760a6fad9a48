"""Pre-tokenizers of byte-level vocabularies: llama.cpp's names, and the same rules for HF tokenizers.

A GGUF file contains only the name of its pre-tokenizer, in `tokenizer.ggml.pre`; HF's tokenizer.json contains
the rules. The rules in this module are llama.cpp's (`src/llama-vocab.cpp`), written for HF tokenizers such
that texts are split at the same places.

Two names are exceptions: their rules are those that the models were trained with, and llama.cpp has others.
`qwen2` normalizes texts to NFC, which llama.cpp omits, and `tekken` distinguishes upper and lower case in all
scripts, llama.cpp in ASCII only. This package passes token ids to llama.cpp, so the difference affects only
programs that pass text to it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["NFC", "PRETOKENIZERS", "PreTokenizer", "is_known_pretokenizer", "pretokenizer_name"]

Spec = dict[str, Any]

# GPT-2's regular expression (Radford et al. 2019) without its last alternative `|\s+`, which has no effect:
# unmatched text becomes a piece of its own too.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NFC: Spec = {"type": "NFC"}
"""The value of `normalizer` in tokenizer.json that composes characters."""


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """A pre-tokenizer.

    The pre-tokenizer's name in GGUF files is its key in `PRETOKENIZERS`.
    """

    spec: Spec
    """The value of `pre_tokenizer` in tokenizer.json."""
    ignore_merges: bool = False
    """True if a piece that is itself a token becomes that token without applying merges."""
    add_bos: bool = False
    """Value of `tokenizer.ggml.add_bos_token` if that key is absent."""
    normalizer: Spec | None = None
    """The value of `normalizer` in tokenizer.json."""


def _split_step(pattern: str) -> Spec:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level_step(*, use_regex: bool) -> Spec:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _sequence_step(*steps: Spec) -> Spec:
    return {"type": "Sequence", "pretokenizers": list(steps)}


_DEFAULT = PreTokenizer(
    _sequence_step(
        _split_step(r"[\p{P}\$\+<=>\^~\|]+"),
        _split_step(_GPT2),
        _split_step(r"\p{N}+"),
        _split_step(r"[0-9][0-9][0-9]"),
        _byte_level_step(use_regex=False),
    )
)
_SMOLLM = PreTokenizer(
    _sequence_step({"type": "Digits", "individual_digits": True}, _byte_level_step(use_regex=True)),
)
_LLAMA_BPE = PreTokenizer(
    _sequence_step(_split_step(_LLAMA3), _byte_level_step(use_regex=False)), ignore_merges=True, add_bos=True
)
_QWEN2_STEPS = _sequence_step(_split_step(_QWEN2), _byte_level_step(use_regex=False))
_TEKKEN_STEPS = _sequence_step(_split_step(_TEKKEN), _byte_level_step(use_regex=False))

PRETOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": _DEFAULT,
    "gpt-2": PreTokenizer(_byte_level_step(use_regex=True)),
    "smollm": _SMOLLM,
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "dbrx": PreTokenizer(_LLAMA_BPE.spec),
    "qwen2": PreTokenizer(_QWEN2_STEPS, normalizer=NFC),
    "deepseek-r1-qwen": PreTokenizer(_QWEN2_STEPS),
    "tekken": PreTokenizer(_TEKKEN_STEPS, ignore_merges=True, add_bos=True),
}


def _canonical_json(spec: object) -> str:
    """Return a `pre_tokenizer` value as canonical JSON without `trim_offsets`, which does not affect ids."""

    def drop_trim_offsets(value: object) -> object:
        if isinstance(value, dict):
            return {name: drop_trim_offsets(item) for name, item in value.items() if name != "trim_offsets"}
        return [drop_trim_offsets(item) for item in value] if isinstance(value, list) else value

    return json.dumps(drop_trim_offsets(spec), sort_keys=True)


def pretokenizer_name(spec: object, *, ignore_merges: bool, normalizer: object = None) -> str | None:
    """Return llama.cpp's name for the `pre_tokenizer` and `normalizer` of a tokenizer.json; None: no name."""
    for name, known in PRETOKENIZERS.items():
        if (known.ignore_merges, known.normalizer) == (ignore_merges, normalizer) and (
            _canonical_json(known.spec) == _canonical_json(spec)
        ):
            return name
    return None


def is_known_pretokenizer(spec: object) -> bool:
    """Return whether a `pre_tokenizer` value of tokenizer.json is among `PRETOKENIZERS`."""
    return any(_canonical_json(known.spec) == _canonical_json(spec) for known in PRETOKENIZERS.values())
