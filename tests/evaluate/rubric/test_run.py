"""Rubric evaluations from end to end: retries, resumption, engines, the command and the recipe's stage."""

import json
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from api_server import Server, scripted_judge
from meditron.core.errors import EngineError, InputError, UsageError
from meditron.engine.torch_engine import TorchEngine
from meditron.evaluate.config import EvalOptions, EvaluateConfig
from meditron.evaluate.ranks import EvalRanks
from meditron.evaluate.rows_file import read_rows
from meditron.evaluate.rubric.rows import AnswerRow, JudgementRow, text_sha256
from meditron.evaluate.rubric.run import RubricEvaluation
from meditron.evaluate.stage import run
from meditron.evaluate.standalone import evaluate_on_rubrics
from meditron.model.weights import save_gguf
from meditron.release.quantize import quantize
from meditron.store.manifest import Artifact
from meditron.store.results import read_results
from meditron.store.rubric_results import RubricScore
from rubric_rows import names, rubric_rows
from tiny import tiny_hf

ANSWERS, JUDGEMENTS, PAGE = "rubrics-hb.answers.jsonl", "rubrics-hb.judgements.jsonl", "rubrics-hb.html"


def evaluate(model: str, judges: list[str], file: Path, out: Path, **changes: object) -> RubricScore:
    words = {"judges": tuple(judges), "resamples": 300, "max_tokens": 20, "judge_max_tokens": 20}
    result, _ = evaluate_on_rubrics(model, file, EvalOptions.model_validate(words | changes), out=out)
    [[score]] = [by_set.values() for by_set in result.rubrics.values()]
    return score


def test_rows_and_scores_have_the_whole_identity_of_the_judge(
    model_server: Server, judge_server: Server, rubric_file: Path, tmp_path: Path
) -> None:
    judge = f"api:{judge_server.url}#judge"
    settings: dict[str, Any] = {"judge_max_tokens": 33, "questions": 5}
    score = evaluate(f"api:{model_server.url}#toy", [judge], rubric_file, tmp_path, **settings)
    rows = read_rows(tmp_path / JUDGEMENTS, JudgementRow)
    assert len(rows) == 20
    [record] = score.judges
    assert record.identity["model"] == "judge"
    assert record.identity["url"] == judge_server.url
    for row in rows:
        assert (row.judge, row.judge_digest, row.judge_engine) == (record.name, record.digest, "api")
        assert (row.judge_prompt, row.judge_prompt_sha256) == (record.prompt, record.prompt_sha256)
        assert (row.temperature, row.max_tokens, row.attempts, row.seed) == (0, 33, 3, 1)
        assert row.rubrics_sha256 == score.rubrics_sha256
    sent = {text_sha256(body["messages"][0]["content"]) for body in judge_server.bodies}
    assert sent == {row.prompt_sha256 for row in rows}
    assert {body["max_tokens"] for body in judge_server.bodies} == {33}
    answers = read_rows(tmp_path / ANSWERS, AnswerRow)
    assert {row.answer_sha256 for row in answers} == {row.answer_sha256 for row in rows}
    # Another prompt is another judge: everything is judged again.
    prompt = tmp_path / "own.toml"
    prompt.write_text('version = 3\nanswer = "json"\ntext = "{conversation}|{answer}|{criterion}|{points}"')
    judge_server.text = lambda text, seed: '{"criteria_met": true}'
    settings["judge_prompt"] = str(prompt)
    own = evaluate(f"api:{model_server.url}#toy", [judge], rubric_file, tmp_path, **settings)
    assert own.judges[0].prompt == "own/3"
    assert own.met_rate == 1
    assert len(model_server.bodies) == 5
    assert len(read_rows(tmp_path / JUDGEMENTS, JudgementRow)) == 40


def test_a_text_without_a_verdict_is_requested_again_at_a_higher_temperature(
    model_server: Server, judge_server: Server, rubric_file: Path, tmp_path: Path
) -> None:
    asked: Counter[tuple[str, str]] = Counter()

    def decide(answer: str, criterion: str) -> bool | str:
        asked[answer, criterion] += 1
        late = {"Names FEVER": 2, "Names WAIT": 99}.get(criterion, 0)
        return "Who knows." if asked[answer, criterion] <= late else names(answer, criterion)

    judge_server.text = scripted_judge(decide)
    score = evaluate(
        f"api:{model_server.url}#toy",
        [f"api:{judge_server.url}#judge"],
        rubric_file,
        tmp_path,
        judge_attempts=4,
    )
    [judge] = score.judge_scores
    assert (judge.missing, judge.retried) == (12, 24)
    rows = read_rows(tmp_path / JUDGEMENTS, JudgementRow)
    assert Counter(
        (row.criterion, len(row.outputs), row.met) for row in rows if "CASE" not in row.criterion
    ) == {
        ("Names FEVER", 3, True): 12,
        ("Names WAIT", 4, None): 12,
    }
    sent = [(body["temperature"], body["seed"]) for body in judge_server.bodies]
    assert Counter(temperature for temperature, _ in sent) == {0: 48, 0.7: 12 * 2 + 12 * 3}
    assert len({*sent}) == len(sent)  # each attempt has a seed of its own


def test_a_killed_evaluation_judges_nothing_twice(
    model_server: Server, judge_server: Server, rubric_file: Path, tmp_path: Path
) -> None:
    model, judge = f"api:{model_server.url}#toy", f"api:{judge_server.url}#judge"
    evaluate(model, [judge], rubric_file, tmp_path / "whole")
    for server in (model_server, judge_server):
        server.bodies.clear()
        server.attempts.clear()
    out = tmp_path / "killed"
    # Forked: the child has all imports already, and is killed before it computes anything.
    process = get_context("fork").Process(
        target=evaluate, args=(model, [judge], rubric_file, out), kwargs={"concurrency": 2}
    )
    process.start()
    while process.is_alive() and not (
        (out / JUDGEMENTS).exists() and (out / JUDGEMENTS).read_bytes().count(b"\n") >= 8
    ):
        time.sleep(0.002)
    process.kill()
    process.join()
    kept = (out / JUDGEMENTS).read_bytes()
    assert 8 <= kept.count(b"\n") < 48
    (out / JUDGEMENTS).write_bytes(kept + kept[:30])
    evaluate(model, [judge], rubric_file, out, concurrency=2)
    for name in (ANSWERS, JUDGEMENTS):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert set(model_server.attempts.values()) == {1}
    twice = [prompt for prompt, attempts in judge_server.attempts.items() if attempts > 1]
    assert len(twice) <= 2  # those in flight at the kill
    assert len(judge_server.bodies) == 48 + len(twice)


def test_a_judge_that_fails_for_good_loses_no_verdict(
    model_server: Server, judge_server: Server, rubric_file: Path, tmp_path: Path
) -> None:
    model, judge = f"api:{model_server.url}#toy", f"api:{judge_server.url}#judge"
    given = []

    def fail(prompt: str, attempt: int) -> str:
        if len(judge_server.bodies) > 30:
            return "400"
        given.append(prompt)
        return ""

    judge_server.failures = fail
    with pytest.raises(EngineError, match="HTTP 400"):
        evaluate(model, [judge], rubric_file, tmp_path)
    kept = {row.prompt_sha256 for row in read_rows(tmp_path / JUDGEMENTS, JudgementRow)}
    assert kept == set(map(text_sha256, given))  # also those that arrived after the first failure
    judge_server.failures = lambda prompt, attempt: ""
    judge_server.bodies.clear()
    score = evaluate(model, [judge], rubric_file, tmp_path)
    assert score.missing == 0
    assert len(judge_server.bodies) == 48 - len(kept)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("rubric") / "model", max_position_embeddings=4096)


@pytest.mark.parametrize("engine", ["torch", "llama.cpp"])
def test_a_local_judge_repeats_exactly_and_resumes(
    tiny_model: Path, rubric_file: Path, tmp_path: Path, engine: str
) -> None:
    """A judge of random weights gives no verdicts; none is invented."""
    judge = tiny_model
    if engine == "llama.cpp":
        judge = tmp_path / "tiny-Q8_0.gguf"
        with TorchEngine.load(str(tiny_model)) as opened:
            save_gguf(opened.model, opened.model.config, opened.tokenizer, tmp_path / "tiny-F32.gguf", "F32")
        quantize(str(tmp_path / "tiny-F32.gguf"), ["Q8_0"], tmp_path)
    prompt = tmp_path / "short.toml"
    prompt.write_text('version = 1\nanswer = "verdict"\ntext = "{conversation} {answer} {criterion}"')
    settings: dict[str, Any] = {"questions": 5, "max_tokens": 4, "judge_max_tokens": 3, "judge_attempts": 1}
    settings["judge_prompt"] = str(prompt)
    score = evaluate(str(tiny_model), [str(judge)], rubric_file, tmp_path / "a", **settings)
    assert (score.n, score.unscored, score.score, score.missing) == (0, 5, None, 20)
    assert score.bounds[0] == 0
    assert score.judges[0].engine == engine
    content = (tmp_path / "a" / JUDGEMENTS).read_bytes()
    again = tmp_path / "b"
    evaluate(str(tiny_model), [str(judge)], rubric_file, again, **settings)
    assert (again / JUDGEMENTS).read_bytes() == content
    lines = content.splitlines(keepends=True)
    (again / JUDGEMENTS).write_bytes(b"".join(lines[:9]) + lines[9][:25])
    evaluate(str(tiny_model), [str(judge)], rubric_file, again, **settings)
    assert (again / JUDGEMENTS).read_bytes() == content


def test_prompts_that_do_not_fit(
    tiny_model: Path, model_server: Server, judge_server: Server, rubric_file: Path, tmp_path: Path
) -> None:
    """A judge without space gives no verdict; a model without space for a conversation is an error."""
    short = tiny_hf(tmp_path / "short", max_position_embeddings=64)
    score = evaluate(f"api:{model_server.url}#toy", [str(short)], rubric_file, tmp_path / "a", questions=2)
    assert score.missing == 8
    assert {row.outputs for row in read_rows(tmp_path / "a" / JUDGEMENTS, JudgementRow)} == {()}
    row = json.loads(rubric_file.read_text(encoding="utf-8").splitlines()[0])
    row["prompt"][0]["content"] *= 10
    rubric_file.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(UsageError, match=r"the conversation p00 has \d+ tokens, more than its context of 64"):
        evaluate(str(short), [f"api:{judge_server.url}#judge"], rubric_file, tmp_path / "b")


def test_a_model_that_judges_itself_is_marked(
    model_server: Server, rubric_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = scripted_judge(names)
    model_server.text = lambda prompt, seed: (
        judge(prompt, seed) if "ANSWER TO GRADE" in prompt else prompt.upper()
    )
    model = f"api:{model_server.url}#toy"
    score = evaluate(model, [model], rubric_file, tmp_path, questions=2)
    assert score.judge_scores[0].own_answers
    assert "judges its own answers" in capsys.readouterr().err


def test_answers_cannot_hide_markup_in_the_page(
    model_server: Server, judge_server: Server, rubric_file: Path, tmp_path: Path
) -> None:
    model_server.text = lambda prompt, seed: "<script>alert(1)</script> Verdict: met FEVER"
    evaluate(f"api:{model_server.url}#toy", [f"api:{judge_server.url}#judge"], rubric_file, tmp_path)
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def recorded(function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        calls.append(function.__name__)
        return function(*arguments)

    return call


def test_the_stage_scores_and_compares_models(
    corpus: Path,
    tiny: Path,
    other_tiny: Path,
    judge_server: Server,
    rubric_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The judge decides by the answer's length, so that two models of random weights differ."""
    # Ranks wait for each other in `gather`: none may wait while rank 0 lets a model write its open answers.
    calls: list[str] = []
    for owner, name in ((EvalRanks, "gather"), (RubricEvaluation, "answer")):
        monkeypatch.setattr(owner, name, recorded(getattr(owner, name), calls))
    judge_server.text = scripted_judge(lambda answer, criterion: len(answer) % 3 == 0)
    second_file = tmp_path / "second.jsonl"
    second_file.write_text("\n".join(map(json.dumps, rubric_rows(4))), encoding="utf-8")
    config = EvaluateConfig.model_validate(
        {
            "models": ("base", "finetune"),
            "rubrics": (str(rubric_file), str(second_file)),
            "judges": (f"api:{judge_server.url}#judge",),
            "max_tokens": 8,
            "documents": 4,
            "resamples": 300,
            "seed": 1,
        }
    )
    files = {str(file): file for file in (rubric_file, second_file)}
    paths = {"base": tiny, "finetune": other_tiny, "corpus": corpus} | files
    assert config.inputs().keys() == paths.keys()
    inputs = {name: Artifact(name, path, f"{name}'s digest") for name, path in paths.items()}
    out = tmp_path / "out"
    metrics = run(config, inputs, out)
    assert calls[-2:] == ["answer"] * 2
    assert {*calls[:-2]} == {"gather"}
    result = read_results(out)
    assert metrics["rubrics"].keys() == result.rubrics.keys() == {"base", "finetune"}
    scores = {name: by_set["hb"] for name, by_set in result.rubrics.items()}
    assert {name: by_set["second"].n for name, by_set in result.rubrics.items()} == {"base": 4, "finetune": 4}
    assert {len(score.judge_scores) for by_set in result.rubrics.values() for score in by_set.values()} == {1}
    difference, second = result.rubric_differences
    assert (second.task, second.n) == ("second", 4)
    assert (difference.a, difference.b, difference.n) == ("base", "finetune", 12)
    assert difference.difference == pytest.approx(scores["finetune"].mean - scores["base"].mean)  # type: ignore[operator]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Rubrics hb" in page
    assert PAGE in page
    answers = (out / PAGE).read_text(encoding="utf-8")
    assert answers.count("p00 · ") == 2
    sent = len(judge_server.bodies)
    run(config, inputs, out)
    assert len(judge_server.bodies) == sent


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"judges": ()}, "judges: rubrics need at least one"),
        ({"rubrics": ()}, "judges: there are no rubrics to judge by"),
        ({"rubrics": (), "judges": (), "labels": "l.jsonl"}, "labels: there are no rubrics"),
        ({"prompt_form": "both"}, "prompt_form: rubrics are answered in one form"),
        ({"judges": ("base", "base")}, "'base' is listed twice"),
        ({"judges": ("api:http://me:secret@host/v1#m",)}, "must have no credentials or query"),
        ({"rubrics": ("a/hb.jsonl", "b/hb.jsonl")}, "would both be named 'hb'"),
        ({"rubrics": ("healthbench",)}, "is not a file"),
        ({"judge_attempts": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], problem: str) -> None:
    words = {"models": ("base",), "rubrics": ("hb.jsonl",), "judges": ("base",)}
    EvaluateConfig.model_validate(words)
    with pytest.raises(ValidationError) as raised:
        EvaluateConfig.model_validate(words | changes)
    assert problem in str(raised.value)
    assert "secret" not in str(raised.value).replace("input_value", "")[:200] or "api" not in problem


def test_labels_are_refused_with_their_line(rubric_file: Path, tmp_path: Path) -> None:
    label = {"id": "p00", "answer_sha256": "a" * 64, "criterion": "Names FEVER", "met": True}
    cases = {
        "met: Input should be a valid boolean": [label | {"met": "perhaps"}],
        "answer_sha256: String should match": [label | {"answer_sha256": "abc"}],
        "criterion: Field required": [{"id": "p00", "answer_sha256": "a" * 64, "met": False}],
        "a second label of the rater '' for this criterion": [label, label],
    }
    file = tmp_path / "labels.jsonl"
    for problem, rows in cases.items():
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        with pytest.raises(InputError) as raised:
            evaluate(
                "api:http://127.0.0.1:1/v1#m",
                ["api:http://127.0.0.1:1/v1#j"],
                rubric_file,
                tmp_path,
                labels=str(file),
            )
        assert problem in str(raised.value)
        assert f"line {len(rows)}" in str(raised.value)


@pytest.mark.network
@pytest.mark.slow
def test_a_real_judge_gives_verdicts(
    smollm2_gguf: Path, model_server: Server, rubric_file: Path, tmp_path: Path
) -> None:
    """SmolLM2-135M is too small to judge; it can repeat a line in the form of a verdict."""
    prompt = tmp_path / "repeat.toml"
    text = "{conversation} {answer} {criterion}\\nRepeat exactly this line and nothing else: Verdict: met"
    prompt.write_text(f'version = 1\nanswer = "verdict"\ntext = "{text}"', encoding="utf-8")
    score = evaluate(
        f"api:{model_server.url}#toy",
        [str(smollm2_gguf)],
        rubric_file,
        tmp_path,
        questions=1,
        judge_max_tokens=10,
        judge_attempts=1,
        judge_prompt=str(prompt),
    )
    assert (score.judges[0].engine, score.judges[0].form) == ("llama.cpp", "tokenizer")
    assert score.criteria == 4
    assert score.missing < 4
    assert score.met_rate == 1
