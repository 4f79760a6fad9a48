"""Reading of split models through any of their parts."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from meditron.core.errors import InputError
from meditron.release.gguf_split import split_gguf
from meditron.store.fetch import source_identity
from meditron.store.gguf import GGUF, write_gguf
from meditron.store.gguf_parts import existing_parts, gguf_digest
from meditron.store.models import resolve_model
from split_models import write_model


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    write_model(tmp_path / "m.gguf")
    return [Path(file["path"]) for file in split_gguf(tmp_path / "m.gguf", 2500)["files"]]


def test_every_part_opens_the_whole_model(tmp_path: Path, parts: list[Path]):
    assert len(parts) > 2
    with GGUF(tmp_path / "m.gguf") as whole:
        for part in parts:
            with GGUF(part) as split:
                assert split.files == tuple(parts)
                assert split.nbytes == sum(file.stat().st_size for file in parts)
                assert list(split.tensors) == list(whole.tensors)
                assert whole.metadata.items() <= split.metadata.items()
                for name in whole.tensors:
                    np.testing.assert_array_equal(split.raw_tensor(name), whole.raw_tensor(name))
                    np.testing.assert_array_equal(split.dequantize(name), whole.dequantize(name))


def test_a_model_is_the_first_part_whichever_is_named(tmp_path: Path, parts: list[Path]):
    assert resolve_model(str(parts[2])).path == parts[0]
    folder = tmp_path / "folder"
    folder.mkdir()
    for part in parts:
        shutil.copy(part, folder / part.name.replace("m-", "m-Q4_0-"))
    first = folder / parts[0].name.replace("m-", "m-Q4_0-")
    assert resolve_model(str(folder)).path == first
    assert resolve_model(f"{folder}:Q4_0").path == first
    assert resolve_model(f"{folder}:m-Q4_0").path == first


def test_a_missing_renamed_or_foreign_part_is_named(tmp_path: Path, parts: list[Path]):
    moved = parts[1].rename(tmp_path / "away.gguf")
    with pytest.raises(InputError, match="of which 1 are missing") as raised:
        GGUF(parts[0])
    assert parts[1].name in str(raised.value.hint)
    with pytest.raises(InputError, match=f"is not called STEM-00002-of-0000{len(parts)}"):
        GGUF(moved)
    shutil.copy(parts[2], parts[1])
    with pytest.raises(InputError, match=r"is part 3 of .*, expected part 2"):
        GGUF(parts[0])
    with pytest.raises(InputError, match="is not called"):
        GGUF(parts[1])
    moved.replace(parts[1])
    GGUF(parts[0]).close()


@pytest.mark.parametrize(
    ("count", "number", "tensors", "message"),
    [
        (2, 7, 2, "must be from 0 to 1, got 7"),
        (2, "x", 2, "must be from 0 to 1, got 'x'"),
        ("x", 0, 2, "must be a number of parts, got 'x'"),
        (2, 0, 3, "the model has 3 tensors, but its parts have 2"),
        (65_535, 0, 2, "is not called m-00001-of-65535.gguf"),
    ],
)
def test_impossible_keys_are_errors(
    tmp_path: Path, count: object, number: object, tensors: int, message: str
):
    one = np.ones(8, np.float32)
    for index in (0, 1):
        keys = {"split.count": 2, "split.no": index, "split.tensors.count": tensors}
        if index == 0:
            keys |= {"split.count": count, "split.no": number}
        write_gguf(tmp_path / f"m-0000{index + 1}-of-00002.gguf", keys, [(f"t{index}", one)])
    with pytest.raises(InputError, match=message):
        GGUF(tmp_path / "m-00001-of-00002.gguf")


def test_a_tensor_in_two_parts_is_an_error(tmp_path: Path):
    for index in (0, 1):
        keys = {"split.count": 2, "split.no": index, "split.tensors.count": 2}
        write_gguf(tmp_path / f"m-0000{index + 1}-of-00002.gguf", keys, [("t", np.ones(8, np.float32))])
    with pytest.raises(InputError, match=r"\(t\): the tensor is in m-00001-of-00002.gguf too"):
        GGUF(tmp_path / "m-00002-of-00002.gguf")


def test_a_file_merged_by_llama_cpp_keeps_keys_but_is_not_split(tmp_path: Path):
    keys = {"split.count": np.uint16(0), "split.no": np.uint16(0), "split.tensors.count": np.int32(1)}
    write_gguf(tmp_path / "m.gguf", keys, [("t", np.ones(8, np.float32))])
    with GGUF(tmp_path / "m.gguf") as file:
        assert file.files == (tmp_path / "m.gguf",)


def test_the_digest_changes_with_every_part(tmp_path: Path, parts: list[Path]):
    """Fault: a model's identity would have been that of its first part alone."""
    assert existing_parts(parts[1]) == parts
    before = gguf_digest(parts[0], cached=False), source_identity(str(parts[0]), cached=False)
    assert before[0] == gguf_digest(parts[2], cached=False)
    data = bytearray(parts[-1].read_bytes())
    data[-40:-36] = struct.pack("<f", 7.0)
    parts[-1].write_bytes(data)
    after = gguf_digest(parts[0], cached=False), source_identity(str(parts[0]), cached=False)
    assert before[0] != after[0]
    assert before[1] != after[1]
