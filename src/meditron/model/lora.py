"""LoRA adapters (Hu et al. 2021) on a Llama: frozen matrices with trained updates of low rank.

An adapted layer keeps HF's name for its frozen weight and adds `lora_A` and `lora_B` beside it, so that a
model is loaded, divided over ranks and checkpointed as without adapters. Exports merge the update into the
weight.

Shapes: R rank, I inputs and O outputs of a matrix.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meditron.model.config import LlamaConfig
from meditron.model.llama import Llama
from meditron.model.lora_config import LoraConfig
from meditron.model.new_tokens import EMBEDDING, HEAD
from meditron.model.shapes import parameter_shapes

__all__ = [
    "LoraLinear",
    "MergedWeights",
    "WeightsWithAdapters",
    "adapter_names",
    "adapter_shapes",
    "add_adapters",
    "freeze_weights",
    "initial_adapter",
    "initialize_adapters",
    "trained_shapes",
    "widen_embeddings",
]


class LoraLinear(nn.Linear):
    """A linear layer whose frozen weight W has the trained update scale · B A.

    It is an `nn.Linear`, because torch's tensor parallelism divides no other layer.
    """

    def __init__(self, linear: nn.Linear, config: LoraConfig, dtype: torch.dtype) -> None:
        inputs, outputs = linear.in_features, linear.out_features
        super().__init__(inputs, outputs, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_A = nn.Parameter(linear.weight.new_zeros(config.rank, inputs, dtype=dtype))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(outputs, config.rank, dtype=dtype))
        # A number, not a module: tensor parallelism takes every module in a linear layer for one.
        self.scale, self.dropout = config.scale, config.dropout

    def forward(self, input: Tensor) -> Tensor:
        """Compute W x + scale · B (A x)."""
        kept = F.dropout(input, self.dropout) if self.dropout and self.training else input
        narrow = F.linear(kept, self.lora_A) * self.scale
        return F.linear(input, self.weight, self.bias) + F.linear(narrow, self.lora_B)


def add_adapters(llama: Llama, config: LoraConfig, dtype: torch.dtype) -> None:
    """Freeze a model, and give the configured matrices of its blocks adapters that are zero.

    Adapters, and the embedding and the head if they are trained, get the given dtype; adapters have the
    device of their weights. Before a forward pass all must have one dtype; an optimizer's masters are made
    from the trained parameters first.
    """
    for block in llama.blocks():
        for part in (block.self_attn, block.mlp):
            for name, module in list(part.named_children()):
                if name in config.modules:
                    assert isinstance(module, nn.Linear)  # noqa: S101 (for the type checker)
                    setattr(part, name, LoraLinear(module, config, dtype))
    widen_embeddings(llama, config, dtype)
    freeze_weights(llama, config)


def widen_embeddings(llama: Llama, config: LoraConfig, dtype: torch.dtype) -> None:
    """Convert the embedding and the head to `dtype` if they are trained."""
    if config.embeddings:
        llama.model.embed_tokens.to(dtype)
        if llama.lm_head is not None:
            llama.lm_head.to(dtype)


def freeze_weights(llama: Llama, config: LoraConfig) -> None:
    """Freeze all parameters except adapters, and the embedding and the head if they are trained."""
    trained = (EMBEDDING, HEAD) if config.embeddings else ()
    for name, parameter in llama.named_parameters():
        parameter.requires_grad_(_is_adapter(name) or name in trained)


def initialize_adapters(llama: Llama, seed: int) -> None:
    """Fill the adapters with their values before the first step."""
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            if _is_adapter(name):
                parameter.copy_(initial_adapter(name, tuple(parameter.shape), seed))


def initial_adapter(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return the first value of an adapter, in float32: B is zero, A uniform within ± 1/√I, as in peft.

    It depends on the seed and the name alone, so it is the same in every layout.
    """
    if name.endswith("lora_B"):
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def adapter_names(weight: str) -> tuple[str, str]:
    """Return the names of a weight's A and B: `….q_proj.lora_A` for `….q_proj.weight`."""
    stem = weight.removesuffix(".weight")
    return f"{stem}.lora_A", f"{stem}.lora_B"


def adapter_shapes(shape: LlamaConfig, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every A and B of a model by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (outputs, inputs) in _adapted_matrices(shape, config).items():
        a, b = adapter_names(name)
        shapes |= {a: (config.rank, inputs), b: (outputs, config.rank)}
    return shapes


def trained_shapes(shape: LlamaConfig, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every trained parameter by name: A and B, and the embedding and head if trained."""
    whole = {name: size for name, size in parameter_shapes(shape).items() if name in (EMBEDDING, HEAD)}
    return adapter_shapes(shape, config) | (whole if config.embeddings else {})


def _adapted_matrices(shape: LlamaConfig, config: LoraConfig) -> dict[str, tuple[int, int]]:
    endings = tuple(f".{module}.weight" for module in config.modules)
    shapes = parameter_shapes(shape)
    return {name: (size[0], size[1]) for name, size in shapes.items() if name.endswith(endings)}


def _is_adapter(name: str) -> bool:
    return name.endswith((".lora_A", ".lora_B"))


class WeightsWithAdapters(Mapping[str, Tensor]):
    """The weights of a model together with adapters before their first step, by name."""

    def __init__(
        self, weights: Mapping[str, Tensor], shape: LlamaConfig, config: LoraConfig, seed: int
    ) -> None:
        self._weights, self._seed = weights, seed
        self._adapters = adapter_shapes(shape, config)

    def __getitem__(self, name: str) -> Tensor:
        """Return a weight of the model, or draw an adapter."""
        if name in self._adapters:
            return initial_adapter(name, self._adapters[name], self._seed)
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names: the model's, then the adapters'."""
        yield from self._weights
        yield from self._adapters

    def __len__(self) -> int:
        """Return the number of weights and adapters."""
        return len(self._weights) + len(self._adapters)


class MergedWeights(Mapping[str, Tensor]):
    """The weights of a model with its adapters' updates added, by HF's names; each access computes one.

    The sum W + scale · B A is computed in float32, or float64 if W has it, and is not rounded further.

    Args:
        weights: Weights and adapters by name. Of an adapted matrix W, A and B are read in this order: reading
            one may be a collective operation of all ranks.
        shape: The model's config.
        config: The adapters' config.
    """

    def __init__(self, weights: Mapping[str, Tensor], shape: LlamaConfig, config: LoraConfig) -> None:
        self._weights, self._scale = weights, config.scale
        self._names = sorted(parameter_shapes(shape))
        self._adapted = _adapted_matrices(shape, config)

    def __getitem__(self, name: str) -> Tensor:
        """Return a weight with its update."""
        weight_OI = self._weights[name].detach()
        if name not in self._adapted:
            return weight_OI
        a_RI, b_OR = (self._weights[part].detach() for part in adapter_names(name))
        wide = torch.promote_types(weight_OI.dtype, torch.float32)
        return torch.addmm(weight_OI.to(wide), b_OR.to(wide), a_RI.to(wide), alpha=self._scale)

    def __iter__(self) -> Iterator[str]:
        """Iterate over HF's names, sorted."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of weights."""
        return len(self._names)

    def parts(self, name: str) -> tuple[str, ...]:
        """Return the names that an access of `name` reads, in order."""
        return (name, *adapter_names(name)) if name in self._adapted else (name,)
