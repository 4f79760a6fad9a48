"""The measured peak: the products of the model, each counted as often as the model has it."""

import time

import pytest
import torch

from hf_parity import make_hf, our_llama
from meditron.model.config import LlamaConfig
from meditron.train import peak

CPU = torch.device("cpu")


def test_each_matrix_counts_three_products_and_an_untied_embedding_none(monkeypatch):
    """With every product taking one second, the peak is the mean operations of a product."""
    monkeypatch.setattr(peak, "best_seconds", lambda work, **_: 1.0)
    for tied in (True, False):
        model = our_llama(make_hf(0, tie_word_embeddings=tied))
        embedding = model.model.embed_tokens.weight.numel()
        matrices = [weight for weight in model.parameters() if weight.dim() == 2]
        parameters = sum(weight.numel() for weight in matrices) - (0 if tied else embedding)
        products = 3 * (len(matrices) - (0 if tied else 1))
        assert (
            peak.matmul_peak(model.config, tokens=10, dtype=torch.float32, device=CPU)
            == 6 * 10 * parameters / products
        )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("trained", [None, 10**11, 10**9, 200_000, 20_000])
def test_the_measurement_has_bounded_memory_and_cost(monkeypatch, trained, device):
    """Also for a large vocabulary and a pass of a million tokens, which took 24 GB."""
    config = LlamaConfig(
        vocab_size=50_000,
        hidden_size=64,
        intermediate_size=5_000,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=128,
    )
    made, elements = peak._weight_products, []

    def products(tokens, out, width, like):
        elements.append((tokens * (2 * out + 2 * width) + 2 * out * width, 6 * tokens * out * width))
        return made(tokens, out, width, like)

    monkeypatch.setattr(peak, "_weight_products", products)
    monkeypatch.setattr(peak, "best_seconds", lambda work, **_: 1.0)
    empty = torch.empty

    def empty_without_memory(*size, device=None, **options):
        return empty(*size, device="meta" if device == torch.device("cuda") else device, **options)

    # There may be no GPU here.
    monkeypatch.setattr(torch, "empty", empty_without_memory)
    peak.matmul_peak(config, 10**6, trained, dtype=torch.float32, device=torch.device(device))
    limit = 48 << 20 if device == "cpu" else 1 << 30
    assert max(4 * held for held, _ in elements) <= limit
    runs = 4 if device == "cpu" else 31
    operations = runs * sum(each for _, each in elements)
    if trained is not None:
        assert operations <= 0.01 * 6 * trained * config.parameter_count


def test_the_peak_is_measured_in_the_models_dtype():
    products = peak._weight_products(5, 7, 3, torch.empty(0, dtype=torch.bfloat16))
    assert [tuple(product().shape) for product in products] == [(5, 7), (5, 3), (7, 3)]
    assert all(product().dtype == torch.bfloat16 for product in products)
    config = our_llama(make_hf(0)).config
    assert peak.matmul_peak(config, tokens=16, dtype=torch.bfloat16, device=CPU) > 0


def test_the_best_time_is_that_of_one_run():
    runs = []
    seconds = peak.best_seconds(lambda: runs.append(time.sleep(0.01)), rounds=2, repeats=3)
    assert len(runs) == 1 + 2 * 3
    assert 0.01 <= seconds < 0.03
