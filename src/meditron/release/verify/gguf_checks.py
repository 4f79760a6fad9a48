"""Checks of a GGUF model beyond its format: values, vocabulary, blocks, and the bytes after the tensors."""

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from meditron.core.console import Bar
from meditron.store.gguf import GGUF, TensorInfo
from meditron.store.gguf_blocks import BLOCK_FIELDS
from meditron.store.gguf_header import GGUFHeader
from meditron.store.gguf_types import tensor_type

__all__ = ["gguf_problems"]

_CHUNK_BYTES = 8 << 20
_MAX_F16 = 65_504.0
"""Largest value of F16. Trained weights are far below it, so a block that exceeds it is damaged."""
_BLOCK = re.compile(r"blk\.(\d{1,6})\.")
_TOKENS = "tokenizer.ggml.tokens"


def gguf_problems(gguf: GGUF, headers: tuple[GGUFHeader, ...], bar: Bar) -> Iterator[str]:
    """Yield the problems of a GGUF model that opens, each with the file's name and the place.

    Args:
        gguf: The model.
        headers: The headers of its files.
        bar: Progress bar of the bytes read.
    """
    for path, header in zip(gguf.files, headers, strict=True):
        for place, problem in _layout_problems(header, path.stat().st_size):
            yield f"{path} ({place}): {problem}"
    for place, problem in (*_vocabulary_problems(gguf), *_block_problems(gguf)):
        yield f"{gguf.files[0]} ({place}): {problem}"
    for name, info in gguf.tensors.items():
        if (value := _value_problem(gguf, info)) is not None:
            yield f"{gguf.files[info.part]} ({name}): {value}"
        gguf.release_pages(name)
        bar.advance(info.nbytes)


def _layout_problems(header: GGUFHeader, size: int) -> Iterator[tuple[str, str]]:
    """Yield gaps between tensors and bytes after the last, in which a file can hide content."""
    start = header.data_start
    spans = sorted((info.offset, info.offset + info.nbytes) for info in header.tensors.values())
    for (_, end), (begin, _) in pairwise([(start, start), *spans]):
        if begin - end >= header.alignment:
            yield f"byte {end}", f"{begin - end:,} bytes before byte {begin:,} belong to no tensor"
    end = spans[-1][1] if spans else start
    if size - end >= header.alignment:
        yield f"byte {end}", f"{size - end:,} bytes after the last tensor"


def _vocabulary_problems(gguf: GGUF) -> Iterator[tuple[str, str]]:
    """Yield contradictions between the number of tokens and everything that has one entry per token."""
    tokens = gguf.metadata.get(_TOKENS)
    if tokens is None:
        return
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        yield _TOKENS, "must be a list of texts"
        return
    count = len(tokens)
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        values = gguf.metadata.get(key)
        if values is not None and (not isinstance(values, list) or len(values) != count):
            length = len(values) if isinstance(values, list) else 1
            yield key, f"has {length:,} values for {count:,} tokens"
    for key, value in gguf.metadata.items():
        is_id = key.startswith("tokenizer.ggml.") and key.endswith("_token_id")
        if is_id and not (type(value) is int and 0 <= value < count):
            yield key, f"{value!r:.60} is not the id of one of {count:,} tokens"
    size = gguf.metadata.get(f"{gguf.metadata.get('general.architecture')}.vocab_size", count)
    if size != count:
        yield _TOKENS, f"has {count:,} tokens, the model's vocab_size is {size!r:.60}"
    for name in ("token_embd.weight", "output.weight"):
        info = gguf.tensors.get(name)
        if info is not None and info.shape[0] != count:
            yield name, f"has {info.shape[0]:,} rows for {count:,} tokens"
    merges = gguf.metadata.get("tokenizer.ggml.merges")
    if isinstance(merges, list):
        bad = next((i for i, merge in enumerate(merges) if str(merge).count(" ") != 1), None)
        if bad is not None:
            yield f"tokenizer.ggml.merges[{bad}]", f"{merges[bad]!r:.60} is not a pair of tokens"


def _block_problems(gguf: GGUF) -> Iterator[tuple[str, str]]:
    """Yield blocks of the model of which no tensor is stored."""
    architecture = gguf.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        yield "general.architecture", "the key is missing" if architecture is None else "must be a text"
        return
    count = gguf.metadata.get(f"{architecture}.block_count")
    stored = {int(match[1]) for name in gguf.tensors if (match := _BLOCK.match(name))}
    if type(count) is int and stored:
        if (last := max(stored)) >= count:
            yield f"blk.{last}", f"the model has {count:,} blocks only"
        # The tensors are read already, so a set of as many numbers as blocks is small.
        missing = sorted(set(range(min(count, last + 1))) - stored)
        if missing or last + 1 < count:
            block = missing[0] if missing else last + 1
            yield f"blk.{block}", f"no tensor of this block is stored; the model has {count:,} blocks"


def _value_problem(gguf: GGUF, info: TensorInfo) -> str | None:
    """Return a description of the first scale or number that is not finite or too large."""
    fields = BLOCK_FIELDS.get(info.type, ())
    if not fields:
        return None
    size = tensor_type(info.type).block_bytes
    blocks = gguf.raw_tensor(info.name).reshape(-1, size)
    step = max(1, _CHUNK_BYTES // size)
    for first in range(0, len(blocks), step):
        chunk = blocks[first : first + step]
        for field in fields:
            raw = np.ascontiguousarray(chunk[:, field.offset : field.offset + np.dtype(field.dtype).itemsize])
            values = _bfloat16(raw) if info.type == "BF16" else raw.view(field.dtype).ravel()
            if info.type != "BF16" and not field.reach:
                continue
            finite = np.isfinite(values)
            # Numbers that are not in blocks may have any size: F32 tensors need not be weights.
            limit = _MAX_F16 / field.reach if field.reach > 1 else np.inf
            good = finite & (np.abs(values.astype(np.float32)) <= limit)
            if not good.all():
                index = int(np.flatnonzero(~good)[0])
                label = "block" if size > values.dtype.itemsize else "value"
                if finite[index]:
                    reached = abs(float(values[index])) * field.reach
                    return f"{label} {first + index}: the scale gives values up to {reached:.3g}, beyond F16"
                return f"{label} {first + index}: {values[index]} is not finite"
    return None


def _bfloat16(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the values of bfloat16 numbers, which are the upper halves of float32 numbers."""
    return (raw.view("<u2").astype(np.uint32).ravel() << 16).view(np.float32)
