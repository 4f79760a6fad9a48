"""What a checkpoint must hold, whatever its format: names, shapes, types."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from meditron.core.errors import EngineError, InputError, UsageError
from meditron.model.config import LlamaConfig
from meditron.model.llama import Llama

__all__ = ["DTYPES", "cannot_hold", "check_tensors", "parameter_shapes", "require_finite", "state_of"]

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of stored weights, by the name that safetensors and GGUF share."""

Shapes = Mapping[str, tuple[int, ...]]


def parameter_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """HF's name and the shape of every parameter; a tied head is the embedding and has no name."""
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in Llama(config).named_parameters()}


def state_of(model: Llama | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights of a model by HF's names, or the mapping that already holds them."""
    return model.state_dict() if isinstance(model, Llama) else model


def check_tensors(path: Path, wanted: Shapes, found: Shapes) -> None:
    """Raise InputError, in one line, unless `path` has exactly the wanted tensors in the wanted shapes."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    faults = [
        f"{len(names)} {what}: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if faults:
        raise InputError(path, "; ".join(faults), place="tensors")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise InputError(path, f"has shape {found[name]}, the configuration says {shape}", place=name)


def cannot_hold(name: str, kind: str, *, finite: bool) -> UsageError:
    """Return the error for a weight with values that the type has no numbers for."""
    if not finite:
        return UsageError(f"{name} has values that are no finite numbers: the model is broken")
    wider = "F32" if kind.isupper() else "float32"
    return UsageError(f"{name} has values that {kind} cannot hold", hint=f"write {wider} instead")


def require_finite(model: Llama, values: Tensor) -> None:
    """Raise EngineError unless all values that the model computed are finite, naming the weight at fault."""
    if bool(values.isfinite().all()):
        return
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise EngineError(f"logits are not finite: {name} contains NaN or infinity")
    dtype = str(values.dtype).removeprefix("torch.")
    raise EngineError(
        "logits are not finite: the activations overflow", hint=f"the model runs in {dtype}; try float32"
    )
