"""Rough estimates of a stage's tokens, time, disk and memory, computed before anything is built.

The estimates tell whether a run takes minutes or days, and whether it fits on the machine. Real times differ
from the estimates by up to a factor of three. Nothing is downloaded or trained; the only measurement is one
small matrix product.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from meditron.core.errors import MeditronError
from meditron.core.machine import describe, resolve_matrix_dtype
from meditron.corpus.config import CorpusConfig
from meditron.evaluate.config import EvaluateConfig
from meditron.model.config import LlamaConfig
from meditron.model.presets import find_preset
from meditron.parallel.shapes import LayoutShape
from meditron.plan.architectures import known_config
from meditron.plan.memory import FinetuneMethod, MemorySettings, MethodName, memory_per_gpu
from meditron.recipe.external_inputs import local_input
from meditron.recipe.graph import input_references
from meditron.recipe.schema import Recipe, StageSpec
from meditron.release.config import QuantizeConfig
from meditron.store.files import list_files, read_json
from meditron.store.gguf import GGUF
from meditron.store.models import resolve_model
from meditron.tasks.registry import TASKS, is_lm_eval_definition, parse_task
from meditron.train.config import PretrainConfig, TrainingConfig
from meditron.train.finetune_config import CORPUS, FinetuneConfig

__all__ = ["Estimate", "estimate_stages", "finetune_method", "model_config", "source_model_config"]

# Measured on one PubMed update file and one Wikipedia dump with SmolLM2's tokenizer, on an AVX2 EPYC.
_CHARACTERS_PER_TOKEN = 4.5
_CHARACTERS_PER_BYTE = {".gz": 0.75, ".bz2": 1.7, ".zst": 3.0}  # of a compressed file; 0.9 if it is not
_BUILD_CHARACTERS, _TOKENIZE_CHARACTERS = 2e6, 4e6  # per second and process
_CORPUS_BYTES_PER_CHARACTER = 0.4  # zstd
_EFFICIENCY = 0.5  # rate of a training step or forward pass over that of a plain matrix product
# CPU class → speed of bfloat16 matrix products, as a multiple of the speed of float32 ones.
_BFLOAT16_SPEEDUP = {"amx-bf16": 6.0, "avx512-bf16": 1.8, "arm-bf16": 1.8}
_DECODING_COST = 3  # time of a generated token over that of a prompt's, 16 answers at a time, on one core
_ROW_TOKENS, _QUESTION_TOKENS, _DOCUMENT_TOKENS = 100, 100, 400  # if their length is unknown
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
    """Estimated cost of one stage; a value is None if it depends on inputs that are not downloaded yet."""

    tokens: int | None = None
    """Number of tokens that pass through a model or a tokenizer."""
    seconds: float | None = None
    disk: int | None = None
    """Bytes of the files that the stage leaves, plus those of its checkpoints."""
    memory: int | None = None
    """Peak memory of one process in bytes, without the Python interpreter and libraries (about 400 MB)."""

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as --json prints it."""
        return asdict(self)


def estimate_stages(recipe: Recipe, names: set[str]) -> dict[str, Estimate]:
    """Return stage → estimate, for those stages in `names` whose kind can be estimated."""
    result: dict[str, Estimate] = {}
    for name, spec in recipe.stages.items():
        estimate = _ESTIMATORS_BY_KIND.get(spec.stage.kind)
        if estimate is not None and name in names:
            result[name] = estimate(recipe, spec)
    return result


def model_config(recipe: Recipe, spec: StageSpec) -> LlamaConfig | None:
    """Return the config of the model that a stage starts from; None if it must be downloaded first."""
    for key, reference in input_references(recipe, spec).items():
        if reference.stage is not None:
            dependency = recipe.stages[reference.stage]
            if key not in ("corpus", "tokens") and (config := model_config(recipe, dependency)):
                return config
        elif (kind := spec.config.input_kinds().get(key)) is not None and kind.name == "model":
            return source_model_config(str(reference.source))
    return None


def source_model_config(source: str) -> LlamaConfig | None:
    """Return the config of a model outside the recipe; None if it is neither well-known nor local."""
    try:
        if source.startswith("init:"):
            return find_preset(source)[0].config
        path = local_input(source)
        files = resolve_model(str(path)) if path else None
        if files is None:
            return known_config(source)
        if files.kind == "gguf":
            with GGUF(files.path) as gguf:
                return LlamaConfig.from_gguf(gguf.metadata, tied="output.weight" not in gguf.tensors)
        return LlamaConfig.from_hf(read_json(files.path / "config.json"), files.path / "config.json")
    except MeditronError:
        # `preflight` reports the error; a well-known model can be estimated before it is downloaded.
        return known_config(source)


def _estimate_corpus(recipe: Recipe, spec: StageSpec) -> Estimate:
    config = spec.config
    assert isinstance(config, CorpusConfig)  # noqa: S101
    characters = [_source_characters(source.from_) for source in config.sources.values()]
    if None in characters:
        return Estimate()
    total = sum(count or 0.0 for count in characters)
    if config.limit is not None:
        total = min(total, config.limit * len(characters) * _DOCUMENT_TOKENS * _CHARACTERS_PER_TOKEN)
    return Estimate(
        tokens=round(total / _CHARACTERS_PER_TOKEN),
        seconds=total / _BUILD_CHARACTERS / config.workers,
        disk=round(total * _CORPUS_BYTES_PER_CHARACTER),
    )


def _source_characters(source: str) -> float | None:
    try:
        path = local_input(source)
        if path is None:
            return None
        files = list_files(path) if path.is_dir() else [path]
    except MeditronError:
        return None
    return sum(file.stat().st_size * _CHARACTERS_PER_BYTE.get(file.suffix, 0.9) for file in files)


def _estimate_tokenize(recipe: Recipe, spec: StageSpec) -> Estimate:
    if "corpus" not in recipe.stages:
        return Estimate()
    corpus = _estimate_corpus(recipe, recipe.stages["corpus"])
    if corpus.tokens is None:
        return Estimate()
    characters = corpus.tokens * _CHARACTERS_PER_TOKEN
    return replace(corpus, seconds=characters / _TOKENIZE_CHARACTERS, disk=corpus.tokens * 2)


def _estimate_pretrain(recipe: Recipe, spec: StageSpec) -> Estimate:
    config = spec.config
    assert isinstance(config, PretrainConfig)  # noqa: S101
    return _estimate_training(recipe, spec, config, config.steps * config.batch_size * config.sequence_length)


def _estimate_finetune(recipe: Recipe, spec: StageSpec) -> Estimate:
    config = spec.config
    assert isinstance(config, FinetuneConfig)  # noqa: S101
    limited = None if config.limit is None else config.limit * _ROW_TOKENS
    by_entry = [_smallest_limit(limited, _local_file_tokens(entry.reference)) for entry in config.data()]
    tokens = None if None in by_entry else sum(filter(None, by_entry))
    return _estimate_training(recipe, spec, config, None if tokens is None else tokens * config.epochs)


def _local_file_tokens(source: str) -> int | None:
    """Estimate the tokens of a local file of rows or questions; None if it is not a local file."""
    try:
        path = None if source in (*TASKS, CORPUS) else local_input(source)
    except MeditronError:
        return None  # `preflight` reports the error
    return None if path is None or not path.is_file() else round(path.stat().st_size / _CHARACTERS_PER_TOKEN)


def _smallest_limit(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _estimate_training(
    recipe: Recipe, spec: StageSpec, config: TrainingConfig, tokens: int | None
) -> Estimate:
    model = model_config(recipe, spec)
    if model is None:
        return Estimate(tokens=tokens)
    settings = MemorySettings(
        sequence_length=config.sequence_length,
        micro_batch_size=config.micro_batch_size or config.batch_size,
        micro_batches=1,
        activation_checkpointing=config.parallel.activation_checkpointing,
        narrow=resolve_matrix_dtype(config.dtype) == "bfloat16",
        compiled=config.compile,
        method=finetune_method(config),
    )
    memory = memory_per_gpu(model, LayoutShape(), settings)
    # The trained weights and AdamW's two moments, each in float32. They are copied in memory first, because
    # training goes on while the copy is written.
    checkpoint = 3 * memory.gradients
    seconds = None
    if tokens is not None:
        operations = tokens * model.flops_per_token(config.sequence_length)
        seconds = operations / (_operations_per_second(config.dtype) * _EFFICIENCY)
    return Estimate(
        tokens,
        seconds,
        disk=model.parameter_count * 4 + config.keep_checkpoints * checkpoint,
        memory=memory.total + checkpoint,
    )


def finetune_method(config: TrainingConfig) -> FinetuneMethod:
    """Return the parameters that a training stage changes."""
    if (adapter := config.adapter) is None:
        return FinetuneMethod()
    name: MethodName = "qlora" if config.quantized else "lora"
    return FinetuneMethod(
        name=name, rank=adapter.rank, modules=adapter.modules, embeddings=adapter.embeddings
    )


def _estimate_quantize(recipe: Recipe, spec: StageSpec) -> Estimate:
    config = spec.config
    assert isinstance(config, QuantizeConfig)  # noqa: S101
    model = model_config(recipe, spec)
    if model is None:
        return Estimate()
    bits = sum(next(b for name, b in _BITS.items() if kind.startswith(name)) for kind in config.types)
    cores = config.threads or int(describe()["cores"])
    return Estimate(
        seconds=len(config.types) * model.parameter_count / (_QUANTIZE_WEIGHTS * cores),
        disk=round(model.parameter_count * bits / 8),
        memory=model.vocab_size * model.hidden_size * 8,
    )


def _estimate_evaluate(recipe: Recipe, spec: StageSpec) -> Estimate:
    config = spec.config
    assert isinstance(config, EvaluateConfig)  # noqa: S101
    sources = len(recipe.stages["corpus"].config.document_inputs()) if "corpus" in recipe.stages else 1
    documents = sources * config.documents * min(config.document_tokens, 2 * _DOCUMENT_TOKENS)
    tokens, generated = documents * len(config.models), 0
    for task in config.tasks:
        prompts, samples = _task_tokens(config, task)
        models = len(config.models_of(task))
        tokens += (prompts + samples) * models
        generated += samples * models
    tokens += 2 * len(config.fidelity) * sources * config.fidelity_documents * _DOCUMENT_TOKENS
    model = model_config(recipe, spec)
    if model is None:
        return Estimate(tokens=tokens)
    forward = model.flops_per_token(_DOCUMENT_TOKENS) / 3  # a backward pass takes twice a forward pass
    work = tokens + generated * (_DECODING_COST - 1)
    seconds = work * forward / (_operations_per_second(config.dtype) * _EFFICIENCY)
    return Estimate(
        tokens, seconds, None, model.parameter_count * 4 + config.batch_tokens * model.hidden_size * 64
    )


def _task_tokens(config: EvaluateConfig, task: str) -> tuple[int, int]:
    """Return the tokens of a task's prompts and those of its generated answers, for one model.

    Every method reads the prompts again, in every form, order of the options, and seed. Generated answers are
    counted at their maximum length.
    """
    reference = parse_task(task)
    known = None
    if reference.benchmark is not None:
        known = reference.benchmark.questions * _QUESTION_TOKENS
    elif reference.source is not None and not is_lm_eval_definition(task):
        known = _local_file_tokens(reference.source)
    once = _smallest_limit(config.questions * _QUESTION_TOKENS, known) or 0
    forms = 2 if config.prompt_form == "both" else 1
    prompts = generated = 0
    for name in config.methods:
        answers = {"cot": 1, "self-consistency": config.samples}.get(name, 0)
        drawn = config.shots or name == "self-consistency" or (answers and config.temperature)
        passes = forms * (config.permutations + (config.seeds - 1 if drawn else 0))
        prompts += passes * once * (1 + config.shots)
        generated += passes * math.ceil(once / _QUESTION_TOKENS) * answers * config.max_tokens
    return prompts, generated


@cache
def _operations_per_second(dtype: str) -> float:
    """Return the floating-point operations per second of matrix products, for an estimate of training time.

    Products of float32 matrices are measured, which takes 0.1 s. For bfloat16 the result is scaled by the
    speedup of the CPU's class.
    """
    a, b = np.ones((1024, 1024), np.float32), np.ones((1024, 1024), np.float32)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    speedup = _BFLOAT16_SPEEDUP.get(str(describe()["cpu_class"]), 1.0)
    return 2 * 1024**3 / min(times) * (speedup if resolve_matrix_dtype(dtype) == "bfloat16" else 1.0)  # type: ignore[arg-type]


_ESTIMATORS_BY_KIND: Mapping[str, Callable[[Recipe, StageSpec], Estimate]] = {
    "corpus": _estimate_corpus,
    "tokenize": _estimate_tokenize,
    "pretrain": _estimate_pretrain,
    "finetune": _estimate_finetune,
    "quantize": _estimate_quantize,
    "evaluate": _estimate_evaluate,
}
