"""Models under evaluation: in local files, behind a server, or behind any other engine."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from meditron.core.errors import MeditronError, UsageError
from meditron.core.redaction import public_address
from meditron.engine.base import API_SCHEME, Engine, Generates, GivesLogits, ScoresTokens
from meditron.model.packed_format import packed_format_of
from meditron.model.presets import model_tokenizer
from meditron.store.ancestry import Ancestry, read_ancestry
from meditron.store.files import canonical_json
from meditron.store.gguf import GGUF
from meditron.store.gguf_types import FLOAT_TYPES
from meditron.store.manifest import Artifact
from meditron.store.models import ModelFiles, content_files, model_digest, resolve_model
from meditron.text.chat import FIXED_DATE, Message
from meditron.text.finetune_templates import with_chat_template
from meditron.text.prompt import render_conversation
from meditron.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from meditron.engine.api import ApiSettings
    from meditron.evaluate.config import EvalOptions

__all__ = ["RAW", "ApiModel", "EvalModel", "LlamaCppModel", "LocalModel", "open_judge"]

RAW = "raw"
"""Name of the prompt form without a chat template."""
_SERVER = "server"
"""Name of the prompt form in which a server applies its own chat template."""


class EvalModel:
    """A model under evaluation: an engine, opened on first use, and the model's identity in rows and results.

    This class is for models without local files, such as a model behind an API, which are identified by the
    engine's `identity` (URL, model, date). `LocalModel` is for models in files. Used as a context manager,
    the model closes its engine at the end, which frees the memory.
    """

    def __init__(self, name: str, open_engine: Callable[[], Engine]) -> None:
        self.name = name
        self._open_engine = open_engine

    @cached_property
    def engine(self) -> Engine:
        """The engine; opened on first use."""
        return self._open_engine()

    @property
    def scorer(self) -> ScoresTokens:
        """The engine, for scoring given tokens; UsageError if it cannot."""
        # Checked at run time, because an engine may be implemented outside of this package.
        if isinstance(self.engine, ScoresTokens):
            return self.engine
        raise self._missing_capability("ScoresTokens", "log-probabilities of given tokens")

    @property
    def logits_engine(self) -> GivesLogits:
        """The engine, for next-token distributions; UsageError if it does not return them."""
        if isinstance(self.engine, GivesLogits):
            return self.engine
        raise self._missing_capability("GivesLogits", "next-token distributions")

    @property
    def generator(self) -> Generates:
        """The engine, for generating text; UsageError if it cannot."""
        if isinstance(self.engine, Generates):
            return self.engine
        raise self._missing_capability("Generates", "generated text")

    def _missing_capability(self, capability: str, meaning: str) -> UsageError:
        return UsageError(
            f"{self.name}: the engine '{self.engine_label}' lacks the capability {capability} ({meaning})",
            hint="choose a --method that this engine supports",
        )

    @cached_property
    def provenance(self) -> dict[str, str]:
        """The engine's identity in results: engine, URL, model and date."""
        return dict(self.engine.identity)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the engine's identity; identifies the model in rows."""
        # Without the date, so that an evaluation that continues the next day reuses its rows.
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
    def content_files(self) -> list[Path]:
        """Local files that decide the model's output; empty for a model without files."""
        return []

    @property
    def ancestry(self) -> Ancestry | None:
        """The record of the model's training data; None if there is none."""
        return None

    @property
    def trained_prompt_form(self) -> str:
        """Prompt form of the model's last finetuning: the name of a chat template, or `raw`."""
        # Only finetunings count: pretraining after one does not change the prompt form.
        trainings = self.ancestry.trainings if self.ancestry else ()
        template = next((t.chat_template for t in reversed(trainings) if t.kind == "finetune"), None)
        return RAW if template in (None, "none") else str(template)

    @property
    def chat_tokenizer(self) -> Tokenizer:
        """The tokenizer, with the chat template that the model was finetuned with."""
        raise UsageError(
            f"{self.name}: the engine '{self.engine_label}' has no tokenizer",
            hint="evaluate in plain text: --prompt-form raw",
        )

    def render_messages(self, messages: Sequence[Message]) -> str:
        """Render a prompt of chat messages as the text that the model reads, to record and to hash.

        Raises:
            UsageError: the model was trained with a chat template, but has none now.
            InputError: the chat template fails.
        """
        return render_conversation(self.chat_tokenizer, messages, now=FIXED_DATE)

    def answering(self, *, generates: bool) -> "EvalModel":
        """Return the model in the engine that answers questions.

        Args:
            generates: True for answers in generated text, for which another engine can be faster.
        """
        del generates
        return self

    @property
    def cache_identity(self) -> dict[str, str]:
        """The part of a cache key that identifies the model and its number format."""
        return {"model": self.digest, "dtype": self.dtype}

    def row_fields(self, cache_key: str) -> dict[str, str]:
        """Return the fields that all rows of this model have."""
        return {
            "model": self.name,
            "model_digest": self.digest,  # two evaluations may use one name for different models
            "engine": self.engine_label,
            "dtype": self.dtype,
            "cache_key": cache_key,
        }

    def require_finite(self, measure: str, *values: float) -> None:
        """Raise MeditronError if a value is infinite or NaN."""
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
        # If all rows were reused, the engine was never opened, and closing must not open it.
        if "engine" in self.__dict__:
            self.engine.close()
            del self.__dict__["engine"]


class ApiModel(EvalModel):
    """A model behind an OpenAI-compatible server, which applies its own chat template."""

    def __init__(self, spec: str, settings: "ApiSettings") -> None:
        """Name a model `api:http://host:port/v1#model`; the first use connects to the server."""
        self._spec, self._settings = spec, settings
        super().__init__(public_address(spec.removeprefix(API_SCHEME)), self._connect)

    def _connect(self) -> Engine:
        from meditron.engine.api import ApiEngine

        return ApiEngine.load(self._spec, self._settings)

    @property
    def trained_prompt_form(self) -> str:
        """`server`: prompts are sent as chat messages."""
        return _SERVER

    def render_messages(self, messages: Sequence[Message]) -> str:
        """Return the roles and contents of the messages, because the server's template is not known."""
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


class LocalModel(EvalModel):
    """A model in local files. Everything except the engine is available without loading the weights.

    Args:
        name: Name in rows and results.
        artifact: The model.
        dtype: Number format in torch.
        backend: Engine for all methods; None: torch, and llama.cpp for generated answers of a quantized GGUF
            file.
    """

    def __init__(
        self, name: str, artifact: Artifact, dtype: str, backend: Literal["torch", "llama.cpp"] | None = None
    ) -> None:
        super().__init__(name, self._load_engine)
        self.artifact = artifact
        self._dtype, self._backend = dtype, backend

    def answering(self, *, generates: bool) -> EvalModel:
        """Return this model, or the same files in llama.cpp; leaving this model's context closes both."""
        if self._backend == "llama.cpp" or (
            self._backend is None and generates and self._is_quantized and find_spec("xllamacpp") is not None
        ):
            return self._in_llamacpp
        return self

    @cached_property
    def _in_llamacpp(self) -> "LlamaCppModel":
        return LlamaCppModel(self.name, self.artifact)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if "_in_llamacpp" in self.__dict__:
            self._in_llamacpp.__exit__(kind, error, trace)

    @cached_property
    def tensor_types(self) -> Mapping[str, int]:
        """Type of the tensors of a GGUF file → their bytes; empty for other files."""
        if self.model_files.kind != "gguf":
            return {}
        counts: Counter[str] = Counter()
        with GGUF(self.model_files.path) as gguf:
            for tensor in gguf.tensors.values():
                counts[tensor.type] += tensor.nbytes
        return counts

    @property
    def _is_quantized(self) -> bool:
        return not set(self.tensor_types) <= FLOAT_TYPES

    def _load_engine(self) -> Engine:
        """Load the weights, on the GPU if there is one. Raises the errors of `TorchEngine.load`."""
        # Imported here, because comparing rows and computing digests do not need torch.
        from meditron.engine.torch_engine import TorchEngine

        return TorchEngine.load(self.artifact.spec, dtype=self._dtype)

    @property
    def dtype(self) -> str:
        """Number format of weights and activations."""
        return self._dtype

    @cached_property
    def model_files(self) -> ModelFiles:
        """The model's files. Raises the errors of `resolve_model`."""
        return resolve_model(self.artifact.spec)

    @cached_property
    def content_files(self) -> list[Path]:
        """Local files that decide the model's output; see `store.models.content_files`."""
        return content_files(self.model_files)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the model's files, and not of their manifest, which may be out of date."""
        return model_digest(self.model_files)

    @cached_property
    def provenance(self) -> dict[str, str]:
        """An empty mapping, because the digest identifies a model in files."""
        return {}

    @cached_property
    def ancestry(self) -> Ancestry | None:
        """The record of the model's training data; None if there is none."""
        return read_ancestry(self.model_files)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return model_tokenizer(self.model_files)

    @cached_property
    def chat_tokenizer(self) -> Tokenizer:
        """The tokenizer, with the chat template that the model was finetuned with; UsageError without one."""
        tokenizer = with_chat_template(self.tokenizer, self.trained_prompt_form)
        if tokenizer.chat_template is None:
            raise UsageError(
                f"{self.name} was finetuned in its tokenizer's chat turns, but has no chat template now",
                hint="restore the template in tokenizer_config.json, or evaluate in plain text "
                "(prompt form raw)",
            )
        return tokenizer

    @cached_property
    def engine_label(self) -> str:
        """Name of the engine in rows and tables. It says if quantized weights are dequantized on loading."""
        # Labelled differently, because llama.cpp and vLLM compute with quantized values and give slightly
        # other scores.
        packed = self.model_files.kind == "hf" and packed_format_of(self.model_files.path) is not None
        return "torch on dequantized weights" if self._is_quantized or packed else "torch"


class LlamaCppModel(LocalModel):
    """A model in a GGUF file that llama.cpp runs, in one slot, so that equal runs give equal answers."""

    def __init__(self, name: str, artifact: Artifact) -> None:
        super().__init__(name, artifact, "", "llama.cpp")

    def _load_engine(self) -> Engine:
        from meditron.engine.llamacpp import LlamaCppEngine

        return LlamaCppEngine.load(self.artifact.spec, slots=1)

    def answering(self, *, generates: bool) -> EvalModel:
        """Return this model."""
        del generates
        return self

    @property
    def dtype(self) -> str:
        """The type with the most bytes in the file."""
        return max(self.tensor_types, key=self.tensor_types.__getitem__, default="unknown")

    @cached_property
    def engine_label(self) -> str:
        """Name of the engine in rows and tables."""
        return "llama.cpp"


def open_judge(spec: str, options: "EvalOptions", artifact: Artifact | None, dtype: str) -> EvalModel:
    """Open a judge, lazily.

    Args:
        spec: The judge as named in the options.
        options: The evaluation options: requests in flight, timeout.
        artifact: The judge's files; None for a judge behind a server.
        dtype: Number format in torch. A quantized GGUF file runs in llama.cpp.
    """
    if artifact is not None:
        return LocalModel(spec, artifact, dtype)
    from meditron.engine.api import JUDGE_KEY_VARIABLE, ApiSettings

    settings = ApiSettings(
        concurrency=options.concurrency, timeout=options.timeout, key_variable=JUDGE_KEY_VARIABLE
    )
    return ApiModel(spec, settings)
