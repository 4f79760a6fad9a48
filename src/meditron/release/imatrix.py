"""Computation of an importance matrix: the squared inputs of a model's matrices over a calibration text.

As llama.cpp's `llama-imatrix`: the text is tokenized as a whole and divided into chunks of equal length, each
of which begins with the tokenizer's start token if it has one; a remainder is dropped; the model reads each
chunk on its own; every token counts. The embedding and the head have no entries.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from meditron.core.console import info, progress
from meditron.core.errors import EngineError, InputError, UsageError
from meditron.model.gguf_layout import gguf_tensor_name
from meditron.model.llama import Llama
from meditron.model.presets import model_tokenizer
from meditron.model.weights import load_model
from meditron.parallel.world import current_world, pick_device
from meditron.release.imatrix_file import ImportanceMatrix, write_imatrix
from meditron.store.files import atomic_write, translate_read_errors
from meditron.store.models import ModelFiles, model_digest, resolve_model
from meditron.text.tokenizer import Tokenizer

__all__ = ["CHUNK_SIZE", "Calibration", "compute_imatrix", "read_calibration"]

CHUNK_SIZE = 512
"""Tokens of a chunk, if no other number is given."""
_SAVE_SECONDS = 30.0
_MIN_CHUNK = 16
"""Shortest chunk, in tokens: llama.cpp ignores shorter inputs."""
_MAX_TEXT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Calibration:
    """A calibration text, divided into chunks."""

    path: Path
    sha256: str
    """SHA-256 of the file."""
    chunks: list[list[int]]
    """Token ids of each chunk."""
    chunk_size: int
    """Tokens of a chunk."""


def compute_imatrix(
    spec: str,
    text: Path,
    out: Path,
    *,
    chunk_size: int = CHUNK_SIZE,
    max_chunks: int | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Compute the importance matrix of a model and write it in llama.cpp's GGUF form.

    A stopped computation is continued by the next call with the same arguments, from `OUT.partial`; the
    result is the same as without the stop.

    Args:
        spec: The MODEL.
        text: The calibration text, UTF-8.
        out: The file to write.
        chunk_size: Tokens of a chunk.
        max_chunks: Number of chunks that are read; None for all.
        force: Replace an existing file.

    Returns:
        `path`, `chunks`, `chunk_size`, `tokens`, `entries` (matrices), `text_sha256`, `seconds`.

    Raises:
        UsageError: `out` exists, or a number is out of range.
        InputError: the text is too short or not UTF-8, or the model's files are damaged.
        EngineError: an activation is not finite.
    """
    if chunk_size < _MIN_CHUNK or (max_chunks is not None and max_chunks < 1):
        raise UsageError(f"chunks need at least {_MIN_CHUNK} tokens, and at least one chunk is needed")
    _require_writable_output(out, force=force)
    started = time.monotonic()
    files, partial_sums = resolve_model(spec), out.with_name(out.name + ".partial")
    calibration = read_calibration(text, model_tokenizer(files), chunk_size, max_chunks)
    sums = _sum_over_chunks(files, calibration, partial_sums)
    tokens = len(calibration.chunks) * chunk_size
    matrix = ImportanceMatrix(
        {name: values.astype(np.float32) for name, values in sums.items()},
        dict.fromkeys(sums, float(tokens)),
        (text.name,),
        len(calibration.chunks),
        chunk_size,
        calibration.sha256,
        model_digest(files),
    )
    write_imatrix(out, matrix)
    partial_sums.unlink(missing_ok=True)
    return {
        "path": str(out),
        "chunks": matrix.chunks,
        "chunk_size": chunk_size,
        "tokens": tokens,
        "entries": len(sums),
        "text_sha256": calibration.sha256,
        "seconds": round(time.monotonic() - started, 3),
    }


def _require_writable_output(out: Path, *, force: bool) -> None:
    """Raise UsageError if `out` exists and `force` is false, or its folder does not exist."""
    if out.exists() and not force:
        raise UsageError(f"{out} already exists", hint="replace it with --force, or choose another output")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: folder {out.parent} does not exist", hint=f"mkdir -p {out.parent}")


def read_calibration(
    path: Path, tokenizer: Tokenizer, chunk_size: int, max_chunks: int | None
) -> Calibration:
    """Read a calibration text.

    Args:
        path: The file, UTF-8.
        tokenizer: The model's tokenizer.
        chunk_size: Tokens of a chunk.
        max_chunks: Number of chunks; None for all.

    Raises:
        InputError: the text is not UTF-8, too large, or shorter than a chunk.
    """
    with translate_read_errors(path):
        size = path.stat().st_size
        if size > _MAX_TEXT_BYTES:
            raise InputError(path, f"has {size:,} bytes, the limit is {_MAX_TEXT_BYTES:,}")
        data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(path, "is not UTF-8", place=f"byte {error.start}") from error
    ids = tokenizer.encode(text)
    start = tokenizer.special.bos if tokenizer.adds_bos else None
    count = len(ids) // chunk_size if max_chunks is None else min(len(ids) // chunk_size, max_chunks)
    if count < 1:
        raise InputError(path, f"has {len(ids):,} tokens; a chunk has {chunk_size}", hint="use a longer text")
    chunks = [ids[place * chunk_size : (place + 1) * chunk_size] for place in range(count)]
    if start is not None:
        chunks = [[start, *chunk[1:]] for chunk in chunks]
    return Calibration(path, hashlib.sha256(data).hexdigest(), chunks, chunk_size)


def _sum_over_chunks(
    files: ModelFiles, calibration: Calibration, partial_path: Path
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the sums of squared inputs by GGUF name; partial sums of an earlier call are continued."""
    key = json.dumps([model_digest(files), calibration.sha256, calibration.chunk_size])
    done, sums = _read_partial(partial_path, key)
    if done > len(calibration.chunks):  # of a call with more chunks
        done, sums = 0, {}
    if done:
        info(f"continuing after chunk {done} of {len(calibration.chunks)}")
    device = pick_device(current_world())
    model = load_model(files, device=device).eval()
    saved = time.monotonic()
    with progress("imatrix", len(calibration.chunks), "chunks", start=done) as bar:
        for place, chunk in enumerate(calibration.chunks[done:], start=done + 1):
            with torch.inference_mode(), _collected(model) as collected:
                model(torch.tensor([chunk], device=device))
            for name, values in collected.items():
                if not np.isfinite(values).all():
                    problem = f"inputs of {name} are not finite in chunk {place} of {calibration.path}"
                    raise EngineError(problem, hint="the weights may be damaged")
                sums[name] = sums[name] + values if name in sums else values
            bar.advance()
            if time.monotonic() - saved > _SAVE_SECONDS:
                _write_partial(partial_path, key, place, sums)
                saved = time.monotonic()
    return sums


@contextmanager
def _collected(model: Llama) -> Iterator[dict[str, npt.NDArray[np.float64]]]:
    """Sum the squares of the inputs of each matrix of the blocks, by GGUF name, while the block runs."""
    squares: dict[str, npt.NDArray[np.float64]] = {}

    def collect(name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        squares[name] = inputs[0].double().square().flatten(0, -2).sum(0).cpu().numpy()

    hooks = [
        module.register_forward_pre_hook(partial(collect, gguf_tensor_name(f"{name}.weight")))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("model.layers.")
    ]
    try:
        yield squares
    finally:
        for hook in hooks:
            hook.remove()


def _write_partial(path: Path, key: str, chunks: int, sums: Mapping[str, npt.NDArray[np.float64]]) -> None:
    with atomic_write(path) as file:
        arrays: dict[str, Any] = {"key": np.array(key), "chunks": np.array(chunks), **sums}
        np.savez(file, **arrays)


def _read_partial(path: Path, key: str) -> tuple[int, dict[str, npt.NDArray[np.float64]]]:
    """Return the number of finished chunks and their sums; nothing for a file of another computation."""
    if not path.is_file():
        return 0, {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return 0, {}
            chunks = int(stored["chunks"])
            return chunks, {name: stored[name] for name in stored.files if name not in ("key", "chunks")}
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise InputError(path, f"cannot be read: {error}", hint="remove it to start again") from error
