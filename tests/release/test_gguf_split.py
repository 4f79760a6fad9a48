"""Splitting, against gguf-py's own splitting writer and reader."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from meditron.core.errors import InputError, StorageError, UsageError
from meditron.release.gguf_join import join_parts
from meditron.release.gguf_split import split_bytes, split_gguf
from meditron.store.files import sha256_file
from meditron.store.gguf import GGUF
from split_models import write_model


def paths_of(result: dict) -> list[Path]:
    return [Path(file["path"]) for file in result["files"]]


GGUF_SPLIT = {
    "golden-00001-of-00003.gguf": "ba99bb9a40ffdc32d8d5c8e9fd13c611fa462ef4148ab3cb7de157eb4980214f",
    "golden-00002-of-00003.gguf": "b613f111dc1179dd7b69d40e8e112e2a60f8e03cd48042c13f478e79477eb38c",
    "golden-00003-of-00003.gguf": "462bb42d3c2a83ce01a56a8d443b3adf67b69e7de62db93781162396404e75a6",
}
"""SHA-256 of the parts that llama.cpp's gguf-split (build 11434) writes with --split-max-size 1M."""


def golden_model(path: Path) -> Path:
    """Write six tensors of 0.4 MB, of which two fit into 1 MB whether or not the metadata counts."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("golden")
    writer.add_array("a.texts", ["a", "é", ""])
    for i in range(6):
        writer.add_tensor(f"t{i}", (np.arange(100_000, dtype=np.float32) + i).reshape(100, 1000))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_parts_have_the_bytes_of_llama_cpps_gguf_split(tmp_path: Path):
    whole = golden_model(tmp_path / "golden.gguf")
    result = split_gguf(whole, 1_000_000)
    assert {Path(file["path"]).name: file["sha256"] for file in result["files"]} == GGUF_SPLIT
    if (program := os.environ.get("MEDITRON_GGUF_SPLIT")) is not None:
        command = [program, "--split", "--split-max-size", "1M", whole, tmp_path / "theirs"]
        subprocess.run(command, check=True, capture_output=True)
        theirs = sorted(tmp_path.glob("theirs-*.gguf"))
        assert [sha256_file(part) for part in theirs] == list(GGUF_SPLIT.values())
        merge = [program, "--merge", Path(result["files"][0]["path"]), tmp_path / "merged.gguf"]
        subprocess.run(merge, check=True, capture_output=True)
        with GGUF(tmp_path / "merged.gguf") as merged, GGUF(whole) as source:
            assert {name: merged.dequantize(name).tobytes() for name in merged.tensors} == {
                name: source.dequantize(name).tobytes() for name in source.tensors
            }


def test_parts_have_the_content_of_gguf_pys_splitting_writer(tmp_path: Path):
    whole = write_model(tmp_path / "whole.gguf", layers=12)
    # gguf-py counts only the tensors; here, both rules cut at the same places.
    write_model(tmp_path / "theirs.gguf", layers=12, split_max_size=2900)
    theirs = sorted(tmp_path.glob("theirs-*.gguf"))
    ours = paths_of(split_gguf(whole, 3584))
    assert [part.name for part in ours] == [part.name.replace("theirs", "whole") for part in theirs]
    assert len(ours) > 2
    for mine, other in zip(ours, theirs, strict=True):
        mine_read, other_read = gguf.GGUFReader(mine), gguf.GGUFReader(other)
        assert [t.name for t in mine_read.tensors] == [t.name for t in other_read.tensors]
        fields = {key: f for key, f in mine_read.fields.items() if not key.startswith("GGUF.")}
        for key, field in fields.items():
            assert field.types == other_read.fields[key].types
            assert field.contents() == other_read.fields[key].contents()
        # Only the order of the pairs differs.
        assert mine.stat().st_size == other.stat().st_size


@pytest.mark.parametrize("limit", [1500, 2000, 3000, 5000])
def test_parts_are_at_most_as_long_as_asked_and_join_to_the_same_bytes(tmp_path: Path, limit: int):
    whole = write_model(tmp_path / "m.gguf")
    before = sha256_file(whole)
    result = split_gguf(whole, limit)
    assert result["kind"] == "gguf-split"
    for file in result["files"]:
        path = Path(file["path"])
        assert path.stat().st_size == file["bytes"] <= limit
        assert sha256_file(path) == file["sha256"]
    joined = join_parts(paths_of(result)[-1:], tmp_path / "again.gguf")
    assert sha256_file(tmp_path / "again.gguf") == joined["sha256"] == before == sha256_file(whole)
    assert [Path(part) for part in joined["parts"]] == paths_of(result)


def test_a_big_endian_file_and_one_of_version_2_come_back_too(tmp_path: Path):
    big = write_model(tmp_path / "big.gguf", endianess=gguf.GGUFEndian.BIG)
    old = write_model(tmp_path / "old.gguf")
    content = bytearray(old.read_bytes())
    content[4] = 2
    old.write_bytes(content)
    for path in (big, old):
        parts = paths_of(split_gguf(path, 2500))
        assert len(parts) > 1
        with GGUF(path) as one, GGUF(parts[1]) as many:
            assert list(one.tensors) == list(many.tensors)
            assert (one.version, one.byte_order) == (many.version, many.byte_order)
            for name in one.tensors:
                np.testing.assert_array_equal(one.raw_tensor(name), many.raw_tensor(name))
        join_parts(parts, tmp_path / "again.gguf")
        assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()
        (tmp_path / "again.gguf").unlink()


def test_an_alignment_of_the_file_is_kept_in_the_first_part_only(tmp_path: Path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(256)
    for i in range(4):
        writer.add_tensor(f"t{i}", np.full(40, i, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = paths_of(split_gguf(path, 1024))
    with GGUF(parts[0]) as file:
        assert file.metadata["general.alignment"] == 256
        assert [file.dequantize(f"t{i}")[0] for i in range(4)] == [0, 1, 2, 3]
    join_parts(parts, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


def test_what_cannot_be_split_is_refused_and_nothing_is_written(tmp_path: Path):
    whole = write_model(tmp_path / "m.gguf")
    size = whole.stat().st_size
    for work, limit, message in [
        (split_gguf, size, "nothing to split"),
        (split_bytes, size, "nothing to split"),
        (split_gguf, 300, "the metadata alone has"),
        (split_gguf, 1120, "the tensor blk.0.weight alone takes"),
        (split_bytes, size // 27, "27 pieces|28 pieces"),
    ]:
        with pytest.raises(UsageError, match=message):
            work(whole, limit)
    assert list(tmp_path.iterdir()) == [whole]
    part = paths_of(split_gguf(whole, 3000))[0]
    with pytest.raises(InputError, match="is a part of a split model"):
        split_gguf(part, 1500)


@pytest.mark.parametrize("work", [split_gguf, split_bytes])
def test_an_existing_part_is_never_overwritten(tmp_path: Path, work: Callable):
    whole = write_model(tmp_path / "m.gguf")
    expected = paths_of(work(whole, 3000))
    for path in expected:
        path.unlink()
    before = whole.read_bytes()
    for make in (
        lambda path: path.write_bytes(b"mine"),
        lambda path: path.hardlink_to(whole),
        lambda path: path.symlink_to(whole),
        lambda path: path.symlink_to(tmp_path / "nowhere"),
    ):
        make(expected[1])
        with pytest.raises(UsageError, match="exists, and is never overwritten"):
            work(whole, 3000)
        assert sorted(tmp_path.iterdir()) == sorted([whole, expected[1]])
        expected[1].unlink()
    assert whole.read_bytes() == before


def test_a_name_taken_while_the_parts_are_written_is_not_replaced(tmp_path: Path, monkeypatch):
    whole = write_model(tmp_path / "m.gguf")
    link = Path.hardlink_to

    def taken(self: Path, target: Path) -> None:
        if "00002-of" in self.name:
            self.write_bytes(b"mine")
        link(self, target)

    monkeypatch.setattr(Path, "hardlink_to", taken)
    with pytest.raises(UsageError, match=r"m-00002-of-0000.*exists"):
        split_gguf(whole, 3000)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 2
    assert next(tmp_path.glob("*00002*")).read_bytes() == b"mine"


def test_a_file_system_without_links_and_a_full_disk(tmp_path: Path, monkeypatch):
    whole = write_model(tmp_path / "m.gguf")

    def no_links(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    parts = paths_of(split_gguf(whole, 3000))
    join_parts(parts, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == whole.read_bytes()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(StorageError, match=r"needs .* but only 100 B are free"):
        split_bytes(whole, 3000)


def test_plain_pieces_are_the_files_bytes(tmp_path: Path):
    whole = write_model(tmp_path / "m.gguf")
    pieces = paths_of(split_bytes(whole, 3000))
    assert [piece.name for piece in pieces][:2] == ["m.gguf-split-a", "m.gguf-split-b"]
    assert b"".join(piece.read_bytes() for piece in pieces) == whole.read_bytes()
    assert all(piece.stat().st_size == 3000 for piece in pieces[:-1])
