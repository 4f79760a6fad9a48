"""The code around the loop that all training stages share."""

import json
from pathlib import Path

import pytest

from meditron.train.trainer import RESULT, finish_training


def test_only_rank_0_reads_the_metrics_and_removes_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    # The machine of another rank may see the file of rank 0 seconds later.
    assert finish_training(tmp_path) == {}
    assert (tmp_path / "checkpoints").is_dir()
    monkeypatch.setenv("RANK", "0")
    (tmp_path / RESULT).write_text(json.dumps({"loss": 2.5}), encoding="utf-8")
    assert finish_training(tmp_path) == {"loss": 2.5}
    assert not (tmp_path / "checkpoints").exists()
