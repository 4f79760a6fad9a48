"""PubMed's baseline and update files, from the directory index of NLM's server or of a mirror.

Each file `pubmedYYnNNNN.xml.gz` has the file `….md5` beside it. A file is accepted if its MD5 is right, its
gzip stream is whole, its root element is PubmedArticleSet, it has citations, and it is not much smaller than
the file of the same number in the previous snapshot.

`$MEDITRON_PUBMED_URL` is the address of the folder with `baseline/` and `updatefiles/`, by default
https://ftp.ncbi.nlm.nih.gov/pubmed. NLM asks for at most three requests per second.
"""

import gzip
import os
import re
import zlib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from meditron.core.errors import DigestError, InputError, SourceError
from meditron.core.redaction import public_address
from meditron.core.units import format_bytes
from meditron.store.address import normalize_address
from meditron.store.collections.records import CollectionFile, FetchedItem, Item
from meditron.store.collections.request import PUBMED_SETS, CollectionRequest
from meditron.store.collections.web_client import Throttle, WebClient, connection_count
from meditron.store.collections.workplace import Workplace
from meditron.store.download import discard_download, download
from meditron.store.files import md5_file

__all__ = ["PubMedFetcher", "count_citations"]

_ADDRESS = "https://ftp.ncbi.nlm.nih.gov/pubmed"
_RATE = 3.0  # requests per second: https://www.ncbi.nlm.nih.gov/books/NBK25497/
_CONNECTIONS = 4
_FILE = r"pubmed[0-9]{2}n[0-9]{4,5}\.xml\.gz"
# A line of the index: the link, the date, the size rounded to three digits.
_ENTRY = re.compile(rf'href="(?:[^"]*/)?({_FILE})"[^\n]*?(?:[ >]([0-9.]+)([KMG])\s*(?:<|\n|$)|\n|$)')
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MD5 = re.compile(r"\b[0-9a-fA-F]{32}\b")
_SMALLEST_SHARE = 0.5  # of the previous snapshot's file of the same number
_PIECE = 1 << 20
_ROOT = re.compile(rb"<PubmedArticleSet[\s>]")
_CITATION = re.compile(rb"<Pubmed(?:Book)?Article[\s>]")
_LONGEST_TAG = 24
_ENDING = 256  # bytes at the end of a file in which its end tag must be


class PubMedFetcher:
    """Fetches PubMed's files."""

    def __init__(self, request: CollectionRequest) -> None:
        self._request = request
        self._base = normalize_address(os.environ.get("MEDITRON_PUBMED_URL") or _ADDRESS).rstrip("/")
        self.workers = connection_count(_CONNECTIONS)
        self._throttle = Throttle(_RATE)
        self._client = WebClient(self._throttle, self.workers)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def plan(self, work: Path) -> tuple[list[Item], dict[str, Any]]:
        """List the files of the index pages."""
        items = [item for name in self._sets() for item in self._list(name)]
        return items, {"address": public_address(self._base), "files": len(items)}

    def preview(self) -> tuple[list[Item], str | None]:
        """List the files of the index pages; their sizes are rounded."""
        return self.plan(Path())[0], None

    def _sets(self) -> tuple[str, ...]:
        return (self._request.name,) if self._request.name else PUBMED_SETS

    def _list(self, name: str) -> list[Item]:
        address = f"{self._base}/{name}/"
        page = self._client.get(address).body.decode("utf-8", "replace")
        sizes = {
            file: round(float(size) * _UNITS[unit]) if size else None
            for file, size, unit in _ENTRY.findall(page)
        }
        pattern = self._request.pattern or "*"
        chosen = sorted(file for file in sizes if fnmatchcase(file, pattern))
        if not chosen:
            problem = f"the index lists no file {pattern}" if sizes else "not an index of PubMed's files"
            raise SourceError(f"{public_address(address)}: {problem}")
        return [Item(f"{name}/{file}", sizes[file]) for file in chosen]

    def fetch(self, item: Item, place: Workplace) -> FetchedItem:
        """Download one file and verify it."""
        address = f"{self._base}/{item.name}"
        md5 = self._expected_md5(address)
        if (reused := place.reuse(item.name, md5)) is not None:
            return FetchedItem(files=[reused])
        part = place.part(item.name)
        self._download(address, part, md5, place)
        try:
            _require_size(part, address, item.name, place)
            records = count_citations(part, public_address(address))
        except InputError:
            discard_download(part)  # the next run must not continue a wrong file
            raise
        return FetchedItem(files=[place.install(part, item.name, records=records, checksum=md5)])

    def _download(self, address: str, part: Path, md5: str, place: Workplace) -> None:
        resumed = part.exists()
        download(address, part, options=place.options(self._throttle.wait))
        if resumed and md5_file(part) != md5:
            # The server's file may have changed after the first part was downloaded.
            discard_download(part)
            download(address, part, options=place.options(self._throttle.wait))
        if (digest := md5_file(part)) != md5:
            discard_download(part)
            raise DigestError(public_address(address), f"MD5 is {digest}, expected {md5}")

    def _expected_md5(self, address: str) -> str:
        text = self._client.get(f"{address}.md5", limit=1 << 16).body.decode("ascii", "replace")
        match = _MD5.search(text)
        if match is None or "<html" in text.lower():
            raise InputError(f"{public_address(address)}.md5", "the server sent no MD5 checksum")
        return match[0].lower()


def _require_size(part: Path, address: str, name: str, place: Workplace) -> None:
    """Raise InputError if the file is much smaller than that of the same number in the last snapshot."""
    number = _numbered(name)  # the year changes with each baseline
    known: CollectionFile | None = next(
        (file for file in place.previous.values() if _numbered(file.name) == number), None
    )
    size = part.stat().st_size
    if known is not None and size < _SMALLEST_SHARE * known.bytes:
        raise InputError(
            public_address(address),
            f"has {format_bytes(size)}; the previous snapshot's {known.name} has {format_bytes(known.bytes)}",
            hint="if the small file is right, remove the previous snapshot from $MEDITRON_CACHE/collections",
        )


def _numbered(name: str) -> str:
    return re.sub(r"pubmed[0-9]{2}n", "pubmedn", name)


def count_citations(path: Path, shown: str) -> int:
    """Return the number of citations of a gzipped PubMed file, reading all of it.

    Raises:
        InputError: The gzip stream is damaged or cut off, the root element is not PubmedArticleSet, its end
            tag is missing, or there is no citation.
    """
    count, tail, ending, first = 0, b"", b"", True
    try:
        with gzip.open(path) as file:
            while chunk := file.read(_PIECE):
                if first and not _ROOT.search(chunk[: 64 << 10]):
                    raise InputError(shown, "not MEDLINE XML: no element PubmedArticleSet at its start")
                first = False
                # A tag may be cut by the end of a piece; the tail is shorter than a tag that counts twice.
                data = tail + chunk
                count += len(_CITATION.findall(data))
                cut = data.rfind(b"<", max(0, len(data) - _LONGEST_TAG))
                tail = data[cut:] if cut >= 0 and not _CITATION.match(data, cut) else b""
                ending = (ending + chunk)[-_ENDING:]
    except EOFError as error:
        raise InputError(shown, "the compressed data are cut off") from error
    except (OSError, zlib.error) as error:
        raise InputError(shown, f"cannot be decompressed: {error}") from error
    if b"</PubmedArticleSet" not in ending:
        raise InputError(shown, "ends before </PubmedArticleSet>")
    if not count:
        raise InputError(shown, "contains no citation")
    return count
