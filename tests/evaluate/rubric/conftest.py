"""A small file of rubrics, and servers for a model and its judges."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from api_server import Server, running_server, scripted_judge
from rubric_rows import names, rubric_rows


@pytest.fixture
def rubric_file(tmp_path: Path) -> Path:
    path = tmp_path / "hb.jsonl"
    path.write_text("\n".join(map(json.dumps, rubric_rows(12))), encoding="utf-8")
    return path


@pytest.fixture
def model_server() -> Iterator[Server]:
    """A model that answers with its prompt in capitals."""
    with running_server() as server:
        yield server


@pytest.fixture
def judge_server() -> Iterator[Server]:
    with running_server() as server:
        server.text = scripted_judge(names)
        yield server


@pytest.fixture
def other_judge() -> Iterator[Server]:
    with running_server() as server:
        server.text = scripted_judge(names)
        yield server
