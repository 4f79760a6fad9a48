"""The measured peak is of the model's own products, each counted as often as it stands in the model."""

import torch

from meditron.train import peak
from twins import make_hf, twin


def test_each_matrix_counts_three_products_and_an_untied_embedding_none(monkeypatch):
    """With every product taking one second, the peak is the mean operations of a product."""
    monkeypatch.setattr(peak, "best_seconds", lambda work, rounds: 1.0)
    for tied in (True, False):
        model = twin(make_hf(0, tie_word_embeddings=tied))
        embedding = model.model.embed_tokens.weight.numel()
        matrices = [weight for weight in model.parameters() if weight.dim() == 2]
        parameters = sum(weight.numel() for weight in matrices) - (0 if tied else embedding)
        products = 3 * (len(matrices) - (0 if tied else 1))
        assert peak.matmul_peak(model, tokens=10) == 6 * 10 * parameters / products


def test_it_is_measured_in_the_models_number_format():
    model = twin(make_hf(0)).bfloat16()
    products = peak._products(5, 7, 3, model.head_weight.detach())
    assert [tuple(product().shape) for product in products] == [(5, 7), (5, 3), (7, 3)]
    assert all(product().dtype == torch.bfloat16 for product in products)
    assert peak.matmul_peak(model, tokens=16) > 0
