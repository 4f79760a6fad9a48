"""The work of a stage as JSON."""

from pathlib import Path

from meditron.parallel.task import StageTask
from meditron.store.manifest import Artifact
from toy_stages import MeetConfig


def test_a_task_is_the_same_after_json() -> None:
    inputs = {
        "base": Artifact("base", Path("cache/model"), "sha256:ab", hub_name="org/name"),
        "words": Artifact("words", Path("runs/x/quantize"), "cd", selector="F16"),
    }
    task = StageTask("toy_stages:meet", MeetConfig(steps=4), inputs, Path("runs/x/meet"))
    assert StageTask.from_json(task.to_json()) == task
