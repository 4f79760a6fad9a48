"""Rows for new tokens against transformers' `resize_token_embeddings`."""

import pytest
import torch

from hf_parity import make_hf
from meditron.model.new_tokens import NewTokens
from meditron.model.weight_rows import load_config
from meditron.model.weights import load_model, open_weights

KNOWN = 500  # tokens; the other 12 rows of the embedding are padding


def saved(folder, **changes):
    hf = make_hf(**changes)
    hf.save_pretrained(folder)
    return hf


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_those_of_transformers_mean_resizing(tied, tmp_path):
    hf = saved(tmp_path, tie_word_embeddings=tied)
    model = load_model(tmp_path, new_tokens=NewTokens(512, 515))
    # transformers draws from a normal distribution around the mean, with a billionth of the covariance.
    hf.resize_token_embeddings(515, mean_resizing=True)
    assert model.config.vocab_size == hf.config.vocab_size == 515
    torch.testing.assert_close(
        model.model.embed_tokens.weight, hf.get_input_embeddings().weight, atol=2e-4, rtol=0
    )
    torch.testing.assert_close(model.head_weight, hf.get_output_embeddings().weight, atol=2e-4, rtol=0)
    assert (model.lm_head is None) == tied
    assert load_config(tmp_path).vocab_size == 512


def test_the_mean_is_that_of_real_tokens_and_padding_rows_are_used_first(tmp_path):
    hf = saved(tmp_path, tie_word_embeddings=False)
    for end, rows in ((503, 512), (515, 515)):
        with open_weights(tmp_path, new_tokens=NewTokens(KNOWN, end)) as (config, weights):
            assert config.vocab_size == rows
            assert set(weights) == {name for name, _ in hf.named_parameters()}
            for name, weight in hf.named_parameters():
                extended = weights[name]
                if name not in ("model.embed_tokens.weight", "lm_head.weight"):
                    assert torch.equal(extended, weight)
                    continue
                assert extended.shape == (rows, 64)
                assert torch.equal(extended[:KNOWN], weight[:KNOWN])
                mean = weight[:KNOWN].double().mean(0).float()
                assert torch.equal(extended[KNOWN:end], mean.expand(end - KNOWN, -1))
                assert torch.equal(extended[end:512], weight[end:])


def test_new_rows_have_the_stored_dtype(tmp_path):
    make_hf().to(torch.bfloat16).save_pretrained(tmp_path)
    with open_weights(tmp_path, new_tokens=NewTokens(512, 514)) as (_, weights):
        embedding = weights["model.embed_tokens.weight"]
    assert embedding.dtype == torch.bfloat16
    torch.testing.assert_close(embedding[513].float(), embedding[:512].float().mean(0), atol=1e-4, rtol=4e-3)
