"""The reference pages agree with the code and with what a run leaves."""

import importlib.util
import json
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from docs.blocks import ROOT
from meditron.store.jsonl import read_jsonl

REFERENCE = ROOT / "docs/reference"


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs/generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["recipe.md", "commands.md"])
def test_generated_pages_are_up_to_date(name: str) -> None:
    committed = (REFERENCE / name).read_text(encoding="utf-8")
    assert committed == generator().pages()[name], "the page is out of date: run `make reference`"


def test_every_recipe_key_is_in_the_reference() -> None:
    text = (REFERENCE / "recipe.md").read_text(encoding="utf-8")
    template = (ROOT / "recipes/template.toml").read_text(encoding="utf-8")
    for key in re.findall(r"^#?([a-z_]+) *= ", template, re.MULTILINE):
        assert f"`{key}`" in text


def test_the_python_reference_names_what_exists() -> None:
    text = (REFERENCE / "python.md").read_text(encoding="utf-8")
    for path, _, members in re.findall(r"^::: (\S+)(\n +options:\n +members: \[(.*)\])?", text, re.MULTILINE):
        resolved = resolve_name(path)
        for member in members.split(", ") if members else ():
            assert member in vars(resolved), f"{path}.{member}"


def tables(page: str) -> Iterator[tuple[str, str, str]]:
    """Yield (heading, code in the first cell, the other cells) of each row of a page's tables."""
    heading = ""
    for line in (REFERENCE / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("## ") or line.startswith("`"):
            heading = line.strip("# ")
        elif line.startswith("| `"):
            first, rest = line[2:].split(" | ", 1)
            for code in re.findall(r"`([^`]+)`", first):
                yield heading, code, rest


def test_the_architecture_names_every_package_in_the_order_of_imports() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    # A layer in brackets is of a package that is not there yet.
    packages = [name for layer in layers for name in layer.split(" | ") if not name.startswith("(")]
    page = (ROOT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == packages
    picture = (ROOT / "docs/images/architecture.svg").read_text(encoding="utf-8")
    names = re.findall(r'class="n" x="34" y="\d+">([^<]+)<', picture)
    assert [name for layer in names for name in layer.split(" · ")] == packages


@pytest.mark.parametrize(
    "stage", ["corpus", "tokenize", "pretrain", "finetune.sections", "quantize", "evaluate", "card"]
)
@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_files_of_a_stage_are_those_listed(smoke: Any, stage: str) -> None:
    headings = {stage.partition(".")[0], "Every stage"}
    listed = [(code, rest) for heading, code, rest in tables("files.md") if heading in headings]
    sometimes = re.compile(r"while unfinished|if ").match  # files that a completed stage need not have
    patterns = {code.replace("NAME", "*"): sometimes(rest) for code, rest in listed}
    folder = smoke.folder / stage
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)] == []
    for pattern, optional in patterns.items():
        assert optional or any(fnmatch(file, pattern) for file in files), f"no file {pattern}"


def fields(start: str) -> list[str]:
    """Return the fields listed under the heading or line that begins so."""
    return [code for heading, code, _ in tables("fields.md") if heading.startswith(start)]


def assert_fields(value: Any, paths: list[str]) -> None:
    assert paths
    for path in paths:
        values = [value]
        for key in path.replace("[]", ".[]").split("."):
            if key == "NAME":
                values = [inner for each in values for inner in each.values()]
            elif key == "[]":
                values = [inner for each in values for inner in each]
            else:
                assert all(key in each for each in values), f"no field {path}"
                values = [each[key] for each in values]
        assert values, f"nothing at {path}"


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_has_the_fields_that_are_listed(smoke: Any) -> None:
    assert_fields(smoke.result.json, fields("`meditron run "))
    evaluation = smoke.folder / "evaluate"
    row = next(iter(read_jsonl(evaluation / "pubmed-sections.jsonl")))
    assert_fields(row, fields("`TASK.jsonl`"))
    row = next(iter(read_jsonl(evaluation / "perplexity.jsonl")))
    assert_fields(row, fields("`perplexity.jsonl`"))
    lines = read_jsonl(smoke.folder / "pretrain/metrics.jsonl")
    step = next(line for line in lines if "heldout" not in line)
    assert_fields(step, fields("`metrics.jsonl`"))
    manifest = json.loads((smoke.folder / "corpus/manifest.json").read_text())
    assert_fields(manifest, fields("`manifest.json`"))
    assert_fields(manifest["metrics"], ["sources.NAME.read", "sources.NAME.kept", "sources.NAME.dropped"])


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands_print_the_fields_that_are_listed(smoke: Any, command: Any, tmp_path: Path) -> None:
    page = tmp_path / "aspirin.html"
    words = "Aspirin inhibits cyclooxygenase and lowers fever. " * 5
    page.write_text(f"<html><h1>Aspirin</h1><h2>Use</h2><h3>Dose</h3><p>{words}</p></html>", encoding="utf-8")
    model, results = smoke.folder / "pretrain", smoke.folder / "evaluate"
    recipes = ROOT / "recipes"
    commands = {
        "plan": ["plan", recipes / "smoke.toml", "--cluster", recipes / "clusters/laptop.toml"],
        "parse": ["parse", page],
        "evaluate": [
            *("evaluate", model, "--task", "pubmed-sections", "--corpus", smoke.folder / "corpus"),
            *("--questions", "10", "--out", tmp_path / "results"),
        ],
        "compare": ["compare", f"{results}:base", f"{results}:pretrain"],
        "explain": ["explain", f"{results}:base", f"{results}:pretrain"],
        "quantize": ["quantize", model, "--type", "Q8_0", "--out", tmp_path],
        "generate": ["generate", model, "Aspirin", "--max-tokens", "2"],
    }
    for name, words in commands.items():
        finished = command(*words, "--json")
        assert finished.code == 0, finished.err
        listed = [
            code for heading, code, _ in tables("fields.md") if heading.startswith(f"`meditron {name} ")
        ]
        assert_fields(finished.json, listed)
