"""PMC's open access articles, from NLM's bucket in object storage: filtered first, packed in tar files.

The daily inventory lists all articles; the metadata of each state its licence and whether it is retracted.
Only the XML of those that pass is downloaded. `pmc:` has three groups, as NLM names them:

- `oa_comm`: licences that permit commercial use (CC0, CC BY, CC BY-SA, CC BY-ND),
- `oa_noncomm`: those with a clause against it (CC BY-NC, CC BY-NC-SA, CC BY-NC-ND),
- `oa_other`: all other articles of the open access subset.

A pattern (`pmc:oa_comm#PMC1300*`) selects article ids. A million small files would burden every file system,
so the articles of 2,000 consecutive ids become one tar file, `NNNNNN/articles.tar`, which readers open
without unpacking. A tar file is written when all of its articles are there; the next snapshot reuses it if
the metadata of none of them changed.

`$MEDITRON_PMC_URL` is the address of the bucket or of a mirror.
"""

import hashlib
import io
import re
import tarfile
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from meditron.core.console import info
from meditron.core.redaction import public_address
from meditron.core.units import format_bytes
from meditron.store.collections.pmc_bucket import Article, Bucket
from meditron.store.collections.records import FetchedItem, Item
from meditron.store.collections.request import CollectionRequest
from meditron.store.collections.web_client import Throttle, WebClient, connection_count
from meditron.store.collections.workplace import Workplace
from meditron.store.download import DownloadOptions
from meditron.store.files import atomic_write, translate_write_errors

__all__ = ["PmcFetcher", "licence_group"]

_CONNECTIONS = 16  # object storage answers thousands of requests per second; latency is the limit
_RATE = 500.0
_SHARD_IDS = 2_000  # consecutive PMC ids, of which about 60 % exist: 1,200 articles, 80 MB
_SHARDS_AT_ONCE = 3  # while the last articles of one arrive, those of the next are requested
_VERSION = re.compile(r"[ -][0-9](?:\.[0-9])?(?: .*)?$")  # some codes have one: CC BY 4.0, CC0 1.0
_COMMERCIAL = frozenset({"CC0", "CC BY", "CC BY-SA", "CC BY-ND"})
_NONCOMMERCIAL = frozenset({"CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND"})


@dataclass(frozen=True, slots=True)
class _Fetched:
    """The result for one article: its XML and licence, or the reason why it is skipped."""

    name: str
    xml: bytes = b""
    licence: str | None = None
    address: str = ""
    reason: str | None = None


def licence_group(code: str | None) -> str:
    """Return NLM's group of a licence code: `oa_comm`, `oa_noncomm` or `oa_other`."""
    plain = _VERSION.sub("", (code or "").upper().replace("CC-", "CC ").strip())
    if plain in _COMMERCIAL:
        return "oa_comm"
    return "oa_noncomm" if plain in _NONCOMMERCIAL else "oa_other"


class PmcFetcher:
    """Fetches PMC's open access articles."""

    def __init__(self, request: CollectionRequest) -> None:
        self._request = request
        connections = connection_count(_CONNECTIONS)
        self.workers = _SHARDS_AT_ONCE
        self._throttle = Throttle(_RATE)
        self._client = WebClient(self._throttle, connections)
        self._bucket = Bucket(self._client)
        self._window = 2 * connections
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="article")
        self._lock = threading.Lock()
        self._versions: dict[Path, Any] = {}

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def plan(self, work: Path) -> tuple[list[Item], dict[str, Any]]:
        """Read the inventory and divide its articles into tar files."""
        inventory = self._bucket.newest_inventory()
        info(f"{self._request.public_name}: inventory of {inventory.date}, {format_bytes(inventory.bytes)}")
        rows = self._bucket.read_inventory(
            inventory, work, DownloadOptions(before_request=self._throttle.wait)
        )
        if pattern := self._request.pattern:
            rows = rows[[fnmatchcase(f"PMC{number}", pattern) for number in rows["id"].tolist()]]
        with atomic_write(work / "versions.npy") as file:
            np.save(file, rows, allow_pickle=False)
        shards = rows["id"] // _SHARD_IDS
        starts = np.flatnonzero(np.diff(shards, prepend=-1))
        ends = [*starts[1:].tolist(), len(rows)]
        items = []
        for start, end in zip(starts.tolist(), ends, strict=True):
            digest = hashlib.sha256(f"{self._request.name}\n".encode() + rows[start:end].tobytes())
            data = {"start": start, "end": end, "checksum": digest.hexdigest()}
            items.append(Item(f"{int(shards[start]):06d}/articles.tar", None, data))
        resolved = {"address": public_address(self._bucket.address), "inventory": inventory.date}
        return items, resolved | {"articles": len(rows)}

    def preview(self) -> tuple[list[Item], str | None]:
        """Describe the inventory; its articles are known when it has been downloaded."""
        inventory = self._bucket.newest_inventory()
        note = (
            f"the inventory of {inventory.date} ({format_bytes(inventory.bytes)}) lists the articles; "
            "their licences and sizes are known while they are fetched"
        )
        return [], note

    def fetch(self, item: Item, place: Workplace) -> FetchedItem:
        """Fetch the articles of one tar file, in the order of their ids."""
        if (reused := place.reuse(item.name, item.data["checksum"])) is not None:
            return FetchedItem(files=[reused], provenance=place.previous_provenance(item.name))
        part = place.part(item.name)
        skipped: Counter[str] = Counter()
        rows: list[dict[str, Any]] = []
        with translate_write_errors(part), tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as archive:
            for article in self._articles(item, place):
                if article.reason:
                    skipped[article.reason] += 1
                    continue
                header = tarfile.TarInfo(f"{article.name}.xml")
                header.size = len(article.xml)  # no time and no owner: the same articles give the same bytes
                archive.addfile(header, io.BytesIO(article.xml))
                digest = hashlib.sha256(article.xml).hexdigest()
                name = f"{item.name}!{header.name}"
                rows.append({"name": name, "url": article.address, "sha256": digest})
                rows[-1] |= {"licence": article.licence} if article.licence else {}
        if not rows:
            part.unlink()
            return FetchedItem(skipped=dict(skipped))
        checksum = item.data["checksum"]
        entry = place.install(part, item.name, records=len(rows), checksum=checksum, skipped=skipped)
        return FetchedItem(files=[entry], provenance=rows)

    def _articles(self, item: Item, place: Workplace) -> Iterator[_Fetched]:
        """Yield the articles of a tar file in order; a limited number of them is in memory."""
        rows = self._load_versions(place.work)[item.data["start"] : item.data["end"]]
        waiting = iter(rows[["id", "version"]].tolist())
        running: deque[Future[_Fetched]] = deque()
        try:
            while True:
                for number, version in islice(waiting, self._window - len(running)):
                    running.append(self._pool.submit(self._article, number, version, place))
                if not running:
                    return
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()

    def _load_versions(self, work: Path) -> Any:  # noqa: ANN401  # a memory-mapped array of VERSION
        with self._lock:
            path = work / "versions.npy"
            if path not in self._versions:
                self._versions[path] = np.load(path, mmap_mode="r", allow_pickle=False)
            return self._versions[path]

    def _article(self, number: int, version: int, place: Workplace) -> _Fetched:
        name = f"PMC{number}.{version}"
        article = self._bucket.article(number, version)
        if article is None:
            return _Fetched(name, reason="removed since the inventory")
        if reason := self._reason_to_skip(article):
            return _Fetched(name, reason=reason)
        xml = self._bucket.article_xml(number, version, article.xml_md5)
        if xml is None:
            return _Fetched(name, reason="removed since the inventory")
        place.count(len(xml))
        address = f"https://pmc.ncbi.nlm.nih.gov/articles/PMC{number}/"
        return _Fetched(name, xml, article.license_code, address)

    def _reason_to_skip(self, article: Article) -> str | None:
        if not article.is_pmc_openaccess:
            return "not in the open access subset"
        if article.is_retracted:
            return "retracted"
        if self._request.name and licence_group(article.license_code) != self._request.name:
            return f"licence {article.license_code or 'not stated'}"
        return None if article.xml_url else "no XML"
