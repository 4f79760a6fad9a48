"""Fields of blocks wider than a byte, against gguf-py's dequantization."""

from itertools import pairwise

import gguf
import numpy as np
import pytest

from meditron.store.gguf_blocks import BLOCK_FIELDS, swap_blocks
from meditron.store.gguf_types import tensor_type

RNG = np.random.default_rng(3)
SCALED = [kind for kind, fields in BLOCK_FIELDS.items() if any(field.reach > 1 for field in fields)]


def test_fields_are_inside_the_block_and_do_not_overlap():
    for kind, fields in BLOCK_FIELDS.items():
        spans = sorted(
            (field.offset, field.offset + field.count * np.dtype(field.dtype).itemsize) for field in fields
        )
        assert all(end <= tensor_type(kind).block_bytes for _, end in spans)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_every_type_that_gguf_py_knows_has_a_layout_except_two_that_no_file_has():
    assert {kind.name for kind in gguf.GGMLQuantizationType} - BLOCK_FIELDS.keys() == {"Q8_1", "Q8_K"}


@pytest.mark.parametrize("kind", BLOCK_FIELDS)
def test_swapping_twice_changes_nothing_and_once_reverses_the_fields_only(kind: str):
    size = tensor_type(kind).block_bytes
    blocks = RNG.integers(0, 256, (3, 2 * size), dtype=np.uint8)
    swapped = swap_blocks(blocks, kind)
    assert swapped.shape == blocks.shape
    np.testing.assert_array_equal(swap_blocks(swapped, kind), blocks)
    expected = blocks.reshape(-1, size).copy()
    for field in BLOCK_FIELDS[kind]:
        dtype = np.dtype(field.dtype)
        part = slice(field.offset, field.offset + field.count * dtype.itemsize)
        expected[:, part] = expected[:, part].copy().view(dtype).byteswap().view(np.uint8)
    np.testing.assert_array_equal(swapped.reshape(-1, size), expected)


@pytest.mark.parametrize("kind", SCALED)
def test_no_value_of_a_block_exceeds_its_scales_times_their_reach(kind: str):
    size = tensor_type(kind).block_bytes
    blocks = RNG.integers(0, 256, (400, size), dtype=np.uint8)
    blocks[:8] = np.array([0, 255, 128, 127, 15, 240, 1, 64], np.uint8)[:, None]
    bound = np.zeros(len(blocks))
    for field in BLOCK_FIELDS[kind]:
        if field.reach:
            scales = RNG.normal(0, 1, (len(blocks), 1)).astype(np.dtype(field.dtype))
            blocks[:, field.offset : field.offset + scales.dtype.itemsize] = scales.view(np.uint8)
            bound += np.abs(scales.astype(np.float64)).ravel() * field.reach
    values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    assert np.all(np.abs(values).max(axis=1) <= bound * 1.001)
