"""The reader of safetensors; the package's own torch interface is the reference."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from meditron.core.errors import InputError
from meditron.store.safetensors import SafetensorsFile, tensor_files


def test_values_and_types(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        str(dtype): torch.randn(3, 5, generator=generator).to(dtype)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    path = tmp_path / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert tensor_files(tmp_path).keys() == file.tensors.keys()
    for name, expected in load_file(path).items():
        bits = torch.int16 if expected.itemsize == 2 else torch.int32
        found = file.array(name)
        assert not found.flags.writeable
        assert np.array_equal(found.view(f"<i{expected.itemsize}"), expected.view(bits).numpy()), name


def test_other_types_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"ids": torch.arange(3)}, path)
    with pytest.raises(InputError, match=r"ids.*I64 is not supported"):
        SafetensorsFile(path).array("ids")
    whole = path.read_bytes()
    for length in (0, 7, 8, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cannot be read as safetensors"):
            SafetensorsFile(path)
