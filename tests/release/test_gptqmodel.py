"""GPTQModel itself, and transformers as the reference for what its folders mean. Needs the extra `gptq`."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hf_parity import logits
from meditron.model.weights import load_model
from meditron.release.packed import plan_packed, write_packed
from meditron.release.packed_types import parse_packed_type
from tiny import TEXTS, tiny_hf

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("gptqmodel", "optimum"))),
    reason="needs the extra gptq",
)

# In a process of its own: the import of GPTQModel patches transformers.
_REFERENCE = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], device_map="cpu", dtype=torch.float16)
with torch.inference_mode():
    torch.save(model(torch.arange(48)[None] * 3).logits.float(), sys.argv[2])
"""


@pytest.mark.parametrize(
    "name",
    ["GPTQ-4bit-32g", "GPTQ-4bit-32g-actorder", "GPTQ-8bit", "GPTQ-3bit-64g", "AWQ-4bit-32g"],
)
@pytest.mark.timeout(600)
def test_transformers_reads_the_same_logits(name: str, tmp_path: Path) -> None:
    model = tiny_hf(
        tmp_path / "model", hidden_size=64, intermediate_size=128, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, initializer_range=0.1,
    )  # fmt: skip
    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXTS) * 20, encoding="utf-8")
    plan = plan_packed(str(model), [parse_packed_type(name)], tmp_path, text, threads=1)
    [file] = write_packed(plan)["files"]
    saved = tmp_path / "logits.pt"
    subprocess.run([sys.executable, "-c", _REFERENCE, file["path"], str(saved)], check=True)
    with torch.inference_mode():
        ours, before = (
            logits(load_model(path), torch.arange(48)[None] * 3) for path in (file["path"], model)
        )
    theirs = torch.load(saved)
    # float16 activations there, float32 here.
    error = float((ours - theirs).abs().max())
    assert error < 0.02 * float(before.abs().max()) + 1e-3
    if "8bit" not in name:
        assert error < float((before - theirs).abs().max()) / 3
