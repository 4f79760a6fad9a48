"""A small model written by transformers."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_hf

from meditron.engine import LocalEngine, load


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small models gain nothing from a second thread, and the cores may be shared."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, a context of 256 tokens, random weights."""
    return tiny_hf(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def engine(folder: Path) -> LocalEngine:
    """The small model, ready."""
    return load(str(folder))
