"""Our files against llama.cpp's own quantizer, where it is at hand."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import llama_quantize
from meditron.model.families import FAMILIES, FamilyName
from meditron.release.quant_recipes import FLOAT_TYPES, QUANT_RECIPES, GGUFType
from meditron.release.quantize import quantize
from meditron.store.gguf import GGUF
from quantized import digest, golden
from seeded import seeded_hf

pytestmark = [
    pytest.mark.skipif(llama_quantize.folder() is None, reason=llama_quantize.HOW),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]
TYPES: list[GGUFType] = [kind for kind in get_args(GGUFType) if kind != "F32"]


def assert_same(ours: Path, theirs: Path) -> None:
    with GGUF(ours) as mine, GGUF(theirs) as reference:
        assert mine.metadata == reference.metadata
        types = {name: info.type for name, info in reference.tensors.items()}
        assert {name: info.type for name, info in mine.tensors.items()} == types
        for name in mine.tensors:
            assert np.array_equal(mine.raw_tensor(name), reference.raw_tensor(name)), name


def compare(model: str, folder: Path, types: list[GGUFType]) -> dict[str, str]:
    """Hold every type to llama.cpp's; its digests."""
    made = quantize(model, ["F32", *types], folder)
    paths = {file["type"]: Path(file["path"]) for file in made["files"]}
    theirs, digests = folder / "theirs.gguf", {}
    for kind in types:
        llama_quantize.quantize(paths["F32"], theirs, QUANT_RECIPES[kind].file_type)
        assert_same(paths[kind], theirs)
        digests[kind] = digest(theirs)
    return digests


def test_smollm2(smollm2_gguf: Path, tmp_path: Path) -> None:
    compare(str(smollm2_gguf), tmp_path, TYPES)


@pytest.mark.parametrize("name", ["wide", "odd"])
def test_the_golden_digests_are_llama_cpps(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    assert compare(str(request.getfixturevalue(name)), tmp_path, TYPES) == golden()[name]


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize(("blocks", "heads", "shared"), [(17, 8, 2), (17, 8, 4), (80, 8, 8), (80, 8, 1)])
def test_the_rules_of_the_mixes(
    tiny: Path, tmp_path: Path, family: FamilyName, blocks: int, heads: int, shared: int
) -> None:
    model = seeded_hf(
        tmp_path / "model", tiny, seed=80, model_type=family, hidden_size=256, intermediate_size=256,
        num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=shared, head_dim=32, tie_word_embeddings=blocks == 17,
    )  # fmt: skip
    quantized = [kind for kind in TYPES if kind not in FLOAT_TYPES]
    compare(str(model), tmp_path, quantized if blocks == 17 else ["Q2_K", "Q3_K_M", "Q4_K_M"])
