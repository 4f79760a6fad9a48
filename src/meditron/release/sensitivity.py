"""The measured sensitivity of a model to errors of its matrices.

For each group of matrices, the group alone is quantized and the KL divergence of the model's next-token
distributions from the original ones is measured on a calibration text. Divided by the errors of the group's
matrices it is the divergence per unit of error.

Shapes: S tokens of a chunk, V vocabulary.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from meditron.core.console import progress
from meditron.model.gguf_layout import gguf_tensor_name
from meditron.model.llama import Llama
from meditron.model.shapes import parameter_shapes
from meditron.model.weight_rows import WeightRows
from meditron.model.weights import load_model
from meditron.parallel.world import current_world, pick_device
from meditron.release.encode import decode_blocks, encode_rows, row_slices
from meditron.release.importance import Importance
from meditron.release.size_mix import tensor_group
from meditron.store.models import ModelFiles

__all__ = ["measure_sensitivity"]

_PROBES = ("Q3_K", "IQ4_NL")
"""Types whose noise is large enough to measure and small enough to be proportional; the second for rows whose
length is not a multiple of 256."""


def measure_sensitivity(
    files: ModelFiles,
    weights: Mapping[str, WeightRows],
    chunks: Sequence[Sequence[int]],
    errors: Mapping[str, Mapping[str, float]],
    importance: Importance,
) -> dict[str, float]:
    """Return the KL divergence (nats per token) per unit of relative squared error, by GGUF name.

    Args:
        files: The model.
        weights: Its weights.
        chunks: Token ids of pieces of a text.
        errors: GGUF name → type → relative squared error of a matrix.
        importance: Importance of the columns of matrices, with which they are quantized.
    """
    device = pick_device(current_world())
    model = load_model(files, device=device).eval()
    parameters = dict(model.named_parameters())
    names = {gguf_tensor_name(name): name for name in parameter_shapes(model.config)}
    groups: dict[str, list[str]] = {}
    for name in errors:
        groups.setdefault(tensor_group(name, model.config.num_hidden_layers), []).append(name)
    sensitivity: dict[str, float] = {}
    with torch.inference_mode(), progress("sensitivity", len(groups), "groups") as bar:
        originals = [_log_probs(model, chunk, device) for chunk in chunks]
        for members in groups.values():
            kept = {name: parameters[names[name]].clone() for name in members}
            probes = {name: next(kind for kind in _PROBES if kind in errors[name]) for name in members}
            for name, kind in probes.items():
                columns = importance.columns.get(name)
                quantized = _quantized(names[name], weights[names[name]], kind, columns)
                parameters[names[name]].copy_(quantized)
            divergence = sum(
                float(_divergence(original, _log_probs(model, chunk, device)))
                for original, chunk in zip(originals, chunks, strict=True)
            ) / len(chunks)
            for name, original in kept.items():
                parameters[names[name]].copy_(original)
            total = sum(errors[name][kind] for name, kind in probes.items())
            # Rounding can make a tiny divergence negative.
            value = max(divergence, 0.0) / total if total > 0 else 0.0
            sensitivity |= dict.fromkeys(members, value)
            bar.advance()
    return sensitivity


def _quantized(name: str, weight: WeightRows, kind: str, columns: object) -> Tensor:
    """Return a matrix after quantization, in float32 and HF's order of rows."""
    decoded = []
    for rows in row_slices(weight):
        blocks = encode_rows(name, weight, rows, [kind], columns)[kind]  # type: ignore[arg-type]
        decoded.append(torch.from_numpy(decode_blocks(blocks, kind, weight.shape[-1])))
    return torch.cat(decoded)


def _log_probs(model: Llama, chunk: Sequence[int], device: torch.device) -> Tensor:
    hidden_1SD = model(torch.tensor([list(chunk)], device=device))
    return F.log_softmax(F.linear(hidden_1SD[0], model.head_weight).float(), dim=-1)


def _divergence(original_SV: Tensor, changed_SV: Tensor) -> Tensor:
    return F.kl_div(changed_SV, original_SV, log_target=True, reduction="batchmean")
