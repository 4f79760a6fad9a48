"""Rough estimates of a stage's tokens, time, disk and memory, before anything is built.

They answer whether a run takes minutes or days and whether it fits: expect time within a factor of three.
Nothing is downloaded and nothing is trained; the only measurement is one small matrix product.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from meditron.core.errors import MeditronError
from meditron.core.machine import describe, matrix_dtype
from meditron.corpus.config import CorpusConfig
from meditron.evaluate.config import EvaluateConfig
from meditron.model.config import LlamaConfig
from meditron.model.presets import preset
from meditron.recipe.graph import references
from meditron.recipe.outside import local_file
from meditron.recipe.schema import Recipe, Step
from meditron.release.config import QuantizeConfig
from meditron.store.files import list_files, read_json
from meditron.store.gguf import GGUF
from meditron.store.models import resolve
from meditron.tasks.registry import TASKS
from meditron.train.config import FinetuneConfig, PretrainConfig, TrainingConfig

__all__ = ["Estimate", "estimates", "model_config"]

# Measured on one PubMed update file and one Wikipedia dump with SmolLM2's tokenizer, on an AVX2 EPYC.
_CHARACTERS_PER_TOKEN = 4.5
_CHARACTERS_PER_BYTE = {".gz": 0.75, ".bz2": 1.7, ".zst": 3.0}  # of a compressed file; 0.9 if it is not
_BUILD_CHARACTERS, _TOKENIZE_CHARACTERS = 2e6, 4e6  # per second and process
_CORPUS_BYTES_PER_CHARACTER = 0.4  # zstd
_EFFICIENCY = 0.5  # of a training step or a forward pass, in shares of a plain matrix product's rate
# Rate of bfloat16 products over float32's, by processor class.
_BFLOAT16_SPEEDUP = {"amx-bf16": 6.0, "avx512-bf16": 1.8, "arm-bf16": 1.8}
_ROW_TOKENS, _QUESTION_TOKENS, _DOCUMENT_TOKENS = 100, 100, 400  # where nothing tells their length
_QUANTIZE_WEIGHTS = 15e6  # per second, core and type
_BITS = {
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "Q8_0": 8.5,
    "Q6_K": 6.6,
    "Q5": 5.6,
    "Q4": 4.9,
    "Q3": 3.9,
    "Q2": 3.0,
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated cost of one stage; None if its inputs must be downloaded first."""

    tokens: int | None = None
    """Tokens that pass through a model or a tokenizer."""
    seconds: float | None = None
    disk: int | None = None
    """Bytes written that stay, and checkpoints while it runs."""
    memory: int | None = None
    """Bytes of memory at the peak, without the interpreter and its libraries."""

    def to_json(self) -> dict[str, Any]:
        """Return the form of --json."""
        return asdict(self)


def estimates(recipe: Recipe, names: set[str]) -> dict[str, Estimate]:
    """Estimate the stages `names` of a recipe, by name, in its order."""
    found: dict[str, Estimate] = {}
    for name, step in recipe.steps.items():
        estimate = _BY_KIND.get(step.stage.kind)
        if estimate is not None and name in names:
            found[name] = estimate(recipe, step)
    return found


def model_config(recipe: Recipe, step: Step) -> LlamaConfig | None:
    """Return the shape of the model that a stage's inputs lead to; None if it must be downloaded first."""
    for key, reference in references(recipe, step).items():
        if reference.step is not None:
            if key not in ("corpus", "tokens") and (
                found := model_config(recipe, recipe.steps[reference.step])
            ):
                return found
        elif (kind := step.config.input_kinds().get(key)) is not None and kind.name == "model":
            return _config_of(str(reference.source))
    return None


def _config_of(spec: str) -> LlamaConfig | None:
    try:
        if spec.startswith("init:"):
            return preset(spec)[0].config
        path = local_file(spec)
        files = resolve(str(path)) if path else None
        if files is None:
            return None
        if files.kind == "gguf":
            with GGUF(files.path) as gguf:
                return LlamaConfig.from_gguf(gguf.metadata, tied="output.weight" not in gguf.tensors)
        return LlamaConfig.from_hf(read_json(files.path / "config.json"), files.path / "config.json")
    except MeditronError:
        return None  # `preflight` lists what is wrong with it


def _corpus(recipe: Recipe, step: Step) -> Estimate:
    config = step.config
    assert isinstance(config, CorpusConfig)  # noqa: S101
    characters = [_characters(source.from_) for source in config.sources.values()]
    if any(known is None for known in characters):
        return Estimate()
    total = sum(known or 0.0 for known in characters)
    if config.limit is not None:
        total = min(total, config.limit * len(characters) * _DOCUMENT_TOKENS * _CHARACTERS_PER_TOKEN)
    return Estimate(
        tokens=round(total / _CHARACTERS_PER_TOKEN),
        seconds=total / _BUILD_CHARACTERS / config.workers,
        disk=round(total * _CORPUS_BYTES_PER_CHARACTER),
    )


def _characters(spec: str) -> float | None:
    try:
        path = local_file(spec)
        if path is None:
            return None
        files = list_files(path) if path.is_dir() else [path]
    except MeditronError:
        return None
    return sum(file.stat().st_size * _CHARACTERS_PER_BYTE.get(file.suffix, 0.9) for file in files)


def _tokenize(recipe: Recipe, step: Step) -> Estimate:
    if "corpus" not in recipe.steps:
        return Estimate()
    corpus = _corpus(recipe, recipe.steps["corpus"])
    if corpus.tokens is None:
        return Estimate()
    characters = corpus.tokens * _CHARACTERS_PER_TOKEN
    return replace(corpus, seconds=characters / _TOKENIZE_CHARACTERS, disk=corpus.tokens * 2)


def _pretrain(recipe: Recipe, step: Step) -> Estimate:
    config = step.config
    assert isinstance(config, PretrainConfig)  # noqa: S101
    return _training(recipe, step, config, config.steps * config.batch_size * config.sequence_length)


def _finetune(recipe: Recipe, step: Step) -> Estimate:
    config = step.config
    assert isinstance(config, FinetuneConfig)  # noqa: S101
    rows = config.limit
    limited = None if rows is None else rows * _ROW_TOKENS
    tokens = _at_most(limited, _file_tokens(config.rows or config.task or ""))
    return _training(recipe, step, config, None if tokens is None else tokens * config.epochs)


def _file_tokens(spec: str) -> int | None:
    """Return about how many tokens a local file of rows or questions has; None if it is not a local file."""
    path = None if spec in TASKS else _readable(spec)
    return None if path is None or not path.is_file() else round(path.stat().st_size / _CHARACTERS_PER_TOKEN)


def _at_most(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _readable(spec: str) -> Path | None:
    try:
        return local_file(spec)
    except MeditronError:
        return None


def _training(recipe: Recipe, step: Step, config: TrainingConfig, tokens: int | None) -> Estimate:
    shape = model_config(recipe, step)
    if shape is None:
        return Estimate(tokens=tokens)
    rows = config.micro_batch_size or config.batch_size
    width = 2 if matrix_dtype(config.dtype) == "bfloat16" else 4
    # Weights and gradients in the dtype; AdamW's two moments, and bfloat16's master weights, in float32.
    state = shape.parameters * (2 * width + 8 + (4 if width == 2 else 0))
    # About 34 values of the hidden size a token and layer (Korthikanti et al. 2022, arXiv:2205.05198, eq. 1).
    kept = rows * config.sequence_length * shape.num_hidden_layers * shape.hidden_size * 34 // 2 * width
    seconds = None
    if tokens is not None:
        operations = tokens * shape.flops_per_token(config.sequence_length)
        seconds = operations / (_products_per_second(config.dtype) * _EFFICIENCY)
    checkpoints = config.keep_checkpoints * shape.parameters * 12
    return Estimate(tokens, seconds, shape.parameters * 4 + checkpoints, state + kept)


def _quantize(recipe: Recipe, step: Step) -> Estimate:
    config = step.config
    assert isinstance(config, QuantizeConfig)  # noqa: S101
    shape = model_config(recipe, step)
    if shape is None:
        return Estimate()
    bits = sum(next(b for name, b in _BITS.items() if kind.startswith(name)) for kind in config.types)
    cores = config.threads or int(describe()["cores"])
    return Estimate(
        seconds=len(config.types) * shape.parameters / (_QUANTIZE_WEIGHTS * cores),
        disk=round(shape.parameters * bits / 8),
        memory=shape.vocab_size * shape.hidden_size * 8,
    )


def _evaluate(recipe: Recipe, step: Step) -> Estimate:
    config = step.config
    assert isinstance(config, EvaluateConfig)  # noqa: S101
    sources = len(recipe.steps["corpus"].config.inputs()) if "corpus" in recipe.steps else 1
    each = sources * config.documents * min(config.max_tokens, 2 * _DOCUMENT_TOKENS)
    for task in config.tasks:
        asked = _at_most(config.questions * _QUESTION_TOKENS, _file_tokens(task))
        each += (asked or 0) * (1 + config.shots)
    tokens = each * len(config.models)
    tokens += 2 * len(config.fidelity) * sources * config.fidelity_documents * _DOCUMENT_TOKENS
    shape = model_config(recipe, step)
    if shape is None:
        return Estimate(tokens=tokens)
    forward = shape.flops_per_token(_DOCUMENT_TOKENS) / 3  # a backward pass takes twice a forward pass
    seconds = tokens * forward / (_products_per_second(config.dtype) * _EFFICIENCY)
    return Estimate(
        tokens, seconds, None, shape.parameters * 4 + config.batch_tokens * shape.hidden_size * 64
    )


@cache
def _products_per_second(dtype: str) -> float:
    """Measure float32 products of 1024 x 1024 matrices (0.1 s); scale for bfloat16 by processor class."""
    a, b = np.ones((1024, 1024), np.float32), np.ones((1024, 1024), np.float32)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    speedup = _BFLOAT16_SPEEDUP.get(str(describe()["cpu_class"]), 1.0)
    return 2 * 1024**3 / min(times) * (speedup if matrix_dtype(dtype) == "bfloat16" else 1.0)  # type: ignore[arg-type]


_BY_KIND: Mapping[str, Callable[[Recipe, Step], Estimate]] = {
    "corpus": _corpus,
    "tokenize": _tokenize,
    "pretrain": _pretrain,
    "finetune": _finetune,
    "quantize": _quantize,
    "evaluate": _evaluate,
}
