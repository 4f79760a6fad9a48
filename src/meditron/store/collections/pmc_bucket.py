"""PMC's article datasets in object storage: list of objects, daily inventory, metadata of an article.

The layout (README.txt of the bucket pmc-oa-opendata, 2026):

    inventory-reports/pmc-oa-opendata/metadata/YYYY-MM-DDTHH-MMZ/manifest.json   names the CSV files
    inventory-reports/pmc-oa-opendata/metadata/data/….csv.gz      bucket, key, date, ETag
    metadata/PMC<id>.<version>.json                               licence, retraction, addresses
    PMC<id>.<version>/PMC<id>.<version>.xml                       the article in JATS

Objects are listed with ListObjectsV2, whose pages continue with a token.
"""

import csv
import gzip
import hashlib
import io
import os
import re
import urllib.parse
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from meditron.core.errors import DigestError, FetchError, InputError, SourceError
from meditron.core.redaction import public_address
from meditron.store.address import normalize_address
from meditron.store.collections.web_client import WebClient
from meditron.store.download import DownloadOptions, discard_download, download
from meditron.store.files import md5_file

__all__ = ["VERSION", "Article", "Bucket", "Inventory"]

_ADDRESS = "https://pmc-oa-opendata.s3.amazonaws.com"
_REPORTS = "inventory-reports/pmc-oa-opendata/metadata/"
_REPORT = re.compile(re.escape(_REPORTS) + r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}-[0-9]{2}Z/")
_METADATA_KEY = re.compile(r"metadata/PMC([0-9]{1,12})\.([0-9]{1,5})\.json")
_ETAG = re.compile(r'"?([0-9a-f]{32})(?:-[0-9]+)?"?')
_MD5 = re.compile(r"[0-9a-f]{32}")
_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
_XML = (b"<", b"\xef\xbb\xbf<")
_LARGEST_LISTING = 8 << 20
_LARGEST_METADATA = 16 << 20
VERSION = np.dtype([("id", "<i8"), ("version", "<i4"), ("etag", "V16")])
"""A row of the inventory: the newest version of an article, with the ETag of its metadata."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The newest inventory of the bucket."""

    date: str
    """Name of the report: the time at which it was made."""
    files: tuple[dict[str, Any], ...]
    """The inventory's files: `key`, `size` in bytes and `MD5checksum`."""
    columns: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(int(file.get("size", 0)) for file in self.files)


class Article(msgspec.Struct, frozen=True):
    """The metadata of an article version, as far as it decides whether and how the article is fetched."""

    pmcid: str
    version: int | str
    license_code: str | None = None
    is_pmc_openaccess: bool = False
    is_retracted: bool = False
    xml_url: str | None = None

    @property
    def xml_md5(self) -> str | None:
        """MD5 of the article's XML, which is a parameter of its address."""
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.xml_url or "").query)
        value = query.get("md5", [""])[0].lower()
        return value if _MD5.fullmatch(value) else None


class Bucket:
    """Requests to the bucket, whose address is `$MEDITRON_PMC_URL` or NLM's.

    Args:
        client: The client for all requests.
    """

    def __init__(self, client: WebClient) -> None:
        self._client = client
        self.address = normalize_address(os.environ.get("MEDITRON_PMC_URL") or _ADDRESS).rstrip("/")

    def list_prefixes(self, prefix: str) -> Iterator[str]:
        """Yield the prefixes one level below a prefix, page by page."""
        token = ""
        while True:
            query = {"list-type": "2", "prefix": prefix, "delimiter": "/"}
            query |= {"continuation-token": token} if token else {}
            address = f"{self.address}/?{urllib.parse.urlencode(query)}"
            root = _parse_listing(address, self._client.get(address, limit=_LARGEST_LISTING).body)
            for element in root.iterfind(f"{_NAMESPACE}CommonPrefixes/{_NAMESPACE}Prefix"):
                yield element.text or ""
            following = root.findtext(f"{_NAMESPACE}NextContinuationToken") or ""
            if root.findtext(f"{_NAMESPACE}IsTruncated") != "true":
                return
            if not following or following == token:
                raise FetchError(f"{public_address(self.address)}: a listing that does not end")
            token = following

    def newest_inventory(self) -> Inventory:
        """Return the newest inventory with a manifest; SourceError if there is none."""
        reports = sorted(filter(_REPORT.fullmatch, self.list_prefixes(_REPORTS)), reverse=True)
        for report in reports:
            address = f"{self.address}/{report}manifest.json"
            try:
                body = self._client.get(address, limit=_LARGEST_METADATA).body
            except SourceError:
                continue  # the report is being written
            return _parse_manifest(public_address(address), body, report.rstrip("/").rpartition("/")[2])
        raise SourceError(
            f"{public_address(self.address)}: no inventory under {_REPORTS}",
            hint="set MEDITRON_PMC_URL to the address of the bucket or of a mirror",
        )

    def read_inventory(
        self, inventory: Inventory, work: Path, options: DownloadOptions
    ) -> npt.NDArray[np.void]:
        """Download an inventory; return the newest version of each article, sorted by id.

        Returns:
            An array of VERSION, 28 bytes per article.

        Raises:
            InputError: A file's size, MD5 or content is wrong.
        """
        parts = []
        for file in inventory.files:
            key = str(file["key"])
            part = work / "parts" / re.sub(r"[^\w.-]", "-", key)[-150:]
            address = f"{self.address}/{urllib.parse.quote(key)}"
            download(address, part, options=options)
            try:
                _require_file(part, public_address(address), file)
                parts.append(_parse_inventory(part, public_address(address), inventory.columns))
            finally:
                discard_download(part)
        rows = np.concatenate([np.empty(0, VERSION), *parts])
        rows = rows[np.lexsort((rows["version"], rows["id"]))]
        newest = np.ones(len(rows), bool)
        newest[:-1] = rows["id"][1:] != rows["id"][:-1]
        return rows[newest]

    def article(self, number: int, version: int) -> Article | None:
        """Return an article's metadata; None if it was removed after the inventory was made."""
        name = f"PMC{number}.{version}"
        address = f"{self.address}/metadata/{name}.json"
        try:
            body = self._client.get(address, limit=_LARGEST_METADATA).body
        except SourceError:
            return None
        try:
            article = msgspec.json.decode(body, type=Article)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(public_address(address), f"not the metadata of an article: {error}") from error
        if (article.pmcid, str(article.version)) != (f"PMC{number}", str(version)):
            problem = f"the metadata are those of {article.pmcid}.{article.version}"
            raise InputError(public_address(address), problem)
        return article

    def article_xml(self, number: int, version: int, md5: str | None) -> bytes | None:
        """Return an article in JATS XML, verified; None if it was removed after the inventory was made.

        Raises:
            DigestError: The MD5 is not that of the metadata.
            InputError: The content is no article.
        """
        name = f"PMC{number}.{version}"
        address = f"{self.address}/{name}/{name}.xml"
        try:
            body = self._client.get(address).body
        except SourceError:
            return None
        digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
        if md5 and digest != md5:
            raise DigestError(public_address(address), f"MD5 is {digest}, expected {md5}")
        start, end = body[: 64 << 10].lstrip(), body[-64:]
        if not start.startswith(_XML) or b"<article" not in start or b"</article>" not in end:
            raise InputError(public_address(address), f"not a JATS article: it begins with {body[:40]!r}")
        return body


def _parse_listing(address: str, body: bytes) -> ET.Element:
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise InputError(public_address(address), "a listing with declarations, or an HTML page")
    try:
        root = ET.fromstring(body)  # noqa: S314  # at most 8 MiB, and without declarations
    except ET.ParseError as error:
        raise InputError(public_address(address), f"not a listing of objects: {error}") from error
    if root.tag != f"{_NAMESPACE}ListBucketResult":
        raise InputError(public_address(address), f"not a listing of objects but <{root.tag[:60]}>")
    return root


def _parse_manifest(shown: str, body: bytes, date: str) -> Inventory:
    try:
        manifest = msgspec.json.decode(body)
        files = tuple({**file, "key": str(file["key"])} for file in manifest["files"])
        columns = tuple(name.strip() for name in manifest["fileSchema"].split(","))
        form = manifest.get("fileFormat", "CSV")
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
        raise InputError(shown, f"not the manifest of an inventory: {error}") from error
    missing = [name for name in ("Key", "ETag") if name not in columns]
    if form != "CSV" or missing or not files:
        problem = f"no column {missing[0]}" if missing else f"its format is {form}" if files else "no files"
        raise InputError(shown, f"an inventory that cannot be read: {problem}")
    return Inventory(date, files, columns)


def _require_file(part: Path, shown: str, file: dict[str, Any]) -> None:
    size, expected = part.stat().st_size, file.get("size")
    if expected is not None and size != expected:
        raise InputError(shown, f"has {size:,} bytes; the inventory's manifest says {expected:,}")
    md5 = str(file.get("MD5checksum", "")).lower()
    if _MD5.fullmatch(md5) and (digest := md5_file(part)) != md5:
        raise DigestError(shown, f"MD5 is {digest}, expected {md5}")


def _parse_inventory(path: Path, shown: str, columns: tuple[str, ...]) -> npt.NDArray[np.void]:
    """Return the rows of metadata objects; InputError for a damaged file or one without such rows."""
    key, etag = columns.index("Key"), columns.index("ETag")
    rows: list[tuple[int, int, bytes]] = []
    parts = []
    line = 0
    try:
        with gzip.open(path) as file:
            for line, row in enumerate(csv.reader(io.TextIOWrapper(file, "utf-8")), start=1):
                if len(row) != len(columns):
                    raise InputError(shown, f"{len(row)} columns, not {len(columns)}", place=f"line {line:,}")
                match = _METADATA_KEY.fullmatch(urllib.parse.unquote(row[key]))
                tag = _ETAG.fullmatch(row[etag])
                if match and tag:
                    rows.append((int(match[1]), int(match[2]), bytes.fromhex(tag[1])))
                if len(rows) == 100_000:  # tuples take ten times the memory of array rows
                    parts.append(np.array(rows, VERSION))
                    rows = []
    except (EOFError, OSError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise InputError(shown, f"a damaged inventory: {error}", place=f"line {line + 1:,}") from error
    parts.append(np.array(rows, VERSION))
    if not sum(map(len, parts)):
        raise InputError(shown, "an inventory without metadata objects")
    return np.concatenate(parts)
