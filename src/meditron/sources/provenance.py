"""Licence and address of documents, from the file `provenance.jsonl` beside their file.

Fetched collections have such a file in each folder; for a folder of one's own it can be written by hand. A
row has `name`, which is a file of the same folder or `ARCHIVE!MEMBER`, and optionally `licence` and `url`;
other keys are for people. A document's own statement takes precedence.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from meditron.sources.document import Document, Readable
from meditron.store.collections.records import PROVENANCE
from meditron.store.jsonl import read_jsonl

__all__ = ["add_provenance", "provenance_rows"]

_KEYS = ("licence", "url")


def provenance_rows(file: Readable) -> Mapping[str, Mapping[str, Any]]:
    """Return what is known of a file and of the members of an archive.

    Returns:
        The name of a member, or the empty text for the file itself → its `licence` and `url`.

    Raises:
        InputError: A row of the file `provenance.jsonl` is no JSON object.
    """
    if not isinstance(file, Path) or file.name == PROVENANCE:
        return {}
    path = file.parent / PROVENANCE
    if not path.is_file():
        return {}
    status = path.stat()
    return _read_rows(path, status.st_mtime_ns, status.st_size).get(file.name, {})


@lru_cache(maxsize=4)  # the files of a folder are read one after another
def _read_rows(path: Path, mtime_ns: int, size: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Return file → member → values. Time and size are parameters so that a changed file is read again."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in read_jsonl(path):
        file, _, member = str(row.get("name", "")).partition("!")
        values = {key: row[key] for key in _KEYS if isinstance(row.get(key), str)}
        rows.setdefault(file, {})[member] = values
    return rows


def add_provenance(documents: Iterator[Document], values: Mapping[str, Any] | None) -> Iterator[Document]:
    """Yield documents with the values added to `meta`, except those that the document states itself."""
    if not values:
        return documents
    return (_with_meta(document, values) for document in documents)


def _with_meta(document: Document, values: Mapping[str, Any]) -> Document:
    stated = {key: value for key, value in document.meta.items() if value is not None}
    return msgspec.structs.replace(document, meta={**document.meta, **values, **stated})
