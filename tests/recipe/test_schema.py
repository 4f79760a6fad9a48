"""The typed recipe: parsing, and the errors of invalid recipes."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.errors import RecipeError, UsageError
from meditron.recipe import load_recipe
from meditron.recipe.json_schema import (
    SCHEMA_FILE,
    SERVER_SCHEMA_FILE,
    schema_text,
    server_schema_text,
)
from meditron.recipe.toml import read_toml
from toy_stages import RECIPE, ToyRun

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name",
    [
        "quickstart",
        "smoke",
        "fidelity",
        "meditron-7b",
        "meditron-7b-as-published",
        "meditron-as-published",
        "meditron-fo",
        "meditron-70b",
        "llama-3.1-8b",
        "qwen3-8b",
        "gap-replay",
    ],
)
def test_resolved_recipes_are_those_in_git(name: str) -> None:
    resolved = load_recipe(ROOT / f"recipes/{name}.toml").resolved()
    golden = ROOT / f"tests/recipe/golden/{name}.json"
    if os.environ.get("MEDITRON_GOLDEN") == "write":
        golden.write_text(json.dumps(resolved, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    recorded = json.loads(golden.read_text(encoding="utf-8"))
    assert resolved == recorded, "if intended: MEDITRON_GOLDEN=write make test, and review the difference"


@pytest.mark.parametrize(
    ("file", "text"), [(SCHEMA_FILE, schema_text), (SERVER_SCHEMA_FILE, server_schema_text)]
)
def test_the_json_schema_is_that_of_the_configs(file: Path, text: Callable[[], str]) -> None:
    assert file.read_text(encoding="utf-8") == text(), (
        "a config changed: python -m meditron.recipe.json_schema"
    )


def test_a_recipe_without_a_name_has_no_folder(tmp_path: Path) -> None:
    (tmp_path / "...toml").write_text(RECIPE, encoding="utf-8")
    with pytest.raises(UsageError, match="a recipe needs a name before"):
        load_recipe(tmp_path / "...toml")


def test_seeds_are_resolved_and_absent_tables_are_absent_stages(toy: ToyRun) -> None:
    toy.write('seed = 7\n[words]\ntext = "{text}"\nseed = 3\n[total]\n')
    recipe = toy.load()
    assert {name: step.config.seed for name, step in recipe.stages.items()} == {"words": 3, "total": 7}


def test_arrays_of_tables_have_names_and_a_single_one_may_have_none(toy: ToyRun) -> None:
    assert list(toy.load().stages) == ["words", "total", "rank.short", "rank.long"]
    toy.write('[words]\ntext = "{text}"\n[total]\n[[rank]]\nkeep = 2\n')
    assert list(toy.load().stages) == ["words", "total", "rank"]
    toy.write('[words]\ntext = "{text}"\n[total]\n[rank]\nname = "best"\n')
    assert list(toy.load().stages) == ["words", "total", "rank.best"]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ('[wrods]\ntext = "x"\n', ["counts.toml:1", "'wrods'", "did you mean 'words'"]),
        (
            '[words]\ntext = "x"\nupepr = true\n',
            ["counts.toml:3", "words", "'upepr'", "did you mean 'upper'"],
        ),
        (
            '[words]\ntext = "x"\n\n[words.filters.long]\nminimun = 3\n',
            ["counts.toml:5", "words.filters.long", "'minimun'", "did you mean 'minimum'"],
        ),
        ('[[rank]]\nname = "a"\n[[rank]]\nname = "b"\nkep = 1\n', ["counts.toml:5", "did you mean 'keep'"]),
        ('[words]\ntext = "x"\nupper = "yes"\n', ["counts.toml:3", "words.upper", "boolean", '"yes"']),
        ("[words]\n", ["counts.toml:1", "words.text", "required"]),
        ('seed = "one"\n', ["counts.toml:1", "seed", "integer"]),
        ("words = 3\n", ["counts.toml:1", "write [words]"]),
        ('[[words]]\ntext = "x"\n', ["counts.toml:1", "write [words]"]),
        ("rank = 3\n", ["counts.toml:1", "write [[rank]]"]),
        ('[[rank]]\nname = "a"\n[[rank]]\nname = "a"\n', ["counts.toml:3", "two tables are named rank.a"]),
        ('[[rank]]\nname = "a"\n[[rank]]\nkeep = 1\n', ["counts.toml:3", "needs a name"]),
        ('[[rank]]\nname = "../a"\n', ["counts.toml:1", "needs a name"]),
        ('[words]\ntxet = "x"\n', ["counts.toml:2", "'txet'", "did you mean 'text'"]),
        ("seed = 1\n", ["counts.toml", "no stage"]),
        ("[words\n", ["counts.toml:1: ", "at column 7"]),
        ("seed = \n", ["counts.toml:1: ", "at column 8"]),
    ],
)
def test_an_error_is_one_line_with_file_and_line(toy: ToyRun, recipe: str, words: list[str]) -> None:
    toy.path.write_text(recipe, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        toy.load()
    assert "\n" not in caught.value.message
    for word in words:
        assert word in caught.value.message


def test_all_errors_of_a_recipe_are_listed_at_once(toy: ToyRun) -> None:
    toy.path.write_text(
        'sede = 1\n[words]\ntxet = "x"\nupper = "yes"\n[total]\nupepr = 1\n[[rank]]\nname = "a"\nkep = 1\n'
        '[[rank]]\nname = "b"\nkeep = "x"\n',
        encoding="utf-8",
    )
    with pytest.raises(RecipeError) as caught:
        toy.load()
    error = caught.value
    lines = [each.message.partition(": ")[0].rpartition(":")[2] for each in (error, *error.further_errors)]
    assert lines == ["1", "3", "4", "6", "9", "12"]
    messages = " ".join(each.message for each in error.further_errors)
    assert "did you mean 'text'" in messages
    assert "required" not in messages  # words.text is there, misspelt


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('name = "long"\nkeep = "x"', "counts.toml:3: rank.long.keep: must be a valid integer"),
        ('name = "long"\nkep = 1', "counts.toml:3: rank.long has no key 'kep'"),
    ],
)
def test_an_error_in_an_array_of_tables_has_the_tables_name(toy: ToyRun, table: str, message: str) -> None:
    toy.path.write_text(f"[[rank]]\n{table}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        toy.load()
    assert message in caught.value.message


def test_a_list_item_is_named_by_its_index() -> None:
    override = "evaluate.fidelity=[{model='quantize:F16'}]"
    with pytest.raises(RecipeError, match=r"evaluate\.fidelity\[0\]\.against: field required"):
        load_recipe(ROOT / "recipes/smoke.toml", [override])


def test_types_in_any_case_are_one_reference() -> None:
    smoke = ROOT / "recipes/smoke.toml"
    recipe = load_recipe(smoke, ["evaluate.models=['base', 'quantize:q4_k_m']", "quantize.types=['q4_k_m']"])
    assert recipe.stages["evaluate"].config.models == ("base", "quantize:Q4_K_M")
    with pytest.raises(RecipeError, match="models"):
        load_recipe(smoke, ["evaluate.models=['quantize:q8_0', 'quantize:Q8_0']"])


def test_the_real_recipes_key_is_named(toy: ToyRun) -> None:
    with pytest.raises(RecipeError, match="did you mean 'learning_rate'"):
        load_recipe(ROOT / "recipes/quickstart.toml", ["pretrain.lerning_rate=1"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pretrain.mixture", "{pubmd=0.9, wiki=0.1}"),
        ("tokenize.publication_types", '{pubmd=["Review"]}'),
        ("tokenize.expected_tokens", "{pubmd=1}"),
    ],
)
def test_unknown_sources_are_refused(key: str, value: str) -> None:
    override = f"{key}={value}"
    # Files of questions are inputs of the corpus too, but not sources.
    questions = 'corpus.decontaminate=["./questions.jsonl"]'
    with pytest.raises(RecipeError) as raised:
        load_recipe(ROOT / "recipes/smoke.toml", [override, questions])
    where = f"--set {override}: {key}"
    assert raised.value.message == f"{where}: no source 'pubmd'; the corpus has pubmed, wiki"


def test_an_error_about_a_missing_recipe_lists_the_recipes(toy: ToyRun) -> None:
    with pytest.raises(UsageError, match="no recipe at") as caught:
        load_recipe(toy.folder / "cuonts.toml")
    assert "counts.toml" in str(caught.value.hint)
    with pytest.raises(UsageError, match="is a folder"):
        load_recipe(toy.folder)


def test_a_recipe_that_is_not_utf8_is_refused(toy: ToyRun) -> None:
    toy.path.write_bytes(b"seed = \xff\n")
    with pytest.raises(RecipeError, match="not UTF-8 at byte 7"):
        toy.load()


def test_set_parses_toml_or_a_string_and_reaches_named_tables(toy: ToyRun) -> None:
    recipe = toy.load(
        "words.threads=2", "words.upper=true", "rank.long.keep=9", "base=init:tiny", "words.ratio=1"
    )
    words, long = recipe.stages["words"].config, recipe.stages["rank.long"].config
    assert (words.threads, words.upper, words.ratio) == (2, True, 1.0)
    assert (long.keep, recipe.stages["rank.short"].config.keep) == (9, 1)
    assert recipe.base == "init:tiny"


def test_set_creates_missing_tables(toy: ToyRun) -> None:
    recipe = toy.load('words.filters."long one".minimum=4')
    assert recipe.stages["words"].config.filters["long one"].minimum == 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("words.upepr=1", ["--set words.upepr=1", "did you mean 'upper'"]),
        ("wrods.upper=1", ["--set wrods.upper=1", "did you mean 'words'"]),
        ("words.threads=many", ["--set words.threads=many", "integer", '"many"']),
        ("rank.lnog.keep=1", ["no table is named 'lnog'", "did you mean 'long'"]),
        ("words", ["has no value"]),
        ("a b=1", ["not a dotted key"]),
        ("seed.x=1", ["seed is not a table"]),
        ("seed.x.y=1", ["not a table"]),
    ],
)
def test_an_invalid_set_is_refused(toy: ToyRun, override: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        toy.load(override)
    for word in words:
        assert word in caught.value.message


@given(value=st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=40))
def test_any_text_after_the_equals_sign_is_one_value(
    tmp_path_factory: pytest.TempPathFactory, value: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    if not path.exists():
        path.write_text("seed = 1\n", encoding="utf-8")
    try:
        raw, _ = read_toml(path, [f"table.key={value}"])
    except RecipeError as error:
        if "64-bit" not in error.message and "nested" not in error.message:
            raise
        return  # a number of more than 64 bits, or brackets too deep
    assert set(raw) == {"seed", "table"}
    assert set(raw["table"]) == {"key"}


def test_the_resolved_recipe_has_every_default(toy: ToyRun) -> None:
    toy.write(RECIPE)
    resolved = toy.load().resolved()
    assert resolved["words"]["ratio"] == 0.5
    assert json.loads(json.dumps(resolved)) == resolved
