"""A real HTTP server of a web site or of an object store, which can fail in all ways that servers do."""

import gzip
import hashlib
import json
import re
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """What one request gets instead of the page."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    """Bytes of the page after which the connection breaks."""


@dataclass
class Page:
    """A page, and the faults of its next requests."""

    body: bytes = b""
    kind: str = "application/octet-stream"
    location: str | None = None
    faults: list[Fault] = field(default_factory=list)


class Server(ThreadingHTTPServer):
    """The pages by path, and the requests that were made."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.route: Callable[[str, dict[str, str]], Page | None] = lambda path, query: None
        self.on_request: Callable[[int], None] = lambda count: None
        self.active = 0
        self.most_active = 0
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about clients that were killed."""

    @property
    def paths(self) -> Counter[str]:
        return Counter(path for path, _ in self.requests)


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        parts = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parts.path)
        with server.lock:
            server.requests.append((path, dict(self.headers.items())))
            count = len(server.requests)
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        try:
            server.on_request(count)
            page = server.pages.get(path) or server.route(path, dict(urllib.parse.parse_qsl(parts.query)))
            self.send(page or Page(b"", "text/html"), 404 if page is None else 200)
        finally:
            with server.lock:
                server.active -= 1

    def send(self, page: Page, status: int) -> None:
        with self.server.lock:
            fault = page.faults.pop(0) if page.faults else Fault()
        body, headers = page.body, {"Content-Type": page.kind, "ETag": f'"{md5(page.body)}"'}
        if fault.status is not None:
            status, body, headers = fault.status, fault.body, {"Content-Type": "text/html"} | fault.headers
        elif page.location is not None:
            status, body, headers = 302, b"", {"Location": page.location}
        elif span := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(span[1])
            if start >= len(body):
                status, headers["Content-Range"], body = 416, f"bytes */{len(body)}", b""
            elif self.headers.get("If-Range") in (None, headers["ETag"]):
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                status, body = 206, body[start:]
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if fault.cut is None else body[: fault.cut])
        if fault.cut is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()  # noqa: S324


# PubMed.


def medline(first: int, count: int, note: str = "") -> bytes:
    """A PubMed file of citations with consecutive ids."""
    articles = "".join(
        f'<PubmedArticle><MedlineCitation><PMID Version="1">{number}</PMID><Article><Journal><JournalIssue>'
        "<PubDate><Year>2020</Year></PubDate></JournalIssue><Title>A journal</Title></Journal>"
        f"<ArticleTitle>Title {number}</ArticleTitle><Abstract><AbstractText>Abstract {number} {note}"
        "</AbstractText></Abstract><Language>eng</Language></Article></MedlineCitation></PubmedArticle>\n"
        for number in range(first, first + count)
    )
    xml = f'<?xml version="1.0" encoding="utf-8"?>\n<PubmedArticleSet>\n{articles}</PubmedArticleSet>\n'
    return gzip.compress(xml.encode(), mtime=0)


def publish_pubmed(server: Server, name: str, files: dict[str, bytes]) -> None:
    """Publish files with their checksums and an index like Apache's."""
    rows = []
    for file, data in files.items():
        server.pages[f"/pubmed/{name}/{file}"] = Page(data)
        server.pages[f"/pubmed/{name}/{file}.md5"] = Page(f"MD5({file})= {md5(data)}\n".encode())
        size = f"{max(1, len(data) // 1024)}K"
        rows += [
            f'<a href="{file}">{file}</a>              2026-01-10 14:05  {size}  ',
            f'<a href="{file}.md5">{file}.md5</a>          2026-01-10 14:05   60   ',
        ]
    index = '<html><body><h1>Index of /pubmed</h1><pre><a href="/pubmed/">Parent Directory</a>\n'
    page = (index + "\n".join(rows) + "\n</pre></body></html>").encode()
    server.pages[f"/pubmed/{name}/"] = Page(page, "text/html")


# PMC.


@dataclass
class Article:
    """An article version of the bucket."""

    number: int
    version: int = 1
    licence: str = "CC BY"
    open_access: bool = True
    retracted: bool = False
    text: str = "A paragraph."

    @property
    def name(self) -> str:
        return f"PMC{self.number}.{self.version}"

    @property
    def xml(self) -> bytes:
        return (
            '<?xml version="1.0"?><article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta>'
            f'<article-id pub-id-type="pmc">{self.number}</article-id><title-group><article-title>Article '
            f"{self.number}</article-title></title-group></article-meta></front><body><p>{self.text}</p></body>"
            "</article>\n"
        ).encode()

    @property
    def metadata(self) -> bytes:
        address = f"s3://pmc-oa-opendata/{self.name}/{self.name}.xml?md5={md5(self.xml)}"
        values = {
            "pmcid": f"PMC{self.number}",
            "version": self.version,
            "pmid": self.number + 1,
            "is_pmc_openaccess": self.open_access,
            "is_retracted": self.retracted,
            "license_code": self.licence,
            "xml_url": address,
            "pdf_url": None,
        }
        return json.dumps(values).encode()


REPORTS = "inventory-reports/pmc-oa-opendata/metadata/"


def publish_bucket(server: Server, articles: list[Article], *, page_size: int = 2) -> None:
    """Publish a bucket: articles, metadata, an inventory in two files, and listings in pages."""
    pages = server.pages
    rows = []
    for article in articles:
        pages[f"/{article.name}/{article.name}.xml"] = Page(article.xml, "application/xml")
        pages[f"/metadata/{article.name}.json"] = Page(article.metadata, "application/json")
        row = ("pmc-oa-opendata", f"metadata/{article.name}.json", "2026-01-08T11:47:59.000Z")
        rows.append(",".join(f'"{value}"' for value in (*row, md5(article.metadata))))
    half = len(rows) // 2
    files = []
    for number, part in enumerate((rows[half:], rows[:half])):
        data = gzip.compress(("\n".join(part) + "\n" if part else "").encode(), mtime=0)
        key = f"{REPORTS}data/{number}.csv.gz"
        if part:
            pages[f"/{key}"] = Page(data)
            files.append({"key": key, "size": len(data), "MD5checksum": md5(data)})
    manifest = {
        "sourceBucket": "pmc-oa-opendata",
        "fileFormat": "CSV",
        "fileSchema": "Bucket, Key, LastModifiedDate, ETag",
        "files": files,
    }
    pages[f"/{REPORTS}2026-11-28T01-00Z/manifest.json"] = Page(json.dumps(manifest).encode())
    pages[f"/{REPORTS}2026-11-27T01-00Z/manifest.json"] = Page(b"an older one")
    pages[f"/{REPORTS}2026-11-29T01-00Z/symlink.txt"] = Page(b"without a manifest yet")
    pages[f"/{REPORTS}hive/dt=2026-11-28-01-00/symlink.txt"] = Page(b"")
    server.route = lambda path, query: _listing(pages, query, page_size) if path == "/" else _no_such_key()


def _no_such_key() -> Page:
    body = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>"
    return Page(b"", faults=[Fault(404, {"Content-Type": "application/xml"}, body)])


def _listing(pages: dict[str, Page], query: dict[str, str], page_size: int) -> Page:
    prefix = query["prefix"]
    found = sorted(
        {
            prefix + key[len(prefix) :].partition("/")[0] + "/"
            for key in (path.lstrip("/") for path in pages)
            if key.startswith(prefix) and "/" in key[len(prefix) :]
        }
    )
    start = int(query.get("continuation-token", "t0").removeprefix("t"))
    chosen, rest = found[start : start + page_size], found[start + page_size :]
    token = f"<NextContinuationToken>t{start + page_size}</NextContinuationToken>" if rest else ""
    prefixes = "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in chosen)
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>pmc-oa-opendata</Name><IsTruncated>{'true' if rest else 'false'}</IsTruncated>{token}"
        f"{prefixes}</ListBucketResult>"
    )
    return Page(xml.encode(), "application/xml")
