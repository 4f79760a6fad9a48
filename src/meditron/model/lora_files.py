"""Adapters as files: peft's folder, and the adapter GGUF that llama.cpp applies with `--lora`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from meditron.core.config import first_problem
from meditron.core.errors import InputError
from meditron.model.config import LlamaConfig
from meditron.model.gguf_layout import gguf_tensor_name
from meditron.model.gguf_weights import encode_floats, to_gguf_row_order
from meditron.model.lora import adapter_shapes
from meditron.model.lora_config import LORA_MODULES, LoraConfig
from meditron.model.new_tokens import EMBEDDING, HEAD
from meditron.model.shapes import check_tensors
from meditron.store.files import atomic_write, read_json, write_json
from meditron.store.gguf import write_gguf

__all__ = ["ADAPTER_CONFIG", "Adapter", "read_adapter", "save_adapter", "save_adapter_gguf"]

ADAPTER_CONFIG = "adapter_config.json"
"""The file that marks a folder as an adapter."""
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of every tensor in peft's files
# Settings of peft that change the meaning of A and B, with the value that has no effect.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "use_rslora": (None, False),
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (None, []),
    "trainable_token_indices": (None, []),
}


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that was read from a folder."""

    config: LoraConfig
    tensors: Mapping[str, Tensor]
    """A and B by the names of `adapter_names`, as stored."""


def save_adapter(
    folder: Path, tensors: Mapping[str, Tensor], config: LoraConfig, *, base: str | None = None
) -> None:
    """Write an adapter that `peft.PeftModel.from_pretrained` opens, in float32.

    Args:
        folder: The folder to write to.
        tensors: A and B by the names of `adapter_names`; if the embedding and the head are trained, these
            by HF's names (a tied head has none).
        config: The adapters' config.
        base: `org/name` of the base model on the Hugging Face hub; None if it is not there.
    """
    stored = {
        f"{_PREFIX}{name.removesuffix('.weight')}.weight": tensors[name]
        .detach()
        .to("cpu", torch.float32)
        .contiguous()
        for name in sorted(tensors)
    }
    if EMBEDDING in tensors and HEAD not in tensors:  # peft reads a tied head too
        stored[_PREFIX + HEAD] = stored[_PREFIX + EMBEDDING].clone()
    with atomic_write(folder / _WEIGHTS) as file:
        file.write(safetensors.torch.save(stored, {"format": "pt"}))
    # The config comes last, so a folder with a config has its weights.
    write_json(
        folder / ADAPTER_CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "target_modules": sorted(config.modules),
            **_whole_modules(tensors),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        },
    )


def _whole_modules(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the settings with which peft replaces the embedding and the head by the stored ones."""
    if EMBEDDING not in tensors:
        return {}
    if HEAD in tensors:
        return {"modules_to_save": ["embed_tokens", "lm_head"]}
    # Without the second setting peft would leave a tied head as it was.
    return {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}


def read_adapter(folder: Path, shape: LlamaConfig) -> Adapter:
    """Read an adapter of peft's format, by `save_adapter` or by peft.

    Args:
        folder: The adapter's folder.
        shape: The config of its base model.

    Raises:
        InputError: The adapter is not LoRA on the matrices of the blocks, has a setting that is not
            supported, or does not fit the model.
    """
    config = _read_config(folder / ADAPTER_CONFIG)
    path = folder / _WEIGHTS
    try:
        stored = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(path, f"cannot be read as safetensors: {error}") from error
    tensors = {name.removeprefix(_PREFIX).removesuffix(".weight"): tensor for name, tensor in stored.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_tensors(path, adapter_shapes(shape, config), shapes)
    return Adapter(config, tensors)


def _read_config(path: Path) -> LoraConfig:
    content = read_json(path)
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        raise InputError(path, "not the config of a LoRA adapter of peft")
    if content.get("modules_to_save"):
        raise InputError(
            path,
            "has a trained embedding, which an adapter in a GGUF file cannot have",
            place="modules_to_save",
            hint="convert the merged model in the folder above",
        )
    for key, neutral in _NEUTRAL.items():
        if content.get(key) not in neutral:
            raise InputError(path, f"{key} = {content[key]!r} is not supported", place=key)
    modules = content.get("target_modules")
    if isinstance(modules, list):
        modules = sorted(modules, key=lambda name: LORA_MODULES.index(name) if name in LORA_MODULES else -1)
    fields = {"rank": content.get("r"), "alpha": content.get("lora_alpha"), "modules": modules}
    try:
        return LoraConfig.model_validate(fields)
    except ValidationError as error:
        place, problem = first_problem(error)
        raise InputError(path, problem, place=place) from error


def save_adapter_gguf(adapter: Adapter, shape: LlamaConfig, path: Path, *, name: str) -> None:
    """Write an adapter as a GGUF file for llama.cpp's `--lora`, in float32.

    Args:
        adapter: The adapter.
        shape: The config of its base model.
        path: The file to write.
        name: The adapter's name.

    Raises:
        UsageError: A value is not finite.
    """
    metadata: dict[str, Any] = {
        "general.architecture": shape.family.gguf,
        "general.type": "adapter",
        "general.name": name,
        "adapter.type": "lora",
        # A float: llama.cpp refuses an integer. It divides by the rank itself.
        "adapter.lora.alpha": float(adapter.config.alpha),
    }
    write_gguf(path, metadata, _gguf_tensors(adapter, shape))


def _gguf_tensors(adapter: Adapter, shape: LlamaConfig) -> Iterator[tuple[str, Any]]:
    for name, tensor in adapter.tensors.items():
        stem, _, part = name.rpartition(".")
        weight = f"{stem}.weight"
        # The rows of B are those of the weight; A has its columns, which GGUF does not reorder.
        rows = to_gguf_row_order(weight, tensor, shape) if part == "lora_B" else tensor
        values = encode_floats(name, rows.contiguous(), "F32")
        yield f"{gguf_tensor_name(weight)}.{part.lower()}", values
