"""Reading a model's weights from an HF folder as torch tensors; writing a folder."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from meditron.core.errors import InputError
from meditron.model.config import LlamaConfig
from meditron.model.llama import Llama
from meditron.model.packed_weights import open_packed_matrices
from meditron.model.shapes import HEAD, check_tensors, parameter_shapes, weight_range_error
from meditron.model.tensors import DTYPES, state_dict_of
from meditron.store.files import atomic_write, write_json
from meditron.store.safetensors import tensor_files
from meditron.text.tokenizer import Tokenizer

__all__ = ["HFWeights", "save_hf"]

# Tensors of older and of tied checkpoints that are not parameters of the model.
_IGNORED = ("rotary_emb.inv_freq", HEAD)


class HFWeights(Mapping[str, Tensor]):
    """Weights of an HF folder by tensor name, in their stored dtype; each access reads one tensor.

    Matrices that GPTQ or AWQ packed are dequantized to float32.

    A file stays memory-mapped only as long as one of its tensors is referenced.

    Raises:
        InputError: before a weight is read: a tensor is missing, unexpected or of the wrong shape, or a file
            is not safetensors or lies outside the folder.
    """

    def __init__(self, folder: Path, config: LlamaConfig) -> None:
        expected = parameter_shapes(config)
        self._packed, plain = open_packed_matrices(folder, tensor_files(folder), expected)
        self._file = {
            name: file for name, file in plain.items() if name in expected or not name.endswith(_IGNORED)
        }
        actual_shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(set(self._file.values())):
            with _open_safetensors(file) as tensors:
                names = [name for name, place in self._file.items() if place == file]
                actual_shapes |= {name: _tensor_shape(file, tensors, name) for name in names}
        actual_shapes |= {name: matrix.shape for name, matrix in self._packed.items()}
        check_tensors(folder, expected, actual_shapes)

    def __getitem__(self, name: str) -> Tensor:
        """Read a weight, a view of its memory-mapped file unless it is packed."""
        if (packed := self._packed.get(name)) is not None:
            return torch.from_numpy(packed.read(np.arange(packed.shape[0])))
        with _open_safetensors(self._file[name]) as tensors:
            weight: Tensor = tensors.get_tensor(name)
        return weight

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in the order of the files."""
        yield from self._file
        yield from self._packed

    def __len__(self) -> int:
        """Return the number of weights."""
        return len(self._file) + len(self._packed)


def _tensor_shape(file: Path, tensors: Any, name: str) -> tuple[int, ...]:  # noqa: ANN401
    part = tensors.get_slice(name)
    if part.get_dtype() not in DTYPES:
        raise InputError(file, f"{part.get_dtype()} is not supported; {', '.join(DTYPES)} are", place=name)
    return tuple(part.get_shape())


@contextmanager
def _open_safetensors(file: Path) -> Iterator[Any]:
    try:
        tensors = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        hint = "the file may be incomplete: copy or download it again"
        raise InputError(file, f"cannot be read as safetensors: {error}", hint=hint) from error
    with tensors:
        yield tensors


def save_hf(
    model: Llama | Mapping[str, Tensor],
    config: LlamaConfig,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: torch.dtype,
) -> None:
    """Write a folder that transformers, vLLM and llama.cpp's converter open.

    One tensor is converted at a time: with a lazy mapping of weights, memory holds a single tensor. Equal
    weights give equal bytes. Each file is written atomically; config.json is the last, so a folder with a
    config has its weights.

    Args:
        model: The model, or its weights by HF's names.
        config: Its config.
        tokenizer: Its tokenizer.
        folder: The folder to write to.
        dtype: The dtype of the stored weights.

    Raises:
        UsageError: a weight overflows in `dtype`.
    """
    name = str(dtype).removeprefix("torch.")
    _write_safetensors(folder / "model.safetensors", state_dict_of(model), config, dtype)
    tokenizer.save(folder)
    special = config.model_dump(mode="json", include={"bos_token_id", "pad_token_id"}, exclude_none=True)
    # All tokens that end a text or a turn: transformers then stops at the same tokens as our engines.
    special["eos_token_id"] = sorted(tokenizer.stop_ids)
    write_json(folder / "generation_config.json", {**special, "do_sample": False})
    # transformers 4 reads torch_dtype, version 5 dtype.
    write_json(folder / "config.json", {**config.to_hf(), "dtype": name, "torch_dtype": name})


def _write_safetensors(
    path: Path, state: Mapping[str, Tensor], config: LlamaConfig, dtype: torch.dtype
) -> None:
    """Write the weights one by one: safetensors' own writer would need all of them converted in memory."""
    code = next(code for code, known in DTYPES.items() if known == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(parameter_shapes(config).items()):
        start, end = end, end + prod(shape) * dtype.itemsize
        # Offsets are relative to the end of the header.
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns data to 8 bytes
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(parameter_shapes(config)):
            source = state[name].detach()
            weight = source.to("cpu", dtype).contiguous()
            if not bool(weight.isfinite().all()):
                # A cast to a narrower type turns large values into infinity without an error.
                kind = str(dtype).removeprefix("torch.")
                raise weight_range_error(name, kind, finite=bool(source.isfinite().all()))
            file.write(weight.view(torch.uint8).numpy().data)
