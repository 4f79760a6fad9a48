from pathlib import Path

import pytest

from seeded import seeded_hf
from tiny import tiny_hf


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("tied") / "model", tied=True)


@pytest.fixture(scope="session")
def wide(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256, whole blocks of every type; the head is a matrix of its own."""
    return seeded_hf(
        tmp_path_factory.mktemp("wide") / "model", tiny, seed=256, hidden_size=256, intermediate_size=512,
        num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, head_dim=32,
    )  # fmt: skip


@pytest.fixture(scope="session")
def odd(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's width, 576: K types fall back, except in rows of 768; the head is the embedding."""
    return seeded_hf(
        tmp_path_factory.mktemp("odd") / "model", tiny, seed=576, hidden_size=576, intermediate_size=768,
        num_hidden_layers=1, num_attention_heads=9, num_key_value_heads=3, head_dim=64,
        tie_word_embeddings=True,
    )  # fmt: skip
