"""Something that scores and generates. Importing this imports no torch: `load` does."""

from meditron.engine.base import Engine, Generation, Reply
from meditron.ground.errors import MissingExtra

__all__ = ["Engine", "Generation", "Reply", "load"]


def load(spec: str, *, dtype: str | None = None) -> Engine:
    """Open a MODEL in torch, on the GPU where there is one.

    `dtype`: float32, bfloat16 or float16; float32 on a CPU and bfloat16 on a GPU when absent. Raises
    SourceError for what names no model, InputError for damaged files, UsageError for another dtype,
    MissingExtra without torch.
    """
    try:
        from meditron.engine.torch_engine import TorchEngine
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtra("torch", "train") from error
    return TorchEngine.load(spec, dtype=dtype)
