"""Checkpoints of Megatron-LLM, written here by another implementation of its layout."""

import argparse
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from hf_parity import logits
from meditron.core.errors import InputError
from meditron.model.weight_rows import load_config
from meditron.model.weights import load_model
from meditron.release.convert import convert
from meditron.text.tokenizer import load_tokenizer
from tiny import tiny_hf

HEADS, SHARED, WIDTH, PADDED = 4, 2, 32, 384
HEAD = WIDTH // HEADS


class PositionEmbeddingType(Enum):
    """An enumeration in the arguments, which a reader without Megatron cannot import."""

    rotary = 1


class Malicious:
    """An object whose unpickling would call a function."""

    def __init__(self, function: Callable[..., Any], argument: str) -> None:
        self.call = (function, (argument,))

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def interleave(head_ED: torch.Tensor) -> torch.Tensor:
    """Reorder the rows of a head from HF's halves to Meta's neighbours, one by one."""
    half = len(head_ED) // 2
    return torch.stack([head_ED[(i % 2) * half + i // 2] for i in range(len(head_ED))])


def grouped(state: dict[str, torch.Tensor], prefix: str, groups: range) -> torch.Tensor:
    """The rows of query_key_value for some key/value heads: each group's queries, key and value."""
    rows: list[torch.Tensor] = []
    q, k, v = (state[f"{prefix}self_attn.{part}_proj.weight"].split(HEAD) for part in "qkv")
    for group in groups:
        per = HEADS // SHARED
        rows += [interleave(head) for head in q[group * per : (group + 1) * per]]
        rows += [interleave(k[group]), v[group]]
    return torch.cat(rows)


def language_model(
    state: dict[str, torch.Tensor],
    rank: tuple[int, int],
    ranks: tuple[int, int],
    blocks: int,
    *,
    training: bool,
) -> dict[str, Any]:
    """What one rank stores; `training`: under the names of a run, else under those of a release."""
    (tp, pp), (tps, pps) = rank, ranks
    attention = "self_attention" if training else "attention"
    layers: dict[str, torch.Tensor] = {}
    for local, index in enumerate(range(pp * blocks // pps, (pp + 1) * blocks // pps)):
        old, new = f"model.layers.{index}.", f"layers.{local}."
        groups = range(tp * SHARED // tps, (tp + 1) * SHARED // tps)
        layers[f"{new}{attention}.query_key_value.weight"] = grouped(state, old, groups)
        layers[f"{new}{attention}.dense.weight"] = state[f"{old}self_attn.o_proj.weight"].chunk(tps, 1)[tp]
        up, gate = (state[f"{old}mlp.{name}_proj.weight"].chunk(tps)[tp] for name in ("up", "gate"))
        layers[f"{new}mlp.dense_h_to_4h.weight"] = torch.cat((up, gate))
        layers[f"{new}mlp.dense_4h_to_h.weight"] = state[f"{old}mlp.down_proj.weight"].chunk(tps, 1)[tp]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            layers[f"{new}{norm}.weight"] = state[f"{old}{norm}.weight"]
    whole: dict[str, Any] = {"encoder" if training else "transformer": layers}
    if pp == 0:
        words = padded(state["model.embed_tokens.weight"]).chunk(tps)[tp]
        whole["embedding"] = (
            {"word_embeddings": {"weight": words}} if training else {"word_embeddings.weight": words}
        )
    if pp == pps - 1:
        layers["final_layernorm.weight"] = state["model.norm.weight"]
        if "lm_head.weight" in state:
            whole["lm_head"] = padded(state["lm_head.weight"]).chunk(tps)[tp]
    return whole


def padded(weight_VD: torch.Tensor) -> torch.Tensor:
    return torch.cat((weight_VD, torch.full((PADDED - len(weight_VD), WIDTH), 7.0)))


def write(
    folder: Path, hf: Path, ranks: tuple[int, int] = (1, 1), *, training: bool = False, **changes: Any
) -> Path:
    """Write a checkpoint of the weights of an HF folder, with its tokenizer beside it."""
    state, config = load_file(hf / "model.safetensors"), json.loads((hf / "config.json").read_text())
    args = {
        "num_layers": 2, "hidden_size": WIDTH, "ffn_hidden_size": 64, "num_attention_heads": HEADS,
        "num_attention_heads_kv": SHARED, "max_position_embeddings": 256, "seq_length": 256,
        "layernorm_epsilon": 1e-6, "rope_theta": 10_000.0, "glu_activation": "swiglu", "use_rms_norm": True,
        "parallel_attn": False, "padded_vocab_size": PADDED,
        "tie_embed_logits": config["tie_word_embeddings"],
        "tensor_model_parallel_size": ranks[0], "pipeline_model_parallel_size": ranks[1],
        "position_embedding_type": "rotary",
    }  # fmt: skip
    args |= changes
    name = "iter_0000007" if training else "release"
    folder.mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("7" if training else "release")
    for tp in range(ranks[0]):
        for pp in range(ranks[1]):
            place = folder / name / (f"mp_rank_{tp:02d}" + (f"_{pp:03d}" if ranks[1] > 1 else ""))
            place.mkdir(parents=True)
            model = language_model(state, (tp, pp), ranks, 2, training=training)
            content: dict[str, Any] = {
                "iteration": 7,
                "checkpoint_version": 3.0,
                "model": {"language_model": model},
            }
            if training:
                args["position_embedding_type"] = PositionEmbeddingType.rotary
                content["rng_state"] = [{"random": random.getstate(), "np": np.random.get_state()}]
                content["optimizer"] = {"fp32": [torch.ones(3)]}
            torch.save(content | {"args": argparse.Namespace(**args)}, place / "model_optim_rng.pt")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(hf / file, folder / file)
    return folder


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("hf") / "model")


@pytest.mark.parametrize("training", [False, True], ids=["release", "training"])
@pytest.mark.parametrize("ranks", [(1, 1), (2, 1), (1, 2), (2, 2)], ids=str)
def test_every_layout_gives_the_model_to_the_last_bit(
    hf: Path, tmp_path: Path, ranks: tuple[int, int], training: bool
) -> None:
    checkpoint = write(tmp_path / "megatron", hf, ranks, training=training)
    convert(str(checkpoint), tmp_path / "out")
    ours, source = load_file(tmp_path / "out/model.safetensors"), load_file(hf / "model.safetensors")
    assert ours.keys() == source.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in source.items())
    assert load_config(tmp_path / "out") == load_config(hf).model_copy(
        update={"bos_token_id": None, "eos_token_id": None, "initializer_range": 0.02}
    )
    assert load_tokenizer(tmp_path / "out").encode("Aspirin 12") == load_tokenizer(hf).encode("Aspirin 12")


@torch.no_grad()
def test_logits_of_the_converted_model_equal_transformers(hf: Path, tmp_path: Path) -> None:
    model = load_model(write(tmp_path / "megatron", hf, (2, 2)))
    ids_BS = torch.arange(64)[None] * 3
    theirs = transformers.AutoModelForCausalLM.from_pretrained(hf)(ids_BS).logits
    torch.testing.assert_close(logits(model, ids_BS), theirs, atol=3e-4, rtol=0)


def test_a_tied_head_a_window_and_gguf(tmp_path: Path) -> None:
    hf = tiny_hf(tmp_path / "hf", tied=True, family="mistral", sliding_window=64)
    checkpoint = write(tmp_path / "megatron", hf, (2, 1), sliding_window_size=64)
    assert load_config(checkpoint).model_type == "mistral"
    assert load_config(checkpoint).max_position_embeddings == 64
    convert(str(checkpoint), tmp_path / "model.gguf", type="F32")
    for ours, theirs in zip(
        load_model(tmp_path / "model.gguf").parameters(), load_model(hf).parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_config_beside_the_checkpoint_counts(hf: Path, tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "megatron", hf, layernorm_epsilon=1e-3, num_attention_heads=2)
    shutil.copy(hf / "config.json", checkpoint / "config.json")
    assert load_config(checkpoint) == load_config(hf)
    assert torch.equal(load_model(checkpoint).head_weight, load_model(hf).head_weight)


def test_no_code_from_a_file_runs(hf: Path, tmp_path: Path) -> None:
    checkpoint, victim = write(tmp_path / "megatron", hf), tmp_path / "victim"
    victim.mkdir()
    file = checkpoint / "release/mp_rank_00/model_optim_rng.pt"
    content = torch.load(file, weights_only=False)
    torch.save(content | {"rng_state": Malicious(os.system, f"rmdir {victim}")}, file)
    with pytest.raises(InputError, match=r"names posix\.system, which could run code"):
        load_model(checkpoint)
    torch.save(content | {"rng_state": Malicious(shutil.rmtree, str(victim))}, file)
    load_model(checkpoint)
    assert victim.exists()
    torch.load(file, weights_only=False)
    assert not victim.exists(), "the file would have removed the folder"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"glu_activation": "geglu"}, "glu_activation"),
        ({"use_rms_norm": False}, "use_rms_norm"),
        ({"parallel_attn": True}, "parallel_attn"),
        ({"use_bias": True}, "use_bias"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 3}, "head"),
        ({"ffn_hidden_size": 60}, "up_proj|gate_proj"),
    ],
)
def test_other_models_are_refused_by_the_argument(
    hf: Path, tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    checkpoint = write(tmp_path / "megatron", hf, **changes)
    with pytest.raises(InputError, match=word) as caught:
        load_model(checkpoint)
    assert "\n" not in caught.value.message


def test_missing_and_damaged_files_are_named(hf: Path, tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "megatron", hf, (2, 2))
    last = checkpoint / "release/mp_rank_01_001/model_optim_rng.pt"
    whole = last.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PK\x03\x04", pickle.dumps({"model": 1})):
        last.write_bytes(damaged)
        with pytest.raises(InputError, match="mp_rank_01_001"):
            load_model(checkpoint)
    torch.save({"model": {"language_model": []}, "args": argparse.Namespace()}, last)
    with pytest.raises(InputError, match="not a checkpoint of Megatron-LLM"):
        load_model(checkpoint)
    last.unlink()
    with pytest.raises(InputError, match="tensor rank 1 and pipeline stage 1 is missing"):
        load_model(checkpoint)
    (checkpoint / "latest_checkpointed_iteration.txt").write_text("../../etc")
    with pytest.raises(InputError, match="must be a number or 'release'"):
        load_model(checkpoint)


def test_a_lost_or_additional_tensor_is_named(hf: Path, tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "megatron", hf)
    file = checkpoint / "release/mp_rank_00/model_optim_rng.pt"
    content = torch.load(file, weights_only=False)
    layers = content["model"]["language_model"]["transformer"]
    dense = layers.pop("layers.1.attention.dense.weight")
    layers["layers.1.attention.dense.bias"] = torch.zeros(WIDTH)
    torch.save(content, file)
    with pytest.raises(InputError, match=r"o_proj.*unexpected: layers\.1\.attention\.dense\.bias"):
        load_model(checkpoint)
    del layers["layers.1.attention.dense.bias"]
    layers["layers.1.attention.dense.weight"] = dense[:, :-2]
    torch.save(content, file)
    with pytest.raises(InputError, match=r"o_proj.*shape"):
        load_model(checkpoint)


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(hf: Path, tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "megatron", hf)
    file = checkpoint / "release/mp_rank_00/model_optim_rng.pt"
    content = torch.load(file, weights_only=False)
    embedding = content["model"]["language_model"]["embedding"]
    embedding["word_embeddings.weight"] = embedding["word_embeddings.weight"][:100]
    torch.save(content, file)
    with pytest.raises(InputError, match="320 tokens, the embedding 100 rows"):
        load_model(checkpoint)
