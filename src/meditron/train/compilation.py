"""torch.compile, applied to the model's blocks from outside the model."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from meditron.core.errors import MeditronError
from meditron.model.llama import Llama
from meditron.store.files import cache_folder
from meditron.train.attention import attend

__all__ = ["compiled_blocks"]


@contextmanager
def compiled_blocks(model: Llama) -> Iterator[None]:
    """Compile each block at its first use; all blocks are alike, so one compilation serves them all.

    On a CPU the blocks also get an attention whose gradient is computed by matrix products, which is faster
    only if compiled. Compiled code is cached in the user's own cache folder: torch's default is the shared
    temporary folder, and programs that another user placed there would be run.

    Raises:
        MeditronError: There is no C++ compiler, or it fails.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    # torch is imported here, because its compiler reads the environment variable above at import.
    import torch
    from torch._dynamo.exc import BackendCompilerFailed

    # Without a reset, shapes that differ from those of an earlier stage would be compiled as dynamic: slower,
    # and with other rounding than in a process that runs this stage alone.
    torch.compiler.reset()
    for block in model.blocks():
        if model.head_weight.device.type == "cpu":
            block.self_attn.attend = attend
        block.compile()
    try:
        yield
    except BackendCompilerFailed as error:
        cause = error.inner_exception
        reason = next((line for line in str(cause).splitlines() if line.strip()), "")
        raise MeditronError(
            f"torch.compile failed: {type(cause).__name__}: {reason}",
            hint="install a C++ compiler (g++), or set compile = false in the stage's table",
        ) from error
