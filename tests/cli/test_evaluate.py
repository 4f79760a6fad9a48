"""`evaluate` as it is typed: on a task, and against another model."""

import json
from pathlib import Path

import pytest
import torch

from command import Command
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.model import LocalModel
from meditron.store.ancestry import Ancestry, Training, write_ancestry
from meditron.store.jsonl import JsonlWriter
from meditron.store.manifest import Artifact
from meditron.store.prompts import PromptStore
from meditron.tasks.formats import FORMATS
from meditron.tasks.prompt_template import PROMPT_TEMPLATES
from meditron.tasks.registry import open_task
from tiny import CHAT, TEXTS, tiny_hf

QUESTIONS = [
    {"id": f"q{n}", "question": f"{TEXTS[n % 5]} ({n})", "options": ["yes", "no"], "gold": n % 2}
    for n in range(12)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    return path


def test_a_task_gives_the_stable_fields_and_the_rows(meditron: Command, model: Path, questions: Path) -> None:
    completed = meditron(
        "evaluate", model, "--task", questions, "--shots", "2", "--rule", "calibrated", "--json"
    )
    assert completed.code == 0, completed.err
    result = json.loads(completed.out)
    stable = "task version method shots n accuracy interval majority position parse_rate"
    assert {*stable.split(), "option_probability_mass", "prompt_sha256", "data_sha256", "rows"} <= set(result)
    assert (result["task"], result["shots"], result["n"], result["rule"]) == (
        "questions",
        2,
        12,
        "calibrated",
    )
    assert len(result["shot_ids"]) == 3
    rows = [json.loads(line) for line in Path(result["rows"]).read_text(encoding="utf-8").splitlines()]
    assert {row["id"] for row in rows} == {row["id"] for row in QUESTIONS}
    assert {"gold", "prediction", "correct", "scores"} <= set(rows[0])
    assert result["accuracy"] == sum(row["correct"] for row in rows) / 12


def test_the_table_shows_settings_and_intervals(meditron: Command, model: Path, questions: Path) -> None:
    arguments = ("evaluate", model, "--task", questions, "--method", "next-token", "--questions", "10")
    completed = meditron(*arguments)
    assert completed.code == 0, completed.err
    for word in ("next-token", "95 % interval", "parse rate", "option probability mass", "majority", "torch"):
        assert word in completed.out
    assert "rows: evaluations" in completed.err
    again = meditron(*arguments)
    assert again.out == completed.out
    assert "10 questions" not in again.err, "it was computed again"


def test_help_names_the_published_files(meditron: Command) -> None:
    shown = " ".join(meditron("evaluate", "--help").out.replace("│", " ").split())
    for published in FORMATS:
        assert all(
            f"{published.dataset}'s {published.published_files[0]}" in shown
            for _ in published.published_files
        )


def test_an_unknown_method_is_named(meditron: Command, model: Path, questions: Path) -> None:
    completed = meditron("evaluate", model, "--task", questions, "--method", "options")
    assert completed.code == 2
    assert "--method: no method 'options'; methods: loglikelihood, next-token" in completed.err


def test_a_missing_model_is_an_error_before_the_hub_is_asked_for_the_questions(meditron: Command) -> None:
    refused = meditron("evaluate", "missing.gguf", "--task", "medqa-4")
    assert refused.code == 2
    assert refused.err.splitlines()[0].startswith("meditron: error: missing.gguf: ")


@pytest.mark.parametrize("words", [("--shots", "3.5"), ("--shots", "nan"), ("--batch-tokens", "0.9")])
def test_a_fraction_is_no_whole_number(
    meditron: Command, model: Path, questions: Path, words: tuple[str, ...]
) -> None:
    completed = meditron("evaluate", model, "--task", questions, *words)
    assert completed.code == 2
    assert f'unable to convert "{words[1]}" into int' in completed.err


def test_a_file_of_questions_may_have_a_long_name(meditron: Command, model: Path, tmp_path: Path) -> None:
    path = tmp_path / f"{'q' * 240}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    completed = meditron("evaluate", model, "--task", path, "--out", tmp_path / "out", "--json")
    assert completed.code == 0, completed.err
    assert Path(json.loads(completed.out)["rows"]).is_file()


def test_an_empty_file_of_examples_is_no_file(meditron: Command, model: Path, questions: Path) -> None:
    completed = meditron("evaluate", model, "--task", questions, "--shots", "1", "--shots-from", "")
    assert completed.code == 2
    assert "--shots-from: must name a file, got an empty text" in completed.err


def test_examples_come_from_another_file(
    meditron: Command, model: Path, questions: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    rows = [row | {"id": f"other-{row['id']}", "question": f"{row['question']}!"} for row in QUESTIONS]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ("--task", questions, "--shots", "2", "--shots-from", other, "--json")
    result = json.loads(meditron("evaluate", model, *words).out)
    assert (result["shots"], result["shots_from"]) == (2, "other.jsonl")
    assert all(id_.startswith("other-") for id_ in result["shot_ids"])


def test_two_models_rows_compare(meditron: Command, model: Path, questions: Path, tmp_path: Path) -> None:
    other = tiny_hf(tmp_path / "other", seed=1)
    for item in (model, other):
        assert meditron("evaluate", item, "--task", questions, "--out", tmp_path / "both").code == 0
    specs = [f"{tmp_path}/both:{item}" for item in (model, other)]
    result = json.loads(meditron("compare", *specs, "--json").out)
    assert {"n", "difference", "interval", "p", "detectable", "mcnemar"} <= set(result)
    assert (result["n"], result["task"]) == (12, "questions")
    assert "accuracy, questions" in meditron("compare", *specs).out


def test_against_another_model(meditron: Command, model: Path, tmp_path: Path) -> None:
    with JsonlWriter(tmp_path / "corpus/heldout/pubmed/00000.jsonl.zst") as writer:
        for n, text in enumerate(TEXTS):
            writer.write({"id": f"pubmed:{n}", "text": text})
    other = tiny_hf(tmp_path / "other", seed=1)
    arguments = (
        "evaluate",
        model,
        "--against",
        other,
        "--corpus",
        tmp_path / "corpus",
        "--out",
        tmp_path / "out",
    )
    result = json.loads(meditron(*arguments, "--json").out)
    stable = "n_tokens perplexity perplexity_against kl_mean kl_99 top_agreement intervals"
    assert set(stable.split()) <= set(result)
    assert result["kl_mean"] > 0
    assert set(result["intervals"]) == {"perplexity_ratio", "kl_mean", "top_agreement"}
    completed = meditron(*arguments)
    assert "perplexity ratio" in completed.out


def test_all_files_of_a_folder_against_a_model(meditron: Command, model: Path, tmp_path: Path) -> None:
    with JsonlWriter(tmp_path / "corpus/heldout/pubmed/00000.jsonl.zst") as writer:
        for n, text in enumerate(TEXTS):
            writer.write({"id": f"pubmed:{n}", "text": text})
    folder, out = tmp_path / "gguf", tmp_path / "out"
    assert meditron("quantize", model, "F16", "Q8_0", "Q2_K", "--out", folder).code == 0
    f16 = f"{folder}:{model.name}-F16"
    arguments = ("evaluate", folder, "--against", f16, "--corpus", tmp_path / "corpus", "--out", out)
    said = meditron(*arguments)
    assert said.code == 0, said.err
    assert "Q2_K" in said.out
    assert "mean KL, nats" in said.out
    assert "recommended: " in said.err
    result = json.loads(meditron(*arguments, "--json").out)
    # The reference is not compared with itself, and each row is that of its file alone.
    names = [f"{model.name}-{kind}" for kind in ("Q2_K", "Q8_0")]
    assert [file["type"] for file in result["files"]] == names
    assert [pair["model"] for pair in result["fidelity"]] == [f"{folder}:{name}" for name in names]
    assert result["recommended"] in names
    alone = ("evaluate", f"{folder}:{names[0]}", *arguments[2:-1], tmp_path / "alone", "--json")
    assert json.loads(meditron(*alone).out)["kl_mean"] == result["fidelity"][0]["kl_mean"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{model}"], "a task or a model"),
        (["{model}", "--task", "a", "--against", "b"], "--task and --against exclude each other"),
        (["{model}", "--task", "pubmed-section"], "pubmed-sections"),
        (["{model}", "--task", "pubmed-sections"], "corpus"),
        (["{model}", "--task", "none.jsonl"], "no such file"),
        (["{model}", "--against", "{model}"], "held-out text"),
        (["{model}", "--task", "questions.jsonl", "--template", "lettres"], "lettres"),
        (["{model}", "--task", "questions.jsonl", "--shots", "-1"], "--shots"),
        (["{model}", "--task", "questions.jsonl", "--shots", "12"], "too few for 12 shots"),
        (["no/model", "--task", "questions.jsonl"], "no/model"),
    ],
)
def test_invalid_usage_is_one_line(
    meditron: Command, model: Path, questions: Path, words: list[str], expected: str
) -> None:
    completed = meditron("evaluate", *[word.format(model=model) for word in words])
    assert completed.code == 2
    assert completed.out == ""
    errors = [line for line in completed.err.splitlines() if line.startswith(("meditron: error: ", "hint: "))]
    assert expected in "\n".join(errors)


@pytest.mark.parametrize("way", ["same", "link", "hard link", "spelling"])
def test_the_question_file_is_never_overwritten(
    meditron: Command, model: Path, questions: Path, tmp_path: Path, way: str
) -> None:
    """`--out` names the folder where the rows' file would be the question file itself."""
    content = questions.read_text().rstrip("\n")  # its last line looks like one that a kill tore
    questions.write_text(content)
    out = tmp_path
    if way == "link":
        (tmp_path / "elsewhere").symlink_to(tmp_path)
        out = tmp_path / "elsewhere"
    elif way == "hard link":
        out = tmp_path / "other"
        out.mkdir()
        (out / "questions.jsonl").hardlink_to(questions)
    elif way == "spelling":
        out = tmp_path / "sub" / ".."
        (tmp_path / "sub").mkdir()
    completed = meditron("evaluate", model, "--task", questions, "--out", out)
    assert completed.code == 2
    assert "never overwritten" in completed.err
    assert questions.read_text() == content


def test_another_file_with_the_rows_name_is_refused(
    meditron: Command, model: Path, questions: Path, tmp_path: Path
) -> None:
    model_rows = tmp_path / "out" / "questions.jsonl"
    model_rows.parent.mkdir()
    model_rows.write_text('{"question": "mine"}')
    completed = meditron("evaluate", model, "--task", questions, "--out", model_rows.parent)
    assert completed.code == 1
    assert "not a file of answers" in completed.err
    assert model_rows.read_text() == '{"question": "mine"}'


def test_rows_of_other_settings_models_and_files_stay(
    meditron: Command, model: Path, questions: Path, tmp_path: Path
) -> None:
    other = tmp_path / "b" / "questions.jsonl"
    other.parent.mkdir()
    other.write_text(
        "".join(json.dumps(row | {"question": f"{row['question']}!"}) + "\n" for row in QUESTIONS)
    )
    ask = ("evaluate", model, "--out", tmp_path / "out", "--task")
    runs = [
        (questions,),
        (questions, "--shots", "2"),
        (questions, "--questions", "5"),
        (other,),
        (questions,),
    ]
    for words in (*runs, (questions, "--rule", "bytes")):
        assert meditron(*ask, *words).code == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == 12 + 12 + 5 + 12 + 12
    assert len({row["data_sha256"] for row in rows}) == 2


def test_both_prompt_forms_have_scores_of_their_own(meditron: Command, model: Path, questions: Path) -> None:
    result = json.loads(
        meditron("evaluate", model, "--task", questions, "--prompt-form", "both", "--json").out
    )
    assert (result["task"], result["prompt_form"]) == ("questions", "raw")
    assert (result["raw"]["task"], result["raw"]["accuracy"]) == ("questions (raw)", result["accuracy"])
    assert result["ancestry"][str(model)]["statement"].startswith("Training data unknown")


def test_repeated_questions_are_counted_with_a_warning(
    meditron: Command, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "repeats.jsonl"
    rows = [row | {"question": "The same one?", "id": f"r{n}"} for n, row in enumerate(QUESTIONS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    completed = meditron("evaluate", model, "--task", path, "--out", tmp_path / "out", "--json")
    result = json.loads(completed.out)
    assert (result["n"], result["repeated"]) == (12, 11)
    assert "11 of 12 questions repeat" in completed.err


def test_two_scores_of_one_model_are_explained(
    meditron: Command, model: Path, questions: Path, tmp_path: Path
) -> None:
    common = ("evaluate", model, "--task", questions, "--template")
    a, b = tmp_path / "a", tmp_path / "b"
    assert meditron(*common, "letters", "--out", a).code == 0
    assert meditron(*common, "texts", "--method", "next-token", "--out", b).code == 0
    together = meditron("explain", a, b)
    assert together.code == 0, together.err
    assert "template + method" in together.out
    assert "to separate factors, evaluate with template texts/1, with method as in a" in together.err
    run = ("--run", "--task", questions, "--out", tmp_path / "between")
    apart = meditron("explain", a, b, *run, "--json")
    assert apart.code == 0, apart.err
    record = json.loads(apart.out)
    assert [effect["factors"] for effect in record["effects"]] == [["template"], ["method"]]
    total = sum(effect["difference"] for effect in record["effects"])
    assert total == pytest.approx(record["difference"])
    assert record["difference"] == pytest.approx(record["accuracy_b"] - record["accuracy_a"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--run",), "--run needs the task"),
        (("--a", "shots"), "--a shots: not NAME=VALUE"),
        (("--b", "shots=9"), "has no evaluation of questions with these settings"),
    ],
)
def test_wrong_requests_for_an_explanation(
    meditron: Command, model: Path, questions: Path, words: tuple[str, ...], message: str
) -> None:
    assert meditron("evaluate", model, "--task", questions, "--out", "a").code == 0
    failed = meditron("explain", "a", "a", *words)
    assert failed.code == 2
    assert message in failed.err


def test_the_command_on_two_processes_writes_the_bytes_of_one(
    meditron: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a CPU a matrix product rounds differently with another number of threads.
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"question": f"Is {n * n} odd?{' ?' * (n % 7)}", "options": ["no", "yes"], "gold": n % 2}
        for n in range(150)
    ]
    questions.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    arguments = ("evaluate", model, "--task", questions, "--resamples", "100", "--json")
    methods = ("--method", "loglikelihood", "--method", "self-consistency", "--max-tokens", "2")
    outputs = []
    for name, nproc in (("one", "1"), ("two", "2")):
        completed = meditron(*arguments, *methods, "--nproc", nproc, "--out", tmp_path / name)
        assert completed.code == 0, completed.err
        outputs.append(json.loads(completed.out) | {"rows": ""})
    assert outputs[0] == outputs[1]
    one, two = ((tmp_path / name / "questions.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two
    refused = meditron("evaluate", "api:http://localhost:1/v1", "--task", questions, "--nproc", "2")
    assert refused.code == 2
    assert "behind a server, which 2 processes do not make faster" in refused.err


def test_a_stored_prompt_comes_before_each_question_and_gets_the_score(
    meditron: Command, model: Path, questions: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "prompts"
    evaluate = ("evaluate", model, "--task", questions, "--questions", "4", "--json", "--prompts", folder)
    assert meditron("prompts", "add", "brief", "--from", "one-shot-medical", "--prompts", folder).code == 0
    plain = json.loads(meditron(*evaluate).out)
    assert plain["system_prompt"] is None
    done = meditron(*evaluate, "--system-prompt", "brief")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["prompt_sha256"] != plain["prompt_sha256"]
    shown = json.loads(meditron("prompts", "score", "brief", "--json", "--prompts", folder).out)
    version = json.loads(meditron("prompts", "show", "brief", "--json", "--prompts", folder).out)["version"]
    assert result["system_prompt"] == f"brief@{version}"
    [score] = shown["scores"]
    assert (score["version"], score["n"], score["accuracy"]) == (version, 4, result["accuracy"])
    rows = [json.loads(line) for line in Path(result["rows"]).read_text(encoding="utf-8").splitlines()]
    assert {row["system_prompt"] for row in rows} == {None, f"brief@{version}"}
    # The text itself, as a template, gives the same prompts and so the same scores.
    text = PromptStore(folder).find("brief").text
    [example, answer] = text.messages
    introduction = f"{text.system}\n\nQuestion: {example.content}\nAnswer: {answer.content}\n\n"
    template = tmp_path / "mine.toml"
    letters = PROMPT_TEMPLATES["letters"]
    keys = {"introduction": introduction, **{k: getattr(letters, k) for k in ("question", "option", "cue")}}
    lines = [f"{key} = {json.dumps(text)}\n" for key, text in keys.items()]
    template.write_text("".join(["version = 1\nanswer = 'letter'\n", *lines]), encoding="utf-8")
    same = json.loads(meditron(*evaluate, "--template", template).out)
    assert same["prompt_sha256"] == result["prompt_sha256"]
    for words, problem in [
        (["--system-prompt", "nothing"], "no prompt 'nothing'"),
        (["--system-prompt", "asks"], "the prompt's variable who has no value"),
    ]:
        meditron("prompts", "add", "asks", "--system", "{{who}}?", "--prompts", folder)
        refused = meditron(*evaluate, *words)
        assert refused.code == 2
        assert problem in refused.err


def test_a_stored_prompt_is_part_of_the_chat_messages(
    meditron: Command, tmp_path: Path, questions: Path
) -> None:
    folder, prompts = tiny_hf(tmp_path / "chat", control=CHAT), tmp_path / "prompts"
    training = Training(stage="f", kind="finetune", data="d", data_digest="x", chat_template="chatml")
    write_ancestry(folder, Ancestry(base="b", base_digest="x", trainings=(training,)))
    assert meditron("prompts", "add", "brief", "--system", "Be brief.", "--prompts", prompts).code == 0
    evaluate = ("evaluate", folder, "--task", questions, "--questions", "2", "--json", "--prompts", prompts)
    done = meditron(*evaluate, "--system-prompt", "brief")
    assert done.code == 0, done.err
    prompt = PromptStore(prompts).find("brief")
    eval_set = EvalSet.from_task(
        open_task(str(questions)), EvalOptions(questions=2), seed=1, stored_prompt=prompt
    )[0]
    local = LocalModel(str(folder), Artifact(str(folder), folder, ""), "float32")
    first, *_ = eval_set.prompts(local)
    assert first.messages[0] == {"role": "system", "content": "Be brief."}
    assert first.rendered.prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert first.unconditional_messages[0] == first.messages[0]
