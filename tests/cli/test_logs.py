"""`meditron logs`: list, search, show, export, score, audit."""

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest

from command import Command, CommandResult
from meditron.serve.audit import AuditLog, last_events, verify_audit
from meditron.serve.request_log import RequestLog
from meditron.serve.state import ChatCall, Exchange
from serve.exchanges import exchange, prompted


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with RequestLog(tmp_path, content=True, retention_days=None) as log:
        log(exchange(id="aspirin-1", answers=("Aspirin.",), tags=("ward",)))
        log(prompted(id="queue-2", status=429, error="the queue is full", answers=()))
        log(exchange(id="old-3", started=time.time() - 10 * 86_400, person="bob"))
    return tmp_path


@pytest.fixture
def logs(meditron: Command, data: Path) -> Command:
    def run(*words: str | Path) -> CommandResult:
        return meditron("logs", *words, "--data", data)

    return run


def ids(result: CommandResult) -> list[str]:
    assert result.code == 0, result.err
    return [request["gen_ai.response.id"] for request in json.loads(result.out)["requests"]]


def fields(result: CommandResult) -> dict[str, Any]:
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_list_and_search(logs: Command) -> None:
    assert ids(logs("list", "--json")) == ["old-3", "queue-2", "aspirin-1"]
    assert ids(logs("list", "--limit", "1", "--json")) == ["old-3"]
    assert ids(logs("list", "--since", "7d", "--json")) == ["queue-2", "aspirin-1"]
    assert ids(logs("list", "--until", "7d", "--person", "bob", "--json")) == ["old-3"]
    assert ids(logs("list", "--status", "error", "--prompt", "triage", "--json")) == ["queue-2"]
    assert ids(logs("search", "aspirin", "--tag", "ward", "--json")) == ["aspirin-1"]
    assert "queue-2" in logs("search", "queue full").out
    assert ids(logs("search", "queue", "--search", "full", "--json")) == ["queue-2"]
    assert ids(logs("search", "queue", "--search", "aspirin", "--json")) == []
    table = logs("list")
    assert "the queue is full" in table.out
    assert logs("search", "nothing").code == 0


def test_show_and_score(logs: Command) -> None:
    assert logs("score", "aspirin-1", "rating", "4", "--as", "eva").code == 0
    assert logs("score", "aspirin", "thumbs", "-1").code == 0
    shown = fields(logs("show", "aspirin", "--json"))
    assert [(score["name"], score["value"], score["person"]) for score in shown["meditron.scores"]] == [
        ("rating", 4, "eva"), ("thumbs", -1, "local")
    ]  # fmt: skip
    text = logs("show", "aspirin-1").out
    assert "[assistant]\nAspirin." in text
    assert "gen_ai.usage.input_tokens: 20" in text
    for words, problem in [
        (["show", "nobody"], "no request 'nobody'"),
        (["score", "aspirin-1", "rating", "9"], "must be one of 1, 2, 3, 4, 5"),
        (["list", "--since", "yesterday"], "'yesterday' is no time"),
        (["list", "--status", "fine"], "status 'fine'"),
    ]:
        refused = logs(*words)
        assert refused.code == 2
        assert problem in refused.err


def test_export_is_complete_and_audited(logs: Command, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "log.csv"
    assert fields(logs("export", "--format", "csv", "--out", out, "--json", "--as", "eva"))["rows"] == 3
    with out.open(encoding="utf-8") as file:
        assert [row["gen_ai.response.id"] for row in csv.DictReader(file)] == [
            "old-3",
            "queue-2",
            "aspirin-1",
        ]
    lines = logs("export", "--search", "aspirin").out.splitlines()
    assert [json.loads(line)["gen_ai.response.id"] for line in lines] == ["aspirin-1"]
    events = fields(logs("audit", "--json"))["events"]
    assert [(event["event"], event["person"], event["rows"]) for event in events] == [
        ("export", "eva", 3), ("export", "local", 1)
    ]  # fmt: skip
    assert verify_audit(data).ok


def test_an_export_whose_reader_ends_is_audited(
    logs: Command, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(text: str) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("sys.stdout.write", broken)
    logs("export")
    monkeypatch.undo()
    [event] = last_events(data, 5)
    assert (event["event"], event["rows"]) == ("export", 3)


def test_a_replay_is_recorded_and_audited(logs: Command, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(call: ChatCall) -> Exchange:
        return exchange(id=call.id, endpoint="replay", metadata=call.metadata, answers=("Yes.",))

    monkeypatch.setattr("meditron.serve.replays.answer_replay", answer)
    replayed = fields(logs("replay", "aspirin-1", "--model", "m", "--json"))
    assert fields(logs("show", "aspirin-1", "--json"))["meditron.replays"] == [replayed["id"]]
    [event] = last_events(data, 5)
    assert (event["event"], event["endpoint"], event["request"]) == ("request", "replay", replayed["id"])


def test_the_audit_log_is_verified(logs: Command, data: Path) -> None:
    log = AuditLog(data)
    for number in range(3):
        log.record("request", request=str(number), status=200)
    head = log.head().sha256
    good = logs("audit", "--verify", "--head", head)
    assert good.code == 0
    assert head in good.out
    assert len(logs("audit", "--limit", "2").out.splitlines()) == 2
    text = log.path.read_text()
    log.path.write_text(text.replace('"request":"1"', '"request":"9"'), encoding="utf-8")
    bad = logs("audit", "--verify")
    assert bad.code == 1
    assert f"{log.path} (line 2): its content does not have its hash" in bad.err
    report = json.loads(logs("audit", "--verify", "--json").out)
    assert (report["ok"], report["lines"]) == (False, 1)


def test_without_a_log_there_is_one_line(meditron: Command, tmp_path: Path) -> None:
    for words in (["list"], ["export"], ["audit"], ["audit", "--verify"]):
        result = meditron("logs", *words, "--data", tmp_path / "nowhere")
        assert result.code == 2
        assert "hint: --data names the folder of the server's data" in result.err
    assert not (tmp_path / "nowhere").exists()
