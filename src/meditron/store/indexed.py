"""Token files in Megatron's format: `PREFIX.bin` and `PREFIX.idx`.

`PREFIX.bin` contains the tokens of all sequences, concatenated. `PREFIX.idx` is little-endian and contains,
in this order: the magic `MMIDIDX` with two zero bytes, the u64 version (1), the u8 code of the dtype, the u64
number of sequences and the u64 number of boundaries; then i32 lengths [sequences], i64 byte offsets
[sequences] and i64 document boundaries [boundaries], which count sequences from 0. `PREFIX.bin` is written
first, so that an existing `PREFIX.idx` means that the pair is complete.

`PREFIX.hashes` identifies the documents, in the same order: for each document, the first 8 bytes of the
`content_sha256` of its text. It is written before `PREFIX.idx`, and so are other files with a record of fixed
size for each document (`store.document_facts`).
"""

import shutil
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from meditron.core.errors import InputError
from meditron.core.units import format_count
from meditron.store.files import atomic_write, translate_read_errors

__all__ = [
    "IndexedDataset",
    "IndexedWriter",
    "TokenIds",
    "concatenate_side_files",
    "read_hashes",
    "read_side_file",
    "token_dtype",
    "write_hashes",
    "write_side_file",
]

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPE_BY_CODE: dict[int, npt.DTypeLike] = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
# Megatron stores the ids of vocabularies below this size as uint16. The limit is less than 65,536, so that
# tokens can be added later.
_UINT16_BELOW = 65_500
_BLOCK = 1 << 20  # documents of which an index is written at once

_COPY_SIZE = 8 << 20

TokenIds = npt.NDArray[np.integer[Any]]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return Megatron's type for the ids of a vocabulary: uint16 below 65,500 ids, else int32."""
    return np.dtype("<u2" if vocab_size < _UINT16_BELOW else "<i4")


def _with_suffix(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def write_hashes(prefix: Path, hashes: Iterable[str]) -> None:
    """Write `PREFIX.hashes`: `short_hash(content_sha256(text))` of each document, in order."""
    write_side_file(prefix, ".hashes", bytes.fromhex("".join(hashes)))


def read_hashes(prefix: Path) -> list[str]:
    """Return `short_hash(content_sha256(text))` of each document in `PREFIX.bin`, in order.

    Raises:
        SourceError: the file is missing.
        InputError: the number of hashes is not the number of documents.
    """
    data = read_side_file(prefix, ".hashes", 8)
    return [data[at : at + 8].hex() for at in range(0, len(data), 8)]


def write_side_file(prefix: Path, suffix: str, data: bytes) -> None:
    """Write a file beside `PREFIX.bin`, with one record of fixed size for each document."""
    with atomic_write(_with_suffix(prefix, suffix)) as file:
        file.write(data)


def read_side_file(prefix: Path, suffix: str, record_size: int) -> bytes:
    """Read a file beside `PREFIX.bin` with one record of `record_size` bytes for each document.

    Raises:
        SourceError: the file is missing.
        InputError: the number of records is not the number of documents.
    """
    path = _with_suffix(prefix, suffix)
    with translate_read_errors(path):
        data = path.read_bytes()
    documents = len(IndexedDataset(prefix))
    if len(data) != record_size * documents:
        raise InputError(
            path,
            f"{len(data)} bytes, but {format_count(documents, 'documents')} need {record_size * documents}",
        )
    return data


def concatenate_side_files(prefixes: Sequence[Path], suffix: str, out: Path) -> None:
    """Write a side file of the prefix `out` that has the records of several prefixes, in order."""
    with atomic_write(_with_suffix(out, suffix)) as file:
        # One by one, so that memory does not depend on the number of documents.
        for prefix in prefixes:
            path = _with_suffix(prefix, suffix)
            with translate_read_errors(path):
                file.write(path.read_bytes())


def _blocks(length: int) -> Iterator[slice]:
    """Yield slices of at most `_BLOCK` elements that cover `length` elements."""
    for start in range(0, length, _BLOCK):
        yield slice(start, min(start + _BLOCK, length))


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
        # Arrays of C integers: a list of Python's would take ten times the memory.
        self._sizes: list[npt.NDArray[np.int32]] = []
        self._documents = 0
        self._closing = ExitStack()
        self._bin = self._closing.enter_context(atomic_write(_with_suffix(prefix, ".bin")))

    def add_document(self, ids: Sequence[int] | TokenIds) -> None:
        """Append one document; OverflowError if the dtype cannot hold an id, or the format the length."""
        tokens = np.asarray(ids)
        self.add_documents(tokens, np.array([tokens.size]))

    def add_documents(self, ids: TokenIds, sizes: npt.NDArray[np.integer[Any]]) -> None:
        """Append several documents.

        Args:
            ids: The ids of all documents, concatenated.
            sizes: Number of tokens of each document.

        Raises:
            OverflowError: The dtype cannot hold an id, or the format the length of a document.
            ValueError: The sizes do not sum to the number of ids.
        """
        if ids.size != sizes.sum():
            raise ValueError(f"{ids.size} ids, but the sizes sum to {sizes.sum()}")
        if ids.size and not (self._range.min <= ids.min() and ids.max() <= self._range.max):
            first_bad = np.flatnonzero((ids < self._range.min) | (ids > self._range.max))[0]
            number = self._documents + int(np.searchsorted(np.cumsum(sizes), first_bad, side="right"))
            raise OverflowError(f"{self.prefix}: an id of document {number} does not fit into {self._dtype}")
        self._append_sizes(sizes)
        self._bin.write(np.ascontiguousarray(ids, dtype=self._dtype).data)

    def add_dataset(self, dataset: "IndexedDataset") -> None:
        """Append all documents of another pair of files; TypeError if its ids have another dtype."""
        if dataset.tokens.dtype != self._dtype:
            raise TypeError(f"{dataset.prefix}: ids of type {dataset.tokens.dtype}, not {self._dtype}")
        self._append_sizes(dataset.sizes)
        with _with_suffix(dataset.prefix, ".bin").open("rb") as file:
            shutil.copyfileobj(file, self._bin, _COPY_SIZE)

    def _append_sizes(self, sizes: npt.NDArray[np.integer[Any]]) -> None:
        if sizes.size and sizes.max() > np.iinfo(np.int32).max:
            raise OverflowError(f"{self.prefix}: a document has {sizes.max():,} tokens, 2^31 or more")
        self._sizes.append(sizes.astype(np.int32))
        self._documents += len(sizes)

    def close(self) -> None:
        """Rename `.bin`, then write `.idx`."""
        self._closing.close()
        sizes = np.concatenate([np.empty(0, np.int32), *self._sizes])
        with atomic_write(_with_suffix(self.prefix, ".idx")) as file:
            # A sequence is a document here; Megatron allows several sequences per document.
            file.write(_HEADER.pack(_MAGIC, 1, self._code, len(sizes), len(sizes) + 1))
            # In blocks: the columns of a large corpus would take several times the memory of the sizes.
            for block in _blocks(len(sizes)):
                file.write(sizes[block].astype("<i4").tobytes())
            start = 0
            for block in _blocks(len(sizes)):
                ends = start + np.cumsum(sizes[block], dtype="<i8") * self._dtype.itemsize
                file.write(np.concatenate([np.array([start], "<i8"), ends[:-1]]).tobytes())
                start = int(ends[-1])
            for block in _blocks(len(sizes) + 1):
                file.write(np.arange(block.start, block.stop, dtype="<i8").tobytes())

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
