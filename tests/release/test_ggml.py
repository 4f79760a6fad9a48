"""ggml's quantizers in xllamacpp, against libgguf (another build of ggml's code) and gguf-py."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from meditron.core.errors import UsageError
from meditron.model.weight_rows import WeightRows, dequantize_with_gguf
from meditron.release.encode import encode_rows
from meditron.release.ggml import dequantize, quantize
from meditron.store.gguf_types import tensor_type

# Not IQ1_M, where libgguf differs from llama.cpp.
KINDS = [
    "Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0", "IQ2_XXS", "IQ3_XXS",
    "IQ4_NL", "IQ4_XS",
]  # fmt: skip


def rows(shape: tuple[int, int] = (6, 512)) -> np.ndarray:
    values = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    values[0] = 0
    return values


@pytest.mark.parametrize(
    ("kind", "weighted"), [(kind, weighted) for kind in KINDS for weighted in {kind == "IQ2_XXS", True}]
)
def test_blocks_equal_another_build_and_decode_as_in_gguf_py(kind: str, weighted: bool) -> None:
    import libgguf

    values, form = rows(), tensor_type(kind)
    importance = np.random.default_rng(4).random(512).astype(np.float32) if weighted else None
    blocks = quantize(values, form, importance)
    expected = np.empty_like(blocks)
    libgguf.quantize_rows_into_raw(form.code, values, expected, *values.shape, importance)
    assert np.array_equal(blocks, expected)
    decoded = dequantize(blocks, form, values.shape[1])
    np.testing.assert_allclose(decoded, dequantize_with_gguf(blocks, kind, 512), rtol=1e-6, atol=1e-7)


def test_threads_that_start_together_build_the_tables_of_a_type_once() -> None:
    values, form = rows(), tensor_type("IQ2_S")
    with ThreadPoolExecutor(8) as workers:
        found = list(workers.map(lambda _: quantize(values, form, np.ones(512, np.float32)), range(8)))
    assert all(np.array_equal(found[0], each) for each in found)


def test_rows_in_another_order_in_memory_are_copied() -> None:
    values, form = rows(), tensor_type("Q4_K")
    turned = np.asfortranarray(values)
    assert np.array_equal(quantize(turned, form, None), quantize(values, form, None))
    blocks = quantize(values, form, None)
    assert np.array_equal(dequantize(np.asfortranarray(blocks), form, 512), dequantize(blocks, form, 512))


def test_sizes_that_do_not_fit_are_refused() -> None:
    values, form = rows(), tensor_type("Q4_K")
    with pytest.raises(ValueError, match="importance has shape"):
        quantize(values, form, np.ones(256, np.float32))
    with pytest.raises(ValueError, match="is not that of rows of 768 values"):
        dequantize(quantize(values, form, None), form, 768)


def test_a_type_without_a_dequantizer_is_refused() -> None:
    form = tensor_type("I16")
    with pytest.raises(NotImplementedError, match="I16"):
        dequantize(np.zeros((1, 64), np.uint8), form, 32)


def test_importance_that_would_end_the_process_is_refused() -> None:
    values = rows() * np.float32(1e4)
    weight = WeightRows(values.shape, "F32", values, lambda stored: stored)
    with pytest.raises(UsageError, match="w: the squares of its values, weighted by their importance"):
        encode_rows("w", weight, slice(0, 6), ["IQ2_XXS"], np.full(512, 1e30, np.float32))
