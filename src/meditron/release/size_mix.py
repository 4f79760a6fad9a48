"""The best mix of types under a file size: the types that minimize the predicted KL divergence.

Quantization noise is small and roughly independent between matrices, so the KL divergence it causes is about
a sum over matrices of (relative squared error of the matrix) · (sensitivity of the model to it). The errors
are computed from samples of rows for every candidate type; the sensitivities are measured with the model
(`meditron.release.sensitivity`). Types are then chosen by a greedy search on the lower convex hull of each
matrix's (bytes, loss) points, which is optimal for every size at which it stops.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt

from meditron.core.errors import UsageError
from meditron.core.units import format_bytes
from meditron.model.weight_rows import WeightRows
from meditron.release.encode import decode_blocks, encode_rows
from meditron.release.file_plan import FilePlan, PlannedTensor
from meditron.release.importance import Importance
from meditron.store.gguf_types import FLOAT_TYPES, tensor_type

__all__ = ["CANDIDATES", "choose_types", "relative_error", "sampled_errors", "tensor_group"]

CANDIDATES = (
    "Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0", "F16",
)  # fmt: skip
"""Types that a matrix can get, as far as the length of its rows is a multiple of their block size."""

_SAMPLED_VALUES = 1 << 18
"""Values of a matrix from which its errors are computed."""


def tensor_group(name: str, blocks: int) -> str:
    """Return the group of matrices whose sensitivity is measured together, such as `ffn_down, middle`.

    Matrices of one kind are in three groups: in the first eighth of the blocks, the last, and between.
    """
    if not name.startswith("blk."):
        return name.removesuffix(".weight")
    _, index, kind, _ = name.split(".")
    eighth = max(1, blocks // 8)
    place = "first" if int(index) < eighth else "last" if int(index) >= blocks - eighth else "middle"
    return f"{kind}, {place}"


def relative_error(
    name: str, weight: WeightRows, kind: str, columns: npt.NDArray[np.float32] | None
) -> float:
    """Return the squared error of a matrix in a type, relative to its squares, from a sample of rows.

    Columns are weighted by their importance: the error is that of the matrix's outputs.
    """
    step = max(1, prod(weight.shape) // _SAMPLED_VALUES)
    rows = np.arange(0, weight.rows, step)
    values_RC = weight.read(rows)
    if kind in FLOAT_TYPES:
        return 0.0
    blocks = encode_rows(name, weight, rows, [kind], columns)[kind]
    error_RC = decode_blocks(blocks, kind, values_RC.shape[1]) - values_RC
    importance_C = np.ones(values_RC.shape[1], np.float32) if columns is None else columns
    total = float((values_RC**2 @ importance_C).sum())
    return float((error_RC**2 @ importance_C).sum()) / total if total > 0 else 0.0


def sampled_errors(
    plan: FilePlan, weights: Mapping[str, WeightRows], importance: Importance
) -> dict[str, dict[str, float]]:
    """Return GGUF name → candidate type → relative squared error, of all matrices."""
    errors = {}
    for tensor in plan.tensors:
        if tensor.source is not None and len(tensor.shape) > 1:
            weight, columns = weights[tensor.source], importance.columns.get(tensor.name)
            errors[tensor.name] = {
                kind: relative_error(tensor.source, weight, kind, columns)
                for kind in _candidates(tensor.shape[-1])
            }
    return errors


@dataclass(frozen=True, slots=True)
class _Choice:
    """A type of a matrix, with its cost and its predicted loss."""

    kind: str
    nbytes: int
    loss: float


def choose_types(
    plan: FilePlan,
    budget: int,
    errors: Mapping[str, Mapping[str, float]],
    sensitivity: Mapping[str, float],
    *,
    alignment: int,
) -> FilePlan:
    """Return the plan with the types of the least predicted loss.

    Args:
        plan: The plan, from which only the other tensors keep their types.
        budget: Bytes that all tensors with their padding may have.
        errors: From `sampled_errors`.
        sensitivity: GGUF name of a matrix → KL divergence per unit of its error.
        alignment: Alignment of the tensors in the file, in bytes.

    Raises:
        UsageError: even the smallest types exceed the budget.
    """
    hulls = {
        tensor.name: _lower_hull(
            [
                _Choice(kind, _padded(tensor, kind, alignment), error * sensitivity[tensor.name])
                for kind, error in errors[tensor.name].items()
            ]
        )
        for tensor in plan.tensors
        if tensor.name in errors
    }
    fixed = sum(_padded(t, t.type, alignment) for t in plan.tensors if t.name not in hulls)
    used = fixed + sum(hull[0].nbytes for hull in hulls.values())
    if used > budget:
        raise UsageError(
            f"the smallest mix of types has {format_bytes(used)} of tensors, the size leaves "
            f"{format_bytes(max(budget, 0))}"
        )
    chosen = dict.fromkeys(hulls, 0)
    steps = [(-_gain(hull, 0), name) for name, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, name = heapq.heappop(steps)
        hull, place = hulls[name], chosen[name]
        more = hull[place + 1].nbytes - hull[place].nbytes
        if used + more > budget:
            continue  # smaller steps of other matrices may still fit
        used, chosen[name] = used + more, place + 1
        if place + 2 < len(hull):
            heapq.heappush(steps, (-_gain(hull, place + 1), name))
    kinds = {name: hulls[name][place].kind for name, place in chosen.items()}
    tensors = [
        replace(t, type=kinds.get(t.name, t.type), target=kinds.get(t.name, t.type)) for t in plan.tensors
    ]
    return replace(plan, tensors=tuple(tensors))


def _candidates(width: int) -> list[str]:
    fitting = [kind for kind in CANDIDATES if width % tensor_type(kind).block_size == 0]
    # Types with blocks of 32 lose against K types of the same size where those are possible.
    wide = any(tensor_type(kind).block_size == 256 for kind in fitting)
    return [k for k in fitting if not wide or tensor_type(k).block_size == 256 or k in ("Q8_0", "F16")]


def _padded(tensor: PlannedTensor, kind: str, alignment: int) -> int:
    return -(-tensor_type(kind).nbytes(tensor.shape) // alignment) * alignment


def _gain(hull: Sequence[_Choice], place: int) -> float:
    """Return the reduction of the loss per byte of the step after `place`."""
    before, after = hull[place], hull[place + 1]
    return (before.loss - after.loss) / (after.nbytes - before.nbytes)


def _lower_hull(choices: Sequence[_Choice]) -> list[_Choice]:
    """Return the choices on the lower convex hull, by size: each step gains less per byte than the last."""
    hull: list[_Choice] = []
    for choice in sorted(choices, key=lambda each: (each.nbytes, each.loss)):
        if hull and choice.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain([hull[-2], hull[-1]], 0) <= _gain([hull[-2], choice], 0):
            hull.pop()
        hull.append(choice)
    return hull
