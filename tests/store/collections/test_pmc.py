import json
import tarfile
from pathlib import Path

import pytest

from meditron.core.errors import DigestError, FetchError, InputError, SourceError
from meditron.sources.provenance import provenance_rows
from meditron.store.collections.pmc import licence_group
from meditron.store.collections.records import MANIFEST
from meditron.store.fetch import fetch, preview_fetch
from store.collections.server import REPORTS, Article, Fault, Page, Server, publish_bucket

ARTICLES = [
    Article(13901),
    Article(13902, licence="CC BY-NC"),
    Article(13903, retracted=True),
    Article(13904, licence="TDM", open_access=False),
    Article(13905, version=1, text="The first version."),
    Article(13905, version=2, text="The second version."),
    Article(13906, licence="CC0"),
    Article(15000, licence="CC BY-ND"),
    Article(15001, licence="NO-CC CODE"),
    Article(13000000, text="μ" * 5000),
]


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*/articles.tar")):
        with tarfile.open(path) as archive:
            found |= {m.name: archive.extractfile(m).read() for m in archive.getmembers()}  # type: ignore[union-attr]
    return found


def test_articles_are_filtered_before_they_are_fetched(server: Server):
    publish_bucket(server, ARTICLES)
    folder = fetch("pmc:oa_comm")
    wanted = [a for a in ARTICLES if a.name in ("PMC13901.1", "PMC13905.2", "PMC13906.1", "PMC15000.1")]
    wanted.append(ARTICLES[-1])
    assert members(folder) == {f"{article.name}.xml": article.xml for article in wanted}
    fetched = {path for path in server.paths if path.endswith(".xml")}
    assert fetched == {f"/{article.name}/{article.name}.xml" for article in wanted}
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["resolved"] == {
        "address": server.url,
        "inventory": "2026-11-28T01-00Z",  # the newest one that has a manifest
        "articles": 9,  # the newest version of each
    }
    assert [(file["name"], file["records"]) for file in manifest["files"]] == [
        ("000006/articles.tar", 3),
        ("000007/articles.tar", 1),
        ("006500/articles.tar", 1),
    ]
    assert manifest["skipped"] == {
        "licence CC BY-NC": 1,
        "licence NO-CC CODE": 1,
        "not in the open access subset": 1,
        "retracted": 1,
    }
    # The licence of each article is beside its archive, where the readers look it up.
    assert provenance_rows(folder / "000006/articles.tar") == {
        f"PMC{name}.xml": {"licence": licence, "url": f"https://pmc.ncbi.nlm.nih.gov/articles/PMC{number}/"}
        for name, number, licence in (
            ("13901.1", 13901, "CC BY"),
            ("13905.2", 13905, "CC BY"),
            ("13906.1", 13906, "CC0"),
        )
    }


def test_all_pages_of_a_listing_are_read(server: Server):
    publish_bucket(server, ARTICLES, page_size=1)
    fetch("pmc:oa_noncomm")
    assert server.paths["/"] == 5  # prefixes: four reports and the folders data and hive, but one is shared


def test_faults_of_the_object_store_are_survived(server: Server):
    publish_bucket(server, ARTICLES)
    headers = {"Retry-After": "0", "Content-Type": "application/xml"}
    slow_down = Fault(503, headers, b"<Error><Code>SlowDown</Code></Error>")
    server.pages["/metadata/PMC13901.1.json"].faults = [slow_down, slow_down]
    big = "/PMC13000000.1/PMC13000000.1.xml"
    server.pages[big].faults = [Fault(cut=4000), Fault(cut=3000), slow_down]
    server.pages[f"/{REPORTS}data/0.csv.gz"].faults = [Fault(cut=20)]
    folder = fetch("pmc:oa_comm")
    assert members(folder)["PMC13000000.1.xml"] == ARTICLES[-1].xml
    ranges = [headers.get("Range") for path, headers in server.requests if path == big]
    assert ranges == [None, "bytes=4000-", "bytes=7000-", "bytes=7000-"]


@pytest.mark.parametrize(
    ("path", "page", "error", "message"),
    [
        ("/PMC13901.1/PMC13901.1.xml", b"<html><body>Sorry</body></html>", DigestError, "MD5 is"),
        ("/metadata/PMC13901.1.json", b"<html><body>Sorry</body></html>", InputError, "not the metadata"),
        ("/metadata/PMC13901.1.json", ARTICLES[1].metadata, InputError, "are those of PMC13902.1"),
        (f"/{REPORTS}data/0.csv.gz", b"<html>Sorry</html>", InputError, "an HTML page"),
        (f"/{REPORTS}data/0.csv.gz", b"\x1f\x8b\x08", InputError, "the inventory's manifest says"),
        (f"/{REPORTS}2026-11-28T01-00Z/manifest.json", b"<html>Sorry</html>", InputError, "not the manifest"),
    ],
)
def test_an_error_page_with_status_200_is_refused(
    server: Server, path: str, page: bytes, error: type[Exception], message: str
):
    publish_bucket(server, ARTICLES)
    right = server.pages[path]
    server.pages[path] = Page(page)
    with pytest.raises(error, match=message):
        fetch("pmc:oa_comm")
    server.pages[path] = right
    assert len(members(fetch("pmc:oa_comm"))) == 5


def test_a_listing_that_is_no_listing_is_refused(server: Server):
    publish_bucket(server, ARTICLES)
    for body, message in ((b"<html><p>Sorry</html>", "not a listing"), (b"<!DOCTYPE x><a/>", "declarations")):
        server.route = lambda path, query, body=body: Page(body, "text/html")  # type: ignore[misc]
        with pytest.raises(InputError, match=message):
            fetch("pmc:oa_comm")
    server.route = lambda path, query: None
    with pytest.raises(SourceError, match="no such file"):
        fetch("pmc:oa_comm")


def test_an_article_that_was_removed_since_the_inventory_is_counted(server: Server):
    publish_bucket(server, ARTICLES)
    del server.pages["/PMC13901.1/PMC13901.1.xml"], server.pages["/metadata/PMC13906.1.json"]
    manifest = json.loads((fetch("pmc:oa_comm") / MANIFEST).read_text())
    assert manifest["skipped"]["removed since the inventory"] == 2


def test_no_matching_article_is_an_error(server: Server):
    publish_bucket(server, [Article(5, retracted=True)])
    with pytest.raises(SourceError, match="no file is left") as raised:
        fetch("pmc:")
    assert raised.value.hint == "skipped: 1 retracted"


def test_the_next_snapshot_reuses_what_did_not_change(server: Server):
    publish_bucket(server, ARTICLES)
    first = fetch("pmc:oa_comm@one")
    changed = [*ARTICLES[:-1], Article(13000000, text="corrected")]
    publish_bucket(server, changed)
    server.requests.clear()
    second = fetch("pmc:oa_comm@two")
    expected = members(first) | {"PMC13000000.1.xml": changed[-1].xml}
    assert members(second) == expected
    assert [path for path in server.paths if path.endswith(".xml")] == ["/PMC13000000.1/PMC13000000.1.xml"]
    assert provenance_rows(second / "000006/articles.tar") == provenance_rows(first / "000006/articles.tar")
    one, two = (json.loads((folder / MANIFEST).read_text()) for folder in (first, second))
    assert one["skipped"] == two["skipped"]


def test_a_pattern_selects_articles_and_a_dry_run_names_the_inventory(server: Server):
    publish_bucket(server, ARTICLES)
    preview = preview_fetch("pmc:#PMC1500*")
    assert preview is not None
    assert "inventory of 2026-11-28T01-00Z" in str(preview.note)
    assert set(members(fetch("pmc:#PMC1500*"))) == {"PMC15000.1.xml", "PMC15001.1.xml"}


def test_a_busy_store_ends_the_run_and_the_next_continues(server: Server):
    publish_bucket(server, ARTICLES)
    last = server.pages["/metadata/PMC13000000.1.json"]
    last.faults = [Fault(503) for _ in range(50)]
    with pytest.raises(FetchError, match="the server answered 503"):
        fetch("pmc:oa_comm")
    last.faults.clear()
    assert len(members(fetch("pmc:oa_comm"))) == 5


@pytest.mark.parametrize(
    ("code", "group"),
    [
        ("CC BY", "oa_comm"),
        ("CC BY 4.0", "oa_comm"),
        ("cc-by-nd", "oa_comm"),
        ("CC0", "oa_comm"),
        ("CC0 1.0", "oa_comm"),
        ("CC-BY-SA-4.0", "oa_comm"),
        ("CC BY-NC-SA 3.0 IGO", "oa_noncomm"),
        ("CC BY-NC-ND", "oa_noncomm"),
        ("CC BY-NC", "oa_noncomm"),
        ("TDM", "oa_other"),
        (None, "oa_other"),
    ],
)
def test_licences_have_the_groups_of_nlm(code: str | None, group: str):
    assert licence_group(code) == group
