"""Output of `run` at its end, for a fake run."""

from pathlib import Path

import pytest

from fake_run import MODELS, TASK, FakeRun
from meditron.cli import show
from meditron.core.units import format_bytes
from meditron.recipe import RunResult, load_recipe
from meditron.recipe.graph import input_references
from meditron.recipe.stage_status import StageStatus

RECIPE = """\
base = "init:tiny"
[corpus.sources.pubmed]
from = "./pubmed.xml.gz"
domain = "medical"
[corpus.sources.wiki]
from = "./wiki.xml.gz"
domain = "general"
[tokenize]
[pretrain]
tokens = 100
sequence_length = 10
batch_size = 1
learning_rate = 1e-4
[[finetune]]
task = "pubmed-sections"
sequence_length = 10
batch_size = 1
learning_rate = 1e-4
[quantize]
on = "finetune"
types = ["F16", "Q8_0", "Q4_K_M"]
[evaluate]
models = ["base", "pretrain", "finetune", "quantize:Q4_K_M"]
"""


@pytest.fixture
def run(tmp_path: Path) -> RunResult:
    life = FakeRun(tmp_path / "small")
    path = tmp_path / "small.toml"
    path.write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe(path)
    stages = {
        name: StageStatus(
            step,
            life.folder / name,
            "built",
            input_references(recipe, step),
            {},
            manifest=life.manifest(name),
        )
        for name, step in recipe.stages.items()
    }
    return RunResult("small", life.folder, stages)


def test_one_table_has_every_model_beside_what_needs_none(
    run: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    show.print_outcome(run, answer=True, full=True)
    out, err = capsys.readouterr()
    lines = {line.strip().partition("  ")[0]: line for line in out.splitlines()}
    assert {*MODELS, "base (calibrated)", "majority", "naive Bayes"} <= lines.keys()
    score = run.evaluations["evaluate"].tasks["quantize:Q4_K_M"][TASK]
    low, high = (f"{100 * end:.1f}" for end in score.interval)
    assert f"{100 * score.accuracy:.1f} % [{low}, {high}]" in lines["quantize:Q4_K_M"]
    assert "95 % interval" in out
    for file in run.stages["quantize"].metrics["files"]:
        assert f"{file['type']} {format_bytes(file['bytes'])}" in lines["quantize"]
    assert {"base → pretrain", "pretrain → finetune", "finetune → quantize:Q4_K_M"} <= lines.keys()
    assert f"next:   meditron chat {run.folder / 'quantize'}:Q4_K_M" in err.splitlines()


def test_without_full_there_are_two_tables_and_the_next_command(
    run: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    show.print_outcome(run, answer=True)
    out, err = capsys.readouterr()
    assert sum(set(line.strip()) == {"─"} for line in out.splitlines()) == 2
    assert len(out.splitlines()) < 40
    assert "pretrain → finetune" not in out
    assert "next:   meditron chat" in err


def test_without_a_quantized_file_it_offers_the_last_model(
    run: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {name: stage for name, stage in run.stages.items() if name != "quantize"}
    show.print_outcome(RunResult("small", run.folder, stages), answer=True)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("next:")]
    assert line.startswith(f"next:   meditron generate {run.folder / 'finetune'} ")
