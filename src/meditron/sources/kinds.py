"""Files that hold no documents as they are: recognised by their content, so that a refusal names them."""

import re

__all__ = ["refusal"]

_ARCHIVE = "unpack it and give the folder or the files in it"
_TABLE = "convert it to JSON lines, for example with duckdb or pandas"
_PAPER = "extract its text, for example with pandoc"
_SIGNATURES = (
    (b"%PDF-", "a PDF file", "extract its text, for example with pdftotext"),
    (b"%!PS", "a PostScript file", "extract its text, for example with ps2ascii"),
    (b"{\\rtf", "an RTF file", _PAPER),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a file of an older Microsoft Office", _PAPER),
    (b"Rar!\x1a\x07", "a RAR archive", _ARCHIVE),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _ARCHIVE),
    (b"\x1f\x8b", "packed twice with gzip", "unpack it once"),
    (b"BZh", "packed twice, within it with bzip2", "unpack it once"),
    (b"\x28\xb5\x2f\xfd", "packed twice, within it with zstd", "unpack it once"),
    (b"\xfd7zXZ\0", "packed twice, within it with xz", "unpack it once"),
    (b"\x04\x22\x4d\x18", "a file packed with lz4", "unpack it with lz4 -d"),
    (b"LZIP", "a file packed with lzip", "unpack it with lzip -d"),
    (b"\x1f\x9d", "a file packed with compress", "unpack it with gzip -d"),
    (b"]\0\0", "a file packed with lzma", "unpack it with xz -d"),
    (b"PAR1", "a Parquet file", _TABLE),
    (b"ARROW1", "an Arrow file", _TABLE),
    (b"\xff\xff\xff\xff", "an Arrow stream", _TABLE),
    (b"Obj\x01", "an Avro file", _TABLE),
    (b"ORC", "an ORC file", _TABLE),
    (b"SQLite format 3\0", "an SQLite database", _TABLE),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _TABLE),
    (b"\x93NUMPY", "a NumPy array", _TABLE),
    (b"\x80\x04\x95", "a Python pickle", _TABLE),
    (b"GGUF", "a GGUF model", "a model is given as `base`"),
    (b"\x89PNG", "a PNG image", None),
    (b"\xff\xd8\xff", "a JPEG image", None),
    (b"GIF8", "a GIF image", None),
    (b"II*\0", "a TIFF image", None),
    (b"MM\0*", "a TIFF image", None),
    (b"\x7fELF", "a program", None),
)
_PATTERNS = (
    (rb"\s*PMID- *[0-9]", "PubMed's text format", "export the citations as XML"),
    (rb"\s*TY  - [A-Z]", "a RIS file", "convert it to JSON lines"),
    (rb"\s*@[A-Za-z]+\{", "a BibTeX file", "convert it to JSON lines"),
    (rb"(?i)\s*(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body)\b", "an HTML page", _PAPER),
    (
        rb"(?:[0-9a-fA-F]{32,128} [ *]\S|[A-Z0-9-]{3,12} ?\(.{1,200}\) ?= ?[0-9a-f]{32,128}\s)",
        "a list of checksums",
        None,
    ),
)
_ZIPPED = (
    (b"word/", "a Word document (docx)", _PAPER),
    (b"xl/", "an Excel workbook (xlsx)", "save it as CSV with a column `text`"),
    (b"ppt/", "a PowerPoint file (pptx)", _PAPER),
    (b"application/epub+zip", "an e-book (EPUB)", _PAPER),
    (b"opendocument", "an OpenDocument file", _PAPER),
)
_ROOT = re.compile(
    rb"\s*(?:(?:<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>\[]*(?:\[.*?\])?\s*>)\s*)*<([A-Za-z_][\w.:-]*)", re.DOTALL
)


def refusal(start: bytes) -> tuple[str, str | None] | None:
    """Return the name of a kind that is not read, with a way on where there is one.

    Args:
        start: the first bytes of the file, unpacked.
    """
    start = start.removeprefix(b"\xef\xbb\xbf")
    if start.startswith(b"PK\x03\x04"):
        inside = ((name, hint) for mark, name, hint in _ZIPPED if mark in start)
        return next(inside, ("a ZIP archive", _ARCHIVE))
    if start[257:262] == b"ustar":
        return "a tar archive", _ARCHIVE
    for signature, name, hint in _SIGNATURES:
        # GGUF, ORC and PAR1 also begin sentences.
        word = signature.isalnum() and start[len(signature) :][:1] == b" "
        if start.startswith(signature) and not word:
            return name, hint
    for pattern, name, hint in _PATTERNS:
        if re.match(pattern, start, re.DOTALL):
            return name, hint
    if match := _ROOT.match(start):
        return f"XML with the root element <{match[1].decode()}>", (
            "XML is read with the root PubmedArticleSet (MEDLINE) or mediawiki"
        )
    return None
