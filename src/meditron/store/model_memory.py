"""Memory that llama.cpp needs for a model, in RAM alone or with layers offloaded to a GPU.

It is the sum of

- the weights: the size of their file;
- the keys and values of the context in F16: for each token 2 bytes · layers · key/value heads · (key width +
  value width);
- the compute buffer. llama.cpp reserves one for a batch of 512 tokens (`n_ubatch`). Of a transformer it has
  three feed-forward and five residual activations in F32, and the attention mask in F16 (512 · context): the
  size that llama.cpp b11549 prints as `compute buffer size`, with flash attention, which is its default;
- the program and its vocabulary, measured.

The shape comes from a GGUF file's first kilobytes or from `config.json`, so that the memory is known before
the weights are downloaded. `benchmarks/memory.py` compares the sum with the memory of a process.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CONTEXT",
    "HEADER_BYTES",
    "ModelShape",
    "Offload",
    "cache_elements",
    "offloads",
    "shape_of_config",
    "shape_of_gguf_header",
]

CONTEXT = 4_096
"""Tokens of the context that the memory is stated for, or the model's maximum if that is less."""
HEADER_BYTES = 64 << 10
"""Bytes at the beginning of a GGUF file that are read; the shape's keys come before the vocabulary."""
_BATCH = 512  # llama.cpp's n_ubatch
_PROGRAM_BYTES, _BYTES_PER_TOKEN = 30_000_000, 500  # xllamacpp in Python; a token's text, scores and merges
_MOST_PAIRS = 1 << 16
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Keys of models whose cache is not one of keys and values per head: latent attention and state spaces.
_OTHER_CACHES = (".attention.kv_lora_rank", ".ssm.state_size", ".wkv.head_size")
_OTHER_CONFIGS = ("kv_lora_rank", "state_size", "mamba_d_state", "rwkv_version")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a transformer that determine its memory beside the weights; 0 for a size not known."""

    layers: int
    cache_elements: int
    """Elements of the keys and values of one token in all layers."""
    max_context: int
    """The longest context that the model was trained for, in tokens."""
    width: int = 0
    """Width of the residual stream."""
    feed_forward: int = 0
    """Width of the feed-forward layer."""
    vocabulary: int = 0

    def context_bytes(self, tokens: int = CONTEXT) -> int:
        """Return the bytes of an F16 cache of keys and values for `tokens`, at most the model's maximum."""
        return 2 * self.cache_elements * min(tokens, self.max_context)

    def compute_bytes(self, tokens: int = CONTEXT) -> int:
        """Return the bytes of llama.cpp's compute buffer with a context of `tokens`."""
        context = min(tokens, self.max_context)
        batch = min(_BATCH, context)
        return batch * (4 * (3 * self.feed_forward + 5 * self.width) + 2 * context)

    def program_bytes(self) -> int:
        """Return the bytes of the program with the model's vocabulary."""
        return _PROGRAM_BYTES + _BYTES_PER_TOKEN * self.vocabulary

    def ram_bytes(self, weights: int, tokens: int = CONTEXT) -> int:
        """Return the bytes of RAM without offloading; `weights` is the size of the model's files."""
        return weights + self.context_bytes(tokens) + self.compute_bytes(tokens) + self.program_bytes()


@dataclass(frozen=True, slots=True)
class Offload:
    """The memory of a model with some of its layers on a GPU."""

    layers: int
    """Value of llama.cpp's `-ngl`; the output layer counts as one."""
    ram: int
    vram: int
    """Without the GPU driver's own memory."""


def offloads(
    shape: ModelShape, file_bytes: int, tensors: Mapping[str, int], tokens: int = CONTEXT
) -> tuple[Offload, ...]:
    """Return the memory with no layer, half of the layers, and all layers offloaded.

    Args:
        shape: The model's shape.
        file_bytes: Size of the model's files.
        tensors: Bytes of each tensor by its GGUF name.
        tokens: Length of the context.
    """
    every = shape.layers + 1
    return tuple(_offload(shape, file_bytes, tensors, tokens, layers) for layers in (0, every // 2, every))


def _offload(
    shape: ModelShape, file_bytes: int, tensors: Mapping[str, int], tokens: int, layers: int
) -> Offload:
    if not layers:
        return Offload(0, shape.ram_bytes(file_bytes, tokens), 0)
    # llama.cpp offloads the last `layers` of blocks and output layer, and keeps the token embedding in RAM
    # (`llama_model_base::load_tensors`, `i_gpu_start`).
    blocks = layers - 1
    names = tuple(f"blk.{number}." for number in range(shape.layers - blocks, shape.layers))
    moved = sum(size for name, size in tensors.items() if name.startswith((*names, "output")))
    # The output layer of a tied embedding is a copy of it.
    copied = 0 if "output.weight" in tensors else tensors.get("token_embd.weight", 0)
    cache = shape.context_bytes(tokens)
    moved_cache = cache * blocks // shape.layers
    compute = shape.compute_bytes(tokens)
    # The buffer of the RAM is not needed if every block is on the GPU.
    ram = file_bytes - moved + cache - moved_cache + shape.program_bytes()
    return Offload(
        layers, ram + (compute if blocks < shape.layers else 0), moved + copied + moved_cache + compute
    )


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
    sizes = (_count(config.get(key)) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    elements = layers * shared * 2 * head
    return ModelShape(layers, elements, context, *sizes) if elements and context else None


def shape_of_gguf_header(header: bytes) -> ModelShape | None:
    """Return the shape in the first bytes of a GGUF file; None if they do not have it, or are not GGUF."""
    return _shape_of_metadata(_read_scalars(header))


def _count(value: object) -> int:
    """Return a plausible number of layers, heads, elements or tokens; 0 for anything else."""
    return value if type(value) is int and 0 < value < 1 << 32 else 0


def _largest(value: object) -> int:
    """Return the largest number of a list with a number per layer, or the only one."""
    return max(map(_count, value), default=0) if isinstance(value, list) else _count(value)


def _shape_of_metadata(metadata: Mapping[str, Any]) -> ModelShape | None:
    name = metadata.get("general.architecture")
    if any(f"{name}{key}" in metadata for key in _OTHER_CACHES):
        return None
    layers, context = (_count(metadata.get(f"{name}.{key}")) for key in ("block_count", "context_length"))
    sizes = (
        _largest(metadata.get(f"{name}.{key}"))
        for key in ("embedding_length", "feed_forward_length", "vocab_size")
    )
    elements = cache_elements(metadata)
    return ModelShape(layers, elements, context, *sizes) if elements and context else None


def cache_elements(metadata: Mapping[str, Any]) -> int:
    """Return the elements of one token's keys and values in all layers, by the metadata of a GGUF file.

    The result is 0 if the metadata lack a size.
    """
    name = metadata.get("general.architecture")
    heads = metadata.get(f"{name}.attention.head_count")
    shared = metadata.get(f"{name}.attention.head_count_kv", heads)
    # Models whose layers differ have a list with a number per layer.
    layers = _count(metadata.get(f"{name}.block_count"))
    cached_heads = sum(map(_count, shared)) if isinstance(shared, list) else layers * _count(shared)
    head = _count(metadata.get(f"{name}.embedding_length")) // max(_largest(heads), 1)
    key = _largest(metadata.get(f"{name}.attention.key_length")) or head
    value = _largest(metadata.get(f"{name}.attention.value_length")) or head
    return cached_heads * (key + value)


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
