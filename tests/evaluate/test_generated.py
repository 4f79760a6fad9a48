"""Methods that generate text: votes, early stopping, seeds, resumption, forced choices and servers."""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server import Server, running_server
from meditron.core.errors import EngineError, UsageError
from meditron.engine.torch_engine import TorchEngine
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.methods.generated import GeneratedRow, count_votes, is_decided, sample_seed
from meditron.evaluate.rows import QuestionRow
from meditron.evaluate.rows_file import read_rows
from meditron.evaluate.standalone import evaluate_on_task
from meditron.model.weights import save_gguf
from meditron.text.tokenizer import load_tokenizer
from tiny import tiny_hf

VOTES = st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=9)


@given(VOTES)
def test_a_decided_vote_keeps_its_winner(votes):
    for done in range(1, len(votes) + 1):
        if is_decided(votes[:done], len(votes) - done):
            assert count_votes(votes[:done]) == count_votes(votes)


@pytest.mark.parametrize("done", [1, 2, 3, 4])
def test_a_vote_is_decided_as_soon_as_nothing_can_change_it(done):
    """Over all votes of five samples for three options: decided if and only if all completions agree."""
    choices = (None, 0, 1, 2)
    for votes in product(choices, repeat=done):
        winners = {count_votes((*votes, *rest)) for rest in product(choices, repeat=5 - done)}
        assert is_decided(votes, 5 - done) == (len(winners) == 1)


def test_abstentions_do_not_vote_and_ties_go_to_the_first_vote():
    assert count_votes([None, 2, None, None]) == 2
    assert count_votes([3, 1, 1, 3]) == 3
    assert count_votes([None, None]) is None


def test_the_seed_of_a_sample_depends_on_its_question_and_number_alone():
    seeds = {sample_seed(seed, f"q{q}", i) for seed in range(3) for q in range(20) for i in range(5)}
    assert len(seeds) == 300
    assert max(seeds) < 1 << 31
    assert sample_seed(5, "q1", 0) == 249975915  # results of earlier runs must stay reproducible


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("generated") / "model", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def gguf(model: Path) -> Path:
    path = model.with_name("tiny-F32.gguf")
    with TorchEngine.load(str(model)) as engine:
        save_gguf(engine.model, engine.model.config, engine.tokenizer, path, "F32")
    return path


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        server.text = lambda prompt, seed: f"Hm. The answer is {'ABCX'[seed % 4]}."
        yield server


def options(**changes: object) -> EvalOptions:
    settings = {"methods": ("self-consistency",), "max_tokens": 12, "samples": 5, "questions": 20}
    return EvalOptions(**{**settings, **changes})


def rows_of(path: Path) -> list[GeneratedRow]:
    rows = read_rows(path, QuestionRow)
    assert all(isinstance(row, GeneratedRow) for row in rows)
    return rows  # type: ignore[return-value]


def evaluate(model: object, task: Path, out: Path, settings: EvalOptions, seed: int = 5):
    result, path = evaluate_on_task(str(model), str(task), settings, template="letters", out=out, seed=seed)
    [score] = next(iter(result.tasks.values())).values()
    return score, path


@pytest.mark.parametrize("engine", ["torch", "llama.cpp"])
def test_a_run_repeats_exactly_and_a_resumed_run_equals_it(
    model: Path, gguf: Path, task_file: Path, tmp_path: Path, engine: str
):
    settings = options(engine=engine, max_tokens=8, samples=3)
    source = model if engine == "torch" else gguf
    score, path = evaluate(source, task_file, tmp_path / "a", settings)
    content = path.read_bytes()
    rows = rows_of(path)
    assert len(rows) == 20
    assert all(row.outputs and all(text.strip() for text in row.outputs) for row in rows)
    assert all(row.prediction == count_votes(row.votes) for row in rows)
    assert score.parse_rate == sum(row.prediction is not None for row in rows) / 20
    assert score.generation is not None
    assert score.generation.outputs == sum(len(row.outputs) for row in rows)
    assert {row.engine for row in rows} == {engine}
    _, again = evaluate(source, task_file, tmp_path / "b", settings)
    assert again.read_bytes() == content
    lines = content.splitlines(keepends=True)
    again.write_bytes(b"".join(lines[:7]) + lines[7][:30])  # killed while it wrote a row
    _, resumed = evaluate(source, task_file, tmp_path / "b", settings)
    assert resumed.read_bytes() == content
    _, other = evaluate(source, task_file, tmp_path / "c", settings, seed=6)
    assert {row.outputs for row in rows_of(other)} != {row.outputs for row in rows}


def test_early_stopping_gives_the_same_winner(gguf: Path, task_file: Path, tmp_path: Path):
    """In llama.cpp with one slot the samples themselves are equal. The choice is forced, so that all vote."""
    winners = {}
    for early_stop in (True, False):
        settings = options(engine="llama.cpp", early_stop=early_stop, extraction="forced", max_tokens=6)
        _, path = evaluate(gguf, task_file, tmp_path / str(early_stop), settings)
        winners[early_stop] = {row.id: row for row in rows_of(path)}
    saved = 0
    for question, row in winners[True].items():
        full = winners[False][question]
        assert len(full.votes) == 5
        assert row.prediction == full.prediction
        assert row.outputs == full.outputs[: len(row.outputs)]
        saved += 5 - len(row.votes)
    assert saved > 0


def test_chain_of_thought_is_greedy_and_forced_choices_always_answer(
    model: Path, task_file: Path, tmp_path: Path
):
    settings = options(methods=("cot",), extraction="forced", max_tokens=6)
    score, path = evaluate(model, task_file, tmp_path / "a", settings, seed=1)
    _, other = evaluate(model, task_file, tmp_path / "b", settings, seed=2)
    assert [row.outputs for row in rows_of(path)] == [row.outputs for row in rows_of(other)]
    assert score.parse_rate == 1
    assert {len(row.votes) for row in rows_of(path)} == {1}


def test_a_server_needs_no_tokenizer_but_cannot_be_forced(server: Server, task_file: Path, tmp_path: Path):
    score, path = evaluate(f"api:{server.url}#toy", task_file, tmp_path / "a", options())
    rows = rows_of(path)
    for row in rows:
        expected = [sample_seed(5, row.id, number) % 4 for number in range(len(row.votes))]
        assert list(row.votes) == [None if letter == 3 else letter for letter in expected]
    assert (score.engine, score.prompt_form) == ("api", "server")
    assert all("messages" in body for body in server.bodies)
    with pytest.raises(UsageError, match="lacks the capability GivesLogits"):
        evaluate(f"api:{server.url}#toy", task_file, tmp_path / "b", options(extraction="forced"))
    with pytest.raises(UsageError, match="behind a server"):
        evaluate(f"api:{server.url}#toy", task_file, tmp_path / "b", options(engine="torch"))


def test_a_server_that_dies_loses_nothing(server: Server, task_file: Path, tmp_path: Path):
    _, path = evaluate(f"api:{server.url}#toy", task_file, tmp_path / "whole", options())
    whole = path.read_bytes()
    first_bodies = len(server.bodies)
    requests = first_bodies * 9 // 10  # in the second of two groups
    server.failures = lambda prompt, attempt: "400" if len(server.bodies) > first_bodies + requests else ""
    with pytest.raises(EngineError, match="HTTP 400"):
        evaluate(f"api:{server.url}#toy", task_file, tmp_path / "killed", options())
    kept = len((tmp_path / "killed" / "drugs.jsonl").read_bytes().splitlines())
    assert 0 < kept < 20
    server.failures = lambda prompt, attempt: ""
    _, resumed = evaluate(f"api:{server.url}#toy", task_file, tmp_path / "killed", options())
    assert resumed.read_bytes() == whole
    ids = [json.loads(line)["id"] for line in resumed.read_bytes().splitlines()]
    assert len(ids) == len(set(ids)) == 20


def test_the_constrained_next_token_is_the_best_option_of_one_token(tmp_path: Path):
    model = tiny_hf(tmp_path / "model", vocabulary=600)
    words = ["the", "of", "in", "and"]
    tokenizer = load_tokenizer(model)
    assert {len(tokenizer.encode(f"a {word}")) - len(tokenizer.encode("a")) for word in words} == {1}
    task = tmp_path / "words.jsonl"
    questions = [
        {"question": f"Which word is number {n}?", "options": words, "gold": n % 4} for n in range(20)
    ]
    task.write_text("".join(json.dumps(row) + "\n" for row in questions), encoding="utf-8")
    both = options(methods=("loglikelihood", "next-token"), constrained=True)
    _, path = evaluate_on_task(str(model), str(task), both, template="texts", out=tmp_path / "out")
    predictions: dict[str, dict[str, int | None]] = {}
    for row in read_rows(path, QuestionRow):
        predictions.setdefault(row.method, {})[row.id] = row.prediction
    assert predictions["next-token"] == predictions["loglikelihood"]
    free = options(methods=("next-token",))
    result, _ = evaluate_on_task(str(model), str(task), free, template="texts", out=tmp_path / "out")
    [score] = result.tasks[str(model)].values()
    assert not score.constrained
    assert score.parse_rate < 1  # random weights: the likeliest token of all is no letter


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match=r"llama\.cpp gives no log-probabilities"):
        EvalOptions(engine="llama.cpp")
    with pytest.raises(ValueError, match="temperature must be above 0 for self-consistency"):
        EvalOptions(methods=("self-consistency",), temperature=0)
