"""Access to the working files of single documents, by the documents' row numbers in the index."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.store.files import read_json

__all__ = ["DocumentFiles"]


@dataclass(frozen=True)
class DocumentFiles:
    """The pieces' working files (see `pieces.Piece`), in the order of the index.

    Nothing is kept in memory but one path and one number per piece.
    """

    pieces: tuple[Path, ...] = ()
    """Path of each piece's files up to the dot before the suffix."""
    ends: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Row number after the last document of each piece. The last piece of a source may contain more documents
    than rows, because of `limit`."""
    folder: Path = Path()
    """The stage's work folder, for temporary files."""

    def rows(self, piece: int) -> range:
        """Return the row numbers of a piece's documents."""
        return range(int(self.ends[piece - 1]) if piece else 0, int(self.ends[piece]))

    def array(self, piece: int, name: str) -> npt.NDArray[Any]:
        """Return an array of a piece, such as `nearduplicates.keys`, without reading it into memory."""
        return np.asarray(np.load(self._file(piece, f"{name}.npy"), mmap_mode="r", allow_pickle=False))

    def split_by_piece(
        self, rows: npt.NDArray[np.integer[Any]]
    ) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Yield each piece that contains any of the rows, so that every file is opened once.

        Yields:
            The piece's number, the positions in `rows` of its rows, and their positions in the piece.
        """
        order = np.argsort(rows, kind="stable")
        pieces = np.searchsorted(self.ends, rows[order], side="right")
        for positions in np.split(order, np.flatnonzero(np.diff(pieces)) + 1) if len(order) else ():
            piece = int(np.searchsorted(self.ends, rows[positions[0]], side="right"))
            yield piece, positions, rows[positions].astype(np.int64) - self.rows(piece).start

    def ids(self, rows: npt.NDArray[np.integer[Any]]) -> list[str]:
        """Return the ids of documents, as their source gives them."""
        return self._names(rows, "ids")

    def titles(self, rows: npt.NDArray[np.integer[Any]]) -> list[str]:
        """Return the beginnings of the titles of documents, or of the text of untitled ones."""
        return self._names(rows, "titles")

    def _names(self, rows: npt.NDArray[np.integer[Any]], key: str) -> list[str]:
        names = [""] * len(rows)
        for piece, positions, places in self.split_by_piece(rows):
            of_piece = read_json(self._file(piece, "names.json"))[key]
            for position, place in zip(positions, places, strict=True):
                names[position] = of_piece[place]
        return names

    def _file(self, piece: int, suffix: str) -> Path:
        path = self.pieces[piece]
        return path.with_name(path.name + suffix)
