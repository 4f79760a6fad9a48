"""Our conversion against llama.cpp's own converter, where it is at hand: tensors and metadata."""

import json
import shutil
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import llama_convert
from hf_parity import randomize_vectors
from meditron.model.families import FAMILIES, FamilyName
from meditron.model.weight_rows import load_config
from meditron.release.check import CHECK_KEY
from meditron.release.convert import convert
from meditron.release.quantize import QuantizeOptions, quantize
from meditron.store.gguf import GGUF
from meditron.text.tokenizer import load_tokenizer

pytestmark = [
    pytest.mark.skipif(llama_convert.folder() is None, reason=llama_convert.HOW),
    pytest.mark.slow,
    pytest.mark.shared,
    pytest.mark.timeout(3600),
]

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": YARN,
    "yarn-attention": YARN | {"attention_factor": 1.3},
    "yarn-defaults": YARN | {"beta_fast": 32.0, "beta_slow": 1.0},
}
TOKENIZERS = ("smollm2", "llama2")
LLAMA2 = {  # tokenizer_config.json of the published Llama-2
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "legacy": False,
    "tokenizer_class": "LlamaTokenizer",
}


@dataclass(frozen=True)
class Model:
    """A model with random weights, its conversion by us and by llama.cpp's converter."""

    family: FamilyName
    tokenizer: str
    scaling: str
    folder: Path

    @property
    def ours(self) -> Path:
        return self.folder / "ours.gguf"

    @property
    def theirs(self) -> Path:
        return self.folder / "theirs.gguf"


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    load_tokenizer(smollm2_gguf).save(folder)
    return folder


@pytest.fixture(scope="module")
def llama2_tokenizer(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama2")
    shutil.copy(shared / "data/llama-tiny/llama2-tokenizer.model", folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(LLAMA2))
    return folder


def write_model(folder: Path, tokenizer: Path, family: str, scaling: str, **changes: Any) -> Path:
    """Write a family's model with random weights, with transformers."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": load_tokenizer(tokenizer).vocab_size, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
        "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": {"rope_theta": 5e5, "rope_type": "default", **SCALINGS[scaling]},
    }  # fmt: skip
    if family == "mistral":  # transformers' default is a window of 4,096 tokens
        shape["sliding_window"] = None
    if family == "qwen3":
        shape |= {"head_dim": 24, "tie_word_embeddings": True}
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(shape | changes)))
    randomize_vectors(hf)
    shutil.copytree(tokenizer, folder)
    hf.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizers(smollm2_tokenizer: Path, llama2_tokenizer: Path) -> dict[str, Path]:
    return dict(zip(TOKENIZERS, (smollm2_tokenizer, llama2_tokenizer), strict=True))


@pytest.fixture(scope="module", params=list(product(FAMILIES, TOKENIZERS)), ids="-".join)
def models(
    request: pytest.FixtureRequest, tokenizers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Model]:
    """Scaling → a family's model with a tokenizer, which the converter has converted to F16."""
    family, tokenizer = request.param
    root = tmp_path_factory.mktemp("models")
    models = {name: Model(family, tokenizer, name, root / name) for name in SCALINGS}
    for name, model in models.items():
        write_model(model.folder, tokenizers[tokenizer], family, name)
    llama_convert.convert([(model.folder, model.theirs, "F16") for model in models.values()])
    return models


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    with GGUF(ours) as mine, GGUF(theirs) as reference:
        shapes = [{name: (t.type, t.shape) for name, t in file.tensors.items()} for file in (mine, reference)]
        assert shapes[0] == shapes[1]
        for name in mine.tensors:
            assert np.array_equal(mine.raw_tensor(name), reference.raw_tensor(name)), name


def written_by_default(model: Model) -> dict[str, Any]:
    """Return the keys that the converter may omit, with the values that llama.cpp assumes then."""
    config = load_config(model.folder)
    prefix = f"{config.family.gguf}."
    return {
        prefix + "vocab_size": config.vocab_size,
        prefix + "attention.key_length": config.head_dim,
        prefix + "attention.value_length": config.head_dim,
        prefix + "rope.dimension_count": config.head_dim,
        "tokenizer.ggml.add_space_prefix": model.tokenizer == "llama2",
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_bos_token": model.tokenizer == "llama2",
        "tokenizer.ggml.unknown_token_id": 0,
    }


def drop_keys_without_effect(model: Model, metadata: dict[str, Any]) -> dict[str, Any]:
    """Drop keys that do not change what llama.cpp computes, and those that are compared otherwise."""
    scaling = f"{FAMILIES[model.family].gguf}.rope.scaling."
    dropped = {"general.name", "general.size_label", "tokenizer.ggml.scores", CHECK_KEY}
    # llama.cpp reads these for architectures of other families only: ours has `attn_factor` instead.
    dropped |= {scaling + key for key in ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")}
    if model.scaling == "yarn-attention":
        dropped.add(scaling + "attn_factor")
    if model.scaling == "llama3":  # llama.cpp uses the tensor; we read the context from the key again
        dropped.add(scaling + "original_context_length")
    return {key: value for key, value in metadata.items() if key not in dropped}


@pytest.mark.parametrize("scaling", SCALINGS)
def test_tensors_and_keys_equal_the_converters(scaling: str, models: dict[str, Model]) -> None:
    model = models[scaling]
    if scaling == "llama3" and not FAMILIES[model.family].gguf_rope_factors:
        pytest.skip("the converter drops the scaling; we refuse to write the file")
    convert(str(model.folder), model.ours, check=False)  # the check has tests of its own
    assert_same_tensors(model.ours, model.theirs)
    with GGUF(model.ours) as mine, GGUF(model.theirs) as reference:
        ours, theirs = (drop_keys_without_effect(model, file.metadata) for file in (mine, reference))
        assert written_by_default(model) | ours == written_by_default(model) | theirs
        if model.tokenizer == "llama2":
            assert_same_order(mine.metadata, reference.metadata)


def assert_same_order(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Check the order of the scores of merged pieces, which is all that llama.cpp uses.

    A tokenizer.json has no scores, and nothing is merged into a single character.
    """
    tokens, types = theirs["tokenizer.ggml.tokens"], theirs["tokenizer.ggml.token_type"]
    merged = [kind == 1 and len(token) > 1 for token, kind in zip(tokens, types, strict=True)]
    mine, reference = (np.array(each["tokenizer.ggml.scores"])[merged] for each in (ours, theirs))
    best_first = np.argsort(-mine, kind="stable")
    assert (np.diff(reference[best_first]) <= 0).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "changes", [{}, {"rows": 40, "dtype": "bfloat16", "head_dim": 16}], ids=["", "padded"]
)
def test_every_type_of_the_converter(
    family: FamilyName, changes: dict[str, Any], smollm2_tokenizer: Path, tmp_path: Path
) -> None:
    changes = dict(changes)
    if rows := changes.pop("rows", 0):  # more rows than tokens, as in models padded for tensor parallelism
        changes["vocab_size"] = load_tokenizer(smollm2_tokenizer).vocab_size + rows
    if family == "qwen2":  # transformers computes it
        changes.pop("head_dim", None)
    source = write_model(tmp_path / "source", smollm2_tokenizer, family, "default", **changes)
    made = quantize(
        str(source), ["F32", "F16", "BF16", "Q8_0"], tmp_path / "ours", QuantizeOptions(check=False)
    )
    theirs = {file["type"]: tmp_path / f"{file['type']}.gguf" for file in made["files"]}
    llama_convert.convert([(source, path, kind) for kind, path in theirs.items()])
    for file in made["files"]:
        assert_same_tensors(Path(file["path"]), theirs[file["type"]])
        with GGUF(Path(file["path"])) as mine, GGUF(theirs[file["type"]]) as reference:
            for key in ("general.file_type", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
                assert mine.metadata[key] == reference.metadata[key], key
