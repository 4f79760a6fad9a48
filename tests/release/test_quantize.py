import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from meditron.ground.errors import SourceError
from meditron.release.config import QuantizeConfig
from meditron.release.quantize import run
from meditron.store.artifact import Artifact


def quantize(model: Path, out: Path, *types: str) -> dict[str, Any]:
    config = QuantizeConfig.model_validate({"types": types})
    return run(config, {"model": Artifact("pretrain", model, "digest")}, out)


def test_each_type_is_a_file_that_gguf_py_reads(tiny: Path, tmp_path: Path) -> None:
    metrics = quantize(tiny, tmp_path, "F16", "F32")
    assert [file["path"] for file in metrics["files"]] == ["F16.gguf", "F32.gguf"]
    for file in metrics["files"]:
        path = tmp_path / file["path"]
        assert file["bytes"] == path.stat().st_size
        assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        tensors = gguf.GGUFReader(path).tensors
        matrices = {t.tensor_type.name for t in tensors if len(t.shape) > 1}
        norms = {t.tensor_type.name for t in tensors if len(t.shape) == 1}
        assert (matrices, norms) == ({file["type"]}, {"F32"})
        weights = sum(int(np.prod(t.shape)) for t in tensors)
        assert file["bpw"] == pytest.approx(8 * sum(t.n_bytes for t in tensors) / weights)
        assert file["fallbacks"] == {}
    assert metrics["peak_rss"] > 10_000_000
    assert "norms" in metrics["notes"][0]


def test_a_finished_file_is_kept_and_only_missing_ones_are_written(tiny: Path, tmp_path: Path) -> None:
    first = quantize(tiny, tmp_path, "F16")["files"]
    before = (tmp_path / "F16.gguf").stat().st_mtime_ns
    second = quantize(tiny, tmp_path, "F16", "F32")["files"]
    assert second[:1] == first
    assert (tmp_path / "F16.gguf").stat().st_mtime_ns == before
    # All files are there: the model is not even looked for.
    assert quantize(tmp_path / "gone", tmp_path, "F16", "F32")["files"] == second


def test_nothing_to_quantize(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gone"):
        quantize(tmp_path / "gone", tmp_path / "out", "F16")
