"""Digests of quantized files, so tests compare with llama.cpp's output without llama.cpp."""

import hashlib
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np

from meditron.model.gguf_layout import gguf_tensor_name
from meditron.model.shapes import parameter_shapes
from meditron.model.weight_rows import load_config
from meditron.release.imatrix_file import ImportanceMatrix, write_imatrix
from meditron.release.types import GGUFType
from meditron.store.gguf import GGUF

GOLDEN = Path(__file__).parent / "release" / "golden" / "llama_cpp.json"
"""Digests of llama.cpp's output for the models `wide` and `odd`, and its types for models of many blocks."""


NEED_IMATRIX: frozenset[GGUFType] = frozenset(
    {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS"}
)
"""Types with a matrix that llama.cpp refuses to write without an importance matrix."""


FAST_TYPES: tuple[GGUFType, ...] = tuple(kind for kind in get_args(GGUFType) if kind.startswith(("Q", "IQ4")))
"""Quantized types that take less than a second for a small model; codebooks of the other IQ types are
searched for each block."""


def seeded_imatrix(model: Path, path: Path) -> Path:
    """Write an importance matrix with the same bits on every machine: spread over three decades."""
    generator = np.random.PCG64(5)
    sums, counts = {}, {}
    for source, shape in parameter_shapes(load_config(model)).items():
        name = gguf_tensor_name(source)
        if len(shape) == 2 and name.startswith("blk."):
            raw = generator.random_raw(shape[-1])
            sums[name] = ((raw >> np.uint64(54)) + np.uint64(1)).astype(np.float32)
            counts[name] = 64.0
    write_imatrix(path, ImportanceMatrix(sums, counts, ("seeded",), 1, 64))
    return path


def write_golden(found: dict[str, dict[str, str]]) -> None:
    """Replace digests of the golden file."""
    text = json.dumps(golden() | found, indent=2)
    GOLDEN.write_text(text + "\n", encoding="utf-8")


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def digest(path: Path) -> str:
    """Return the SHA-256 over every tensor's name, type, shape and bytes, ordered by name."""
    sha256 = hashlib.sha256()
    with GGUF(path) as gguf:
        for name, info in sorted(gguf.tensors.items()):
            sha256.update(f"{name} {info.type} {info.shape}\n".encode())
            sha256.update(gguf.raw_tensor(name).tobytes())
    return sha256.hexdigest()
