import gc
import weakref
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.store.gguf import GGUF, LazyTensor, write_gguf

RNG = np.random.default_rng(2)
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.offset": -1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 100_000.0,
    "llama.large": np.uint64(2**40),
    "llama.short": np.int16(-7),
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.tokens": ["a", "Ġµ", ""],
    "tokenizer.ggml.token_type": [1, 1, 3],
    "tokenizer.ggml.scores": [0.0, -1.5, -2.0],
    "flags": [True, False],
    "bytes": np.arange(5, dtype=np.uint8),
    "general.alignment": 64,
}
TENSORS = [
    ("token_embd.weight", RNG.standard_normal((7, 33), dtype=np.float32)),
    ("output_norm.weight", RNG.standard_normal(33, dtype=np.float32)),
    ("blk.0.ffn.weight", RNG.standard_normal((2, 3, 5)).astype(np.float16)),
]


def reference(path: Path) -> Path:
    """The same content by gguf-py, each value in the type it is expected in."""
    kinds = gguf.GGUFValueType
    typed = {
        "llama.block_count": kinds.UINT32,
        "llama.offset": kinds.INT32,
        "llama.attention.layer_norm_rms_epsilon": kinds.FLOAT32,
        "llama.rope.freq_base": kinds.FLOAT32,
        "llama.large": kinds.UINT64,
        "llama.short": kinds.INT16,
        "tokenizer.ggml.add_bos_token": kinds.BOOL,
    }
    elements = {
        "tokenizer.ggml.tokens": kinds.STRING,
        "tokenizer.ggml.token_type": kinds.INT32,
        "tokenizer.ggml.scores": kinds.FLOAT32,
        "flags": kinds.BOOL,
        "bytes": kinds.UINT8,
    }
    writer = gguf.GGUFWriter(path, "llama")
    for key, kind in typed.items():
        writer.add_key_value(key, METADATA[key], kind)
    for key, kind in elements.items():
        writer.add_key_value(key, list(METADATA[key]), kinds.ARRAY, kind)
    writer.add_custom_alignment(64)
    for name, tensor in TENSORS:
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_bytes_are_those_of_gguf_py(tmp_path: Path):
    write_gguf(tmp_path / "ours.gguf", METADATA, TENSORS)
    assert (tmp_path / "ours.gguf").read_bytes() == reference(tmp_path / "theirs.gguf").read_bytes()


def test_what_is_written_is_read(tmp_path: Path):
    write_gguf(tmp_path / "x.gguf", METADATA, TENSORS)
    with GGUF(tmp_path / "x.gguf") as file:
        assert file.metadata == METADATA | {
            "bytes": [0, 1, 2, 3, 4],
            "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        }
        for name, tensor in TENSORS:
            np.testing.assert_array_equal(file.dequantize(name), tensor.astype(np.float32))


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
values = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(st.characters(codec="utf-8")),
    st.lists(st.text(st.characters(codec="utf-8")), min_size=1),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1),
    st.lists(st.booleans(), min_size=1),
)


@settings(max_examples=60)
@given(st.dictionaries(names.filter(lambda name: name != "general.alignment"), values, max_size=8))
def test_any_metadata_comes_back(tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, Any]):
    path = tmp_path_factory.mktemp("m") / "x.gguf"
    write_gguf(path, metadata, [])
    with GGUF(path) as file:
        assert file.metadata == metadata


def test_deferred_tensors_are_made_one_at_a_time(tmp_path: Path):
    alive: list[weakref.ref[np.ndarray]] = []

    def load(number: int) -> np.ndarray:
        gc.collect()
        assert not [array for array in alive if array() is not None]
        array = np.full((100, 10), number, dtype=np.float16)
        alive.append(weakref.ref(array))
        return array

    def deferred(number: int) -> LazyTensor:
        return LazyTensor((100, 10), "F16", lambda: load(number))

    write_gguf(tmp_path / "x.gguf", {}, [(f"t{number}", deferred(number)) for number in range(4)])
    assert len(alive) == 4
    with GGUF(tmp_path / "x.gguf") as file:
        assert [file.dequantize(name)[0, 0] for name in file.tensors] == [0, 1, 2, 3]


def test_blocks_are_written_as_they_are(tmp_path: Path):
    import gguf

    values = RNG.standard_normal((4, 512), dtype=np.float32)
    blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q5_1)
    tensors = [("first", values[0, :3].copy()), ("q", LazyTensor(values.shape, "Q5_1", lambda: blocks))]
    write_gguf(tmp_path / "x.gguf", {}, [*tensors, ("last", values[0, :3].copy())])
    with GGUF(tmp_path / "x.gguf") as file:
        assert file.tensors["q"].type == "Q5_1"
        np.testing.assert_array_equal(file.raw_tensor("q"), blocks)
        np.testing.assert_array_equal(file.dequantize("last"), values[0, :3])
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    np.testing.assert_array_equal(theirs["q"].data, blocks)


def test_views_of_any_stride_are_written_in_order(tmp_path: Path):
    matrix = RNG.standard_normal((6, 4), dtype=np.float32)
    write_gguf(tmp_path / "x.gguf", {}, [("t", matrix.T[::2]), ("big", matrix.astype(">f4"))])
    with GGUF(tmp_path / "x.gguf") as file:
        np.testing.assert_array_equal(file.dequantize("t"), matrix.T[::2])
        np.testing.assert_array_equal(file.dequantize("big"), matrix)


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ([("a", TENSORS[0][1]), ("a", TENSORS[1][1])], ValueError, "occurs twice"),
        ([("a", np.zeros(3, dtype=np.float64))], TypeError, "must be float32 or float16"),
        (
            [("a", LazyTensor((3,), "F32", lambda: np.zeros(4, "f4")))],
            ValueError,
            r"declared as F32 \(3,\)",
        ),
        ([("a", LazyTensor((3,), "F16", lambda: np.zeros(3, "f4")))], ValueError, "declared as F16"),
        (
            [("a", LazyTensor((2, 32), "Q8_0", lambda: np.zeros(67, "u1")))],
            ValueError,
            "declared .* 68 bytes",
        ),
    ],
)
def test_tensors_that_cannot_be_leave_nothing(
    tmp_path: Path, tensors: Any, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        write_gguf(tmp_path / "x.gguf", METADATA, tensors)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [None, {"a": 1}, [[1], [2]], ["a", 1], 1j, b"raw", [2**80], object()])
def test_metadata_without_a_type_is_a_type_error(tmp_path: Path, value: object):
    with pytest.raises(TypeError, match="key"):
        write_gguf(tmp_path / "x.gguf", {"key": value}, [])
    assert not list(tmp_path.iterdir())
