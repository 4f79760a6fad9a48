"""Several finetunes in one recipe: each stands for itself, and for what was built on it."""

from pathlib import Path
from typing import Any

import pytest

from meditron.core.errors import DriftError, RecipeError
from meditron.recipe import load_recipe, run_recipe, status
from meditron.store.manifest import read_manifest
from toy_stages import states
from train.world import make_answers

RECIPE = """\
base = "{folder}/base"
seed = 1
"""
FINETUNE = """\
[[finetune]]
name = "{name}"
on = "{on}"
rows = "{rows}"
licence = "CC0"
template = "chatml"
epochs = 1
limit = 12
sequence_length = 128
batch_size = 4
learning_rate = 1e-3
dtype = "float32"
threads = 1
"""
ALL = ["finetune.one", "finetune.two", "finetune.further"]


class Bench:
    """A recipe of three finetunes: two on the base, one on the first of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.path = folder, folder / "runs", folder / "answers.toml"
        make_answers(folder)
        other = folder / "other.jsonl"
        other.write_text((folder / "chat.jsonl").read_text().replace("Aspirin", "Heparin"))
        tables = [("one", "base", "chat"), ("two", "base", "other"), ("further", "finetune.one", "other")]
        self.path.write_text(
            RECIPE.format(folder=folder)
            + "".join(FINETUNE.format(name=n, on=on, rows=folder / f"{rows}.jsonl") for n, on, rows in tables)
        )

    def run(self, *overrides: str, **settings: Any) -> Any:
        return run_recipe(load_recipe(self.path, overrides), out=self.out, **settings)

    def status(self, *overrides: str) -> Any:
        return status(load_recipe(self.path, overrides), out=self.out)

    def digests(self) -> dict[str, str]:
        manifests = {name: read_manifest(self.out / "answers" / name) for name in ALL}
        return {name: manifest.digest for name, manifest in manifests.items() if manifest}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("recipe"))
    assert states(bench.run()) == dict.fromkeys(ALL, "built")
    return bench


def test_a_second_run_has_nothing_to_do(bench: Bench) -> None:
    assert states(bench.run()) == dict.fromkeys(ALL, "fresh")
    manifest = read_manifest(bench.out / "answers/finetune.further")
    assert manifest is not None
    assert manifest.licences == {"finetune.one: rows": "CC0", "finetune.further: rows": "CC0"}
    content = {record.path for record in manifest.files if record.content}
    assert content >= {"model.safetensors", "rows.jsonl.zst"}


def test_changing_one_is_drift_of_it_and_of_what_stands_on_it_alone(bench: Bench) -> None:
    changed = bench.status("finetune.two.learning_rate=2e-3")
    assert states(changed) == {"finetune.one": "fresh", "finetune.two": "stale", "finetune.further": "fresh"}
    assert changed.to_json()["stages"]["finetune.two"]["drift"] == [
        {"field": "learning_rate", "was": 0.001, "now": 0.002}
    ]
    assert states(bench.status("finetune.one.epochs=2")) == {
        "finetune.one": "stale",
        "finetune.two": "fresh",
        "finetune.further": "stale",
    }
    with pytest.raises(DriftError, match=r"finetune\.two was made from something else.*learning_rate"):
        bench.run("finetune.two.learning_rate=2e-3")


def test_rebuilding_one_builds_it_and_what_stands_on_it_and_nothing_else(bench: Bench) -> None:
    before = bench.digests()
    built = bench.run("finetune.two.learning_rate=2e-3", rebuild=["finetune.two"]).built
    assert built == ["finetune.two"]
    after = bench.digests()
    assert {name for name in ALL if before[name] != after[name]} == {"finetune.two"}
    assert bench.run(
        "finetune.two.learning_rate=2e-3", "finetune.one.epochs=2", rebuild=["finetune.one"]
    ).built == [
        "finetune.one",
        "finetune.further",
    ]
    assert bench.digests()["finetune.two"] == after["finetune.two"]


def test_one_alone_needs_no_name_and_two_need_theirs(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    table = FINETUNE.format(name="x", on="base", rows="chat.jsonl").replace('name = "x"\n', "")
    path.write_text('base = "init:tiny"\n' + table.replace("[[finetune]]", "[finetune]"))
    assert list(load_recipe(path).steps) == ["finetune"]
    path.write_text(f'base = "init:tiny"\n{table}{table}')
    with pytest.raises(RecipeError, match="needs a name"):
        load_recipe(path)
