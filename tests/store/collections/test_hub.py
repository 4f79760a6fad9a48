import gzip
import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meditron.core.errors import DigestError, FetchError, InputError, SourceError
from meditron.store.collections.records import MANIFEST
from meditron.store.fetch import fetch, parse_source, preview_fetch, source_identity
from store.collections.server import Fault, Page, Server

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "hf:datasets/org/guidelines"


def parquet(rows: int) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [f"Row {n}" for n in range(rows)]}), buffer)
    return buffer.getvalue()


JSONL = b'{"text": "One."}\n{"text": "Two."}\n'
CARD = b"""---
license: cc-by-4.0
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
- config_name: who
  data_files: extra/who.jsonl
---
# Guidelines
"""
FILES = {
    "README.md": CARD,
    ".gitattributes": b"*.parquet filter=lfs\n",
    "data/train-00000-of-00002.parquet": parquet(30),
    "data/train-00001-of-00002.parquet": parquet(20),
    "data/test-00000-of-00001.parquet": parquet(5),
    "extra/who.jsonl": JSONL,
    "notes.csv.gz": gzip.compress(b"id,text\n1,a\n", mtime=0),
}


def publish(server: Server, files: dict[str, bytes] = FILES) -> None:
    siblings = []
    for name, data in files.items():
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324
        entry = {"rfilename": name, "size": len(data), "blobId": git}
        if name.endswith(".parquet"):
            digest = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"size": len(data), "sha256": digest, "pointerSize": 130}
            # Large files are on another server, as the hub has them.
            server.pages[f"/cdn/{digest}"] = Page(data)
            server.pages[f"/datasets/org/guidelines/resolve/{COMMIT}/{name}"] = Page(
                location=f"/cdn/{digest}"
            )
        else:
            server.pages[f"/datasets/org/guidelines/resolve/{COMMIT}/{name}"] = Page(data)
        siblings.append(entry)
    information = {"id": "org/guidelines", "sha": COMMIT, "siblings": siblings}
    for revision in ("main", "v1", COMMIT):
        body = json.dumps(information).encode()
        server.pages[f"/api/datasets/org/guidelines/revision/{revision}"] = Page(body, "application/json")
    server.pages["/api/datasets/org/guidelines"] = Page(body, "application/json")


def files_of(folder: Path) -> dict[str, bytes]:
    names = [file["name"] for file in json.loads((folder / MANIFEST).read_text())["files"]]
    return {name: (folder / name).read_bytes() for name in names}


def test_the_data_files_of_a_revision_are_fetched(server: Server):
    publish(server)
    folder = fetch(NAME)
    expected = {name: data for name, data in FILES.items() if name not in ("README.md", ".gitattributes")}
    assert files_of(folder) == expected
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["resolved"] == {"revision": COMMIT, "files": 5}
    assert [file["records"] for file in manifest["files"]] == [5, 30, 20, 2, None]


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        ("data/*.parquet", [name for name in FILES if name.startswith("data/")]),
        ("default/train", [name for name in FILES if "train" in name]),
        ("test", ["data/test-00000-of-00001.parquet"]),
        ("who/train", ["extra/who.jsonl"]),
    ],
)
def test_a_config_and_split_or_a_glob_select_files(server: Server, selection: str, names: list[str]):
    publish(server)
    assert set(files_of(fetch(f"{NAME}@v1#{selection}"))) == set(names)


def test_a_split_without_a_card_is_found_by_its_name(server: Server):
    publish(server, {name: data for name, data in FILES.items() if name != "README.md"})
    assert len(files_of(fetch(f"{NAME}#train"))) == 2


@pytest.mark.parametrize(
    "header",
    [
        b"configs: 5",
        b"configs: [{data_files: [{split: train, path: 5}]}]",
        b"configs: [{data_files: [{split: train, path: [7, data/train-*]}]}]",
        b"date: 2001-13-45",
        b"a: " + b"[" * 1_000,
    ],
)
def test_a_card_that_cannot_be_read_is_no_card(server: Server, header: bytes):
    publish(server, FILES | {"README.md": b"---\n" + header + b"\n---\n"})
    assert set(files_of(fetch(f"{NAME}#default/train"))) == {name for name in FILES if "train" in name}


def test_faults_are_survived_and_wrong_bytes_refused(server: Server):
    publish(server)
    name = "data/train-00000-of-00002.parquet"
    data = FILES[name]
    stored = server.pages[f"/cdn/{hashlib.sha256(data).hexdigest()}"]
    stored.faults = [Fault(cut=300), Fault(503, {"Retry-After": "0"}), Fault(cut=200)]
    assert files_of(fetch(f"{NAME}#{name}")) == {name: data}
    ranges = [headers.get("Range") for path, headers in server.requests if path.startswith("/cdn/")]
    assert ranges == [None, "bytes=300-", "bytes=300-", "bytes=500-"]
    stored.body = parquet(31)
    # A snapshot with the same checksum needs no download; another selection has no snapshot yet.
    assert files_of(fetch(f"{NAME}@v1#{name}")) == {name: data}
    with pytest.raises(DigestError, match="SHA-256 is"):
        fetch(f"{NAME}#default/train")
    server.pages[f"/datasets/org/guidelines/resolve/{COMMIT}/extra/who.jsonl"].body = JSONL[:-2] + b"!\n"
    with pytest.raises(DigestError, match="the Git id is"):
        fetch(f"{NAME}#who/train")
    server.pages[f"/datasets/org/guidelines/resolve/{COMMIT}/extra/who.jsonl"].body = b"<html>Sorry</html>"
    with pytest.raises(InputError, match="an HTML page"):
        fetch(f"{NAME}#who/train")


def test_the_commit_is_kept_when_a_run_continues(server: Server):
    publish(server)
    name = f"/datasets/org/guidelines/resolve/{COMMIT}/extra/who.jsonl"
    server.pages[name].faults = [Fault(503) for _ in range(20)]
    with pytest.raises(FetchError, match="503"):
        fetch(NAME)
    server.pages[name].faults.clear()
    # The branch has moved on.
    server.pages["/api/datasets/org/guidelines"] = Page(
        b'{"id": "org/guidelines", "sha": "f", "siblings": []}'
    )
    manifest = json.loads((fetch(NAME) / MANIFEST).read_text())
    assert manifest["resolved"]["revision"] == COMMIT


def test_what_is_missing_is_named(server: Server):
    publish(server)
    with pytest.raises(SourceError, match="no data file for #none/here") as raised:
        fetch(f"{NAME}#none/here")
    assert "extra/who.jsonl" in str(raised.value.hint)
    server.pages["/api/datasets/org/none"] = Page(
        faults=[Fault(404, {"X-Error-Code": "RepoNotFound"}, b"{}") for _ in range(9)]
    )
    with pytest.raises(SourceError, match="no such dataset on the hub"):
        fetch("hf:datasets/org/none")
    publish(server, {"README.md": CARD})
    with pytest.raises(SourceError, match="no Parquet, JSON, CSV or text file"):
        fetch(f"{NAME}@v1")


def test_a_path_out_of_the_dataset_is_refused(server: Server, cache: Path):
    publish(server, FILES | {"../evil.jsonl": JSONL})
    with pytest.raises(InputError, match="leads outside"):
        fetch(NAME)
    assert not list(cache.rglob("evil.jsonl"))


def test_a_dry_run_knows_the_sizes(server: Server):
    publish(server)
    preview = preview_fetch(f"{NAME}#default/train")
    assert preview is not None
    assert preview.missing_bytes == sum(len(data) for name, data in FILES.items() if "train" in name)


def test_the_revision_is_part_of_the_identity():
    assert source_identity(f"{NAME}@{COMMIT}#who/train") == f"{NAME}@{COMMIT}#who/train"
    assert parse_source("hf:org/name:config.json").collection is None
    with pytest.raises(SourceError, match="no such collection"):
        parse_source("hf:datasets/org/name@../../x")
