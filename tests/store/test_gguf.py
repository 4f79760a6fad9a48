import struct
import tracemalloc
from argparse import Namespace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.scripts.gguf_convert_endian import convert_byteorder
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from meditron.core.errors import InputError, SourceError
from meditron.store.gguf import GGUF, write_gguf

RNG = np.random.default_rng(1)
MATRIX = RNG.standard_normal((6, 512), dtype=np.float32)

# gguf-py cannot quantize to these: bytes of a block, and where in it its half-precision scales stand.
K_BLOCKS = {"Q2_K": (84, [80, 82]), "Q3_K": (110, [108]), "Q4_K": (144, [0, 2]), "Q5_K": (176, [0, 2])} | {
    "Q6_K": (210, [208])
}
SWAPPED_BY_GGUF_PY = {"F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q6_K"}
QUANTIZED = ["BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def blocks(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random blocks with scales of a weight's size, as rows of bytes."""
    size, scales = K_BLOCKS[kind]
    count = int(np.prod(shape)) // 256
    data = RNG.integers(0, 256, (count, size), dtype=np.uint8)
    for at in scales:
        data[:, at : at + 2] = RNG.normal(0, 0.02, (count, 1)).astype(np.float16).view(np.uint8)
    return data.reshape(*shape[:-1], -1)


def reference(path: Path, kinds: dict[str, np.ndarray], version: int = 3) -> Path:
    """A file made by gguf-py with one tensor of each type."""
    writer = gguf.GGUFWriter(path, "llama")
    for kind, data in kinds.items():
        writer.add_tensor(kind, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if version != 3:
        data = bytearray(path.read_bytes())
        data[4:8] = struct.pack("<I", version)
        path.write_bytes(data)
    return path


def all_kinds() -> dict[str, np.ndarray]:
    plain = {"F32": MATRIX, "F16": MATRIX.astype(np.float16)}
    made = {kind: gguf.quants.quantize(MATRIX, gguf.GGMLQuantizationType[kind]) for kind in QUANTIZED}
    return plain | made | {kind: blocks(kind, MATRIX.shape) for kind in K_BLOCKS}


@pytest.mark.parametrize("version", [2, 3])
def test_every_type_is_dequantized_as_gguf_py_does(tmp_path: Path, version: int):
    path = reference(tmp_path / "x.gguf", all_kinds(), version)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with GGUF(path) as ours:
        assert ours.version == version
        assert list(ours.tensors) == list(theirs)
        for name, info in ours.tensors.items():
            tensor = theirs[name]
            assert (info.type, info.shape) == (tensor.tensor_type.name, MATRIX.shape)
            assert (info.offset, info.nbytes) == (tensor.data_offset, tensor.n_bytes)
            np.testing.assert_array_equal(ours.raw_tensor(name).ravel(), tensor.data.view(np.uint8).ravel())
            values = ours.dequantize(name)
            np.testing.assert_array_equal(values, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
            assert (values.dtype, values.shape) == (np.float32, MATRIX.shape)
            assert values.flags.writeable


def test_a_big_endian_file_reads_as_the_little_endian_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kinds = {kind: data for kind, data in all_kinds().items() if kind in SWAPPED_BY_GGUF_PY}
    path = tmp_path / "little.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("a.names", ["x", "é"])
    writer.add_array("a.numbers", [1, -70_000])
    writer.add_float64("a.float", 0.1)
    writer.add_uint64("a.large", 1 << 40)
    for kind, data in kinds.items():
        writer.add_tensor(kind, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    big = tmp_path / "big.gguf"
    big.write_bytes(path.read_bytes())
    monkeypatch.setattr("builtins.input", lambda _: "YES")
    reader = gguf.GGUFReader(big, "r+")
    convert_byteorder(reader, Namespace(order="big", dry_run=False, verbose=False))
    reader.data.flush()
    with GGUF(path) as ours, GGUF(big) as swapped:
        assert (ours.byte_order, swapped.byte_order) == ("little", "big")
        assert swapped.metadata == ours.metadata
        assert swapped.tensors == ours.tensors
        assert set(ours.tensors) == SWAPPED_BY_GGUF_PY
        for name in ours.tensors:
            np.testing.assert_array_equal(swapped.raw_tensor(name), ours.raw_tensor(name))
            np.testing.assert_array_equal(swapped.dequantize(name), ours.dequantize(name))


def test_a_file_of_gguf_pys_big_endian_writer_reads(tmp_path: Path):
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_context_length(2048)
    writer.add_tensor("F32", MATRIX)
    writer.add_tensor("F16", MATRIX.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUF(path) as file:
        assert file.metadata == {"general.architecture": "llama", "llama.context_length": 2048}
        np.testing.assert_array_equal(file.dequantize("F32"), MATRIX)
        np.testing.assert_array_equal(file.dequantize("F16"), MATRIX.astype(np.float16).astype(np.float32))


def test_shapes_are_numpys_and_rows_can_be_taken(tmp_path: Path):
    path = reference(tmp_path / "x.gguf", {"Q4_K": blocks("Q4_K", (2, 3, 512))})
    with GGUF(path) as file:
        assert file.tensors["Q4_K"].shape == (2, 3, 512)
        assert file.raw_tensor("Q4_K").shape == (2, 3, 288)


def test_arrays_outlive_the_file(tmp_path: Path):
    path = reference(tmp_path / "x.gguf", {"F32": MATRIX})
    with GGUF(path) as file:
        raw = file.raw_tensor("F32")
        with pytest.raises(InputError, match=r"x\.gguf \(F33\): no such tensor"):
            file.raw_tensor("F33")
    np.testing.assert_array_equal(raw.view(np.float32), MATRIX)
    with pytest.raises(ValueError, match="closed"):
        file.raw_tensor("F32")


def test_a_type_without_a_reference_is_an_input_error(tmp_path: Path):
    path = reference(tmp_path / "x.gguf", {"I32": np.arange(4, dtype=np.int32)})
    with GGUF(path) as file, pytest.raises(InputError, match=r"\(I32\): cannot read tensors of type I32"):
        file.dequantize("I32")


def test_a_real_model_reads_as_gguf_py_reads_it(smollm2_gguf: Path):
    theirs = gguf.GGUFReader(smollm2_gguf)
    with GGUF(smollm2_gguf) as ours:
        fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
        assert list(ours.metadata) == list(fields)
        for key in ours.metadata.keys() - {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"}:
            assert ours.metadata[key] == fields[key].contents()
        assert len(ours.metadata["tokenizer.ggml.tokens"]) == 49_152
        assert ours.metadata["tokenizer.ggml.merges"][-1] == fields["tokenizer.ggml.merges"].contents(-1)
        for tensor in theirs.tensors[:12]:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(ours.dequantize(tensor.name), values)


# Hostile files, made field by field.


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(tensors: int = 0, pairs: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, pairs)


def pair(key: bytes, code: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", code) + value


def info(
    name: bytes = b"a", dims: tuple[int, ...] = (32,), code: int = 0, offset: int = 0, n: int = -1
) -> bytes:
    n = len(dims) if n < 0 else n
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", n, *dims, code, offset)


def aligned(head: bytes, data: int) -> bytes:
    return head + bytes(-len(head) % 32 + data)


def array(code: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", code, count) + values


HOSTILE = {
    "empty": (b"", "too short"),
    "magic": (header(magic=b"GGML"), r"byte 0\): not a GGUF file: it begins with b'GGML'"),
    "header cut": (header()[:15], r"byte 8.*tensors needs 8 bytes, but only 7"),
    "version 1": (header(version=1), r"byte 4\): GGUF version 1"),
    "version 1, big-endian": (header(version=1 << 24), r"byte 4\): GGUF version 1 is not supported"),
    "version 0": (header(version=0), r"byte 4\): GGUF version 0"),
    "counts in the other order": (
        header(tensors=1, version=3 << 24),
        r"72,057,594,037,927,936 tensors do not",
    ),
    "2^60 tensors": (header(tensors=2**60) + bytes(16), r"byte 8\): 1,152,921,504,606,846,976 tensors"),
    "2^63 pairs": (header(pairs=2**63) + bytes(16), r"byte 16\).*pairs do not fit into 16 bytes"),
    "long string": (header(pairs=1) + pair(b"a", 8, struct.pack("<Q", 2**62)), "the limit is 134,217,728"),
    "long key": (header(pairs=1) + pair(b"k" * 65_536, 4, bytes(4)), "a key has 65,536 bytes"),
    "no key": (header(pairs=1) + pair(b"", 4, bytes(4)), "a key is empty"),
    "key twice": (header(pairs=2) + 2 * pair(b"abc", 4, bytes(4)), "'abc' occurs twice"),
    "not UTF-8": (header(pairs=1) + pair(b"a", 8, text(b"x\xff")), r"byte 46\): a is not UTF-8"),
    "unknown type": (header(pairs=1) + pair(b"a", 13, bytes(8)), "a has the unknown type 13"),
    "bool of 2": (header(pairs=1) + pair(b"a", 7, b"\x02"), "neither 0 nor 1"),
    "long array": (header(pairs=1) + pair(b"a", 9, array(4, 2**61)), "elements of a do not fit into 0 bytes"),
    "many strings": (header(pairs=1) + pair(b"a", 9, array(8, 3, bytes(16))), "3 elements of a do not fit"),
    "nested array": (header(pairs=1) + pair(b"a", 9, array(9, 1, array(4, 1, bytes(4)))), "type 9"),
    "array of unknown": (header(pairs=1) + pair(b"a", 9, array(99, 1, bytes(8))), "type 99"),
    "alignment 0": (
        header(pairs=1) + pair(b"general.alignment", 4, bytes(4)),
        "a power of two.*got 0",
    ),
    "alignment 24": (
        header(pairs=1) + pair(b"general.alignment", 4, b"\x18\0\0\0"),
        "a power of two.*got 24",
    ),
    "alignment text": (
        header(pairs=1) + pair(b"general.alignment", 8, text(b"32")),
        "a power of two.*got '32'",
    ),
    "5 dimensions": (aligned(header(1) + info(dims=(1,) * 5), 32), "'a' has 5 dimensions"),
    "2^32 dimensions": (aligned(header(1) + info(n=2**32 - 1), 32), "4294967295 dimensions"),
    "no elements": (aligned(header(1) + info(dims=(4, 0)), 32), "is empty or has no name"),
    "no name": (aligned(header(1) + info(b""), 128), "is empty or has no name"),
    "long name": (aligned(header(1) + info(b"n" * 65), 128), "name has 65 bytes"),
    "unknown tensor type": (aligned(header(1) + info(code=4), 128), "'a' has the unknown type 4"),
    "row without dimensions": (
        aligned(header(1) + info(dims=(), code=12), 128),
        "not a multiple of Q4_K's 256",
    ),
    "broken row": (aligned(header(1) + info(dims=(100,), code=12), 128), "not a multiple of Q4_K's 256"),
    "product overflows": (aligned(header(1) + info(dims=(2**32, 2**32)), 128), "'a' ends at byte 73,786,9"),
    "past the end": (
        aligned(header(1) + info(), 127),
        r"byte 24\): tensor 'a' ends at byte 192, the file at 191",
    ),
    "offset past": (aligned(header(1) + info(offset=2**63), 128), "'a' ends at byte"),
    "unaligned": (aligned(header(1) + info(offset=4), 256), "'a' is not aligned to 32"),
    "name twice": (aligned(header(2) + info() + info(offset=128), 256), "'a' occurs twice"),
    "overlap": (aligned(header(2) + info() + info(b"b", offset=96), 256), "'a' and 'b' overlap"),
    "same place": (aligned(header(2) + info() + info(b"b"), 256), "overlap"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_an_input_error_with_its_place(tmp_path: Path, case: str):
    data, message = HOSTILE[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message):
            GGUF(path)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_the_hostile_files_differ_from_a_good_one_in_the_named_thing_only(tmp_path: Path):
    path = tmp_path / "x.gguf"
    pairs = pair(b"a", 9, array(8, 2, text(b"x") + text(b""))) + pair(b"b", 7, b"\x01")
    path.write_bytes(aligned(header(2, 2) + pairs + info() + info(b"b", (), offset=128), 132))
    with GGUF(path) as file:
        assert file.metadata == {"a": ["x", ""], "b": True}
        assert file.dequantize("a").shape == (32,)
        assert file.dequantize("b").shape == ()


def test_all_arrays_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("meditron.store.gguf_header.MAX_ELEMENTS", 5)
    path = tmp_path / "x.gguf"
    numbers, texts = array(0, 3, bytes(3)), array(8, 2, text(b"x") * 2)
    path.write_bytes(aligned(header(pairs=2) + pair(b"a", 9, numbers) + pair(b"b", 9, texts), 0))
    with GGUF(path) as file:
        assert file.metadata == {"a": [0, 0, 0], "b": ["x", "x"]}
    longer = array(8, 3, text(b"x") * 3)
    path.write_bytes(aligned(header(pairs=2) + pair(b"a", 9, numbers) + pair(b"b", 9, longer), 0))
    with pytest.raises(InputError, match="b has 3 elements, all arrays 6; the limit is 5"):
        GGUF(path)


@pytest.mark.parametrize(
    "value", [text(b"x" * 100), array(8, 1, text(b"x" * 100)), array(0, 100, bytes(100))]
)
def test_all_pairs_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: bytes):
    code = 8 if value[:1] == b"d" else 9
    data = aligned(header(pairs=1) + pair(b"a", code, value), 0)
    (tmp_path / "x.gguf").write_bytes(data)
    for limit, good in ((200, True), (100, False)):
        monkeypatch.setattr("meditron.store.gguf_header.MAX_METADATA_BYTES", limit)
        if good:
            GGUF(tmp_path / "x.gguf").close()
        else:
            with pytest.raises(InputError, match=r"the limit is 100|more than 100 bytes"):
                GGUF(tmp_path / "x.gguf")


def test_tensors_and_pairs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("meditron.store.gguf_header.MAX_ENTRIES", 2)
    pairs = [pair(name, 4, bytes(4)) for name in (b"a", b"b", b"c")]
    (tmp_path / "x.gguf").write_bytes(aligned(header(pairs=2) + b"".join(pairs[:2]), 0))
    GGUF(tmp_path / "x.gguf").close()
    (tmp_path / "x.gguf").write_bytes(aligned(header(pairs=3) + b"".join(pairs), 0))
    with pytest.raises(InputError, match="3 key-value pairs; the limit is 2 of each"):
        GGUF(tmp_path / "x.gguf")


def test_a_large_file_of_arrays_takes_little_memory(tmp_path: Path):
    """Fault: 384 MB of arrays became 6 GB of Python's numbers."""
    path = tmp_path / "x.gguf"
    with path.open("wb") as file:
        file.write(header(pairs=24))
        for i in range(24):
            file.write(text(b"k%d" % i) + struct.pack("<I", 9) + array(0, 1 << 22))
            file.seek(1 << 22, 1)
        file.write(b"\0")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="k1 has 4,194,304 elements"):
            GGUF(path)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_a_missing_file_is_a_source_error(tmp_path: Path):
    with pytest.raises(SourceError, match="no such file"):
        GGUF(tmp_path / "x.gguf")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "x.gguf"
    metadata: dict[str, Any] = {"general.architecture": "llama", "a.count": 3, "a.names": ["x", "yz"]}
    metadata |= {"a.types": [1, 2, 3], "a.flag": True, "general.alignment": 32}
    write_gguf(path, metadata, [("one", MATRIX[:1, :32]), ("two", MATRIX[0, :8].astype(np.float16))])
    return path


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=6), st.integers(0, 700))
@example([(15, 16)], 700)
def test_a_damaged_file_reads_or_is_an_input_error(
    small: Path, tmp_path: Path, changes: list[tuple[int, int]], keep: int
):
    data = bytearray(small.read_bytes()[:keep])
    for at, byte in changes:
        if at < len(data):
            data[at] = byte
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with GGUF(path) as file:
            for name in file.tensors:
                file.dequantize(name)
            spans = sorted((info.offset, info.offset + info.nbytes) for info in file.tensors.values())
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert all(0 <= end <= len(data) for _, end in spans)
    except InputError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 100 << 20
