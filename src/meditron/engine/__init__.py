"""Engines: models that generate and score. This package imports no torch until `load` is called."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from meditron.core.errors import MissingExtra, UsageError
from meditron.engine.base import (
    API_SCHEME,
    Engine,
    Generates,
    Generation,
    GivesLogits,
    LocalEngine,
    Reply,
    ScoresTokens,
)
from meditron.store.gguf_types import FLOAT_TYPES

__all__ = [
    "API_SCHEME",
    "Backend",
    "Engine",
    "Generates",
    "Generation",
    "GivesLogits",
    "LocalEngine",
    "Reply",
    "ScoresTokens",
    "load",
    "load_generator",
]

Backend = Literal["torch", "llama.cpp"]
_ATTEMPTS = 4  # at a terminal a failure of the server is reported within seconds
_EXTRAS = {"torch": "train", "httpx": "llamacpp"}


def load(
    spec: str | Path,
    *,
    dtype: str | None = None,
    backend: Backend | None = None,
    context: int | None = None,
) -> LocalEngine:
    """Open a MODEL in torch (on the GPU if there is one) or in llama.cpp.

    Args:
        spec: The MODEL.
        dtype: torch only: float32, bfloat16 or float16. Default: float32 on a CPU, bfloat16 on a GPU.
        backend: Default: llama.cpp for a quantized GGUF file, if xllamacpp is installed and `dtype` is None;
            otherwise torch.
        context: Maximum number of tokens of a prompt and its answer together, at most the model's own context
            length. Default: that length. llama.cpp allocates the whole KV cache at the start, so its default
            is the longest context whose cache fits in `meditron.engine.llamacpp.CACHE_BYTES`.

    Raises:
        SourceError: there is no such model.
        InputError: the model's files are damaged.
        UsageError: `dtype`, `backend` or `context` is invalid, or the backend cannot run the model.
        EngineError: llama.cpp's process dies.
        MissingExtra: the backend's library is not installed.
    """
    spec = str(spec)
    if backend is None:
        backend = (
            "llama.cpp" if dtype is None and find_spec("xllamacpp") and _is_quantized_gguf(spec) else "torch"
        )
    if backend not in ("torch", "llama.cpp"):
        raise UsageError(f"the engine must be torch or llama.cpp, got {backend!r}")
    if backend == "llama.cpp" and dtype is not None:
        raise UsageError(
            f"llama.cpp computes in the file's own types; dtype {dtype} cannot be set",
            hint="use --engine torch, or leave the dtype out",
        )
    with _name_missing_extras():
        if backend == "llama.cpp":
            from meditron.engine.llamacpp import LlamaCppEngine

            return LlamaCppEngine.load(spec, context=context)
        from meditron.engine.torch_engine import TorchEngine

        return TorchEngine.load(spec, dtype=dtype, context=context)


def load_generator(
    spec: str,
    *,
    dtype: str | None = None,
    backend: Backend | None = None,
    context: int | None = None,
) -> Generates:
    """Open a MODEL that generates text: one that `load` opens, or one behind a server (`api:http://…#model`).

    Args:
        spec: The MODEL.
        dtype: See `load`.
        backend: See `load`.
        context: See `load`.

    Raises:
        UsageError: a setting of local models is given for one behind a server; or as for `load`.
        EngineError: the server does not answer; or as for `load`.
        SourceError, InputError, MissingExtra: as for `load`.
    """
    if not spec.startswith(API_SCHEME):
        return load(spec, dtype=dtype, backend=backend, context=context)
    for name, value in (("dtype", dtype), ("engine", backend), ("context", context)):
        if value is not None:
            raise UsageError(
                f"{name} {value}: the model is behind a server, which decides it", hint=f"leave out --{name}"
            )
    with _name_missing_extras():
        from meditron.engine.api import ApiEngine, ApiSettings

        return ApiEngine.load(spec, ApiSettings(attempts=_ATTEMPTS))


@contextmanager
def _name_missing_extras() -> Iterator[None]:
    """Raise MissingExtra for a library that an extra of the package installs."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        raise MissingExtra(error.name, _EXTRAS[error.name]) from error


def _is_quantized_gguf(spec: str) -> bool:
    """Return True for a GGUF file with a tensor that is not F32, F16 or BF16."""
    from meditron.store.gguf import GGUF
    from meditron.store.models import resolve_model

    files = resolve_model(spec)
    if files.kind != "gguf":
        return False
    with GGUF(files.path) as gguf:
        return any(tensor.type not in FLOAT_TYPES for tensor in gguf.tensors.values())
