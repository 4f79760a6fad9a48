"""Quantized files boiled down to a line, so that what llama.cpp once made can be held to without it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from meditron.store.gguf import GGUF

GOLDEN = Path(__file__).parent / "release" / "golden" / "llama_cpp.json"
"""What llama.cpp's quantizer made of the models `wide` and `odd`, and its types in models of many blocks."""


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def digest(path: Path) -> str:
    """SHA-256 over every tensor's name, type, shape and bytes, by name."""
    found = hashlib.sha256()
    with GGUF(path) as gguf:
        for name, info in sorted(gguf.tensors.items()):
            found.update(f"{name} {info.type} {info.shape}\n".encode())
            found.update(gguf.raw(name).tobytes())
    return found.hexdigest()
