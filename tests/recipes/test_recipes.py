"""The recipes of the repository, and the README's commands."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from meditron.recipe import load_recipe, run_recipe
from meditron.recipe.graph import input_references
from meditron.train.config import PretrainConfig
from meditron.train.finetune_config import FinetuneConfig

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "recipes/gap-replay.toml"  # has no training, and asks servers for the sizes of its sources
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.toml") if path != CORPUS)
README = (ROOT / "README.md").read_text(encoding="utf-8")


PRESETS = [path for path in RECIPES if path.stem not in ("quickstart", "smoke", "template")]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_dry_run_lists_the_stages_and_writes_nothing(recipe: Path, command: Any, tmp_path: Path) -> None:
    result = command("run", recipe, "--out", tmp_path / "runs", "--dry-run", "--json")
    assert result.code == (1 if recipe in PRESETS else 0), result.err
    others = {"meditron-fo": {"finetune.medical"}, "fidelity": {"quantize"}}
    trained = others.get(recipe.stem, {"tokenize", "pretrain"})
    assert set(result.json["stages"]) >= {"corpus", "evaluate"} | trained
    assert bool(result.json["problems"]) == (recipe in PRESETS)
    assert not (tmp_path / "runs").exists()


# The base of fidelity.toml is a package, which is downloaded.
@pytest.mark.parametrize(
    "path", [path for path in PRESETS if path.stem != "fidelity"], ids=lambda path: path.stem
)
def test_a_dry_run_lists_every_missing_input_of_a_preset(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    recipe = load_recipe(path)
    result = run_recipe(recipe, dry_run=True)
    assert list(result.decisions) == list(recipe.stages)
    external = {
        reference.source
        for spec in recipe.stages.values()
        for reference in input_references(recipe, spec).values()
        if reference.source
    }
    # Each message begins with the missing path, or with the name of the model on the hub.
    missing = {problem.error.message.partition(": ")[0] for problem in result.problems}
    assert missing == external
    [model] = [problem for problem in result.problems if problem.error.message.startswith("hf:")]
    assert "hf download" in str(model.error.hint)
    for name, spec in recipe.stages.items():
        if isinstance(spec.config, PretrainConfig):
            assert result.estimates[name].tokens == spec.config.tokens


def test_a_dry_run_of_the_corpus_names_every_server_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = "http://127.0.0.1:9/"
    for name in ("MEDITRON_PUBMED_URL", "MEDITRON_PMC_URL", "HF_ENDPOINT"):
        monkeypatch.setenv(name, nobody)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("MEDITRON_CACHE", str(tmp_path / "cache"))
    for client in ("download", "collections.web_client", "hub.client"):
        monkeypatch.setattr(f"meditron.store.{client}._PAUSES", (0.01,))
    recipe = load_recipe(CORPUS)
    assert list(recipe.stages) == ["corpus", "tokenize"]
    result = run_recipe(recipe, out=tmp_path / "runs", dry_run=True)
    assert len(result.problems) == 5  # four sources and the base
    assert not (tmp_path / "runs").exists()


def test_the_published_hyper_parameters_of_meditron() -> None:
    """Chen et al. 2023, arXiv:2311.16079, sections 3 and 4, appendix D.1, and the released scripts."""
    for name, batch, micro, length, rate, steps, ranks in (
        ("meditron-7b", 1600, 10, 2048, 3e-4, 14_250, 64),
        ("meditron-7b-as-published", 1600, 10, 2048, 3e-4, 14_250, 64),
        ("meditron-70b", 512, 2, 4096, 1.5e-4, 23_000, 128),
        ("meditron-as-published", 512, 2, 4096, 1.5e-4, 23_000, 128),
    ):
        config = load_recipe(ROOT / f"recipes/{name}.toml").stages["pretrain"].config
        assert isinstance(config, PretrainConfig)
        assert (config.batch_size, config.micro_batch_size, config.sequence_length) == (batch, micro, length)
        assert (config.betas, config.eps, config.weight_decay) == ((0.9, 0.95), 1e-5, 0.1)
        assert (config.max_grad_norm, config.learning_rate, config.steps) == (1.0, rate, steps)
        assert round(config.warmup * config.steps) == 2_000
        assert config.min_learning_rate_ratio * rate == pytest.approx(1e-6, rel=1e-3)
        assert config.schedule_tokens == 2 * config.tokens
        layout = config.parallel
        assert layout.dp_replicate * (layout.dp_shard or 0) * layout.tp * layout.pp == ranks
        assert config.document_mask == (not name.endswith("as-published"))


def test_the_published_finetunes_of_meditron() -> None:
    """Chen et al. 2023, arXiv:2311.16079, section 4.2, and the released sft.py."""
    for name, length in (("meditron-7b-as-published", 2048), ("meditron-as-published", 4096)):
        stages = load_recipe(ROOT / f"recipes/{name}.toml").stages
        finetunes = {key: spec.config for key, spec in stages.items() if spec.stage.kind == "finetune"}
        assert list(finetunes) == ["finetune.medqa", "finetune.medmcqa", "finetune.pubmedqa"]
        for config in finetunes.values():
            assert isinstance(config, FinetuneConfig)
            assert (config.batch_size, config.epochs, config.sequence_length) == (64, 3, length)
            assert (config.learning_rate, config.min_learning_rate_ratio, config.warmup) == (2e-5, 0.1, 0.1)
            assert (config.betas, config.eps, config.weight_decay) == ((0.9, 0.95), 1e-5, 0.1)
            assert (config.template, config.pack, config.heldout) == ("meditron", False, 0)
            assert config.reasoning == (name == "meditron-as-published")


def fenced() -> list[str]:
    """Return the README's shell lines."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", README, flags=re.DOTALL)
    return [
        line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines() if line.strip()
    ]


def test_the_readme_names_commands() -> None:
    assert any("make quickstart" in line for line in fenced())
    assert "make test" in README


@pytest.mark.parametrize(
    "line", [line for line in fenced() if "meditron " in line and not line.startswith("#")]
)
def test_a_command_of_the_readme_exists_with_its_flags(line: str, command: Any) -> None:
    words = shlex.split(line, comments=True)
    name, *arguments = words[next(i for i, w in enumerate(words) if w.rpartition("/")[2] == "meditron") + 1 :]
    help_page = command(name, "--help")
    assert help_page.code == 0, help_page.err
    for flag in (word.partition("=")[0] for word in arguments if word.startswith("--")):
        assert flag in help_page.out + help_page.err


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(fenced())))))
def test_a_make_target_of_the_readme_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
