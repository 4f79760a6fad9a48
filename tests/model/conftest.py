"""Small models on few cores."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small models gain nothing from a second thread, and the cores may be shared."""
    torch.set_num_threads(1)
