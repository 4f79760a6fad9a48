"""Recognition of files that cannot be read as documents, by name (checksums, READMEs) or content (PDF, …)."""

import re

from meditron.store.collections.records import MANIFEST, PROVENANCE

__all__ = ["reason_to_skip", "unsupported_format"]

FETCH_RECORDS = frozenset({MANIFEST, PROVENANCE})
"""Names of files that describe the files of a folder (`store.collections.fetching`)."""
_SYSTEM = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
_DATASET = frozenset({"dataset_info.json", "dataset_infos.json"})  # beside the data in folders of the hub
_CHECKSUM = re.compile(
    r".*\.(?:md5|sha[0-9]*|sfv|crc32?|b2|b3|blake[0-9a-z]*|asc|sig|(?:md5|sha[0-9]*)sums?)"
    r"|(?:.*[-_.])?(?:md5|sha[0-9]*|b2|b3|crc32)[-_]?(?:check)?sums?(?:\.[a-z0-9]+)?"
    r"|checksums?(?:[-_.].*)?"
)
_ABOUT = re.compile(r"(?:read[-_]?me|licen[cs]e|copying|changelog|notice)(?:[-_.].*)?")

_UNRAR = "unpack it with unrar x"
_UN7Z = "unpack it with 7z x"
_TABLE = "convert it to JSON lines with a field `text`, for example with duckdb or pandas"
_PANDOC = "convert it to text with pandoc"
_WORD = "convert it to text with docx2txt or pandoc"
_OFFICE = "convert it to text with libreoffice --headless --convert-to txt"
_OCR = "extract the text with OCR, for example with tesseract"
_SIGNATURES = (
    (b"%PDF-", "a PDF file", "extract the text with pdftotext"),
    (b"%!PS", "a PostScript file", "extract the text with ps2ascii"),
    (b"{\\rtf", "an RTF file", _PANDOC),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a file of an older Microsoft Office", _OFFICE),
    (b"Rar!\x1a\x07", "a RAR archive", _UNRAR),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UN7Z),
    (b"\x1f\x8b", "packed twice with gzip", "decompress it once with gunzip"),
    (b"BZh", "packed twice, within it with bzip2", "decompress it once"),
    (b"\x28\xb5\x2f\xfd", "packed twice, within it with zstd", "decompress it once"),
    (b"\xfd7zXZ\0", "packed twice, within it with xz", "decompress it once"),
    (b"\x04\x22\x4d\x18", "a file packed with lz4", "decompress it with lz4 -d"),
    (b"LZIP", "a file packed with lzip", "decompress it with lzip -d"),
    (b"\x1f\x9d", "a file packed with compress", "decompress it with gzip -d"),
    (b"]\0\0", "a file packed with lzma", "decompress it with xz -d"),
    (b"PAR1", "a Parquet file", _TABLE),
    (b"ARROW1", "an Arrow file", _TABLE),
    (b"\xff\xff\xff\xff", "an Arrow stream", _TABLE),
    (b"Obj\x01", "an Avro file", _TABLE),
    (b"ORC", "an ORC file", _TABLE),
    (b"SQLite format 3\0", "an SQLite database", _TABLE),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _TABLE),
    (b"\x93NUMPY", "a NumPy array", _TABLE),
    (b"\x80\x04\x95", "a Python pickle", _TABLE),
    (b"GGUF", "a GGUF model", "a model is set as `base`"),
    (b"\x89PNG", "a PNG image", _OCR),
    (b"\xff\xd8\xff", "a JPEG image", _OCR),
    (b"GIF8", "a GIF image", _OCR),
    (b"II*\0", "a TIFF image", _OCR),
    (b"MM\0*", "a TIFF image", _OCR),
    (b"\x7fELF", "a program", None),
)
_PATTERNS = (
    (rb"WARC/[0-9]\.[0-9]\r?\n", "a web archive (WARC)", "extract its pages to HTML files, one per page"),
    (rb"\s*PMID- *[0-9]", "PubMed's text format", "export the citations as XML"),
    (rb"\s*TY  - [A-Z]", "a RIS file", "convert it to JSON lines"),
    (rb"\s*@[A-Za-z]+\{", "a BibTeX file", "convert it to JSON lines"),
    (rb"(?i)\s*(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body)\b", "an HTML page", _PANDOC),
    (
        rb"(?:[0-9a-fA-F]{32,128} [ *]\S|[A-Z0-9-]{3,12} ?\(.{1,200}\) ?= ?[0-9a-f]{32,128}\s)",
        "a list of checksums",
        None,
    ),
)
# Names of members that occur only in zip archives that are a single document.
_ZIPPED = (
    (b"word/document.xml", "a Word document (docx)", _WORD),
    (b"xl/workbook.xml", "an Excel workbook (xlsx)", "save it as CSV with a column `text`"),
    (b"ppt/presentation.xml", "a PowerPoint file (pptx)", _OFFICE),
    (b"application/epub+zip", "an e-book (EPUB)", _PANDOC),
    (b"application/vnd.oasis.opendocument", "an OpenDocument file", _PANDOC),
    (b"[Content_Types].xml", "a Microsoft Office document", _OFFICE),
)
_ROOT = re.compile(
    rb"\s*(?:(?:<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>\[]*(?:\[.*?\])?\s*>)\s*)*<([A-Za-z_][\w.:-]*)", re.DOTALL
)


def reason_to_skip(path: str) -> str | None:
    """Return the reason to skip a file of a folder or archive; None if the file is to be read.

    Args:
        path: The path below the folder or in the archive, separated by slashes.
    """
    *folders, name = path.split("/")
    if name.startswith("."):
        return "hidden file"
    # `a/./b` is a plain path, which some archivers write.
    if any((folder.startswith(".") and folder != ".") or folder == "__MACOSX" for folder in folders):
        return "hidden folder"
    if name.lower() in _SYSTEM:
        return "file of the operating system"
    if name in FETCH_RECORDS:
        return "record of the fetch"
    if name.lower() in _DATASET:
        return "description of the data set"
    if _CHECKSUM.fullmatch(name.lower()):
        return "checksum file"
    return "README or licence" if _ABOUT.fullmatch(name.lower()) else None


def unsupported_format(start: bytes) -> tuple[str, str | None] | None:
    """Recognise a file format that this package cannot read.

    Args:
        start: The first bytes of the file, decompressed.

    Returns:
        The name of the format and a hint about conversion, which may be None; None for any other content.
    """
    start = start.removeprefix(b"\xef\xbb\xbf")
    if start.startswith(b"PK\x03\x04"):
        return next(((name, hint) for mark, name, hint in _ZIPPED if mark in start), None)
    for signature, name, hint in _SIGNATURES:
        # Signatures of letters, such as GGUF and ORC, are words if a blank follows: the file is then text.
        is_word = signature.isalnum() and start[len(signature) :][:1] == b" "
        if start.startswith(signature) and not is_word:
            return name, hint
    for pattern, name, hint in _PATTERNS:
        if re.match(pattern, start, re.DOTALL):
            return name, hint
    if match := _ROOT.match(start):
        return f"XML with the root element <{match[1].decode()}>", (
            "XML is read with the root PubmedArticleSet (MEDLINE), article (JATS) or mediawiki"
        )
    return None
