"""Detection of downloads whose content is not of the kind that the file name says, such as a login page."""

import re
from pathlib import Path

__all__ = ["content_problem"]

_HEAD = 1_024
_MAGIC = {
    ".gz": (b"\x1f\x8b", "gzip file"),
    ".tgz": (b"\x1f\x8b", "gzip file"),
    ".bz2": (b"BZh", "bzip2 file"),
    ".xz": (b"\xfd7zXZ\x00", "xz file"),
    ".zst": (b"\x28\xb5\x2f\xfd", "zstd file"),
    ".zip": (b"PK", "zip archive"),
    ".whl": (b"PK", "wheel"),
    ".gguf": (b"GGUF", "GGUF file"),
    ".parquet": (b"PAR1", "Parquet file"),
    ".pdf": (b"%PDF", "PDF"),
}
_PAGE_SUFFIXES = {".html", ".htm", ".xhtml"}
_PAGE = re.compile(
    rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")  # of UTF-8 and UTF-16


def content_problem(path: Path, name: str) -> str | None:
    """Return a description of the mismatch between a file's content and its `name`, or None.

    Only the first 1,024 bytes are read. A file without a known suffix is rejected only if it is an HTML page.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    suffix = Path(name).suffix.lower()
    if not head:
        return "the server sent an empty file"
    text = head[next((len(mark) for mark in _BYTE_ORDER_MARKS if head.startswith(mark)), 0) :]
    # UTF-16 text of ASCII characters becomes ASCII when its zero bytes are removed.
    if _PAGE.match(text.replace(b"\x00", b"")) and suffix not in _PAGE_SUFFIXES:
        return "the server sent an HTML page (a login page?) instead of a file"
    if suffix in _MAGIC:
        magic, kind = _MAGIC[suffix]
        return None if head.startswith(magic) else f"not a {kind}: it begins with {head[:16]!r}"
    if suffix == ".xml" and not head.startswith(_BYTE_ORDER_MARKS) and not head.lstrip().startswith(b"<"):
        return f"not XML: it begins with {head[:16]!r}"
    return None
