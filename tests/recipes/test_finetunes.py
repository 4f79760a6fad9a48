"""Several finetunes in one recipe: drift and rebuilds reach one finetune and its dependents."""

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


class FinetuneRecipe:
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
def finetunes(tmp_path_factory: pytest.TempPathFactory) -> FinetuneRecipe:
    finetunes = FinetuneRecipe(tmp_path_factory.mktemp("recipe"))
    assert states(finetunes.run()) == dict.fromkeys(ALL, "built")
    return finetunes


def test_a_second_run_has_nothing_to_do(finetunes: FinetuneRecipe) -> None:
    assert states(finetunes.run()) == dict.fromkeys(ALL, "fresh")
    manifest = read_manifest(finetunes.out / "answers/finetune.further")
    assert manifest is not None
    assert manifest.licences == {"finetune.one: rows": "CC0", "finetune.further: rows": "CC0"}
    content = {record.path for record in manifest.files if record.content}
    assert content >= {"model.safetensors", "rows.jsonl.zst"}


def test_a_changed_finetune_makes_only_itself_and_its_dependents_stale(finetunes: FinetuneRecipe) -> None:
    changed = finetunes.status("finetune.two.learning_rate=2e-3")
    assert states(changed) == {"finetune.one": "fresh", "finetune.two": "stale", "finetune.further": "fresh"}
    assert changed.to_json()["stages"]["finetune.two"]["drift"] == [
        {"field": "learning_rate", "was": 0.001, "now": 0.002}
    ]
    assert states(finetunes.status("finetune.one.epochs=2")) == {
        "finetune.one": "stale",
        "finetune.two": "fresh",
        "finetune.further": "stale",
    }
    with pytest.raises(DriftError, match=r"finetune\.two is out of date.*learning_rate"):
        finetunes.run("finetune.two.learning_rate=2e-3")


def test_a_rebuild_builds_one_finetune_and_its_dependents_only(finetunes: FinetuneRecipe) -> None:
    before = finetunes.digests()
    built = finetunes.run("finetune.two.learning_rate=2e-3", rebuild=["finetune.two"]).built_stages
    assert built == ["finetune.two"]
    after = finetunes.digests()
    assert {name for name in ALL if before[name] != after[name]} == {"finetune.two"}
    assert finetunes.run(
        "finetune.two.learning_rate=2e-3", "finetune.one.epochs=2", rebuild=["finetune.one"]
    ).built_stages == [
        "finetune.one",
        "finetune.further",
    ]
    assert finetunes.digests()["finetune.two"] == after["finetune.two"]


def test_only_several_finetunes_need_names(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    table = FINETUNE.format(name="x", on="base", rows="chat.jsonl").replace('name = "x"\n', "")
    path.write_text('base = "init:tiny"\n' + table.replace("[[finetune]]", "[finetune]"))
    assert list(load_recipe(path).stages) == ["finetune"]
    path.write_text(f'base = "init:tiny"\n{table}{table}')
    with pytest.raises(RecipeError, match="needs a name"):
        load_recipe(path)
