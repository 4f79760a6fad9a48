"""torch.compile, block by block, from outside the model."""

from collections.abc import Iterator
from contextlib import contextmanager

from meditron.ground.errors import MeditronError
from meditron.model.llama import Llama

__all__ = ["compiled"]


@contextmanager
def compiled(model: Llama) -> Iterator[None]:
    """Compile each block at its first use inside; all are alike, so one compilation serves them all.

    Raises MeditronError where there is no C++ compiler, or it fails.
    """
    from torch._dynamo.exc import BackendCompilerFailed

    for block in model.blocks():
        block.compile()
    try:
        yield
    except BackendCompilerFailed as error:
        reason = str(error).splitlines()[0]
        raise MeditronError(
            f"torch.compile failed: {reason}",
            hint="install a C++ compiler (g++), or go without: --set pretrain.compile=false",
        ) from error
