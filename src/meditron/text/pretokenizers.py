"""Pre-tokenizers of byte-level vocabularies: llama.cpp's names and their rules for HF tokenizers.

A GGUF file only names its pre-tokenizer, in `tokenizer.ggml.pre`; HF's tokenizer.json contains the rule. The
rules below are llama.cpp's (`src/llama-vocab.cpp`), written so that HF tokenizers split at the same places.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["PRETOKENIZERS", "PreTokenizer", "is_known_pretokenizer", "pretokenizer_name"]

Spec = dict[str, Any]

# GPT-2's regular expression (Radford et al. 2019), without its tail `|\s+`: unmatched text becomes a piece of
# its own either way.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """A pre-tokenizer.

    `spec` is its form in tokenizer.json; with `ignore_merges` a piece that is itself a token is not built by
    merges; `add_bos` is the default of `tokenizer.ggml.add_bos_token`.
    """

    spec: Spec
    ignore_merges: bool = False
    add_bos: bool = False


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

PRETOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": _DEFAULT,
    "gpt-2": PreTokenizer(_byte_level_step(use_regex=True)),
    "smollm": _SMOLLM,
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "dbrx": PreTokenizer(_LLAMA_BPE.spec),
}


def _canonical_json(spec: object) -> str:
    """Return a canonical form of `spec`, without `trim_offsets`, which does not affect ids."""

    def without_offsets(value: object) -> object:
        if isinstance(value, dict):
            return {name: without_offsets(item) for name, item in value.items() if name != "trim_offsets"}
        return [without_offsets(item) for item in value] if isinstance(value, list) else value

    return json.dumps(without_offsets(spec), sort_keys=True)


def pretokenizer_name(spec: object, *, ignore_merges: bool) -> str | None:
    """Return llama.cpp's name of a `pre_tokenizer` with `ignore_merges`; None if it has none."""
    for name, known in PRETOKENIZERS.items():
        if known.ignore_merges == ignore_merges and _canonical_json(known.spec) == _canonical_json(spec):
            return name
    return None


def is_known_pretokenizer(spec: object) -> bool:
    """Return whether a tokenizer.json's `pre_tokenizer` is a known one."""
    return any(_canonical_json(known.spec) == _canonical_json(spec) for known in PRETOKENIZERS.values())
