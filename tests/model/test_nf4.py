"""NF4 against bitsandbytes' own CPU code: tables, codes, dequantized weights; and a quantized layer."""

import itertools

import pytest
import torch
from torch import nn

from meditron.model.lora_config import LoraConfig
from meditron.model.nf4 import (
    NF4_CODE,
    NF4LoraLinear,
    dequantize,
    dequantize_with_bitsandbytes,
    dynamic_code,
    quantize,
)

SHAPES = [(64, 64), (48, 100), (257, 320)]


def random_matrix(shape):
    torch.manual_seed(1)
    # Rows of different sizes, so that the scales differ as in a model.
    return torch.randn(shape) * torch.rand(shape[0], 1) * 0.1


def test_the_codes_quantiles_are_those_of_the_normal_distribution():
    # Appendix E of the paper: 8 quantiles below zero and 9 above, of the standard normal, scaled to 1.
    def quantiles(count):
        ppf = torch.special.ndtri(torch.linspace(0.9677083, 0.5, count, dtype=torch.float64))[:-1]
        return (ppf / ppf.max()).tolist()

    expected = sorted([*quantiles(9), 0.0, *(-value for value in quantiles(8))])
    torch.testing.assert_close(torch.tensor(NF4_CODE), torch.tensor(expected).float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_is_at_most_half_a_step_of_the_code_and_of_the_scale(shape):
    weight = random_matrix(shape)
    again = dequantize(**quantize(weight), shape=weight.shape)
    widest = max(b - a for a, b in itertools.pairwise(NF4_CODE))
    flat, back = (nn.functional.pad(w.flatten(), (0, -w.numel() % 64)).view(-1, 64) for w in (weight, again))
    bound = flat.abs().amax(dim=1, keepdim=True) * (widest / 2 + 0.02)
    assert ((flat - back).abs() <= bound + 2e-3).all()
    assert (weight - again).abs().mean() < 0.1 * weight.abs().mean()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.filterwarnings("ignore")
def test_codes_and_weights_are_those_of_bitsandbytes(shape):
    bnb = pytest.importorskip("bitsandbytes.functional")
    weight = random_matrix(shape)
    codes, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    ours = quantize(weight)
    assert torch.equal(torch.tensor(NF4_CODE), state.code.cpu())
    assert torch.equal(torch.tensor(dynamic_code()), state.state2.code.cpu())
    if weight.numel() % 64 == 0:
        assert torch.equal(ours["codes"], codes.flatten())
        # Of scales that lie between two codes, bitsandbytes takes now and then the other one.
        differences = (ours["scale_codes"].int() - state.absmax.int()).abs()
        assert differences.max() <= 1
        assert differences.sum() <= 0.02 * len(differences) + 1
    torch.testing.assert_close(ours["scale_mean"], state.offset)
    theirs = bnb.dequantize_4bit(codes, state)
    stored = (codes.flatten(), state.absmax, state.state2.absmax, state.offset)
    for read in (dequantize, dequantize_with_bitsandbytes):
        torch.testing.assert_close(read(*stored, shape=weight.shape), theirs, atol=1e-6, rtol=0)


def test_a_quantized_layer_computes_with_the_dequantized_matrix_and_its_gradient():
    linear = nn.Linear(48, 32)
    layer = NF4LoraLinear(linear, LoraConfig(rank=2, alpha=3.0), torch.float32)
    layer.fill(linear.weight.detach())
    torch.manual_seed(0)
    nn.init.normal_(layer.lora_A)
    nn.init.normal_(layer.lora_B)
    merged = layer.dequantized() + 1.5 * layer.lora_B.detach() @ layer.lora_A.detach()
    x, y = (torch.randn(3, 5, 48, requires_grad=True) for _ in range(2))
    y.data.copy_(x.data)
    out, expected = layer(x), nn.functional.linear(y, merged, linear.bias)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for result in (out, expected):
        result.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-3, rtol=1e-4)
    assert layer.lora_A.grad is not None
