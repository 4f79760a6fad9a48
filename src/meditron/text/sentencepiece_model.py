"""Read SentencePiece's `tokenizer.model` as GGUF metadata, which `gguf_vocab` converts to a tokenizer.json.

The file is one protobuf message (`sentencepiece_model.proto`). This module parses the fields itself, because
the protobuf library is large and every length in an untrusted file may be wrong. Rules that GGUF cannot
express (a unigram model, normalization of characters, removal of spaces) are refused with an error that names
the rule.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meditron.core.errors import InputError
from meditron.store.files import translate_read_errors

__all__ = ["read_metadata"]

_MAX_BYTES = 1 << 26  # Llama-2's file has 0.5 MB, the largest published about 5 MB
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BPE = 2
_USER_DEFINED = 4
_KINDS = {1: "unigram", 3: "word", 4: "char"}

_Field = tuple[int, int | bytes]


class _ProtobufMessage:
    """The fields of one protobuf message, as pairs (field number, value) in the order of the file."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path = path
        self.fields = list(self._read_fields(data))

    def last_value(self, number: int, default: Any) -> Any:  # noqa: ANN401
        """Return the last value of a field, or `default`; raise InputError if the value has another type."""
        value = next((value for key, value in reversed(self.fields) if key == number), default)
        if isinstance(value, bytes) is not isinstance(default, bytes):
            raise self.damaged_error()
        return value

    def damaged_error(self) -> InputError:
        return InputError(self._path, "not a SentencePiece model: a field is damaged")

    def _read_fields(self, data: bytes) -> Iterator[_Field]:
        at = 0
        while at < len(data):
            key, at = self._read_varint(data, at)
            kind = key & 7
            if kind == _VARINT:
                value, at = self._read_varint(data, at)
                yield key >> 3, value
                continue
            if kind == _BYTES:
                length, at = self._read_varint(data, at)
            elif kind in (_FIXED64, _FIXED32):
                length = 8 if kind == _FIXED64 else 4
            else:
                raise self.damaged_error()
            if length > len(data) - at:
                raise self.damaged_error()
            yield key >> 3, data[at : at + length]
            at += length

    def _read_varint(self, data: bytes, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):  # a 64-bit number has at most ten bytes of seven bits
            if at >= len(data):
                break
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
        raise self.damaged_error()


def read_metadata(path: Path) -> dict[str, Any]:
    """Read a tokenizer.model as `tokenizer.ggml.*` keys.

    Raises:
        InputError: The file is damaged, or has rules that these keys cannot express.
    """
    with translate_read_errors(path):
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise InputError(path, f"the file has {size:,} bytes, more than {_MAX_BYTES:,}")
        model = _ProtobufMessage(path, path.read_bytes())
    trainer, normalizer = (_ProtobufMessage(path, model.last_value(number, b"")) for number in (2, 3))
    tokens, scores, types = _read_pieces(path, model)
    _refuse_unsupported_rules(path, trainer, normalizer, types)
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": bool(normalizer.last_value(3, 1)),
        "tokenizer.ggml.add_bos_token": False,  # sentencepiece adds none by default
    }
    for key, number, default in (("unknown", 40, 0), ("bos", 41, 1), ("eos", 42, 2), ("padding", 43, -1)):
        if 0 <= (i := trainer.last_value(number, default)) < len(tokens):  # -1, or its 64 bits, is "none"
            metadata[f"tokenizer.ggml.{key}_token_id"] = i
    return metadata


def _read_pieces(path: Path, model: _ProtobufMessage) -> tuple[list[str], list[float], list[int]]:
    tokens, scores, types = [], [], []
    for number, data in model.fields:
        if number != 1:
            continue
        if not isinstance(data, bytes):
            raise model.damaged_error()
        piece = _ProtobufMessage(path, data)
        score = piece.last_value(2, b"\0\0\0\0")
        if len(score) != 4:
            raise model.damaged_error()
        try:
            tokens.append(piece.last_value(1, b"").decode())
        except UnicodeDecodeError as error:
            raise InputError(path, "not UTF-8", place=f"piece {len(tokens)}") from error
        scores.append(struct.unpack("<f", score)[0])
        types.append(piece.last_value(3, 1))
    if not tokens:
        raise InputError(path, "not a SentencePiece model: it has no pieces")
    return tokens, scores, types


def _refuse_unsupported_rules(
    path: Path, trainer: _ProtobufMessage, normalizer: _ProtobufMessage, types: list[int]
) -> None:
    kind = trainer.last_value(3, 1)
    rules = {
        f"is a {_KINDS.get(kind, kind)} model; only BPE is supported": kind != _BPE,
        "normalizes characters (precompiled_charsmap)": bool(normalizer.last_value(2, b"")),
        "removes extra whitespace (remove_extra_whitespaces)": bool(normalizer.last_value(4, 1)),
        "keeps spaces as they are (escape_whitespaces is false)": not normalizer.last_value(5, 1),
        "appends a space to words (treat_whitespace_as_suffix)": bool(trainer.last_value(24, 0)),
        "has user-defined symbols": _USER_DEFINED in types,
    }
    for problem, applies in rules.items():
        if applies:
            raise InputError(path, problem)
