"""`meditron doctor`: a table or one JSON object, and its exit code."""

import json
from pathlib import Path

from command import Command


def test_it_prints_every_check_and_ends_with_0(meditron: Command, tmp_path: Path) -> None:
    result = meditron("doctor", "--json", "--out", tmp_path)
    assert result.code == 0, result.err
    answer = json.loads(result.out)
    assert answer["ok"] is True
    assert {"installation", "processor", "memory", "cache", "C++ compiler", "torch"} <= {
        check["name"] for check in answer["checks"]
    }
    assert {"meditron", "python", "numpy"} <= set(answer["versions"])


def test_a_broken_installation_ends_with_1(process: Command, tmp_path: Path) -> None:
    (tmp_path / "stringzilla.py").write_text("raise ImportError('lib is damaged')\n")
    result = process("-m", "meditron", "doctor", PYTHONPATH=str(tmp_path))
    assert result.code == 1
    assert "lib is damaged" in result.out
