"""Joints of evaluation: a method registered from a test, and an engine without tokenizer or digest."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.request import Request, urlopen

import pytest

from evaluate.toy_vote import SAMPLES, ToyVote, ToyVoteRow
from meditron.core.errors import InputError, UsageError
from meditron.engine.base import Generates, Generation, GivesLogits, Prompt, Reply, ScoresTokens
from meditron.evaluate.compare import compare_results
from meditron.evaluate.config import EvalOptions, EvaluateConfig
from meditron.evaluate.methods.loglikelihood import LoglikelihoodRow
from meditron.evaluate.methods.next_token import NextTokenRow
from meditron.evaluate.methods.registry import METHODS
from meditron.evaluate.model import EvalModel
from meditron.evaluate.rows import QuestionRow
from meditron.evaluate.rows_file import read_rows
from meditron.evaluate.stage import run
from meditron.evaluate.standalone import evaluate_on_task
from meditron.store.manifest import Artifact
from meditron.store.results import read_results


@pytest.fixture
def toy_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, ToyVote.name, "evaluate.toy_vote:ToyVote")


class _Handler(BaseHTTPRequestHandler):
    """Answers every prompt with the letter A, except that every third sample names no option."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.prompts.append(request["prompt"])  # type: ignore[attr-defined]
        text = "I do not know." if request["seed"] % 3 == 0 else "The answer is A."
        body = json.dumps({"text": text, "tokens": 5}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.prompts = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class RemoteEngine(Generates):
    """An engine behind HTTP: it generates, and has neither tokenizer nor weights."""

    def __init__(self, url: str, date: str) -> None:
        self._url, self._date = url, date
        self.closed = False

    @property
    def context(self) -> int:
        return 4096

    @property
    def identity(self) -> Mapping[str, str]:
        return {"engine": "api", "url": self._url, "model": "toy-1", "date": self._date}

    def generate(self, prompt: Prompt, *, raw: bool = False, **options: Any) -> Reply:
        raise NotImplementedError

    def generate_batch(
        self, prompts: Sequence[Prompt], *, raw: bool = False, seed: int = 0, **options: Any
    ) -> list[Generation]:
        return [self._ask(str(prompt), seed + index) for index, prompt in enumerate(prompts)]

    def _ask(self, prompt: str, seed: int) -> Generation:
        data = json.dumps({"prompt": prompt, "seed": seed}).encode()
        with urlopen(Request(self._url, data)) as response:  # noqa: S310  # the server of this test
            answer = json.load(response)
        return Generation(answer["text"], answer["tokens"], 0.0, "end")

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def remote(server: ThreadingHTTPServer, date: str = "2026-11-28") -> EvalModel:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return EvalModel("api:toy-1", lambda: RemoteEngine(url, date))


@pytest.mark.usefixtures("toy_vote")
def test_a_remote_engine_is_evaluated_with_a_method_of_ones_own(
    server: ThreadingHTTPServer, task_file: Path, tmp_path: Path
) -> None:
    options = EvalOptions(methods=(ToyVote.name,), shots=2)
    model = remote(server)
    engine = model.engine
    assert isinstance(engine, RemoteEngine)
    result, path = evaluate_on_task(model, str(task_file), options, template="letters", out=tmp_path / "out")
    [score] = result.tasks["api:toy-1"].values()
    rows = read_rows(path, QuestionRow)
    assert len(server.prompts) == 30 * SAMPLES  # type: ignore[attr-defined]
    for row in rows:
        assert isinstance(row, ToyVoteRow)
        assert row.votes == (0, 0, None)
        assert (row.prediction, row.correct) == (0, row.gold == 0)
    assert (score.method, score.method_description) == (ToyVote.name, ToyVote.description)
    assert score.accuracy == sum(row.gold == 0 for row in rows) / 30
    assert (score.parse_rate, score.rule, score.option_probability_mass) == (1, None, None)
    url = f"http://127.0.0.1:{server.server_port}/v1"
    identity = {"engine": "api", "url": url, "model": "toy-1", "date": "2026-11-28"}
    assert result.identities == {"api:toy-1": identity}
    assert (score.engine, result.engines) == ("api", {"api:toy-1": "api"})
    assert not result.ancestry["api:toy-1"].known
    assert engine.closed


@pytest.mark.usefixtures("toy_vote")
def test_a_remote_evaluation_continues_on_another_day_and_compares(
    server: ThreadingHTTPServer, task_file: Path, tmp_path: Path
) -> None:
    options = EvalOptions(methods=(ToyVote.name,))
    first, path = evaluate_on_task(remote(server), str(task_file), options, out=tmp_path / "out")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    requests = len(server.prompts)  # type: ignore[attr-defined]
    later = remote(server, date="2026-11-29")
    second, _ = evaluate_on_task(later, str(task_file), options, out=tmp_path / "out")
    assert len(server.prompts) == 2 * requests  # type: ignore[attr-defined]  # groups are answered whole
    assert path.read_bytes().splitlines() == [line.rstrip() for line in lines]
    third, _ = evaluate_on_task(later, str(task_file), options, out=tmp_path / "out")
    assert len(server.prompts) == 2 * requests  # type: ignore[attr-defined]
    assert first.tasks == second.tasks == third.tasks
    [comparison] = compare_results(str(path), str(path))
    assert (comparison.n, comparison.difference) == (30, 0)


@pytest.mark.parametrize(
    ("method", "capability"), [("loglikelihood", "ScoresTokens"), ("next-token", "GivesLogits")]
)
def test_a_missing_capability_is_named_in_one_line(
    server: ThreadingHTTPServer, task_file: Path, tmp_path: Path, method: str, capability: str
) -> None:
    with pytest.raises(
        UsageError, match=f"api:toy-1: the engine 'api' lacks the capability {capability}"
    ) as e:
        evaluate_on_task(remote(server), str(task_file), EvalOptions(methods=(method,)), out=tmp_path / "out")
    assert "\n" not in e.value.message
    assert "--method" in str(e.value.hint)


def test_the_remote_engine_has_one_capability(server: ThreadingHTTPServer) -> None:
    engine = remote(server).engine
    assert isinstance(engine, Generates)
    assert not isinstance(engine, ScoresTokens | GivesLogits)


@pytest.mark.usefixtures("toy_vote")
def test_several_methods_have_scores_and_row_types_of_their_own(
    tiny: Path, corpus: Path, task_file: Path, tmp_path: Path
) -> None:
    paths = {"base": tiny, "corpus": corpus, str(task_file): task_file}
    inputs = {name: Artifact(name, path, "d") for name, path in paths.items()}
    methods = ("loglikelihood", "next-token", ToyVote.name)
    config = EvaluateConfig(
        models=("base",), tasks=(str(task_file),), methods=methods, seed=1, resamples=200, questions=6
    )
    run(config, inputs, tmp_path / "out")
    scores = read_results(tmp_path / "out").tasks["base"]
    assert {label: score.method for label, score in scores.items()} == {
        "drugs": "loglikelihood",
        "drugs (next-token)": "next-token",
        "drugs (toy-vote)": "toy-vote",
    }
    rows = read_rows(tmp_path / "out" / "drugs.jsonl", QuestionRow)
    types = [type(row) for row in rows]
    assert [types.count(kind) for kind in (LoglikelihoodRow, NextTokenRow, ToyVoteRow)] == [6, 6, 6]


def test_rows_of_an_unregistered_method_are_refused(task_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"model": "m", "method": "toy-vote"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"not a row of answers: line: .*toy-vote.*loglikelihood"):
        read_rows(path, QuestionRow)
