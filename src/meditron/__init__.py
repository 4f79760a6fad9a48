"""Meditron: the whole life of a medical language model. For research, never clinical use."""

from typing import TYPE_CHECKING

from meditron.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from meditron.engine import Backend, LocalEngine

__all__ = ["__version__", "load"]


def load(
    model: "str | Path",
    *,
    dtype: str | None = None,
    backend: "Backend | None" = None,
    context: int | None = None,
) -> "LocalEngine":
    """Open a MODEL (a run's stage, an HF folder, a `.gguf`, `pypi:…`) to generate and score with.

    `dtype`, `backend` (torch or llama.cpp), `context` (tokens) and errors as of `meditron.engine.load`.
    """
    from meditron.engine import load as open_engine

    return open_engine(model, dtype=dtype, backend=backend, context=context)
