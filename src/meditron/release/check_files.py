"""Comparison of a source's files with a written model: tensors, keys, added tokens and stop tokens.

The package's model readers are not used, only JSON, safetensors headers and GGUF keys: a bug in a reader
would affect both sides equally and stay unnoticed.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meditron.model.config import LlamaConfig
from meditron.model.families import FAMILIES
from meditron.model.gguf_layout import gguf_tensor_name
from meditron.model.gguf_shape import NEUTRAL_VALUES, REQUIRED_KEYS
from meditron.model.packed_weights import open_packed_matrices
from meditron.model.shapes import EMBEDDING, HEAD, parameter_shapes
from meditron.store.files import read_json
from meditron.store.gguf import GGUF
from meditron.store.models import ModelFiles
from meditron.store.safetensors import SafetensorsFile, stored_as_float32, tensor_files
from meditron.text.tokenizer import Tokenizer

__all__ = ["missing_gguf_keys", "source_file_differences", "special_token_differences"]

_COPIES = "rotary_emb.inv_freq"  # stored by old transformers, but computed from the config
_SCALING = "rope.scaling."


def source_file_differences(source: ModelFiles, written: LlamaConfig) -> Iterator[str]:
    """Yield the keys and tensors of the source that the written model lacks or changes.

    `written` is the config that was read from the written model.
    """
    if source.kind in ("init", "megatron"):  # a checkpoint's tensors have other names and shapes
        return
    yield from _tensor_differences(source, written)
    if source.kind == "gguf":
        with GGUF(Path(source.path)) as gguf:
            yield from _gguf_key_differences(gguf.metadata, written)
    else:
        yield from _hf_key_differences(read_json(Path(source.path) / "config.json"), written)


def special_token_differences(source: ModelFiles, written: Tokenizer) -> Iterator[str]:
    """Yield added tokens and stop ids of the source's files that the written tokenizer lacks."""
    path = Path(source.path)
    stop_ids_by_place: dict[str, Any] = {}
    if source.kind == "gguf":
        with GGUF(path) as gguf:
            stop_ids_by_place = {
                key: gguf.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")
            }
    elif source.kind == "hf":
        for content, i in _added_tokens(path).items():
            if written.id_to_token(i) != content or i not in written.added_ids:
                yield f"added token {content!r} ({i}) is {written.id_to_token(i)!r}"
        files = ("config.json", "generation_config.json")
        stop_ids_by_place = {file: _json_object(path / file).get("eos_token_id") for file in files}
    for place, value in stop_ids_by_place.items():
        for i in value if isinstance(value, list) else [value]:
            if isinstance(i, int) and written.id_to_token(i) is not None and i not in written.stop_ids:
                yield f"stop id {i} ({written.id_to_token(i)!r}) of {place} is missing"


def missing_gguf_keys(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield missing keys without which llama.cpp rejects a file or reads other head widths."""
    architecture = metadata.get("general.architecture")
    shape = _keys_of_architecture(metadata)
    for key in REQUIRED_KEYS:
        if key not in shape:
            yield f"{architecture}.{key} is missing; llama.cpp does not open the file without it"
            return
    width, heads = shape["embedding_length"], shape["attention.head_count"]
    lengths = [shape.get(f"attention.{key}_length", width // heads) for key in ("key", "value")]
    if lengths[0] != lengths[1]:
        yield (
            f"{architecture}.attention.value_length is {shape.get('attention.value_length', 'missing')}, "
            f"which llama.cpp reads as {lengths[1]}; the width of a head is {lengths[0]}"
        )


def _keys_of_architecture(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that begin with the file's architecture, without it."""
    prefix = f"{metadata.get('general.architecture')}."
    return {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}


def _tensor_differences(source: ModelFiles, written: LlamaConfig) -> Iterator[str]:
    """Yield stored tensors that the written model lacks, except a head that equals the embedding."""
    whole = written.model_copy(update={"tie_word_embeddings": False})
    if source.kind == "hf":
        folder, expected = Path(source.path), parameter_shapes(written)
        packed, plain = open_packed_matrices(folder, tensor_files(folder), expected)
        stored = {name for name in (*plain, *packed) if not name.endswith(_COPIES)}
    else:
        ours = {gguf_tensor_name(name): name for name in parameter_shapes(whole)}
        with GGUF(Path(source.path)) as gguf:
            stored = {ours.get(name, name) for name in gguf.tensors if name != "rope_freqs.weight"}
    for name in sorted(stored - parameter_shapes(written).keys()):
        if name != HEAD:
            yield f"{name} of the source is missing"
        elif _head_differs(source):
            yield f"{HEAD} of the source, which differs from {EMBEDDING}, is missing"


def _head_differs(source: ModelFiles) -> bool:
    if source.kind == "gguf":
        with GGUF(Path(source.path)) as gguf:
            head, embedding = gguf.tensors[gguf_tensor_name(HEAD)], gguf.tensors[gguf_tensor_name(EMBEDDING)]
            same_type = head.type == embedding.type
            return not (same_type and (gguf.raw_tensor(head.name) == gguf.raw_tensor(embedding.name)).all())
    files = tensor_files(Path(source.path))
    head_VD, embedding_VD = (
        stored_as_float32(SafetensorsFile(files[name]).array(name)) for name in (HEAD, EMBEDDING)
    )
    return not np.array_equal(head_VD, embedding_VD)


def _gguf_key_differences(metadata: Mapping[str, Any], written: LlamaConfig) -> Iterator[str]:
    """Yield keys of the shape whose value changed, or that have an effect and were not carried over."""
    shape = _keys_of_architecture(metadata)
    architecture = written.family.gguf
    expected = _keys_of_architecture({"general.architecture": architecture, **written.to_gguf()})
    ours, theirs = _effective_rope_scaling(shape), _effective_rope_scaling(expected)
    if not all(_nearly_equal(a, b) for a, b in zip(ours, theirs, strict=True)):
        keys = f"{architecture}.{_SCALING}*"
        yield f"{keys} (type, factor, attn_factor, original context) is {theirs} instead of {ours}"
    if window := shape.pop("attention.sliding_window", None):
        shape["context_length"] = min(shape["context_length"], window)
    for key, value in shape.items():
        if key in _COMPARED_ELSEWHERE:
            continue
        if key in expected:
            if not _nearly_equal(value, expected[key]) and value != [expected[key]] * len(_as_list(value)):
                yield f"{architecture}.{key} is {expected[key]} instead of {value!r:.60}"
        elif key not in NEUTRAL_VALUES or (
            (allowed := NEUTRAL_VALUES[key]) is not None and value not in allowed
        ):
            yield f"{architecture}.{key} = {value!r:.60} of the source is not carried over"


_COMPARED_ELSEWHERE = {
    "vocab_size",  # the tokenizer is compared instead
    "rope.scale_linear",
    *(_SCALING + key for key in ("type", "factor", "attn_factor", "original_context_length")),
}


def _effective_rope_scaling(metadata: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the rotary scaling as llama.cpp reads it: type, factor, attention factor, original context."""
    kind = metadata.get(_SCALING + "type", "linear")
    factor = metadata.get(_SCALING + "factor", metadata.get("rope.scale_linear", 1.0)) or 1.0
    attention = metadata.get(_SCALING + "attn_factor", 1.0)
    if kind != "yarn":
        return "linear", 1.0 if kind == "none" else factor, attention, None
    context = metadata.get(_SCALING + "original_context_length", metadata.get("context_length"))
    return kind, factor, attention, context


def _hf_key_differences(config: Mapping[str, Any], written: LlamaConfig) -> Iterator[str]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    family = FAMILIES.get(config.get("model_type", "llama"), FAMILIES["llama"])
    values = {**dict(family.hf_defaults), **config}
    values |= {key: value for key, value in rope.items() if key == "rope_theta"}
    if family.sliding_window and (window := values.get("sliding_window")):
        values["max_position_embeddings"] = min(values["max_position_embeddings"], window)
    for key in _SHAPE:
        if (value := values.get(key)) is not None and not _nearly_equal(value, getattr(written, key)):
            yield f"{key} is {getattr(written, key)} instead of {value!r:.60}"
    kind = rope.get("rope_type") or rope.get("type") or "default"
    scaling = written.rope_scaling
    if kind != (scaling.rope_type if scaling else "default"):
        yield f"the rotary scaling is {scaling.rope_type if scaling else 'default'} instead of {kind!r:.60}"
    # Llama 3's parameters are compared by the logits, because different ones can give the same factors.
    compared = {"linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor", "attention_factor")}
    for key in compared.get(kind, ()):
        if scaling and rope.get(key) is not None and not _nearly_equal(rope[key], getattr(scaling, key)):
            yield f"{key} of the rotary scaling is {getattr(scaling, key)} instead of {rope[key]!r:.60}"


_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
)


def _added_tokens(folder: Path) -> dict[str, int]:
    """Return names and ids of `added_tokens.json` and of `added_tokens_decoder`, which takes precedence."""
    added = {name: i for name, i in _json_object(folder / "added_tokens.json").items() if isinstance(i, int)}
    decoder = _json_object(folder / "tokenizer_config.json").get("added_tokens_decoder")
    for i, token in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(token, dict) and isinstance(content := token.get("content"), str) and i.isdecimal():
            added[content] = int(i)
    return added


def _json_object(path: Path) -> Mapping[str, Any]:
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _nearly_equal(ours: Any, theirs: Any) -> bool:  # noqa: ANN401
    """Return True for equal values, or floats that differ by rounding to fp32 or to decimals."""
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return (
            bool(abs(ours - theirs) <= 1e-5 * abs(theirs))
            if float in map(type, (ours, theirs))
            else ours == theirs
        )
    return bool(ours == theirs)
