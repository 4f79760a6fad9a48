"""A model under evaluation."""

from functools import cached_property
from types import TracebackType
from typing import Self

from meditron.engine.torch_engine import TorchEngine
from meditron.store.artifact import Artifact
from meditron.store.gguf import GGUF
from meditron.store.models import resolve

__all__ = ["Candidate"]

_PLAIN = {"F32", "F16", "BF16"}


class Candidate:
    """A model by its name in the recipe; it is loaded when it is first asked something, and only then.

    A context manager: at its end the model's memory is given back.
    """

    def __init__(self, name: str, artifact: Artifact, dtype: str) -> None:
        self.name = name
        self.artifact = artifact
        self.dtype = dtype
        """Number format of weights and activations."""

    @property
    def identity(self) -> dict[str, str | None]:
        """What a plan says of the model."""
        return {"model": self.artifact.digest, "selector": self.artifact.selector, "dtype": self.dtype}

    @cached_property
    def engine(self) -> TorchEngine:
        """The loaded model, on the GPU where there is one; errors as of `meditron.engine.load`."""
        return TorchEngine.load(self.artifact.spec, dtype=self.dtype)

    @cached_property
    def how(self) -> str:
        """What runs the model: quantized weights are widened first, and no other arithmetic is used."""
        files = resolve(self.artifact.spec)
        if files.kind != "gguf":
            return "torch"
        with GGUF(files.path) as gguf:
            types = {tensor.type for tensor in gguf.tensors.values()}
        return "torch" if types <= _PLAIN else "torch on dequantized weights"

    def row(self, plan: str) -> dict[str, str]:
        """What stands in each of the model's rows."""
        return {
            "model": self.name,
            "model_digest": self.artifact.digest,
            "engine": self.how,
            "plan": plan,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "engine" in self.__dict__:
            self.engine.close()
            del self.__dict__["engine"]
