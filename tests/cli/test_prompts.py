"""`meditron prompts`: writing, labels, rollback, roles, scores."""

import json
from pathlib import Path
from typing import Any

import pytest

from command import Command, CommandResult
from meditron.serve.audit import AuditLog, last_events
from meditron.store.prompts import PromptStore

PEOPLE = """
[ed]
key_sha256 = "{}"
roles = ["edit"]

[lara]
key_sha256 = "{}"
roles = ["label"]
""".format("a" * 64, "b" * 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prompts"


@pytest.fixture
def prompts(meditron: Command, folder: Path) -> Command:
    def run(*words: str | Path) -> CommandResult:
        return meditron("prompts", *words, "--prompts", folder)

    return run


def fields(result: CommandResult) -> dict[str, Any]:
    assert result.code == 0, result.err
    value = json.loads(result.out)
    assert isinstance(value, dict)
    return value


def test_the_life_of_a_prompt(prompts: Command, folder: Path, tmp_path: Path) -> None:
    first = fields(prompts("add", "triage", "--system", "You advise {{audience}}.", "--json"))
    assert first["variables"] == ["audience"]
    assert prompts("label", "triage", "production", "latest", "--reason", "the first").code == 0
    second = fields(prompts("edit", "triage", "--system", "Advise {{audience}} briefly.", "--json"))
    assert second["parent"] == first["version"]
    # A use by name alone keeps the labelled version until the label moves.
    assert fields(prompts("show", "triage", "--json"))["version"] == first["version"]
    moved = fields(prompts("label", "triage", "production", second["version"][:8], "--json", "--as", "lara"))
    assert (moved["person"], moved["previous"]) == ("lara", first["version"])
    back = fields(prompts("rollback", "triage", "--reason", "too brief", "--json"))
    assert (back["version"], back["rollback"]) == (first["version"], True)
    history = prompts("history", "triage")
    assert "rollback: too brief" in history.out
    assert [move["label"] for move in fields(prompts("history", "triage", "--json"))["moves"]] == [
        "latest", "production", "latest", "production", "production"
    ]  # fmt: skip
    diff = prompts("diff", "triage@latest")
    assert "-You advise {{audience}}." in diff.out.splitlines()
    assert diff.out == prompts("diff", "triage@production", "triage@latest").out
    exported = tmp_path / "triage.toml"
    assert prompts("export", "triage@latest", "--out", exported).code == 0
    copy = fields(prompts("add", "triage-2", "--file", exported, "--json"))
    assert copy["version"] == second["version"]
    listed = fields(prompts("list", "--json"))["prompts"]
    assert [(entry["name"], entry["versions"], entry["packaged"]) for entry in listed] == [
        ("one-shot-medical", 1, True),
        ("triage", 2, False),
        ("triage-2", 1, False),
        ("zero-shot-medical", 1, True),
    ]
    everything = fields(prompts("export", "triage", "--json"))
    assert len(everything["versions"]) == 2
    assert everything["labels"] == PromptStore(folder).labels("triage")


def test_without_a_role_the_command_is_refused(prompts: Command, folder: Path, tmp_path: Path) -> None:
    people = tmp_path / "people.toml"
    people.write_text(PEOPLE, encoding="utf-8")
    ed, lara = (["--people", people, "--as", name] for name in ("ed", "lara"))
    refused = prompts("add", "triage", "--system", "x", *lara)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == "meditron: error: lara does not have the role edit; roles: label\n"
    assert not folder.exists()
    assert prompts("add", "triage", "--system", "x", *ed).code == 0
    for words in (["label", "triage", "production", "latest"], ["rollback", "triage", "latest"]):
        refused = prompts(*words, *ed)
        assert refused.code == 2
        assert "ed does not have the role label" in refused.err
    assert prompts("label", "triage", "production", "latest", *lara).code == 0
    assert PromptStore(folder).history("triage")[-1].person == "lara"
    for words, problem in (
        (["--people", people], "--people needs the name of a person"),
        (["--people", people, "--as", "eve"], "has no person 'eve'"),
        (["--as", "../eve"], "not a name"),
    ):
        refused = prompts("edit", "triage", "--system", "y", *words)
        assert refused.code == 2
        assert problem in refused.err


def test_changes_in_the_folder_of_a_server_are_audited(prompts: Command, folder: Path) -> None:
    prompts("add", "triage", "--system", "x")
    prompts("label", "triage", "production", "latest")
    assert not (folder.parent / "audit.jsonl").exists()
    AuditLog(folder.parent).record("start")
    prompts("edit", "triage", "--system", "y")
    prompts("label", "triage", "production", "latest", "--as", "lara")
    [_, edited, moved] = last_events(folder.parent, 5)
    assert (edited["event"], edited["person"], edited["prompt"]) == ("prompt", "local", "triage")
    assert edited["version"] == PromptStore(folder).find("triage").version == moved["version"]
    assert (moved["event"], moved["person"], moved["prompt"]) == ("label", "lara", "triage")


def test_the_editor_writes_a_version(prompts: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prompts("add", "mine", "--from", "one-shot-medical").code == 0
    monkeypatch.delenv("EDITOR", raising=False)
    monkeypatch.delenv("VISUAL", raising=False)
    assert "set $EDITOR" in prompts("edit", "mine").err
    monkeypatch.setenv("EDITOR", "sed -i s/careful/careless/")
    edited = fields(prompts("edit", "mine", "--json"))
    assert edited["system"].startswith("You are a careless")
    assert len(edited["messages"]) == 2
    monkeypatch.setenv("EDITOR", "true")
    assert "nothing was written" in prompts("edit", "mine").err
    monkeypatch.setenv("EDITOR", "false")
    assert prompts("edit", "mine").code == 1
    assert len(fields(prompts("export", "mine", "--json"))["versions"]) == 2


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["add", "triage"], "a prompt needs a text"),
        (["add", "triage", "--system", " "], "needs a system text or a message"),
        (["add", "../triage", "--system", "x"], "cannot be the name of a prompt"),
        (["add", "one-shot-medical", "--system", "x"], "there is a prompt"),
        (["edit", "one-shot-medical", "--system", "x"], "belongs to the package"),
        (["show", "one-shot"], "did you mean one-shot-medical?"),
        (["show", "one-shot-medical@production"], "labels: latest"),
        (["diff", "one-shot-medical"], "has no parent"),
        (["add", "triage", "--file", "nowhere.toml"], "nowhere.toml: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(prompts: Command, words: list[str], problem: str) -> None:
    result = prompts(*words)
    assert result.code == 2
    assert problem in result.err
    assert "Traceback" not in result.err


def test_a_score_is_recorded_from_the_output_of_its_own_evaluation(prompts: Command, tmp_path: Path) -> None:
    version = fields(prompts("add", "triage", "--system", "x", "--json"))["version"]
    result = {
        "task": "questions", "model": "m", "method": "cot", "n": 50, "accuracy": 0.4, "interval": [0.3, 0.5],
        "data_sha256": "d", "prompt_sha256": "p", "system_prompt": f"triage@{version}",
    }  # fmt: skip
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result), encoding="utf-8")
    [score] = fields(prompts("score", "triage", path, "--json"))["scores"]
    assert (score["version"], score["n"], score["interval"]) == (version, 50, [0.3, 0.5])
    assert "40.0 %" in prompts("score", "triage").out
    path.write_text(json.dumps({**result, "system_prompt": None}), encoding="utf-8")
    assert "used no stored prompt" in prompts("score", "triage", path).err
    path.write_text(json.dumps({"accuracy": "high", "system_prompt": f"triage@{version}"}), encoding="utf-8")
    assert prompts("score", "triage", path).code == 1


def test_control_characters_of_a_prompt_do_not_reach_the_terminal(prompts: Command, folder: Path) -> None:
    assert prompts("add", "bad", "--system", "red \x1b[31m text", "--description", "\x1b]0;x\x07").code == 0
    for words in (["show", "bad"], ["list"], ["export", "bad"], ["history", "bad"]):
        assert "\x1b" not in prompts(*words).out
