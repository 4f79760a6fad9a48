"""Importance matrices in llama.cpp's file formats.

An importance matrix has for each column of a matrix the mean of the squared inputs that the matrix multiplied
while the model read a text. Quantizers weigh the errors of the columns with it.

llama.cpp writes GGUF files (`tools/imatrix/imatrix.cpp`): `general.type` = `imatrix`, and for each matrix the
tensors `NAME.in_sum2`, the sums of squares, and `NAME.counts`, the number of inputs. Until July 2025 it wrote
a binary format, which is read only: i32 number of entries; of each entry i32 length and bytes of its name,
i32 number of calls, i32 number of values, and the float32 values, which are mean squares times calls; then
i32 number of chunks, i32 length and bytes of the text's name. The last two are missing in the oldest files.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.core.errors import InputError
from meditron.store.files import translate_read_errors
from meditron.store.gguf import GGUF, write_gguf

__all__ = ["TEXT_SHA256_KEY", "ImportanceMatrix", "read_imatrix", "write_imatrix"]

TEXT_SHA256_KEY = "meditron.imatrix.text_sha256"
"""Metadata key of the SHA-256 of the calibration text."""
_MODEL_DIGEST_KEY = "meditron.imatrix.model_digest"
_DATASETS, _CHUNKS, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_ENTRIES, _MAX_NAME = 1 << 16, 4096
_LARGEST_EXPONENT = 32  # of two, of an importance


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """The importance of the columns of a model's matrices."""

    sums: Mapping[str, npt.NDArray[np.float32]]
    """GGUF name of a matrix → sums of its squared inputs, one for each column."""
    counts: Mapping[str, float]
    """GGUF name → number of inputs in the sums."""
    datasets: tuple[str, ...] = ()
    """Names of the calibration texts."""
    chunks: int = 0
    """Number of chunks of text; 0 if the file does not have it."""
    chunk_size: int = 0
    """Tokens of a chunk; 0 if the file does not have it."""
    text_sha256: str | None = None
    """SHA-256 of the calibration text, if the file was written by this package."""
    model_digest: str | None = None
    """`store.models.model_digest` of the model, if the file was written by this package."""

    def importance(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the mean squared inputs as llama.cpp's quantizer uses them, by GGUF name.

        A matrix without inputs, such as a part of the model that the text did not reach, has ones. A column
        whose inputs were all zero has the smallest importance of the others: quantizers would set the weights
        of a block without importance to zero, whatever another text may need. If the largest importance is
        beyond 2^±32, all are scaled by a power of two: the quantizers' sums in float32 would overflow, or
        vanish beside constants of theirs.
        """
        return {name: _importance(sums, self.counts[name]) for name, sums in self.sums.items()}


def _importance(sums: npt.NDArray[np.float32], count: float) -> npt.NDArray[np.float32]:
    """Return the importance of a matrix's columns."""
    used, inputs = sums[sums > 0], np.float64(np.float32(count))
    if inputs <= 0 or not used.size:
        return np.ones_like(sums)
    # The division is exact enough in float64 to round to float32 as llama.cpp's does.
    importance = np.where(sums > 0, sums, used.min()).astype(np.float64) / inputs
    exponent = int(np.frexp(importance.max())[1])
    if abs(exponent) > _LARGEST_EXPONENT:
        importance = np.maximum(np.ldexp(importance, -exponent), np.finfo(np.float32).tiny)
    return importance.astype(np.float32)


def write_imatrix(path: Path, matrix: ImportanceMatrix, extra: Mapping[str, Any] | None = None) -> None:
    """Write an importance matrix as llama.cpp writes it, atomically.

    Args:
        path: The file.
        matrix: The matrix.
        extra: Further metadata.
    """
    metadata: dict[str, Any] = {
        "general.type": "imatrix",
        _DATASETS: list(matrix.datasets),
        _CHUNKS: matrix.chunks,
        _CHUNK_SIZE: matrix.chunk_size,
        **({} if matrix.text_sha256 is None else {TEXT_SHA256_KEY: matrix.text_sha256}),
        **({} if matrix.model_digest is None else {_MODEL_DIGEST_KEY: matrix.model_digest}),
        **(extra or {}),
    }
    tensors = []
    for name in sorted(matrix.sums):
        count = np.array([[matrix.counts[name]]], dtype=np.float32)
        tensors += [(name + _SUMS, matrix.sums[name].reshape(1, -1)), (name + _COUNTS, count)]
    write_gguf(path, metadata, tensors)


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read an importance matrix in either format.

    Raises:
        InputError: the file is in neither format, or its values are not finite squares.
    """
    with translate_read_errors(path), path.open("rb") as file:
        magic = file.read(4)
    matrix = _read_gguf(path) if magic == b"GGUF" else _read_binary(path)
    if not matrix.sums:
        raise InputError(path, "the importance matrix has no entries")
    for name, sums in matrix.sums.items():
        # The quantizers would turn one such value into a block of garbage.
        if not (np.isfinite(sums).all() and (sums >= 0).all()):
            raise InputError(path, "sums of squares must be finite and not negative", place=name)
        if not (np.isfinite(matrix.counts[name]) and matrix.counts[name] >= 0):
            raise InputError(path, f"the count must not be negative, got {matrix.counts[name]}", place=name)
    return matrix


def _read_gguf(path: Path) -> ImportanceMatrix:
    with GGUF(path) as gguf:
        kind = gguf.metadata.get("general.type")
        if kind != "imatrix":
            hint = "compute one: meditron imatrix MODEL TEXT OUT"
            raise InputError(path, f"is not an importance matrix, but {kind or 'a model'}", hint=hint)
        sums: dict[str, npt.NDArray[np.float32]] = {}
        counts: dict[str, float] = {}
        for name, info in gguf.tensors.items():
            if info.type != "F32":
                raise InputError(path, f"must be F32, got {info.type}", place=name)
            matrix, values = name.rpartition(".")[0], gguf.dequantize(name).reshape(-1)
            if name.endswith(_SUMS):
                sums[matrix] = values
            elif name.endswith(_COUNTS):
                if values.size != 1:
                    raise InputError(path, "matrices of experts are not supported", place=name)
                counts[matrix] = float(values[0])
        for name in sums.keys() ^ counts.keys():
            missing = _COUNTS if name in sums else _SUMS
            raise InputError(path, f"{name}{missing} is missing", place=name)
        datasets = gguf.metadata.get(_DATASETS, [])
        chunks, chunk_size = (gguf.metadata.get(key, 0) for key in (_CHUNKS, _CHUNK_SIZE))
        if not (isinstance(chunks, int) and isinstance(chunk_size, int) and isinstance(datasets, list)):
            raise InputError(path, "the metadata of the importance matrix has other types", place="imatrix.*")
        text, model = (
            str(digest) if (digest := gguf.metadata.get(key)) else None
            for key in (TEXT_SHA256_KEY, _MODEL_DIGEST_KEY)
        )
    return ImportanceMatrix(sums, counts, tuple(map(str, datasets)), chunks, chunk_size, text, model)


class _Reader:
    """Reader of the older format; every length is checked against the file's size."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, count: int, label: str) -> bytes:
        left = len(self.data) - self.at
        if not 0 <= count <= left:
            problem = f"{label} needs {count:,} bytes, but {left:,} are left"
            raise InputError(self.path, problem, place=f"byte {self.at}")
        self.at += count
        return self.data[self.at - count : self.at]

    def integer(self, label: str, least: int, most: int) -> int:
        start = self.at
        (value,) = struct.unpack("<i", self.take(4, label))
        if not least <= value <= most:
            problem = f"{label} must be from {least:,} to {most:,}, got {value:,}; not an importance matrix?"
            raise InputError(self.path, problem, place=f"byte {start}")
        return int(value)

    def text(self, label: str) -> str:
        length = self.integer(f"the length of {label}", 0, _MAX_NAME)
        try:
            return self.take(length, label).decode()
        except UnicodeDecodeError as error:
            raise InputError(self.path, f"{label} is not UTF-8", place=f"byte {self.at}") from error

    def ended(self) -> bool:
        return self.at == len(self.data)


def _read_binary(path: Path) -> ImportanceMatrix:
    with translate_read_errors(path):
        reader = _Reader(path, path.read_bytes())
    sums: dict[str, npt.NDArray[np.float32]] = {}
    counts: dict[str, float] = {}
    for _ in range(reader.integer("the number of entries", 1, _MAX_ENTRIES)):
        name = reader.text("a name")
        if not name or name in sums:
            raise InputError(path, f"the name {name!r} is empty or occurs twice", place=f"byte {reader.at}")
        calls = reader.integer(f"the calls of {name}", 0, (1 << 31) - 1)
        length = reader.integer(f"the values of {name}", 1, (1 << 31) - 1)
        values = np.frombuffer(reader.take(4 * length, f"the values of {name}"), "<f4").astype(np.float32)
        # Without calls the values are used as they are.
        sums[name], counts[name] = values, float(calls or 1)
    if reader.ended():
        return ImportanceMatrix(sums, counts)
    chunks = reader.integer("the number of chunks", 0, (1 << 31) - 1)
    datasets = () if reader.ended() else (reader.text("the text's name"),)
    if not reader.ended():
        raise InputError(path, "has bytes after its end", place=f"byte {reader.at}")
    return ImportanceMatrix(sums, counts, datasets, chunks)
