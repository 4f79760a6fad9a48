"""The door: light, told in one line what is wrong, and its help tells what can be typed."""

import re
import shlex
import tomllib
from inspect import signature
from pathlib import Path

import pytest

from command import Command
from meditron.cli.app import COMMANDS, app
from meditron.cli.errors import EXTRAS
from meditron.core.disclaimer import ADVISORY
from meditron.recipe import load_recipe
from meditron.sources.registry import SOURCES

ROOT = Path(__file__).parents[2]
NAMES = [verb.__name__ for verb in COMMANDS]
HEAVY = {"torch", "transformers", "datatrove", "numba", "matplotlib", "scipy", "lxml", "xllamacpp"}
HEAVY |= {"numpy", "pydantic"}  # light beside these, but half a second together
HELP = """
import runpy, sys
for words in (["--version"], ["--help"], *([name, "--help"] for name in sys.argv[1:])):
    sys.argv = ["meditron", *words]
    try:
        runpy.run_module("meditron", run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, end.code
    print("MODULES", *words, *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_help_imports_nothing_heavy(process: Command) -> None:
    said = process("-W", "ignore::RuntimeWarning", "-c", HELP, *NAMES)
    assert said.code == 0, said.err
    listed = [set(line.split()) for line in said.out.splitlines() if line.startswith("MODULES")]
    assert len(listed) == 2 + len(NAMES)
    for modules in listed:
        assert not modules & HEAVY
        # One of those that the command needs, so that the list is known to be one.
        assert "cyclopts" in modules
    assert all("markdown_it" not in modules for modules in listed[:2])  # --version and --help


def test_help_lists_the_verbs_and_says_what_this_is_not_for(meditron: Command) -> None:
    said = meditron("--help")
    assert said.code == 0
    for name in NAMES:
        assert re.search(rf"│ {name} ", said.out)
    assert ADVISORY in " ".join(said.out.split())


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_has_help_with_an_example_that_can_be_typed(meditron: Command, name: str) -> None:
    said = meditron(name, "--help")
    assert said.code == 0
    assert "For example" in said.out
    docstring = str(app[name].default_command.__doc__)
    examples = re.findall(r"^\s+(meditron .*)$", docstring, re.MULTILINE)
    assert examples
    for example in examples:
        command, bound, _ = app.parse_args(shlex.split(example)[1:], exit_on_error=False, print_error=False)
        assert command.__name__ == name
        assert bound.arguments


def test_examples_name_stages_that_the_quickstart_leaves() -> None:
    recipe = load_recipe(ROOT / "recipes" / "quickstart.toml")
    named = {
        found for verb in COMMANDS for found in re.findall(r"runs/quickstart/([\w.]+)", str(verb.__doc__))
    }
    assert named
    assert named <= set(recipe.stages)


def test_the_help_of_parse_lists_every_format() -> None:
    (argument,) = [each for each in app["parse"].assemble_argument_collection() if "--format" in each.names]
    assert ", ".join(SOURCES) in str(argument.parameter.help)


def test_contributing_gives_the_signature_of_a_reader() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = re.findall(r"`read\(([^)]*)\) -> Iterator\[Document\]`", text)
    for source in SOURCES.values():
        assert names == [", ".join(signature(source.read).parameters)]


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_prints_json_on_demand(name: str) -> None:
    assert "--json" in {
        flag for argument in app[name].assemble_argument_collection() for flag in argument.names
    }


def test_the_version_is_printed(meditron: Command) -> None:
    from meditron import __version__

    assert meditron("--version").out.strip() == __version__


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rnu", "x"], ["rnu", "run"]),
        (["run", "--onyl", "words", "x.toml"], ["--onyl", "--only"]),
        (["run"], ["RECIPE"]),
        (["generate", "model", "prompt", "--max-tokens", "many"], ["--max-tokens", "many"]),
        (["generate", "model", "--max-tokns", "4", "prompt"], ["--max-tokns", "--max-tokens"]),
        (["status", "x.toml", "y.toml"], ["y.toml"]),
    ],
)
def test_wrong_use_is_one_line_a_hint_and_exit_2(
    meditron: Command, words: list[str], told: list[str]
) -> None:
    said = meditron(*words)
    assert said.code == 2
    assert said.out == ""
    error, hint = said.err.splitlines()
    assert error.startswith("meditron: error: ")
    assert hint.startswith("hint: meditron")
    assert hint.endswith("--help")
    for word in told:
        assert word in error


def test_an_unknown_type_is_answered_with_the_known_ones(meditron: Command) -> None:
    said = meditron("convert", "a", "b.gguf", "--type", "F15")
    assert said.code == 2
    error, hint = said.err.splitlines()
    assert "F15" in error
    assert "F16" in hint


def test_nothing_to_do_shows_the_help(meditron: Command) -> None:
    assert "Commands" in meditron().out


def test_every_library_of_an_extra_is_known_to_be_of_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    for extra in ("corpus", "train", "release", "serve"):
        for requirement in extras[extra]:
            library = re.split(r"[^\w.-]", requirement)[0].replace("-", "_").lower().removesuffix("_py")
            assert EXTRAS[library] == extra
