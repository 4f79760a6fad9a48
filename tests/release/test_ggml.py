"""ggml's quantizers in xllamacpp, against libgguf (another build of ggml's code) and gguf-py."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from meditron.core.errors import UsageError
from meditron.model.weight_rows import dequantize_with_gguf
from meditron.release.encode import decode_blocks
from meditron.release.ggml import dequantize, load_ggml, quantize
from meditron.release.imatrix_file import ImportanceMatrix
from meditron.store.gguf_types import tensor_type

# Not IQ1_M, where some of libgguf's blocks differ from llama.cpp's.
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


def test_what_would_end_the_process_or_read_beyond_an_array_is_refused() -> None:
    values, form = rows(), tensor_type("Q4_K")
    with pytest.raises(ValueError, match="importance has shape"):
        quantize(values, form, np.ones(256, np.float32))
    with pytest.raises(ValueError, match="IQ2_XXS needs the importance"):
        quantize(values, tensor_type("IQ2_XXS"), None)
    with pytest.raises(ValueError, match="rows of 500 values are not whole blocks of Q4_K"):
        quantize(values[:, :500], form, None)
    with pytest.raises(ValueError, match="is not that of rows of 768 values"):
        dequantize(quantize(values, form, None), form, 768)
    with pytest.raises(ValueError, match="rows of 300 values are not whole blocks"):
        dequantize(np.zeros((64, 144), np.uint8), form, 300)


def test_a_type_without_values_is_refused() -> None:
    for kind in ("I16", "Q8_1"):
        form = tensor_type(kind)
        with pytest.raises(NotImplementedError, match=kind):
            dequantize(np.zeros((1, form.nbytes((32,))), np.uint8), form, 32)


def test_a_library_that_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slim images lack libgomp: the package is installed, and advice to install it would not help."""
    (tmp_path / "xllamacpp").mkdir()
    message = "libgomp.so.1: cannot open shared object file"
    (tmp_path / "xllamacpp/__init__.py").write_text(f"raise ImportError({message!r})")
    for name in [name for name in sys.modules if name.partition(".")[0] == "xllamacpp"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    values, form = rows(), tensor_type("Q4_K")
    blocks = quantize(values, form, None)
    load_ggml.cache_clear()
    with pytest.raises(UsageError, match=r"cannot be loaded: libgomp.so.1") as refused:
        quantize(values, form, None)
    assert "libgomp1" in str(refused.value.hint)
    np.testing.assert_allclose(decode_blocks(blocks, "Q4_K", 512), dequantize_with_gguf(blocks, "Q4_K", 512))


@pytest.mark.parametrize("kind", ["IQ1_S", "IQ2_XXS", "Q2_K"])
@pytest.mark.parametrize("scale", [1e-38, 1e30])
def test_the_scale_of_an_importance_matrix_changes_nothing(kind: str, scale: float) -> None:
    values, sums = rows(), np.random.default_rng(5).random(512, dtype=np.float32) + np.float32(0.1)
    errors = []
    for factor in (1.0, scale):
        matrix = ImportanceMatrix({"w": sums * np.float32(factor)}, {"w": 1.0}, ("text",), 1, 512)
        blocks = quantize(values, tensor_type(kind), matrix.importance()["w"])
        errors.append(float(((dequantize(blocks, tensor_type(kind), 512) - values) ** 2 @ sums).sum()))
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
