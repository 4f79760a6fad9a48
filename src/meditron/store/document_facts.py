"""Facts about the documents of a token file that their weights in training depend on: `PREFIX.facts`.

The file has one record of 8 bytes for each document, in the documents' order, little-endian: the u32 bit mask
of the document's publication types (`sources.evidence`), the u16 year and the u16 quality. A year of 0 means
that the year is not known. A quality is stored in units of 1/10,000 plus 1, and 0 means that there is none.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.store.indexed import read_side_file, write_side_file

__all__ = ["FACTS", "FACTS_SUFFIX", "fact_row", "quality_values", "read_facts", "write_facts"]

FACTS = np.dtype([("types", "<u4"), ("year", "<u2"), ("quality", "<u2")])
"""NumPy type of a record."""
FACTS_SUFFIX = ".facts"
_QUALITY_UNITS = 10_000


def fact_row(types: int, year: object, quality: object) -> tuple[int, int, int]:
    """Return a document's record; a year or quality of another form than expected counts as not known.

    Args:
        types: Bit mask of the document's publication types.
        year: Year of publication.
        quality: Quality score from 0 to 1.
    """
    known_year = year if isinstance(year, int) and 0 < year < 1 << 16 else 0
    known = isinstance(quality, int | float) and not isinstance(quality, bool) and 0 <= quality <= 1
    return types, known_year, 1 + round(quality * _QUALITY_UNITS) if known else 0  # type: ignore[operator]


def quality_values(facts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the quality of each document, NaN for documents without one."""
    stored = facts["quality"].astype(np.float64)
    return np.where(stored > 0, (stored - 1) / _QUALITY_UNITS, np.nan)


def write_facts(prefix: Path, facts: npt.NDArray[Any]) -> None:
    """Write `PREFIX.facts`, with a record of type FACTS for each document."""
    write_side_file(prefix, FACTS_SUFFIX, facts.astype(FACTS, copy=False).tobytes())


def read_facts(prefix: Path) -> npt.NDArray[Any]:
    """Read `PREFIX.facts`.

    Raises:
        SourceError: the file is missing.
        InputError: the number of records is not the number of documents.
    """
    return np.frombuffer(read_side_file(prefix, FACTS_SUFFIX, FACTS.itemsize), FACTS)
