"""The predicted memory against that of llama.cpp's process."""

from pathlib import Path

import pytest

from meditron.engine.llamacpp_process import LlamaServerProcess
from meditron.store.model_memory import HEADER_BYTES, shape_of_gguf_header

CONTEXT = 2_048
PROMPT = [1_000 + 7 * place for place in range(300)]


def test_the_memory_of_the_process_is_within_a_tenth_of_the_prediction(smollm2_gguf: Path) -> None:
    # Q4_1: llama.cpp rearranges no matrices of this type, so no page of the mapped file is there twice.
    with smollm2_gguf.open("rb") as file:
        shape = shape_of_gguf_header(file.read(HEADER_BYTES))
    assert shape is not None
    process = LlamaServerProcess(smollm2_gguf, context=CONTEXT, slots=1)
    for _ in process.stream_completion(prompt=PROMPT, n_predict=1, temperature=0):
        pass
    status = Path(f"/proc/{process.pid}/status").read_text()
    process.close()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    assert shape.ram_bytes(smollm2_gguf.stat().st_size, CONTEXT) == pytest.approx(peak, rel=0.1)
