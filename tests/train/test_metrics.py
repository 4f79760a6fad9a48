"""`metrics.jsonl` after a killed run."""

import json

from meditron.train.metrics import MetricsFile


def read(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_after_the_checkpoint_are_removed_and_no_step_is_duplicated(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0) as metrics:
        for step in range(8):
            metrics.append({"step": step, "loss": 3.0})
    with MetricsFile(path, 5) as metrics:
        assert [row["step"] for row in metrics.rows] == [0, 1, 2, 3, 4, 5]
        metrics.append({"step": 6, "loss": 2.0})
        assert read(path) == [0, 1, 2, 3, 4, 5, 6], "a reader sees each line at once"


def test_a_line_cut_short_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "lo')
    with MetricsFile(path, 9) as metrics:
        metrics.append({"step": 2, "loss": 2.5})
    assert read(path) == [1, 2]


def test_heldout_losses_are_returned_by_step(tmp_path):
    with MetricsFile(tmp_path / "metrics.jsonl", 0) as metrics:
        metrics.append({"step": 0, "heldout": {"pubmed": 3.0}})
        metrics.append({"step": 1, "loss": 3.0})
        assert metrics.heldout_losses() == {0: {"pubmed": 3.0}}
