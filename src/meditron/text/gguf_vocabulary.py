"""A GGUF's `tokenizer.ggml.*` metadata as the content of a tokenizer.json.

Keys and their meaning: ggml's gguf.md and llama.cpp's `src/llama-vocab.cpp`.

SentencePiece's BPE joins the pair whose piece has the highest score, the leftmost of equals; HF's joins the
pair with the lowest rank in a list of merges. Every piece therefore gives its splits into two pieces as
merges, ordered by the piece's score. Only ties could differ: the runs of spaces, which share one score in
Llama-2's vocabulary, grow from the left in sentencepiece, and do here because longer left halves rank
first; other ties are refused, since no list of merges can tell them apart.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from meditron.ground.errors import InputError
from meditron.text.pretokenizers import PRETOKENIZERS
from meditron.text.special import Special

__all__ = ["read"]

_T = TypeVar("_T")
_Json = dict[str, Any]
# llama.cpp's token types.
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_BARE: _Json = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
}
_BARE_BPE: _Json = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
_MAX_PIECE = 1024  # characters; splitting a piece everywhere takes time in its square


def read(metadata: Mapping[str, Any], path: Path) -> tuple[_Json, Special]:
    """tokenizer.json's content and what its tokens are for.

    Raises InputError, naming the key, where the metadata describes no vocabulary that can be had exactly.
    """
    keys = _Keys(metadata, path)
    model = keys.one("model", str)
    if model == "gpt2":
        return _byte_level(keys)
    if model == "llama":
        return _sentencepiece(keys)
    raise keys.error(
        "model", f"names the kind {model!r}; known are gpt2 (byte-level BPE) and llama (SentencePiece BPE)"
    )


class _Keys:
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
        items = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
            raise self.error(key, f"should be an array of {kind.__name__}")
        return items

    def _check(self) -> None:
        if not self.tokens:
            raise self.error("tokens", "is empty")
        if len(self.types) != len(self.tokens):
            raise self.error("token_type", f"has {len(self.types):,} entries for {len(self.tokens):,} tokens")
        if unknown := set(self.types) - set(range(1, 7)):
            raise self.error("token_type", f"knows no type {min(unknown)}")
        token, times = Counter(self.tokens).most_common(1)[0]
        if times > 1:
            raise self.error("tokens", f"holds {token!r} {times} times")

    def token_id(self, key: str) -> int | None:
        """The id under `key`, None where it is absent."""
        value = self.maybe(key, int)
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
        found_bos, found_eos = self.token_id("bos_token_id"), self.token_id("eos_token_id")
        return Special(
            bos=bos if found_bos is None else found_bos,
            eos=eos if found_eos is None else found_eos,
            unknown=self.token_id("unknown_token_id"),
            padding=self.token_id("padding_token_id"),
            add_bos=add_bos if explicit is None else explicit,
            stop=frozenset(i for i in named if i is not None),
            chat_template=template,
            max_length=self._context_length(),
        )

    def _context_length(self) -> int | None:
        value = self._metadata.get(f"{self._metadata.get('general.architecture')}.context_length")
        return value if isinstance(value, int) and 0 < value < 1 << 31 else None

    def spec(
        self, model: _Json, merges: list[tuple[str, str]], *, control: set[int], **rules: _Json
    ) -> _Json:
        """tokenizer.json's content: `model` and `rules` say what differs from a bare BPE."""
        bpe = {
            **_BARE_BPE,
            **model,
            "vocab": {token: i for i, token in enumerate(self.tokens)},
            "merges": [list(pair) for pair in merges],
        }
        added = [
            _added(i, token, special=kind in control)
            for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in control or kind == _USER
        ]
        return {**_BARE, "added_tokens": added, **rules, "model": bpe}


def _added(i: int, token: str, *, special: bool) -> _Json:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": token, **flags, "special": special}


def _byte_level(keys: _Keys) -> tuple[_Json, Special]:
    pre = keys.maybe("pre", str) or "default"
    if pre not in PRETOKENIZERS:
        known = ", ".join(PRETOKENIZERS)
        raise keys.error("pre", f"names the pre-tokenizer {pre!r}, which is not known; known are {known}")
    cut = PRETOKENIZERS[pre]
    spec = keys.spec(
        {"ignore_merges": cut.ignore_merges},
        _listed_merges(keys),
        control={_CONTROL},
        pre_tokenizer=cut.spec,
        decoder={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    )
    return spec, keys.special(add_bos=cut.add_bos)


def _listed_merges(keys: _Keys) -> list[tuple[str, str]]:
    known = set(keys.tokens)
    merges = []
    for place, line in enumerate(keys.many("merges", str)):
        left, space, right = line.partition(" ")
        if not space or {left, right, left + right} - known:
            raise keys.error("merges", f"entry {place} ({line[:40]!r}) joins what are no tokens")
        merges.append((left, right))
    return merges


def _sentencepiece(keys: _Keys) -> tuple[_Json, Special]:
    unknown = [i for i, kind in enumerate(keys.types) if kind == _UNKNOWN]
    has_bytes = Counter(keys.types)[_BYTE] == 256
    if len(unknown) != 1 and not has_bytes:
        raise keys.error("token_type", "has neither one unknown token nor 256 byte tokens")
    prefix = keys.maybe("add_space_prefix", bool) is not False
    steps: list[_Json] = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    spec = keys.spec(
        {
            "unk_token": keys.tokens[unknown[0]] if unknown else None,
            "fuse_unk": True,
            "byte_fallback": has_bytes,
        },
        _scored_merges(keys),
        control={_UNKNOWN, _CONTROL},
        normalizer={"type": "Sequence", "normalizers": [*steps, space]},
        decoder={"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
    )
    return spec, keys.special(add_bos=True, bos=1, eos=2)


def _scored_merges(keys: _Keys) -> list[tuple[str, str]]:
    """Every way to split a piece into two pieces, the best score first, of equals the longest left half."""
    scores = keys.many("scores", float)
    if len(scores) != len(keys.tokens):
        raise keys.error("scores", f"has {len(scores):,} entries for {len(keys.tokens):,} tokens")
    if not all(map(isfinite, scores)):
        raise keys.error("scores", "holds what is no finite number")
    pieces = {
        token: score
        for token, kind, score in zip(keys.tokens, keys.types, scores, strict=True)
        if kind == _NORMAL
    }
    if max(map(len, pieces), default=0) > _MAX_PIECE:
        raise keys.error("tokens", f"holds a piece of more than {_MAX_PIECE:,} characters")
    splits = {piece: list(_splits(piece, pieces)) for piece in pieces}
    _refuse_ties(keys, {piece: pieces[piece] for piece, found in splits.items() if found})
    ranked = [(-pieces[piece], -len(left), left, right) for piece in splits for left, right in splits[piece]]
    return [(left, right) for _, _, left, right in sorted(ranked)]


def _splits(piece: str, pieces: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for at in range(1, len(piece)):
        left, right = piece[:at], piece[at:]
        if left in pieces and right in pieces:
            yield left, right


def _refuse_ties(keys: _Keys, scores: Mapping[str, float]) -> None:
    by_score: dict[float, str] = {}
    for piece, score in scores.items():
        other = by_score.setdefault(score, piece)
        if len(set(piece + other)) > 1 and piece != other:
            raise keys.error(
                "scores",
                f"are equal for {other!r} and {piece!r}: which one is joined first would be a guess",
                hint="open the model's tokenizer.json instead",
            )
