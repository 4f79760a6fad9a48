"""Memory by part: exact where it follows from parameters, near autograd's where it is an estimate."""

import dataclasses

import pytest
import torch

from meditron.model.config import LlamaConfig
from meditron.model.llama import Llama
from meditron.parallel.shapes import LayoutShape, rank_parameters
from meditron.plan.architectures import KNOWN
from meditron.plan.memory import NF4_BITS, FinetuneMethod, Memory, MemorySettings, memory_per_gpu

LLAMA_70B = KNOWN["meta-llama/Llama-2-70b"]
SMALL = LlamaConfig(
    vocab_size=64, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=4, head_dim=32, max_position_embeddings=4096,
)  # fmt: skip
SETTINGS = MemorySettings(
    sequence_length=256,
    micro_batch_size=2,
    micro_batches=8,
    activation_checkpointing="none",
    narrow=True,
    compiled=False,
)


ONE_GPU = LayoutShape()


def memory(config: LlamaConfig, layout: LayoutShape = ONE_GPU, **changes: object) -> Memory:
    return memory_per_gpu(config, layout, dataclasses.replace(SETTINGS, **changes))  # type: ignore[arg-type]


def test_weights_gradients_and_moments_are_those_of_the_ranks_parameters() -> None:
    layout = LayoutShape(dp_replicate=2, tp=8, pp=8)
    most = memory(LLAMA_70B, layout, sequence_length=4096)
    held = rank_parameters(LLAMA_70B, layout, 0)
    assert most.weights == most.gradients == 4 * held
    assert most.optimizer == 8 * held


def test_sixteen_bytes_a_parameter_and_a_narrow_copy_on_one_gpu() -> None:
    alone = memory(KNOWN["meta-llama/Llama-2-7b"])
    count = KNOWN["meta-llama/Llama-2-7b"].parameter_count
    assert alone.weights + alone.gradients + alone.optimizer == 18 * count
    assert alone.communication == 0
    assert memory(KNOWN["meta-llama/Llama-2-7b"], narrow=False).weights == 4 * count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_of_a_block_are_near_those_that_autograd_keeps(dtype: torch.dtype) -> None:
    tokens = SETTINGS.sequence_length * SETTINGS.micro_batch_size
    real = (kept_bytes(4, dtype) - kept_bytes(3, dtype)) * 4
    predicted = memory(SMALL, narrow=dtype is torch.bfloat16).activations
    assert predicted / tokens == pytest.approx(real / tokens, rel=0.02)


def kept_bytes(blocks: int, dtype: torch.dtype) -> int:
    """Bytes of the tensors that a forward pass keeps for its backward pass, parameters aside."""
    model = Llama(SMALL.model_copy(update={"num_hidden_layers": blocks})).to(dtype)
    ours = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in ours:
            storages[place] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.randint(0, 64, (SETTINGS.micro_batch_size, SETTINGS.sequence_length)))
    return sum(storage.nbytes() for storage in storages.values())


def test_recomputation_keeps_less_and_full_keeps_the_inputs_of_blocks() -> None:
    modes = ("none", "selective", "full")
    long = {"sequence_length": 4096}  # so that the first stage needs more than the last one with the head
    kept = [
        memory(LLAMA_70B, LayoutShape(pp=8), activation_checkpointing=mode, **long).activations
        for mode in modes
    ]
    assert kept[0] > kept[1] > kept[2]
    tokens = 4096 * SETTINGS.micro_batch_size
    inputs = tokens * 2 * LLAMA_70B.hidden_size * 80  # ten blocks of eight micro-batches
    one_block = kept[0] / 80
    assert kept[2] == pytest.approx(inputs + one_block)


@pytest.mark.parametrize(
    ("schedule", "micro_batches", "passes"),
    # 1F1B: pp micro-batches of all blocks of the rank. Interleaved: 2 (pp - 1) + pp + 1 passes of half.
    [("1f1b", 8, 4), ("1f1b", 2, 2), ("interleaved", 8, 11 / 2), ("zero-bubble", 8, 11 / 2)],
)
def test_activations_in_flight_follow_the_schedule(schedule: str, micro_batches: int, passes: float) -> None:
    flat = memory(LLAMA_70B, sequence_length=4096).activations / LLAMA_70B.num_hidden_layers
    layout = LayoutShape(pp=4, schedule=schedule)
    piped = memory(LLAMA_70B, layout, micro_batches=micro_batches, sequence_length=4096)
    assert piped.activations == pytest.approx(flat * 20 * passes)


def test_adapters_are_small_and_quantized_weights_have_four_bits() -> None:
    full, lora, qlora = (
        memory(LLAMA_70B, method=FinetuneMethod(name=name, rank=16)) for name in ("full", "lora", "qlora")
    )
    count = LLAMA_70B.parameter_count
    adapters = lora.gradients / 4
    assert 0.002 < adapters / count < 0.004
    assert lora.weights == 2 * count + 4 * adapters
    embeddings = 2 * LLAMA_70B.vocab_size * LLAMA_70B.hidden_size
    quantized = (count - embeddings) * NF4_BITS / 8 + 2 * embeddings + 4 * adapters
    assert qlora.weights == pytest.approx(quantized, rel=1e-4)
    assert qlora.optimizer == lora.optimizer == 8 * adapters
    assert qlora.total < lora.total < full.total
    # A model of 65 billion parameters is finetuned on one GPU of 48 GB (Dettmers et al. 2023, abstract).
    method, settings = (
        FinetuneMethod(name="qlora"),
        {"activation_checkpointing": "full", "micro_batch_size": 1},
    )
    assert memory(LLAMA_70B, method=method, **settings).total < 48e9


def test_gathered_weights_of_heads_that_tp_does_not_divide() -> None:
    # 4 key/value heads: with tp 8 every rank has the whole attention of each block.
    model = KNOWN["Qwen/Qwen2.5-7B"]
    whole, layout = LayoutShape(tp=8), LayoutShape(dp_shard=2, tp=8)
    one, two = (
        rank_parameters(model.model_copy(update={"num_hidden_layers": count}), whole, 0) for count in (1, 2)
    )
    block, rest = two - one, 2 * one - two
    expected = 2 * (2 * block + rest) + 6 * max(block, rest)
    assert memory(model, layout).communication == pytest.approx(expected, rel=0.01)


def test_the_modules_of_the_recipe_have_adapters_and_copies_of_the_model_share_no_4_bit_weights() -> None:
    some = FinetuneMethod(name="lora", rank=8, modules=("q_proj", "down_proj"))
    width, mlp = LLAMA_70B.hidden_size, LLAMA_70B.intermediate_size
    assert memory(LLAMA_70B, method=some).gradients == 4 * 80 * 8 * (2 * width + width + mlp)
    qlora = FinetuneMethod(name="qlora")
    one, eight = (memory(LLAMA_70B, LayoutShape(dp_shard=n), method=qlora) for n in (1, 8))
    matrices = 80 * (2 * width * width + 2 * width * 1024 + 3 * width * mlp)
    assert eight.weights > matrices * NF4_BITS / 8
    assert eight.weights < one.weights
