"""The report page of a training, from lines of metrics.jsonl with and without events."""

from pathlib import Path
from typing import Any

import pytest

from meditron.report.training_page import write_training_page

RESULT = {"tokens": 6400, "steps": 100, "heldout": {"pubmed": [3.5, 3.0]}, "loss": 3.0, "spikes": 1}


def rows(**more: Any) -> list[dict[str, Any]]:
    first: dict[str, Any] = {"step": 0, "tokens": 0, "heldout": {"pubmed": 3.5}}
    steps = [
        {
            "step": step,
            "tokens": 64 * step,
            "loss": 3.5 - step / 200,
            "learning_rate": 1e-4,
            "gradient_norm": 1.0,
            "tokens_per_second": 1000.0 + step,
            "matmul_utilization": 0.5,
            **more,
        }
        for step in range(1, 101)
    ]
    return [first, *steps]


def page(tmp_path: Path, lines: list[dict[str, Any]], **metrics: Any) -> str:
    path = tmp_path / "report.html"
    write_training_page(path, "Continued pretraining", lines, RESULT | metrics, lambda page: None)
    return path.read_text(encoding="utf-8")


def test_lines_without_events_give_a_page_without_them(tmp_path: Path) -> None:
    text = page(tmp_path, rows())
    assert "Events" not in text
    assert "Tokens per second" in text
    assert "Memory." not in text


def test_memory_and_the_matmul_speed_are_drawn(tmp_path: Path) -> None:
    text = page(tmp_path, rows(memory_bytes=2e9))
    assert "Memory." in text
    assert "Share of the measured matmul speed." in text


def test_the_loss_of_preference_tuning_is_per_pair(tmp_path: Path) -> None:
    text = page(tmp_path, rows(), pairs={"train": 50})
    assert "training loss of the last step, nats per pair" in text
    assert "Loss on held-out data, nats per pair" in text
    assert "nats per token" not in text
    assert "nats per pair" not in page(tmp_path, rows())


def test_events_are_marks_and_a_table(tmp_path: Path) -> None:
    lines = rows()
    lines[3]["event"] = {"kind": "nan", "action": "skip", "message": "<b>"}
    lines[4]["event"] = {"kind": "spike", "action": "rollback", "message": "high", "restored_step": 1}
    lines[7]["event"] = {"kind": "spike", "action": "log", "message": "high"}
    text = page(tmp_path, lines)
    assert "nan: 1, spike: 2." in text
    assert "action skip, message &lt;b&gt;" in text
    assert "restored step 1" in text
    assert "Dotted lines: events, listed below." in text
    without = page(tmp_path, rows())
    # Two charts have a line for each of the three events.
    assert text.count("<path") - without.count("<path") == 2 * 3


def test_null_and_absent_measurements_are_left_out(tmp_path: Path) -> None:
    lines = rows(gradient_norm=None, event=None)
    lines.append({"step": 101, "tokens": 6464, "event": {"kind": "spike"}})
    lines.append({"step": 101, "event": {"kind": "nan"}})
    text = page(tmp_path, lines)
    assert "spike: 1, nan: 1." in text


@pytest.mark.parametrize("count", [1000])
def test_very_many_events_are_counted_and_the_first_listed(tmp_path: Path, count: int) -> None:
    lines = rows() + [{"step": 101 + n, "tokens": 6464 + n, "event": {"kind": "spike"}} for n in range(count)]
    text = page(tmp_path, lines)
    assert "spike: 1,000." in text
    assert "the first 200 of 1,000" in text
