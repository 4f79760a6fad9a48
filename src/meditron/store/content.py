"""The first bytes of a downloaded file against its name: a login page is no archive."""

import re
from pathlib import Path

__all__ = ["wrong_content"]

_HEAD = 1_024
_PACKED = {
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
_PAGES = {".html", ".htm", ".xhtml"}
_PAGE = re.compile(
    rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")  # UTF-8 and UTF-16 byte order marks


def wrong_content(path: Path, name: str) -> str | None:
    """Return what is wrong with a file that should be what its `name` says; None if nothing is.

    Only the first 1,024 bytes are read. A file without a known suffix is refused if it is an HTML page.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    suffix = Path(name).suffix.lower()
    if not head:
        return "the server sent an empty file"
    text = head[next((len(mark) for mark in _MARKS if head.startswith(mark)), 0) :]
    if _PAGE.match(text.replace(b"\x00", b"")) and suffix not in _PAGES:
        return "the server sent an HTML page (a login page?) instead of a file"
    if suffix in _PACKED:
        magic, kind = _PACKED[suffix]
        return None if head.startswith(magic) else f"not a {kind}: it begins with {head[:16]!r}"
    if suffix == ".xml" and not head.startswith(_MARKS) and not head.lstrip().startswith(b"<"):
        return f"not XML: it begins with {head[:16]!r}"
    return None
