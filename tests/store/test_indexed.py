import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meditron.core.errors import InputError, SourceError
from meditron.store.indexed import (
    IndexedDataset,
    IndexedWriter,
    concatenate_side_files,
    read_side_file,
    token_dtype,
    write_side_file,
)


def write(prefix: Path, documents: list[list[int]], dtype: str = "uint16") -> Path:
    with IndexedWriter(prefix, dtype) as writer:
        for ids in documents:
            writer.add_document(ids)
    return prefix


documents_of_ids = st.lists(st.lists(st.integers(0, 65_535), max_size=20), max_size=20)


@settings(max_examples=60)
@given(documents_of_ids, st.sampled_from(["uint16", "int32", "int64"]))
def test_documents_come_back(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], dtype: str
):
    indexed = IndexedDataset(write(tmp_path_factory.mktemp("i") / "x.train", documents, dtype))
    assert len(indexed) == len(documents)
    assert [document.tolist() for document in indexed] == documents
    assert indexed.tokens.tolist() == [token for document in documents for token in document]
    assert indexed.sizes.tolist() == list(map(len, documents))
    assert indexed.tokens.dtype == dtype
    if documents:
        assert indexed[-1].tolist() == documents[-1]
    with pytest.raises(IndexError):
        indexed[len(documents)]


def test_the_bytes_are_megatrons(tmp_path: Path):
    write(tmp_path / "x", [[1, 2, 3], [], [65_499]])
    assert (tmp_path / "x.bin").read_bytes() == struct.pack("<4H", 1, 2, 3, 65_499)
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 3, 4)
    arrays = struct.pack("<3i3q4q", 3, 0, 1, 0, 6, 6, 0, 1, 2, 3)
    assert (tmp_path / "x.idx").read_bytes() == header + arrays


def test_documents_of_several_sequences_are_read_as_one(tmp_path: Path):
    write(tmp_path / "x", [[1], [2, 3], [4]])
    idx = (tmp_path / "x.idx").read_bytes()
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 3, 3)
    (tmp_path / "x.idx").write_bytes(header + idx[34 : 34 + 36] + struct.pack("<3q", 0, 2, 3))
    assert [document.tolist() for document in IndexedDataset(tmp_path / "x")] == [[1, 2, 3], [4]]


def test_the_type_follows_the_vocabulary():
    assert [token_dtype(size).name for size in (49_152, 65_499, 65_500, 128_256)] == [
        "uint16",
        "uint16",
        "int32",
        "int32",
    ]


def test_ids_that_do_not_fit_are_refused_and_nothing_is_left(tmp_path: Path):
    for ids in ([70_000], [-1]):
        with pytest.raises(OverflowError, match="document 1"):
            write(tmp_path / "x", [[1], ids])
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError):
        IndexedWriter(tmp_path / "x", "float32")


def test_half_a_pair_is_a_source_error(tmp_path: Path):
    write(tmp_path / "x", [[1]])
    (tmp_path / "x.idx").rename(tmp_path / "y.idx")
    for name in "xy":
        with pytest.raises(SourceError, match=r"\.(idx|bin): no such file"):
            IndexedDataset(tmp_path / name)


def patched(at: int, layout: str, value: Any) -> Any:
    def change(idx: bytes) -> bytes:
        packed = struct.pack(layout, value)
        return idx[:at] + packed + idx[at + len(packed) :]

    return change


LIES = {
    "magic": (patched(0, "<B", 0), "byte 0"),
    "version": (patched(9, "<Q", 2), "byte 9"),
    "dtype": (patched(17, "<B", 9), "byte 17"),
    "float dtype": (patched(17, "<B", 6), "byte 17"),
    "wider dtype": (patched(17, "<B", 4), "byte"),
    "sequences": (patched(18, "<Q", 2**60), "byte 18"),
    "documents": (patched(26, "<Q", 2**63), "byte 18"),
    "negative size": (patched(34, "<i", -5), "byte 34"),
    "size past the end": (patched(42, "<i", 2**31 - 1), "byte 34"),
    "pointer out": (patched(54, "<q", 2**40), "byte 54"),
    "pointer negative": (patched(46, "<q", -2), "byte 46"),
    "boundary start": (patched(70, "<q", 1), "byte 70"),
    "boundary end": (patched(94, "<q", 99), "byte 70"),
    "boundary order": (patched(78, "<q", 5), "byte 78"),
    "truncated": (lambda idx: idx[:-1], "byte 18"),
    "cut header": (lambda idx: idx[:20], "byte 0"),
    "empty": (lambda idx: b"", "byte 0"),
    "longer": (lambda idx: idx + bytes(8), "byte 18"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_wrong_idx_is_an_input_error_with_the_byte(tmp_path: Path, lie: str):
    write(tmp_path / "x", [[1, 2], [3], [4]])
    change, place = LIES[lie]
    path = tmp_path / "x.idx"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=rf"x\.idx \({place}"):
        IndexedDataset(tmp_path / "x")


def test_a_bin_of_another_length_is_an_input_error(tmp_path: Path):
    write(tmp_path / "x", [[1, 2], [3]])
    (tmp_path / "x.bin").write_bytes(bytes(8))
    with pytest.raises(InputError, match=r"declares 6 bytes of tokens, but the \.bin has 8"):
        IndexedDataset(tmp_path / "x")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
    keep=st.integers(0, 200),
)
def test_a_damaged_idx_reads_or_is_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], keep: int
):
    prefix = write(tmp_path_factory.mktemp("i") / "x", [[1, 2], [3], []])
    idx = bytearray((tmp := prefix.with_name("x.idx")).read_bytes()[:keep])
    for at, byte in changes:
        if at < len(idx):
            idx[at] = byte
    tmp.write_bytes(idx)
    try:
        read = [document.tolist() for document in IndexedDataset(prefix)]
    except InputError:
        return
    assert sum(map(len, read)) <= 6


def test_ids_are_mapped_not_copied(tmp_path: Path):
    indexed = IndexedDataset(write(tmp_path / "x", [[1, 2], [3]]))
    assert isinstance(indexed.tokens, np.memmap)
    assert np.shares_memory(indexed[1], indexed.tokens)
    with pytest.raises(ValueError, match="read-only"):
        indexed[0][0] = 1


@settings(max_examples=60)
@given(documents=st.lists(documents_of_ids, max_size=4), dtype=st.sampled_from(["uint16", "int32"]))
def test_many_documents_at_once_and_merged_files_are_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[list[int]]], dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("x")
    expected = write(folder / "one", [ids for part in documents for ids in part], dtype)
    prefixes = [write(folder / f"part{number}", part, dtype) for number, part in enumerate(documents)]
    with IndexedWriter(folder / "merged", dtype) as merged, IndexedWriter(folder / "many", dtype) as many:
        for prefix, part in zip(prefixes, documents, strict=True):
            merged.add_dataset(IndexedDataset(prefix))
            ids = np.array([i for ids in part for i in ids], np.uint32)
            many.add_documents(ids, np.array([len(ids) for ids in part], np.int64))
    for suffix in (".bin", ".idx"):
        for name in ("merged", "many"):
            assert (folder / f"{name}{suffix}").read_bytes() == expected.with_suffix(suffix).read_bytes()


def test_the_document_of_an_id_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "x", "uint16") as writer:
        writer.add_documents(np.array([1, 2]), np.array([1, 1]))
        with pytest.raises(OverflowError, match="document 4"):
            writer.add_documents(np.array([1, 2, 70_000, 1]), np.array([2, 0, 2]))
        with pytest.raises(ValueError, match="4 ids, but the sizes sum to 3"):
            writer.add_documents(np.arange(4), np.array([3]))
        with pytest.raises(TypeError, match=r"y: ids of type int32, not uint16"):
            writer.add_dataset(IndexedDataset(write(tmp_path / "y", [[1]], "int32")))


def test_side_files_have_a_record_for_each_document(tmp_path: Path) -> None:
    prefixes = [write(tmp_path / name, [[1], [2, 3]]) for name in "ab"]
    for number, prefix in enumerate(prefixes):
        write_side_file(prefix, ".x", bytes([number] * 4))
    concatenate_side_files(prefixes, ".x", write(tmp_path / "whole", [[]] * 4))
    assert read_side_file(tmp_path / "whole", ".x", 2) == b"\0\0\0\0\1\1\1\1"
    with pytest.raises(InputError, match=r"whole\.x: 8 bytes, but 4 documents need 12"):
        read_side_file(tmp_path / "whole", ".x", 3)
    with pytest.raises(SourceError, match=r"whole\.y"):
        read_side_file(tmp_path / "whole", ".y", 3)
