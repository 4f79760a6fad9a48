"""Token files in Megatron's format: `PREFIX.bin` and `PREFIX.idx`.

`PREFIX.bin` contains the tokens of all sequences, concatenated. `PREFIX.idx` is little-endian and contains,
in this order: the magic `MMIDIDX` with two zero bytes, the u64 version (1), the u8 code of the dtype, the u64
number of sequences and the u64 number of boundaries; then i32 lengths [sequences], i64 byte offsets
[sequences] and i64 document boundaries [boundaries], which count sequences from 0. `PREFIX.bin` is written
first, so that an existing `PREFIX.idx` means that the pair is complete.

`PREFIX.hashes` identifies the documents, in the same order: for each document, the first 8 bytes of the
`content_sha256` of its text. The file is written before `PREFIX.idx`.
"""

import struct
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from meditron.core.errors import InputError
from meditron.core.units import format_count
from meditron.store.files import atomic_write, translate_read_errors

__all__ = ["IndexedDataset", "IndexedWriter", "TokenIds", "read_hashes", "token_dtype", "write_hashes"]

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPE_BY_CODE: dict[int, npt.DTypeLike] = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
# Megatron stores the ids of vocabularies below this size as uint16. The limit is less than 65,536, so that
# tokens can be added later.
_UINT16_BELOW = 65_500

TokenIds = npt.NDArray[np.integer[Any]]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return Megatron's type for the ids of a vocabulary: uint16 below 65,500 ids, else int32."""
    return np.dtype("<u2" if vocab_size < _UINT16_BELOW else "<i4")


def _with_suffix(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def write_hashes(prefix: Path, hashes: Sequence[str]) -> None:
    """Write `PREFIX.hashes`: `short_hash(content_sha256(text))` of each document, in order."""
    with atomic_write(_with_suffix(prefix, ".hashes")) as file:
        file.write(bytes.fromhex("".join(hashes)))


def read_hashes(prefix: Path) -> list[str]:
    """Return `short_hash(content_sha256(text))` of each document in `PREFIX.bin`, in order.

    Raises:
        SourceError: the file is missing.
        InputError: the number of hashes is not the number of documents.
    """
    path = _with_suffix(prefix, ".hashes")
    with translate_read_errors(path):
        data = path.read_bytes()
    documents = len(IndexedDataset(prefix))
    if len(data) != 8 * documents:
        raise InputError(
            path, f"{len(data)} bytes, but {format_count(documents, 'documents')} need {8 * documents}"
        )
    return [data[at : at + 8].hex() for at in range(0, len(data), 8)]


class IndexedWriter:
    """Writer of token ids to `PREFIX.bin` and `PREFIX.idx`; both files appear complete on `close`.

    As a context manager the writer closes at the end of the block, and leaves no file if the block raises.
    """

    def __init__(self, prefix: Path, dtype: npt.DTypeLike) -> None:
        self.prefix = prefix
        self._dtype = np.dtype(dtype).newbyteorder("<")
        codes = [code for code, name in _DTYPE_BY_CODE.items() if np.dtype(name) == self._dtype]
        if not codes:
            raise TypeError(f"the format has no token ids of type {self._dtype}")
        self._code = codes[0]
        self._range = np.iinfo(self._dtype)
        self._sizes: list[int] = []
        self._closing = ExitStack()
        self._bin = self._closing.enter_context(atomic_write(_with_suffix(prefix, ".bin")))

    def add_document(self, ids: Sequence[int] | TokenIds) -> None:
        """Append one document; OverflowError for an id that the dtype cannot hold."""
        array = np.asarray(ids)
        if array.size and not (self._range.min <= array.min() and array.max() <= self._range.max):
            raise OverflowError(
                f"{self.prefix}: an id of document {len(self._sizes)} does not fit into {self._dtype}"
            )
        self._bin.write(array.astype(self._dtype, copy=False).tobytes())
        self._sizes.append(array.size)

    def close(self) -> None:
        """Rename `.bin`, then write `.idx`."""
        self._closing.close()
        sizes = np.array(self._sizes, dtype="<i4")
        ends = np.cumsum(sizes, dtype="<i8") * self._dtype.itemsize
        starts = np.concatenate([np.zeros(1, "<i8"), ends])[: len(sizes)]
        # A sequence is a document here; Megatron allows several sequences per document.
        boundaries = np.arange(len(sizes) + 1, dtype="<i8")
        with atomic_write(_with_suffix(self.prefix, ".idx")) as file:
            file.write(_HEADER.pack(_MAGIC, 1, self._code, len(sizes), len(boundaries)))
            for array in (sizes, starts, boundaries):
                file.write(array.tobytes())

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, or remove the temporary file after an error."""
        if kind is None:
            self.close()
        else:
            self._closing.__exit__(kind, error, trace)


class IndexedDataset:
    """Memory-mapped documents of a `.bin`/`.idx` pair: `dataset[i]` is the read-only ids of document i.

    Raises:
        InputError: a count, length or offset contradicts the files' sizes; the error names the byte.
        SourceError: a file of the pair is missing.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        bin_path, self._idx = _with_suffix(prefix, ".bin"), _with_suffix(prefix, ".idx")
        for path in (bin_path, self._idx):
            with translate_read_errors(path), path.open("rb"):
                pass
        dtype, lengths, boundaries = self._read_index(bin_path.stat().st_size)
        self.tokens: TokenIds = (
            np.memmap(bin_path, dtype=dtype, mode="r") if lengths.any() else np.empty(0, dtype=dtype)
        )
        """The ids of all documents, concatenated."""
        ends = np.concatenate([np.zeros(1, "<i8"), np.cumsum(lengths, dtype="<i8")])
        self._starts = ends[boundaries]
        self.sizes: npt.NDArray[np.int64] = np.diff(self._starts)
        """Number of tokens of each document."""

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.sizes)

    def __getitem__(self, index: int) -> TokenIds:
        """Return the ids of one document, as a view of the file."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        index %= len(self)
        return self.tokens[self._starts[index] : self._starts[index + 1]]

    def _read_index(self, bin_bytes: int) -> tuple[np.dtype[Any], TokenIds, TokenIds]:
        data = (
            np.memmap(self._idx, dtype=np.uint8, mode="r") if self._idx.stat().st_size else np.empty(0, "u1")
        )
        if len(data) < _HEADER.size:
            raise self._index_error(f"{len(data)} bytes, but the header has {_HEADER.size}", 0)
        magic, version, code, sequences, documents = _HEADER.unpack(data[: _HEADER.size].tobytes())
        if magic != _MAGIC:
            raise self._index_error(f"begins with {magic!r} instead of {_MAGIC!r}", 0)
        if version != 1:
            raise self._index_error(f"version {version} is not supported (only 1)", 9)
        if code not in _DTYPE_BY_CODE:
            raise self._index_error(f"dtype code {code} is not an integer type", 17)
        if (expected := _HEADER.size + 12 * sequences + 8 * documents) != len(data):
            problem = (
                f"{sequences} sequences and {documents} boundaries need {expected} bytes, not {len(data)}"
            )
            raise self._index_error(problem, 18)
        dtype = np.dtype(_DTYPE_BY_CODE[code])
        at = _HEADER.size
        lengths = np.frombuffer(data, "<i4", sequences, at)
        offsets = np.frombuffer(data, "<i8", sequences, at + 4 * sequences)
        boundaries = np.frombuffer(data, "<i8", documents, at + 12 * sequences)
        self._check_lengths(lengths, offsets, dtype.itemsize, bin_bytes)
        self._check_boundaries(boundaries, sequences)
        return dtype, lengths, boundaries

    def _check_lengths(self, lengths: TokenIds, offsets: TokenIds, width: int, bin_bytes: int) -> None:
        if (bad := np.flatnonzero(lengths < 0)).size:
            at = _HEADER.size + 4 * int(bad[0])
            raise self._index_error(f"sequence {bad[0]} has length {lengths[bad[0]]}", at)
        # Computed in 64 bits, because the byte offsets in large files exceed 32 bits.
        ends = np.cumsum(lengths, dtype=np.int64) * width
        starts = ends - lengths.astype(np.int64) * width
        if (bad := np.flatnonzero(offsets != starts)).size:
            at = _HEADER.size + 4 * len(lengths) + 8 * int(bad[0])
            raise self._index_error(
                f"sequence {bad[0]} is at byte {offsets[bad[0]]}, not {starts[bad[0]]}", at
            )
        total = int(ends[-1]) if len(ends) else 0
        if total != bin_bytes:
            raise self._index_error(
                f"declares {total} bytes of tokens, but the .bin has {bin_bytes}", _HEADER.size
            )

    def _check_boundaries(self, boundaries: TokenIds, sequences: int) -> None:
        at = _HEADER.size + 12 * sequences
        if not len(boundaries) or boundaries[0] != 0 or boundaries[-1] != sequences:
            raise self._index_error(f"document boundaries do not run from 0 to {sequences}", at)
        if (bad := np.flatnonzero(np.diff(boundaries) < 0)).size:
            raise self._index_error(f"document {bad[0]} ends before it begins", at + 8 * int(bad[0]))

    def _index_error(self, problem: str, offset: int) -> InputError:
        return InputError(self._idx, problem, place=f"byte {offset}")
