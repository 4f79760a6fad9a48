"""Rotary scalings against transformers' own, within and past the original context."""

import pytest
import torch

from hf_parity import SCALINGS, YARN, logits, make_hf, our_llama

MORE = [
    SCALINGS[2] | {"original_max_position_embeddings": 32},
    YARN,
    YARN | {"attention_factor": 1.3},
    YARN | {"mscale": 0.7, "mscale_all_dim": 0.9, "truncate": False},
]


@pytest.mark.parametrize("scaling", SCALINGS + MORE, ids=lambda s: s["rope_type"])
@pytest.mark.parametrize("length", [40, 100])
@torch.no_grad()
def test_logits_are_those_of_transformers(scaling, length):
    hf = make_hf(rope_parameters={"rope_theta": 1e4, **scaling})
    ids_BS = torch.randint(0, 512, (2, length), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits(our_llama(hf), ids_BS), hf(ids_BS).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_scaling_is_not_ignored():
    plain, stretched = (
        our_llama(make_hf()),
        our_llama(make_hf(rope_parameters={"rope_theta": 1e4, **SCALINGS[0]})),
    )
    ids_BS = torch.arange(40)[None]
    assert (logits(plain, ids_BS) - logits(stretched, ids_BS)).abs().max() > 0.1
