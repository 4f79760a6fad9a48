"""Types of stored weights, and checks of a model's tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from meditron.core.errors import EngineError
from meditron.model.llama import Llama

__all__ = ["DTYPES", "require_finite", "state_dict_of"]

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of stored weights, under the names that safetensors and GGUF share."""


def state_dict_of(model: Llama | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a model's weights by HF's names; a mapping is returned as it is."""
    return model.state_dict() if isinstance(model, Llama) else model


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
