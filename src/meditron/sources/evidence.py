"""Evidence levels of documents, from MEDLINE's publication types, MeSH descriptors and JATS article types.

`evidence.toml` lists the publication types, from the strongest evidence to the weakest, with the score that
each has in the original's PMC-Upsampled mixture. A document is described by the set of its types, stored as a
bit mask; its level is that of its strongest type.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["UNKNOWN_LEVEL", "EvidenceTable", "EvidenceType", "evidence_table", "sum_by_level", "type_mask"]

UNKNOWN_LEVEL = "not stated"
"""Level of documents without any of the table's types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceType:
    """A publication type of the table."""

    name: str
    """MEDLINE's name of the publication type."""
    level: str
    """Evidence level of the type, in the words of reports."""
    score: float = 0.0
    """Repetitions that the original's mixture adds to documents of this type."""
    excluded: bool = False
    """True if the original's mixture leaves documents of this type out."""
    article_types: tuple[str, ...] = ()
    """Values of JATS's attribute `article-type` for this type."""
    mesh: str | None = None
    """The MeSH descriptor of this type, if it is not a publication type."""


@dataclass(frozen=True, slots=True)
class EvidenceTable:
    """The content of `evidence.toml`."""

    types: tuple[EvidenceType, ...]
    """The types, strongest evidence first; type i is bit i of a mask."""
    reference_year: int
    """Year from which the age of a document is counted."""
    recency: tuple[tuple[int, float], ...]
    """Maximum age in years and the score that documents of this age have in addition, youngest first."""

    def level_of(self, mask: int) -> str:
        """Return the level of the strongest type in a mask, `UNKNOWN_LEVEL` if the mask is empty."""
        # The lowest bit that is set is the strongest type.
        return self.types[(mask & -mask).bit_length() - 1].level if mask else UNKNOWN_LEVEL


@cache
def evidence_table() -> EvidenceTable:
    """Read the table in `evidence.toml`."""
    table = tomllib.loads(files(__package__).joinpath("evidence.toml").read_text(encoding="utf-8"))
    types = tuple(
        EvidenceType(**{**entry, "article_types": tuple(entry.get("article_types", ()))})
        for entry in table["types"]
    )
    recency = tuple((int(age), float(score)) for age, score in table["recency"])
    return EvidenceTable(types, table["reference_year"], recency)


def type_mask(publication_types: object = None, mesh: object = None, article_type: object = None) -> int:
    """Return the bit mask of a document's types; values of another form than expected are ignored.

    Args:
        publication_types: List of publication types, as `meta` of a MEDLINE document has it.
        mesh: List of MeSH descriptors.
        article_type: Value of JATS's attribute `article-type`.
    """
    types, descriptors, article_types = _bits()
    mask = article_types.get(article_type, 0) if isinstance(article_type, str) else 0
    for values, bits in ((publication_types, types), (mesh, descriptors)):
        if isinstance(values, list):
            for value in filter(bits.__contains__, filter(_is_string, values)):
                mask |= bits[value]
    return mask


def sum_by_level(types: "NDArray[np.uint32]", *columns: "NDArray[np.integer[Any]]") -> dict[str, list[int]]:
    """Sum columns over the documents of each level.

    Args:
        types: Bit mask of each document.
        columns: Arrays with a whole number for each document.

    Returns:
        Level → the sum of each column, strongest evidence first; levels without documents are left out.
    """
    import numpy as np  # not at the top: recipe configs import this module, and `meditron --help` reads them

    table = evidence_table()
    masks, of_document = np.unique(types, return_inverse=True)
    sums: dict[str, list[int]] = {}
    # The lowest bit of a mask is its strongest type, and the empty mask comes last.
    for number in sorted(range(len(masks)), key=lambda n: int(masks[n]) & -int(masks[n]) or 1 << 32):
        members = of_document == number
        totals = sums.setdefault(table.level_of(int(masks[number])), [0] * len(columns))
        for place, column in enumerate(columns):
            totals[place] += int(column[members].sum(dtype=np.int64))
    return sums


@cache
def _bits() -> tuple[Mapping[str, int], Mapping[str, int], Mapping[str, int]]:
    """Return the bits of publication types, of MeSH descriptors and of JATS article types."""
    numbered = list(enumerate(evidence_table().types))
    return (
        {entry.name: 1 << number for number, entry in numbered if entry.mesh is None},
        {entry.mesh: 1 << number for number, entry in numbered if entry.mesh is not None},
        {kind: 1 << number for number, entry in numbered for kind in entry.article_types},
    )


def _is_string(value: object) -> bool:
    return isinstance(value, str)
