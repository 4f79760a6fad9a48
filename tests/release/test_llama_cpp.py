"""Our files against llama.cpp's own quantizer, where it is at hand."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import llama_quantize
from meditron.release.mix import FLOATS, MIXES, GGUFType
from meditron.release.quantize import quantize
from meditron.store.gguf import GGUF
from seeded import seeded_hf

pytestmark = [
    pytest.mark.skipif(llama_quantize.folder() is None, reason=llama_quantize.HOW),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]
TYPES = [kind for kind in get_args(GGUFType) if kind != "F32"]


def assert_same(ours: Path, theirs: Path) -> None:
    with GGUF(ours) as mine, GGUF(theirs) as reference:
        for key in ("general.file_type", "general.quantization_version", "general.name"):
            assert mine.metadata[key] == reference.metadata[key]
        assert mine.metadata == reference.metadata
        types = {name: info.type for name, info in reference.tensors.items()}
        assert {name: info.type for name, info in mine.tensors.items()} == types
        for name in mine.tensors:
            assert np.array_equal(mine.raw(name), reference.raw(name)), name


def compare(model: str, folder: Path, types: list[GGUFType]) -> None:
    made = quantize(model, ["F32", *types], folder)
    paths = {file["type"]: Path(file["path"]) for file in made["files"]}
    for kind in types:
        theirs = folder / "theirs.gguf"
        llama_quantize.quantize(paths["F32"], theirs, MIXES[kind].file_type)
        assert_same(paths[kind], theirs)


def test_smollm2(smollm2_gguf: Path, tmp_path: Path) -> None:
    compare(str(smollm2_gguf), tmp_path, TYPES)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("width", [256, 320])
def test_every_rule_of_the_mixes(tiny: Path, tmp_path: Path, width: int, tied: bool) -> None:
    model = seeded_hf(
        tmp_path / "model", tiny, seed=width, hidden_size=width, intermediate_size=512, num_hidden_layers=17,
        num_attention_heads=8, num_key_value_heads=2, head_dim=32, tie_word_embeddings=tied,
    )  # fmt: skip
    compare(str(model), tmp_path, TYPES)


@pytest.mark.parametrize("heads", [(8, 8), (8, 4), (8, 1)])
def test_the_rules_for_80_blocks_and_for_shared_values(
    tiny: Path, tmp_path: Path, heads: tuple[int, int]
) -> None:
    model = seeded_hf(
        tmp_path / "model", tiny, seed=80, hidden_size=256, intermediate_size=256, num_hidden_layers=80,
        num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=32,
    )  # fmt: skip
    compare(str(model), tmp_path, [kind for kind in TYPES if kind not in FLOATS])
