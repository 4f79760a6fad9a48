"""Dry runs open every local input, list all problems at once, and estimate what the stages will take."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from meditron.core.errors import MeditronError, RecipeError, SourceError, UsageError
from meditron.recipe import load_recipe, run_recipe
from meditron.recipe.external_inputs import local_input
from meditron.sources.registry import open_source

BAD = """
base = "init:tiny"
seed = 1
[corpus.sources.gone]
from = "./gone.jsonl"
[corpus.sources.page]
from = "./page.xml"
[corpus.sources.empty]
from = "./empty.jsonl"
[tokenize]
[pretrain]
tokens = 512
sequence_length = 32
batch_size = 4
learning_rate = 1e-3
[[finetune]]
name = "talk"
rows = "./rows.jsonl"
sequence_length = 32
batch_size = 1
learning_rate = 1e-3
[quantize]
on = "./model"
[evaluate]
models = ["base"]
tasks = ["./questions.jsonl"]
"""
ROW = (
    '{"messages": [{"role": "user", "content": "Which dose?"}, {"role": "assistant", "content": "5 mg."}]}\n'
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bad.toml").write_text(BAD)
    (tmp_path / "page.xml").write_text("<html><body>Please log in.</body></html>")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "rows.jsonl").write_text(ROW + '{"messages": []}\n')
    (tmp_path / "questions.jsonl").write_text(
        '{"id": 1, "question": "Which?", "options": ["a", "b"], "gold": 7}\n'
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/model.safetensors").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_missing_files_are_listed_first_once_each_and_leave_a_whole_plan(folder: Path) -> None:
    (folder / "rows.jsonl").unlink()
    recipe = load_recipe("bad.toml")
    result = run_recipe(recipe, dry_run=True)
    assert [(each.stage, each.input) for each in result.problems] == [
        ("corpus", "gone"),
        ("finetune.talk", "rows"),
        ("corpus", "page"),
        ("corpus", "empty"),
        ("quantize", "model"),
        ("evaluate", "./questions.jsonl"),
    ]
    assert list(result.decisions) == list(recipe.stages)
    assert set(result.estimates) == set(recipe.stages) - {"card"}
    assert not (folder / "runs").exists()


def test_every_local_input_is_opened_and_all_problems_are_listed(folder: Path) -> None:
    (folder / "gone.jsonl").write_text('{"id": "1", "text": "Aspirin thins the blood."}\n')
    result = run_recipe(load_recipe("bad.toml"), dry_run=True)
    messages = {(each.stage, each.input): each.error.message for each in result.problems}
    assert set(messages) == {
        ("corpus", "page"),
        ("corpus", "empty"),
        ("finetune.talk", "rows"),
        ("quantize", "model"),
        ("evaluate", "./questions.jsonl"),
    }
    assert "line 2" in messages["finetune.talk", "rows"]
    assert "line 1" in messages["evaluate", "./questions.jsonl"]
    assert json.loads(json.dumps(result.to_json()))["problems"][0]["stage"] == "corpus"
    assert not (folder / "runs").exists()


def test_a_misspelt_file_is_reported_as_a_file_with_its_line(folder: Path) -> None:
    (folder / "bad.toml").write_text(
        BAD.replace("./questions.jsonl", "qustions.jsonl").replace("./rows.jsonl", "rosw.jsonl")
    )
    messages = [each.error.message for each in run_recipe(load_recipe("bad.toml"), dry_run=True).problems]
    (rows,) = [line for line in messages if "rosw" in line]
    (questions,) = [line for line in messages if "qustions" in line]
    assert rows.endswith("refers to 'rosw.jsonl': no such file: did you mean 'rows.jsonl'?")
    assert "no such file or task of that name: did you mean 'questions.jsonl'?" in questions
    lines = (folder / "bad.toml").read_text().splitlines()
    line = lines.index('rows = "rosw.jsonl"') + 1
    assert rows.startswith(f"bad.toml:{line}: finetune.talk refers to")
    line = lines.index('tasks = ["qustions.jsonl"]') + 1
    assert questions.startswith(f"bad.toml:{line}: evaluate refers to")


def test_a_type_that_quantize_does_not_write_is_refused_before_the_run(folder: Path) -> None:
    (folder / "types.toml").write_text(
        'base = "init:tiny"\n[quantize]\non = "base"\ntypes = ["F16", "Q8_0"]\n'
        '[evaluate]\nmodels = ["base", "quantize:Q8_1"]\n'
    )
    [problem, *_] = run_recipe(load_recipe("types.toml"), dry_run=True).problems
    assert problem.error.message == (
        "types.toml:6: evaluate refers to 'quantize:Q8_1': quantize has no file 'Q8_1': did you mean 'Q8_0'?"
    )
    assert problem.error.hint == "files of quantize: F16, Q8_0"
    assert problem.to_json()["where"] == "types.toml:6"


def test_estimates_count_local_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    questions = [
        {"id": n, "question": f"Which is {n}?", "options": ["a", "b"], "gold": n % 2} for n in range(40)
    ]
    text = "".join(json.dumps(each) + "\n" for each in questions)
    (tmp_path / "questions.jsonl").write_text(text)
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "Aspirin thins the blood."}\n' * 10)
    (tmp_path / "good.toml").write_text(
        'base = "init:tiny"\n[corpus.sources.a]\nfrom = "a.jsonl"\n[[finetune]]\nname = "q"\nepochs = 2\n'
        'task = "questions.jsonl"\nsequence_length = 64\nbatch_size = 4\nlearning_rate = 1e-3\non = "base"\n'
        '[evaluate]\nmodels = ["base"]\ntasks = ["questions.jsonl"]\ndocuments = 2\ndocument_tokens = 8\n'
    )
    costs = run_recipe(load_recipe("good.toml"), dry_run=True).estimates
    assert costs["finetune.q"].tokens == 2 * round(len(text) / 4.5)
    assert (costs["evaluate"].tokens or 0) < len(text)

    def tokens(*overrides: str) -> int:
        stages = run_recipe(
            load_recipe("good.toml", [f"evaluate.{each}" for each in overrides]), dry_run=True
        )
        return stages.estimates["evaluate"].tokens or 0

    prompts = round(len(text) / 4.5)
    questions = math.ceil(prompts / 100)  # estimated from the size of the file
    both = 'methods=["cot", "self-consistency"]'
    generated = (1 + 5) * questions * 256
    assert tokens(both) - tokens() == prompts + generated
    assert tokens(both, "samples=9", "max_tokens=100") - tokens() == prompts + 10 * questions * 100
    # The second seed repeats the vote only: greedy chains of thought are equal.
    assert tokens(both, "seeds=2") - tokens(both) == prompts + 5 * questions * 256
    assert tokens('tasks=["mmlu-medical", "questions.jsonl"]') - tokens() == 1000 * 100


def test_an_override_shows_no_secret(folder: Path) -> None:
    """A place in a recipe may be a `--set`, and its address may have a login."""
    path = folder / "bad.toml"
    override = "corpus.sources.gone.from=https://user:secret@host.example:0/gone.jsonl?token=secret"
    problems = [
        problem.to_json() for problem in run_recipe(load_recipe(path, [override]), dry_run=True).problems
    ]
    assert "--set corpus.sources.gone.from=https://host.example" in json.dumps(problems)
    assert "secret" not in json.dumps(problems)


def test_a_run_stops_before_its_first_stage_with_the_number_of_problems(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.jsonl: no such file") as missing:
        run_recipe(load_recipe("bad.toml"))
    assert "corpus refers to it at bad.toml:5" in str(missing.value.hint)
    assert not list((folder / "runs").glob("*/*/in_progress.json"))
    (folder / "gone.jsonl").write_text('{"id": "1", "text": "Aspirin thins the blood."}\n')
    with pytest.raises(MeditronError, match=r"page\.xml") as raised:
        run_recipe(load_recipe("bad.toml"))
    assert "`meditron run bad.toml --dry-run` lists 4 more" in str(raised.value.hint)
    assert not list((folder / "runs").glob("*/*/in_progress.json"))


def test_a_model_can_be_selected_from_a_folder(folder: Path) -> None:
    (folder / "ggufs").mkdir()
    assert local_input("ggufs:F16") == Path("ggufs:F16")
    assert local_input("init:tiny") is None
    with pytest.raises(SourceError, match="no such file"):
        local_input("gone:F16")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.jsonl", ['{"text": "Aspirin thins the blood."}', '{"txet": "Aspirin"}']),
        ("a.csv", ["id,text", "1,Aspirin thins the blood.", "2,Aspirin,3"]),
    ],
)
def test_the_first_rows_of_a_file_are_checked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, lines: list[str]
) -> None:
    (folder / "rows.toml").write_text(f"[corpus.sources.a]\nfrom = './{name}'\n")
    (folder / name).write_text("\n".join(lines) + "\n")
    [problem] = run_recipe(load_recipe("rows.toml"), dry_run=True).problems
    assert f"{name} (line {len(lines)})" in problem.error.message
    monkeypatch.setattr("meditron.recipe.preflight._MAX_DOCUMENTS", 1)
    assert not run_recipe(load_recipe("rows.toml"), dry_run=True).problems


def test_a_corpus_with_too_few_held_out_documents_stops_the_run_before_training(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"text": f"Document {n} is about drug {n * n}. " * 5}) + "\n" for n in range(5)]
    (folder / "a.jsonl").write_text("".join(lines))
    (folder / "small.toml").write_text(
        'base = "init:tiny"\n[corpus]\nheldout = 0.01\n[corpus.sources.a]\nfrom = "./a.jsonl"\n[tokenize]\n'
        '[evaluate]\nmodels = ["base"]\n'
    )
    recipe = load_recipe("small.toml")
    for _ in range(2):  # the second run keeps the corpus
        with pytest.raises(MeditronError, match=r"too few held-out documents to evaluate \(a 0\)") as raised:
            run_recipe(recipe)
        assert raised.value.stage == "evaluate"
        assert "raise corpus.heldout" in str(raised.value.hint)
    assert "warning: no document is held out (corpus.heldout: 0.01 of 5 documents)" in capsys.readouterr().err
    assert (folder / "runs/small/corpus/manifest.json").is_file()
    assert not (folder / "runs/small/tokenize").exists()
    [problem] = run_recipe(recipe, dry_run=True).problems
    assert (problem.stage, problem.input) == ("evaluate", "corpus")
    assert run_recipe(recipe, until="tokenize").built_stages == ["tokenize"]


def test_the_first_of_very_many_files_are_read_and_shared_inputs_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "many").mkdir()
    for number in range(9):
        (folder / f"many/{number}.jsonl").write_text('{"text": "Aspirin thins the blood."}\n')
    (folder / "many/8.jsonl").write_text('{"id": 8}\n')
    sources = "".join(f'[corpus.sources.{name}]\nfrom = "./many"\n' for name in "ab")
    (folder / "many.toml").write_text(sources)
    recipe = load_recipe("many.toml")
    opened: list[Path] = []

    def counted(path: Path, *rest: Any) -> Any:
        opened.append(path)
        return open_source(path, *rest)

    monkeypatch.setattr("meditron.recipe.preflight.open_source", counted)
    [problem] = run_recipe(recipe, dry_run=True).problems
    assert "8.jsonl (line 1)" in problem.error.message
    assert len(opened) == 9
    monkeypatch.setattr("meditron.recipe.preflight._MAX_FILES", 8)
    assert not run_recipe(recipe, dry_run=True).problems
    assert len(opened) == 9 + 8


def test_estimates_follow_from_the_recipe_and_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "Aspirin thins the blood."}\n' * 1000)
    recipe = BAD[: BAD.index("[[finetune]]")].replace("./gone.jsonl", "./a.jsonl")
    recipe = recipe.replace('[corpus.sources.page]\nfrom = "./page.xml"\n', "")
    recipe = recipe.replace('[corpus.sources.empty]\nfrom = "./empty.jsonl"\n', "")
    # A CPU that multiplies bfloat16 quickly would train in it.
    (tmp_path / "good.toml").write_text(recipe + 'dtype = "float32"\n')
    result = run_recipe(load_recipe("good.toml"), dry_run=True)
    assert not result.problems
    assert list(result.estimates) == ["corpus", "tokenize", "pretrain"]
    pretrain = result.estimates["pretrain"]
    assert pretrain.tokens == 512
    parameters = 3_342_912  # of init:tiny
    assert pretrain.memory is not None
    # Weights, gradients and moments; a copy of the checkpoint that is being written; and for a batch of 128
    # tokens: 49,152 logits with their gradients and a float32 copy, 64 hidden states and their gradients, and
    # the gradient of the head.
    head = 128 * 49_152 * 12 + 128 * 64 * 8 + 49_152 * 64 * 4
    assert (16 + 12) * parameters + head < pretrain.memory < (20 + 12) * parameters + head
    assert pretrain.disk == 4 * parameters + 2 * 12 * parameters
    assert pretrain.seconds is not None
    assert 0.001 < pretrain.seconds < 600
    corpus = result.estimates["corpus"].tokens
    assert corpus is not None
    assert 5_000 < corpus < 20_000  # 24,000 characters of text in 48,000 bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 18446744073709551616", "seed: must be a 64-bit integer"),
        ("seed = -1", "seed: must be at least 0, got -1"),
        ("seed = 9223372036854775808", "64-bit"),
        ("seed = " + "9" * 5000, "Exceeds the limit"),
        ("base = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("base = " + "[" * 20 + "]" * 20, "nested more than 16 levels"),
        ("[" + ".".join("a" * 1500) + "]", "nested more than 16 levels"),
        ("[pretrain]\ntokens = 100000000000000000000000", "pretrain.tokens: must be a 64-bit integer"),
        (
            "[pretrain]\nsequence_length = 32\nbatch_size = 1\nlearning_rate = 1e-3\ntokens = 1e23",
            "pretrain.tokens: must be a valid integer",
        ),
    ],
)
def test_numbers_and_nesting_beyond_the_bounds_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    assert message.lower() in raised.value.message.lower()
    assert len(raised.value.message) < 400


def test_overrides_have_the_same_bounds(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('base = "init:tiny"\n[quantize]\non = "base"\n')
    for override in ("seed=" + "9" * 30, ".".join("a" * 2000) + "=1", "base=" + "[" * 3000 + "]" * 3000):
        with pytest.raises(UsageError) as raised:
            load_recipe(path, [override])
        assert len(raised.value.message) < 300
    path.write_bytes(b"# " + b"x" * (1 << 20))
    with pytest.raises(RecipeError, match="larger than"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("table", "message", "hint"),
    [
        (
            '[evaluate]\nmodels = ["base"]',
            "evaluate: needs the stage [corpus], and this recipe has none",
            "add",
        ),
        (
            "[quantize]",
            "quantize: `on` is 'pretrain' by default, and this recipe has none",
            'on = "…": one of base',
        ),
    ],
)
def test_a_stage_that_the_recipe_does_not_write_is_named_with_what_needs_it(
    tmp_path: Path, table: str, message: str, hint: str
) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f'base = "init:tiny"\n{table}\n')
    (problem,) = run_recipe(load_recipe(path), dry_run=True).problems
    assert problem.error.message == f"{path}:2: {message}"
    assert hint in str(problem.error.hint)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[quantize]\non = "corpus"', "quantize refers to 'corpus', which is no model"),
        (
            '[quantize]\non = "base"\ntypes = ["F16", "Q8_0"]\n[evaluate]\nmodels = ["quantize"]',
            "evaluate refers to 'quantize', which writes 2 models",
        ),
    ],
)
def test_a_stage_that_is_no_single_model_is_refused_as_one(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "Aspirin thins the blood."}\n' * 9)
    path = tmp_path / "x.toml"
    path.write_text(f'base = "init:tiny"\n[corpus.sources.a]\nfrom = "{tmp_path}/a.jsonl"\n{table}\n')
    (problem,) = run_recipe(load_recipe(path), dry_run=True).problems
    assert message in problem.error.message


def test_a_model_of_70_billion_parameters_is_estimated_without_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    path = Path(__file__).parents[2] / "recipes/meditron-70b.toml"
    estimates = run_recipe(load_recipe(path), dry_run=True).estimates
    pretrain, parameters = (
        estimates["pretrain"],
        68_976_648_192,
    )  # of Llama-2-70B, as transformers counts them
    assert pretrain.tokens == 23_000 * 512 * 4096
    assert pretrain.disk == 4 * parameters + 2 * 12 * parameters
    assert pretrain.memory is not None
    assert pretrain.memory > (16 + 12) * parameters
    assert pretrain.seconds is not None
    # 6 operations per parameter and token; no CPU does more than 100 TFLOP/s or less than 1 GFLOP/s.
    assert 6 * 48e9 * 7e10 / 1e14 < pretrain.seconds < 9 * 48e9 * 7e10 / 1e9
    assert estimates["quantize"].seconds is not None
