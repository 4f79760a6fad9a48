"""Pages and PDFs of a web list, fetched one by one with regard for robots.txt.

Each file is `SOURCE/NAME-HASH.html` or `.pdf`; its address, the address after redirects, its time, its
SHA-256 and its licence are in `SOURCE/provenance.jsonl`. A page that must not or cannot become a document is
listed in the manifest with its reason (`refused`): forbidden by robots.txt, not found, an error page with
status 200, HTML where a PDF was promised. A server that cannot be reached ends the run, which can be
continued.
"""

import hashlib
import re
import threading
import urllib.parse
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meditron.core.console import info
from meditron.core.errors import FetchError, MissingExtra, SourceError
from meditron.core.redaction import public_address
from meditron.store.collections.records import FetchedItem, Item
from meditron.store.collections.request import CollectionRequest
from meditron.store.collections.web_client import (
    RefusedError,
    Throttle,
    WebClient,
    connection_count,
    same_site,
)
from meditron.store.collections.web_list import WebSource, read_web_list
from meditron.store.collections.web_page import Page, PageError, check_page, page_links
from meditron.store.collections.workplace import Workplace
from meditron.store.download import user_agent
from meditron.store.files import atomic_write

if TYPE_CHECKING:
    from protego import Protego

__all__ = ["WebFetcher"]

_CONNECTIONS = 4
_RATE = 10.0  # requests per second and host, if neither the list nor robots.txt asks for a longer delay
_LARGEST_ROBOTS = 512 << 10  # RFC 9309 asks crawlers to read at least 500 KiB
_LARGEST_FILE = 128 << 20
_ROBOTS_ABSENT = frozenset({400, 401, 402, 403, 404, 405, 406, 410, 451})


class _Robots:
    """The robots.txt of each host (RFC 9309); one that is absent allows everything."""

    def __init__(self, client: WebClient, throttle: Throttle) -> None:
        try:
            from protego import Protego
        except ImportError as error:
            raise MissingExtra("protego", "corpus") from error
        self._parse = Protego.parse
        self._client, self._throttle = client, throttle
        self._rules: dict[str, Protego] = {}
        self._lock = threading.Lock()

    def refuse(self, address: str) -> None:
        """Raise PageError if robots.txt forbids the address; FetchError if robots.txt cannot be read."""
        if not self._of(address).can_fetch(address, user_agent()):
            raise PageError("forbidden by robots.txt")

    def _of(self, address: str) -> "Protego":
        parts = urllib.parse.urlsplit(address)
        site = f"{parts.scheme}://{parts.netloc}"
        with self._lock:  # one request for each host, although several threads need its answer
            if site not in self._rules:
                self._rules[site] = rules = self._fetch(site)
                if delay := rules.crawl_delay(user_agent()):
                    self._throttle.slow_down(address, float(delay))
            return self._rules[site]

    def _fetch(self, site: str) -> "Protego":
        address = f"{site}/robots.txt"
        try:
            response = self._client.get(address, limit=_LARGEST_ROBOTS, accept=_ROBOTS_ABSENT)
        except SourceError:
            return self._parse("")
        except FetchError as error:
            # A busy server allows nothing: its rules are unknown.
            error.hint = "robots.txt cannot be read, so nothing of this host is fetched; try again later"
            raise
        text = response.body.decode("utf-8", "replace")
        return self._parse("" if re.match(r"\s*<", text) else text)


class WebFetcher:
    """Fetches the files of a web list."""

    def __init__(self, request: CollectionRequest) -> None:
        self._request = request
        self._sources = {source.name: source for source in read_web_list(Path(request.name))}
        self.workers = connection_count(_CONNECTIONS)
        self._throttle = Throttle(_RATE)
        self._client = WebClient(self._throttle, self.workers)
        self._robots = _Robots(self._client, self._throttle)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def plan(self, work: Path) -> tuple[list[Item], dict[str, Any]]:
        """List the addresses of the list, and those of the links on its index pages."""
        self._set_delays()
        items = [
            _item(source, address)
            for source in self._sources.values()
            for address in dict.fromkeys((*source.pages, *self._linked(source)))
        ]
        return self._ordered(items), {"sources": len(self._sources), "addresses": len(items)}

    def preview(self) -> tuple[list[Item], str | None]:
        """List the addresses of the list; index pages are not requested."""
        items = [_item(source, address) for source in self._sources.values() for address in source.pages]
        index = sum(len(source.index) for source in self._sources.values())
        return self._ordered(items), f"and the links of {index:,} index pages" if index else None

    def _ordered(self, items: Iterable[Item]) -> list[Item]:
        """Return the selected items, alternating between hosts, so that no host gets all connections."""
        pattern = self._request.pattern or "*"
        by_host: dict[str, deque[Item]] = {}
        for item in items:
            if fnmatchcase(item.name, pattern):
                host = urllib.parse.urlsplit(item.data["address"]).netloc
                by_host.setdefault(host, deque()).append(item)
        ordered = []
        while by_host:
            for host in list(by_host):
                ordered.append(by_host[host].popleft())
                if not by_host[host]:
                    del by_host[host]
        return ordered

    def _set_delays(self) -> None:
        for source in self._sources.values():
            for address in (*source.pages, *source.index):
                self._throttle.slow_down(address, source.delay)

    def _linked(self, source: WebSource) -> list[str]:
        found = []
        for address in source.index:
            try:
                self._robots.refuse(address)
            except PageError as error:
                raise SourceError(f"{public_address(address)}: {error}") from error
            response = self._client.get(address, limit=_LARGEST_FILE, check_redirect=self._check_redirect)
            links = [link for link in page_links(response) if same_site(link, response.address)]
            found += [link for link in links if re.search(source.follow or "", link)]
        return found

    def fetch(self, item: Item, place: Workplace) -> FetchedItem:
        """Fetch one page or PDF; one that must not become a document is recorded with its reason."""
        self._set_delays()
        address, source = item.data["address"], self._sources[item.data["source"]]
        try:
            self._robots.refuse(address)
            response = self._client.get(
                address, limit=_LARGEST_FILE, accept=_ROBOTS_ABSENT, check_redirect=self._check_redirect
            )
            promised = source.kind or ("pdf" if _path(address).lower().endswith(".pdf") else None)
            page = check_page(response, promised, source.error_titles, source.min_characters)
        except (PageError, RefusedError) as error:
            reason = str(error).removeprefix(f"{public_address(address)}: ")
            info(f"{public_address(address)}: skipped: {reason}")
            return FetchedItem(refused=[{"url": public_address(address), "reason": reason}])
        place.count(len(page.body))
        return _store(item, source, response.address, page, place)

    def _check_redirect(self, address: str, target: str) -> None:
        """Raise if robots.txt of the target's host forbids a redirect's target."""
        self._robots.refuse(target)


def _store(item: Item, source: WebSource, final: str, page: Page, place: Workplace) -> FetchedItem:
    name = f"{item.name}.{page.kind}"
    part = place.part(name)
    with atomic_write(part) as file:
        file.write(page.body)
    entry = place.install(part, name, records=1)
    row = {"name": name, "url": public_address(item.data["address"])}
    if final != item.data["address"]:
        row["final_url"] = public_address(final)
    row |= {"time": datetime.now(UTC).isoformat(timespec="seconds"), "sha256": entry.sha256}
    return FetchedItem(files=[entry], provenance=[row | {"licence": source.licence}])


def _item(source: WebSource, address: str) -> Item:
    stem = re.sub(r"\.(?:html?|pdf|php|aspx?)$", "", _path(address).rstrip("/").rsplit("/", 1)[-1].lower())
    readable = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:60] or "index"
    digest = hashlib.sha256(address.encode()).hexdigest()[:10]
    return Item(f"{source.name}/{readable}-{digest}", None, {"address": address, "source": source.name})


def _path(address: str) -> str:
    return urllib.parse.unquote(urllib.parse.urlsplit(address).path)
