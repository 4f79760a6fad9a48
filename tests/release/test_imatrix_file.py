"""Importance matrices in llama.cpp's formats; libgguf's reader is the reference."""

import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.errors import InputError
from meditron.release.imatrix_file import ImportanceMatrix, read_imatrix, write_imatrix
from meditron.store.gguf import write_gguf

MATRIX = ImportanceMatrix(
    {
        "blk.0.attn_q.weight": np.array([2, 4, 6], np.float32),
        "blk.0.ffn_up.weight": np.array([3, 0], np.float32),
    },
    {"blk.0.attn_q.weight": 4.0, "blk.0.ffn_up.weight": 0.0},
    ("medical.txt",),
    chunks=2,
    chunk_size=512,
    text_sha256="0" * 64,
)


def binary(matrix: ImportanceMatrix, *, trailer: bool = True) -> bytes:
    """The older format, as llama.cpp's `save_imatrix_legacy` writes it."""
    data = struct.pack("<i", len(matrix.sums))
    for name, sums in matrix.sums.items():
        calls = int(matrix.counts[name])
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(sums))
        data += sums.astype("<f4").tobytes()
    text = matrix.datasets[0].encode()
    return data + (struct.pack("<ii", matrix.chunks, len(text)) + text if trailer else b"")


def test_what_is_written_is_read_again_and_by_libgguf(tmp_path: Path) -> None:
    from libgguf.imatrix import load_imatrix

    write_imatrix(tmp_path / "a", MATRIX)
    found = read_imatrix(tmp_path / "a")
    assert (found.datasets, found.chunks, found.chunk_size) == (("medical.txt",), 2, 512)
    assert found.text_sha256 == MATRIX.text_sha256
    theirs = load_imatrix(tmp_path / "a")
    assert found.importance().keys() == theirs.keys() == MATRIX.sums.keys()
    for name, values in found.importance().items():
        assert np.array_equal(values, theirs[name]), name
    assert found.importance()["blk.0.ffn_up.weight"].tolist() == [1, 1]  # no inputs


@pytest.mark.parametrize("trailer", [True, False])
def test_the_older_format(tmp_path: Path, trailer: bool) -> None:
    from libgguf.imatrix import load_imatrix

    path = tmp_path / "old.dat"
    path.write_bytes(binary(MATRIX, trailer=trailer))
    found, theirs = read_imatrix(path), load_imatrix(path)
    assert found.chunks == (2 if trailer else 0)
    assert found.datasets == (("medical.txt",) if trailer else ())
    for name, values in found.importance().items():
        expected = theirs[name]  # a column that the text never used gets the smallest importance
        assert np.array_equal(values, np.where(expected > 0, expected, expected[expected > 0].min())), name


def test_unused_columns_have_the_smallest_importance() -> None:
    sums = {"a": np.array([0, 8, 2, 0], np.float32), "b": np.zeros(2, np.float32)}
    importance = ImportanceMatrix(sums, {"a": 2.0, "b": 2.0}).importance()
    assert importance["a"].tolist() == [1, 4, 1, 1]
    assert importance["b"].tolist() == [1, 1]


def test_every_truncated_file_is_refused(tmp_path: Path) -> None:
    whole, path = binary(MATRIX), tmp_path / "cut.dat"
    oldest = len(binary(MATRIX, trailer=False))
    for length in set(range(len(whole))) - {oldest, oldest + 4}:  # without the text's name, or the chunks
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.dat"):
            read_imatrix(path)


@given(place=st.integers(0, 200), byte=st.integers(0, 255))
def test_changed_bytes_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    changed = bytearray(binary(MATRIX))
    changed[place % len(changed)] = byte
    path = tmp_path_factory.getbasetemp() / "changed.dat"
    path.write_bytes(changed)
    with suppress(InputError):
        assert all(np.isfinite(values).all() for values in read_imatrix(path).importance().values())


@pytest.mark.parametrize(
    ("sums", "counts", "said"),
    [
        ([1, np.nan], [1], "finite"),
        ([1, -1], [1], "finite"),
        ([1, 2], [-1], "count"),
        ([1, 2], [1, 1], "experts"),
    ],
)
def test_impossible_values(tmp_path: Path, sums: list[float], counts: list[float], said: str) -> None:
    tensors = [("w.in_sum2", np.array([sums], np.float32)), ("w.counts", np.array([counts], np.float32).T)]
    write_gguf(tmp_path / "x", {"general.type": "imatrix"}, tensors)
    with pytest.raises(InputError, match=said):
        read_imatrix(tmp_path / "x")


def test_other_files(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model", {"general.architecture": "llama"}, [])
    with pytest.raises(InputError, match="is not an importance matrix"):
        read_imatrix(tmp_path / "model")
    write_gguf(
        tmp_path / "half", {"general.type": "imatrix"}, {"w.in_sum2": np.ones((1, 2), np.float32)}.items()
    )
    with pytest.raises(InputError, match=r"w\.counts is missing"):
        read_imatrix(tmp_path / "half")
    write_gguf(tmp_path / "none", {"general.type": "imatrix"}, [])
    with pytest.raises(InputError, match="no entries"):
        read_imatrix(tmp_path / "none")
