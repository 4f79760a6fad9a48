"""Trackers, with the real packages where they are installed."""

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from meditron.core.errors import MissingExtra, UsageError
from meditron.train import trackers as trackers_module
from meditron.train.trackers import Trackers, flatten_row

ROWS: list[dict[str, Any]] = [
    {"step": 0, "tokens": 0, "heldout": {"pubmed": 3.5}},
    {"step": 1, "tokens": 64, "loss": 3.25, "loss_by_source": {"pubmed": 3.0, "wiki": 3.5}, "spike": True},
    {"step": 2, "tokens": 128, "loss": 3.125, "event": {"kind": "skip", "loss": float("nan")}},
]


def test_the_numbers_of_a_row_have_their_keys_as_names() -> None:
    assert flatten_row(ROWS[1]) == {
        "tokens": 64,
        "loss": 3.25,
        "loss_by_source/pubmed": 3.0,
        "loss_by_source/wiki": 3.5,
        "spike": 1.0,
    }
    assert flatten_row(ROWS[2]) == {"tokens": 128, "loss": 3.125, "event/skip": 1.0}
    assert flatten_row({"step": 1, "loss": float("inf"), "note": "x", "peak": None}) == {}


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra `track`"
    )
    with Trackers(["tensorboard"], tmp_path, "run 1") as trackers:
        for row in ROWS:
            trackers.log(row)
    # A resumed run trains step 2 again.
    with Trackers(["tensorboard"], tmp_path, "run 1") as trackers:
        trackers.log({"step": 2, "loss": 3.0})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "run 1")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 3.25), (2, 3.0)]
    assert [event.value for event in events.Scalars("heldout/pubmed")] == [3.5]


def test_trackio_stores_what_was_logged_and_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trackio", reason="needs the extra `track`")
    # A child that connected to these addresses, or looked up this token, would leave a note. The first
    # module that Python imports refuses every connection.
    note = tmp_path / "connected"
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        f"open({str(tmp_path / 'loaded')!r}, 'a').close()\n"
        "def refuse(self, address, *more):\n"
        f"    open({str(note)!r}, 'a').write(repr(address) + '\\n')\n"
        "    raise OSError('offline')\n"
        "socket.socket.connect = refuse\n"
        "def resolve(*arguments, **more):\n"
        f"    open({str(note)!r}, 'a').write(repr(arguments) + '\\n')\n"
        "    raise OSError('offline')\n"
        "socket.getaddrinfo = resolve\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9/?write_token=x")
    monkeypatch.setenv("TRACKIO_WEBHOOK_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Trackers(["trackio"], tmp_path, "run 1") as trackers:
        for row in ROWS:
            trackers.log(row)
    out, err = capfd.readouterr()
    assert out == ""
    assert "warning" not in err, err
    assert (tmp_path / "loaded").exists()
    assert not note.exists(), note.read_text()
    [database] = (tmp_path / "trackio").glob("*.db")
    connection = sqlite3.connect(database)
    try:
        stored = connection.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    finally:
        connection.close()
    assert [(step, json.loads(values).get("loss")) for step, values in stored] == [
        (0, None),
        (1, 3.25),
        (2, 3.125),
    ]


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_missing_package_is_an_error_before_the_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers_module, "find_spec", lambda package: None)
    with pytest.raises(MissingExtra, match=name) as raised:
        Trackers([name], tmp_path, "run")
    assert raised.value.hint == "pip install 'meditron[track]'"


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown tracker 'wandb'") as raised:
        Trackers(["wandb"], tmp_path, "run")
    assert raised.value.hint == "trackers: tensorboard, trackio"


class Failing:
    """A tracker that fails from its second row on, like one whose disk is full."""

    def __init__(self, folder: Path, run_name: str) -> None:
        self.rows = 0

    def log(self, step: int, values: object) -> None:
        self.rows += 1
        if self.rows > 1:
            raise OSError("No space left on device")

    def close(self) -> None:
        raise OSError("No space left on device")


class Recording:
    """A tracker that keeps its rows."""

    logged: list[int]

    def __init__(self, folder: Path, run_name: str) -> None:
        Recording.logged = []

    def log(self, step: int, values: object) -> None:
        self.logged.append(step)

    def close(self) -> None:
        self.logged.append(-1)


def test_a_tracker_that_fails_is_left_out_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers_module, "find_spec", lambda package: package)
    monkeypatch.setattr(trackers_module, "TRACKERS", {"failing": Failing, "recording": Recording})
    with Trackers(["failing", "recording"], tmp_path, "run") as trackers:
        for row in ROWS:
            trackers.log(row)
    assert Recording.logged == [0, 1, 2, -1]
    warnings = capsys.readouterr().err
    assert warnings.count("warning") == 1
    assert "failing stopped after 2 rows" in warnings
    assert "No space left on device" in warnings


def test_an_interruption_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Recording):
        def log(self, step: int, values: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(trackers_module, "find_spec", lambda package: package)
    monkeypatch.setattr(trackers_module, "TRACKERS", {"interrupted": Interrupted})
    with pytest.raises(KeyboardInterrupt), Trackers(["interrupted"], tmp_path, "run") as trackers:
        trackers.log(ROWS[0])


def test_a_trackio_process_that_ends_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trackio.py").write_text("raise ImportError('trackio is damaged')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(trackers_module, "find_spec", lambda package: package)
    with Trackers(["trackio"], tmp_path, "run") as trackers:
        trackers._trackers["trackio"]._child.wait(60)  # type: ignore[attr-defined]
        for row in ROWS:
            trackers.log(row)
    warnings = capsys.readouterr().err
    assert warnings.count("warning") == 1
    assert "trackio is damaged" in warnings


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    with Trackers([], tmp_path, "run") as trackers:
        trackers.log(ROWS[0])
    assert not list(tmp_path.iterdir())
