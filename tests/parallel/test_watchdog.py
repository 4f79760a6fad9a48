"""The error of a hung job: the ranks that it names."""

import time
from pathlib import Path

import pytest

from meditron.parallel.watchdog import RankState, hang_error, watchdog


def state(count: int, *, waits: bool = True) -> RankState:
    return RankState(count, f"step {count}", 31.0, f"work (loop.py:{count})", waits)


@pytest.mark.parametrize(
    ("states", "named", "waiting"),
    [
        ({0: state(8), 1: state(7)}, "rank 1 made no progress for 31 s after 'step 7': work (", "rank 0"),
        ({0: state(7, waits=False), 1: state(7)}, "rank 0 made no progress", "rank 1"),
        ({0: state(7), 1: None, 2: state(6)}, "rank 1 did not answer", "ranks 0, 2"),
        ({0: state(7), 1: state(7)}, "ranks 0, 1 made no progress", None),
        ({n: state(7 if n else 9) for n in range(12)}, "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 3 more", "rank 0"),
    ],
)  # fmt: skip
def test_the_ranks_for_which_the_others_wait_are_named(
    states: dict[int, RankState | None], named: str, waiting: str | None
) -> None:
    error = hang_error(states, 30.0, Path("runs/a/pretrain"))
    assert error.message.startswith(named)
    assert error.message.endswith(f"; {waiting} waited") is (waiting is not None)
    assert "runs/a/pretrain/hung" in str(error.hint)
    assert "than 30 s, raise parallel.timeout" in str(error.hint)


def test_progress_keeps_a_job_alive_and_leaves_no_files(tmp_path: Path) -> None:
    (tmp_path / "hung").mkdir()
    (tmp_path / "hung/rank-5.txt").write_text("of an earlier attempt with more ranks")
    with watchdog(0.5, tmp_path) as dog:
        for step in range(8):
            dog.progress(f"step {step}")
            time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []
