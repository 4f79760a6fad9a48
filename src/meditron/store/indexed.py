"""Token files in Megatron's format: `PREFIX.bin` and `PREFIX.idx`.

`.bin` is the tokens of all sequences, one after the other. `.idx`, little-endian: the magic `MMIDIDX` and
two zero bytes, u64 version (1), u8 dtype code, u64 sequences, u64 boundaries; then i32 lengths [sequences],
i64 byte offsets [sequences] and i64 document boundaries [boundaries], which count sequences from 0.
`.bin` is written first: an `.idx` is the mark of a complete pair.

Beside them `PREFIX.hashes` names the documents: 8 bytes each, in the documents' order, the first 8 bytes of
`content_sha256` of the document's text. It is written before the `.idx`.
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
from meditron.store.files import atomic, translate_read_errors

__all__ = ["Ids", "IndexedDataset", "IndexedWriter", "document_hashes", "token_dtype", "write_hashes"]

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_CODES: dict[int, npt.DTypeLike] = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
# Megatron's own limit: it leaves room for tokens that are added later.
_UINT16_BELOW = 65_500

Ids = npt.NDArray[np.integer[Any]]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type Megatron stores a vocabulary's ids in: uint16 below 65,500 ids, else int32."""
    return np.dtype("<u2" if vocab_size < _UINT16_BELOW else "<i4")


def _beside(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def write_hashes(prefix: Path, hashes: Sequence[str]) -> None:
    """Write `PREFIX.hashes` from the documents' `short(content_sha256(text))`, in order."""
    with atomic(_beside(prefix, ".hashes")) as file:
        file.write(bytes.fromhex("".join(hashes)))


def document_hashes(prefix: Path) -> list[str]:
    """Return `short(content_sha256(text))` of each document in `PREFIX.bin`, in order.

    Raises:
        SourceError: the file is missing.
        InputError: its length is not that of one hash per document.
    """
    path = _beside(prefix, ".hashes")
    with translate_read_errors(path):
        data = path.read_bytes()
    documents = len(IndexedDataset(prefix))
    if len(data) != 8 * documents:
        raise InputError(path, f"{len(data)} bytes; {documents} documents have {8 * documents}")
    return [data[at : at + 8].hex() for at in range(0, len(data), 8)]


class IndexedWriter:
    """Writes documents of token ids to `PREFIX.bin` and `PREFIX.idx`; both appear whole on `close`.

    As a context manager it closes at the end of the block and leaves nothing after an error.
    """

    def __init__(self, prefix: Path, dtype: npt.DTypeLike) -> None:
        self.prefix = prefix
        self._dtype = np.dtype(dtype).newbyteorder("<")
        known = [code for code, name in _CODES.items() if np.dtype(name) == self._dtype]
        if not known:
            raise TypeError(f"token ids are not stored as {self._dtype}")
        self._code = known[0]
        self._range = np.iinfo(self._dtype)
        self._sizes: list[int] = []
        self._closing = ExitStack()
        self._bin = self._closing.enter_context(atomic(_beside(prefix, ".bin")))

    def add(self, ids: Sequence[int] | Ids) -> None:
        """Append one document; OverflowError for an id that the dtype cannot hold."""
        array = np.asarray(ids)
        if array.size and not (self._range.min <= array.min() and array.max() <= self._range.max):
            raise OverflowError(f"{self.prefix}: an id of document {len(self._sizes)} is no {self._dtype}")
        self._bin.write(array.astype(self._dtype, copy=False).tobytes())
        self._sizes.append(array.size)

    def close(self) -> None:
        """Rename `.bin`, then write `.idx`."""
        self._closing.close()
        sizes = np.array(self._sizes, dtype="<i4")
        ends = np.cumsum(sizes, dtype="<i8") * self._dtype.itemsize
        starts = np.concatenate([np.zeros(1, "<i8"), ends])[: len(sizes)]
        boundaries = np.arange(len(sizes) + 1, dtype="<i8")
        with atomic(_beside(self.prefix, ".idx")) as file:
            file.write(_HEADER.pack(_MAGIC, 1, self._code, len(sizes), len(boundaries)))
            for array in (sizes, starts, boundaries):
                file.write(array.tobytes())

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, or after an error leave nothing."""
        if kind is None:
            self.close()
        else:
            self._closing.__exit__(kind, error, trace)


class IndexedDataset:
    """Memory-mapped documents of a `.bin`/`.idx` pair: `len`, `[i]` → ids of document i (read-only).

    Every count, length and offset is checked against the files' sizes before use: InputError, with the
    place, for an `.idx` that lies; SourceError where one of the pair is missing.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        bin_path, self._idx = _beside(prefix, ".bin"), _beside(prefix, ".idx")
        for path in (bin_path, self._idx):
            with translate_read_errors(path), path.open("rb"):
                pass
        dtype, lengths, boundaries = self._read_index(bin_path.stat().st_size)
        self.tokens: Ids = (
            np.memmap(bin_path, dtype=dtype, mode="r") if lengths.any() else np.empty(0, dtype=dtype)
        )
        """All ids, document after document, one flat array."""
        ends = np.concatenate([np.zeros(1, "<i8"), np.cumsum(lengths, dtype="<i8")])
        self._starts = ends[boundaries]
        self.sizes: npt.NDArray[np.int64] = np.diff(self._starts)
        """Tokens of each document."""

    def __len__(self) -> int:
        """Documents."""
        return len(self.sizes)

    def __getitem__(self, index: int) -> Ids:
        """The ids of one document, a view of the file."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        index %= len(self)
        return self.tokens[self._starts[index] : self._starts[index + 1]]

    def _read_index(self, bin_bytes: int) -> tuple[np.dtype[Any], Ids, Ids]:
        data = (
            np.memmap(self._idx, dtype=np.uint8, mode="r") if self._idx.stat().st_size else np.empty(0, "u1")
        )
        if len(data) < _HEADER.size:
            raise self._lie(f"{len(data)} bytes, the header alone has {_HEADER.size}", 0)
        magic, version, code, sequences, documents = _HEADER.unpack(data[: _HEADER.size].tobytes())
        if magic != _MAGIC:
            raise self._lie(f"starts with {magic!r}, not {_MAGIC!r}", 0)
        if version != 1:
            raise self._lie(f"version {version}, only 1 is known", 9)
        if code not in _CODES:
            raise self._lie(f"dtype code {code} is no integer type", 17)
        if (promised := _HEADER.size + 12 * sequences + 8 * documents) != len(data):
            problem = (
                f"{sequences} sequences and {documents} boundaries take {promised} bytes, not {len(data)}"
            )
            raise self._lie(problem, 18)
        dtype = np.dtype(_CODES[code])
        at = _HEADER.size
        lengths = np.frombuffer(data, "<i4", sequences, at)
        offsets = np.frombuffer(data, "<i8", sequences, at + 4 * sequences)
        boundaries = np.frombuffer(data, "<i8", documents, at + 12 * sequences)
        self._check_lengths(lengths, offsets, dtype.itemsize, bin_bytes)
        self._check_boundaries(boundaries, sequences)
        return dtype, lengths, boundaries

    def _check_lengths(self, lengths: Ids, offsets: Ids, width: int, bin_bytes: int) -> None:
        if (bad := np.flatnonzero(lengths < 0)).size:
            raise self._lie(f"sequence {bad[0]} has length {lengths[bad[0]]}", _HEADER.size + 4 * int(bad[0]))
        ends = np.cumsum(lengths, dtype=np.int64) * width
        starts = ends - lengths.astype(np.int64) * width
        if (bad := np.flatnonzero(offsets != starts)).size:
            at = _HEADER.size + 4 * len(lengths) + 8 * int(bad[0])
            raise self._lie(f"sequence {bad[0]} is at byte {offsets[bad[0]]}, not {starts[bad[0]]}", at)
        total = int(ends[-1]) if len(ends) else 0
        if total != bin_bytes:
            raise self._lie(f"promises {total} bytes of tokens, the .bin has {bin_bytes}", _HEADER.size)

    def _check_boundaries(self, boundaries: Ids, sequences: int) -> None:
        at = _HEADER.size + 12 * sequences
        if not len(boundaries) or boundaries[0] != 0 or boundaries[-1] != sequences:
            raise self._lie(f"document boundaries do not run from 0 to {sequences}", at)
        if (bad := np.flatnonzero(np.diff(boundaries) < 0)).size:
            raise self._lie(f"document {bad[0]} ends before it starts", at + 8 * int(bad[0]))

    def _lie(self, problem: str, offset: int) -> InputError:
        return InputError(self._idx, problem, place=f"byte {offset}")
