"""A folder that looks like a checkout after the quickstart, with a small run in its place."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from recipes.conftest import command as command
from recipes.conftest import smoke as smoke  # the one smoke run that all tests share

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(smoke: Any, tmp_path: Path) -> Path:
    """Return a folder with `recipes/`, `src/`, `models/` and a finished `runs/quickstart`.

    The quickstart here is the smoke recipe under the quickstart's name: the same stages, of a tiny model.
    """
    assert smoke.result.code == 0, smoke.result.err
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    shutil.copy(ROOT / "recipes/smoke.toml", folder / "recipes/quickstart.toml")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(smoke.folder, folder / "runs/quickstart")
    shutil.copytree(
        smoke.folder / "pretrain",
        folder / "models/my-llama",
        ignore=shutil.ignore_patterns("manifest.json", "*.html", "metrics*"),
    )
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
    return folder
