"""Digests of quantized files, so tests compare with llama.cpp's output without llama.cpp."""

import hashlib
import json
from pathlib import Path
from typing import Any

from meditron.store.gguf import GGUF

GOLDEN = Path(__file__).parent / "release" / "golden" / "llama_cpp.json"
"""Digests of llama.cpp's output for the models `wide` and `odd`, and its types for models of many blocks."""


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def digest(path: Path) -> str:
    """Return the SHA-256 over every tensor's name, type, shape and bytes, ordered by name."""
    sha256 = hashlib.sha256()
    with GGUF(path) as gguf:
        for name, info in sorted(gguf.tensors.items()):
            sha256.update(f"{name} {info.type} {info.shape}\n".encode())
            sha256.update(gguf.raw_tensor(name).tobytes())
    return sha256.hexdigest()
