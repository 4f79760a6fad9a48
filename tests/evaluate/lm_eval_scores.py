"""lm-eval's own log-probabilities of local questions, as JSON: run by a Python that has lm-eval 0.4.13.

    python lm_eval_scores.py MODEL_FOLDER TASK ROWS.jsonl SCORES.json

TASK is lm-eval's own definition (`medqa/medqa.yaml`), read from its package, with its dataset put aside for
the rows; a score is a list of one figure an option, in nats, in the rows' order.
"""

import json
import sys
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

TASK = """include: {definition}
task: local_rows
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files:
    test: {rows}
training_split: null
validation_split: null
test_split: test
"""


def main(model: str, task: str, rows: str, scores: str) -> None:
    folder = Path(scores).with_suffix(".task")
    folder.mkdir()
    definition = Path(lm_eval.__file__).parent / "tasks" / task
    text = TASK.format(definition=definition, rows=rows)
    (folder / "local_rows.yaml").write_text(text, encoding="utf-8")
    result = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": model, "dtype": "float32"},
        tasks=["local_rows"],
        task_manager=TaskManager(include_path=str(folder)),
        batch_size=8,
        device="cpu",
        bootstrap_iters=0,
    )
    samples = sorted(result["samples"]["local_rows"], key=lambda sample: sample["doc_id"])
    figures = [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
    Path(scores).write_text(json.dumps({"version": lm_eval.__version__, "scores": figures}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
