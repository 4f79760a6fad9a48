"""Convert a GGUF file's `tokenizer.ggml.*` metadata to a tokenizer.json; `gguf_write` is the inverse.

Keys and their meaning: ggml's gguf.md and llama.cpp's `src/llama-vocab.cpp`.

SentencePiece's BPE joins the pair of pieces that form the piece with the highest score, on ties the leftmost
pair. HF's BPE joins the pair with the lowest rank in a list of merges. Every split of a piece into two pieces
therefore becomes a merge, and the merges are ordered by the piece's score. The results can differ only if two
pieces have the same score. In Llama-2's vocabulary all runs of spaces share one score; here longer runs get
lower ranks, which gives the same result as joining from the left. Other equal scores are refused, because no
list of merges can express them.
"""

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from meditron.text.gguf_keys import TokenType, VocabularyKeys
from meditron.text.pretokenizers import PRETOKENIZERS
from meditron.text.special_tokens import STOP_TOKENS_OF_LLAMACPP, SpecialTokens
from meditron.text.token_bytes import PREFIX, SPACES

__all__ = ["piece_splits", "tokenizer_from_metadata"]

Json = dict[str, Any]
_EMPTY_TOKENIZER_JSON: Json = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
}
_EMPTY_BPE_MODEL: Json = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
_MAX_PIECE = 1024  # characters; all splits of a piece take time in the square of its length


def tokenizer_from_metadata(metadata: Mapping[str, Any], path: Path) -> tuple[Json, SpecialTokens]:
    """Return the content of a tokenizer.json, and the special tokens.

    Raises:
        InputError: The vocabulary in the metadata cannot be reproduced exactly; the error names the key.
    """
    keys = VocabularyKeys(metadata, path)
    model = keys.required_value("model", str)
    if model == "gpt2":
        return _byte_level_tokenizer(keys)
    if model == "llama":
        return _sentencepiece_tokenizer(keys)
    raise keys.key_error(
        "model", f"is {model!r}; supported are gpt2 (byte-level BPE) and llama (SentencePiece BPE)"
    )


def _tokenizer_json(
    keys: VocabularyKeys,
    model: Json,
    merges: list[tuple[str, str]],
    *,
    control: set[TokenType],
    **rules: Json | None,
) -> Json:
    """Build the content of a tokenizer.json; `model` and `rules` replace keys of an empty one."""
    bpe = {
        **_EMPTY_BPE_MODEL,
        **model,
        "vocab": {token: i for i, token in enumerate(keys.tokens)},
        "merges": [list(pair) for pair in merges],
    }
    # Old files have stop tokens that are marked as normal, so llama.cpp ignores the type of these names. For
    # `</s>` this is wrong in Qwen's vocabulary, which has it as an ordinary token (HTML's end of a strike).
    stops = STOP_TOKENS_OF_LLAMACPP - ({"</s>"} if TokenType.UNKNOWN not in control else set())
    added = [
        _added_token(i, token, special=kind in control or token in stops)
        for i, (token, kind) in enumerate(zip(keys.tokens, keys.types, strict=True))
        if kind in control or kind == TokenType.USER_DEFINED or token in stops
    ]
    return {**_EMPTY_TOKENIZER_JSON, "added_tokens": added, **rules, "model": bpe}


def _added_token(i: int, token: str, *, special: bool) -> Json:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": token, **flags, "special": special}


def _byte_level_tokenizer(keys: VocabularyKeys) -> tuple[Json, SpecialTokens]:
    pre = keys.optional_value("pre", str) or "default"
    if pre not in PRETOKENIZERS:
        known = ", ".join(PRETOKENIZERS)
        raise keys.key_error("pre", f"unknown pre-tokenizer {pre!r}; known are {known}")
    cut = PRETOKENIZERS[pre]
    spec = _tokenizer_json(
        keys,
        {"ignore_merges": cut.ignore_merges},
        _merges_listed_in_gguf(keys),
        control={TokenType.CONTROL},
        normalizer=cut.normalizer,
        pre_tokenizer=cut.spec,
        decoder={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    )
    return spec, keys.special_tokens(add_bos=cut.add_bos)


def _merges_listed_in_gguf(keys: VocabularyKeys) -> list[tuple[str, str]]:
    known = set(keys.tokens)
    # GGUF writes a merge as two tokens with a space between them; byte-level tokens contain no space, as they
    # write it as Ġ.
    merges = []
    for place, line in enumerate(keys.required_array("merges", str)):
        left, space, right = line.partition(" ")
        if not space or {left, right, left + right} - known:
            raise keys.key_error(
                "merges", f"entry {place} ({line[:40]!r}) does not join two tokens into a token"
            )
        merges.append((left, right))
    return merges


def _sentencepiece_tokenizer(keys: VocabularyKeys) -> tuple[Json, SpecialTokens]:
    unknown = [i for i, kind in enumerate(keys.types) if kind == TokenType.UNKNOWN]
    has_bytes = Counter(keys.types)[TokenType.BYTE] == 256
    if len(unknown) != 1 and not has_bytes:
        raise keys.key_error("token_type", "has neither one unknown token nor 256 byte tokens")
    prefix = keys.optional_value("add_space_prefix", bool) is not False
    prefix_steps: list[Json] = [PREFIX] if prefix else []
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    spec = _tokenizer_json(
        keys,
        {
            "unk_token": keys.tokens[unknown[0]] if unknown else None,
            "fuse_unk": True,
            "byte_fallback": has_bytes,
        },
        _merges_from_scores(keys),
        control={TokenType.UNKNOWN, TokenType.CONTROL},
        normalizer={"type": "Sequence", "normalizers": [*prefix_steps, SPACES]},
        decoder={"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
    )
    return spec, keys.special_tokens(add_bos=True, bos=1, eos=2)


def _merges_from_scores(keys: VocabularyKeys) -> list[tuple[str, str]]:
    """Return all splits of all pieces as merges, by score, then length of piece, then of left part."""
    scores = keys.required_array("scores", float)
    if len(scores) != len(keys.tokens):
        raise keys.key_error("scores", f"has {len(scores):,} entries for {len(keys.tokens):,} tokens")
    if not all(map(isfinite, scores)):
        raise keys.key_error("scores", "has a value that is not finite")
    pieces = {
        token: score
        for token, kind, score in zip(keys.tokens, keys.types, scores, strict=True)
        if kind == TokenType.NORMAL
    }
    if max(map(len, pieces), default=0) > _MAX_PIECE:
        raise keys.key_error("tokens", f"has a piece of more than {_MAX_PIECE:,} characters")
    # Only normal pieces have merges; control tokens and byte tokens are never formed from other pieces.
    splits = {piece: list(piece_splits(piece, pieces)) for piece in pieces}
    _refuse_score_ties(keys, {piece: pieces[piece] for piece, pairs in splits.items() if pairs})
    ranked = [
        (-pieces[piece], -len(piece), -len(left), left, right)
        for piece in splits
        for left, right in splits[piece]
    ]
    return [(left, right) for *_, left, right in sorted(ranked)]


def piece_splits(piece: str, pieces: Container[str]) -> Iterator[tuple[str, str]]:
    """Yield every pair of pieces that join to `piece`."""
    for at in range(1, len(piece)):
        left, right = piece[:at], piece[at:]
        if left in pieces and right in pieces:
            yield left, right


def _refuse_score_ties(keys: VocabularyKeys, scores: Mapping[str, float]) -> None:
    piece_by_score: dict[float, str] = {}
    for piece, score in scores.items():
        other = piece_by_score.setdefault(score, piece)
        # Pieces of one repeated character (runs of spaces) may have equal scores: their merges are ordered by
        # length, as the module's docstring says.
        if len(set(piece + other)) > 1 and piece != other:
            raise keys.key_error(
                "scores",
                f"are equal for {other!r} and {piece!r}: the order of their merges is unknown",
                hint="open the model's tokenizer.json instead",
            )
