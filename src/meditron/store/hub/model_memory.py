"""Memory that a model needs without offloading: its weights and the keys and values of its context.

The weights take the size of their files. The cache of keys and values takes, for each token of the context,
2 bytes (F16) per element of every layer's keys and values:

    layers · key/value heads · (key width + value width) · 2

The shape comes from a GGUF file's first kilobytes or from `config.json`, so that the memory is known before
the weights are downloaded. Compute buffers are not included; they depend on the program and its batch size.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["CONTEXT", "HEADER_BYTES", "ModelShape", "shape_of_config", "shape_of_gguf_header"]

CONTEXT = 4_096
"""Tokens of the context that the memory is stated for, or the model's maximum if that is less."""
HEADER_BYTES = 64 << 10
"""Bytes at the beginning of a GGUF file that are read; the shape's keys come before the vocabulary."""
_MOST_PAIRS = 1 << 16
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Keys of models whose cache is not one of keys and values per head: latent attention and state spaces.
_OTHER_CACHES = (".attention.kv_lora_rank", ".ssm.state_size", ".wkv.head_size")
_OTHER_CONFIGS = ("kv_lora_rank", "state_size", "mamba_d_state", "rwkv_version")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a transformer that determine its cache of keys and values."""

    cache_elements: int
    """Elements of the keys and values of one token in all layers."""
    max_context: int
    """The longest context that the model was trained for, in tokens."""

    def context_bytes(self, tokens: int = CONTEXT) -> int:
        """Return the bytes of an F16 cache of keys and values for `tokens`, at most the model's maximum."""
        return 2 * self.cache_elements * min(tokens, self.max_context)


def shape_of_config(text: bytes) -> ModelShape | None:
    """Return the shape in a model's `config.json`; None if it does not describe such a transformer."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    config = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    if any(key in config for key in _OTHER_CONFIGS):
        return None
    layers, heads = _count(config.get("num_hidden_layers")), _count(config.get("num_attention_heads"))
    shared = _count(config.get("num_key_value_heads")) or heads
    head = _count(config.get("head_dim")) or _count(config.get("hidden_size")) // max(heads, 1)
    context = _count(config.get("max_position_embeddings"))
    elements = layers * shared * 2 * head
    return ModelShape(elements, context) if elements and context else None


def shape_of_gguf_header(header: bytes) -> ModelShape | None:
    """Return the shape in the first bytes of a GGUF file; None if they do not have it, or are not GGUF."""
    return _shape_of_metadata(_read_scalars(header))


def _count(value: object) -> int:
    """Return a plausible number of layers, heads, elements or tokens; 0 for anything else."""
    return value if type(value) is int and 0 < value < 1 << 32 else 0


def _shape_of_metadata(metadata: Mapping[str, Any]) -> ModelShape | None:
    name = metadata.get("general.architecture")
    if any(f"{name}{key}" in metadata for key in _OTHER_CACHES):
        return None
    layers, context = (
        _count(metadata.get(f"{name}.block_count")),
        _count(metadata.get(f"{name}.context_length")),
    )
    heads = metadata.get(f"{name}.attention.head_count")
    shared = metadata.get(f"{name}.attention.head_count_kv", heads)
    # Models whose layers differ have a list with a number per layer.
    cached_heads = sum(map(_count, shared)) if isinstance(shared, list) else layers * _count(shared)
    most_heads = max(map(_count, heads), default=0) if isinstance(heads, list) else _count(heads)
    head = _count(metadata.get(f"{name}.embedding_length")) // max(most_heads, 1)
    key = _count(metadata.get(f"{name}.attention.key_length")) or head
    value = _count(metadata.get(f"{name}.attention.value_length")) or head
    elements = cached_heads * (key + value)
    return ModelShape(elements, context) if elements and context else None


def _read_scalars(header: bytes) -> dict[str, Any]:
    """Return the metadata before the vocabulary, as far as the header has it."""
    metadata: dict[str, Any] = {}
    if header[:4] != b"GGUF":
        return metadata
    try:
        order = "<" if struct.unpack_from("<I", header, 4)[0] & 0xFFFF else ">"
        version, _, pairs = struct.unpack_from(f"{order}IQQ", header, 4)
        if version not in (2, 3):
            return metadata
        reader = _HeaderReader(header, order)
        for _ in range(min(pairs, _MOST_PAIRS)):
            key = reader.text()
            if key.startswith("tokenizer."):
                break
            metadata[key] = reader.value(reader.number("I"))
    except (struct.error, UnicodeDecodeError):
        pass  # the header ends within a value, or is damaged
    return metadata


class _HeaderReader:
    """Reads values from bytes; struct.error past their end."""

    def __init__(self, data: bytes, order: str) -> None:
        self._data, self._order, self._at = data, order, 24

    def number(self, form: str) -> Any:  # noqa: ANN401  # an int, a float or a bool
        value = struct.unpack_from(f"{self._order}{form}", self._data, self._at)[0]
        self._at += struct.calcsize(f"{self._order}{form}")
        return value

    def text(self) -> str:
        length = self.number("Q")
        if length > len(self._data) - self._at:
            raise struct.error("a text ends after the header")
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def value(self, code: int) -> Any:  # noqa: ANN401  # any metadata value
        if code == _STRING:
            return self.text()
        if code != _ARRAY:
            return self.number(self._scalar_form(code))
        element, count = self.number("I"), self.number("Q")
        if count > len(self._data) - self._at:  # an element has at least one byte
            raise struct.error("an array ends after the header")
        if element == _STRING:
            return [self.text() for _ in range(count)]
        form = self._scalar_form(element)
        return [self.number(form) for _ in range(count)]

    def _scalar_form(self, code: int) -> str:
        if code not in _SCALARS:
            raise struct.error(f"unknown type {code}")
        return _SCALARS[code]
