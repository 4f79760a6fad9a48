"""Models whose weights are the same bits on every machine: random integers, scaled by a power of two."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from meditron.model.config import LlamaConfig
from meditron.model.shapes import parameter_shapes
from meditron.store.files import write_json
from meditron.text.tokenizer import load_tokenizer


def seeded_hf(folder: Path, tokenizer: Path, *, seed: int, **shape: int | bool | str) -> Path:
    """Write an HF folder in fp32 with another model's tokenizer; weights are roughly normal."""
    words = load_tokenizer(tokenizer)
    config = LlamaConfig(vocab_size=words.vocab_size, max_position_embeddings=256, **shape)
    words.save(folder)
    write_json(folder / "config.json", config.to_hf())
    generator = np.random.PCG64(seed)
    weights = {name: _values(generator, size) for name, size in parameter_shapes(config).items()}
    save_file(weights, folder / "model.safetensors")
    return folder


def _values(generator: np.random.PCG64, shape: tuple[int, ...]) -> np.ndarray:
    """Sum four uniform integers: exact on every processor and mathematical library."""
    raw = generator.random_raw(int(np.prod(shape))).view(np.int16).reshape(-1, 4)
    return (raw.sum(axis=1, dtype=np.int32) * np.float32(2.0**-20)).astype(np.float32).reshape(shape)
