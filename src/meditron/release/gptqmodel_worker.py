"""The process that runs GPTQModel: `python -P -m meditron.release.gptqmodel_worker JOB`.

GPTQModel patches torch, transformers and safetensors when it is imported, reads its settings from the
environment and prints to stdout. In a process of its own none of this reaches the command.

JOB is a JSON file with the fields of `Job`. The process prints a line on stdout for each finished layer, and
everything of GPTQModel on stderr. It ends when its stdin is closed, because its parent has ended then.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, TypedDict

__all__ = ["Job", "quantize_folder"]


class Job(TypedDict):
    """A quantization of an HF folder."""

    source: str
    """Folder of the model, in float16."""
    out: str
    """Folder to write."""
    scratch: str
    """Folder for the library's temporary files."""
    method: str
    bits: int
    group_size: int
    act_order: bool
    threads: int
    chunks: list[list[int]]
    """Token ids of the calibration text."""


def quantize_folder(job: Job, finished_layer: Any) -> None:  # noqa: ANN401  # called with keywords only
    """Quantize a folder with GPTQModel."""
    import torch

    torch.set_num_threads(job["threads"])
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.quantization import AWQConfig, GPTQConfig

    shared = {
        "bits": job["bits"],
        "group_size": job["group_size"],
        "offload_to_disk_path": job["scratch"],
        "pack_impl": "original",  # the default compiles a C++ extension, for minutes
    }
    if job["method"] == "AWQ":
        # Zero points as in AutoAWQ, which vLLM requires. The backend only packs; the default needs CUDA.
        config, backend = AWQConfig(**shared, sym=False), BACKEND.AWQ_TORCH
    else:
        # Without act-order, columns are sorted within their groups; GPTQModel fails if there are no groups.
        in_groups = job["group_size"] > 0 and not job["act_order"]
        config = GPTQConfig(**shared, sym=True, desc_act=job["act_order"], act_group_aware=in_groups)
        backend = BACKEND.AUTO
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    model = GPTQModel.load(job["source"], config, device=device, dtype=torch.float16)
    model.layer_callback = finished_layer
    chunks = [{"input_ids": chunk, "attention_mask": [1] * len(chunk)} for chunk in job["chunks"]]
    model.quantize(chunks, batch_size=1, backend=backend)
    model.save(job["out"])


def _main() -> None:
    job: Job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # stdout is for finished layers only: the library prints from Python and from C.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # an error's line stays the last

    def finished_layer(*, layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized:
            events.write(f"{layer_idx}\n")

    quantize_folder(job, finished_layer)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    _main()
