"""The command: its help, its imports, and the errors of invalid usage."""

import re
import shlex
import tomllib
from inspect import signature
from pathlib import Path

import pytest

from command import Command
from meditron.cli.app import COMMANDS, GROUPS, app, command_name
from meditron.cli.errors import EXTRAS
from meditron.core.disclaimer import DISCLAIMER
from meditron.recipe import load_recipe
from meditron.sources.registry import SOURCES

ROOT = Path(__file__).parents[2]
NAMES = [command_name(command) for command in COMMANDS]
GROUPED = [(group, name) for group, (_, commands) in GROUPS.items() for name in commands]
HEAVY = {"torch", "transformers", "ray", "numba", "matplotlib", "scipy", "lxml", "xllamacpp"}
HEAVY |= {"numpy", "pydantic"}  # half a second together
HELP = """
import runpy, sys
for words in (["--version"], ["--help"], *([*name.split(), "--help"] for name in sys.argv[1:])):
    sys.argv = ["meditron", *words]
    try:
        runpy.run_module("meditron", run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, end.code
    print("MODULES", *words, *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_help_imports_nothing_heavy(process: Command) -> None:
    names = [*NAMES, *GROUPS, *map(" ".join, GROUPED)]
    result = process("-W", "ignore::RuntimeWarning", "-c", HELP, *names)
    assert result.code == 0, result.err
    listed = [set(line.split()) for line in result.out.splitlines() if line.startswith("MODULES")]
    assert len(listed) == 2 + len(names)
    for modules in listed:
        assert not modules & HEAVY
        # A library that the command needs: the list is not empty by mistake.
        assert "cyclopts" in modules
    assert all("markdown_it" not in modules for modules in listed[:2])  # --version and --help


def test_help_lists_the_commands_and_the_advisory(meditron: Command) -> None:
    result = meditron("--help")
    assert result.code == 0
    for name in (*NAMES, *GROUPS):
        assert re.search(rf"│ {name} ", result.out)
    assert DISCLAIMER in " ".join(result.out.split())


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_a_valid_example(meditron: Command, name: str) -> None:
    result = meditron(name, "--help")
    assert result.code == 0
    assert "For example" in result.out
    docstring = str(app[name].default_command.__doc__)
    examples = re.findall(r"^\s+(meditron .*)$", docstring, re.MULTILINE)
    assert examples
    for example in examples:
        command, bound, _ = app.parse_args(shlex.split(example)[1:], exit_on_error=False, print_error=False)
        assert command_name(command) == name
        assert bound.arguments


@pytest.mark.parametrize(("group", "name"), GROUPED)
def test_every_command_of_a_group_has_json_and_help_with_a_valid_example(
    meditron: Command, group: str, name: str
) -> None:
    result = meditron(group, name, "--help")
    assert result.code == 0
    function = GROUPS[group][1][name]
    examples = re.findall(r"^\s+(meditron .*)$", str(function.__doc__), re.MULTILINE)
    assert examples
    for example in examples:
        command, _, _ = app.parse_args(shlex.split(example)[1:], exit_on_error=False, print_error=False)
        assert command is function
    flags = {flag for argument in app[group][name].assemble_argument_collection() for flag in argument.names}
    assert "--json" in flags


def test_examples_name_stages_of_the_quickstart() -> None:
    recipe = load_recipe(ROOT / "recipes" / "quickstart.toml")
    named = {
        stage
        for command in COMMANDS
        for stage in re.findall(r"runs/quickstart/([\w.]+)", str(command.__doc__))
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
        # Further options of a reader are keyword-only.
        parameters = signature(source.read).parameters.values()
        assert names == [", ".join(each.name for each in parameters if each.kind is not each.KEYWORD_ONLY)]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_json(name: str) -> None:
    assert "--json" in {
        flag for argument in app[name].assemble_argument_collection() for flag in argument.names
    }


def test_the_version_is_printed(meditron: Command) -> None:
    from meditron import __version__

    assert meditron("--version").out.strip() == __version__


@pytest.mark.parametrize(
    ("words", "words_in_error"),
    [
        (["rnu", "x"], ["rnu", "run"]),
        (["run", "--onyl", "words", "x.toml"], ["--onyl", "--only"]),
        (["run"], ["RECIPE"]),
        (["generate", "model", "prompt", "--max-tokens", "many"], ["--max-tokens", "many"]),
        (["generate", "model", "--max-tokns", "4", "prompt"], ["--max-tokns", "--max-tokens"]),
        (["status", "x.toml", "y.toml"], ["y.toml"]),
    ],
)
def test_invalid_usage_is_one_line_a_hint_and_exit_2(
    meditron: Command, words: list[str], words_in_error: list[str]
) -> None:
    result = meditron(*words)
    assert result.code == 2
    assert result.out == ""
    error, hint = result.err.splitlines()
    assert error.startswith("meditron: error: ")
    assert hint.startswith("hint: meditron")
    assert hint.endswith("--help")
    for word in words_in_error:
        assert word in error


def test_an_error_about_an_unknown_type_lists_the_types(meditron: Command) -> None:
    result = meditron("convert", "a", "b.gguf", "--type", "F15")
    assert result.code == 2
    error, hint = result.err.splitlines()
    assert "F15" in error
    assert "F16" in hint


def test_without_a_command_the_help_is_printed(meditron: Command) -> None:
    assert "Commands" in meditron().out


def test_every_library_of_an_extra_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    first: dict[str, str] = {}
    for extra in ("corpus", "train", "release", "llamacpp", "serve"):
        for requirement in extras[extra]:
            library = re.split(r"[^\w.-]", requirement)[0].replace("-", "_").lower().removesuffix("_py")
            if library == "meditron":  # an extra of the package itself
                continue
            # A library of several extras is listed with the first.
            assert EXTRAS[library] == first.setdefault(library, extra)
