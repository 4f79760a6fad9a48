"""GGUF files to split, made by gguf-py."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

KINDS = ("F32", "F16", "Q8_0", "Q4_0")


def write_model(path: Path, *, layers: int = 6, seed: int = 0, **options: Any) -> Path:
    """Write a file with pairs of every type and tensors of several types; `options`: of GGUFWriter."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_name("split me")
    writer.add_uint64("a.uint64", 1)
    writer.add_int16("a.int16", -1)
    writer.add_float64("a.float64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_array("a.texts", ["a", "é", ""])
    writer.add_array("a.numbers", [1, 2, 3])
    for layer in range(layers):
        kind = gguf.GGMLQuantizationType[KINDS[layer % len(KINDS)]]
        data = gguf.quants.quantize(rng.standard_normal((3, 96), dtype=np.float32), kind)
        writer.add_tensor(f"blk.{layer}.weight", data, raw_dtype=kind)
        writer.add_tensor(f"blk.{layer}.norm", rng.standard_normal(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
