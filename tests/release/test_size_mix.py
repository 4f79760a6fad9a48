"""The choice of types under a size; exhaustive search is the reference."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.errors import UsageError
from meditron.release.file_plan import FilePlan, PlannedTensor
from meditron.release.size_mix import choose_types, tensor_group
from meditron.store.gguf_types import tensor_type

TYPES = ("Q2_K", "Q4_K", "Q8_0")
NAMES = ("blk.0.attn_v.weight", "blk.0.ffn_up.weight", "output.weight")


def plan(rows: list[int]) -> FilePlan:
    tensors = [
        PlannedTensor(name, name, (count, 256), "F16", "F16") for name, count in zip(NAMES, rows, strict=True)
    ]
    return FilePlan("x", tuple(tensors), {})


def nbytes(kind: str, rows: int) -> int:
    return -(-tensor_type(kind).nbytes((rows, 256)) // 32) * 32


@given(
    rows=st.lists(st.integers(1, 64), min_size=3, max_size=3),
    weights=st.lists(st.floats(0.01, 100), min_size=3, max_size=3),
    share=st.floats(0, 1),
)
def test_the_loss_is_near_the_best_and_the_size_is_kept(
    rows: list[int], weights: list[float], share: float
) -> None:
    error = {"Q2_K": 0.1, "Q4_K": 0.005, "Q8_0": 0.0001}
    sensitivity = dict(zip(NAMES, weights, strict=True))
    least, most = (sum(nbytes(kind, count) for count in rows) for kind in ("Q2_K", "Q8_0"))
    budget = int(least + share * (most - least))
    errors = dict.fromkeys(NAMES, error)
    mixed = choose_types(plan(rows), budget, errors, sensitivity, alignment=32)
    chosen = {tensor.name: tensor.type for tensor in mixed.tensors}

    def size(kinds: tuple[str, ...]) -> int:
        return sum(nbytes(kind, count) for kind, count in zip(kinds, rows, strict=True))

    def loss(kinds: tuple[str, ...]) -> float:
        return sum(error[kind] * sensitivity[name] for kind, name in zip(kinds, NAMES, strict=True))

    mix = tuple(chosen[name] for name in NAMES)
    assert size(mix) <= budget
    # The search is optimal except for the last step, which may not fit.
    smaller = max(budget - nbytes("Q8_0", max(rows)), least)
    best = min(loss(kinds) for kinds in product(TYPES, repeat=3) if size(kinds) <= smaller)
    assert loss(mix) <= best * (1 + 1e-9)


def test_too_small() -> None:
    errors, sensitivity = {name: {"Q2_K": 0.1} for name in NAMES}, dict.fromkeys(NAMES, 1.0)
    with pytest.raises(UsageError, match="smallest mix"):
        choose_types(plan([1, 1, 1]), 10, errors, sensitivity, alignment=32)


def test_groups() -> None:
    places = [tensor_group(f"blk.{block}.ffn_down.weight", 16) for block in (0, 1, 2, 13, 14)]
    assert places == ["ffn_down, first"] * 2 + ["ffn_down, middle"] * 2 + ["ffn_down, last"]
    assert tensor_group("token_embd.weight", 16) == "token_embd"
