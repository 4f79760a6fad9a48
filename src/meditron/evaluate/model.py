"""Models under evaluation: local files, or any engine."""

import hashlib
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from meditron.core.errors import MeditronError, UsageError
from meditron.engine.base import Engine, Generates, GivesLogits, ScoresTokens
from meditron.model.presets import model_tokenizer
from meditron.store.ancestry import Ancestry, read_ancestry
from meditron.store.files import canonical_json, content_digest
from meditron.store.gguf import GGUF
from meditron.store.gguf_types import FLOAT_TYPES
from meditron.store.manifest import Artifact
from meditron.store.models import ModelFiles, resolve_model
from meditron.text.finetune_templates import with_chat_template
from meditron.text.tokenizer import Tokenizer

__all__ = ["RAW", "EvalModel", "LocalModel"]

RAW = "raw"
"""The prompt form without a chat template."""
# Files of an HF folder that decide the model's output. Reports, metrics and manifests carry times.
_MODEL_FILES = (
    *("config.json", "*.safetensors", "*.safetensors.index.json"),
    *("*token*", "vocab*", "merges.txt", "*.jinja"),
)


class EvalModel:
    """A model under evaluation: an engine, opened on first use, and its identity in rows and results.

    By itself it is a model without local files, such as one behind an API, identified by the engine's
    `identity` (URL, model, date). `LocalModel` adds files. A context manager; closing it frees the memory.
    """

    def __init__(self, name: str, open_engine: Callable[[], Engine]) -> None:
        self.name = name
        self._open_engine = open_engine

    @cached_property
    def engine(self) -> Engine:
        """The open engine."""
        return self._open_engine()

    @property
    def scorer(self) -> ScoresTokens:
        """The engine, if it scores given tokens; UsageError if it does not."""
        # Protocols are checked at run time: an engine may come from outside of this package.
        if isinstance(self.engine, ScoresTokens):
            return self.engine
        raise self._lacks("ScoresTokens", "log-probabilities of given tokens")

    @property
    def logits(self) -> GivesLogits:
        """The engine, if it gives whole distributions; UsageError if it does not."""
        if isinstance(self.engine, GivesLogits):
            return self.engine
        raise self._lacks("GivesLogits", "next-token distributions")

    @property
    def generator(self) -> Generates:
        """The engine, if it generates text; UsageError if it does not."""
        if isinstance(self.engine, Generates):
            return self.engine
        raise self._lacks("Generates", "generated text")

    def _lacks(self, capability: str, meaning: str) -> UsageError:
        return UsageError(
            f"{self.name}: the engine '{self.engine_label}' lacks the capability {capability} ({meaning})",
            hint="choose a --method that this engine supports",
        )

    @cached_property
    def provenance(self) -> dict[str, str]:
        """The engine's identity, for results: engine, URL, model and date."""
        return dict(self.engine.identity)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the model's identity in rows."""
        # Without the date: an evaluation that continues the next day is still of the same model.
        stable = {key: value for key, value in self.provenance.items() if key != "date"}
        return hashlib.sha256(canonical_json(stable)).hexdigest()

    @property
    def dtype(self) -> str:
        """Number format of weights and activations."""
        return self.provenance.get("dtype", "unknown")

    @property
    def engine_label(self) -> str:
        """Name of the engine in rows and tables."""
        return self.provenance.get("engine", type(self.engine).__name__)

    @property
    def content(self) -> list[Path]:
        """Local files that decide the model's output."""
        return []

    @property
    def ancestry(self) -> Ancestry | None:
        """The record of the model's training data, if it has one."""
        return None

    @property
    def trained_form(self) -> str:
        """Prompt form of the last finetune in the ancestry: a chat template's name, or `raw`."""
        # The last finetune decides: later pretraining does not teach another form.
        trainings = self.ancestry.trainings if self.ancestry else ()
        template = next((t.chat_template for t in reversed(trainings) if t.kind == "finetune"), None)
        return RAW if template in (None, "none") else str(template)

    @property
    def chat_tokenizer(self) -> Tokenizer:
        """The tokenizer with the chat template of the trained form."""
        raise UsageError(
            f"{self.name}: the engine '{self.engine_label}' has no tokenizer",
            hint="evaluate in plain text: --prompt-form raw",
        )

    @property
    def cache_identity(self) -> dict[str, str]:
        """The model's part of a cache key."""
        return {"model": self.digest, "dtype": self.dtype}

    def row_fields(self, cache_key: str) -> dict[str, str]:
        """Return the fields of every row of this model."""
        return {
            "model": self.name,
            "model_digest": self.digest,  # two models may have one name in two evaluations
            "engine": self.engine_label,
            "dtype": self.dtype,
            "cache_key": cache_key,
        }

    def require_finite(self, measure: str, *values: float) -> None:
        """Raise MeditronError if a value is infinite or not a number."""
        for value in values:
            if not math.isfinite(value):
                raise MeditronError(
                    f"{self.name}: {measure} is {value}",
                    hint="the weights are damaged, or the number format is too narrow: try dtype = 'float32'",
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A model whose rows were all there already was never loaded: closing must not load it.
        if "engine" in self.__dict__:
            self.engine.close()
            del self.__dict__["engine"]


class LocalModel(EvalModel):
    """A model in files, by its name in the recipe. Everything but the engine is known without the weights."""

    def __init__(self, name: str, artifact: Artifact, dtype: str) -> None:
        super().__init__(name, self._load)
        self.artifact = artifact
        self._dtype = dtype

    def _load(self) -> Engine:
        """Load the weights, on the GPU if there is one; errors as of `meditron.engine.load`."""
        # Imported here: comparing rows and reading digests need no torch.
        from meditron.engine.torch_engine import TorchEngine

        return TorchEngine.load(self.artifact.spec, dtype=self._dtype)

    @property
    def dtype(self) -> str:
        """Number format of weights and activations."""
        return self._dtype

    @cached_property
    def files(self) -> ModelFiles:
        """The model's files; errors as of `resolve`."""
        return resolve_model(self.artifact.spec)

    @cached_property
    def content(self) -> list[Path]:
        """Local files that decide the model's output; empty for seeded weights."""
        path = Path(self.files.path)
        if self.files.kind == "hf":
            return sorted({file for pattern in _MODEL_FILES for file in path.glob(pattern) if file.is_file()})
        return [path] if self.files.kind == "gguf" else []

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the model's files as they are now; a manifest may describe an earlier state."""
        # Seeded weights have no files: their name, which includes the seed, is their identity.
        if self.files.kind == "init":
            return hashlib.sha256(self.files.spec.encode()).hexdigest()
        if self.files.kind == "gguf":
            return content_digest(self.files.path)
        return hashlib.sha256(
            canonical_json([[file.name, content_digest(file)] for file in self.content])
        ).hexdigest()

    @cached_property
    def provenance(self) -> dict[str, str]:
        """Nothing: the digest identifies local files."""
        return {}

    @cached_property
    def ancestry(self) -> Ancestry | None:
        """The record of the model's training data, if it has one."""
        return read_ancestry(self.files)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, available without the weights."""
        return model_tokenizer(self.files)

    @cached_property
    def chat_tokenizer(self) -> Tokenizer:
        """The tokenizer with the chat template of the trained form; UsageError if there is none."""
        tokenizer = with_chat_template(self.tokenizer, self.trained_form)
        if tokenizer.chat_template is None:
            raise UsageError(
                f"{self.name} was finetuned in its tokenizer's chat turns, but has no chat template now",
                hint="restore the template in tokenizer_config.json, or evaluate in plain text "
                "(prompt form raw)",
            )
        return tokenizer

    @cached_property
    def engine_label(self) -> str:
        """Name of the engine. Quantized weights are dequantized when they are loaded."""
        if self.files.kind != "gguf":
            return "torch"
        # Labelled, because llama.cpp computes with the quantized values and gives slightly other figures.
        with GGUF(self.files.path) as gguf:
            types = {tensor.type for tensor in gguf.tensors.values()}
        return "torch" if types <= FLOAT_TYPES else "torch on dequantized weights"
