"""A Llama as an HF folder: safetensors, one file or several behind an index, and the files beside them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from meditron.core.console import warn
from meditron.core.errors import InputError
from meditron.model.config import LlamaConfig
from meditron.model.llama import Llama
from meditron.model.tensors import DTYPES, cannot_hold, check_tensors, parameter_shapes, state_of
from meditron.store.files import atomic, read_json, write_json
from meditron.text.tokenizer import Tokenizer

__all__ = ["HFWeights", "hf_config", "own_head", "save_hf", "stored_tensors"]

# What older checkpoints and tied ones carry along and no Llama needs.
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_SPARE = ("rotary_emb.inv_freq", _HEAD)


def hf_config(folder: Path) -> LlamaConfig:
    """Read the model's shape from `config.json`.

    A head that the checkpoint stores and that differs from the embedding is used, whatever
    `tie_word_embeddings` says, as transformers 5 does. InputError for another architecture or a shape that
    cannot be.
    """
    path = folder / "config.json"
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(path, "is not a table of settings")
    config = LlamaConfig.from_hf(found, path)
    if config.tie_word_embeddings and own_head(folder):
        _warn_of_head(path)
        return config.model_copy(update={"tie_word_embeddings": False})
    return config


@cache
def _warn_of_head(path: Path) -> None:
    """Warn once for each config, however often a model is opened."""
    warn(f"{path}: tie_word_embeddings is true, but {_HEAD} differs from {_EMBEDDING}: it is used")


def own_head(folder: Path) -> bool:
    """Return whether the folder's weights hold a head that differs from the embedding."""
    if not any(folder.glob("*.safetensors")):
        return False  # a config.json alone: nothing contradicts it
    stored = stored_tensors(folder)
    if _HEAD not in stored or _EMBEDDING not in stored:
        return False
    with _opened(stored[_HEAD]) as one, _opened(stored[_EMBEDDING]) as other:
        head, embedding = one.get_tensor(_HEAD), other.get_tensor(_EMBEDDING)
        return head.dtype != embedding.dtype or not torch.equal(head, embedding)


class HFWeights(Mapping[str, Tensor]):
    """Every parameter of a folder as it is stored, by name, each read when it is asked for.

    A file is mapped only as long as a tensor of it lives, so that memory holds no more than is in use.
    Raises InputError, before anything is read, for missing, unexpected or misshapen tensors, and for
    files that are no safetensors or lie outside the folder.
    """

    def __init__(self, folder: Path, config: LlamaConfig) -> None:
        wanted = parameter_shapes(config)
        self._file = {
            name: file
            for name, file in stored_tensors(folder).items()
            if name in wanted or not name.endswith(_SPARE)
        }
        found: dict[str, tuple[int, ...]] = {}
        for file in sorted(set(self._file.values())):
            with _opened(file) as tensors:
                names = [name for name, place in self._file.items() if place == file]
                found |= {name: _shape(file, tensors, name) for name in names}
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


def _shape(file: Path, tensors: Any, name: str) -> tuple[int, ...]:  # noqa: ANN401
    part = tensors.get_slice(name)
    if part.get_dtype() not in DTYPES:
        raise InputError(file, f"is {part.get_dtype()}; {', '.join(DTYPES)} can be read", place=name)
    return tuple(part.get_shape())


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        tensors = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        hint = "copy or download it again: it may be cut short"
        raise InputError(file, f"cannot be read as safetensors: {error}", hint=hint) from error
    with tensors:
        yield tensors


def stored_tensors(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor: of the one safetensors file, else as the index maps them.

    A tensor that another file holds under the same name, left from an earlier save, is ignored.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        with _opened(single) as tensors:
            return dict.fromkeys(tensors.keys(), single)
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
    for file in sorted(set(names.values())):
        with _opened(folder / file) as tensors:
            held = set(tensors.keys())
        for tensor, place in names.items():
            if place == file and tensor not in held:
                raise InputError(folder / file, "is not in the file that the index names", place=tensor)
    return {tensor: folder / file for tensor, file in names.items()}


def save_hf(
    model: Llama | Mapping[str, Tensor],
    config: LlamaConfig,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: torch.dtype,
) -> None:
    """Write a folder that transformers, vLLM and llama.cpp's converter open: tokenizer, config, weights.

    Streams, as far as the weights do. The same weights give the same bytes. Each file is whole or absent;
    the weights come first and config.json last, so that no folder has a config and no weights. Raises
    UsageError for weights that `dtype` cannot hold.
    """
    name = str(dtype).removeprefix("torch.")
    _write_safetensors(folder / "model.safetensors", state_of(model), config, dtype)
    tokenizer.save(folder)
    special = config.model_dump(mode="json", include={"bos_token_id", "pad_token_id"}, exclude_none=True)
    # Every token that ends a text or a turn, so that transformers stops where our engine does.
    special["eos_token_id"] = sorted(tokenizer.stop_ids)
    write_json(folder / "generation_config.json", {**special, "do_sample": False})
    # transformers 4 knows the type as torch_dtype.
    write_json(folder / "config.json", {**config.to_hf(), "dtype": name, "torch_dtype": name})


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
            source = state[name].detach()
            weight = source.to("cpu", dtype).contiguous()
            if not bool(weight.isfinite().all()):
                kind = str(dtype).removeprefix("torch.")
                raise cannot_hold(name, kind, finite=bool(source.isfinite().all()))
            file.write(weight.view(torch.uint8).numpy().data)
