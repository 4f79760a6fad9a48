"""Faster blocks, changed from outside the model: attention of the device, torch.compile, float8."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import nn

from meditron.core.errors import MeditronError, MissingExtra, RecipeError
from meditron.model.flex_attention import attend_to_blocks
from meditron.model.llama import Llama
from meditron.store.files import cache_folder
from meditron.train.attention import attend

__all__ = ["compile_blocks", "compiler_errors", "use_device_attention", "use_float8"]

# Compute capability of Hopper.
_FLOAT8_CAPABILITY = (9, 0)
# Float8 products need rows and columns in multiples of this.
_FLOAT8_MULTIPLE = 16


def use_device_attention(model: Llama, device: torch.device, *, compiled: bool) -> None:
    """Give the blocks the attention function for training on a device; results differ by rounding only.

    On a GPU it takes the masks of `model.flex_attention.visible_documents`. On a CPU its gradient is computed
    by matrix products, which is faster only if the blocks are compiled.
    """
    _use_own_compiler_cache()
    for block in model.blocks():
        if device.type == "cuda":
            block.self_attn.attend = attend_to_blocks
        elif device.type == "cpu" and compiled:
            block.self_attn.attend = attend


def compile_blocks(model: Llama, device: torch.device) -> None:
    """Compile each block at its first use; all blocks are alike, so one compilation serves them all.

    The blocks also get the attention of `use_device_attention`.
    """
    _use_own_compiler_cache()
    # Without a reset, shapes that differ from those of an earlier stage would be compiled as dynamic: slower,
    # and with other rounding than in a process that runs this stage alone.
    torch.compiler.reset()
    use_device_attention(model, device, compiled=True)
    for block in model.blocks():
        block.compile()


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Translate the errors of torch's compiler, which compiles at the first use of a block.

    Raises:
        MeditronError: There is no C++ compiler, or it fails.
    """
    # Imported here, because it takes seconds, and only for trainings that compile.
    from torch._dynamo.exc import BackendCompilerFailed

    try:
        yield
    except BackendCompilerFailed as error:
        cause = error.inner_exception
        reason = next((line for line in str(cause).splitlines() if line.strip()), "")
        raise MeditronError(
            f"torch.compile failed: {type(cause).__name__}: {reason}",
            hint="install a C++ compiler (g++), or set compile = false in the stage's table",
        ) from error


def _use_own_compiler_cache() -> None:
    """Cache compiled code in the user's own cache folder.

    torch's default is the shared temporary folder, and programs that another user placed there would be run.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))


def use_float8(model: Llama, device: torch.device) -> None:
    """Compute the matrix products of the blocks in float8, with torchao's dynamic scales per tensor.

    Weights, their names and the head are unchanged. Call this before compilation and before FSDP shards the
    blocks.

    Raises:
        RecipeError: The device has no instructions for float8.
        MissingExtra: torchao is not installed.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _FLOAT8_CAPABILITY:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
        raise RecipeError(
            f"float8 needs a GPU of the Hopper generation (H100, H200) or later, not {name}",
            hint="set float8 = false in the stage's table",
        )
    if find_spec("torchao") is None:
        raise MissingExtra("torchao", "gpu")
    from torchao.float8 import convert_to_float8_training

    def has_float8_shape(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and not any(n % _FLOAT8_MULTIPLE for n in module.weight.shape)

    for block in model.blocks():
        convert_to_float8_training(block, module_filter_fn=has_float8_shape)
