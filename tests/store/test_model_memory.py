"""The memory that llama.cpp needs, predicted from a model's shape."""

import json

import pytest

from meditron.store.model_memory import ModelShape, cache_elements, offloads, shape_of_config

SMOLLM2 = ModelShape(30, 30 * 3 * 2 * 64, 8_192, 576, 1_536, 49_152)
NARROW = ModelShape(2, 2 * 2 * 2 * 64, 8_192, 256, 1_024, 49_152)
TENSORS = {
    "token_embd.weight": 1_000,
    **{f"blk.{block}.ffn_up.weight": 100 for block in range(30)},
    "output_norm.weight": 1,
}


@pytest.mark.parametrize(
    ("shape", "context", "printed"),
    [(SMOLLM2, 512, 15.14), (SMOLLM2, 4_096, 18.64), (NARROW, 512, 9.02), (NARROW, 4_096, 12.52)],
)
def test_the_compute_buffer_is_the_one_that_llama_cpp_prints(
    shape: ModelShape, context: int, printed: float
) -> None:
    # MiB, `compute buffer size` of llama.cpp b11549 with four slots.
    assert shape.compute_bytes(context) / 2**20 == pytest.approx(printed, abs=0.03)


def test_the_context_is_at_most_the_models() -> None:
    assert SMOLLM2.context_bytes(4_096) == 4_096 * 23_040  # 90.00 MiB, as llama.cpp prints
    assert SMOLLM2.context_bytes(1 << 20) == 8_192 * 23_040
    assert SMOLLM2.compute_bytes(1 << 20) == SMOLLM2.compute_bytes(8_192)


def test_a_config_gives_the_shape() -> None:
    fields = {
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576,
        "intermediate_size": 1_536, "vocab_size": 49_152, "max_position_embeddings": 8_192,
    }  # fmt: skip
    assert shape_of_config(json.dumps(fields).encode()) == SMOLLM2


@pytest.mark.parametrize(
    ("changes", "elements"),
    [
        ({}, 3 * 2 * (8 + 8)),
        ({"x.attention.head_count_kv": [2, 0, 1]}, 3 * (8 + 8)),  # layers without attention have no cache
        ({"x.attention.key_length": 16, "x.attention.value_length": 4}, 3 * 2 * (16 + 4)),
        ({"x.block_count": "3"}, 0),
    ],
)
def test_the_cache_of_a_token_follows_from_the_metadata(changes: dict[str, object], elements: int) -> None:
    metadata = {
        "general.architecture": "x", "x.block_count": 3, "x.embedding_length": 32,
        "x.attention.head_count": 4, "x.attention.head_count_kv": 2,
    }  # fmt: skip
    assert cache_elements(metadata | changes) == elements


@pytest.mark.parametrize("tied", [True, False])
def test_the_last_layers_are_offloaded_and_the_embedding_stays(tied: bool) -> None:
    tensors = TENSORS if tied else {**TENSORS, "output.weight": 900}
    size = sum(tensors.values()) + 50  # and the metadata
    none, half, every = offloads(SMOLLM2, size, tensors)
    assert (none.layers, half.layers, every.layers) == (0, 15, 31)
    assert (none.ram, none.vram) == (SMOLLM2.ram_bytes(size), 0)
    context, compute, output = SMOLLM2.context_bytes(), SMOLLM2.compute_bytes(), 1_000 if tied else 900
    # The output layer counts as one: with 15 layers, 14 of the 30 blocks are on the GPU.
    assert half.vram == 14 * 100 + 1 + output + context * 14 // 30 + compute
    assert every.vram == 30 * 100 + 1 + output + context + compute
    assert every.ram == 1_000 + 50 + SMOLLM2.program_bytes()
    copied = 1_000 if tied else 0
    assert half.ram + half.vram == none.ram + compute + copied
