"""Collections that are killed while they are fetched, a full disk, and names of collections."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.errors import FetchError, SourceError, StorageError
from meditron.store.collections.records import MANIFEST, PROVENANCE
from meditron.store.collections.request import parse_collection
from meditron.store.fetch import fetch, parse_source, preview_fetch, public_source
from store.collections.server import Article, Fault, Page, Server, medline, publish_bucket, publish_pubmed

SOURCES = ("pubmed:", "pmc:oa_comm", "web:")


def publish_all(server: Server, tmp_path: Path) -> dict[str, str]:
    """Publish a collection of each kind; return the sources by their short names."""
    for name, start in (("baseline", 1), ("updatefiles", 4)):
        files = {f"pubmed26n{n:04}.xml.gz": medline(n * 100, 30) for n in range(start, start + 3)}
        publish_pubmed(server, name, files)
    articles = [Article(n * 700, licence="CC BY" if n % 3 else "CC BY-NC") for n in range(1, 12)]
    publish_bucket(server, articles)
    body = f"<!DOCTYPE html><title>Fever</title><p>{'Paracetamol lowers fever. ' * 20}</p>".encode()
    pages = [f"/page{n}.html" for n in range(8)]
    server.pages |= {page: Page(body + page.encode(), "text/html") for page in pages}
    server.pages["/robots.txt"] = Page(b"User-agent: *\nDisallow: /page3\n", "text/plain")
    addresses = json.dumps([f"{server.url}{page}" for page in pages])
    path = tmp_path / "list.toml"
    path.write_text(f'[[source]]\nname = "s"\nlicence = "CC0"\ndelay = 0\npages = {addresses}\n')
    return {"pubmed:": "pubmed:", "pmc:oa_comm": "pmc:oa_comm", "web:": f"web:{path}"}


def test_a_damaged_manifest_of_another_collection_stops_nothing(server: Server, tmp_path: Path):
    publish_pubmed(server, "baseline", {"pubmed26n0001.xml.gz": medline(100, 30)})
    other = tmp_path / "cache/collections/other"
    other.mkdir(parents=True)
    (other / MANIFEST).write_text('{"source": ')
    assert (fetch("pubmed:baseline") / MANIFEST).is_file()


def content(folder: Path) -> dict[str, object]:
    """Return all that does not depend on the time."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.name in (MANIFEST, PROVENANCE):
            lines = (
                [json.loads(line) for line in path.read_text().splitlines()]
                if path.suffix == ".jsonl"
                else []
            )
            values = lines or [json.loads(path.read_text())]
            found[str(path.relative_to(folder))] = [
                {key: value for key, value in row.items() if key not in ("fetched", "time")} for row in values
            ]
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_a_killed_fetch_continues_to_the_same_bytes(
    server: Server, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    source = publish_all(server, tmp_path)[name]
    monkeypatch.setenv("MEDITRON_FETCH_CONNECTIONS", "3")
    expected = content(fetch(source))
    requests = len(server.requests)
    monkeypatch.setenv("MEDITRON_CACHE", str(tmp_path / "killed"))
    command = [sys.executable, "-c", f"from meditron.store.fetch import fetch; fetch({source!r})"]
    seeded = random.Random(name)
    for _ in range(4):
        reached = threading.Event()
        moment = len(server.requests) + seeded.randrange(1, requests)
        server.on_request = lambda count, moment=moment, reached=reached: (  # type: ignore[misc]
            reached.set() if count >= moment else None
        )
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": ""})
        while process.poll() is None and not reached.wait(0.01):
            pass
        process.kill()
        process.wait()
    assert content(fetch(source)) == expected


def test_a_kill_leaves_no_half_written_file_under_its_name(server: Server, tmp_path: Path, cache: Path):
    publish_pubmed(server, "baseline", {"pubmed26n0001.xml.gz": medline(1, 2000)})
    page = server.pages["/pubmed/baseline/pubmed26n0001.xml.gz"]
    page.faults = [Fault(cut=500 + n) for n in range(1)] + [Fault(403)]
    with pytest.raises(FetchError, match="403"):
        fetch("pubmed:baseline")
    named = [path for path in cache.rglob("*pubmed26n0001.xml.gz") if ".fetch" not in path.parts]
    assert not named
    fetch("pubmed:baseline")
    ranges = [h.get("Range") for path, h in server.requests if path.endswith("n0001.xml.gz")]
    assert ranges == [None, "bytes=500-", "bytes=500-"]


def test_two_processes_fetch_a_collection_once(server: Server, tmp_path: Path):
    source = publish_all(server, tmp_path)["pubmed:"]
    command = [sys.executable, "-c", f"from meditron.store.fetch import fetch; fetch({source!r})"]
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert max(server.paths.values()) == 1


def test_a_full_disk_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
):
    source = publish_all(server, tmp_path)["pubmed:"]
    usage = shutil.disk_usage(tmp_path)._replace(free=2000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    preview = preview_fetch(source)
    assert preview is not None
    assert preview.missing_bytes == 6 * 1024 > preview.free_bytes
    with pytest.raises(StorageError, match=r"has 6\.\d+ kB to fetch, but only 2\.00 kB are free"):
        fetch(source)
    assert not list(cache.rglob("*.xml.gz"))


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("pubmed:baselines", "pubmed:baseline, pubmed:updatefiles"),
        ("pmc:oa", "pmc:oa_comm"),
        ("web:list.txt", "web:LIST.toml"),
        ("hf:datasets/", "hf:datasets/ORG/NAME"),
        ("pubmed:baseline@../..", "pubmed:baseline"),
    ],
)
def test_a_wrong_name_gets_the_right_form(text: str, form: str):
    with pytest.raises(SourceError, match="no such collection") as raised:
        parse_source(text)
    assert form in str(raised.value.hint)


def test_the_parts_of_a_name():
    request = parse_collection("pubmed", "baseline@2026#*n000?.xml.gz")
    assert (request.name, request.snapshot, request.pattern) == ("baseline", "2026", "*n000?.xml.gz")
    assert request.family == "pubmed:baseline#*n000?.xml.gz"
    assert request.public_name == "pubmed:baseline@2026#*n000?.xml.gz"
    assert parse_collection("web", "/a@b/c.toml@x").name == "/a@b/c.toml"
    assert public_source("pmc:oa_comm@2026") == "pmc:oa_comm@2026"


@given(st.sampled_from(["pubmed", "pmc", "hf", "web"]), st.text())
def test_any_text_is_a_collection_or_a_source_error(scheme: str, text: str):
    try:
        parse_source(f"{scheme}:{text}")
    except SourceError:
        return
