"""torch.compile, block by block, from outside the model."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from meditron.core.errors import MeditronError
from meditron.model.llama import Llama
from meditron.store.files import cache_folder
from meditron.train.attention import attend

__all__ = ["compiled"]


@contextmanager
def compiled(model: Llama) -> Iterator[None]:
    """Compile each block at its first use inside; all are alike, so one compilation serves them all.

    On a CPU the blocks' attention gets a gradient of matrix products, which pays when compiled only.

    What is compiled is kept in the user's own cache: torch's default lies under the shared temporary folder,
    where another user's programs would be found and run. Raises MeditronError where there is no C++ compiler,
    or it fails.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    import torch
    from torch._dynamo.exc import BackendCompilerFailed

    # After an earlier stage's shapes this one's would be compiled as variable: slower, and rounded otherwise
    # than in a process that goes on with this stage alone.
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
            hint="install a C++ compiler (g++), or go without: compile = false in the stage's table",
        ) from error
