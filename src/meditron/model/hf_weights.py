"""A Llama as an HF folder: safetensors, one file or several behind an index, and the files beside them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from meditron.ground.errors import InputError, UsageError
from meditron.model.config import LlamaConfig
from meditron.model.llama import Llama
from meditron.model.tensors import DTYPES, check_tensors, parameter_shapes, state_of
from meditron.store.files import atomic, read_json, write_json
from meditron.text.tokenizer import Tokenizer

__all__ = ["HFWeights", "hf_config", "save_hf"]

# What older checkpoints and tied ones carry along and no Llama needs.
_SPARE = ("rotary_emb.inv_freq", "lm_head.weight")


def hf_config(folder: Path) -> LlamaConfig:
    """The model's shape from `config.json`; InputError for another architecture or one that cannot be."""
    path = folder / "config.json"
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(path, "is not a table of settings")
    return LlamaConfig.from_hf(found, path)


class HFWeights(Mapping[str, Tensor]):
    """Every parameter of a folder as it is stored, by name, each read when it is asked for.

    A file is mapped only as long as a tensor of it lives, so that memory holds no more than is in use.
    Raises InputError, before anything is read, for missing, unexpected or misshapen tensors, and for
    files that are no safetensors or lie outside the folder.
    """

    def __init__(self, folder: Path, config: LlamaConfig) -> None:
        wanted = parameter_shapes(config)
        found: dict[str, tuple[int, ...]] = {}
        self._file: dict[str, Path] = {}
        for file in _files(folder):
            with _opened(file) as tensors:
                shapes = _shapes_in(file, tensors, wanted)
            found |= shapes
            self._file |= dict.fromkeys(shapes, file)
        check_tensors(folder, wanted, found)

    def __getitem__(self, name: str) -> Tensor:
        """The parameter, a view of its file."""
        with _opened(self._file[name]) as tensors:
            weight: Tensor = tensors.get_tensor(name)
        return weight

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of the files."""
        return iter(self._file)

    def __len__(self) -> int:
        """Parameters."""
        return len(self._file)


def _shapes_in(file: Path, tensors: Any, wanted: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:  # noqa: ANN401
    shapes = {}
    for name in tensors.keys():  # noqa: SIM118  # no mapping
        part = tensors.get_slice(name)
        if name not in wanted and name.endswith(_SPARE):
            continue
        if part.get_dtype() not in DTYPES:
            raise InputError(file, f"is {part.get_dtype()}; {', '.join(DTYPES)} can be read", place=name)
        shapes[name] = tuple(part.get_shape())
    return shapes


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        tensors = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(file, f"cannot be read as safetensors: {error}") from error
    with tensors:
        yield tensors


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the one, or those that its index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        hint = "only safetensors are read; pickled weights can run code and are not"
        raise InputError(folder, "has no model.safetensors", hint=hint)
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise InputError(index, "names no files", place="weight_map")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(index, f"{name!r} is no safetensors file of this folder", place="weight_map")
    return [folder / name for name in sorted(set(names.values()))]


def save_hf(
    model: Llama | Mapping[str, Tensor],
    config: LlamaConfig,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: torch.dtype,
) -> None:
    """Write a folder that transformers, vLLM and llama.cpp's converter open: tokenizer, config, weights.

    Streams, as far as the weights do. The same weights give the same bytes. Each file is whole or absent;
    the weights come last. Raises UsageError for weights that `dtype` cannot hold.
    """
    name = str(dtype).removeprefix("torch.")
    tokenizer.save(folder)
    # transformers 4 knows the type as torch_dtype.
    write_json(folder / "config.json", {**config.to_hf(), "dtype": name, "torch_dtype": name})
    special = config.model_dump(mode="json", include={"bos_token_id", "pad_token_id"}, exclude_none=True)
    # Every token that ends a text or a turn, so that transformers stops where our engine does.
    special["eos_token_id"] = sorted(tokenizer.stop_ids)
    write_json(folder / "generation_config.json", {**special, "do_sample": False})
    _write_safetensors(folder / "model.safetensors", state_of(model), config, dtype)


def _write_safetensors(
    path: Path, state: Mapping[str, Tensor], config: LlamaConfig, dtype: torch.dtype
) -> None:
    """Stream the weights in one dtype. The library would need all of them in that dtype at once."""
    code = next(code for code, known in DTYPES.items() if known == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(parameter_shapes(config).items()):
        start, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(parameter_shapes(config)):
            weight = state[name].detach().to("cpu", dtype).contiguous()
            if not bool(weight.isfinite().all()):
                raise UsageError(f"{name} has values that {dtype} cannot hold")
            file.write(weight.view(torch.uint8).numpy().data)
