"""Evaluations on several ranks: the same bytes, whichever rank is killed, and nothing scored twice."""

import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from meditron.evaluate.ranks import ONE_RANK, EvalRanks
from meditron.evaluate.rows import DocumentRow
from meditron.evaluate.rows_file import RowsFile, run_resumable
from ranks import RankError, run_ranks

GROUPS = [[f"d{group}-{n}" for n in range(1 + group % 3)] for group in range(14)]


def row(document: str) -> DocumentRow:
    return DocumentRow(
        model="m",
        model_digest="0",
        engine="torch",
        dtype="float32",
        id=document,
        cache_key="key",
        source="s",
        tokens=3,
        nll=float(len(document)),
        bytes=4,
        ids_sha256="0",
        text_sha256="0",
    )


def score(folder: Path, ranks: EvalRanks, killed: int | None) -> list[str]:
    """Score the groups; rank `killed` is killed in its third group. `log` lists every group at work."""
    taken = 0

    def work(group: Sequence[str]) -> list[DocumentRow]:
        nonlocal taken
        taken += 1
        with (folder / "log").open("a") as log:
            log.write(f"{group[0]}\n")
        if killed is not None and taken == 3:
            if ranks.rank == killed:
                (folder / "dying").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            # Alone, this rank would have done the work of both before the other one has begun.
            while not (folder / "dying").exists():
                time.sleep(0.01)
        return [row(document) for document in group]

    with RowsFile(folder / "rows.jsonl", DocumentRow, ranks) as file:
        rows = run_resumable(file, "m", "key", GROUPS, lambda name: ("s", name, "0"), work, unit="documents")
        file.rewrite_sorted(rows.values())
    return sorted(each.id for each in rows.values())


def score_on_a_rank(folder: Path, port: int, killed: int | None) -> list[str]:
    os.environ.update(
        LOCAL_WORLD_SIZE=os.environ["WORLD_SIZE"], MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    return score(folder, EvalRanks.of_job(), killed)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    (tmp_path / "one").mkdir()
    score(tmp_path / "one", ONE_RANK, None)
    return (tmp_path / "one/rows.jsonl").read_bytes()


def test_every_rank_gets_all_rows_and_each_group_is_scored_once(
    tmp_path: Path, port: int, whole: bytes
) -> None:
    results = run_ranks(2, score_on_a_rank, tmp_path, port, None)
    assert results == [sorted(name for group in GROUPS for name in group)] * 2
    assert (tmp_path / "rows.jsonl").read_bytes() == whole
    log = (tmp_path / "log").read_text().split()
    assert sorted(log) == sorted(group[0] for group in GROUPS)
    assert not list(tmp_path.glob(".rows.jsonl.rank-*"))


@pytest.mark.parametrize(("killed", "ranks_after"), [(0, 2), (1, 2), (1, 1)])
def test_after_the_kill_of_a_rank_nothing_is_scored_twice(
    killed: int, ranks_after: int, tmp_path: Path, port: int, whole: bytes
) -> None:
    with pytest.raises(RankError, match=f"rank {killed}: ended with exit code -9"):
        run_ranks(2, score_on_a_rank, tmp_path, port, killed)
    kept = {
        json.loads(line)["id"]
        for file in tmp_path.glob("*rows.jsonl*")
        for line in file.read_text(encoding="utf-8").splitlines()
    }
    assert kept
    (tmp_path / "log").unlink()
    if ranks_after == 1:
        score(tmp_path, ONE_RANK, None)
    else:
        run_ranks(ranks_after, score_on_a_rank, tmp_path, port, None)
    assert (tmp_path / "rows.jsonl").read_bytes() == whole
    assert not list(tmp_path.glob(".rows.jsonl.rank-*"))
    log = Counter((tmp_path / "log").read_text().split())
    assert log == Counter(group[0] for group in GROUPS if not kept >= {*group})
