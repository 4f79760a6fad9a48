"""Detection of downloads whose content is not of the kind that was requested, such as a login page."""

import re
from pathlib import Path

from meditron.store.html_page import HTML_TYPES, error_title, is_html_page, read_outline

__all__ = ["content_problem", "names_data_file"]

_HEAD = 4_096
_LONGEST_OUTLINE = 1 << 20  # bytes of a page in which its title and first heading are found
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
_DATA_NAME = re.compile(
    r".*\.(?:xml|nxml|jsonl?|csv|tsv|txt|pdf|docx?|xlsx?|parquet|nbib|bz2|gz|xz|zst|zip|tar|tgz|gguf"
    r"|safetensors|bin|whl)(?:\.(?:gz|bz2|xz|zst))?",
    re.IGNORECASE | re.DOTALL,
)
_NO_FILE = "the server sent an HTML page (a login page?) instead of a file"
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")  # of UTF-8 and UTF-16


def names_data_file(name: str) -> bool:
    """Return True for a file name of data or text, such as `a.xml.gz`, in which an HTML page is a mistake."""
    return _DATA_NAME.fullmatch(name) is not None


def content_problem(path: Path, name: str, content_type: str | None = None) -> str | None:
    """Return a description of the mismatch between a file's content and its name and type, or None.

    An HTML page is accepted under the name of a page, and under a name that says nothing, such as `fever` or
    `page.php`, if the server calls it HTML; never under the name of a data file, nor if its title is that of
    an error or login page.

    Args:
        path: The file; only its beginning is read.
        name: The last part of the address.
        content_type: The server's media type, in lower case and without parameters, if it states one.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    suffix = Path(name).suffix.lower()
    if not head:
        return "the server sent an empty file"
    text = head[next((len(mark) for mark in _BYTE_ORDER_MARKS if head.startswith(mark)), 0) :]
    # UTF-16 text of ASCII characters becomes ASCII when its zero bytes are removed.
    if is_html_page(text.replace(b"\x00", b"")):
        expected = suffix in _PAGE_SUFFIXES or (content_type in HTML_TYPES and not names_data_file(name))
        return _page_problem(path) if expected else _NO_FILE
    if suffix not in _MAGIC and content_type == "application/pdf":
        suffix = ".pdf"
    if suffix in _MAGIC:
        magic, kind = _MAGIC[suffix]
        return None if head.startswith(magic) else f"not a {kind}: it begins with {head[:16]!r}"
    if suffix == ".xml" and not head.startswith(_BYTE_ORDER_MARKS) and not head.lstrip().startswith(b"<"):
        return f"not XML: it begins with {head[:16]!r}"
    return None


def _page_problem(path: Path) -> str | None:
    """Return the problem of an HTML page whose title or first heading is that of an error or login page."""
    with path.open("rb") as file:
        text = file.read(_LONGEST_OUTLINE).replace(b"\x00", b"").decode("utf-8", "replace")
    title = error_title(read_outline(text))
    return None if title is None else f"the server sent an error or login page: '{title}'"
