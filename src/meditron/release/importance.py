"""The importance of a model's columns, from the file of an importance matrix, for the quantizers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.core.console import warn
from meditron.core.errors import InputError
from meditron.model.config import LlamaConfig
from meditron.model.gguf_layout import gguf_tensor_name
from meditron.model.shapes import parameter_shapes
from meditron.release.imatrix_file import TEXT_SHA256_KEY, read_imatrix

__all__ = ["NO_IMPORTANCE", "Importance", "load_importance"]

_MAX_LISTED = 3


@dataclass(frozen=True, slots=True)
class Importance:
    """The importance of the columns of a model's matrices, and its record in the files made with it."""

    columns: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """GGUF name of a matrix → importance of each of its columns."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Metadata of a quantized file: llama.cpp's keys, and the SHA-256 of the calibration text."""

    def __bool__(self) -> bool:
        """Return True if there is an importance matrix."""
        return bool(self.columns)


NO_IMPORTANCE = Importance()


def load_importance(path: Path, config: LlamaConfig) -> Importance:
    """Read an importance matrix for a model.

    Matrices that it lacks are quantized without importance, as by llama.cpp, with a warning. It never has the
    embedding, whose inputs are tokens.

    Raises:
        InputError: the file is damaged, or it is of another model.
    """
    matrix = read_imatrix(path)
    shapes = {gguf_tensor_name(n): shape for n, shape in parameter_shapes(config).items() if len(shape) > 1}
    hint = "it was computed with another model: meditron imatrix MODEL TEXT OUT"
    columns = {name: values for name, values in matrix.importance().items() if name in shapes}
    if not columns:
        raise InputError(path, "has no matrix of this model", hint=hint)
    for name, values in columns.items():
        if len(values) != shapes[name][-1]:
            problem = f"has {len(values):,} columns, the model {shapes[name][-1]:,}"
            raise InputError(path, problem, place=name, hint=hint)
    missing = [name for name in shapes if name.startswith("blk.") and name not in columns]
    if missing:
        listed = ", ".join(missing[:_MAX_LISTED]) + (", …" if len(missing) > _MAX_LISTED else "")
        warn(f"{path}: no importance for {len(missing)} of {len(shapes)} matrices: {listed}")
    metadata = {
        # Only the name: a path could tell more than its owner wants to publish.
        "quantize.imatrix.file": path.name,
        **({"quantize.imatrix.dataset": matrix.datasets[0]} if matrix.datasets else {}),
        "quantize.imatrix.entries_count": len(matrix.sums),
        "quantize.imatrix.chunks_count": matrix.chunks,
        **({TEXT_SHA256_KEY: matrix.text_sha256} if matrix.text_sha256 else {}),
    }
    return Importance(columns, metadata)
