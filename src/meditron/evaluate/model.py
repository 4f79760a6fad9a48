"""A model under evaluation."""

import hashlib
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from meditron.core.errors import UsageError
from meditron.engine.torch_engine import TorchEngine
from meditron.model.tokenizer import model_tokenizer
from meditron.store.ancestry import Ancestry, read_ancestry
from meditron.store.artifact import Artifact
from meditron.store.files import canonical, digest_of
from meditron.store.gguf import GGUF
from meditron.store.models import ModelFiles, resolve
from meditron.text.finetune_templates import with_chat_template
from meditron.text.tokenizer import Tokenizer

__all__ = ["RAW", "EvalModel"]

RAW = "raw"
"""The prompt form without a chat template."""
_PLAIN = {"F32", "F16", "BF16"}
_CONTENT = (
    *("config.json", "*.safetensors", "*.safetensors.index.json"),
    *("*token*", "vocab*", "merges.txt", "*.jinja"),
)
"""Files of an HF folder that decide what the model says. Reports, metrics and manifests carry times."""


class EvalModel:
    """A model by its name in the recipe; it is loaded when it is first asked something, and only then.

    A context manager: at its end the model's memory is given back.
    """

    def __init__(self, name: str, artifact: Artifact, dtype: str) -> None:
        self.name = name
        self.artifact = artifact
        self.dtype = dtype
        """Number format of weights and activations."""

    @cached_property
    def files(self) -> ModelFiles:
        """The model's files; errors as of `resolve`."""
        return resolve(self.artifact.spec)

    @cached_property
    def content(self) -> list[Path]:
        """The files that decide what the model says; empty for seeded weights."""
        path = Path(self.files.path)
        if self.files.kind == "hf":
            return sorted({file for pattern in _CONTENT for file in path.glob(pattern) if file.is_file()})
        return [path] if self.files.kind == "gguf" else []

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the model's own files as they are now, whatever a manifest says of them."""
        if self.files.kind == "init":
            return hashlib.sha256(self.files.spec.encode()).hexdigest()
        if self.files.kind == "gguf":
            return digest_of(self.files.path)
        return hashlib.sha256(canonical([[file.name, digest_of(file)] for file in self.content])).hexdigest()

    @property
    def identity(self) -> dict[str, str]:
        """The part of a cache_key that the model decides."""
        return {"model": self.digest, "dtype": self.dtype}

    @cached_property
    def ancestry(self) -> Ancestry | None:
        """The record of the model's training data, if it has one."""
        return read_ancestry(self.files)

    @property
    def trained_form(self) -> str:
        """The prompt form of the last finetune in the ancestry: a chat template's name, or `raw`."""
        trainings = self.ancestry.trainings if self.ancestry else ()
        template = next((t.chat_template for t in reversed(trainings) if t.kind == "finetune"), None)
        return RAW if template in (None, "none") else str(template)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, which is there without the weights."""
        return model_tokenizer(self.files)

    @cached_property
    def chat_tokenizer(self) -> Tokenizer:
        """The tokenizer with the chat template of the trained form; UsageError if there is none."""
        tokenizer = with_chat_template(self.tokenizer, self.trained_form)
        if tokenizer.chat_template is None:
            raise UsageError(
                f"{self.name} was finetuned in its tokenizer's chat turns, but has no chat template now",
                hint="restore the template in tokenizer_config.json, or ask in plain text (prompt form raw)",
            )
        return tokenizer

    @cached_property
    def engine(self) -> TorchEngine:
        """The loaded model, on the GPU where there is one; errors as of `meditron.engine.load`."""
        return TorchEngine.load(self.artifact.spec, dtype=self.dtype)

    @cached_property
    def how(self) -> str:
        """What runs the model: quantized weights are widened first, and no other arithmetic is used."""
        if self.files.kind != "gguf":
            return "torch"
        with GGUF(self.files.path) as gguf:
            types = {tensor.type for tensor in gguf.tensors.values()}
        return "torch" if types <= _PLAIN else "torch on dequantized weights"

    def row(self, cache_key: str) -> dict[str, str]:
        """What stands in each of the model's rows."""
        return {
            "model": self.name,
            "model_digest": self.digest,
            "engine": self.how,
            "dtype": self.dtype,
            "cache_key": cache_key,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "engine" in self.__dict__:
            self.engine.close()
            del self.__dict__["engine"]
