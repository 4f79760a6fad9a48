import gzip
import json
from pathlib import Path

import pytest

from meditron.core.errors import DigestError, FetchError, InputError, SourceError
from meditron.sources.registry import open_source
from meditron.store.collections.pubmed import count_citations
from meditron.store.collections.records import MANIFEST
from meditron.store.fetch import fetch, fetch_without_download, preview_fetch
from store.collections.server import Fault, Page, Server, md5, medline, publish_pubmed

BASELINE = {f"pubmed26n{n:04}.xml.gz": medline(n * 100, 40 + n) for n in range(1, 6)}
UPDATES = {f"pubmed26n{n:04}.xml.gz": medline(n * 100, 10, "new") for n in range(6, 8)}


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / MANIFEST).read_text())


def test_both_sets_become_one_folder_that_the_reader_reads(server: Server):
    publish_pubmed(server, "baseline", BASELINE)
    publish_pubmed(server, "updatefiles", UPDATES)
    folder = fetch("pubmed:")
    manifest = manifest_of(folder)
    expected = {f"baseline/{name}": data for name, data in BASELINE.items()}
    expected |= {f"updatefiles/{name}": data for name, data in UPDATES.items()}
    assert {path: (folder / path).read_bytes() for path in expected} == expected
    assert [file["name"] for file in manifest["files"]] == sorted(expected)
    assert manifest["records"] == sum(41 + n for n in range(5)) + 20
    documents = [d.id for path in sorted(expected) for d in open_source(folder / path)]
    assert len(documents) == manifest["records"]
    assert not (folder / ".fetch").exists()
    requests = len(server.requests)
    assert fetch("pubmed:") == fetch_without_download("pubmed:") == folder
    assert len(server.requests) == requests


def test_faults_of_the_server_are_survived(server: Server):
    publish_pubmed(server, "baseline", BASELINE)
    one, two, three = list(BASELINE)[:3]
    server.pages[f"/pubmed/baseline/{one}"].faults = [Fault(503, {"Retry-After": "0"}), Fault(cut=100)]
    server.pages[f"/pubmed/baseline/{two}.md5"].faults = [Fault(429), Fault(cut=10)]
    server.pages[f"/pubmed/baseline/{three}"].faults = [Fault(cut=50), Fault(cut=60)]
    folder = fetch("pubmed:baseline")
    assert {path.name: path.read_bytes() for path in (folder / "baseline").iterdir()} == BASELINE
    ranges = [headers["Range"] for path, headers in server.requests if "Range" in headers and one in path]
    assert ranges == ["bytes=100-"]
    agents = {headers["User-Agent"] for _, headers in server.requests}
    assert all(agent.startswith("meditron/") and "+https://" in agent for agent in agents)


@pytest.mark.parametrize("suffix", ["", ".md5"])
def test_a_server_that_stays_busy_ends_the_run(server: Server, suffix: str):
    publish_pubmed(server, "baseline", BASELINE)
    page = server.pages[f"/pubmed/baseline/{min(BASELINE)}{suffix}"]
    page.faults = [Fault(503, {"Retry-After": "0"}) for _ in range(100)]
    with pytest.raises(FetchError, match="the server answered 503"):
        fetch("pubmed:baseline")
    assert len(page.faults) > 90


def test_no_more_connections_than_asked_for(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEDITRON_FETCH_CONNECTIONS", "2")
    publish_pubmed(server, "baseline", BASELINE)
    fetch("pubmed:baseline")
    assert server.most_active <= 2


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"<!DOCTYPE html><html><title>Error</title></html>", InputError, "an HTML page"),
        (medline(1, 3)[:-9], DigestError, "MD5 is"),
    ],
)
def test_an_error_page_or_a_cut_file_with_status_200_is_refused(
    server: Server, body: bytes, error: type[Exception], message: str, cache: Path
):
    publish_pubmed(server, "baseline", BASELINE)
    name = list(BASELINE)[1]
    server.pages[f"/pubmed/baseline/{name}"] = Page(body)
    with pytest.raises(error, match=f"baseline/{name}.*{message}"):
        fetch("pubmed:baseline")
    assert not list(cache.glob(f"collections/*/{MANIFEST}"))
    assert not list(cache.glob(f"collections/*/baseline/{name}"))
    # The other files are kept, and the same command continues.
    server.pages[f"/pubmed/baseline/{name}"] = Page(BASELINE[name])
    folder = fetch("pubmed:baseline")
    assert {path.name: path.read_bytes() for path in (folder / "baseline").iterdir()} == BASELINE
    assert server.paths[f"/pubmed/baseline/{next(iter(BASELINE))}"] == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"<html>" + b"x" * 999), "no element PubmedArticleSet"),
        (gzip.compress(b"<PubmedArticleSet></PubmedArticleSet>"), "contains no citation"),
        (gzip.compress(gzip.decompress(medline(1, 2))[:-30]), "ends before"),
        (medline(1, 200)[:-100], "cut off"),
        (medline(1, 200)[:700] + b"\0" * 50 + medline(1, 200)[750:], "cannot be decompressed|cut off"),
        (gzip.compress(b""), "ends before"),
    ],
    # gzip writes the time of day: identifiers made from the bytes would differ between two workers.
    ids=["an HTML page", "no citation", "the end is missing", "cut off", "zeros inside", "empty"],
)
def test_a_right_checksum_does_not_excuse_wrong_content(server: Server, data: bytes, message: str):
    publish_pubmed(server, "baseline", {"pubmed26n0001.xml.gz": data})
    with pytest.raises(InputError, match=message):
        fetch("pubmed:baseline")


def test_citations_are_counted_over_piece_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.xml.gz").write_bytes(medline(1, 300))
    for size in (7, 15, 16, 17, 1000):
        monkeypatch.setattr("meditron.store.collections.pubmed._PIECE", size)
        if size < 64:  # the root must be in the first piece; it is one of 64 KiB and more
            monkeypatch.setattr("meditron.store.collections.pubmed._ROOT", __import__("re").compile(rb""))
        assert count_citations(tmp_path / "a.xml.gz", "a") == 300


def test_a_snapshot_reuses_unchanged_files_and_refuses_shrunken_ones(server: Server):
    publish_pubmed(server, "updatefiles", UPDATES)
    first = fetch("pubmed:updatefiles@november")
    more = UPDATES | {"pubmed26n0008.xml.gz": medline(800, 300)}
    publish_pubmed(server, "updatefiles", more)
    second = fetch("pubmed:updatefiles@december")
    assert first != second
    assert {path.name: path.read_bytes() for path in (second / "updatefiles").iterdir()} == more
    assert all(server.paths[f"/pubmed/updatefiles/{name}"] == 1 for name in more)
    # The new year's file of the same number is much smaller.
    publish_pubmed(server, "updatefiles", {"pubmed27n0008.xml.gz": medline(800, 1)})
    with pytest.raises(InputError, match="the previous snapshot's updatefiles/pubmed26n0008"):
        fetch("pubmed:updatefiles@january")


def test_the_digest_of_a_collection_can_be_pinned(server: Server):
    publish_pubmed(server, "updatefiles", UPDATES)
    digest = manifest_of(fetch("pubmed:updatefiles"))["digest"]
    assert fetch(f"pubmed:updatefiles@sha256:{digest}") == fetch("pubmed:updatefiles")
    with pytest.raises(DigestError, match=f"SHA-256 is {digest}"):
        fetch(f"pubmed:updatefiles@sha256:{'a' * 64}")


def test_a_file_that_was_lost_is_fetched_again(server: Server):
    publish_pubmed(server, "updatefiles", UPDATES)
    folder = fetch("pubmed:updatefiles")
    lost = folder / "updatefiles" / next(iter(UPDATES))
    lost.unlink()
    assert fetch_without_download("pubmed:updatefiles") is None
    assert fetch("pubmed:updatefiles") == folder
    assert lost.read_bytes() == UPDATES[lost.name]


def test_a_dry_run_lists_files_sizes_and_free_space(server: Server, cache: Path):
    publish_pubmed(server, "baseline", BASELINE)
    preview = preview_fetch("pubmed:baseline#*n000[12].xml.gz")
    assert preview is not None
    assert (preview.files, preview.missing_files, preview.missing_bytes) == (2, 2, 2048)
    assert preview.free_bytes > 0
    assert not cache.exists()
    assert list(server.paths) == ["/pubmed/baseline/"]
    fetch("pubmed:baseline#*n000[12].xml.gz")
    assert preview_fetch("pubmed:baseline#*n000[12].xml.gz") is None


def test_an_index_without_files_is_an_error(server: Server):
    server.pages["/pubmed/baseline/"] = Page(b"<html><title>Service interruption</title></html>", "text/html")
    with pytest.raises(SourceError, match="not an index of PubMed's files"):
        fetch("pubmed:baseline")
    publish_pubmed(server, "baseline", BASELINE)
    with pytest.raises(SourceError, match="lists no file pubmed99"):
        fetch("pubmed:baseline#pubmed99*")


def test_a_server_that_stays_away_ends_the_run_with_one_line(server: Server):
    publish_pubmed(server, "baseline", BASELINE)
    name = next(iter(BASELINE))
    server.pages[f"/pubmed/baseline/{name}"].faults = [Fault(503) for _ in range(20)]
    with pytest.raises(FetchError, match="the server answered 503"):
        fetch("pubmed:baseline")
    server.pages[f"/pubmed/baseline/{name}"].faults.clear()
    assert md5((fetch("pubmed:baseline") / "baseline" / name).read_bytes()) == md5(BASELINE[name])
