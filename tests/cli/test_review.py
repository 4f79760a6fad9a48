"""The command `review`, with answers from files."""

import csv
import json
from pathlib import Path

import pytest

from command import Command
from meditron.cli.app import app
from meditron.cli.review import REVIEW_COMMANDS
from meditron.serve.audit import AuditLog, last_events
from meditron.serve.review.store import ReviewStore
from review_server import Rater, review_client, write_questions


@pytest.fixture
def created(meditron: Command, tmp_path: Path) -> Path:
    """Return the data folder of a review of twelve questions."""
    questions = [{"id": number, "question": f"What is {number}?", "category": "risk"} for number in range(12)]
    words = ["--questions", write_questions(tmp_path / "questions.jsonl", questions)]
    for name, text in (("zebra", "Answer 8 words"), ("quokka", "I am Quokka")):
        answers = [{"id": each["id"], "text": f"{text} {each['id']}"} for each in questions]
        words += ["--answers", write_questions(tmp_path / f"{name}.jsonl", answers)]
    data = tmp_path / "data"
    result = meditron("review", "create", "pilot", *words, "--data", data, "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert (record["added"], record["questions"], record["names_a_model"]) == (24, 12, 12)
    assert "12 answers contain the name of a model" in result.err
    again = meditron("review", "create", "pilot", *words, "--data", data)
    assert "Nothing to do" in again.err
    return data


def test_a_review_from_creation_to_export(meditron: Command, created: Path, tmp_path: Path) -> None:
    with review_client(created) as client:
        for name in ("anna", "ben"):
            rater = Rater(client, name, helpful=lambda text: 5.0 if "8 words" in text else 1.5)
            for token in rater.start():
                rater.rate(token, {})
    listed = json.loads(meditron("review", "list", "--data", created, "--json").out)
    assert listed["reviews"][0]["state"] == "open"
    status = meditron("review", "status", "pilot", "--data", created)
    assert "anna" in status.out
    assert "zebra" not in status.out + status.err
    for command in ("results", "export"):
        words = ["--out", tmp_path / "early.csv"] if command == "export" else []
        refused = meditron("review", command, "pilot", *words, "--data", created)
        assert refused.code == 2
        assert "is not closed" in refused.err
    AuditLog(created).record("start")
    assert meditron("review", "close", "pilot", "--data", created).code == 0
    shown = meditron("review", "results", "pilot", "--data", created)
    assert shown.out.startswith("Raters prefer zebra to quokka")
    assert "Krippendorff" in shown.err
    assert "Helpfulness" in shown.out
    results = json.loads(meditron("review", "results", "pilot", "--data", created, "--json").out)
    assert results["preferences"][0]["share"]["zebra"]["value"] > 0.7
    assert len(results["names_a_model"]) == 12
    out = tmp_path / "out.csv"
    assert meditron("review", "export", "pilot", "--out", out, "--pseudonyms", "--data", created).code == 0
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 12 * 2 * 2
    assert {row["rater"] for row in rows} == {"rater-1", "rater-2"}
    _, closed, exported = last_events(created, 5)
    assert (closed["event"], closed["name"]) == ("close", "pilot")
    assert (exported["event"], exported["rows"], exported["format"]) == ("export", 48, "csv")
    lines = tmp_path / "out.jsonl"
    meditron("review", "export", "pilot", "--out", lines, "--data", created)
    assert json.loads(lines.read_text(encoding="utf-8").splitlines()[0])["answer"]


def test_wrong_use_is_explained(meditron: Command, tmp_path: Path) -> None:
    for words, problem in (
        (["create", "pilot"], "2 to 6 models, got 0"),
        (["create", "a/b", "--answers", "a.jsonl", "--answers", "b.jsonl"], "letters, digits"),
        (["create", "pilot", "--answers", "x=a.jsonl", "--answers", "x=b.jsonl"], "two models are called x"),
        (["create", "pilot", "--answers", "a.jsonl", "--answers", "b.jsonl"], "a.jsonl"),
        (["create", "pilot", "--answers", "tie=a.jsonl", "--answers", "b.jsonl"], "cannot be called tie"),
        (["status", "none"], "there is no review 'none'"),
        (["export", "none", "--out", "x.txt"], "must end in .jsonl or .csv"),
    ):
        result = meditron("review", *words, "--data", tmp_path)
        assert result.code == 2, result.err
        assert problem in result.err


def test_no_credential_of_a_model_is_stored(meditron: Command, tmp_path: Path) -> None:
    words = ("--model", "a=api:http://user:s3cret@127.0.0.1:9/v1?key=s3cret", "--model", "b=b.gguf")
    assert meditron("review", "create", "pilot", *words, "--data", tmp_path).code != 0
    with ReviewStore(tmp_path) as store:
        assert store.get("pilot").settings["models"] == {"a": "api:http://127.0.0.1:9/v1", "b": "b.gguf"}
    assert not any(b"s3cret" in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("name", REVIEW_COMMANDS)
def test_every_subcommand_has_help_with_an_example_and_json(meditron: Command, name: str) -> None:
    result = meditron("review", name, "--help")
    assert result.code == 0
    assert "For example" in result.out
    flags = {flag for each in app["review"][name].assemble_argument_collection() for flag in each.names}
    assert {"--json", "--data"} <= flags
