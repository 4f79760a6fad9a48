"""Option log-probabilities against lm-eval's own, question by question.

lm-eval has dependencies of its own, so it runs in an environment of its own: MEDITRON_LM_EVAL is its Python
(`pip install torch==2.13.0 "lm-eval[hf]==0.4.13" transformers==5.17.0`).
"""

import gzip
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from meditron.engine.torch_engine import TorchEngine
from meditron.evaluate.prompts import encode_plain_prompt
from meditron.model.presets import model_tokenizer
from meditron.model.weights import load_model, save_hf
from meditron.store.models import resolve_model
from meditron.tasks.registry import open_task
from meditron.tasks.task import Task

PYTHON = os.environ.get("MEDITRON_LM_EVAL")
ROWS = int(os.environ.get("MEDITRON_LM_EVAL_ROWS", "200"))
pytestmark = [
    pytest.mark.shared,
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="MEDITRON_LM_EVAL names no Python that has lm-eval 0.4.13"),
]


@pytest.fixture(scope="module")
def folder(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as `convert` leaves it."""
    files, folder = resolve_model(str(smollm2_gguf)), tmp_path_factory.mktemp("smollm2")
    model = load_model(files, dtype=torch.float32)
    save_hf(model, model.config, model_tokenizer(files), folder, torch.float32)
    return folder


def medqa(shared: Path) -> tuple[Task, dict[str, dict[str, Any]]]:
    """The task, and question → the row as lm-eval's data set has it."""
    path = shared / "data/medqa-usmle/test_4options.first1000.jsonl.gz"
    rows = (json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines())
    reference = {
        row["question"]: {
            "sent1": row["question"],
            **{f"ending{n}": row["options"][letter] for n, letter in enumerate("ABCD")},
            "label": "ABCD".index(row["answer_idx"]),
        }
        for row in rows
    }
    return open_task(str(path), template="lm-eval-medqa"), reference


def pubmedqa(shared: Path) -> tuple[Task, dict[str, dict[str, Any]]]:
    path = shared / "data/pubmedqa/ori_pqal.less100.json.gz"
    rows = json.loads(gzip.decompress(path.read_bytes())).values()
    fields = ("QUESTION", "CONTEXTS", "final_decision")
    reference = {row["QUESTION"]: {field: row[field] for field in fields} for row in rows}
    return open_task(str(path), template="lm-eval-pubmedqa"), reference


def ours(folder: Path, task: Task) -> Iterator[list[float]]:
    with TorchEngine.load(str(folder), dtype="float32") as engine:
        prompts = [task.template.render(question) for question in task.rows("test", ROWS)]
        encoded = [encode_plain_prompt(engine.tokenizer, p.prompt, p.continuations, 2048) for p in prompts]
        scored = iter(engine.score([pair for e in encoded for pair in e.scoring_requests()]))
        for e in encoded:
            yield [float(next(scored).sum()) for _ in e.continuations]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("source", "definition"), [(medqa, "medqa/medqa.yaml"), (pubmedqa, "pubmedqa/pubmedqa.yaml")]
)
def test_log_probabilities_are_lm_evals(
    source: Any, definition: str, folder: Path, shared: Path, tmp_path: Path
) -> None:
    task, reference = source(shared)
    ordered = [reference[question.text] for question in task.rows("test", ROWS)]
    rows, scores = tmp_path / "rows.jsonl", tmp_path / "scores.json"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ordered), encoding="utf-8")
    script = Path(__file__).with_name("lm_eval_scores.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    words = [str(PYTHON), script, folder, definition, rows, scores]
    subprocess.run(list(map(str, words)), check=True, env=environment)
    result = json.loads(scores.read_text(encoding="utf-8"))
    assert result["version"] == "0.4.13"
    apart = [
        abs(a - b)
        for mine, their in zip(ours(folder, task), result["scores"], strict=True)
        for a, b in zip(mine, their, strict=True)
    ]
    print(f"{task.name}: {len(ordered)} questions, {len(apart)} options, {max(apart):.2e} nats at most")  # noqa: T201
    assert len(result["scores"]) == ROWS
    assert max(apart) < 1e-3
