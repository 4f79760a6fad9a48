"""An evaluation of a tiny model, with passages, subjects and permuted examples."""

import json
from pathlib import Path

import pytest

from meditron.evaluate.config import EvalOptions
from meditron.evaluate.standalone import evaluate_on_task
from tiny import TEXTS

DRUGS = ["aspirin", "metformin", "an antibiotic"]


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve questions: six with a passage that two share, texts with quotes, lines and accents."""
    rows = [
        {
            "id": f"q{n}",
            "question": f'Case {n}: "{TEXTS[n % 4]}"\nWhich <drug> für Fieber?',
            "context": TEXTS[n // 2 % 4],
            "options": [*DRUGS, f"no drug {n}"],
            "gold": n % 4,
            "group": f"subject {n % 3}",
        }
        for n in range(12)
    ]
    path = tmp_path_factory.mktemp("questions") / "drugs.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def evaluated(tiny: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of a model on all questions, with one example in each prompt."""
    out = tmp_path_factory.mktemp("evaluated")
    evaluate_on_task(str(tiny), str(questions), EvalOptions(shots=1, resamples=100), out=out)
    return out
