"""Names and shapes of a model's weights, and checks of weights in files. Does not import torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from meditron.core.errors import InputError, UsageError
from meditron.model.config import LlamaConfig

__all__ = ["EMBEDDING", "HEAD", "Shapes", "check_tensors", "parameter_shapes", "weight_range_error"]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""HF's names of the embedding and of the head."""

Shapes = Mapping[str, tuple[int, ...]]


def parameter_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by HF's name, in the order of `Llama.named_parameters`.

    A tied head has no entry, as it is the embedding.
    """
    vocabulary = (config.vocab_size, config.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: vocabulary}
    for block in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{block}.{name}": shape for name, shape in _block_shapes(config)}
    shapes["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = vocabulary
    return shapes


def _block_shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    rows = {
        "q": config.num_attention_heads * head,
        "k": config.num_key_value_heads * head,
        "v": config.num_key_value_heads * head,
    }
    for part, count in rows.items():
        yield f"self_attn.{part}_proj.weight", (count, width)
        if config.family.qkv_bias:
            yield f"self_attn.{part}_proj.bias", (count,)
    yield "self_attn.o_proj.weight", (width, rows["q"])
    if config.family.qk_norm:
        yield "self_attn.q_norm.weight", (head,)
        yield "self_attn.k_norm.weight", (head,)
    yield "mlp.gate_proj.weight", (inner, width)
    yield "mlp.up_proj.weight", (inner, width)
    yield "mlp.down_proj.weight", (width, inner)
    yield "input_layernorm.weight", (width,)
    yield "post_attention_layernorm.weight", (width,)


def check_tensors(path: Path, expected: Shapes, actual: Shapes) -> None:
    """Raise InputError, in one line, unless `path` has exactly the expected tensors and shapes."""
    missing = [name for name in expected if name not in actual]
    unexpected = [name for name in actual if name not in expected]
    # Four names are enough to see the cause: a model of another size differs in hundreds.
    faults = [
        f"{len(names)} {kind}: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if faults:
        raise InputError(path, "; ".join(faults), place="tensors")
    for name, shape in expected.items():
        if actual[name] != shape:
            raise InputError(path, f"has shape {actual[name]}, but the config gives {shape}", place=name)


def weight_range_error(name: str, kind: str, *, finite: bool) -> UsageError:
    """Return the error for a weight that overflows in the type to write, or that is not finite itself."""
    if not finite:
        return UsageError(f"{name} contains NaN or infinity: the model is damaged")
    wider = "F32" if kind.isupper() else "float32"
    return UsageError(f"{name} has values that {kind} cannot represent", hint=f"write {wider} instead")
