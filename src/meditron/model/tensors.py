"""Checks of weights in every file format: names, shapes, types and finite values of tensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from meditron.core.errors import EngineError, InputError, UsageError
from meditron.model.config import LlamaConfig
from meditron.model.llama import Llama

__all__ = [
    "DTYPES",
    "check_tensors",
    "parameter_shapes",
    "require_finite",
    "state_dict_of",
    "weight_range_error",
]

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of stored weights, under the names that safetensors and GGUF share."""

Shapes = Mapping[str, tuple[int, ...]]


def parameter_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by HF's name; a tied head has no entry, as it is the embedding."""
    # The meta device gives shapes without allocating memory, even for a 70B config.
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in Llama(config).named_parameters()}


def state_dict_of(model: Llama | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a model's weights by HF's names; a mapping is returned as it is."""
    return model.state_dict() if isinstance(model, Llama) else model


def check_tensors(path: Path, expected: Shapes, actual: Shapes) -> None:
    """Raise InputError, in one line, unless `path` has exactly the expected tensors and shapes."""
    missing = [name for name in expected if name not in actual]
    unexpected = [name for name in actual if name not in expected]
    # Four names are enough to see the cause: a model of another size differs in hundreds.
    faults = [
        f"{len(names)} {kind}: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if faults:
        raise InputError(path, "; ".join(faults), place="tensors")
    for name, shape in expected.items():
        if actual[name] != shape:
            raise InputError(path, f"has shape {actual[name]}, but the config gives {shape}", place=name)


def weight_range_error(name: str, kind: str, *, finite: bool) -> UsageError:
    """Return the error for a weight that overflows in the type to write, or that is not finite itself."""
    if not finite:
        return UsageError(f"{name} contains NaN or infinity: the model is damaged")
    wider = "F32" if kind.isupper() else "float32"
    return UsageError(f"{name} has values that {kind} cannot represent", hint=f"write {wider} instead")


def require_finite(model: Llama, values: Tensor) -> None:
    """Raise EngineError if a value that the model computed is not finite, naming the weight at fault."""
    # One reduction per step. The search through the weights runs only after a failure.
    if bool(values.isfinite().all()):
        return
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise EngineError(f"logits are not finite: {name} contains NaN or infinity")
    dtype = str(values.dtype).removeprefix("torch.")
    raise EngineError(
        "logits are not finite: the activations overflow", hint=f"the model runs in {dtype}; use float32"
    )
