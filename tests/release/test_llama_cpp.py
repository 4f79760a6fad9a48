"""Our files against llama.cpp's own quantizer, where it is at hand."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import llama_quantize
from meditron.model.families import FAMILIES, FamilyName
from meditron.release.imatrix_file import read_imatrix
from meditron.release.quant_recipes import QUANT_RECIPES
from meditron.release.quantize import QuantizeOptions, quantize
from meditron.release.types import GGUFType
from meditron.store.gguf import GGUF
from quantized import FAST_TYPES, digest, golden, seeded_imatrix, write_golden
from seeded import seeded_hf

pytestmark = [
    pytest.mark.skipif(llama_quantize.folder() is None, reason=llama_quantize.HOW),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


def assert_same(ours: Path, theirs: Path, *, imatrix: bool, equal: float) -> None:
    with GGUF(ours) as mine, GGUF(theirs) as reference:
        added = {key for key in mine.metadata if key.startswith("quantize.imatrix.")} if imatrix else set()
        assert {key: value for key, value in mine.metadata.items() if key not in added} == reference.metadata
        types = {name: info.type for name, info in reference.tensors.items()}
        assert {name: info.type for name, info in mine.tensors.items()} == types
        for name in mine.tensors:
            assert np.mean(mine.raw_tensor(name) == reference.raw_tensor(name)) >= equal, name


def compare(
    model: str, folder: Path, types: Sequence[GGUFType], imatrix: Path | None = None, *, equal: float = 1
) -> dict[str, str]:
    """Compare every type with llama.cpp's file; return the digests of llama.cpp's tensors."""
    made = quantize(model, ["F32", *types], folder, QuantizeOptions(imatrix=imatrix))
    paths = {file["type"]: Path(file["path"]) for file in made["files"]}
    theirs, digests = folder / "theirs.gguf", {}
    columns = None
    if imatrix is not None:
        columns = folder / "columns.npz"
        np.savez(columns, **read_imatrix(imatrix).importance())
    for kind in types:
        number = QUANT_RECIPES[kind].file_type
        llama_quantize.quantize(paths["F32"], theirs, number, imatrix=columns)
        assert_same(paths[kind], theirs, imatrix=imatrix is not None, equal=equal)
        digests[kind] = digest(theirs)
    return digests


def test_smollm2(smollm2_gguf: Path, tmp_path: Path) -> None:
    compare(str(smollm2_gguf), tmp_path / "plain", FAST_TYPES)
    imatrix = seeded_imatrix(smollm2_gguf, tmp_path / "seeded.imatrix")
    compare(str(smollm2_gguf), tmp_path / "weighted", FAST_TYPES, imatrix)


@pytest.mark.parametrize("name", ["wide", "odd"])
def test_the_golden_digests_are_llama_cpps(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    imatrix = seeded_imatrix(model, tmp_path / "seeded.imatrix")
    found = {
        name: compare(str(model), tmp_path / "plain", ("F16", "BF16", *FAST_TYPES)),
        f"{name}, imatrix": compare(str(model), tmp_path / "weighted", FAST_TYPES, imatrix),
    }
    if os.environ.get("MEDITRON_GOLDEN") == "write":
        write_golden(found)
    assert found == {key: golden()[key] for key in found}


def test_searched_codebooks(tiny: Path, tmp_path: Path) -> None:
    """The search compares sums of floats, so a compiler's order of additions moves a few bytes."""
    model = seeded_hf(
        tmp_path / "model", tiny, seed=3, hidden_size=256, intermediate_size=256, num_hidden_layers=8,
        num_attention_heads=4, num_key_value_heads=4, head_dim=16, tie_word_embeddings=True,
    )  # fmt: skip
    imatrix = seeded_imatrix(model, tmp_path / "seeded.imatrix")
    searched = [kind for kind in get_args(GGUFType) if kind.startswith("IQ") and kind not in FAST_TYPES]
    compare(str(model), tmp_path, searched, imatrix, equal=0.999)


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
    imatrix = seeded_imatrix(model, tmp_path / "seeded.imatrix")
    few: list[GGUFType] = ["Q2_K", "Q3_K_M", "Q4_K_M", "IQ4_XS"]
    compare(str(model), tmp_path, FAST_TYPES if blocks == 17 else few, imatrix)
    if blocks == 17:
        compare(str(model), tmp_path / "plain", FAST_TYPES)
