"""The typed recipe: what is read, what is refused, and in which words."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.errors import RecipeError, UsageError
from meditron.recipe import load_recipe
from meditron.recipe.json_schema import SCHEMA_FILE, schema_text
from meditron.recipe.toml import read
from toy_stages import RECIPE, ToyRun

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["quickstart", "smoke"])
def test_a_changed_default_shows_as_a_difference_of_the_golden_recipe(name: str) -> None:
    resolved = load_recipe(ROOT / f"recipes/{name}.toml").resolved()
    golden = ROOT / f"tests/recipe/golden/{name}.json"
    if os.environ.get("MEDITRON_GOLDEN") == "write":
        golden.write_text(json.dumps(resolved, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    told = json.loads(golden.read_text(encoding="utf-8"))
    assert resolved == told, "if this was meant: MEDITRON_GOLDEN=write make test, and review the difference"


def test_the_json_schema_is_that_of_the_configs() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), (
        "a config changed: python -m meditron.recipe.json_schema"
    )


def test_seeds_are_resolved_and_absent_tables_are_absent_stages(toy: ToyRun) -> None:
    toy.write('seed = 7\n[words]\ntext = "{text}"\nseed = 3\n[total]\n')
    recipe = toy.load()
    assert {name: step.config.seed for name, step in recipe.steps.items()} == {"words": 3, "total": 7}


def test_arrays_of_tables_have_names_and_a_single_one_may_have_none(toy: ToyRun) -> None:
    assert list(toy.load().steps) == ["words", "total", "rank.short", "rank.long"]
    toy.write('[words]\ntext = "{text}"\n[total]\n[[rank]]\nkeep = 2\n')
    assert list(toy.load().steps) == ["words", "total", "rank"]
    toy.write('[words]\ntext = "{text}"\n[total]\n[rank]\nname = "best"\n')
    assert list(toy.load().steps) == ["words", "total", "rank.best"]


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
        ("[words\n", ["counts.toml", "line 1"]),
    ],
)
def test_what_is_wrong_is_refused_in_one_line_with_file_and_line(
    toy: ToyRun, recipe: str, words: list[str]
) -> None:
    toy.path.write_text(recipe, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        toy.load()
    assert "\n" not in caught.value.message
    for word in words:
        assert word in caught.value.message


def test_all_mistakes_of_a_recipe_are_listed_at_once(toy: ToyRun) -> None:
    toy.path.write_text(
        'sede = 1\n[words]\ntxet = "x"\nupper = "yes"\n[total]\nupepr = 1\n[[rank]]\nname = "a"\nkep = 1\n'
        '[[rank]]\nname = "b"\nkeep = "x"\n',
        encoding="utf-8",
    )
    with pytest.raises(RecipeError) as caught:
        toy.load()
    error = caught.value
    lines = [each.message.partition(": ")[0].rpartition(":")[2] for each in (error, *error.others)]
    assert lines == ["1", "3", "4", "6", "9", "12"]
    said = " ".join(each.message for each in error.others)
    assert "did you mean 'text'" in said
    assert "required" not in said  # words.text is there, misspelt


def test_the_real_recipes_key_is_named(toy: ToyRun) -> None:
    with pytest.raises(RecipeError, match="did you mean 'learning_rate'"):
        load_recipe(ROOT / "recipes/quickstart.toml", ["pretrain.lerning_rate=1"])


def test_a_mixture_of_what_the_corpus_lacks_is_refused_before_anything_is_built() -> None:
    override = "pretrain.mixture={pubmd=0.9, wiki=0.1}"
    with pytest.raises(RecipeError) as raised:
        load_recipe(ROOT / "recipes/smoke.toml", [override])
    where = f"--set {override}: pretrain.mixture"
    assert raised.value.message == f"{where}: the corpus has pubmed, wiki, no 'pubmd'"


def test_a_missing_recipe_names_those_that_are_there(toy: ToyRun) -> None:
    with pytest.raises(UsageError, match="no recipe at") as caught:
        load_recipe(toy.folder / "cuonts.toml")
    assert "counts.toml" in str(caught.value.hint)
    with pytest.raises(UsageError, match="is a folder"):
        load_recipe(toy.folder)


def test_a_recipe_that_is_no_text_is_refused(toy: ToyRun) -> None:
    toy.path.write_bytes(b"seed = \xff\n")
    with pytest.raises(RecipeError, match="not UTF-8 at byte 7"):
        toy.load()


def test_set_reads_toml_else_a_string_and_reaches_named_tables(toy: ToyRun) -> None:
    recipe = toy.load(
        "words.threads=2", "words.upper=true", "rank.long.keep=9", "base=init:tiny", "words.ratio=1"
    )
    words, long = recipe.steps["words"].config, recipe.steps["rank.long"].config
    assert (words.threads, words.upper, words.ratio) == (2, True, 1.0)
    assert (long.keep, recipe.steps["rank.short"].config.keep) == (9, 1)
    assert recipe.base == "init:tiny"


def test_set_makes_tables_that_are_not_there(toy: ToyRun) -> None:
    recipe = toy.load('words.filters."long one".minimum=4')
    assert recipe.steps["words"].config.filters["long one"].minimum == 4


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
def test_a_wrong_set_is_refused_and_named(toy: ToyRun, override: str, words: list[str]) -> None:
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
        raw, _ = read(path, [f"table.key={value}"])
    except RecipeError as error:
        if "64-bit" not in error.message and "nested" not in error.message:
            raise
        return  # a number of more than 64 bits, or brackets too deep
    assert set(raw) == {"seed", "table"}
    assert set(raw["table"]) == {"key"}


def test_the_golden_form_holds_every_default(toy: ToyRun) -> None:
    toy.write(RECIPE)
    resolved = toy.load().resolved()
    assert resolved["words"]["ratio"] == 0.5
    assert json.loads(json.dumps(resolved)) == resolved
