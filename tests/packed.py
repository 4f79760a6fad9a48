"""Folders in the layouts of GPTQ and AWQ, made from known integers by the definitions of the layouts."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AutoAWQ: the row, of eight neighbours, whose value has each place in a word."""


def pack_bits(values_XK: np.ndarray, bits: int) -> np.ndarray:
    """Pack the values of each row one after another from the lowest bit of the first word."""
    rows = []
    for values in values_XK.tolist():
        number = sum(value << (place * bits) for place, value in enumerate(values))
        words = len(values) * bits // 32
        rows.append(np.frombuffer(number.to_bytes(4 * words, "little"), "<i4"))
    return np.stack(rows)


def pack_awq(values_XR: np.ndarray) -> np.ndarray:
    """Pack eight neighbours of a row in a word, in AWQ's order."""
    order = [8 * word + place for word in range(values_XR.shape[1] // 8) for place in AWQ_ORDER]
    return pack_bits(values_XR[:, order], 4)


def quantized_parts(
    weight_RC: np.ndarray, *, method: str, bits: int, group_size: int, zero_offset: int, order: Sequence[int]
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Round a matrix to the nearest of each group's values.

    Returns:
        The tensors by the last part of their names, and the matrix that they mean.
    """
    rows, columns = weight_RC.shape
    size = columns if group_size == -1 else group_size
    group_C = np.empty(columns, dtype=np.int32)
    group_C[np.asarray(order)] = np.arange(columns) // size
    groups, most = columns // size, (1 << bits) - 1
    scales_GR, zeros_GR = np.empty((groups, rows), np.float16), np.empty((groups, rows), np.int64)
    values_RC = np.empty((rows, columns), np.int64)
    for group in range(groups):
        part = weight_RC[:, group_C == group]
        if method == "awq":  # asymmetric
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scales_GR[group] = (high - low) / most
            zeros_GR[group] = np.round(-low / scales_GR[group])
        else:
            scales_GR[group] = 2 * abs(part).max(1) / most
            zeros_GR[group] = 1 << (bits - 1)
        nearest = np.round(part / scales_GR[group].astype(np.float32)[:, None]) + zeros_GR[group][:, None]
        values_RC[:, group_C == group] = nearest.clip(0, most)
    scales_RC = scales_GR[group_C].T.astype(np.float32)
    meant_RC = ((values_RC - zeros_GR[group_C].T).astype(np.float32) * scales_RC).astype(np.float32)
    if method == "awq":
        parts = {"qweight": pack_awq(values_RC.T), "qzeros": pack_awq(zeros_GR), "scales": scales_GR}
    else:
        qweight = np.ascontiguousarray(pack_bits(values_RC, bits).T)
        qzeros = pack_bits(zeros_GR - zero_offset, bits)
        parts = {"qweight": qweight, "qzeros": qzeros, "scales": scales_GR, "g_idx": group_C}
    return {name: torch.from_numpy(array.copy()) for name, array in parts.items()}, meant_RC


def write_packed_folder(
    source: Path,
    folder: Path,
    *,
    method: str = "gptq",
    bits: int = 4,
    group_size: int = 32,
    act_order: bool = False,
    layout: str | None = None,
) -> dict[str, np.ndarray]:
    """Write a copy of an HF folder with packed matrices in its blocks; return what these mean."""
    if source != folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    layout = layout or ("gemm" if method == "awq" else "gptq")
    state, meant = load_file(folder / "model.safetensors"), {}
    for name in [name for name, weight in state.items() if ".layers." in name and weight.ndim == 2]:
        weight_RC = state.pop(name).float().numpy()
        columns = weight_RC.shape[1]
        order = np.random.default_rng(0).permutation(columns) if act_order else range(columns)
        parts, meant[name] = quantized_parts(
            weight_RC, method=method, bits=bits, group_size=group_size,
            zero_offset=int(layout == "gptq"), order=order,
        )  # fmt: skip
        state |= {f"{name.removesuffix('weight')}{part}": array for part, array in parts.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    quantization: dict[str, Any] = {"quant_method": method, "bits": bits, "group_size": group_size}
    quantization |= {"checkpoint_format": layout}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return meant
