"""Something that scores and generates. Importing this imports no torch: `load` does."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from meditron.core.errors import MissingExtra, UsageError
from meditron.engine.base import Engine, Generation, Reply

__all__ = ["Backend", "Engine", "Generation", "Reply", "load"]

Backend = Literal["torch", "llama.cpp"]
_EXTRAS = {"torch": "train", "httpx": "serve"}
_UNQUANTIZED = {"F32", "F16", "BF16"}


def load(
    spec: str | Path,
    *,
    dtype: str | None = None,
    backend: Backend | None = None,
    context: int | None = None,
) -> Engine:
    """Open a MODEL in torch, on the GPU where there is one, or in llama.cpp.

    Args:
        spec: The MODEL.
        dtype: torch's: float32, bfloat16 or float16; float32 on a CPU and bfloat16 on a GPU when absent.
        backend: When absent, llama.cpp for a quantized GGUF file, if xllamacpp is installed and no dtype is
            given; else torch.
        context: Tokens that a prompt and its answer may have together, at most the model's. When absent the
            model's; in llama.cpp, which allocates all of it at the start, as much of it as a bound on memory
            allows (`meditron.engine.llamacpp.CACHE_BYTES`).

    Raises:
        SourceError: the spec names no model.
        InputError: the model's files are damaged.
        UsageError: another dtype, a context out of range, or a model that the backend does not run.
        EngineError: llama.cpp's process dies.
        MissingExtra: the backend's library is not installed.
    """
    spec = str(spec)
    if backend is None:
        backend = "llama.cpp" if dtype is None and find_spec("xllamacpp") and _quantized(spec) else "torch"
    if backend not in ("torch", "llama.cpp"):
        raise UsageError(f"no engine {backend!r}", hint="there is torch and llama.cpp")
    if backend == "llama.cpp" and dtype is not None:
        raise UsageError(f"llama.cpp computes as the file is quantized, not in {dtype}")
    try:
        if backend == "llama.cpp":
            from meditron.engine.llamacpp import LlamaCppEngine

            return LlamaCppEngine.load(spec, context=context)
        from meditron.engine.torch_engine import TorchEngine

        return TorchEngine.load(spec, dtype=dtype, context=context)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        raise MissingExtra(error.name, _EXTRAS[error.name]) from error


def _quantized(spec: str) -> bool:
    """Whether a MODEL is a GGUF file with a tensor of any type but plain floats."""
    from meditron.store.gguf import GGUF
    from meditron.store.models import resolve

    files = resolve(spec)
    if files.kind != "gguf":
        return False
    with GGUF(files.path) as gguf:
        return any(tensor.type not in _UNQUANTIZED for tensor in gguf.tensors.values())
