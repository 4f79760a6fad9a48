"""NF4: matrices in 4 bits with double quantization, as in QLoRA (Dettmers et al. 2023, section 3).

The weights of a block of 64 are divided by the largest of their absolute values and rounded to the nearest
of 16 quantiles of a normal distribution. The scales of the blocks, minus their mean, are in turn quantized to
8 bits in blocks of 256, with the dynamic data type of Dettmers et al. 2022 (8-bit optimizers). Codes, tables
and their layout are those of bitsandbytes, which dequantizes on a GPU if it is installed.

Shapes: I inputs and O outputs of a matrix, R rank of an adapter.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meditron.model.llama import Llama
from meditron.model.lora import add_adapters, freeze_weights, initialize_adapters, widen_embeddings
from meditron.model.lora_config import LORA_MODULES, LoraConfig
from meditron.model.new_tokens import NewTokens
from meditron.model.weights import open_weights
from meditron.store.models import ModelFiles

__all__ = [
    "NF4_CODE",
    "NF4Linear",
    "NF4LoraLinear",
    "WholeWeights",
    "dequantize",
    "dequantize_with_bitsandbytes",
    "dynamic_code",
    "load_with_adapters",
    "quantize",
    "quantize_blocks",
    "quantized_layers",
]

NF4_CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 16 values, from the paper's appendix E."""
BLOCK = 64
"""Weights that share a scale."""
SCALES = 256
"""Scales that share a scale."""


@cache
def dynamic_code() -> tuple[float, ...]:
    """Return the 256 values of the 8-bit dynamic data type, sorted.

    A value has a sign, a decimal exponent of 0 to -6, and a linear fraction between 0.1 and 1 that has the
    fewer steps the smaller the exponent is: 64 at the top, one at the bottom. Zero and one are added.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6)
        values += [*middles.tolist(), *(-middles).tolist()]
    return tuple(sorted(values))


def quantize(weight_OI: Tensor) -> dict[str, Tensor]:
    """Quantize a matrix; the keys are those of `dequantize`.

    Returns:
        `codes`: two weights per byte, the first in the upper half; `scale_codes`: a byte for each block of
        weights; `scale_scales`: float32, one for each block of scales; `scale_mean`: float32.
    """
    blocks = _rows_of(weight_OI.float(), BLOCK)
    scales = blocks.abs().amax(dim=1)
    indices = _nearest(blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None], NF4_CODE)
    pairs = indices.view(-1, 2).to(torch.uint8)
    mean = scales.mean()
    grouped = _rows_of(scales - mean, SCALES)
    largest = grouped.abs().amax(dim=1)
    scale_codes = _nearest(
        grouped / largest.clamp(min=torch.finfo(torch.float32).tiny)[:, None], dynamic_code()
    )
    return {
        "codes": pairs[:, 0] << 4 | pairs[:, 1],
        "scale_codes": scale_codes.view(-1)[: len(scales)].to(torch.uint8),
        "scale_scales": largest,
        "scale_mean": mean,
    }


def dequantize(
    codes: Tensor, scale_codes: Tensor, scale_scales: Tensor, scale_mean: Tensor, *, shape: torch.Size
) -> Tensor:
    """Return the matrix of quantized weights, in float32; the arguments are the results of `quantize`."""
    table = torch.tensor(NF4_CODE, device=codes.device)
    scale_table = torch.tensor(dynamic_code(), device=codes.device)
    scales = _rows_of(scale_table[scale_codes.int()], SCALES) * scale_scales[:, None]
    scales = scales.view(-1)[: len(scale_codes)] + scale_mean
    indices = torch.stack((codes >> 4, codes & 15), dim=1).view(-1, BLOCK)
    values = table[indices.int()] * scales[:, None]
    return values.view(-1)[: shape.numel()].view(shape)


class WholeWeights(Mapping[str, Tensor]):
    """The weights of a model by HF's names, those of quantized layers dequantized at each access.

    Args:
        llama: The model.
        masters: Tensors to return in place of the model's own, by name.
    """

    def __init__(self, llama: Llama, masters: Mapping[str, Tensor]) -> None:
        self._quantized = quantized_layers(llama)
        self._stored = llama.state_dict() | dict(masters)

    def __getitem__(self, name: str) -> Tensor:
        """Return a weight."""
        layer = self._quantized.get(name)
        return self._stored[name] if layer is None else layer.dequantized()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter({**self._stored, **self._quantized})

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len({**self._stored, **self._quantized})


def quantized_layers(llama: Llama) -> dict[str, "NF4Linear"]:
    """Return the quantized layers by the name of their weight: `model.layers.0.self_attn.q_proj.weight`."""
    modules = llama.named_modules()
    return {f"{name}.weight": module for name, module in modules if isinstance(module, NF4Linear)}


def quantize_blocks(llama: Llama, adapter: LoraConfig, dtype: torch.dtype) -> None:
    """Replace the matrices of a model's blocks by quantized ones without values, with adapters that are zero.

    Args:
        llama: The model; its matrices are discarded.
        adapter: The adapters' config. Matrices without an adapter are quantized too.
        dtype: Dtype of the adapters.
    """
    for block in llama.blocks():
        for part in (block.self_attn, block.mlp):
            for name, module in list(part.named_children()):
                if name in LORA_MODULES:
                    assert isinstance(module, nn.Linear)  # noqa: S101 (for the type checker)
                    adapted = (
                        NF4LoraLinear(module, adapter, dtype)
                        if name in adapter.modules
                        else NF4Linear(module)
                    )
                    setattr(part, name, adapted)
    widen_embeddings(llama, adapter, dtype)
    freeze_weights(llama, adapter)


def load_with_adapters(
    model: ModelFiles,
    adapter: LoraConfig,
    *,
    dtype: torch.dtype,
    adapter_dtype: torch.dtype,
    seed: int,
    device: torch.device,
    quantized: bool,
    new_tokens: NewTokens | None = None,
) -> Llama:
    """Load a model with adapters on frozen weights; memory holds one more matrix in full.

    Args:
        model: The files of the model.
        adapter: Config of the adapters that the model gets, with their values before the first step.
        dtype: Dtype of the frozen weights.
        adapter_dtype: Dtype of the adapters, and of the embedding and the head if they are trained.
        seed: Seed of the adapters, and of the weights of a preset.
        device: Device of the model.
        quantized: Keep the matrices of the blocks in NF4.
        new_tokens: Tokens that are added to the vocabulary.
    """
    with open_weights(model, seed=seed, new_tokens=new_tokens) as (shape, weights):
        with torch.device("meta"):
            llama = Llama(shape).to(dtype)
        (quantize_blocks if quantized else add_adapters)(llama, adapter, adapter_dtype)
        llama.to_empty(device=device)
        with torch.no_grad():
            for name, parameter in llama.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
            for name, layer in quantized_layers(llama).items():
                layer.fill(weights[name])
        initialize_adapters(llama, seed)
        return llama


class NF4Linear(nn.Module):
    """A frozen linear layer in 4 bits; its matrix is dequantized for each product and not kept."""

    codes: Tensor
    scale_codes: Tensor
    scale_scales: Tensor
    scale_mean: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.shape = linear.weight.shape
        self.bias = linear.bias
        device = linear.weight.device
        blocks = -(-self.shape.numel() // BLOCK)
        # Buffers, because FSDP shards parameters: every data-parallel rank has all 4-bit weights.
        empty = {
            "codes": torch.empty(blocks * BLOCK // 2, dtype=torch.uint8, device=device),
            "scale_codes": torch.empty(blocks, dtype=torch.uint8, device=device),
            "scale_scales": torch.empty(-(-blocks // SCALES), dtype=torch.float32, device=device),
            "scale_mean": torch.empty((), dtype=torch.float32, device=device),
        }
        for name, buffer in empty.items():
            self.register_buffer(name, buffer)

    def fill(self, weight_OI: Tensor) -> None:
        """Quantize a matrix into this layer."""
        for name, values in quantize(weight_OI).items():
            getattr(self, name).copy_(values)

    def dequantized(self) -> Tensor:
        """Return the matrix that the layer computes with, in float32."""
        buffers = (self.codes, self.scale_codes, self.scale_scales, self.scale_mean)
        if self.codes.is_cuda and _has_bitsandbytes():
            return dequantize_with_bitsandbytes(*buffers, shape=self.shape)
        return dequantize(*buffers, shape=self.shape)

    def forward(self, input: Tensor) -> Tensor:
        """Compute W x."""
        out: Tensor = _FrozenProduct.apply(input, self)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias


class NF4LoraLinear(NF4Linear):
    """A frozen linear layer in 4 bits with the trained update scale · B A."""

    def __init__(self, linear: nn.Linear, config: LoraConfig, dtype: torch.dtype) -> None:
        super().__init__(linear)
        outputs, inputs = self.shape
        self.lora_A = nn.Parameter(linear.weight.new_zeros(config.rank, inputs, dtype=dtype))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(outputs, config.rank, dtype=dtype))
        self.scale, self.dropout = config.scale, config.dropout

    def forward(self, input: Tensor) -> Tensor:
        """Compute W x + scale · B (A x)."""
        kept = F.dropout(input, self.dropout) if self.dropout and self.training else input
        narrow = F.linear(kept, self.lora_A) * self.scale
        return super().forward(input) + F.linear(narrow, self.lora_B)


class _FrozenProduct(torch.autograd.Function):
    """x Wᵀ. The backward pass dequantizes W again: saved, all matrices would be in memory at once."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: NF4Linear) -> Tensor:  # noqa: ANN401
        ctx.layer = layer
        return F.linear(input, layer.dequantized().to(input.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient,) = gradients
        return gradient @ ctx.layer.dequantized().to(gradient.dtype), None


@cache
def _has_bitsandbytes() -> bool:
    return find_spec("bitsandbytes") is not None


def dequantize_with_bitsandbytes(
    codes: Tensor, scale_codes: Tensor, scale_scales: Tensor, scale_mean: Tensor, *, shape: torch.Size
) -> Tensor:
    """Do `dequantize` with bitsandbytes' kernel."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    def table(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, device=codes.device)

    scales = QuantState(scale_scales, code=table(dynamic_code()), blocksize=SCALES, dtype=torch.float32)
    state = QuantState(
        scale_codes,
        shape=shape,
        code=table(NF4_CODE),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=torch.float32,
        offset=scale_mean,
        state2=scales,
    )
    values: Tensor = dequantize_4bit(codes[:, None], state)
    return values.view(shape)


def _rows_of(values: Tensor, size: int) -> Tensor:
    """Return values as rows of `size`, the last one padded with zeros."""
    flat = values.reshape(-1)
    return F.pad(flat, (0, -len(flat) % size)).view(-1, size)


def _nearest(values: Tensor, code: tuple[float, ...]) -> Tensor:
    """Return the index of the nearest value of a sorted code."""
    table = torch.tensor(code, device=values.device)
    return torch.bucketize(values, (table[1:] + table[:-1]) / 2)
