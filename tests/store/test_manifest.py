import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from meditron.core.errors import InputError
from meditron.store.manifest import (
    FILE_NAME,
    Manifest,
    fingerprint,
    read_manifest,
    record_files,
    verify_artifact,
    write_manifest,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def make(folder: Path, **changes: Any) -> Manifest:
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "sub/rows.jsonl").write_bytes(b"{}\n")
    (folder / "report.html").write_text(changes.pop("report", "at noon"))
    payload = changes.pop("payload", {"config": {"tokens": 1}, "version": 1})
    known = {"kind": "pretrain", "name": "pretrain", "config": {"tokens": 1}, "started": NOW, "ended": NOW}
    return Manifest(
        fingerprint=fingerprint(payload), payload=payload, files=record_files(folder), **(known | changes)
    )


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path):
    manifest = make(tmp_path, metrics={"loss": 2.5}, machine={"cpu": "x"}, beside={"threads": 2})
    assert read_manifest(tmp_path) is None
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert [record.path for record in manifest.files] == [
        "model.safetensors",
        "report.html",
        "sub/rows.jsonl",
    ]


def test_times_hosts_and_reports_do_not_move_the_digest(tmp_path: Path):
    one = make(tmp_path / "one")
    later = NOW + timedelta(days=1)
    two = make(tmp_path / "two", report="at midnight", started=later, ended=later, machine={"cpu": "other"})
    assert one.digest == two.digest


def test_content_and_fingerprint_move_the_digest(tmp_path: Path):
    digests = {make(tmp_path).digest, make(tmp_path, payload={"version": 2}).digest}
    manifest = make(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    digests.add(manifest.model_copy(update={"files": record_files(tmp_path)}).digest)
    assert len(digests) == 3


def test_check_names_what_is_missing_resized_or_altered(tmp_path: Path):
    assert verify_artifact(tmp_path) == ["manifest.json is missing"]
    write_manifest(tmp_path, make(tmp_path))
    assert verify_artifact(tmp_path, hashes=True) == []
    weights = tmp_path / "model.safetensors"
    written = weights.stat()
    weights.write_bytes(b"WEIGHTS")  # other weights of the same size
    assert verify_artifact(tmp_path) == ["model.safetensors has a different SHA-256 than when it was built"]
    os.utime(weights, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert verify_artifact(tmp_path) == []  # with its time put back only every byte tells
    assert verify_artifact(tmp_path, hashes=True) == [
        "model.safetensors has a different SHA-256 than when it was built"
    ]
    (tmp_path / "model.safetensors").write_bytes(b"more weights")
    (tmp_path / "sub/rows.jsonl").unlink()
    assert verify_artifact(tmp_path) == [
        "model.safetensors has 12 bytes instead of 7",
        "sub/rows.jsonl is missing",
    ]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"fingerprint": "abc"}, "fingerprint"),
        ({"files": [{"path": "../x", "bytes": 1, "sha256": "0" * 64}]}, "files.0.path"),
        ({"files": [{"path": "/etc/passwd", "bytes": 1, "sha256": "0" * 64}]}, "files.0.path"),
        ({"unknown": 1}, "unknown"),
        ({"started": "noon"}, "started"),
    ],
)
def test_a_damaged_manifest_is_an_input_error_with_the_field(
    tmp_path: Path, change: dict[str, Any], place: str
):
    write_manifest(tmp_path, make(tmp_path))
    path = tmp_path / FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=place):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "null", '{"kind": "x"}', "{"])
def test_a_manifest_that_is_none_is_an_input_error(tmp_path: Path, content: str):
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        verify_artifact(tmp_path)


def test_a_fingerprint_refuses_what_is_not_plain():
    with pytest.raises(TypeError, match=r"\$\.config\.path has the type PosixPath"):
        fingerprint({"config": {"path": Path("x")}})
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_a_name_that_is_no_utf_8_is_named(tmp_path: Path):
    (tmp_path / os.fsdecode(b"caf\xe9")).touch()
    with pytest.raises(InputError, match="the file name is not UTF-8"):
        record_files(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"metrics": {', '"metrics": {"x": NaN, '), "NaN"),
        (lambda text: text.replace('"kind":', '"kind": "other", "kind":'), "duplicate key"),
        (
            lambda text: text.replace('"metrics": {', '"metrics": {"x": ' + "[" * 200 + "]" * 200 + ", "),
            "levels",
        ),
        (lambda text: text.replace('"metrics": {', '"metrics": {"x": ' + "[" * 9_000 + ", "), "not JSON"),
        (lambda text: text.replace("+00:00", "").replace("Z", ""), "timezone"),
        (lambda text: text.replace('"payload": {', '"payload": {"x": 1, '), "fingerprint"),
    ],
)
def test_a_manifest_that_was_altered_is_an_input_error(
    tmp_path: Path, change: Callable[[str], str], message: str
):
    write_manifest(tmp_path, make(tmp_path, metrics={"loss": 2.5}))
    path = tmp_path / FILE_NAME
    text = path.read_text()
    altered = change(text)
    assert altered != text
    path.write_text(altered)
    with pytest.raises(InputError, match=message) as raised:
        read_manifest(tmp_path)
    assert "\n" not in str(raised.value)
